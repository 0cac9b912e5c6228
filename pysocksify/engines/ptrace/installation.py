"""Installing the filter in a target, so that only the calls that matter stop (seccomp(2), SECCOMP_RET_TRACE)."""

import errno
import os

from pysocksify.engines.syscalls import abi, filter, installation

NOT_TO_BE_HAD = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL)


def install(arch: abi.Architecture) -> str:
    """Filter this thread and all it starts from now on; "" or why there can be no filter.

    It's installed with a listener, which is closed at once: the kernel refuses that where an outer filter has one
    already (EBUSY), whose USER_NOTIF would outrank this filter's TRACE, and the calls would go past us. OSError:
    anything else.
    """
    try:
        listener = installation.install(arch, filter.program(arch, traced=True), abi.FILTER_FLAG_NEW_LISTENER)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return "another program catches calls already"
        if error.errno in NOT_TO_BE_HAD:
            return f"seccomp(2): {os.strerror(error.errno)}"
        raise
    os.close(listener)
    return ""
