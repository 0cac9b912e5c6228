"""What each caught call means: its arguments and the target's memory, turned into the supervisor's requests.

Whatever can't be understood is refused. The kernel performs a call itself only where that can't open a way out.
"""

import _socket
import errno
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

from pysocksify.address import INET
from pysocksify.engines.syscalls import abi
from pysocksify.engines.syscalls.caught import CaughtCall, Taker, integer
from pysocksify.engines.syscalls.filter import MSG_FASTOPEN
from pysocksify.engines.syscalls.memory import INT, MOST, MSGHDR, SOCKADDR_MOST, Memory
from pysocksify.reactor import WRITE, Reactor, Ready, Steps
from pysocksify.report import Report
from pysocksify.supervisor.calls import CallRefused, program_of
from pysocksify.supervisor.core import Supervisor


class Dispatch(ABC):
    """Serves the caught calls of one target. What an engine does its own way with, a subclass has."""

    def __init__(
        self, reactor: Reactor, arch: abi.Architecture, supervisor: Supervisor, report: Report, descriptors: Taker
    ) -> None:
        self._reactor = reactor
        self._supervisor = supervisor
        self._report = report
        self._memory = Memory(arch)
        self._descriptors = descriptors
        self._calls: dict[int, Callable[[CaughtCall], None]] = {
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

    def received(self, call: CaughtCall) -> None:
        """Serve one call. Any failure refuses it."""
        try:
            self._calls.get(call.nr, self._by_descriptor)(call)
        except CallRefused as refusal:
            call.answer(refusal.errno)
        except OSError as failure:
            call.answer(self._refusal(call, failure))

    @abstractmethod
    def _socket(self, call: CaughtCall) -> None:
        """socket(2) of what isn't plain TCP. CallRefused, OSError."""

    @abstractmethod
    def _by_descriptor(self, call: CaughtCall) -> None:
        """A call that was caught since its descriptor may be a UDP socket. CallRefused, OSError."""

    def _refusal(self, call: CaughtCall, failure: OSError) -> int:
        """The errno for a call that can't be looked into."""
        if failure.errno == errno.EPERM:
            program = program_of(call.tid)
            if _is_anothers(call.tid):
                why = "it's another user's now: that takes CAP_SYS_PTRACE, or --engine preload"
            else:
                why = "PR_SET_DUMPABLE in prctl(2)"
            text = f"{program} has made itself unreadable ({why}): its connections are refused"
            self._report.problem(f"closed {program}", text)
            return errno.EACCES
        if failure.errno in (errno.EMFILE, errno.ENFILE):
            self._report.problem("descriptors", "the supervisor has no descriptor left: connections are refused")
            return errno.ENOBUFS
        self._report.debug(f"call {call.nr} of {program_of(call.tid)} refused: {failure}")
        return failure.errno or errno.ENOSYS

    def _duplicate(self, call: CaughtCall) -> socket.socket:
        """Our duplicate of the socket in argument 0. OSError: EBADF, ENOTSOCK."""
        fd = self._descriptors.take(call.tid, integer(call.args[0]))
        try:
            # the standard library's class turns `family` and `type` into enum members at every look
            return cast(socket.socket, _socket.socket(fileno=fd))
        except OSError:
            os.close(fd)
            raise

    def _connect(self, call: CaughtCall) -> None:
        size = integer(call.args[2])
        if not 0 <= size <= SOCKADDR_MOST:
            raise OSError(errno.EINVAL, "length of the address")
        sock = self._duplicate(call)
        try:
            sockaddr = self._memory.read(call.tid, call.args[1], size)
            if not call.waits():
                sock.close()
                return
        except OSError:
            sock.close()
            raise
        self._connect_to(call, sock, sockaddr, None)

    def _connect_to(
        self,
        call: CaughtCall,
        sock: socket.socket,
        sockaddr: bytes,
        then: Callable[[socket.socket], None] | None,
    ) -> None:
        if sock.family in INET:
            self._supervisor.connect(call, sock, sockaddr, then)
            return
        local = sock.family == socket.AF_UNIX
        sock.close()
        if local and self._supervisor.refuses_path(sockaddr[2:]):
            call.answer(errno.ECONNREFUSED)
        else:
            call.proceed()

    def _asked_about(self, call: CaughtCall) -> socket.socket | None:
        """Our duplicate for a call that only asks; None: the kernel has been let answer, since it can't be had."""
        try:
            return self._duplicate(call)
        except OSError as failure:
            if failure.errno not in (errno.EPERM, errno.EMFILE, errno.ENFILE):
                raise
            call.proceed()
            return None

    def _getsockopt(self, call: CaughtCall) -> None:
        if not self._supervisor.failures_kept:
            call.proceed()
            return
        sock = self._asked_about(call)
        if sock is None:
            return
        error = self._supervisor.so_error(sock) if sock.family in INET else None
        sock.close()
        if error is None:
            call.proceed()
            return
        value, length = call.args[3:5]
        size = min(self._room(call, length), INT.size)
        self._memory.write(call.tid, value, INT.pack(error)[:size])
        self._memory.write(call.tid, length, INT.pack(size))
        call.answer(0)

    def _getpeername(self, call: CaughtCall) -> None:
        sock = self._asked_about(call)
        if sock is None:
            return
        try:
            sockaddr = self._supervisor.peer(sock) if sock.family in INET else None
        finally:
            sock.close()
        if sockaddr is None:
            call.proceed()
        else:
            self._tell_peer(call, sockaddr)

    def _tell_peer(self, call: CaughtCall, sockaddr: bytes) -> None:
        """Answer getpeername(2)."""
        address, length = call.args[1:3]
        size = self._room(call, length)
        self._memory.write(call.tid, address, sockaddr[:size])
        self._memory.write(call.tid, length, INT.pack(len(sockaddr)))
        call.answer(0)

    def _room(self, call: CaughtCall, length: int) -> int:
        """The bytes that a program has room for, at the address of its socklen_t. OSError: EINVAL, EFAULT."""
        size: int = INT.unpack(self._memory.read(call.tid, length, INT.size))[0]
        if size < 0:
            raise OSError(errno.EINVAL, "length")
        return size

    # sends that connect: MSG_FASTOPEN, tcp(7)

    def _sendto(self, call: CaughtCall) -> None:
        _, buffer, size, flags, name, name_length = call.args
        if not flags & MSG_FASTOPEN:
            self._by_descriptor(call)
            return
        self._send(call, flags, name, integer(name_length), [(buffer, size)], None)

    def _sendmsg(self, call: CaughtCall) -> None:
        _, header, flags, *_ = call.args
        if not flags & MSG_FASTOPEN:
            self._by_descriptor(call)
            return
        name, name_length, iovecs = self._message(call.tid, header)
        self._send(call, flags, name, name_length, iovecs, None)

    def _sendmmsg(self, call: CaughtCall) -> None:
        """Only the first message is sent, as if the call had been interrupted after it: the program sends the rest."""
        _, headers, count, flags, *_ = call.args
        if not flags & MSG_FASTOPEN:
            self._by_descriptor(call)
            return
        if count & 0xFFFFFFFF == 0:
            call.answer(0, 0)
            return
        name, name_length, iovecs = self._message(call.tid, headers)
        self._send(call, flags, name, name_length, iovecs, headers + MSGHDR.size)

    def _message(self, tid: int, header: int) -> tuple[int, int, list[tuple[int, int]]]:
        name, name_length, iov, count, *_ = MSGHDR.unpack(self._memory.read(tid, header, MSGHDR.size))
        return name, name_length, self._memory.iovecs(tid, iov, count)

    def _send(
        self,
        call: CaughtCall,
        flags: int,
        name: int,
        name_length: int,
        iovecs: list[tuple[int, int]],
        msg_len: int | None,
    ) -> None:
        sock = self._duplicate(call)
        if sock.family not in INET or sock.type != socket.SOCK_STREAM:
            confined = self._supervisor.confined is not None and sock.family in INET
            sock.close()
            if confined:
                raise CallRefused(errno.EOPNOTSUPP)  # the flag means nothing for UDP, and nobody gives it
            call.proceed()  # UDP is enclosed; the flag means nothing there (udp(7)) nor for other families
            return
        try:
            if not name:
                raise OSError(errno.EDESTADDRREQ, "no address")
            if not 0 <= name_length <= SOCKADDR_MOST:
                raise OSError(errno.EINVAL, "length of the address")
            sockaddr = self._memory.read(call.tid, name, name_length)
            data = self._gather(call.tid, iovecs)
            if not call.waits():
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
                    call.answer(error.errno or errno.EPIPE)
                    return
                assert sent is not None
                try:
                    if msg_len is not None:
                        self._memory.write(call.tid, msg_len, struct.pack("=I", sent))
                except OSError as failure:  # EFAULT; or it was killed meanwhile
                    call.answer(failure.errno or errno.EFAULT)
                    return
                call.answer(0, sent if msg_len is None else 1)

            self._reactor.spawn(_send_all(connected, data, left), done)

        self._supervisor.connect(call, sock, sockaddr, then)

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


def _is_anothers(tid: int) -> bool:
    """Whether a thread's user isn't this process's (proc_pid_status(5)); False for one that is gone."""
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            return int(file.read().partition(b"\nUid:\t")[2].split(None, 1)[0]) != os.geteuid()
    except (OSError, IndexError):
        return False


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
