"""The server inside this process, spoken to with bytes written by hand from the specifications."""

import socket
import struct
from collections.abc import Iterator

import pytest

from pysocksify.address import Address
from pysocksify.errors import ConfigError
from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.server import Limits, Server, ServerSettings, Users
from tests.server.running import (
    CASES,
    ECHO,
    LIMIT,
    LOOPBACK,
    NOBODYS,
    PAYLOAD,
    descriptors,
    each_protocol,
    http,
    login,
    need_ipv6,
    port,
    receive,
    receive_all,
    receive_head,
    receive_reply,
    running,
    socks4,
    socks4a,
    socks5,
    socks5_name,
)


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """One for a server that only listens."""
    reactor = Reactor()
    yield reactor
    reactor.close()


@pytest.fixture
def target() -> Iterator[socket.socket]:
    """A listening socket, the destination."""
    with socket.socket() as listener:
        listener.settimeout(LIMIT)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that never answers: a listener whose queue is full drops every SYN."""
    with socket.socket() as listener, socket.socket() as filler:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        filler.connect(listener.getsockname())
        yield listener.getsockname()[1]


class TestConnect:
    @pytest.mark.parametrize("cut", ["whole", "byte by byte"])
    @each_protocol
    def test_and_early_payload(self, target: socket.socket, protocol: str, cut: str) -> None:
        request, _, beginning = CASES[protocol]
        data = request(target.getsockname()[1]) + PAYLOAD
        with running(ServerSettings(hosts=ECHO)) as server, server.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in [data] if cut == "whole" else [data[i : i + 1] for i in range(len(data))]:
                client.sendall(piece)
            assert receive_reply(client, protocol).startswith(beginning)
            inner, _ = target.accept()
            with inner:
                assert receive(inner, len(PAYLOAD)) == PAYLOAD
                inner.sendall(b"answer")
                assert receive(client, 6) == b"answer"
                client.shutdown(socket.SHUT_WR)
                assert inner.recv(1) == b""
                inner.sendall(b"late answer")
            assert receive_all(client) == b"late answer"
            server.until(lambda: not server.server.session_count)

    @each_protocol
    def test_payload_and_end_before_the_reply(self, target: socket.socket, protocol: str) -> None:
        with running(ServerSettings(hosts=ECHO)) as server, server.connect() as client:
            client.sendall(CASES[protocol][0](target.getsockname()[1]) + PAYLOAD)
            client.shutdown(socket.SHUT_WR)
            inner, _ = target.accept()
            with inner:
                inner.settimeout(LIMIT)
                assert receive_all(inner) == PAYLOAD
                inner.sendall(b"answer")
            assert receive_reply(client, protocol)
            assert receive_all(client) == b"answer"

    def test_the_banner_follows_the_reply(self, target: socket.socket) -> None:
        with running() as server, server.connect() as client:
            client.sendall(socks5(target.getsockname()[1]))
            with target.accept()[0] as inner:
                inner.sendall(b"220 ready\r\n")
                assert receive(client, 12 + 11).endswith(b"220 ready\r\n")

    def test_bnd_addr_is_the_real_one(self, target: socket.socket) -> None:
        with running() as server, server.connect() as client:
            client.sendall(socks5(target.getsockname()[1]))
            inner, peer = target.accept()
            inner.close()
            assert receive(client, 12)[6:] == socket.inet_aton(peer[0]) + port(peer[1])

    def test_ipv6_both_sides(self) -> None:
        need_ipv6()
        with socket.socket(socket.AF_INET6) as target, running(host="::1") as server, server.connect() as client:
            target.bind(("::1", 0))
            target.listen()
            client.sendall(socks5(target.getsockname()[1], b"\x04" + socket.inet_pton(socket.AF_INET6, "::1")))
            inner, peer = target.accept()
            inner.close()
            reply = receive(client, 24)
            assert reply[:6] == b"\x05\x00\x05\x00\x00\x04"
            assert reply[6:] == socket.inet_pton(socket.AF_INET6, "::1") + port(peer[1])

    def test_http_ipv6_literal(self) -> None:
        need_ipv6()
        with socket.socket(socket.AF_INET6) as target, running() as server, server.connect() as client:
            target.bind(("::1", 0))
            target.listen()
            client.sendall(http(target.getsockname()[1], b"[::1]"))
            assert receive_head(client).startswith(b"HTTP/1.1 200")

    def test_a_reset_of_the_destination_reaches_the_client(self, target: socket.socket) -> None:
        with running() as server, server.connect() as client:
            client.sendall(socks5(target.getsockname()[1]))
            receive(client, 12)
            inner, _ = target.accept()
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            inner.close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)

    def test_300_clients_at_once_leave_nothing(self, target: socket.socket) -> None:
        target.listen(1000)
        with running() as server:
            before = descriptors()
            clients = [server.connect() for _ in range(300)]
            for client in clients:
                client.sendall(socks5(target.getsockname()[1]) + b"x")
            for client in clients:
                receive(client, 12)
            inners = [target.accept()[0] for _ in clients]
            for inner in inners:
                assert receive(inner, 1) == b"x"
                inner.close()
            for client in clients:
                assert client.recv(1) == b""
                client.close()
            server.until(lambda: not server.server.session_count)
            server.in_loop(server.server.close)
            assert descriptors() <= before


FAILURES = {
    "socks4": b"\x00\x5b",
    "socks5": b"\x05\x00\x05%c\x00\x01",
    "http": b"HTTP/1.1 %d",
}


def failure(protocol: str, rep: int, status: int) -> bytes:
    if protocol == "socks5":
        return FAILURES["socks5"] % rep
    return FAILURES["http"] % status if protocol == "http" else FAILURES["socks4"]


class TestFailures:
    @pytest.mark.parametrize("protocol", FAILURES)
    def test_refused(self, closed_port: int, protocol: str) -> None:
        with running(ServerSettings(hosts=ECHO)) as server, server.connect() as client:
            client.sendall(CASES[protocol][0](closed_port))
            assert receive_all(client).startswith(failure(protocol, 5, 503))
            client.close()
            server.until(lambda: any("connection refused" in line for line in server.lines))

    @pytest.mark.parametrize("protocol", FAILURES)
    def test_network_unreachable(self, protocol: str) -> None:
        """TCP to the broadcast address, which Linux answers with ENETUNREACH."""
        requests = {
            "socks4": socks4(80, b"\xff\xff\xff\xff"),
            "socks5": socks5(80, b"\x01\xff\xff\xff\xff"),
            "http": http(80, b"255.255.255.255"),
        }
        with running() as server, server.connect() as client:
            client.sendall(requests[protocol])
            assert receive_all(client).startswith(failure(protocol, 3, 502))

    @pytest.mark.parametrize("protocol", FAILURES)
    def test_unknown_name(self, protocol: str) -> None:
        requests = {
            "socks4": socks4a(80, NOBODYS),
            "socks5": socks5_name(80, NOBODYS),
            "http": http(80, NOBODYS),
        }
        with running() as server, server.connect() as client:
            client.sendall(requests[protocol])
            assert receive_all(client).startswith(failure(protocol, 4, 502))

    @pytest.mark.parametrize("protocol", FAILURES)
    def test_no_answer(self, black_hole: int, protocol: str) -> None:
        with running(ServerSettings(hosts=ECHO, limits=Limits(dial=0.1))) as server, server.connect() as client:
            client.sendall(CASES[protocol][0](black_hole))
            assert receive_all(client).startswith(failure(protocol, 6, 504))

    @pytest.mark.parametrize(
        ("request_bytes", "reply"),
        [
            (socks5(80, cmd=9), b"\x05\x00\x05\x07\x00\x01"),
            (socks5(80, b"\x09" + LOOPBACK), b"\x05\x00\x05\x08\x00\x01"),
            (b"\x04\x03\x00\x50" + LOOPBACK + b"\0", b"\x00\x5b"),
            (b"GET http://echo.test/ HTTP/1.1\r\nHost: echo.test\r\n\r\n", b"HTTP/1.1 405"),
        ],
        ids=["unknown command", "unknown address type", "socks4 udp associate", "get"],
    )
    def test_not_served(self, request_bytes: bytes, reply: bytes) -> None:
        with running() as server, server.connect() as client:
            client.sendall(request_bytes)
            assert receive_all(client).startswith(reply)

    def test_the_reply_is_not_overtaken_by_a_reset(self, closed_port: int) -> None:
        """A client in the middle of its payload: unread bytes at close() would make the kernel send RST."""
        with running() as server, server.connect() as client:
            client.sendall(socks5(closed_port) + bytes(100_000))
            reply = receive(client, 12)
            assert reply[3] == 5
            client.sendall(bytes(300_000))
            assert client.recv(1) == b""
            client.shutdown(socket.SHUT_WR)
            server.until(lambda: not server.server.session_count)

    @pytest.mark.parametrize("sent", [b"", b"\x05", b"\x05\x01\x00\x05\x01", b"CONNECT x"])
    def test_a_client_that_is_slow(self, sent: bytes) -> None:
        with running(ServerSettings(limits=Limits(handshake=0.05))) as server, server.connect() as client:
            client.sendall(sent)
            assert receive_all(client) in (b"", b"\x05\x00")
            server.until(lambda: not server.server.session_count)

    @pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x05\x00", b"\0" * 1000])
    def test_nonsense(self, sent: bytes) -> None:
        with running() as server, server.connect() as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            receive_all(client)
            server.until(lambda: not server.server.session_count)

    @pytest.mark.parametrize("how", ["closed", "reset"])
    def test_a_client_that_goes_away_during_the_dial(self, black_hole: int, how: str) -> None:
        with running() as server:
            before = descriptors()
            client = server.connect()
            client.sendall(socks5(black_hole))
            server.until(lambda: descriptors() == before + 3)  # the client's two ends, and the one that dials
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            server.until(lambda: not server.server.session_count)
            assert descriptors() == before

    def test_a_client_that_has_sent_all_is_not_gone(self, black_hole: int) -> None:
        with running(ServerSettings(limits=Limits(dial=0.3))) as server, server.connect() as client:
            client.sendall(socks5(black_hole) + PAYLOAD)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client).startswith(b"\x05\x00\x05\x06")


USERS = {b"alice": b"s:cret \xff", b"bob": b"b"}
LOCKED = ServerSettings(users=Users.plain(USERS), hosts=ECHO)


class TestLogin:
    def test_socks5(self, target: socket.socket) -> None:
        with running(LOCKED) as server, server.connect() as client:
            client.sendall(b"\x05\x02\x00\x02")
            assert receive(client, 2) == b"\x05\x02"
            client.sendall(login(b"alice", USERS[b"alice"]))
            assert receive(client, 2) == b"\x01\x00"
            client.sendall(socks5(target.getsockname()[1])[3:])
            assert receive(client, 10)[1] == 0

    @pytest.mark.parametrize(
        ("name", "password"),
        [(b"alice", b"xyzzy"), (b"alice", b"b"), (b"carol", b"b"), (b"bob", b"bb"), (b"carol", b" ")],
    )
    def test_socks5_wrong(self, name: bytes, password: bytes) -> None:
        with running(LOCKED) as server, server.connect() as client:
            client.sendall(b"\x05\x01\x02" + login(name, password) + socks5(80)[3:])
            reply = receive_all(client)
            assert reply[:3] == b"\x05\x02\x01"
            assert reply[3:] != b"\x00"
            assert len(reply) == 4
            assert not any(password.decode() in line for line in server.lines if len(password) > 2)

    def test_socks5_without(self) -> None:
        with running(LOCKED) as server, server.connect() as client:
            client.sendall(socks5(80))
            assert receive_all(client) == b"\x05\xff"

    @pytest.mark.parametrize("request_bytes", [socks4(80), socks4a(80), b"\x04\x01\x00\x50" + LOOPBACK + b"alice\0"])
    def test_socks4_can_prove_nothing(self, request_bytes: bytes) -> None:
        with running(LOCKED) as server, server.connect() as client:
            client.sendall(request_bytes)
            assert receive_all(client)[:2] in (b"\x00\x5b", b"\x00\x5d")

    def test_http_asked_for_it(self, target: socket.socket) -> None:
        number = target.getsockname()[1]
        with running(LOCKED) as server, server.connect() as client:
            client.sendall(http(number))
            head = receive_head(client)
            assert head.startswith(b"HTTP/1.1 407")
            assert b'Proxy-Authenticate: Basic realm="' in head
            client.sendall(http(number, extra=b"Proxy-Authorization: Basic Ym9iOmI=\r\n"))  # bob:b
            assert receive_head(client).startswith(b"HTTP/1.1 200")

    def test_http_wrong(self) -> None:
        with running(LOCKED) as server, server.connect() as client:
            client.sendall(http(80, extra=b"Proxy-Authorization: Basic Ym9iOmM=\r\n"))  # bob:c
            assert receive_all(client).startswith(b"HTTP/1.1 407")

    def test_passwords_are_not_in_the_settings_text(self) -> None:
        assert "cret" not in repr(LOCKED)


class TestListeners:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.77"])
    def test_others_are_kept_out(self, reactor: Reactor, host: str) -> None:
        server = Server(reactor, ServerSettings(), Report(lambda line: None))
        with pytest.raises(ConfigError, match="--open"):
            server.listen(Address(host, 0))

    @pytest.mark.parametrize("settings", [ServerSettings(open=True), LOCKED], ids=["open", "users"])
    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_unless_that_is_meant(self, reactor: Reactor, host: str, settings: ServerSettings) -> None:
        need_ipv6(host)
        server = Server(reactor, settings, Report(lambda line: None))
        assert server.listen(Address(host, 0)).port
        server.close()

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
    def test_loopback(self, reactor: Reactor, host: str) -> None:
        need_ipv6(host)
        server = Server(reactor, ServerSettings(), Report(lambda line: None))
        assert server.listen(Address(host, 0)).is_loopback
        server.close()

    def test_taken(self, reactor: Reactor, target: socket.socket) -> None:
        server = Server(reactor, ServerSettings(), Report(lambda line: None))
        with pytest.raises(ConfigError, match="in use"):
            server.listen(Address("127.0.0.1", target.getsockname()[1]))

    def test_a_name(self, reactor: Reactor) -> None:
        server = Server(reactor, ServerSettings(), Report(lambda line: None))
        with pytest.raises(ConfigError, match="not a name"):
            server.listen(Address("example.com", 0))

    def test_both_families_on_one_port(self, reactor: Reactor) -> None:
        need_ipv6()
        server = Server(reactor, ServerSettings(open=True), Report(lambda line: None))
        number = server.listen(Address("0.0.0.0", 0)).port
        assert server.listen(Address("::", number)).port == number
        server.close()

    def test_close_ends_everything(self, target: socket.socket, black_hole: int, closed_port: int) -> None:
        """A client in each state: handshake, dialling, relaying, parting."""
        with running() as server:
            before = descriptors()
            clients = [server.connect() for _ in range(4)]
            clients[0].sendall(b"\x05")
            clients[1].sendall(socks5(black_hole))
            clients[2].sendall(socks5(target.getsockname()[1]))
            clients[3].sendall(socks5(closed_port))
            receive(clients[2], 12)
            receive(clients[3], 12)
            server.until(lambda: server.server.session_count == 4)
            server.in_loop(server.server.close)
            assert not server.server.session_count
            with pytest.raises(ConnectionResetError):
                clients[2].recv(1)
            for client in clients:
                client.close()
            assert descriptors() < before
