"""One direction of a relay: from one socket to another, by splice(2) and a borrowed pipe, or through memory.

Theory of operation. A flow reads its source only when its sink has taken all that it read before; that is the
back-pressure. What it reads goes through a pipe (splice, no copy), which it has only while something is in it. Where no
pipe can be had (the pool's cap, EMFILE), and around urgent data, it copies through memory instead, so that nothing ever
waits for a pipe; what isn't taken then stays in the source's socket, so that a slow reader costs none but the kernel's
memory.
"""

import os
import socket

PIPE_SIZE = 256 * 1024  # bytes; with the default's 64 KiB it is a third slower, with 1 MiB no faster
PIPES = 256  # pipe-user-pages-soft is 16,384 pages by default: 256 pipes of this size, later ones would get two pages
PIPES_KEPT = 32  # idle ones: enough for the flows that are in the middle of something in one round of the loop
COPY_SIZE = 64 * 1024

SPLICE = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK (splice(2))
SIOCATMARK = 0x8905  # asm-generic/sockios.h; tcp(7)

# Elsewhere than on Linux all is copied, and urgent bytes aren't told from others.
SPLICES = hasattr(os, "splice")
if SPLICES:
    import fcntl


class PipePool:
    """Pipes for relays to borrow: at most `capacity` at once, of which the idle ones up to `kept` stay open."""

    def __init__(self, capacity: int = PIPES, kept: int = PIPES_KEPT) -> None:
        self._capacity = capacity
        self._kept = kept
        self._idle: list[tuple[int, int]] = []
        self.open = 0

    def acquire(self) -> tuple[int, int] | None:
        """An empty pipe as (read end, write end), or None when there's none to be had now."""
        if self._idle:
            return self._idle.pop()
        if self.open >= self._capacity or not SPLICES:
            return None
        try:
            pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:  # EMFILE, ENFILE
            return None
        self.open += 1
        try:
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:  # EPERM: pipe-max-size or this user's share; what there is will do
            return pipe
        return pipe

    def release(self, pipe: tuple[int, int], *, empty: bool) -> None:
        """Give a pipe back. One that still holds bytes is closed: they would come out on somebody else's connection."""
        if empty and len(self._idle) < self._kept:
            self._idle.append(pipe)
            return
        self.open -= 1
        os.close(pipe[0])
        os.close(pipe[1])

    def close(self) -> None:
        """Close the idle pipes; those lent out are closed as they come back."""
        self._kept = 0
        while self._idle:
            self.release(self._idle.pop(), empty=True)


class Flow:
    """One direction. Its methods raise CutError when a socket of it failed; nothing here touches the reactor."""

    __slots__ = (
        "_blocked", "_copies", "_held", "_pipe", "_pool", "count", "ended", "finished", "sink", "source",
        "urgent_wanted",
    )  # fmt: skip

    def __init__(self, source: socket.socket, sink: socket.socket, pool: PipePool, first: bytes) -> None:
        self.source = source
        self.sink = sink
        self.count = 0  # bytes that the sink has taken
        self.ended = False  # the source has no more
        self.finished = False  # the sink has it all, and was told of the end
        self.urgent_wanted = True
        self._pool = pool
        self._pipe: tuple[int, int] | None = None
        self._held = 0  # bytes in the pipe
        self._blocked = False  # the source has something that the sink doesn't take, and no pipe took it
        self._copies: list[tuple[bytes, int]] = []  # what came first, or an urgent byte, with its flags; beside no pipe
        if first:
            self._copies.append((first, 0))

    def full(self) -> bool:
        """There is something that the sink has to take before more is read."""
        return bool(self._held or self._copies or self._blocked)

    def fill(self) -> bool:
        """When nothing waits for the sink: read once and hand over. Whether something came; `ended` is set at the end
        of the source."""
        pipe = self._pool.acquire()
        if pipe is None:
            return self._copy()
        try:
            size = os.splice(self.source.fileno(), pipe[1], PIPE_SIZE, flags=SPLICE)
        except BlockingIOError:
            self._pool.release(pipe, empty=True)
            return self._copy()
        except OSError as error:
            self._pool.release(pipe, empty=True)
            raise CutError(self.source, error.errno or 0) from None
        if not size:  # the end, or an urgent byte with the end somewhere behind it: recv(2) knows
            self._pool.release(pipe, empty=True)
            return self._copy()
        self._pipe, self._held, self.urgent_wanted = pipe, size, True
        self.flush()
        return True

    def _copy(self) -> bool:
        """Go through memory: where splice has nothing, because it stops for good before an urgent byte, or no pipe.

        Only what the sink has taken is taken from the source: however many flows wait, none holds memory of ours.
        """
        urgent = self._at_mark() and self._take_urgent()
        if urgent:
            self.flush()
            if self._copies:
                return True
        try:
            data = self.source.recv(COPY_SIZE, socket.MSG_PEEK)  # stops before the next mark; at one it skips the byte
        except BlockingIOError:
            return urgent
        except OSError as error:
            raise CutError(self.source, error.errno or 0) from None
        if not data:
            self.ended = True
            return True
        self.urgent_wanted = True
        size = self._send(data, 0)
        self._blocked = size < len(data)
        try:
            while size:
                size -= len(self.source.recv(size)) or size
        except BlockingIOError:  # a mark was set in what had come before: its byte isn't read again
            return True
        except OSError as error:
            raise CutError(self.source, error.errno or 0) from None
        return True

    def _at_mark(self) -> bool:
        try:
            return SPLICES and fcntl.ioctl(self.source.fileno(), SIOCATMARK, b"\0\0\0\0") != b"\0\0\0\0"
        except OSError:  # a Unix socket
            return False

    def _take_urgent(self) -> bool:
        try:
            byte = self.source.recv(1, socket.MSG_OOB)
        except OSError:  # EAGAIN: announced but not here yet; EINVAL: taken before
            return False
        self._copies.append((byte, 0 if self.sink.family == socket.AF_UNIX else socket.MSG_OOB))
        return True

    def flush(self) -> None:
        """Hand over what waits, as far as the sink takes it."""
        if self._blocked:
            self._blocked = False
            self.fill()
            return
        while self._copies:
            data, flags = self._copies[0]
            size = self._send(data, flags)
            if size < len(data):
                self._copies[0] = (data[size:], flags)
                return
            del self._copies[0]
        try:
            while self._held and self._pipe is not None:
                size = os.splice(self._pipe[0], self.sink.fileno(), self._held, flags=SPLICE)
                self.count += size
                self._held -= size
        except BlockingIOError:
            return
        except OSError as error:
            raise CutError(self.sink, error.errno or 0) from None
        if self._pipe is not None:
            self._pool.release(self._pipe, empty=True)
            self._pipe = None

    def _send(self, data: bytes, flags: int) -> int:
        """How many bytes the sink takes now."""
        try:
            size = self.sink.send(data, flags)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise CutError(self.sink, error.errno or 0) from None
        self.count += size
        return size

    def drop(self) -> None:
        """Give up what is held, and end."""
        if self._pipe is not None:
            self._pool.release(self._pipe, empty=not self._held)
            self._pipe = None
        self._held = 0
        self._blocked = False
        self._copies.clear()
        self.ended = self.finished = True


class CutError(Exception):
    """A socket failed: its peer reset it, or is out of reach."""

    def __init__(self, end: socket.socket, errno: int) -> None:
        super().__init__(end, errno)
        self.end = end
        self.errno = errno
