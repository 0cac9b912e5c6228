"""BIND and UDP ASSOCIATE through a running server, by bytes written by hand from the specifications."""

import select
import socket
import struct
from collections.abc import Iterator

import pytest

from pysocksify.codes import Command
from pysocksify.route.rules import Pattern
from pysocksify.server import Limits, ServerSettings, Users
from pysocksify.server.access import Access, AccessRule
from tests.lab.wrapped import missing
from tests.server.running import (
    ECHO,
    LIMIT,
    LOOPBACK,
    NOBODYS,
    PAYLOAD,
    descriptors,
    login,
    port,
    receive,
    receive_all,
    running,
    socks5,
)
from tests.supervisor.holds import has_ipv6

RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 s; close() resets then
ANYBODY = bytes(4)
BOUND = b"\x7f\x00\x00\x01"

Place = tuple[str, int]


def bind4(host: bytes = LOOPBACK) -> bytes:
    return b"\x04\x02" + port(21) + host + b"Fred\0"


BINDS = {
    "socks4": bind4(),
    "socks4 for anybody": bind4(ANYBODY),
    "socks4a": b"\x04\x02" + port(21) + b"\0\0\0\1" + b"\0" + b"echo.test\0",
    "socks5": socks5(21, cmd=2),
    "socks5 for anybody": socks5(0, b"\x01" + ANYBODY, cmd=2),
    "socks5 name": socks5(21, b"\x03\x09echo.test", cmd=2),
}
each_bind = pytest.mark.parametrize("protocol", BINDS)
both = pytest.mark.parametrize("protocol", ["socks4", "socks5"])


def reply4(client: socket.socket) -> Place:
    """Where a reply that grants says."""
    data = receive(client, 8)
    assert data[:2] == b"\x00\x5a", data
    return socket.inet_ntoa(data[4:]), int.from_bytes(data[2:4], "big")


def reply5(client: socket.socket) -> Place:
    head = receive(client, 4)
    assert head[:3] == b"\x05\x00\x00", head
    family, size = (socket.AF_INET, 4) if head[3] == 1 else (socket.AF_INET6, 16)
    data = receive(client, size + 2)
    return socket.inet_ntop(family, data[:-2]), int.from_bytes(data[-2:], "big")


def reply(client: socket.socket, protocol: str) -> Place:
    return reply4(client) if protocol.startswith("socks4") else reply5(client)


def bind(client: socket.socket, protocol: str, payload: bytes = b"") -> Place:
    """Ask for a port; where it is."""
    client.sendall(BINDS[protocol] + payload)
    if protocol.startswith("socks5"):
        assert receive(client, 2) == b"\x05\x00"
    return reply(client, protocol)


def come(bound: Place, host: str = "127.0.0.1") -> socket.socket:
    """Connect there, from an address of this machine's."""
    return socket.create_connection(bound, timeout=LIMIT, source_address=(host, 0))


def come_in_vain(bound: Place) -> None:
    """Connect there from 127.0.0.2, to be reset: at once, or as soon as it's seen who that is."""
    with pytest.raises(ConnectionResetError), come(bound, "127.0.0.2") as stranger:
        stranger.recv(1)


