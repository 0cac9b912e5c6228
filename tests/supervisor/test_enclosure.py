"""The enclosure, live, as root and as nobody: every address answers on port 53, and nothing else works."""

import ctypes
import encodings.idna  # noqa: F401  (nobody can't read root's library: what connect() wants late is loaded here)
import errno
import os
import resource
import select
import signal
import socket
import struct
import traceback
from collections.abc import Callable

import pytest

from pysocksify.supervisor.enclosure import Enclosure, EnclosureUnavailable, Refusal

NOBODY = 65534
ACCOUNTS = [os.geteuid(), *([NOBODY] if os.geteuid() == 0 else [])]
PATIENCE = 10
CLONE_NEWUSER = 0x10000000
SOL_IP, SOL_IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
IP_PKTINFO, IP_UNICAST_IF, IPV6_UNICAST_IF = 8, 50, 76

four, six = socket.AF_INET, socket.AF_INET6


def as_account(uid: int, act: Callable[[], None]) -> None:
    """Run in a forked child with that user id, and fail as it fails."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(PATIENCE * 2)
            if uid != os.geteuid():
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            act()
            os._exit(0)
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"status {status}: {said}"


each_account = pytest.mark.parametrize("uid", ACCOUNTS)


def target(enclosure: Enclosure, family: int) -> socket.socket:
    new = socket.socket(fileno=enclosure.socket(family, socket.SOCK_DGRAM, 0))
    new.settimeout(PATIENCE)
    return new


def answer_one(enclosure: Enclosure, family: int) -> str:
    """Answer one query in capitals from where it was sent to, and return that address."""
    server = enclosure.responder_sockets()[0 if family == four else 1]
    assert server.family == family
    data, ancillary, _, asker = server.recvmsg(512, 128)
    ((level, kind, info),) = ancillary
    if family == four:
        asked, info = socket.inet_ntop(four, info[8:12]), bytes(4) + info[8:12] + bytes(4)
    else:
        asked = socket.inet_ntop(six, info[:16])
    server.sendmsg([data.upper()], [(level, kind, info)], 0, asker)
    return asked


ASKED = [
    (four, "192.0.2.53", "192.0.2.53"),
    (four, "127.0.0.53", "127.0.0.53"),
    (four, "198.18.1.1", "198.18.1.1"),
    (four, "240.0.0.1", "240.0.0.1"),
    (four, "0.0.0.0", "127.0.0.1"),
    (six, "2001:db8::53", "2001:db8::53"),
    (six, "fd00::1", "fd00::1"),
    (six, "::1", "::1"),
    (six, "::ffff:192.0.2.53", "192.0.2.53"),
]


@each_account
def test_any_address_answers_on_port_53(uid: int) -> None:
    def act() -> None:
        enclosure = Enclosure.open(ipv6=True)
        for family, host, asked in ASKED:
            packet_family = six if ":" in asked else four
            connected = target(enclosure, family)
            connected.connect((host, 53))
            connected.send(b"query")
            assert answer_one(enclosure, packet_family) == asked
            assert connected.recv(512) == b"QUERY"
            if asked == host:
                assert connected.getpeername()[:2] == (host, 53)
            loose = target(enclosure, family)
            loose.sendto(b"query", (host, 53))
            assert answer_one(enclosure, packet_family) == asked
            data, source = loose.recvfrom(512)
            assert data == b"QUERY"
            assert source[:2] == (asked if ":" not in host or ":" in asked else f"::ffff:{asked}", 53)

    as_account(uid, act)


def exchange(mine: socket.socket, host: str) -> bytes:
    mine.connect((host, 443))
    mine.send(b"x")
    return mine.recv(1)


def bind_port_53(mine: socket.socket) -> None:
    mine.bind(("0.0.0.0", 53))


def share_port_53(mine: socket.socket) -> None:
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    mine.bind(("10.1.1.1", 53))


REFUSED: dict[str, tuple[int, Callable[[socket.socket], object], int]] = {
    "another port": (four, lambda s: exchange(s, "192.0.2.1"), errno.ECONNREFUSED),
    "IPv6": (six, lambda s: exchange(s, "2001:db8::1"), errno.ECONNREFUSED),
    "mapped": (six, lambda s: exchange(s, "::ffff:192.0.2.1"), errno.ECONNREFUSED),
    "broadcast": (four, lambda s: s.sendto(b"x", ("255.255.255.255", 9)), errno.EACCES),
    "a device": (four, lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0"), errno.ENODEV),
    "IP_PKTINFO": (
        four,
        lambda s: s.sendmsg([b"x"], [(SOL_IP, IP_PKTINFO, struct.pack("=i8x", 2))], 0, ("192.0.2.1", 9)),
        errno.ENODEV,
    ),
    "IPV6_PKTINFO": (
        six,
        lambda s: s.sendmsg([b"x"], [(SOL_IPV6, socket.IPV6_PKTINFO, struct.pack("=16xi", 2))], 0, ("2001:db8::1", 9)),
        errno.ENODEV,
    ),
    "IP_UNICAST_IF": (four, lambda s: s.setsockopt(SOL_IP, IP_UNICAST_IF, struct.pack("!i", 2)), errno.EADDRNOTAVAIL),
    "IPV6_UNICAST_IF": (
        six,
        lambda s: s.setsockopt(SOL_IPV6, IPV6_UNICAST_IF, struct.pack("!i", 2)),
        errno.EADDRNOTAVAIL,
    ),
    "a scope id": (six, lambda s: s.sendto(b"x", ("fe80::1", 53, 0, 2)), errno.ENETUNREACH),
    "a multicast scope": (six, lambda s: s.sendto(b"x", ("ff02::fb", 5353, 0, 2)), errno.ENETUNREACH),
    "our port": (four, bind_port_53, errno.EADDRINUSE),
    "our port, shared": (four, share_port_53, errno.EADDRINUSE),
}


@each_account
def test_nothing_else_works(uid: int) -> None:
    def act() -> None:
        enclosure = Enclosure.open(ipv6=True)
        for name, (family, attempt, expected) in REFUSED.items():
            with target(enclosure, family) as mine:
                with pytest.raises(OSError) as caught:
                    attempt(mine)
                assert caught.value.errno == expected, (name, caught.value)

    as_account(uid, act)


@each_account
def test_binding_to_an_address_of_the_machine(uid: int) -> None:
    def act() -> None:
        enclosure = Enclosure.open(ipv6=True)
        for family, own, server in ((four, "192.0.2.2", "192.0.2.53"), (six, "2001:db8::2", "2001:db8::53")):
            mine = target(enclosure, family)
            mine.bind((own, 0))
            mine.sendto(b"query", (server, 53))
            assert answer_one(enclosure, family) == server
            assert mine.recv(512) == b"QUERY"

    as_account(uid, act)


@each_account
def test_a_machine_without_ipv6(uid: int) -> None:
    def act() -> None:
        enclosure = Enclosure.open(ipv6=False)
        assert [each.family for each in enclosure.responder_sockets()] == [four]
        with pytest.raises(OSError) as caught:
            target(enclosure, six).connect(("2001:db8::53", 53))
        assert caught.value.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL)

    as_account(uid, act)


def wait_readable(fd: int) -> None:
    assert select.select([fd], [], [], PATIENCE)[0]


@each_account
def test_refusals_and_their_owners(uid: int) -> None:
    def act() -> None:
        enclosure = Enclosure.open(ipv6=True)
        assert enclosure.refusals is not None
        assert enclosure.refused() == []
        cases = [
            (four, "192.0.2.1", four, "192.0.2.1"),
            (six, "2001:db8::1", six, "2001:db8::1"),
            (six, "::ffff:192.0.2.1", four, "192.0.2.1"),
            (four, "224.0.0.251", four, "224.0.0.251"),
        ]
        for family, host, packet_family, shown in cases:
            with target(enclosure, family) as mine:
                for _ in range(3):
                    mine.sendto(b"x" * 1000, (host, 443))
                mine.sendto(b"x", (host, 53))  # isn't refused
                wait_readable(enclosure.refusals.fileno())
                port = mine.getsockname()[1]
                assert enclosure.refused() == [Refusal(family=packet_family, source_port=port, host=shown, port=443)], (
                    host
                )
                assert enclosure.owner(port, packet_family) == os.fstat(mine.fileno()).st_ino
        assert enclosure.owner(1, four) is None

    as_account(uid, act)


@each_account
def test_programs_of_the_target_talk_to_each_other(uid: int) -> None:
    def act() -> None:
        enclosure = Enclosure.open(ipv6=True)
        server, client = target(enclosure, four), target(enclosure, four)
        server.bind(("127.0.0.1", 0))
        client.sendto(b"hello", server.getsockname())
        data, asker = server.recvfrom(9)
        server.sendto(data.upper(), asker)
        assert client.recv(9) == b"HELLO"
        assert enclosure.refused() == []

    as_account(uid, act)


@each_account
def test_the_descriptor(uid: int) -> None:
    def act() -> None:
        enclosure = Enclosure.open(ipv6=True)
        blocking = enclosure.socket(four, socket.SOCK_DGRAM, 0)
        assert os.get_blocking(blocking)
        assert not os.get_inheritable(blocking)
        assert not os.get_blocking(enclosure.socket(six, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0))
        for arguments, expected in (
            ((four, socket.SOCK_DGRAM, socket.IPPROTO_TCP), errno.EPROTONOSUPPORT),
            ((four, socket.SOCK_DGRAM, socket.IPPROTO_ICMP), errno.EACCES),
            ((99, socket.SOCK_DGRAM, 0), errno.EAFNOSUPPORT),
        ):
            with pytest.raises(OSError) as caught:
                enclosure.socket(*arguments)
            assert caught.value.errno == expected, arguments
        os.close(enclosure.socket(four, socket.SOCK_DGRAM, 0))  # and goes on

    as_account(uid, act)


def test_the_maker_keeps_nothing_and_heeds_no_signal() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    enclosure = Enclosure.open(ipv6=True)
    os.close(write)
    try:
        wait_readable(read)
        assert os.read(read, 1) == b"", "the maker has the pipe's other end"
        os.close(enclosure.socket(four, socket.SOCK_DGRAM, 0))  # so it's done with what it made at first
        assert len(os.listdir(f"/proc/{enclosure.pid}/fd")) <= 2, "its channel, and perhaps that socket still"
        assert os.getsid(enclosure.pid) == enclosure.pid
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGALRM):
            os.kill(enclosure.pid, number)
        os.close(enclosure.socket(four, socket.SOCK_DGRAM, 0))
    finally:
        os.close(read)
        enclosure.close()
    assert not os.path.exists(f"/proc/{enclosure.pid}")


def test_signals_are_as_they_were() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    Enclosure.open(ipv6=False).close()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_dead_maker() -> None:
    enclosure = Enclosure.open(ipv6=False)
    given = enclosure.socket(four, socket.SOCK_DGRAM, 0)
    os.kill(enclosure.pid, signal.SIGKILL)
    os.waitid(os.P_PID, enclosure.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            enclosure.socket(four, socket.SOCK_DGRAM, 0)
        assert caught.value.errno == errno.ENETDOWN
    assert enclosure.owner(1, four) is None
    with socket.socket(fileno=given) as mine:
        mine.settimeout(PATIENCE)
        mine.sendto(b"query", ("192.0.2.53", 53))
        assert answer_one(enclosure, four) == "192.0.2.53"
        assert mine.recv(9) == b"QUERY"
    enclosure.close()


def test_the_maker_ends_with_its_supervisor() -> None:
    read, write = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        try:
            os.write(write, struct.pack("=i", Enclosure.open(ipv6=False).pid))
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    with open(read, "rb") as pipe:
        (maker,) = struct.unpack("=i", pipe.read(4))
    watch = os.pidfd_open(maker)
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    wait_readable(watch)
    os.close(watch)


def without_user_namespaces(*, root: bool) -> None:
    """Go into a user namespace in which no further one may be made."""
    uid = os.geteuid()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWUSER) == 0, os.strerror(ctypes.get_errno())
    if root:
        with open("/proc/self/uid_map", "w") as file:
            file.write(f"0 {uid} 1")
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")


@each_account
def test_user_namespaces_are_refused(uid: int) -> None:
    def act() -> None:
        without_user_namespaces(root=False)
        with pytest.raises(EnclosureUnavailable, match=r"user namespaces are refused here \(No space left on device\)"):
            Enclosure.open(ipv6=True)

    as_account(uid, act)


def test_root_needs_no_user_namespace() -> None:
    def act() -> None:
        without_user_namespaces(root=True)
        enclosure = Enclosure.open(ipv6=True)
        mine = target(enclosure, four)
        mine.sendto(b"query", ("192.0.2.53", 53))
        assert answer_one(enclosure, four) == "192.0.2.53"

    as_account(os.geteuid(), act)


@each_account
def test_no_descriptor_left(uid: int) -> None:
    """What the maker sends is then lost: EMFILE, as socket(2) has it, and it goes on."""

    def act() -> None:
        enclosure = Enclosure.open(ipv6=True)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        with pytest.raises(OSError) as caught:
            enclosure.socket(four, socket.SOCK_DGRAM, 0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.errno == errno.EMFILE
        os.close(enclosure.socket(four, socket.SOCK_DGRAM, 0))

    as_account(uid, act)
