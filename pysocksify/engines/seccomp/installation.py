"""Installing the filter in a target, with a listener through which calls wait for us (seccomp_unotify(2))."""

import errno

from pysocksify.engines.seccomp import unotify
from pysocksify.engines.syscalls import abi, installation


def install(arch: abi.Architecture, code: bytes, killable: bool = True) -> tuple[int, bool]:
    """Filter this thread and all it starts from now on.

    Returned: the listener's descriptor, and whether a call that the supervisor has taken waits through signals
    (WAIT_KILLABLE_RECV). OSError: as `syscalls.installation` says.
    """
    flags = abi.FILTER_FLAG_NEW_LISTENER
    if killable:
        try:
            return installation.install(arch, code, flags | unotify.FILTER_FLAG_WAIT_KILLABLE_RECV), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return installation.install(arch, code, flags), False
