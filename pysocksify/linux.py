"""The calls of Linux that Python's standard library lacks, through ctypes. Each raises OSError as the library's do."""

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

PR_SET_NO_NEW_PRIVS = 38
AF_UNSPEC_SOCKADDR = bytes(16)  # struct sockaddr with sa_family AF_UNSPEC: connect(2) with it dissolves

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.argtypes = [ctypes.c_long] * 7
_syscall.restype = ctypes.c_long
_connect = _libc.connect
_connect.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def syscall(number: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0) -> int:
    """syscall(2) with up to six numbers or addresses."""
    result: int = _syscall(number, a, b, c, d, e, f)
    if result < 0:
        raise _error()
    return result


def prctl(option: int, value: int) -> None:
    """prctl(2) with one value."""
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) < 0:
        raise _error()


def connect(fd: int, sockaddr: bytes) -> int:
    """connect(2) with a struct sockaddr as bytes; the errno is returned, 0 for success."""
    if _connect(fd, sockaddr, len(sockaddr)) == 0:
        return 0
    return ctypes.get_errno()


def dissolve(fd: int) -> None:
    """connect(2) with AF_UNSPEC: the socket is unconnected again. A socket that can't be dissolved stays as it is."""
    error = connect(fd, AF_UNSPEC_SOCKADDR)
    # EBUSY: another thread waits in a call on it (tcp_disconnect() of Linux 6.4 to 6.6)
    if error not in (0, errno.EINVAL, errno.EAFNOSUPPORT, errno.EBUSY):
        raise OSError(error, os.strerror(error))


def looked_into(tid: int, look: "Callable[[], T]") -> "T":
    """What `look` finds in a thread's /proc/TID; where that is refused to root, as the thread's own user.

    In a default container root has no CAP_SYS_PTRACE, and may only look into programs of its own: one that has become
    another user's and was executed since opens up to that user alone (ptrace(2), "Ptrace access mode checking"). Its
    folder belongs to root when it's closed to all (proc(5)). setfsuid(2) is this thread's own.
    """
    try:
        return look()
    except PermissionError:
        owner = os.stat(f"/proc/{tid}")
        if os.geteuid() or not owner.st_uid:
            raise
    _libc.setfsgid(owner.st_gid)
    _libc.setfsuid(owner.st_uid)
    try:
        return look()
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
