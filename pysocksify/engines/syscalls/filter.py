"""Which calls of the target are caught, refused or let pass: the filter.

| call | rule | why |
| --- | --- | --- |
| connect | caught | every way to a destination begins here |
| sendto, sendmsg, sendmmsg | caught with MSG_FASTOPEN | they connect too (tcp(7)) |
| sendmsg, sendmmsg, recvmsg, recvmmsg; sendto and recvfrom with a name | caught for `Numbers` | `datagrams` |
| dup, dup2, dup3, fcntl F_DUPFD and F_DUPFD_CLOEXEC | caught for `Numbers` | `numbered` |
| seccomp with a listener | EBUSY where calls are traced | USER_NOTIF outranks TRACE, and can let a call pass |
| setsockopt | caught for devices and multicast memberships | they get a confined socket past its device |
| getsockopt | caught for SOL_SOCKET, SO_ERROR | the outcome of a held connection |
| getpeername | caught | the destination, not the proxy |
| socket | passes for UNIX, NETLINK, ALG and TCP; else caught | UDP is made in the enclosure, the rest refused |
| socket for TCP, bind, listen | caught where sockets are adopted | pidfd_getfd(2) is refused (`seccomp.adopted`) |
| io_uring_setup | caught, to be refused | its operations pass no filter |
| io_uring_enter, io_uring_register | ENOSYS | the same |
| socket calls of the 32-bit ABI, its dup of `Numbers`; all of x32, of other architectures | ENOSYS | the same |

A filter can't see a socket's type. Where UDP sockets can't be enclosed they get numbers of a range of their own
(`Numbers`), and what could send on them is caught there. The rules are always in the filter, which is built before it's
known; other files with such numbers are few, and pay for the calls of those two rows only. A tracer can't give numbers:
for it, the calls of the first of the two rows are caught for all descriptors.

What is caught waits for the supervisor; when that is dead the kernel answers ENOSYS: nothing goes out directly.
"""

import _socket as socket
import errno

from pysocksify.engines.syscalls import abi, bpf
from pysocksify.record import record

MSG_FASTOPEN = 0x20000000
AF_ALG = 38
SO_BINDTOIFINDEX = 62
F_DUPFD, F_DUPFD_CLOEXEC = 0, 1030
FD_SETSIZE = 1024  # select(2)
# linux/in.h, linux/in6.h: IP_ADD_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, MCAST_JOIN_GROUP, MCAST_JOIN_SOURCE_GROUP;
# IPV6_JOIN_GROUP, IPV6_JOIN_ANYCAST, and MCAST_ once more
JOINS = {socket.IPPROTO_IP: (35, 39, 42, 46), socket.IPPROTO_IPV6: (20, 27, 42, 46)}


