"""Sockets made here for the target, where pidfd_getfd(2) is refused: a duplicate of each is kept, known by its inode.

Theory of operation. Default containers let nobody take descriptors out of another process. So every inet socket of the
target is made here and installed in it (SECCOMP_IOCTL_NOTIF_ADDFD); the duplicate that stays is found again by what
`readlink /proc/TID/fd/N` says, after dup(), fork() and SCM_RIGHTS too. While it is kept the program's close() doesn't
close, so it's *let go* as soon as nothing can be asked of it any more: when it's connected, and at listen(). What
getpeername() is to say then is remembered by the inode.

Sockets that are closed without either are found by a *sweep*: those that aren't where they were installed are looked
for in all programs. One that is open nowhere may be on its way to another program by SCM_RIGHTS, so it's dropped when a
later sweep misses it again; at once, when there are many, when a dial to it failed (an epoll set of the program's still
has it), or when it keeps a port that somebody binds to. Sweeps are made every SOCKETS_A_SWEEP sockets, at bind(2), when
a process ends, soon after a failed dial, and ever more seldom while something is kept.
"""

import _socket
import errno
import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from pysocksify.linux import looked_into
from pysocksify.reactor import READ, WRITE, Reactor, Timer
from pysocksify.supervisor.calls import CallRefused, process_of
from pysocksify.supervisor.connection import TCP_CLOSE, is_connected
from pysocksify.supervisor.hold import TCP_SYN_SENT
from pysocksify.supervisor.openfiles import sockets_open

SOCKETS_A_SWEEP = 64
MISSED_MOST = 256  # sockets open nowhere that are kept for who may still get them; as many as one recvmsg(2) can bring
IN_FLIGHT = 1.0  # seconds that a socket may be on its way between programs, and between sweeps at first
SELDOM = 32.0
AFTER_FAILURE = 0.02
PEERS_REMEMBERED = 65536  # as `supervisor.connections` has it

SOCKPROTONAME = "system.sockprotoname"  # sockfs_xattr_get() in net/socket.c: struct proto's name; lsof(8) asks for it
OTHER_FAMILIES = (b"UNIX", b"UNIX-STREAM", b"NETLINK", b"ALG")


@dataclass(slots=True, eq=False)
class Kept:
    """A socket of the target's that we have too."""

    sock: socket.socket
    inode: int
    tid: int
    number: int
    """Where it was installed: thread and descriptor."""
    stream: bool
    bound: bool = False
    failed: bool = False
    watched: bool = False
    missed: float | None = None
    """When a sweep first found it open nowhere."""


@dataclass(slots=True)
class LetGo:
    """What is still to be said of a socket that stands."""

    peer: bytes | None
    """The sockaddr for getpeername(2); None: the kernel's."""
    owed: bool
    """connect() has said EINPROGRESS, and says 0 once before EISCONN (inet_stream_connect() in net/ipv4)."""


