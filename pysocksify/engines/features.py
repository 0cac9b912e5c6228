"""Which of the kernel's features are there (`kernel.Kernel`), each found out by using it: for --engines.

A run doesn't ask beforehand: an engine that finds one missing goes another way.
"""

import errno
import fcntl
import os
import socket

from pysocksify.engines.ptrace import fit as tracing
from pysocksify.engines.seccomp import fit, unotify
from pysocksify.engines.syscalls import abi
from pysocksify.errors import PysocksifyError
from pysocksify.supervisor.enclosure import Enclosure
from pysocksify.supervisor.hold import Holds, cross

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = {
    "wait_killable": "signals don't disturb a connect() that waits (Linux 5.19)",
    "addfd_send": "a descriptor is given and the call answered in one step (Linux 5.14)",
    "sync_wake_up": "caught calls cost 6 instead of 50 microseconds (Linux 6.6)",
    "pidfd_getfd": "the program's sockets can be taken (Linux 5.6); else they are made for it",
    "enclosure": "UDP sockets are made in an empty network namespace; else they are bound to the loopback device",
    "simultaneous_open": "non-blocking connections are held in the kernel; else they are relayed from the start",
    "ipv6": "IPv6 on the loopback device",
}


def probe() -> dict[str, str]:
    """For each feature why it isn't there, "" where it is. SIGCHLD must not be ignored."""
    return {name: _why(use) for name, use in _PROBES.items()}


def _why(use: "Callable[[], object]") -> str:
    try:
        use()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0) or str(error)
    except PysocksifyError as error:
        return str(error)
    return ""


def _listener(use: "Callable[[int], object]", *, killable: bool = False) -> None:
    arch = abi.ARCHITECTURES.get(os.uname().machine)
    error = errno.ENOSYS if arch is None else fit.tried(arch, use, killable=killable)
    if error:
        raise OSError(error, os.strerror(error))


def _wait_killable() -> None:
    _listener(lambda listener: listener, killable=True)


def _addfd_send() -> None:
    _listener(lambda listener: fit.add_descriptor(listener, unotify.ADDFD_FLAG_SEND))


def _sync_wake_up() -> None:
    flags = unotify.USER_NOTIF_FD_SYNC_WAKE_UP
    _listener(lambda listener: fcntl.ioctl(listener, unotify.IOCTL_NOTIF_SET_FLAGS, flags))


def _pidfd_getfd() -> None:
    """Take a descriptor of a child's, as the supervisor does."""
    tracing.beside_child(tracing.take)


def _enclosure() -> None:
    Enclosure.open(ipv6=True).close()


def _simultaneous_open() -> None:
    """In a child, as what a hold needs stays open as long as its process."""
    pid = os.fork()
    if pid == 0:
        works = False
        try:
            works = cross(Holds())
        finally:
            os._exit(0 if works else errno.EPERM)
    if os.waitpid(pid, 0)[1]:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def _ipv6() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))


_PROBES = {
    "wait_killable": _wait_killable,
    "addfd_send": _addfd_send,
    "sync_wake_up": _sync_wake_up,
    "pidfd_getfd": _pidfd_getfd,
    "enclosure": _enclosure,
    "simultaneous_open": _simultaneous_open,
    "ipv6": _ipv6,
}
