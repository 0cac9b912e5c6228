"""The filter's rules (`syscalls.filter`, for a tracer) where it can't be installed: each call stops, and few matter.

There the numbers of calls and their arguments are all that is looked at, as in the filter. What isn't in the filter:
clone() with CLONE_UNTRACED, which would leave a child without tracer, is refused, and so is clone3(), whose flags lie
in memory that another thread could change meanwhile; programs take clone() then, as in containers.
"""

import errno
import socket
from collections.abc import Callable

from pysocksify.engines.syscalls import abi
from pysocksify.engines.syscalls.caught import integer
from pysocksify.engines.syscalls.filter import AF_ALG, JOINS, MSG_FASTOPEN, SO_BINDTOIFINDEX

CLONE_UNTRACED = 0x00800000

CATCH, PASS = abi.RET_TRACE | abi.TRACE_MARK, abi.RET_ALLOW
REFUSE = abi.RET_ERRNO

Arguments = tuple[int, ...]


class Selection:
    """What is to become of each call: CATCH, PASS, or REFUSE with an errno in its low bits."""

    def __init__(self, arch: abi.Architecture) -> None:
        self._arch = arch
        self._rules: dict[int, Callable[[Arguments], int]] = {
            arch.connect: _caught,
            arch.getpeername: _caught,
            abi.IO_URING_SETUP: _caught,
            abi.IO_URING_ENTER: _refused,
            abi.IO_URING_REGISTER: _refused,
            abi.CLONE3: _refused,
            arch.clone: _clone,
            arch.getsockopt: _getsockopt,
            arch.setsockopt: _setsockopt,
            arch.socket: _socket,
            arch.sendto: _sendto,
            arch.recvfrom: _recvfrom,
            arch.sendmsg: _caught,
            arch.sendmmsg: _caught,
            arch.recvmsg: _caught,
            arch.recvmmsg: _caught,
            arch.seccomp: _seccomp,
        }
        self._compat_refused = {
            *arch.compat.calls,
            abi.IO_URING_SETUP,
            abi.IO_URING_ENTER,
            abi.IO_URING_REGISTER,
            abi.CLONE3,
        }

    def verdict(self, audit_arch: int, nr: int, args: Arguments) -> int:
        """What is to become of a call."""
        arch = self._arch
        if audit_arch == arch.audit_arch:
            rule = self._rules.get(nr)
            if rule is not None:
                return rule(args)
            return REFUSE | errno.ENOSYS if nr & arch.x32_bit and nr != _NONE else PASS
        if audit_arch == arch.compat.audit_arch and nr not in self._compat_refused:
            return _clone(args) if nr == arch.compat.clone else PASS
        return REFUSE | errno.ENOSYS


_NONE = (1 << 64) - 1  # a number that a tracer or a program gives to no call at all


def _caught(args: Arguments) -> int:
    return CATCH


def _refused(args: Arguments) -> int:
    return REFUSE | errno.ENOSYS


def _clone(args: Arguments) -> int:
    return REFUSE | errno.EINVAL if args[0] & CLONE_UNTRACED else PASS


def _seccomp(args: Arguments) -> int:
    listening = integer(args[0]) == abi.SECCOMP_SET_MODE_FILTER and args[1] & abi.FILTER_FLAG_NEW_LISTENER
    return REFUSE | errno.EBUSY if listening else PASS


def _getsockopt(args: Arguments) -> int:
    asked = integer(args[1]), integer(args[2])
    return CATCH if asked == (socket.SOL_SOCKET, socket.SO_ERROR) else PASS


def _setsockopt(args: Arguments) -> int:
    level, option = integer(args[1]), integer(args[2])
    if level == socket.SOL_SOCKET:
        return CATCH if option in (socket.SO_BINDTODEVICE, SO_BINDTOIFINDEX) else PASS
    return CATCH if option in JOINS.get(level, ()) else PASS


def _socket(args: Arguments) -> int:
    family, kind, proto = (integer(value) for value in args[:3])
    if family in (socket.AF_UNIX, socket.AF_NETLINK, AF_ALG):
        return PASS
    inet = family in (socket.AF_INET, socket.AF_INET6)
    return PASS if inet and kind & 0xF == socket.SOCK_STREAM and proto in (0, socket.IPPROTO_TCP) else CATCH


def _sendto(args: Arguments) -> int:
    return CATCH if args[3] & MSG_FASTOPEN or args[4] else PASS


def _recvfrom(args: Arguments) -> int:
    return CATCH if args[4] else PASS
