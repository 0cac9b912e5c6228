"""A child under the filter, and a supervisor by hand: seccomp_unotify(2)'s ioctls, written apart from the engine's."""

import contextlib
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from pysocksify.engines.seccomp import installation
from pysocksify.engines.syscalls import abi, filter

NOBODY = 65534
ACCOUNTS = [os.geteuid(), *([NOBODY] if os.geteuid() == 0 else [])]
PATIENCE = 15

# asm-generic/ioctl.h: direction, size, '!', number; linux/seccomp.h
RECV, SEND = (3 << 30) | (80 << 16) | (0x21 << 8), (3 << 30) | (24 << 16) | (0x21 << 8) | 1


def machine() -> abi.Architecture:
    """This machine's architecture."""
    return abi.ARCHITECTURES[platform.machine()]


def fork() -> int:
    """os.fork(): the children here only make plain system calls, so other tests' threads do them no harm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def become(uid: int) -> None:
    """Drop root's privileges, unless it's one's own account."""
    if uid != os.geteuid():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def as_account(uid: int, act: Callable[[], None]) -> None:
    """Run in a forked child with that user id, and fail as it fails."""
    read, write = os.pipe()
    child = fork()
    if child == 0:

        def life() -> None:
            become(uid)
            act()

        _run(life, write)
    os.close(write)
    _outcome(child, read)


def _run(act: Callable[[], object], write: int) -> None:
    """A forked child's life: 0 when `act` returns, else what went wrong goes to `write`."""
    try:
        signal.alarm(PATIENCE)
        act()
        os._exit(0)
    except BaseException:
        os.write(write, traceback.format_exc().encode())
    finally:
        os._exit(1)


def _outcome(child: int, read: int) -> None:
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"status {status}: {said}"


@dataclass(frozen=True, slots=True)
class Caught:
    """struct seccomp_notif."""

    id: int
    tid: int
    nr: int
    arch: int
    args: tuple[int, ...]


class Filtered:
    """A forked child that installs the filter and then runs `act`. `fd` is its listener."""

    def __init__(self, act: Callable[[], None], *, uid: int | None = None, adopting: bool = False) -> None:
        ours, theirs = socket.socketpair()
        self._errors, write = os.pipe()
        self.pid = fork()
        if self.pid == 0:

            def life() -> None:
                become(os.geteuid() if uid is None else uid)
                arch = machine()
                listener, killable = installation.install(arch, filter.program(arch, adopting=adopting))
                socket.send_fds(theirs, [b"k" if killable else b"-"], [listener])
                os.close(listener)
                assert theirs.recv(1) == b"g"
                act()

            _run(life, write)
        os.close(write)
        theirs.close()
        ours.settimeout(PATIENCE)
        with ours:
            killable, fds, _, _ = socket.recv_fds(ours, 1, 1)
            if not fds:
                _outcome(self.pid, self._errors)
            (self.fd,) = fds
            self.killable = killable == b"k"
            ours.send(b"g")
        self._finished = False

    def __enter__(self) -> "Filtered":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close_listener()
        if not self._finished:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            with open(self._errors, "rb") as pipe:
                print(pipe.read().decode())

    def receive(self) -> Caught:
        """The next call that was caught."""
        ready, _, _ = select.select([self.fd, self._errors], [], [], PATIENCE)
        assert self.fd in ready, "no call was caught"
        buffer = bytearray(80)
        fcntl.ioctl(self.fd, RECV, buffer)
        id, tid, _, nr, arch, _, *args = struct.unpack("=QIIiIQ6Q", buffer)
        return Caught(id, tid, nr, arch, tuple(args))

    def send(self, id: int, *, value: int = 0, error: int = 0, flags: int = 0) -> None:
        """Answer a call."""
        fcntl.ioctl(self.fd, SEND, struct.pack("=QqiI", id, value, -error, flags))

    def close_listener(self) -> None:
        """The supervisor is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def finish(self) -> None:
        """Wait for the child's end; it fails as the child failed."""
        self._finished = True
        _outcome(self.pid, self._errors)
