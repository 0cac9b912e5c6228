"""The filter: each row of its table through a simulator, for every architecture; and live, as root and as nobody."""

import errno
import faulthandler
import mmap
import os
import platform
import socket
from collections.abc import Callable
from ctypes import CFUNCTYPE, addressof, c_char, c_int, c_long

import pytest

from pysocksify.engines.seccomp import installation
from pysocksify.engines.syscalls import abi, filter
from pysocksify.linux import syscall
from tests.engines.filtered import ACCOUNTS, Filtered, as_account, machine
from tests.engines.simulator import Action, check, run

ALLOW, NOTIFY, ENOSYS = Action("ALLOW"), Action("NOTIFY"), Action("ERRNO", 38)

# AUDIT_ARCH_* of linux/audit.h
X86_64, AARCH64, I386, ARM, RISCV64, ARMEB = 0xC000003E, 0xC00000B7, 0x40000003, 0x40000028, 0xC00000F3, 0x28
GARBAGE = 0xDEADBEEF00000000  # the kernel looks at the low half of an int argument

FASTOPEN, NOSIGNAL = 0x20000000, 0x4000
UNIX, INET, INET6, NETLINK, PACKET, ALG, VSOCK, SMC = 1, 2, 10, 16, 17, 38, 40, 43
STREAM, DGRAM, RAW, SEQPACKET, NONBLOCK, CLOEXEC = 1, 2, 3, 5, 0o4000, 0o2000000
TCP, UDP, ICMP, SCTP, MPTCP = 6, 17, 1, 132, 262

# numbers of each architecture's unistd.h
NUMBERS = {
    "x86_64": {
        "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47,
        "bind": 49, "listen": 50, "getpeername": 52, "setsockopt": 54, "getsockopt": 55, "recvmmsg": 299,
        "sendmmsg": 307, "read": 0, "close": 3, "dup": 32, "dup2": 33, "dup3": 292, "fcntl": 72,
    },
    "aarch64": {
        "socket": 198, "connect": 203, "accept": 202, "sendto": 206, "recvfrom": 207, "sendmsg": 211, "recvmsg": 212,
        "bind": 200, "listen": 201, "getpeername": 205, "setsockopt": 208, "getsockopt": 209, "recvmmsg": 243,
        "sendmmsg": 269, "read": 63, "close": 57, "dup": 23, "dup3": 24, "fcntl": 25,
    },
}  # fmt: skip
URING = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}
NATIVE = {"x86_64": X86_64, "aarch64": AARCH64}

CLOSED, UDP_FD = 700, 800  # neither is open in the tests; 768 to 2047 are the datagram numbers

