"""Installing the filter in a target, so that only the calls that matter stop (seccomp(2), SECCOMP_RET_TRACE)."""

import ctypes
import errno
import os
import struct

from pysocksify.engines.syscalls import abi, filter
from pysocksify.linux import PR_SET_NO_NEW_PRIVS, prctl, syscall

NOT_TO_BE_HAD = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL)


def install(arch: abi.Architecture) -> str:
    """Filter this thread and all it starts from now on; "" or why there can be no filter.

    It's installed with a listener, which is closed at once: the kernel refuses that where an outer filter has one
    already (EBUSY), whose USER_NOTIF would outrank this filter's TRACE, and the calls would go past us. no_new_privs is
    set only where the kernel asks for it. OSError: anything else.
    """
    code = filter.program(arch, traced=True)
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: unsigned short len; struct sock_filter *filter
    fprog = ctypes.create_string_buffer(struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(instructions)))
    try:
        try:
            listener = _install(arch, ctypes.addressof(fprog))
        except PermissionError as error:
            if error.errno != errno.EACCES:
                raise
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            listener = _install(arch, ctypes.addressof(fprog))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return "another program catches calls already"
        if error.errno in NOT_TO_BE_HAD:
            return f"seccomp(2): {os.strerror(error.errno)}"
        raise
    os.close(listener)
    return ""


def _install(arch: abi.Architecture, fprog: int) -> int:
    return syscall(arch.seccomp, abi.SECCOMP_SET_MODE_FILTER, abi.FILTER_FLAG_NEW_LISTENER, fprog)
