"""What each caught call means: its arguments and the target's memory, turned into the supervisor's requests.

Whatever can't be understood is refused. The kernel performs a call itself only where that can't open a way out.
"""

import _socket
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import cast

from pysocksify.engines.seccomp import abi
from pysocksify.engines.seccomp.descriptors import Descriptors
from pysocksify.engines.seccomp.filter import MSG_FASTOPEN, Numbers
from pysocksify.engines.seccomp.listener import Notification
from pysocksify.engines.seccomp.memory import MOST, Memory
from pysocksify.reactor import WRITE, Reactor, Ready, Steps
from pysocksify.report import Report
from pysocksify.supervisor.calls import CallRefused, program_of
from pysocksify.supervisor.core import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pysocksify.engines.seccomp.datagrams import Datagrams

SOCKADDR_MOST = 128  # sizeof(struct sockaddr_storage): longer is EINVAL (move_addr_to_kernel() in net/socket.c)
IOV_MOST = 1024  # UIO_MAXIOV
INET = (socket.AF_INET, socket.AF_INET6)

_INT = struct.Struct("=i")
_IOVEC = struct.Struct("=QQ")
# struct msghdr (recvmsg(2)): name, namelen, iov, iovlen, control, controllen, flags
_MSGHDR = struct.Struct("=QI4xQQQQi4x")


