"""Sending and receiving on UDP sockets where those can't be enclosed: the calls caught for their descriptors.

Theory of operation. The supervisor performs the calls (`supervisor.confined`) on its duplicate of the socket. A receive
that would wait is a task here until there is a datagram, the time limit is over, a signal is to be delivered (then the
kernel issues the call again, or says EINTR), or the caller is gone. Nothing is taken from the socket for a caller that
waits no more. Control messages aren't passed on: those that are sent could name an interface, and those that are
received would tell of loopback.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pysocksify.engines.syscalls import abi
from pysocksify.engines.syscalls.caught import CaughtCall, closing, integer
from pysocksify.engines.syscalls.filter import MSG_FASTOPEN
from pysocksify.engines.syscalls.memory import INT, IOV_MOST, MSGHDR, SOCKADDR_MOST, Memory
from pysocksify.engines.syscalls.udp import UdpSockets
from pysocksify.reactor import READ, Pause, Reactor, Ready, Steps, Task, Timer
from pysocksify.supervisor.calls import ERESTARTSYS, LOOK_INTERVAL, CallRefused, Signalled, Signals
from pysocksify.supervisor.confined import DATAGRAM, Datagram
from pysocksify.supervisor.core import Supervisor

MSG_WAITFORONE, MSG_CMSG_CLOEXEC = 0x10000, 0x40000000
MSG_ZEROCOPY = 0x4000000
_NOT_SENT = MSG_FASTOPEN | MSG_ZEROCOPY  # means nothing for UDP; would promise a completion, and what we send is a copy
LONG_WAIT = 5.0  # seconds; who has waited longer is looked after less often
SELDOM = 0.1

_TIMES = struct.Struct("=qq")
# offsets in struct msghdr and struct mmsghdr
_NAMELEN, _CONTROLLEN, _FLAGS, _MSG_LEN, _MMSGHDR_SIZE = 8, 40, 48, 56, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where one datagram and what is said of it go in the target's memory; 0 for what isn't wanted."""

    iovecs: Sequence[tuple[int, int]]
    name: int
    name_size: int
    name_length: int
    header: int = 0
    counted: bool = False
    """The header is a struct mmsghdr."""


@dataclass(slots=True, eq=False)
class Receive:
    """One receiving call, and our duplicate of its socket."""

    call: CaughtCall
    sock: socket.socket
    slots: Sequence[Slot]
    flags: int
    deadline: float | None
    on_signal: int
    """What the call ends with when a signal is to be delivered (signal(7))."""
    started: float
    task: "Task[None] | None" = None


