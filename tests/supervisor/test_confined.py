"""Confined UDP sockets, live, as root and as nobody; first what they rely on of the kernel."""

import encodings.idna  # noqa: F401  (nobody can't read root's library: what sockets want late is loaded here)
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from pysocksify.address import Address
from pysocksify.linux import connect
from pysocksify.reactor import Reactor
from pysocksify.supervisor import confined
from pysocksify.supervisor.calls import CallRefused
from pysocksify.supervisor.confined import Confined, Datagram, Destination, bind_to_lo
from tests.engines.filtered import ACCOUNTS, as_account

PATIENCE = 10
LO = b"lo\0"
four, six = socket.AF_INET, socket.AF_INET6
HAS_IPV6 = os.path.exists("/proc/net/if_inet6")

each_account = pytest.mark.parametrize("uid", ACCOUNTS)


def sockaddr(family: int, host: str, port: int, scope: int = 0) -> bytes:
    """struct sockaddr_in (family, port, address, 8 zeros) or _in6 (family, port, flow, address, scope)."""
    packed = socket.inet_pton(six if ":" in host else four, host)
    if family == four:
        return struct.pack("=H", four) + struct.pack("!H", port) + packed + bytes(8)
    return struct.pack("=H", six) + struct.pack("!HI", port, 0) + packed + struct.pack("=I", scope)


def device(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)


