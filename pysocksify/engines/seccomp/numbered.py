"""UDP sockets that can't be enclosed are known by their descriptors' numbers: giving them, and keeping them.

Theory of operation. A filter can't see that a sendmsg(2) is UDP, and catching each one would ruin TCP. So a confined
socket (`supervisor.confined`) is installed under a number of a range (`filter.Numbers`), and a duplicate of it stays
there, unless it's connected, or is refused. The filter catches what is done with these numbers. A descriptor there that
is something else is the kernel's to serve: the call can't open a way out of it.

Not caught: a socket that is passed on by SCM_RIGHTS arrives under another number. It can't ask for names there, and a
plain send on it stays on `lo`; but a control message that names another interface does get a datagram out. The same
goes for a program that swaps descriptors between our look and the kernel's. Where there are namespaces neither does.
"""

import errno
import os
from collections.abc import Callable
from typing import cast

from pysocksify.engines.seccomp import unotify
from pysocksify.engines.seccomp.listener import Notification
from pysocksify.engines.syscalls import abi
from pysocksify.engines.syscalls.caught import CaughtCall, Taker, closing, integer
from pysocksify.engines.syscalls.filter import F_DUPFD_CLOEXEC, Numbers
from pysocksify.engines.syscalls.udp import UdpSockets
from pysocksify.linux import looked_into
from pysocksify.report import Report
from pysocksify.supervisor.calls import CallRefused, program_of
from pysocksify.supervisor.core import Supervisor


class Numbered(UdpSockets):
    """The target's confined sockets, by number."""

    def __init__(self, supervisor: Supervisor, report: Report, descriptors: Taker, numbers: Numbers) -> None:
        super().__init__(supervisor, descriptors)
        self._report = report
        self._numbers = numbers

    def calls(self, arch: abi.Architecture) -> dict[int, Callable[[CaughtCall], None]]:
        """What serves the calls that would give a socket another number, or get it out of its confinement."""
        served: dict[int, Callable[[CaughtCall], None]]
        served = {arch.setsockopt: self.setsockopt, arch.dup: self.dup, arch.dup3: self.dup3, arch.fcntl: self.fcntl}
        if arch.dup2 is not None:
            served[arch.dup2] = self.dup2
        return served

    def install(self, call: CaughtCall, fd: int, close_on_exec: bool, least: int = 0) -> int | None:
        """Let the call return a free datagram number, not below `least`, under which `fd` is installed.

        Returned is that number; None: the caller is gone. CallRefused.
        """
        number = self._free_number(call.tid, least)
        if number is not None:
            try:
                return _install(call, fd, number, close_on_exec)
            except OSError as failure:
                if failure.errno != errno.EBADF:  # which says that the limit is lower now (replace_fd() in fs/file.c)
                    raise
        program = program_of(call.tid)
        first, last = self._numbers.first, self._numbers.end - 1
        text = f"{program}: no descriptor from {first} to {last} is left for a UDP socket"
        self._report.problem(f"numbers {program}", text)
        raise CallRefused(errno.EMFILE)

    def dup(self, call: CaughtCall) -> None:
        """dup(2)."""
        self._duplicate(call, False, 0)

    def fcntl(self, call: CaughtCall) -> None:
        """fcntl(2), F_DUPFD and F_DUPFD_CLOEXEC."""
        least = integer(call.args[2])
        self._duplicate(call, integer(call.args[1]) == F_DUPFD_CLOEXEC, least if least >= 0 else self._numbers.end)

    def dup2(self, call: CaughtCall) -> None:
        """dup2(2)."""
        self._move(call, 0)

    def dup3(self, call: CaughtCall) -> None:
        """dup3(2)."""
        self._move(call, integer(call.args[2]))

    def _move(self, call: CaughtCall, flags: int) -> None:
        number = integer(call.args[1])
        if number in self._numbers or number < 0 or flags & ~os.O_CLOEXEC:
            call.proceed()
            return
        sock = self.take(call)
        if sock is None:
            return
        with closing(sock):
            if not self.confined.may_leave(sock):
                program = program_of(call.tid)
                text = f"{program}: a UDP socket that isn't connected can't be made descriptor {number}"
                self._report.problem(f"dup2 {program}", text)
                raise CallRefused(errno.EPERM)
            _install(call, sock.fileno(), number, bool(flags))

    def _duplicate(self, call: CaughtCall, close_on_exec: bool, least: int) -> None:
        sock = self.take(call)
        if sock is not None:
            with closing(sock):
                self.install(call, sock.fileno(), close_on_exec, least)

    def _free_number(self, tid: int, least: int) -> int | None:
        """The first choice of the numbers that /proc/TID/fd doesn't show, for SETFD replaces without a word."""
        numbers = self._numbers
        for number in (*range(numbers.middle - 1, numbers.first - 1, -1), *range(numbers.middle, numbers.end)):
            if number >= least:
                path = f"/proc/{tid}/fd/{number}"
                try:
                    looked_into(tid, lambda path=path: os.readlink(path))  # type: ignore[misc]
                except FileNotFoundError:
                    return int(number)
                except PermissionError as failure:  # a program that has made itself unreadable
                    raise OSError(errno.EPERM, os.strerror(errno.EPERM)) from failure
        return None


def _install(call: CaughtCall, fd: int, number: int, close_on_exec: bool) -> int | None:
    """Let the call return `number`, under which the target gets a duplicate of `fd`. OSError: EBADF for the number."""
    notification = cast(Notification, call)
    return notification.listener.send_descriptor(
        notification.id, fd, os.O_CLOEXEC if close_on_exec else 0, unotify.ADDFD_FLAG_SETFD, number
    )
