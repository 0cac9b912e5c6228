"""Which calls of the target are caught, refused or let pass: the filter, and its installation.

| call | rule | why |
| --- | --- | --- |
| connect | caught | every way to a destination begins here |
| sendto, sendmsg, sendmmsg | caught with MSG_FASTOPEN | they connect too (tcp(7)) |
| getsockopt | caught for SOL_SOCKET, SO_ERROR | the outcome of a held connection |
| getpeername | caught | the destination, not the proxy |
| socket | passes for UNIX, NETLINK, ALG and TCP; else caught | UDP is made in the enclosure, the rest refused |
| io_uring_setup | caught, to be refused | its operations pass no filter |
| io_uring_enter, io_uring_register | ENOSYS | the same |
| socket calls of the 32-bit ABI; all of x32 and of other architectures | ENOSYS | their arguments aren't looked at |

What is caught waits for the supervisor; when that is dead the kernel answers ENOSYS: nothing goes out directly.
"""

import _socket as socket
import ctypes
import errno
import struct

from pysocksify.engines.seccomp import abi, bpf
from pysocksify.linux import PR_SET_NO_NEW_PRIVS, prctl, syscall

MSG_FASTOPEN = 0x20000000
AF_ALG = 38


def program(arch: abi.Architecture) -> bytes:
    """The filter for one architecture, as an array of struct sock_filter."""
    a = bpf.Assembler()
    a.load(bpf.ARCH)
    a.jump(bpf.JUMP_EQUAL, arch.audit_arch, "native")
    a.jump(bpf.JUMP_EQUAL, arch.compat.audit_arch, None, "refuse")
    a.load(bpf.NR)
    for number in (*arch.compat.calls, abi.IO_URING_SETUP, abi.IO_URING_ENTER, abi.IO_URING_REGISTER):
        a.jump(bpf.JUMP_EQUAL, number, "refuse")
    a.ret(abi.RET_ALLOW)
    a.label("native")
    a.load(bpf.NR)
    if arch.x32_bit:
        a.jump(bpf.JUMP_ANY_BIT, arch.x32_bit, "refuse")
    for number in (arch.connect, arch.getpeername, abi.IO_URING_SETUP):
        a.jump(bpf.JUMP_EQUAL, number, "catch")
    for number in (abi.IO_URING_ENTER, abi.IO_URING_REGISTER):
        a.jump(bpf.JUMP_EQUAL, number, "refuse")
    a.jump(bpf.JUMP_EQUAL, arch.getsockopt, "getsockopt")
    a.jump(bpf.JUMP_EQUAL, arch.socket, "socket")
    a.jump(bpf.JUMP_EQUAL, arch.sendto, "flags in 3")
    a.jump(bpf.JUMP_EQUAL, arch.sendmmsg, "flags in 3")
    a.jump(bpf.JUMP_EQUAL, arch.sendmsg, "flags in 2", "pass")
    a.label("flags in 2")
    a.load(bpf.argument(2))
    a.jump(bpf.JUMP_ANY_BIT, MSG_FASTOPEN, "catch", "pass")
    a.label("flags in 3")
    a.load(bpf.argument(3))
    a.jump(bpf.JUMP_ANY_BIT, MSG_FASTOPEN, "catch", "pass")
    a.label("getsockopt")
    a.load(bpf.argument(1))
    a.jump(bpf.JUMP_EQUAL, socket.SOL_SOCKET, None, "pass")
    a.load(bpf.argument(2))
    a.jump(bpf.JUMP_EQUAL, socket.SO_ERROR, "catch", "pass")
    a.label("socket")
    a.load(bpf.argument(0))
    for family in (socket.AF_UNIX, socket.AF_NETLINK, AF_ALG):
        a.jump(bpf.JUMP_EQUAL, family, "pass")
    a.jump(bpf.JUMP_EQUAL, socket.AF_INET, "inet")
    a.jump(bpf.JUMP_EQUAL, socket.AF_INET6, "inet", "catch")
    a.label("inet")
    a.load(bpf.argument(1))
    a.mask(0xF)  # the rest is SOCK_NONBLOCK and SOCK_CLOEXEC (socket(2))
    a.jump(bpf.JUMP_EQUAL, socket.SOCK_STREAM, None, "catch")
    a.load(bpf.argument(2))
    a.jump(bpf.JUMP_EQUAL, 0, "pass")
    a.jump(bpf.JUMP_EQUAL, socket.IPPROTO_TCP, "pass", "catch")
    a.label("pass")
    a.ret(abi.RET_ALLOW)
    a.label("catch")
    a.ret(abi.RET_USER_NOTIF)
    a.label("refuse")
    a.ret(abi.RET_ERRNO | errno.ENOSYS)
    return a.assemble()


def install(arch: abi.Architecture, code: bytes) -> tuple[int, bool]:
    """Filter this thread and all it starts from now on (seccomp_unotify(2)).

    Returned: the listener's descriptor, and whether a call that the supervisor has taken waits through signals
    (WAIT_KILLABLE_RECV). no_new_privs is set only where the kernel asks for it: a privileged caller keeps setuid
    programs. OSError: EBUSY when another listener is there already, EPERM or ENOSYS where seccomp(2) isn't to be had.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: unsigned short len; struct sock_filter *filter
    fprog = ctypes.create_string_buffer(struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(instructions)))
    for flags in (abi.FILTER_FLAG_WAIT_KILLABLE_RECV, 0):
        try:
            return _install_with(arch, flags, ctypes.addressof(fprog)), flags != 0
        except OSError as error:
            if error.errno != errno.EINVAL or not flags:
                raise
    raise AssertionError("the last attempt returns or raises")


def _install_with(arch: abi.Architecture, flags: int, fprog: int) -> int:
    flags |= abi.FILTER_FLAG_NEW_LISTENER
    try:
        return syscall(arch.seccomp, abi.SECCOMP_SET_MODE_FILTER, flags, fprog)
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    return syscall(arch.seccomp, abi.SECCOMP_SET_MODE_FILTER, flags, fprog)