class Datagrams:
    """Serves the calls that send and receive on them."""

    def __init__(
        self,
        reactor: Reactor,
        arch: abi.Architecture,
        supervisor: Supervisor,
        memory: Memory,
        sockets: UdpSockets,
    ) -> None:
        self._reactor = reactor
        self._supervisor = supervisor
        self._memory = memory
        self._sockets = sockets
        self.calls: dict[int, Callable[[CaughtCall], None]] = {
            arch.sendto: self.sendto,
            arch.sendmsg: self.sendmsg,
            arch.sendmmsg: self.sendmmsg,
            arch.recvfrom: self.recvfrom,
            arch.recvmsg: self.recvmsg,
            arch.recvmmsg: self.recvmmsg,
        }
        self._waiting: set[Receive] = set()
        self._signals = Signals()
        self._look: Timer | None = None

    # sending

    def sendto(self, call: CaughtCall) -> None:
        """sendto(2) with a name."""
        _, buffer, size, flags, name, name_size = call.args
        sock = self._sockets.take(call)
        if sock is not None:
            with closing(sock):
                call.answer(0, self._send(call, sock, flags, [(buffer, size)], name, integer(name_size)))

    def sendmsg(self, call: CaughtCall) -> None:
        """sendmsg(2)."""
        sock = self._sockets.take(call)
        if sock is not None:
            with closing(sock):
                call.answer(0, self._send_message(call, sock, call.args[1], call.args[2]))

    def sendmmsg(self, call: CaughtCall) -> None:
        """sendmmsg(2)."""
        sock = self._sockets.take(call)
        if sock is None:
            return
        sent = 0
        with closing(sock):
            for index in range(min(call.args[2] & 0xFFFFFFFF, IOV_MOST)):
                header = call.args[1] + index * _MMSGHDR_SIZE
                try:
                    size = self._send_message(call, sock, header, call.args[3])
                except (OSError, CallRefused):
                    if not sent:
                        raise
                    break
                self._memory.write(call.tid, header + _MSG_LEN, struct.pack("=I", size))
                sent += 1
        call.answer(0, sent)

    def _send_message(self, call: CaughtCall, sock: socket.socket, header: int, flags: int) -> int:
        name, name_size, iov, count, *_ = MSGHDR.unpack(self._memory.read(call.tid, header, MSGHDR.size))
        return self._send(call, sock, flags, self._memory.iovecs(call.tid, iov, count), name, name_size)

    def _send(
        self,
        call: CaughtCall,
        sock: socket.socket,
        flags: int,
        iovecs: Sequence[tuple[int, int]],
        name: int,
        name_size: int,
    ) -> int:
        if sum(size for _, size in iovecs) > DATAGRAM:
            raise CallRefused(errno.EMSGSIZE)
        data = b"".join(self._memory.read(call.tid, base, size) for base, size in iovecs)
        sockaddr = None
        if name and name_size:
            if not 0 <= name_size <= SOCKADDR_MOST:
                raise CallRefused(errno.EINVAL)
            sockaddr = self._memory.read(call.tid, name, name_size)
        if not call.waits():
            raise CallRefused(errno.EINTR)  # heard by nobody
        try:
            return self._sockets.confined.send(call.tid, sock, data, flags & 0x7FFFFFFF & ~_NOT_SENT, sockaddr)
        except BlockingIOError:
            if os.get_blocking(sock.fileno()) and not flags & socket.MSG_DONTWAIT:
                raise CallRefused(errno.ENOBUFS) from None  # loopback takes or drops; nothing to wait for (send(2))
            raise

    # receiving

    def recvfrom(self, call: CaughtCall) -> None:
        """recvfrom(2) with a name."""
        _, buffer, size, flags, name, name_length = call.args
        sock = self._sockets.take(call)
        if sock is None:
            return
        with closing(sock):
            (name_size,) = INT.unpack(self._memory.read(call.tid, name_length, 4)) if name else (0,)
            if name_size < 0:
                raise CallRefused(errno.EINVAL)
            slot = Slot(iovecs=[(buffer, size)], name=name, name_size=name_size, name_length=name_length)
            self._begin(call, sock, [slot], flags)

    def recvmsg(self, call: CaughtCall) -> None:
        """recvmsg(2)."""
        sock = self._sockets.take(call)
        if sock is not None:
            with closing(sock):
                self._begin(call, sock, [self._slot(call, call.args[1], False)], call.args[2])

    def recvmmsg(self, call: CaughtCall) -> None:
        """recvmmsg(2): what is there once something is, as with MSG_WAITFORONE."""
        sock = self._sockets.take(call)
        if sock is None:
            return
        with closing(sock):
            count = min(call.args[2] & 0xFFFFFFFF, IOV_MOST)
            slots = [self._slot(call, call.args[1] + index * _MMSGHDR_SIZE, True) for index in range(count)]
            timeout = None
            if call.args[4]:
                seconds, nanoseconds = _TIMES.unpack(self._memory.read(call.tid, call.args[4], _TIMES.size))
                if seconds < 0 or not 0 <= nanoseconds < 10**9:
                    raise CallRefused(errno.EINVAL)
                timeout = seconds + nanoseconds / 1e9
            if not slots:
                call.answer(0, 0)
                return
            self._begin(call, sock, slots, call.args[3], timeout)

    def _slot(self, call: CaughtCall, header: int, counted: bool) -> Slot:
        name, name_size, iov, count, *_ = MSGHDR.unpack(self._memory.read(call.tid, header, MSGHDR.size))
        return Slot(
            iovecs=self._memory.iovecs(call.tid, iov, count),
            name=name,
            name_size=min(name_size, SOCKADDR_MOST),
            name_length=header + _NAMELEN,
            header=header,
            counted=counted,
        )

    def _begin(
        self, call: CaughtCall, sock: socket.socket, slots: Sequence[Slot], flags: int, timeout: float | None = None
    ) -> None:
        """Receive now, or let the call wait, with a duplicate of `sock`."""
        if not call.waits():
            return
        flags &= 0x7FFFFFFF
        limit = receive_timeout(sock)
        now = self._reactor.now()
        ends = [now + each for each in (limit, timeout) if each is not None]
        request = Receive(
            call=call,
            sock=sock,
            slots=slots,
            flags=flags,
            deadline=min(ends, default=None),
            on_signal=ERESTARTSYS if limit is None else errno.EINTR,  # sock_intr_errno() in include/net/sock.h
            started=now,
        )
        if self._deliver(request):
            return
        if flags & (socket.MSG_DONTWAIT | socket.MSG_ERRQUEUE) or not os.get_blocking(sock.fileno()):
            raise CallRefused(errno.EAGAIN)
        request.sock = socket.socket(fileno=os.dup(sock.fileno()))
        self._waiting.add(request)

        def done(_: None, failure: BaseException | None) -> None:
            self._forget(request)
            if isinstance(failure, (OSError, CallRefused)):
                call.answer(failure.errno or errno.EAGAIN)  # a TimeoutError of ours has none
            elif failure is not None:
                raise failure

        request.task = self._reactor.spawn(self._wait(request), done)
        if self._look is None:
            self._look = self._reactor.call_at(now + LOOK_INTERVAL, self._look_at_callers)

    def _wait(self, request: Receive) -> Steps[None]:
        ready = Ready(request.sock.fileno(), READ, request.deadline)
        while True:
            events = yield ready
            if not request.call.waits() or self._deliver(request):
                return
            if not events & READ:  # errors of IP_RECVERR that nobody fetches: epoll says so for ever
                yield Pause(LOOK_INTERVAL)

    def _deliver(self, request: Receive) -> bool:
        """Give the caller what is there; False when nothing is. OSError, CallRefused: what to say to the caller."""
        call = request.call
        flags = request.flags & ~(socket.MSG_TRUNC | MSG_WAITFORONE | MSG_CMSG_CLOEXEC)
        size = count = 0
        for slot in request.slots:
            try:
                datagram = self._sockets.confined.receive(request.sock, flags)
            except BlockingIOError:
                break
            except OSError:
                if not count:
                    raise
                break
            size = self._put(call.tid, slot, datagram, bool(request.flags & socket.MSG_TRUNC))
            count += 1
        if count:
            call.answer(0, count if request.slots[0].counted else size)
        return count > 0

    def _put(self, tid: int, slot: Slot, datagram: Datagram, whole: bool) -> int:
        """Write a datagram to its place; the size to tell: the `whole` one's, or what there was room for."""
        memory, data, source = self._memory, datagram.data, datagram.source
        at = 0
        for base, room in slot.iovecs:
            memory.write(tid, base, data[at : at + room])
            at = min(at + room, len(data))
        if slot.name:
            memory.write(tid, slot.name, source[: slot.name_size])
            memory.write(tid, slot.name_length, INT.pack(len(source)))
        size = len(data) if whole else at
        if slot.header:
            flags = datagram.flags | (socket.MSG_TRUNC if at < len(data) else 0)
            memory.write(tid, slot.header + _CONTROLLEN, bytes(8))
            memory.write(tid, slot.header + _FLAGS, INT.pack(flags))
        if slot.counted:
            memory.write(tid, slot.header + _MSG_LEN, struct.pack("=I", size))
        return size

    def _look_at_callers(self) -> None:
        """End the waits of threads that have a signal to take, and of those that are gone."""
        self._look = None
        for request in [request for request in self._waiting if not request.call.waits()]:
            self._forget(request)
        if not self._waiting:
            return
        now = self._reactor.now()
        recent = any(now - request.started < LONG_WAIT for request in self._waiting)
        self._look = self._reactor.call_at(now + (LOOK_INTERVAL if recent else SELDOM), self._look_at_callers)
        if self._supervisor.signalled is not Signalled.LOOKED_FOR:
            return
        ready = self._signals.deliverable([request.call.tid for request in self._waiting])
        for request in [request for request in self._waiting if request.call.tid in ready]:
            self._forget(request)
            request.call.answer(request.on_signal)

    def interrupted(self, call: CaughtCall) -> None:
        """End the wait of a receiving call, as a signal does."""
        for request in [request for request in self._waiting if request.call is call]:
            self._forget(request)
            call.answer(request.on_signal)

    def _forget(self, request: Receive) -> None:
        if request in self._waiting:
            self._waiting.remove(request)
            if request.task is not None:
                request.task.cancel()
            request.sock.close()


def receive_timeout(sock: socket.socket) -> float | None:
    """SO_RCVTIMEO in seconds (socket(7)); None: no limit."""
    seconds, microseconds = _TIMES.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMES.size))
    limit: float = seconds + microseconds / 1e6
    return limit or None
