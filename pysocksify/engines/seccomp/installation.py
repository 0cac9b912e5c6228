"""Installing the filter in a target, with a listener (seccomp_unotify(2))."""

import ctypes
import errno
import struct

from pysocksify.engines.seccomp import unotify
from pysocksify.engines.syscalls import abi
from pysocksify.linux import PR_SET_NO_NEW_PRIVS, prctl, syscall


def install(arch: abi.Architecture, code: bytes, killable: bool = True) -> tuple[int, bool]:
    """Filter this thread and all it starts from now on (seccomp_unotify(2)).

    Returned: the listener's descriptor, and whether a call that the supervisor has taken waits through signals
    (WAIT_KILLABLE_RECV). no_new_privs is set only where the kernel asks for it: a privileged caller keeps setuid
    programs. OSError: EBUSY when another listener is there already, EPERM or ENOSYS where seccomp(2) isn't to be had.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: unsigned short len; struct sock_filter *filter
    fprog = ctypes.create_string_buffer(struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(instructions)))
    for flags in (unotify.FILTER_FLAG_WAIT_KILLABLE_RECV, 0) if killable else (0,):
        try:
            return _install_with(arch, flags, ctypes.addressof(fprog)), flags != 0
        except OSError as error:
            if error.errno != errno.EINVAL or not flags:
                raise
    raise AssertionError("the last attempt returns or raises")


def _install_with(arch: abi.Architecture, flags: int, fprog: int) -> int:
    flags |= unotify.FILTER_FLAG_NEW_LISTENER
    try:
        return syscall(arch.seccomp, abi.SECCOMP_SET_MODE_FILTER, flags, fprog)
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    return syscall(arch.seccomp, abi.SECCOMP_SET_MODE_FILTER, flags, fprog)
