"""What calls mean where sockets are adopted: inet sockets are made here, and those that weren't can't be connected."""

import _socket
import errno
import socket
from dataclasses import dataclass

from pysocksify.address import INET
from pysocksify.engines.seccomp.adopted import Adopted, LetGo
from pysocksify.engines.seccomp.notified import NotifiedCalls
from pysocksify.engines.syscalls import abi
from pysocksify.engines.syscalls.caught import CaughtCall, integer
from pysocksify.engines.syscalls.filter import Numbers
from pysocksify.engines.syscalls.memory import SOCKADDR_MOST
from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.supervisor.calls import CallRefused, program_of
from pysocksify.supervisor.core import Supervisor

BACKLOG_MOST = 0x7FFFFFFF  # what a negative one means (__sys_listen() in net/socket.c), less the kernel's own limit


@dataclass(slots=True, eq=False)
class Connecting:
    """A call that connects a kept socket: with its answer the socket is let go, if it stands."""

    call: CaughtCall
    adopted: Adopted
    inode: int
    tid: int
    nr: int
    args: tuple[int, ...]

    def answer(self, error: int, value: int = 0) -> bool:
        """Let the call return `value`, or fail with `error`."""
        self.adopted.settle(self.inode, error)
        heard = self.call.answer(error, value)
        if not heard and not error:
            self.adopted.unheard(self.inode)
        return heard

    def proceed(self) -> bool:
        """Let the kernel perform the call as it stands."""
        return self.call.proceed()

    def waits(self) -> bool:
        """Whether the caller is still there."""
        return self.call.waits()


class AdoptingCalls(NotifiedCalls):
    """Serves the notifications of a listener whose filter catches all that `adopted` needs to know."""

    def __init__(
        self,
        reactor: Reactor,
        arch: abi.Architecture,
        supervisor: Supervisor,
        report: Report,
        adopted: Adopted,
        numbers: Numbers,
    ) -> None:
        super().__init__(reactor, arch, supervisor, report, adopted, numbers)
        self._adopted = adopted
        self._calls |= {arch.bind: self._bind, arch.listen: self._listen}

    def _make(self, call: CaughtCall, family: int, kind: int, proto: int) -> int:
        if family in INET and kind & 0xF == socket.SOCK_STREAM and proto in (0, socket.IPPROTO_TCP):
            return _socket.socket(family, kind, proto).detach()
        return super()._make(call, family, kind, proto)

    def _socket(self, call: CaughtCall) -> None:
        try:
            super()._socket(call)
        except OSError as failure:
            if failure.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._adopted.sweep(ports=True)  # what is closed in the programs counts with us
            super()._socket(call)

    def _keeps(self, call: CaughtCall, fd: int, number: int) -> bool:
        self._adopted.adopt(fd, call.tid, number)
        return True

    def _connect(self, call: CaughtCall) -> None:
        number = integer(call.args[0])
        inode = self._adopted.inode(call.tid, number)
        if self._adopted.kept(inode) is not None:
            super()._connect(self._connecting(call, inode))
            return
        past = self._adopted.past(inode)
        if past is not None:
            self._connect_again(call, past)
            return
        if self._adopted.is_inet(call.tid, number):
            self._refuse(call)
        size = integer(call.args[2])
        if not 0 <= size <= SOCKADDR_MOST:
            raise OSError(errno.EINVAL, "length of the address")
        if self._supervisor.refuses_path(self._memory.read(call.tid, call.args[1], size)[2:]):
            raise CallRefused(errno.ECONNREFUSED)
        call.proceed()

    def _connect_again(self, call: CaughtCall, past: LetGo) -> None:
        """connect() on a socket that stands, or listens."""
        size = integer(call.args[2])
        if not 0 <= size <= SOCKADDR_MOST:
            raise OSError(errno.EINVAL, "length of the address")
        sockaddr = self._memory.read(call.tid, call.args[1], size)
        if sockaddr[:2] == bytes(2):  # AF_UNSPEC: it can't be dissolved without us, and would be lost to us
            program = program_of(call.tid)
            text = f"{program}: a connection can't be dissolved here (no pidfd_getfd(2)) and was left as it is"
            self._report.problem(f"dissolve {program}", text)
            raise CallRefused(errno.EOPNOTSUPP)
        owed, past.owed = past.owed, False
        if not call.answer(0 if owed else errno.EISCONN):
            past.owed = owed

    def _send(
        self,
        call: CaughtCall,
        flags: int,
        name: int,
        name_length: int,
        iovecs: list[tuple[int, int]],
        msg_len: int | None,
    ) -> None:
        number = integer(call.args[0])
        inode = self._adopted.inode(call.tid, number)
        if self._adopted.kept(inode) is not None:
            super()._send(self._connecting(call, inode), flags, name, name_length, iovecs, msg_len)
        elif self._adopted.past(inode) is not None:
            raise CallRefused(errno.EISCONN)
        elif self._adopted.is_inet(call.tid, number):
            self._refuse(call)
        else:
            call.proceed()

    def _asked_about(self, call: CaughtCall) -> socket.socket | None:
        try:
            inode = self._adopted.inode(call.tid, integer(call.args[0]))
        except OSError as failure:
            if failure.errno != errno.EPERM:
                raise
        else:
            if self._adopted.kept(inode) is not None:
                return super()._asked_about(call)
        call.proceed()
        return None

    def _getpeername(self, call: CaughtCall) -> None:
        try:
            past = self._adopted.past(self._adopted.inode(call.tid, integer(call.args[0])))
        except OSError as failure:
            if failure.errno != errno.EPERM:
                raise
            past = None
        if past is not None and past.peer is not None:
            self._tell_peer(call, past.peer)
        else:
            super()._getpeername(call)

    def _bind(self, call: CaughtCall) -> None:
        """bind(2): the kernel's, after a look at what is closed."""
        kept = self._adopted.kept(self._adopted.inode(call.tid, integer(call.args[0])))
        if kept is not None:
            self._adopted.bind(kept)
        call.proceed()

    def _listen(self, call: CaughtCall) -> None:
        """listen(2): performed here, so that the socket is known to listen when it's let go."""
        kept = self._adopted.kept(self._adopted.inode(call.tid, integer(call.args[0])))
        if kept is None:
            call.proceed()
            return
        backlog = integer(call.args[1])
        kept.sock.listen(backlog if backlog >= 0 else BACKLOG_MOST)
        self._adopted.let_go(kept)
        call.answer(0)

    def _connecting(self, call: CaughtCall, inode: int) -> Connecting:
        return Connecting(call, self._adopted, inode, call.tid, call.nr, call.args)

    def _refuse(self, call: CaughtCall) -> None:
        """An inet socket that came from outside, by SCM_RIGHTS or at the start, can't be connected by us."""
        program = program_of(call.tid)
        text = (
            f"{program}: a socket that was made elsewhere can't be connected here (no pidfd_getfd(2)) and was refused"
        )
        self._report.problem(f"elsewhere {program}", text)
        raise CallRefused(errno.EPERM)
