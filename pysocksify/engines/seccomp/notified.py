"""What only this engine does with calls: descriptors are put into the target, and known by their numbers."""

import errno
import os
import socket
from typing import cast

from pysocksify.engines.seccomp.listener import Notification
from pysocksify.engines.syscalls import abi
from pysocksify.engines.syscalls.caught import CaughtCall, Taker, integer
from pysocksify.engines.syscalls.dispatch import Dispatch
from pysocksify.engines.syscalls.filter import Numbers
from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.supervisor.calls import CallRefused
from pysocksify.supervisor.core import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pysocksify.engines.seccomp.numbered import Numbered


class NotifiedCalls(Dispatch):
    """Serves the notifications of one listener."""

    def __init__(
        self,
        reactor: Reactor,
        arch: abi.Architecture,
        supervisor: Supervisor,
        report: Report,
        descriptors: Taker,
        numbers: Numbers,
    ) -> None:
        super().__init__(reactor, arch, supervisor, report, descriptors)
        self._arch = arch
        self._numbers = numbers
        self._numbered: Numbered | None = None
        self._by_number: dict[int, Callable[[CaughtCall], None]] = {}

    def _socket(self, call: CaughtCall) -> None:
        notification = cast(Notification, call)
        family, kind, proto = (integer(value) for value in call.args[:3])
        fd = self._make(call, family, kind, proto)
        try:
            os.set_blocking(fd, not kind & socket.SOCK_NONBLOCK)
            close_on_exec = bool(kind & socket.SOCK_CLOEXEC)
            if self._supervisor.confined is None or kind & 0xF == socket.SOCK_STREAM:
                number = _install(notification, fd, close_on_exec)
            else:
                number = self._confinement().install(notification, fd, close_on_exec)
            if number is not None and self._keeps(call, fd, number):
                fd = -1
        finally:
            if fd >= 0:
                os.close(fd)

    def _make(self, call: CaughtCall, family: int, kind: int, proto: int) -> int:
        """A socket for the target; the descriptor is the caller's. CallRefused, OSError."""
        return self._supervisor.make_socket(call, family, kind, proto)

    def _keeps(self, call: CaughtCall, fd: int, number: int) -> bool:
        """The target has got a duplicate of `fd` under this number. True: `fd` is taken over."""
        return False

    def _by_descriptor(self, call: CaughtCall) -> None:
        if self._supervisor.confined is None:  # then nothing has such a number that could get out
            call.proceed()
        else:
            self._confinement()
            self._by_number[call.nr](call)

    def _confinement(self) -> "Numbered":
        if self._numbered is None:
            from pysocksify.engines.seccomp.numbered import Numbered  # here: few machines need it
            from pysocksify.engines.syscalls.datagrams import Datagrams

            numbered = self._numbered = Numbered(self._supervisor, self._report, self._descriptors, self._numbers)
            datagrams = Datagrams(self._reactor, self._arch, self._supervisor, self._memory, numbered)
            self._by_number = {**numbered.calls(self._arch), **datagrams.calls}
        return self._numbered


def _install(notification: Notification, fd: int, close_on_exec: bool) -> int | None:
    """The number that the target has `fd` under now; None: the caller is gone. CallRefused."""
    try:
        return notification.answer_descriptor(fd, close_on_exec)
    except OSError as failure:
        if failure.errno != errno.EMFILE:
            raise
        raise CallRefused(errno.EMFILE) from failure  # the program's own limit, not ours