NATIVE_ROWS: list[tuple[str, tuple[int, ...], Action]] = [
    ("connect", (CLOSED, 0x7FFF0000, 16), NOTIFY),
    ("getpeername", (CLOSED, 0x7FFF0000, 0x7FFF0010), NOTIFY),
    ("io_uring_setup", (8, 0x7FFF0000), NOTIFY),
    ("io_uring_enter", (3, 1), ENOSYS),
    ("io_uring_register", (3, 1), ENOSYS),
    # getsockopt: level 1 is SOL_SOCKET, option 4 SO_ERROR, 3 SO_TYPE; TCP_MAXSEG is 2, TCP_KEEPIDLE 4
    ("getsockopt", (CLOSED, 1, 4), NOTIFY),
    ("getsockopt", (CLOSED, GARBAGE | 1, GARBAGE | 4), NOTIFY),
    ("getsockopt", (CLOSED, 1, 3), ALLOW),
    ("getsockopt", (CLOSED, TCP, 4), ALLOW),
    ("setsockopt", (CLOSED, 1, 4), ALLOW),
    # sends: the flags are argument 3 of sendto and sendmmsg, argument 2 of sendmsg
    ("sendto", (CLOSED, 0x1000, 10, FASTOPEN, 0x2000, 16), NOTIFY),
    ("sendto", (CLOSED, 0x1000, 10, GARBAGE | FASTOPEN | NOSIGNAL, 0x2000, 16), NOTIFY),
    ("sendto", (CLOSED, 0x1000, 10, NOSIGNAL, 0x2000, 16), ALLOW),
    ("sendto", (CLOSED, 0x1000, FASTOPEN, 0, 0x2000, 16), ALLOW),
    ("sendmmsg", (CLOSED, 0x1000, 2, FASTOPEN), NOTIFY),
    ("sendmmsg", (CLOSED, 0x1000, FASTOPEN, 0), ALLOW),
    ("sendmsg", (CLOSED, 0x1000, FASTOPEN), NOTIFY),
    ("sendmsg", (CLOSED, 0x1000, 0, FASTOPEN), ALLOW),
    ("sendmsg", (CLOSED, 0x1000, NOSIGNAL), ALLOW),
    # sendto and recvfrom with a name, which is a pointer: both its halves count; the descriptor is argument 0
    ("sendto", (UDP_FD, 0x1000, 10, 0, 0x2000, 16), NOTIFY),
    ("sendto", (UDP_FD, 0x1000, 10, 0, 0x500000000, 16), NOTIFY),
    ("sendto", (GARBAGE | UDP_FD, 0x1000, 10, 0, 0x2000, 16), NOTIFY),
    ("sendto", (UDP_FD, 0x1000, 10, 0, 0, 0), ALLOW),
    ("sendto", (UDP_FD, 0x1000, 10, FASTOPEN, 0, 0), NOTIFY),
    ("recvfrom", (UDP_FD, 0x1000, 10, 0, 0x2000, 0x3000), NOTIFY),
    ("recvfrom", (UDP_FD, 0x1000, 10, 0, 0x500000000, 0x3000), NOTIFY),
    ("recvfrom", (UDP_FD, 0x1000, 10, FASTOPEN, 0, 0), ALLOW),
    ("recvfrom", (CLOSED, 0x1000, 10, 0, 0x2000, 0x3000), ALLOW),
    # what names its peer in memory
    *((call, (UDP_FD, 0x1000, 0, 0), NOTIFY) for call in ("sendmsg", "recvmsg", "sendmmsg", "recvmmsg")),
    *((call, (CLOSED, 0x1000, 0, 0), ALLOW) for call in ("sendmsg", "recvmsg", "sendmmsg", "recvmmsg")),
    ("recvmsg", (CLOSED, 0x1000, FASTOPEN, FASTOPEN), ALLOW),
    # the first and the last number, and those beside them
    *(("recvmsg", (number, 0x1000, 0), NOTIFY) for number in (768, 1023, 1024, 2047)),
    *(("recvmsg", (number, 0x1000, 0), ALLOW) for number in (767, 2048, 0xFFFFFFFF, 0x7FFFFFFF)),
    # duplicates of the datagram numbers; fcntl: 0 is F_DUPFD, 1030 F_DUPFD_CLOEXEC, 3 F_GETFL
    ("dup", (UDP_FD,), NOTIFY),
    ("dup", (CLOSED,), ALLOW),
    ("dup2", (UDP_FD, CLOSED), NOTIFY),
    ("dup2", (CLOSED, CLOSED), ALLOW),
    ("dup3", (UDP_FD, CLOSED, 0), NOTIFY),
    ("dup3", (CLOSED, UDP_FD, 0), ALLOW),
    ("fcntl", (UDP_FD, 0, 5), NOTIFY),
    ("fcntl", (UDP_FD, 1030, 5), NOTIFY),
    ("fcntl", (UDP_FD, 3, 0), ALLOW),
    ("fcntl", (CLOSED, 0, 5), ALLOW),
    ("fcntl", (CLOSED, 1030, 5), ALLOW),
    # setsockopt: SO_BINDTODEVICE, SO_BINDTOIFINDEX, memberships of IP and of IPv6, and their neighbours
    *(("setsockopt", (CLOSED, 1, option), NOTIFY) for option in (25, 62)),
    *(("setsockopt", (CLOSED, 0, option), NOTIFY) for option in (35, 39, 42, 46)),
    *(("setsockopt", (CLOSED, 41, option), NOTIFY) for option in (20, 27, 42, 46)),
    *(("setsockopt", (CLOSED, 1, option), ALLOW) for option in (2, 9, 20, 24, 26, 35, 42)),
    *(("setsockopt", (CLOSED, 0, option), ALLOW) for option in (1, 20, 25, 27, 36, 62)),
    *(("setsockopt", (CLOSED, 41, option), ALLOW) for option in (21, 25, 26, 35, 62)),
    *(("setsockopt", (CLOSED, TCP, option), ALLOW) for option in (25, 35, 42, 62)),
    # sockets: family, type, protocol
    ("socket", (UNIX, STREAM, 0), ALLOW),
    ("socket", (UNIX, DGRAM, 0), ALLOW),
    ("socket", (NETLINK, RAW, 0), ALLOW),
    ("socket", (ALG, SEQPACKET, 0), ALLOW),
    ("socket", (INET, STREAM, 0), ALLOW),
    ("socket", (INET6, STREAM, 0), ALLOW),
    ("socket", (INET, STREAM, TCP), ALLOW),
    ("socket", (INET6, STREAM | NONBLOCK | CLOEXEC, TCP), ALLOW),
    ("socket", (GARBAGE | INET, GARBAGE | STREAM, GARBAGE | TCP), ALLOW),
    ("socket", (INET, STREAM, SCTP), NOTIFY),
    ("socket", (INET, STREAM, MPTCP), NOTIFY),
    ("socket", (INET, DGRAM, 0), NOTIFY),
    ("socket", (INET6, DGRAM | CLOEXEC, UDP), NOTIFY),
    ("socket", (INET, DGRAM, ICMP), NOTIFY),
    ("socket", (INET, RAW, TCP), NOTIFY),
    ("socket", (INET, SEQPACKET, SCTP), NOTIFY),
    ("socket", (INET, 0, 0), NOTIFY),
    ("socket", (INET, 0xB, 0), NOTIFY),
    ("socket", (PACKET, RAW, 3), NOTIFY),
    ("socket", (VSOCK, STREAM, 0), NOTIFY),
    ("socket", (SMC, STREAM, 0), NOTIFY),
    ("socket", (0, STREAM, 0), NOTIFY),
    ("socket", (0xFFFFFFFF, STREAM, 0), NOTIFY),
    ("read", (CLOSED, 0x1000, 10), ALLOW),
    ("close", (CLOSED,), ALLOW),
    ("bind", (CLOSED, 0x1000, 16), ALLOW),
    ("listen", (CLOSED, 5), ALLOW),
    ("accept", (CLOSED, 0, 0), ALLOW),
]