class TestBind:
    @each_bind
    def test_both_replies(self, protocol: str) -> None:
        with running(ServerSettings(hosts=ECHO)) as server, server.connect() as client:
            bound = bind(client, protocol)
            assert bound[0] == "127.0.0.1"
            assert bound[1]
            with come(bound) as peer:
                assert reply(client, protocol) == peer.getsockname()
                client.sendall(b"hello")
                assert receive(peer, 5) == b"hello"
                client.shutdown(socket.SHUT_WR)
                assert peer.recv(1) == b""
                peer.sendall(b"late answer")
            assert receive_all(client) == b"late answer"
            server.until(lambda: not server.server.session_count)
            assert "bind" in server.lines[-1]
            assert ": ok, " in server.lines[-1]

    @each_bind
    def test_the_port_is_for_one(self, protocol: str) -> None:
        with running(ServerSettings(hosts=ECHO)) as server, server.connect() as client:
            bound = bind(client, protocol)
            with come(bound):
                reply(client, protocol)
                with pytest.raises(ConnectionRefusedError):
                    come(bound)

    @both
    def test_a_banner_follows_the_reply(self, protocol: str) -> None:
        with running() as server, server.connect() as client, come(bind(client, protocol)) as peer:
            peer.sendall(b"220 ready\r\n")
            peer.shutdown(socket.SHUT_WR)
            reply(client, protocol)
            assert receive_all(client) == b"220 ready\r\n"

    @both
    @pytest.mark.parametrize("ends", [False, True], ids=["stays", "ends"])
    def test_early_payload(self, protocol: str, ends: bool) -> None:
        """In the request's segment, and its end behind it: who has sent all isn't gone."""
        with running() as server, server.connect() as client:
            bound = bind(client, protocol, PAYLOAD)
            if ends:
                client.shutdown(socket.SHUT_WR)
            with come(bound) as peer:
                assert receive(peer, len(PAYLOAD)) == PAYLOAD
                peer.sendall(b"answer")
                reply(client, protocol)
                assert receive(client, 6) == b"answer"
                if ends:
                    assert peer.recv(1) == b""

    @pytest.mark.parametrize("protocol", ["socks4", "socks4a", "socks5", "socks5 name"])
    def test_a_stranger_is_reset(self, protocol: str) -> None:
        with running(ServerSettings(hosts=ECHO)) as server, server.connect() as client:
            bound = bind(client, protocol)
            come_in_vain(bound)
            with come(bound) as peer:
                assert reply(client, protocol) == peer.getsockname()

    @pytest.mark.parametrize("protocol", ["socks4 for anybody", "socks5 for anybody"])
    def test_anybody(self, protocol: str) -> None:
        with running() as server, server.connect() as client, come(bind(client, protocol), "127.0.0.2") as peer:
            assert reply(client, protocol) == peer.getsockname()

    def test_ipv6(self) -> None:
        if not has_ipv6():
            missing("there's no ::1")
        request = socks5(0, b"\x04" + socket.inet_pton(socket.AF_INET6, "::1"), cmd=2)
        with running(host="::1") as server, server.connect() as client:
            client.sendall(request)
            assert receive(client, 2) == b"\x05\x00"
            with socket.create_connection(reply5(client), timeout=LIMIT) as peer:
                assert reply5(client) == peer.getsockname()[:2]

    @both
    @pytest.mark.parametrize("how", ["end", "reset"])
    def test_a_client_that_goes(self, protocol: str, how: str) -> None:
        with running() as server, server.connect() as client:
            bound = bind(client, protocol)
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            server.until(lambda: not server.server.session_count)
            with pytest.raises(ConnectionRefusedError):
                come(bound)
            assert "client went away" in server.lines[-1]

    @pytest.mark.parametrize(("protocol", "refusal"), [("socks4", b"\x00\x5b"), ("socks5", b"\x05\x06")])
    def test_nobody_comes(self, protocol: str, refusal: bytes) -> None:
        with running(ServerSettings(limits=Limits(bind=0.1))) as server, server.connect() as client:
            bind(client, protocol)
            assert receive_all(client).startswith(refusal)
            client.close()
            server.until(lambda: not server.server.session_count)

    @pytest.mark.parametrize(("protocol", "refusal"), [("socks4a", b"\x00\x5b"), ("socks5 name", b"\x05\x00\x05\x04")])
    def test_a_name_that_nobody_has(self, protocol: str, refusal: bytes) -> None:
        with running() as server, server.connect() as client:
            begin, _, end = BINDS[protocol].partition(b"\x09echo.test" if protocol == "socks5 name" else b"echo.test")
            length = bytes([len(NOBODYS)]) if protocol == "socks5 name" else b""
            client.sendall(begin + length + NOBODYS + end)
            assert receive_all(client).startswith(refusal)

    @pytest.mark.parametrize("protocol", ["socks4 for anybody", "socks5 for anybody"])
    def test_whom_the_rules_keep_out_is_reset(self, protocol: str) -> None:
        denied = AccessRule(text="no", allow=False, destinations=(Pattern.parse("127.0.0.2"),))
        with running(ServerSettings(access=Access([denied]))) as server, server.connect() as client:
            bound = bind(client, protocol)
            come_in_vain(bound)
            with come(bound) as peer:
                assert reply(client, protocol) == peer.getsockname()


