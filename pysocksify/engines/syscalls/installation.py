"""Installing a filter in the calling thread: seccomp(2)."""

import ctypes
import errno
import struct

from pysocksify.engines.syscalls import abi
from pysocksify.linux import PR_SET_NO_NEW_PRIVS, prctl, syscall


def install(arch: abi.Architecture, code: bytes, flags: int) -> int:
    """Filter this thread and all it starts from now on; what seccomp(2) returns for these flags, such as a listener.

    no_new_privs is set only where the kernel asks for it: a privileged caller keeps setuid programs. OSError: EBUSY
    when another listener is there already, EINVAL for flags, EPERM or ENOSYS where seccomp(2) isn't to be had.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: unsigned short len; struct sock_filter *filter
    fprog = ctypes.create_string_buffer(struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(instructions)))
    try:
        return syscall(arch.seccomp, abi.SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(fprog))
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    return syscall(arch.seccomp, abi.SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(fprog))