# i386: socketcall, sendmmsg, socket, connect, setsockopt, sendto, sendmsg; ARM: socketcall, sendmmsg, then as i386
COMPAT_REFUSED = {
    "x86_64": (I386, (102, 345, 359, 362, 366, 369, 370)),
    "aarch64": (ARM, (102, 374, 281, 283, 294, 290, 296)),
}
COMPAT_PASSED = {"x86_64": (I386, (1, 3, 4, 6, 42, 44, 46, 54)), "aarch64": (ARM, (1, 3, 4, 6, 198, 203, 206))}
COMPAT_DUP = {"x86_64": (41, 63, 330), "aarch64": (41, 63, 358)}  # dup, dup2, dup3
COMPAT_FCNTL = (55, 221)  # fcntl, fcntl64


each_native_call = pytest.mark.parametrize(
    ("name", "call", "arguments", "action"),
    [(name, *row) for name in NATIVE for row in NATIVE_ROWS if (name, row[0]) != ("aarch64", "dup2")],  # there's none
)


@each_native_call
def test_native_calls(name: str, call: str, arguments: tuple[int, ...], action: Action) -> None:
    number = {**NUMBERS[name], **URING}[call]
    assert run(filter.program(abi.ARCHITECTURES[name]), NATIVE[name], number, arguments) == action


@each_native_call
def test_native_calls_where_sockets_are_adopted(
    name: str, call: str, arguments: tuple[int, ...], action: Action
) -> None:
    number = {**NUMBERS[name], **URING}[call]
    inet = call == "socket" and arguments[0] & 0xFFFFFFFF in (INET, INET6)
    expected = NOTIFY if inet or call in ("bind", "listen") else action
    assert run(filter.program(abi.ARCHITECTURES[name], adopting=True), NATIVE[name], number, arguments) == expected


@pytest.mark.parametrize("name", NATIVE)
def test_every_other_call_passes(name: str) -> None:
    caught = {*NUMBERS[name].values(), *URING.values()}
    program = filter.program(abi.ARCHITECTURES[name])
    for number in range(600):
        if number not in caught:
            assert run(program, NATIVE[name], number, (UDP_FD, 0, FASTOPEN, FASTOPEN, UDP_FD)) == ALLOW