UDP = socks5(0, b"\x01" + ANYBODY, cmd=3)


def header(host: bytes, number: int, frag: int = 0) -> bytes:
    """RSV, FRAG, ATYP, address, port (RFC 1928 section 7); `host` begins with ATYP."""
    return bytes((0, 0, frag)) + host + port(number)


@pytest.fixture
def remote() -> Iterator[socket.socket]:
    """A datagram socket on loopback, the destination."""
    with datagrams() as sock:
        yield sock


def datagrams(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(LIMIT)
    sock.bind((host, 0))
    return sock


def associate(client: socket.socket, request: bytes = UDP) -> socket.socket:
    """A socket that is connected to the association's."""
    client.sendall(request)
    assert receive(client, 2) == b"\x05\x00"
    bound = reply5(client)
    assert bound[1]
    sock = datagrams(bound[0])
    sock.connect(bound)
    return sock


def answers(remote: socket.socket, expected: bytes) -> None:
    """The remote gets this and sends something back."""
    data, sender = remote.recvfrom(100)
    assert data == expected
    remote.sendto(b"answer to " + data, sender)


class TestUdpAssociate:
    def test_an_address(self, remote: socket.socket) -> None:
        number = remote.getsockname()[1]
        head = header(b"\x01" + LOOPBACK, number)
        with running() as server, server.connect() as client, associate(client) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
            sock.send(head + b"a")
            answers(remote, b"a")
            assert sock.recv(100) == head + b"answer to a"
            client.close()
            server.until(lambda: not server.server.session_count)
        assert "udp_associate" in server.lines[-1]
        assert "1 bytes up, 11 down" in server.lines[-1]

    def test_a_name(self, remote: socket.socket) -> None:
        """The answer comes with the address."""
        number = remote.getsockname()[1]
        with running(ServerSettings(hosts=ECHO)) as server, server.connect() as client, associate(client) as sock:
            sock.send(header(b"\x03\x09Echo.Test", number) + b"a")
            answers(remote, b"a")
            assert sock.recv(100) == header(b"\x01" + LOOPBACK, number) + b"answer to a"

    def test_ipv6(self) -> None:
        if not has_ipv6():
            missing("there's no ::1")
        with datagrams("::1") as remote, running(host="::1") as server, server.connect() as client:
            head = header(b"\x04" + socket.inet_pton(socket.AF_INET6, "::1"), remote.getsockname()[1])
            with associate(client) as sock:
                sock.send(head + b"a")
                answers(remote, b"a")
                assert sock.recv(100) == head + b"answer to a"

    def test_fragments(self, remote: socket.socket) -> None:
        number = remote.getsockname()[1]
        with running() as server, server.connect() as client, associate(client) as sock:
            for frag, data in ((1, b"one "), (2, b"whole "), (0x83, b"datagram")):
                sock.send(header(b"\x01" + LOOPBACK, number, frag) + data)
            assert remote.recv(100) == b"one whole datagram"

    def test_the_client_said_from_where(self, remote: socket.socket) -> None:
        """Another port of its host isn't listened to."""
        head = header(b"\x01" + LOOPBACK, remote.getsockname()[1])
        with running() as server, server.connect() as client, datagrams() as mine:
            request = socks5(mine.getsockname()[1], b"\x01" + LOOPBACK, cmd=3)
            with associate(client, request) as other:
                mine.connect(other.getpeername())
                other.send(head + b"other")
                mine.send(head + b"mine")
                assert remote.recv(100) == b"mine"

    @pytest.mark.parametrize("how", ["end", "reset"])
    def test_ends_with_its_connection(self, remote: socket.socket, how: str) -> None:
        """RFC 1928 section 7."""
        with running() as server, server.connect() as client, associate(client) as sock:
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            server.until(lambda: not server.server.session_count)
            sock.send(header(b"\x01" + LOOPBACK, remote.getsockname()[1]) + b"a")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(1)

    def test_what_comes_on_the_connection_is_nothing(self, remote: socket.socket) -> None:
        head = header(b"\x01" + LOOPBACK, remote.getsockname()[1])
        with running() as server, server.connect() as client, associate(client, UDP + PAYLOAD) as sock:
            client.sendall(bytes(100_000))
            sock.send(head + b"a")
            answers(remote, b"a")
            assert sock.recv(100) == head + b"answer to a"

    def test_idle(self) -> None:
        """Its connection ends with it."""
        settings = ServerSettings(limits=Limits(udp_idle=0.1))
        with running(settings) as server, server.connect() as client, associate(client) as sock:
            assert client.recv(1) == b""
            server.until(lambda: not server.server.session_count)
            sock.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(1)

    def test_rules_are_for_each_datagram(self, remote: socket.socket) -> None:
        """What is denied is dropped; of two that are sent, the second arrives."""
        with datagrams() as denied:
            number = denied.getsockname()[1]
            rule = AccessRule(text="no", allow=False, ports=((number, number),), commands=(Command.UDP_ASSOCIATE,))
            settings = ServerSettings(access=Access([rule]), hosts=ECHO)
            with running(settings) as server, server.connect() as client, associate(client) as sock:
                for host in (b"\x01" + LOOPBACK, b"\x03\x09echo.test"):
                    sock.send(header(host, number) + b"denied")
                sock.send(header(b"\x01" + LOOPBACK, remote.getsockname()[1]) + b"allowed")
                assert remote.recv(100) == b"allowed"
                assert not select.select([denied], [], [], 0)[0]

    def test_for_members(self, remote: socket.socket) -> None:
        settings = ServerSettings(users=Users.plain({b"alice": b"a"}))
        with running(settings) as server, server.connect() as client:
            client.sendall(b"\x05\x01\x02" + login(b"alice", b"a"))
            assert receive(client, 4) == b"\x05\x02\x01\x00"
            client.sendall(UDP[3:])
            with datagrams() as sock:
                sock.connect(reply5(client))
                sock.send(header(b"\x01" + LOOPBACK, remote.getsockname()[1]) + b"a")
                assert remote.recv(100) == b"a"

    def test_100_leave_nothing(self, remote: socket.socket) -> None:
        head = header(b"\x01" + LOOPBACK, remote.getsockname()[1])
        with running() as server:
            before = descriptors()
            for _ in range(100):
                with server.connect() as client, associate(client) as sock:
                    sock.send(head + b"a")
                    answers(remote, b"a")
                    sock.recv(100)
            server.until(lambda: not server.server.session_count)
            assert descriptors() == before


@pytest.mark.parametrize(
    ("request_bytes", "reply_begins"),
    [
        (b"\x04\x03" + port(80) + LOOPBACK + b"\0", b"\x00\x5b"),
        (b"\x05\x01\x00\x05\xf0\x00\x03\x09echo.test\x00\x00", b"\x05\x00\x05\x07"),
    ],
    ids=["socks4 udp", "tor's resolve"],
)
def test_refused(request_bytes: bytes, reply_begins: bytes) -> None:
    with running() as server, server.connect() as client:
        client.sendall(request_bytes)
        assert receive_all(client).startswith(reply_begins)