@record(frozen=True, slots=True)
class Numbers:
    """The descriptor numbers of UDP sockets that can't be enclosed: from `first` up to `end`, which isn't one of them.

    Those below `middle` are taken first, from the top, where programs have nothing and select(2) still works.
    """

    first: int
    middle: int
    end: int

    @classmethod
    def below(cls, limit: int) -> "Numbers":
        """For programs with this soft RLIMIT_NOFILE; Go's raise theirs later, and ask for 300 names at once."""
        if limit < FD_SETSIZE:
            return cls(limit - limit // 4, limit, limit)
        return cls(768, FD_SETSIZE, 2048)

    def __contains__(self, number: int) -> bool:
        return self.first <= number < self.end


def program(
    arch: abi.Architecture, numbers: Numbers | None = None, *, adopting: bool = False, traced: bool = False
) -> bytes:
    """The filter for one architecture, as an array of struct sock_filter.

    `adopting`: descriptors can't be taken from programs, so all their inet sockets are to be made by the supervisor.
    `traced`: what is caught stops for a tracer, with `abi.TRACE_MARK`; there are no numbers then.
    """
    numbers = numbers or Numbers.below(FD_SETSIZE)
    a = bpf.Assembler()
    a.load(bpf.ARCH)
    a.jump(bpf.JUMP_EQUAL, arch.audit_arch, "native")
    a.jump(bpf.JUMP_EQUAL, arch.compat.audit_arch, None, "refuse")
    _compat(a, arch.compat, None if traced else numbers)
    a.label("native")
    a.load(bpf.NR)
    if arch.x32_bit:
        a.jump(bpf.JUMP_ANY_BIT, arch.x32_bit, "refuse")
    for number in (arch.connect, arch.getpeername, abi.IO_URING_SETUP):
        a.jump(bpf.JUMP_EQUAL, number, "catch")
    for number in (arch.bind, arch.listen) if adopting else ():
        a.jump(bpf.JUMP_EQUAL, number, "catch")
    for number in (abi.IO_URING_ENTER, abi.IO_URING_REGISTER):
        a.jump(bpf.JUMP_EQUAL, number, "refuse")
    a.jump(bpf.JUMP_EQUAL, arch.getsockopt, "getsockopt")
    a.jump(bpf.JUMP_EQUAL, arch.socket, "socket")
    a.jump(bpf.JUMP_EQUAL, arch.setsockopt, "setsockopt")
    a.jump(bpf.JUMP_EQUAL, *((arch.seccomp, "seccomp") if traced else (arch.fcntl, "fcntl")))
    a.jump(bpf.JUMP_EQUAL, arch.sendto, "sendto")
    a.jump(bpf.JUMP_EQUAL, arch.recvfrom, "name")
    a.jump(bpf.JUMP_EQUAL, arch.sendmmsg, "sendmmsg")
    duplications = () if traced else (arch.dup, arch.dup2, arch.dup3)
    for number in (arch.recvmsg, arch.recvmmsg, *duplications):
        if number is not None:
            a.jump(bpf.JUMP_EQUAL, number, "number")
    a.jump(bpf.JUMP_EQUAL, arch.sendmsg, None, "pass")
    a.load(bpf.argument(2))
    a.jump(bpf.JUMP_ANY_BIT, MSG_FASTOPEN, "catch", "number")
    a.label("sendmmsg")
    a.load(bpf.argument(3))
    a.jump(bpf.JUMP_ANY_BIT, MSG_FASTOPEN, "catch", "number")
    a.label("sendto")
    a.load(bpf.argument(3))
    a.jump(bpf.JUMP_ANY_BIT, MSG_FASTOPEN, "catch")
    a.label("name")  # argument 4, a pointer: both halves
    a.load(bpf.argument(4))
    a.jump(bpf.JUMP_EQUAL, 0, None, "number")
    a.load(bpf.argument(4) + 4)
    a.jump(bpf.JUMP_EQUAL, 0, "pass", "number")
    if traced:
        a.label("number")
        a.ret(abi.RET_TRACE | abi.TRACE_MARK)
        _seccomp(a)
    else:
        _by_number(a, numbers, "fcntl", "number", "catch")
    _setsockopt(a)
    a.label("getsockopt")
    a.load(bpf.argument(1))
    a.jump(bpf.JUMP_EQUAL, socket.SOL_SOCKET, None, "pass")
    a.load(bpf.argument(2))
    a.jump(bpf.JUMP_EQUAL, socket.SO_ERROR, "catch", "pass")
    _socket(a, adopting)
    a.label("pass")
    a.ret(abi.RET_ALLOW)
    a.label("catch")
    a.ret(abi.RET_TRACE | abi.TRACE_MARK if traced else abi.RET_USER_NOTIF)
    a.label("refuse")
    a.ret(abi.RET_ERRNO | errno.ENOSYS)
    return a.assemble()


def _compat(a: bpf.Assembler, compat: abi.Compat, numbers: Numbers | None) -> None:
    a.load(bpf.NR)
    for number in (*compat.calls, abi.IO_URING_SETUP, abi.IO_URING_ENTER, abi.IO_URING_REGISTER):
        a.jump(bpf.JUMP_EQUAL, number, "refuse")
    if numbers is None:
        a.ret(abi.RET_ALLOW)
        return
    for number in compat.duplications:
        a.jump(bpf.JUMP_EQUAL, number, "compat number")
    for number in compat.fcntls:
        a.jump(bpf.JUMP_EQUAL, number, "compat fcntl")
    a.ret(abi.RET_ALLOW)
    _by_number(a, numbers, "compat fcntl", "compat number", "refuse")


def _by_number(a: bpf.Assembler, numbers: Numbers, fcntl: str, number: str, inside: str) -> None:
    """At `fcntl`: a call that duplicates goes on at `number`, where descriptors of the range go `inside`."""
    a.label(fcntl)
    a.load(bpf.argument(1))
    a.jump(bpf.JUMP_EQUAL, F_DUPFD, number)
    a.jump(bpf.JUMP_EQUAL, F_DUPFD_CLOEXEC, None, "pass")
    a.label(number)
    a.load(bpf.argument(0))
    a.jump(bpf.JUMP_GREATER_EQUAL, numbers.first, None, "pass")
    a.jump(bpf.JUMP_GREATER_EQUAL, numbers.end, "pass", inside)


def _socket(a: bpf.Assembler, adopting: bool) -> None:
    a.label("socket")
    a.load(bpf.argument(0))
    for family in (socket.AF_UNIX, socket.AF_NETLINK, AF_ALG):
        a.jump(bpf.JUMP_EQUAL, family, "pass")
    if adopting:
        a.ret(abi.RET_USER_NOTIF)
        return
    a.jump(bpf.JUMP_EQUAL, socket.AF_INET, "inet")
    a.jump(bpf.JUMP_EQUAL, socket.AF_INET6, "inet", "catch")
    a.label("inet")
    a.load(bpf.argument(1))
    a.mask(0xF)  # the rest is SOCK_NONBLOCK and SOCK_CLOEXEC (socket(2))
    a.jump(bpf.JUMP_EQUAL, socket.SOCK_STREAM, None, "catch")
    a.load(bpf.argument(2))
    a.jump(bpf.JUMP_EQUAL, 0, "pass")
    a.jump(bpf.JUMP_EQUAL, socket.IPPROTO_TCP, "pass", "catch")


def _seccomp(a: bpf.Assembler) -> None:
    a.label("seccomp")
    a.load(bpf.argument(0))
    a.jump(bpf.JUMP_EQUAL, abi.SECCOMP_SET_MODE_FILTER, None, "pass")
    a.load(bpf.argument(1))
    a.jump(bpf.JUMP_ANY_BIT, abi.FILTER_FLAG_NEW_LISTENER, None, "pass")
    a.ret(abi.RET_ERRNO | errno.EBUSY)


def _setsockopt(a: bpf.Assembler) -> None:
    a.label("setsockopt")
    a.load(bpf.argument(1))
    a.jump(bpf.JUMP_EQUAL, socket.SOL_SOCKET, "of any")
    for level in JOINS:
        a.jump(bpf.JUMP_EQUAL, level, f"of {level}")
    a.ret(abi.RET_ALLOW)
    a.label("of any")
    a.load(bpf.argument(2))
    a.jump(bpf.JUMP_EQUAL, socket.SO_BINDTODEVICE, "catch")
    a.jump(bpf.JUMP_EQUAL, SO_BINDTOIFINDEX, "catch", "pass")
    for level, options in JOINS.items():
        a.label(f"of {level}")
        a.load(bpf.argument(2))
        for option in options:
            a.jump(bpf.JUMP_EQUAL, option, "catch")
        a.ret(abi.RET_ALLOW)