@pytest.mark.parametrize("name", NATIVE)
def test_socket_calls_of_the_32_bit_abi_are_refused(name: str) -> None:
    program = filter.program(abi.ARCHITECTURES[name])
    arch, refused = COMPAT_REFUSED[name]
    for number in (*refused, *URING.values()):
        assert run(program, arch, number, (INET, STREAM)) == ENOSYS
    arch, passed = COMPAT_PASSED[name]
    for number in passed:
        assert run(program, arch, number, (INET, DGRAM)) == ALLOW


@pytest.mark.parametrize("name", NATIVE)
def test_datagram_numbers_arent_duplicated_in_the_32_bit_abi(name: str) -> None:
    program = filter.program(abi.ARCHITECTURES[name])
    arch = COMPAT_REFUSED[name][0]
    for fd, action in ((767, ALLOW), (768, ENOSYS), (2047, ENOSYS), (2048, ALLOW)):
        for number in COMPAT_DUP[name]:
            assert run(program, arch, number, (fd, 5)) == action
        for number in COMPAT_FCNTL:
            assert run(program, arch, number, (fd, 0, 5)) == action
            assert run(program, arch, number, (fd, 1030, 5)) == action
            assert run(program, arch, number, (fd, 3, 0)) == ALLOW


@pytest.mark.parametrize(
    ("limit", "first", "middle", "end"),
    [(1024, 768, 1024, 2048), (1 << 20, 768, 1024, 2048), (1023, 768, 1023, 1023), (256, 192, 256, 256)],
)
def test_numbers_of_a_limit(limit: int, first: int, middle: int, end: int) -> None:
    numbers = filter.Numbers.below(limit)
    assert (numbers.first, numbers.middle, numbers.end) == (first, middle, end)
    program = filter.program(abi.ARCHITECTURES["x86_64"], numbers)
    for fd in range(first - 2, end + 2):
        inside = first <= fd < end
        assert (fd in numbers) is inside
        assert run(program, X86_64, 47, (fd, 0x1000, 0)) == (NOTIFY if inside else ALLOW)


@pytest.mark.parametrize("number", [0, 1, 41, 42, 44, 46, 512, 518, 519, 520, 538, 541, 542, 545])
def test_x32_is_refused(number: int) -> None:
    program = filter.program(abi.ARCHITECTURES["x86_64"])
    assert run(program, X86_64, number | 0x40000000, (INET, STREAM)) == ENOSYS


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("number", [0, 3, 41, 42, 198, 203, 425])
def test_other_architectures_are_refused(name: str, number: int) -> None:
    program = filter.program(abi.ARCHITECTURES[name])
    foreign = {RISCV64, ARMEB, 0, 0xFFFFFFFF, X86_64, AARCH64, I386, ARM} - {NATIVE[name], COMPAT_REFUSED[name][0]}
    for arch in foreign:
        assert run(program, arch, number, (INET, STREAM)) == ENOSYS


@pytest.mark.parametrize("name", NATIVE)
def test_the_kernel_takes_it(name: str) -> None:
    assert len(check(filter.program(abi.ARCHITECTURES[name]))) <= 128  # each call of a target runs through it


# live

ANSWER = errno.ENOTNAM  # no call here fails with it by itself

ARCH = machine()
NUMBER = NUMBERS[platform.machine()]
each_account = pytest.mark.parametrize("uid", ACCOUNTS)


def errno_of(number: int, *arguments: int) -> int:
    try:
        result = syscall(number, *arguments)
    except OSError as error:
        return error.errno or -1
    if number == NUMBER["socket"]:
        os.close(result)
    return 0


def as_long(value: int) -> int:
    """The same 64 bits as ctypes' c_long takes them."""
    return value - (1 << 64) if value >> 63 else value


@each_account
def test_live_calls_get_what_the_simulator_says(uid: int) -> None:
    program = filter.program(ARCH)
    numbers = {**NUMBER, **URING}
    # no descriptor of these is open, so what passes fails with an errno of the kernel's own and does no harm
    rows = [(numbers[call], arguments) for call, arguments, _ in NATIVE_ROWS if call in numbers]
    caught = [row for row in rows if run(program, ARCH.audit_arch, *row) == NOTIFY]
    refused = [row for row in rows if run(program, ARCH.audit_arch, *row) == ENOSYS]

    def act() -> None:
        for number, arguments in rows:
            got = errno_of(number, *(as_long(argument) for argument in arguments))
            if (number, arguments) in caught:
                assert got == ANSWER, (number, arguments, got)
            elif (number, arguments) in refused:
                assert got == errno.ENOSYS, (number, arguments, got)
            else:
                assert got not in (ANSWER, errno.ENOSYS), (number, arguments, got)

    with Filtered(act, uid=uid) as target:
        for number, arguments in caught:
            notification = target.receive()
            assert notification.tid == target.pid
            assert notification.nr == number
            assert notification.args[: len(arguments)] == arguments
            target.send(notification.id, error=ANSWER)
        target.finish()