class Place:
    """Confined sockets whose name servers answer in capitals."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, str, int]] = []
        self.refused: list[tuple[int, Address]] = []
        self.reactor = Reactor()
        self.confined = Confined(self.reactor, self._query, lambda tid, to: self.refused.append((tid, to)))

    def _query(self, message: bytes, asked: str, family: int, reply: Callable[[bytes], None]) -> None:
        self.asked.append((message, asked, family))
        reply(message.upper())

    def make(self, family: int) -> socket.socket:
        return socket.socket(fileno=self.confined.make(family, 0))

    def receive(self, sock: socket.socket) -> Datagram:
        """Serve until the socket has something."""
        while not select.select([sock], [], [], 0)[0]:
            timer = self.reactor.call_at(self.reactor.now() + PATIENCE, lambda: pytest.fail("nothing came"))
            self.reactor.run_once()
            timer.cancel()
        return self.confined.receive(sock, 0)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.confined.close()
    made.reactor.close()


class TestTheKernel:
    """What the module relies on."""

    @each_account
    def test_anybody_may_bind_a_socket_to_lo(self, uid: int) -> None:
        def act() -> None:
            for family in (four, six) if HAS_IPV6 else (four,):
                with socket.socket(family, socket.SOCK_DGRAM) as sock:
                    bind_to_lo(sock)
                    assert device(sock) == LO

        as_account(uid, act)

    @each_account
    def test_a_dissolving_connect_takes_it_off(self, uid: int) -> None:
        def act() -> None:
            with socket.socket(four, socket.SOCK_DGRAM) as sock:
                bind_to_lo(sock)
                sock.connect(("127.0.0.1", 9))
                assert device(sock) == LO
                assert connect(sock.fileno(), bytes(16)) == 0
                assert device(sock) == b""
                bind_to_lo(sock)
                assert device(sock) == LO

        as_account(uid, act)

    def test_a_socket_that_is_connected_to_itself_hears_nobody_else(self) -> None:
        with socket.socket(four, socket.SOCK_DGRAM) as dead, socket.socket(four, socket.SOCK_DGRAM) as other:
            dead.bind(("127.0.0.1", 0))
            dead.connect(dead.getsockname())
            other.connect(dead.getsockname())
            other.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                other.recv(1, socket.MSG_DONTWAIT)


ASKED = [
    # socket's family, address asked, as it's then shown, as the responder hears it
    (four, "192.0.2.53", "192.0.2.53", "192.0.2.53"),
    (four, "127.0.0.53", "127.0.0.53", "127.0.0.53"),
    (four, "0.0.0.0", "127.0.0.1", "127.0.0.1"),
    (six, "::ffff:192.0.2.53", "::ffff:192.0.2.53", "192.0.2.53"),
    (six, "2001:db8::53", "2001:db8::53", "2001:db8::53"),
    (six, "::", "::1", "::1"),
]


@each_account
def test_name_servers_answer_from_the_address_that_was_asked(uid: int) -> None:
    def act() -> None:
        place = Place()
        for family, host, shown, heard in ASKED:
            shows = sockaddr(family, shown, 53)
            with place.make(family) as loose:
                assert place.confined.send(1, loose, b"query", 0, sockaddr(family, host, 53)) == 5
                datagram = place.receive(loose)
                assert (datagram.data, datagram.source) == (b"QUERY", shows)
                assert place.confined.peer(loose) is None
            with place.make(family) as tied:
                assert place.confined.connect(tied, sockaddr(family, host, 53)) == 0
                assert place.confined.peer(tied) == shows
                tied.send(b"query")
                datagram = place.receive(tied)
                assert (datagram.data, datagram.source) == (b"QUERY", shows)
                assert place.confined.send(1, tied, b"once more", 0, None) == 9
                assert place.receive(tied).data == b"ONCE MORE"
            assert place.asked[-1] == (b"once more", heard, six if ":" in heard else four)
        place.confined.close()

    as_account(uid, act)


def test_a_link_local_name_server_keeps_its_scope(place: Place) -> None:
    asked = sockaddr(six, "fe80::53", 53, scope=7)
    with place.make(six) as sock:
        place.confined.send(1, sock, b"query", 0, asked)
        assert place.receive(sock).source == asked  # musl compares all of it
    assert place.asked == [(b"query", "fe80::53%7", six)]


def test_a_socket_with_two_name_servers_tells_them_apart(place: Place) -> None:
    servers = [sockaddr(four, host, 53) for host in ("192.0.2.1", "192.0.2.2", "192.0.2.1")]
    with place.make(four) as sock:
        for index, server in enumerate(servers):
            place.confined.send(1, sock, b"query %d" % index, 0, server)
        heard = [place.receive(sock) for _ in servers]
    assert {each.data: each.source for each in heard} == {b"QUERY %d" % i: server for i, server in enumerate(servers)}


@each_account
def test_nobody_else_is_there(uid: int) -> None:
    def act() -> None:
        place = Place()
        for family, host in ((four, "198.18.1.1"), (six, "fd00::1"), (six, "::ffff:192.0.2.1"), (four, "127.0.0.1")):
            there = sockaddr(family, host, 443)
            with place.make(family) as sock:
                with pytest.raises(CallRefused) as caught:
                    place.confined.send(77, sock, b"x", 0, there)
                assert caught.value.errno == errno.EPERM
                assert place.refused.pop() == (77, Address.of(host, 443))
                assert place.confined.connect(sock, there) == 0
                assert place.confined.peer(sock) == there
                own, shown = sock.getsockname()[0], "::ffff:127.0.0.1" if "." in host else "::1"
                assert own == ("127.0.0.1" if family == four else shown)
                sock.send(b"x")
                with pytest.raises(ConnectionRefusedError):
                    place.confined.receive(sock, 0)
        assert not place.refused, "connect() says nothing: getaddrinfo() connects to every address"

    as_account(uid, act)


@each_account
def test_dissolved_it_is_on_lo_again(uid: int) -> None:
    def act() -> None:
        place = Place()
        with place.make(four) as sock:
            place.confined.connect(sock, sockaddr(four, "192.0.2.53", 53))
            assert place.confined.connect(sock, bytes(16)) == 0
            assert device(sock) == LO
            assert place.confined.peer(sock) is None
            with pytest.raises(OSError) as caught:
                sock.send(b"x")
            assert caught.value.errno == errno.EDESTADDRREQ

    as_account(uid, act)


def test_only_a_connected_socket_may_leave_and_stays_connected(place: Place) -> None:
    with place.make(four) as sock:
        assert not place.confined.may_leave(sock)
        place.confined.connect(sock, sockaddr(four, "192.0.2.53", 53))
        assert place.confined.may_leave(sock)
        with pytest.raises(CallRefused) as caught:
            place.confined.connect(sock, bytes(16))
        assert caught.value.errno == errno.EPERM
        assert device(sock) == LO


def test_a_socket_that_isnt_on_lo_is_refused(place: Place) -> None:
    with socket.socket(four, socket.SOCK_DGRAM) as other:
        assert not place.confined.holds(other)
        with pytest.raises(CallRefused) as caught:
            place.confined.send(1, other, b"x", 0, sockaddr(four, "192.0.2.53", 53))
        assert caught.value.errno == errno.EPERM
        assert not place.confined.may_leave(other)
    with socket.socket(four, socket.SOCK_STREAM) as tcp:
        assert not place.confined.holds(tcp)


BAD = [
    (four, b"", errno.EINVAL),
    (four, sockaddr(four, "192.0.2.1", 53)[:15], errno.EINVAL),
    (four, sockaddr(six, "2001:db8::1", 53), errno.EAFNOSUPPORT),
    (four, struct.pack("=H", socket.AF_UNIX) + b"/a/path/of/some/length", errno.EAFNOSUPPORT),
    (four, sockaddr(four, "192.0.2.1", 0), errno.EINVAL),
]


@pytest.mark.parametrize(("family", "name", "error"), BAD)
def test_bad_names(place: Place, family: int, name: bytes, error: int) -> None:
    with place.make(family) as sock, pytest.raises(CallRefused) as caught:
        place.confined.send(1, sock, b"x", 0, name)
    assert caught.value.errno == error


def test_ipv6_only_sockets_reach_no_ipv4(place: Place) -> None:
    with place.make(six) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        assert place.confined.connect(sock, sockaddr(six, "::ffff:192.0.2.1", 53)) == errno.ENETUNREACH


def test_without_ipv6_nothing_of_it_is_reachable(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(confined._LOOPBACK, six, "2001:db8::1")  # an address that isn't on `lo`, as ::1 then
    with place.make(six) as sock:
        for port in (53, 443):
            with pytest.raises(CallRefused) as caught:
                place.confined.connect(sock, sockaddr(six, "2001:db8::53", port))
            assert caught.value.errno == errno.ENETUNREACH
        assert place.confined.connect(sock, sockaddr(six, "::ffff:192.0.2.1", 53)) == 0


def test_stand_ins_are_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "STAND_INS", 3)
    before = len(os.listdir("/proc/self/fd"))
    with place.make(four) as sock:
        for index in range(20):
            place.confined.send(1, sock, b"%d" % index, 0, sockaddr(four, f"192.0.2.{index}", 53))
        assert len(os.listdir("/proc/self/fd")) == before + 1 + 3
        assert place.receive(sock).source in [sockaddr(four, f"192.0.2.{index}", 53) for index in (17, 18, 19)]
        place.confined.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_datagrams_come_whole(place: Place) -> None:
    with place.make(four) as sock:
        place.confined.send(1, sock, b"x" * 65507, 0, sockaddr(four, "192.0.2.53", 53))
        assert place.receive(sock).data == b"X" * 65507
        with pytest.raises(OSError) as caught:
            place.confined.send(1, sock, b"x" * 65508, 0, sockaddr(four, "192.0.2.53", 53))
        assert caught.value.errno == errno.EMSGSIZE
        with pytest.raises(BlockingIOError):
            place.confined.receive(sock, 0)


def test_a_strangers_datagram_shows_the_stranger(place: Place) -> None:
    with place.make(four) as sock, socket.socket(four, socket.SOCK_DGRAM) as stranger:
        sock.bind(("127.0.0.1", 0))
        stranger.bind(("127.0.0.1", 0))
        stranger.sendto(b"x", sock.getsockname())
        assert place.receive(sock).source == sockaddr(four, "127.0.0.1", stranger.getsockname()[1])


def test_destinations_are_what_the_kernel_takes_them_for() -> None:
    assert str(Destination.of(sockaddr(four, "0.0.0.0", 53), four)) == "127.0.0.1:53"
    assert Destination.of(sockaddr(six, "2001:db8::1", 53, scope=3), six).scope == 0
    assert Destination.of(sockaddr(six, "fe80::1", 53, scope=3), six).scope == 3
    assert Destination.of(sockaddr(six, "::ffff:192.0.2.1", 53), six).sockaddr(four) == sockaddr(four, "192.0.2.1", 53)
