"""UDP sockets that can't be enclosed are known by their descriptors' numbers: giving them, and keeping them.

Theory of operation. A filter can't see that a sendmsg(2) is UDP, and catching each one would ruin TCP. So a confined
socket (`supervisor.confined`) is installed under a number of a range (`filter.Numbers`), and a duplicate of it stays
there, unless it's connected, or is refused. The filter catches what is done with these numbers. A descriptor there that
is something else is the kernel's to serve: the call can't open a way out of it.

Not caught: a socket that is passed on by SCM_RIGHTS arrives under another number. It can't ask for names there, and a
plain send on it stays on `lo`; but a control message that names another interface does get a datagram out. The same
goes for a program that swaps descriptors between our look and the kernel's. Where there are namespaces neither does.
"""

import _socket
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from pysocksify.engines.seccomp import abi
from pysocksify.engines.seccomp.descriptors import Descriptors
from pysocksify.engines.seccomp.filter import F_DUPFD_CLOEXEC, Numbers
from pysocksify.engines.seccomp.listener import Notification
from pysocksify.report import Report
from pysocksify.supervisor.calls import CallRefused, program_of
from pysocksify.supervisor.confined import INET, Confined
from pysocksify.supervisor.core import Supervisor


class Numbered:
    """The target's confined sockets, by number."""

    def __init__(self, supervisor: Supervisor, report: Report, descriptors: Descriptors, numbers: Numbers) -> None:
        self._supervisor = supervisor
        self._report = report
        self._descriptors = descriptors
        self._numbers = numbers

    def install(self, call: Notification, fd: int, close_on_exec: bool, least: int = 0) -> None:
        """Let the call return a free datagram number, not below `least`, under which `fd` is installed. CallRefused."""
        number = self._free_number(call.tid, least)
        if number is not None:
            try:
                _install(call, fd, number, close_on_exec)
                return
            except OSError as failure:
                if failure.errno != errno.EBADF:  # which says that the limit is lower now (replace_fd() in fs/file.c)
                    raise
        program = program_of(call.tid)
        first, last = self._numbers.first, self._numbers.end - 1
        text = f"{program}: no descriptor from {first} to {last} is left for a UDP socket"
        self._report.problem(f"numbers {program}", text)
        raise CallRefused(errno.EMFILE)

    def dup(self, call: Notification) -> None:
        """dup(2)."""
        self._duplicate(call, False, 0)

    def fcntl(self, call: Notification) -> None:
        """fcntl(2), F_DUPFD and F_DUPFD_CLOEXEC."""
        least = integer(call.args[2])
        self._duplicate(call, integer(call.args[1]) == F_DUPFD_CLOEXEC, least if least >= 0 else self._numbers.end)

    def dup2(self, call: Notification) -> None:
        """dup2(2)."""
        self._move(call, 0)

    def dup3(self, call: Notification) -> None:
        """dup3(2)."""
        self._move(call, integer(call.args[2]))

    def setsockopt(self, call: Notification) -> None:
        """setsockopt(2), of a device or a multicast group; whatever the descriptor."""
        sock = self.take(call)
        if sock is not None:
            sock.close()
            # an ordinary user may not change the device; and no interface has that group
            raise CallRefused(errno.EPERM if integer(call.args[1]) == socket.SOL_SOCKET else errno.ENODEV)

    def _move(self, call: Notification, flags: int) -> None:
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

    def _duplicate(self, call: Notification, close_on_exec: bool, least: int) -> None:
        sock = self.take(call)
        if sock is not None:
            with closing(sock):
                self.install(call, sock.fileno(), close_on_exec, least)

    def _free_number(self, tid: int, least: int) -> int | None:
        """The first choice of the numbers that /proc/TID/fd doesn't show, for SETFD replaces without a word."""
        numbers = self._numbers
        for number in (*range(numbers.middle - 1, numbers.first - 1, -1), *range(numbers.middle, numbers.end)):
            if number >= least:
                try:
                    os.readlink(f"/proc/{tid}/fd/{number}")
                except FileNotFoundError:
                    return int(number)
                except PermissionError as failure:  # a program that has made itself unreadable
                    raise OSError(errno.EPERM, os.strerror(errno.EPERM)) from failure
        return None

    @property
    def confined(self) -> Confined:
        confined = self._supervisor.confined
        assert confined is not None
        return confined

    def take(self, call: Notification) -> socket.socket | None:
        """Our duplicate of the UDP socket in argument 0; None: it's something else, and the kernel serves the call."""
        fd = self._descriptors.take(call.tid, integer(call.args[0]))
        try:
            sock = cast(socket.socket, _socket.socket(fileno=fd))
        except OSError as failure:
            os.close(fd)
            if failure.errno not in (errno.ENOTSOCK, errno.EBADF):  # EBADF: opened with O_PATH
                raise
        else:
            if sock.family in INET and sock.type == socket.SOCK_DGRAM:
                return sock
            sock.close()
        call.proceed()
        return None


@contextmanager
def closing(sock: socket.socket) -> Iterator[None]:
    """The C type of sockets is no context manager itself."""
    try:
        yield
    finally:
        sock.close()


def _install(call: Notification, fd: int, number: int, close_on_exec: bool) -> None:
    """Let the call return `number`, under which the target gets a duplicate of `fd`. OSError: EBADF for the number."""
    listener, flags = call.listener.fd, os.O_CLOEXEC if close_on_exec else 0
    try:
        try:
            both = abi.ADDFD_FLAG_SETFD | abi.ADDFD_FLAG_SEND
            fcntl.ioctl(listener, abi.IOCTL_NOTIF_ADDFD, bytearray(abi.ADDFD.pack(call.id, both, fd, number, flags)))
        except OSError as failure:
            if failure.errno != errno.EINVAL:
                raise
            only = abi.ADDFD.pack(call.id, abi.ADDFD_FLAG_SETFD, fd, number, flags)  # before Linux 5.14
            fcntl.ioctl(listener, abi.IOCTL_NOTIF_ADDFD, bytearray(only))
            call.answer(0, number)
    except OSError as failure:
        if failure.errno not in (errno.ENOENT, errno.EINPROGRESS):  # the caller is gone
            raise


def integer(value: int) -> int:
    """An argument as the kernel takes it: its low half, signed."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value