@each_account
def test_no_new_privs_only_where_the_kernel_asks_for_it(uid: int) -> None:
    def act() -> None:
        with open("/proc/self/status", "rb") as file:
            (line,) = [line for line in file if line.startswith(b"NoNewPrivs")]
        assert int(line.split()[1]) == (0 if os.geteuid() == 0 else 1)

    with Filtered(act, uid=uid) as target:
        target.finish()


@each_account
def test_a_second_listener_is_refused(uid: int) -> None:
    def act() -> None:
        with pytest.raises(OSError) as caught:
            installation.install(ARCH, filter.program(ARCH))
        assert caught.value.errno == errno.EBUSY

    with Filtered(act, uid=uid) as target:
        target.finish()


@each_account
def test_without_a_supervisor_nothing_goes_out(uid: int) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]

    def act() -> None:
        sock = socket.socket()
        assert sock.connect_ex(("127.0.0.1", port)) == errno.ENOSYS
        assert errno_of(NUMBER["socket"], INET, DGRAM, 0) == errno.ENOSYS
        with pytest.raises(OSError) as caught:
            sock.sendto(b"x", FASTOPEN, ("127.0.0.1", port))
        assert caught.value.errno == errno.ENOSYS
        sock.close()

    with server, Filtered(act, uid=uid) as target:
        target.close_listener()
        target.finish()
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


@each_account
def test_children_and_threads_are_caught_too(uid: int) -> None:
    def act() -> None:
        child = os.fork()
        if child == 0:
            os._exit(errno_of(NUMBER["connect"], 1000, 0, 0))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == ANSWER

    with Filtered(act, uid=uid) as target:
        notification = target.receive()
        assert notification.tid != target.pid
        target.send(notification.id, error=ANSWER)
        target.finish()


def test_the_kernel_says_whether_calls_wait_through_signals() -> None:
    with Filtered(lambda: None) as target:
        release = tuple(map(int, platform.release().split("-")[0].split(".")[:2]))
        assert target.killable or release < (5, 19)
        target.finish()


def machine_code(code: bytes) -> Callable[[], int]:
    """A function made of these bytes, which takes nothing and returns a long."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    function = CFUNCTYPE(c_long)(addressof(c_char.from_buffer(page)))

    def call() -> int:
        return c_int(function()).value

    return call


def int_0x80(number: int, a: int, b: int, c: int) -> int:
    """A system call of i386 from a 64-bit program: what it returns, -errno for a failure."""
    code = (
        b"\x53"  # push rbx
        + b"".join(op + value.to_bytes(4, "little") for op, value in ((b"\xb8", number), (b"\xbb", a), (b"\xb9", b)))
        + b"\xba" + c.to_bytes(4, "little")
        + b"\xcd\x80"  # int 0x80
        + b"\x5b\xc3"  # pop rbx; ret
    )  # fmt: skip
    return machine_code(code)()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is x86's")
@each_account
def test_i386_calls_of_a_64_bit_program(uid: int) -> None:
    def probe() -> None:
        faulthandler.disable()  # pytest's, which would say all about the SIGSEGV
        assert int_0x80(20, 0, 0, 0) == os.getpid()

    try:
        as_account(uid, probe)
    except AssertionError:
        pytest.skip("this kernel has no IA32 emulation")

    def act() -> None:
        assert int_0x80(20, 0, 0, 0) == os.getpid()
        for number in (102, 345, 359, 362, 369, 370, 425, 426, 427):
            assert int_0x80(number, INET, STREAM, 0) == -errno.ENOSYS

    with Filtered(act, uid=uid) as target:
        target.finish()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 is x86-64's")
def test_x32_calls_of_a_64_bit_program() -> None:
    def act() -> None:
        for number in (41, 42, 44, 39, 519):
            assert errno_of(number | 0x40000000, INET, STREAM) == errno.ENOSYS

    with Filtered(act) as target:
        target.finish()
