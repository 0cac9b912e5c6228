"""Numbers of the system calls that engines catch or make, for each architecture, and of seccomp(2)'s filters.

Sources: linux/seccomp.h, linux/audit.h; the call numbers stand in each architecture's unistd.h.
"""

from pysocksify.record import record

SECCOMP_SET_MODE_FILTER = 1
FILTER_FLAG_NEW_LISTENER = 1 << 3
RET_USER_NOTIF, RET_TRACE, RET_ERRNO, RET_ALLOW = 0x7FC00000, 0x7FF00000, 0x00050000, 0x7FFF0000
TRACE_MARK = 0x7073  # SECCOMP_RET_DATA of what a filter of ours catches; sandboxes inside may have filters of their own

IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427  # the same everywhere since Linux 5.1
PIDFD_OPEN, PIDFD_GETFD, CLONE3 = 434, 438, 435
PIDFD_THREAD = 0o200  # O_EXCL; Linux 6.9


@record(frozen=True, slots=True)
class Compat:
    """The 32-bit architecture that programs of a machine may also use, and its calls that make or use sockets or
    duplicate descriptors."""

    audit_arch: int
    calls: tuple[int, ...]
    duplications: tuple[int, ...]
    fcntls: tuple[int, ...]
    clone: int = 120  # on both


@record(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture's name for AUDIT_ARCH and its numbers of the calls that are caught."""

    audit_arch: int
    seccomp: int
    process_vm_readv: int
    process_vm_writev: int
    socket: int
    connect: int
    getpeername: int
    getsockopt: int
    sendto: int
    sendmsg: int
    sendmmsg: int
    recvfrom: int
    recvmsg: int
    recvmmsg: int
    setsockopt: int
    dup: int
    dup2: int | None
    dup3: int
    fcntl: int
    bind: int
    listen: int
    clone: int
    getpid: int
    x32_bit: int  # a number with this bit is a call of the x32 ABI; 0 where there's none
    compat: Compat


ARCHITECTURES = {
    "x86_64": Architecture(
        audit_arch=0xC000003E,
        seccomp=317,
        process_vm_readv=310,
        process_vm_writev=311,
        socket=41,
        connect=42,
        getpeername=52,
        getsockopt=55,
        sendto=44,
        sendmsg=46,
        sendmmsg=307,
        recvfrom=45,
        recvmsg=47,
        recvmmsg=299,
        setsockopt=54,
        dup=32,
        dup2=33,
        dup3=292,
        fcntl=72,
        bind=49,
        listen=50,
        clone=56,
        getpid=39,
        x32_bit=0x40000000,
        # i386: socketcall, sendmmsg, socket, connect, setsockopt, sendto, sendmsg; dup, dup2, dup3, fcntl, fcntl64
        compat=Compat(0x40000003, (102, 345, 359, 362, 366, 369, 370), (41, 63, 330), (55, 221)),
    ),
    "aarch64": Architecture(
        audit_arch=0xC00000B7,
        seccomp=277,
        process_vm_readv=270,
        process_vm_writev=271,
        socket=198,
        connect=203,
        getpeername=205,
        getsockopt=209,
        sendto=206,
        sendmsg=211,
        sendmmsg=269,
        recvfrom=207,
        recvmsg=212,
        recvmmsg=243,
        setsockopt=208,
        dup=23,
        dup2=None,
        dup3=24,
        fcntl=25,
        bind=200,
        listen=201,
        clone=220,
        getpid=172,
        x32_bit=0,
        # arm: socketcall, socket, connect, sendto, setsockopt, sendmsg, sendmmsg; dup, dup2, dup3, fcntl, fcntl64
        compat=Compat(0x40000028, (102, 281, 283, 290, 294, 296, 374), (41, 63, 358), (55, 221)),
    ),
}