class Adopted:
    """The target's inet sockets. As a `Taker` it gives duplicates of those that are kept."""

    def __init__(
        self,
        reactor: Reactor,
        peer: Callable[[socket.socket], bytes | None],
        programs: Callable[[], list[int]],
    ) -> None:
        """`peer`: the sockaddr that a connected socket was asked for; `programs`: who may have the target's sockets."""
        self._reactor = reactor
        self._peer = peer
        self._programs = programs
        self._kept: dict[int, Kept] = {}
        self._let_go: dict[int, LetGo] = {}
        self._sweep_at = SOCKETS_A_SWEEP
        self._timer: Timer | None = None
        self._interval = IN_FLIGHT
        self._took = 0.0
        self._ends: dict[int, int] = {}

    def adopt(self, fd: int, tid: int, number: int) -> None:
        """Keep `fd`, a duplicate of what this thread has just got under that number."""
        sock = cast(socket.socket, _socket.socket(fileno=fd))
        inode = os.fstat(fd).st_ino
        self._let_go.pop(inode, None)
        self._kept[inode] = Kept(sock, inode, tid, number, sock.type == socket.SOCK_STREAM)
        self._watch_process(tid)
        if len(self._kept) >= self._sweep_at:
            self.sweep()
        self._interval = IN_FLIGHT
        self._sweep_within(IN_FLIGHT)

    def inode(self, tid: int, number: int) -> int:
        """The inode of the socket that is a thread's descriptor. OSError: EBADF, ENOTSOCK, EPERM."""
        try:
            link = looked_into(tid, lambda: os.readlink(f"/proc/{tid}/fd/{number}"))
        except PermissionError as failure:  # a program that has made itself unreadable
            raise OSError(errno.EPERM, os.strerror(errno.EPERM)) from failure
        except FileNotFoundError as failure:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from failure
        if not link.startswith("socket:["):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        return int(link[8:-1])

    def kept(self, inode: int) -> Kept | None:
        """The socket, if it was made here and isn't let go."""
        return self._kept.get(inode)

    def past(self, inode: int) -> LetGo | None:
        """What is to be said of it, if it was made here and let go."""
        return self._let_go.get(inode)

    def is_inet(self, tid: int, number: int) -> bool:
        """Whether a socket that we don't have could open a way out: any that isn't known to be of another family."""
        try:
            name = looked_into(tid, lambda: os.getxattr(f"/proc/{tid}/fd/{number}", SOCKPROTONAME))
        except OSError:
            return True
        return name.rstrip(b"\0") not in OTHER_FAMILIES

    def take(self, tid: int, fd: int) -> int:
        """A duplicate of a kept socket. OSError: ENOTSOCK: the kernel may serve it; CallRefused: made elsewhere."""
        inode = self.inode(tid, fd)
        kept = self._kept.get(inode)
        if kept is not None:
            return os.dup(kept.sock.fileno())
        if inode in self._let_go or not self.is_inet(tid, fd):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        raise CallRefused(errno.EPERM)

    def settle(self, inode: int, error: int) -> None:
        """A call that connects is about to end with `error`: let the socket go if it stands, wait if it may yet."""
        kept = self._kept.get(inode)
        if kept is None or not kept.stream:
            return
        state = kept.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state == TCP_SYN_SENT:
            self._watch(kept)
        elif is_connected(kept.sock):
            self.let_go(kept, owed=error not in (0, errno.EISCONN))
        elif state == TCP_CLOSE:
            self._failed(kept)

    def unheard(self, inode: int) -> None:
        """The caller hasn't heard that its socket stands; it will ask once more."""
        past = self._let_go.get(inode)
        if past is not None:
            past.owed = True

    def let_go(self, kept: Kept, *, owed: bool = False) -> None:
        """Have the program's socket for itself alone."""
        self._let_go[kept.inode] = LetGo(self._peer(kept.sock), owed)
        if len(self._let_go) > PEERS_REMEMBERED:
            del self._let_go[next(iter(self._let_go))]
        self._drop(kept)

    def bind(self, kept: Kept) -> None:
        """bind(2) is about to be called on it: no port may be taken by what is closed."""
        if any(each.bound or not each.stream for each in self._kept.values() if each is not kept):
            self.sweep(ports=True)
        kept.bound = True

    def sweep(self, *, ports: bool = False) -> None:
        """Drop what is closed in all programs; with `ports` at once, if it has one."""
        now = self._reactor.now()
        doubtful = [kept for kept in self._kept.values() if not self._is_where_it_was(kept)]
        try:
            still_open = sockets_open(self._programs()) if doubtful else set()
        except OSError:  # no descriptor left to look with: nothing is known
            return
        missed = []
        for kept in doubtful:
            if kept.inode in still_open:
                kept.missed = None
                continue
            if kept.missed is None:
                kept.missed = now
            has_port = kept.bound or not kept.stream
            if kept.failed or now - kept.missed >= IN_FLIGHT or (ports and has_port):
                self._drop(kept)
            else:
                missed.append(kept)
        for kept in missed[:-MISSED_MOST]:
            self._drop(kept)
        if missed:
            self._sweep_within(IN_FLIGHT)
        self._sweep_at = len(self._kept) + max(SOCKETS_A_SWEEP, len(self._kept) // 2)
        self._took = self._reactor.now() - now

    def close(self) -> None:
        """Let everything go."""
        for kept in list(self._kept.values()):
            self._drop(kept)
        for pid in list(self._ends):
            self._forget_process(pid)
        if self._timer is not None:
            self._timer.cancel()

    def _is_where_it_was(self, kept: Kept) -> bool:
        try:
            return self.inode(kept.tid, kept.number) == kept.inode
        except OSError:
            return False

    def _drop(self, kept: Kept) -> None:
        del self._kept[kept.inode]
        if kept.watched:
            self._reactor.unwatch(kept.sock.fileno())
        kept.sock.close()

    def _watch(self, kept: Kept) -> None:
        """The kernel or the supervisor goes on connecting it: see what becomes of that."""
        if kept.watched:
            return
        kept.watched = True

        def ready(events: int) -> None:
            self._reactor.unwatch(kept.sock.fileno())
            kept.watched = False
            self.settle(kept.inode, errno.EINPROGRESS)

        self._reactor.watch(kept.sock.fileno(), WRITE | select.EPOLLRDHUP, ready)

    def _failed(self, kept: Kept) -> None:
        """A dial has failed; the program may try again with this socket, but mostly it closes it now."""
        kept.failed = True
        if self._is_where_it_was(kept):
            self._interval = AFTER_FAILURE
            self._sweep_within(AFTER_FAILURE)
        else:
            self.sweep()

    def _sweep_within(self, seconds: float) -> None:
        when = self._reactor.now() + max(seconds, 3 * self._took)  # a quarter of the time at most
        if self._timer is not None:
            if self._timer.when <= when:
                return
            self._timer.cancel()
        self._timer = self._reactor.call_at(when, self._sweep_on_time)

    def _sweep_on_time(self) -> None:
        self._timer = None
        self.sweep()
        self._interval = min(2 * self._interval, SELDOM)
        if self._kept:
            self._sweep_within(self._interval)

    def _watch_process(self, tid: int) -> None:
        """Hear of the end of this thread's process."""
        pid = tid if tid in self._ends else process_of(tid)
        if pid in self._ends:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # it's gone already, or no descriptor is left: the next sweep on time comes too
            return
        self._ends[pid] = pidfd

        def ended(events: int) -> None:
            self._forget_process(pid)
            self.sweep()

        self._reactor.watch(pidfd, READ, ended)

    def _forget_process(self, pid: int) -> None:
        pidfd = self._ends.pop(pid)
        self._reactor.unwatch(pidfd)
        os.close(pidfd)
