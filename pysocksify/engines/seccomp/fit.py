"""Whether the seccomp engine can be used here, and for a program. Loaded before the target runs.

The kernel is asked by doing. A filter can't be taken off again, so it is installed in a child, and only where there is
cause for doubt: a filter is on us already (a container's, another pysocksify's), or the kernel calls itself old.
"""

import ctypes
import errno
import os

from pysocksify.engines.syscalls import abi
from pysocksify.engines.syscalls.fit import absence
from pysocksify.engines.syscalls.fit import refusal as refusal  # choice asks each engine
from pysocksify.kernel import Kernel
from pysocksify.linux import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

OLDEST = (5, 9)  # SECCOMP_IOCTL_NOTIF_ADDFD
GET_ACTION_AVAIL = 2  # seccomp(2)
BUSY = "another pysocksify, or this container, catches calls already (EBUSY)"


def availability(kernel: Kernel) -> str:
    """Why it can't be used here; "" when it can. In a container this takes a fork."""
    if why := absence():
        return why
    arch = abi.ARCHITECTURES[os.uname().machine]
    try:
        with open("/proc/self/status", "rb") as file:
            filtered = b"\nSeccomp:\t0" not in file.read()
    except OSError:
        return "/proc isn't there, where the program's memory and descriptors are found"
    action = ctypes.c_uint32(abi.RET_USER_NOTIF)
    try:
        syscall(arch.seccomp, GET_ACTION_AVAIL, 0, ctypes.addressof(action))
    except OSError as error:
        return _why(error.errno or 0)
    return _why(tried(arch, add_descriptor)) if filtered or release() < OLDEST else ""


def release() -> tuple[int, int]:
    """The kernel's version, as far as it is a number: (6, 1)."""
    parts = [part if part.isdigit() else "0" for part in os.uname().release.replace("-", ".").split(".")]
    return int(parts[0]), int(parts[1]) if len(parts) > 1 else 0


def tried(arch: abi.Architecture, use: "Callable[[int], object]", *, killable: bool = False) -> int:
    """The errno that a child gets which installs a filter with a listener and uses it; 0: it works.

    With `killable` calls must be able to wait through signals.
    """
    from contextlib import suppress

    mine, childs = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = errno.EPERM
        try:
            answer = _try(arch, use, killable)
        finally:
            os.write(childs, bytes([answer]))
            os._exit(0)
    os.close(childs)
    answered = os.read(mine, 1)
    os.close(mine)
    with suppress(ChildProcessError):  # whoever started us may ignore SIGCHLD
        os.waitpid(pid, 0)
    return answered[0] if answered else errno.EPERM  # killed: an outer filter's answer


def _try(arch: abi.Architecture, use: "Callable[[int], object]", killable: bool) -> int:
    from pysocksify.engines.seccomp import installation
    from pysocksify.engines.syscalls import bpf

    everything_goes = bpf.INSTRUCTION.pack(bpf.RETURN, 0, 0, abi.RET_ALLOW)
    try:
        listener, got = installation.install(arch, everything_goes, killable)
        if killable and not got:
            return errno.EINVAL
        use(listener)
    except OSError as error:
        return error.errno or errno.EPERM
    return 0


def add_descriptor(listener: int, flags: int = 0) -> None:
    """Use SECCOMP_IOCTL_NOTIF_ADDFD where there's no notification to answer. OSError: it, or a flag, isn't known."""
    import fcntl

    from pysocksify.engines.seccomp import unotify

    try:
        fcntl.ioctl(listener, unotify.IOCTL_NOTIF_ADDFD, unotify.ADDFD.pack(0, flags, listener, 0, 0))
    except FileNotFoundError:  # all was right but the notification's id
        return


def _why(error: int) -> str:
    """An errno of seccomp(2) in words; "" for 0."""
    if error == errno.EBUSY:
        return BUSY
    if error and release() < OLDEST:
        return f"Linux {os.uname().release} is older than {OLDEST[0]}.{OLDEST[1]}"
    if error:
        return f"seccomp(2) with a listener isn't allowed here ({errno.errorcode.get(error, error)})"
    return ""