class Dispatch:
    """Serves the notifications of one listener."""

    def __init__(
        self,
        reactor: Reactor,
        arch: abi.Architecture,
        supervisor: Supervisor,
        report: Report,
        numbers: Numbers,
    ) -> None:
        self._reactor = reactor
        self._supervisor = supervisor
        self._report = report
        self._memory = Memory(arch)
        self._descriptors = Descriptors()
        self._numbers = numbers
        self._datagrams: Datagrams | None = None
        self._calls: dict[int, Callable[[Notification], None]] = {
            arch.connect: self._connect,
            arch.getpeername: self._getpeername,
            arch.getsockopt: self._getsockopt,
            arch.socket: self._socket,
            arch.sendto: self._sendto,
            arch.sendmsg: self._sendmsg,
            arch.sendmmsg: self._sendmmsg,
            abi.IO_URING_SETUP: supervisor.refuse_io_uring,
        }
        self._arch = arch

    def received(self, notification: Notification) -> None:
        """Serve one call. Any failure refuses it."""
        try:
            self._calls.get(notification.nr, self._by_number)(notification)
        except CallRefused as refusal:
            notification.answer(refusal.errno)
        except OSError as failure:
            notification.answer(self._refusal(notification, failure))

    def _by_number(self, notification: Notification) -> None:
        """A call that was caught for its descriptor's number."""
        if self._supervisor.confined is None:  # then nothing has such a number that could get out
            notification.proceed()
        else:
            self._confinement().calls[notification.nr](notification)

    def _confinement(self) -> "Datagrams":
        if self._datagrams is None:
            from pysocksify.engines.seccomp.datagrams import Datagrams  # here: few machines need it
            from pysocksify.engines.seccomp.numbered import Numbered

            numbered = Numbered(self._supervisor, self._report, self._descriptors, self._numbers)
            self._datagrams = Datagrams(self._reactor, self._arch, self._supervisor, self._memory, numbered)
        return self._datagrams

    def _refusal(self, notification: Notification, failure: OSError) -> int:
        """The errno for a call that can't be looked into."""
        if failure.errno == errno.EPERM:
            program = program_of(notification.tid)
            self._report.problem(
                f"closed {program}",
                f"{program} has made itself unreadable (PR_SET_DUMPABLE in prctl(2)): its connections are refused",
            )
            return errno.EACCES
        if failure.errno in (errno.EMFILE, errno.ENFILE):
            self._report.problem("descriptors", "the supervisor has no descriptor left: connections are refused")
            return errno.ENOBUFS
        self._report.debug(f"call {notification.nr} of {program_of(notification.tid)} refused: {failure}")
        return failure.errno or errno.ENOSYS

    def _duplicate(self, notification: Notification) -> socket.socket:
        """Our duplicate of the socket in argument 0. OSError: EBADF, ENOTSOCK."""
        fd = self._descriptors.take(notification.tid, _int(notification.args[0]))
        try:
            # the standard library's class turns `family` and `type` into enum members at every look
            return cast(socket.socket, _socket.socket(fileno=fd))
        except OSError:
            os.close(fd)
            raise

    def _connect(self, notification: Notification) -> None:
        size = _int(notification.args[2])
        if not 0 <= size <= SOCKADDR_MOST:
            raise OSError(errno.EINVAL, "length of the address")
        sock = self._duplicate(notification)
        try:
            sockaddr = self._memory.read(notification.tid, notification.args[1], size)
            if not notification.waits():
                sock.close()
                return
        except OSError:
            sock.close()
            raise
        self._connect_to(notification, sock, sockaddr, None)

    def _connect_to(
        self,
        notification: Notification,
        sock: socket.socket,
        sockaddr: bytes,
        then: Callable[[socket.socket], None] | None,
    ) -> None:
        if sock.family in INET:
            self._supervisor.connect(notification, sock, sockaddr, then)
            return
        local = sock.family == socket.AF_UNIX
        sock.close()
        if local and self._supervisor.refuses_path(sockaddr[2:]):
            notification.answer(errno.ECONNREFUSED)
        else:
            notification.proceed()

    def _asked_about(self, notification: Notification) -> socket.socket | None:
        """Our duplicate for a call that only asks; None: the kernel has been let answer, since it can't be had."""
        try:
            return self._duplicate(notification)
        except OSError as failure:
            if failure.errno not in (errno.EPERM, errno.EMFILE, errno.ENFILE):
                raise
            notification.proceed()
            return None

    def _getsockopt(self, notification: Notification) -> None:
        if not self._supervisor.failures_kept:
            notification.proceed()
            return
        sock = self._asked_about(notification)
        if sock is None:
            return
        error = self._supervisor.so_error(sock) if sock.family in INET else None
        sock.close()
        if error is None:
            notification.proceed()
            return
        value, length = notification.args[3:5]
        size = min(self._room(notification, length), _INT.size)
        self._memory.write(notification.tid, value, _INT.pack(error)[:size])
        self._memory.write(notification.tid, length, _INT.pack(size))
        notification.answer(0)

    def _getpeername(self, notification: Notification) -> None:
        sock = self._asked_about(notification)
        if sock is None:
            return
        sockaddr = self._supervisor.peer(sock) if sock.family in INET else None
        sock.close()
        if sockaddr is None:
            notification.proceed()
            return
        address, length = notification.args[1:3]
        size = self._room(notification, length)
        self._memory.write(notification.tid, address, sockaddr[:size])
        self._memory.write(notification.tid, length, _INT.pack(len(sockaddr)))
        notification.answer(0)

    def _room(self, notification: Notification, length: int) -> int:
        """The bytes that a program has room for, at the address of its socklen_t. OSError: EINVAL, EFAULT."""
        size: int = _INT.unpack(self._memory.read(notification.tid, length, _INT.size))[0]
        if size < 0:
            raise OSError(errno.EINVAL, "length")
        return size

    def _socket(self, notification: Notification) -> None:
        family, kind, proto = (_int(value) for value in notification.args[:3])
        fd = self._supervisor.make_socket(notification, family, kind, proto)
        try:
            os.set_blocking(fd, not kind & socket.SOCK_NONBLOCK)
            if self._supervisor.confined is None:
                notification.answer_descriptor(fd, bool(kind & socket.SOCK_CLOEXEC))
            else:
                self._confinement().numbered.install(notification, fd, bool(kind & socket.SOCK_CLOEXEC))
        finally:
            os.close(fd)

    # sends that connect: MSG_FASTOPEN, tcp(7)

    def _sendto(self, notification: Notification) -> None:
        _, buffer, size, flags, name, name_length = notification.args
        if not flags & MSG_FASTOPEN:
            self._by_number(notification)
            return
        self._send(notification, flags, name, _int(name_length), [(buffer, size)], None)

    def _sendmsg(self, notification: Notification) -> None:
        _, header, flags, *_ = notification.args
        if not flags & MSG_FASTOPEN:
            self._by_number(notification)
            return
        name, name_length, iovecs = self._message(notification.tid, header)
        self._send(notification, flags, name, name_length, iovecs, None)

    def _sendmmsg(self, notification: Notification) -> None:
        """Only the first message is sent, as if the call had been interrupted after it: the program sends the rest."""
        _, headers, count, flags, *_ = notification.args
        if not flags & MSG_FASTOPEN:
            self._by_number(notification)
            return
        if count & 0xFFFFFFFF == 0:
            notification.answer(0, 0)
            return
        name, name_length, iovecs = self._message(notification.tid, headers)
        self._send(notification, flags, name, name_length, iovecs, headers + _MSGHDR.size)

    def _message(self, tid: int, header: int) -> tuple[int, int, list[tuple[int, int]]]:
        name, name_length, iov, count, *_ = _MSGHDR.unpack(self._memory.read(tid, header, _MSGHDR.size))
        if count > IOV_MOST:
            raise OSError(errno.EMSGSIZE, "number of buffers")
        iovecs = list(_IOVEC.iter_unpack(self._memory.read(tid, iov, count * _IOVEC.size)))
        return name, name_length, iovecs

    def _send(
        self,
        notification: Notification,
        flags: int,
        name: int,
        name_length: int,
        iovecs: list[tuple[int, int]],
        msg_len: int | None,
    ) -> None:
        sock = self._duplicate(notification)
        if sock.family not in INET or sock.type != socket.SOCK_STREAM:
            confined = self._supervisor.confined is not None and sock.family in INET
            sock.close()
            if confined:
                raise CallRefused(errno.EOPNOTSUPP)  # the flag means nothing for UDP, and nobody gives it
            notification.proceed()  # UDP is enclosed; the flag means nothing there (udp(7)) nor for other families
            return
        try:
            if not name:
                raise OSError(errno.EDESTADDRREQ, "no address")
            if not 0 <= name_length <= SOCKADDR_MOST:
                raise OSError(errno.EINVAL, "length of the address")
            sockaddr = self._memory.read(notification.tid, name, name_length)
            data = self._gather(notification.tid, iovecs)
            if not notification.waits():
                sock.close()
                return
        except OSError:
            sock.close()
            raise
        left = flags & ~MSG_FASTOPEN & 0x7FFFFFFF

        def then(connected: socket.socket) -> None:
            def done(sent: int | None, error: BaseException | None) -> None:
                connected.close()
                if isinstance(error, OSError):
                    notification.answer(error.errno or errno.EPIPE)
                    return
                assert sent is not None
                try:
                    if msg_len is not None:
                        self._memory.write(notification.tid, msg_len, struct.pack("=I", sent))
                except OSError as failure:  # EFAULT; or it was killed meanwhile
                    notification.answer(failure.errno or errno.EFAULT)
                    return
                notification.answer(0, sent if msg_len is None else 1)

            self._reactor.spawn(_send_all(connected, data, left), done)

        self._supervisor.connect(notification, sock, sockaddr, then)

    def _gather(self, tid: int, iovecs: list[tuple[int, int]]) -> bytes:
        """The data of a message; of more than MOST bytes the first ones, which is a partial write (send(2))."""
        parts, room = [], MOST
        for base, size in iovecs:
            taken = min(size, room)
            parts.append(self._memory.read(tid, base, taken))
            room -= taken
            if not room:
                break
        return b"".join(parts)


def _send_all(sock: socket.socket, data: bytes, flags: int) -> Steps[int]:
    """Send as a blocking socket does: until all is taken, or what was taken when an error came."""
    sent = 0
    while sent < len(data):
        try:
            sent += sock.send(data[sent:], flags | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            yield Ready(sock.fileno(), WRITE)
        except OSError:
            if sent:
                return sent
            raise
    return sent


def _int(value: int) -> int:
    """An argument as the kernel takes it: its low half, signed."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value
