"""A session's ends: no room in the epoll set at each of its watches, the server's end, and what the journal says."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysocksify.server import Limits, ServerSettings, Users, session, tls
from tests.lab.certificates import certificate
from tests.server.running import LIMIT, LOOPBACK, login, port, receive, running, socks4, socks5
from tests.server.stepped import Stepped, ended

UDP = socks5(0, b"\x01\0\0\0\0", cmd=3)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Stepped]:
    made = Stepped(ServerSettings(limits=getattr(request, "param", Limits())))
    yield made
    made.close()


@pytest.fixture
def destination() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        yield listener


def sent_away(server: Stepped, callback: str) -> None:
    """A client comes, and there is no room for this watch; its time for a handshake, less than 0.1 s, passes."""
    server.reactor.full_for = callback
    began = server.reactor.now()
    with server.connect() as client:
        server.reactor.until(lambda: ended(client, bytearray()))
    server.reactor.until(lambda: server.reactor.now() > began + 0.1)
    assert not server.server.session_count
    assert not server.sums.active


class TestNoRoom:
    @pytest.mark.parametrize("server", [Limits(handshake=0.05)], indirect=True)
    def test_for_a_client(self, server: Stepped) -> None:
        """It is sent away, counted no more, and nothing comes back to it when its time would have been over."""
        sent_away(server, "Handshake._receive")
        server.reactor.full_for = ""
        with server.connect():
            server.reactor.until(lambda: server.sums.active)

    @pytest.mark.parametrize("callback", ["Handshake._receive", "TlsTunnel._on_outer"])
    def test_for_a_client_in_tls(self, callback: str, tmp_path: Path) -> None:
        files = certificate(tmp_path, "IP:127.0.0.1")
        server = Stepped(ServerSettings(limits=Limits(handshake=0.05)), tls.context(str(files[0]), str(files[1])))
        sent_away(server, callback)
        server.close()

    def test_for_the_listener(self, server: Stepped) -> None:
        """When it was to accept again after a pause."""
        server.reactor.full_for = "Handshake._receive"
        with server.connect() as client:
            server.reactor.until(lambda: ended(client, bytearray()))
        server.reactor.full_for = "Server._watch.<locals>.<lambda>"
        began = server.reactor.now()
        server.reactor.until(lambda: server.reactor.now() > began + 0.2)
        server.reactor.full_for = ""
        with server.connect():
            server.reactor.until(lambda: server.sums.active)

    @pytest.mark.parametrize("callback", ["Relay._on_a", "Relay._on_b"])
    def test_for_its_relay(self, callback: str, server: Stepped, destination: socket.socket) -> None:
        """It has its reply already."""
        server.reactor.full_for = callback
        said = bytearray()
        with server.connect() as client:
            client.sendall(socks5(destination.getsockname()[1]))
            server.reactor.until(lambda: ended(client, said))
        server.reactor.until(lambda: not server.server.session_count)
        assert bytes(said[:4]) == b"\x05\x00\x05\x00"
        assert not server.sums.active
        assert server.sums.ended["connect", "general_failure"]
        with destination.accept()[0] as inner, pytest.raises(ConnectionResetError):
            inner.recv(1)


class TestJournal:
    def test_the_servers_end(self, server: Stepped, destination: socket.socket) -> None:
        """It isn't the client that went away."""
        with server.connect() as first, server.connect() as second:
            first.sendall(b"\x05")
            second.sendall(socks5(destination.getsockname()[1]))
            said = bytearray()
            server.reactor.until(lambda: ended(second, said) or len(said) == 12)
            server.server.close()
            assert [json.loads(line)["outcome"] for line in server.lines] == ["server ended"] * 2
            assert server.sums.ended["connect", "other"] == 1
            assert server.sums.failed["other"] == 1

    def test_the_servers_end_after_a_refusal(self, server: Stepped) -> None:
        with socket.socket() as nobody, server.connect() as client:
            nobody.bind(("127.0.0.1", 0))
            client.sendall(socks5(nobody.getsockname()[1]))
            said = bytearray()
            server.reactor.until(lambda: ended(client, said))
            server.server.close()
            assert "refused" in str(server.entry()["outcome"])
            assert server.sums.ended["connect", "refused"] == 1

    def test_the_limit_that_was_used(self, server: Stepped, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who is over a limit has less time."""
        monkeypatch.setattr(session, "OVER_LIMIT_HANDSHAKE", 0.05)
        server.server.settings = ServerSettings(limits=Limits(total=1))
        with server.connect(), server.connect() as second:
            server.reactor.until(lambda: ended(second, bytearray()))
            assert server.entry()["outcome"] == "handshake not done in 0.05 s"


def named(settings: ServerSettings, request: bytes) -> object:
    """The journal's `user` of who sends this while another one is there."""
    server = Stepped(settings)
    with server.connect() as first, server.connect() as second:
        first.sendall(b"\x05")
        second.sendall(request)
        server.reactor.until(lambda: ended(second, bytearray()))
    server.close()
    (entry,) = (entry for line in server.lines if (entry := json.loads(line)).get("version"))
    return entry["user"]


ALICE = Users.plain({b"alice": b"right"})
ONE = Limits(total=1)


class TestUser:
    """The name in the journal was proved, or nobody is asked to prove his."""

    @pytest.mark.parametrize("password", [b"right", b"wrong"])
    def test_over_a_limit_nobody_looks_at_a_login(self, password: bytes) -> None:
        request = b"\x05\x01\x02" + login(b"alice", password) + socks5(80)[3:]
        assert named(ServerSettings(users=ALICE, limits=ONE), request) is None

    @pytest.mark.parametrize("identd", [False, True])
    def test_a_user_id(self, identd: bool) -> None:
        assert named(ServerSettings(identd=identd, limits=ONE), socks4(80)) == (None if identd else "Fred")

    def test_a_login_where_only_identd_is_asked(self) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            request = b"\x05\x01\x02" + login(b"alice", b"x") + socks5(nobody.getsockname()[1])[3:]
            assert named(ServerSettings(identd=True), request) is None

    def test_over_its_own_limit(self) -> None:
        """Then it has proved who it is."""
        request = b"\x05\x01\x02" + login(b"alice", b"right") + b"\x05\x01\x00\x01" + LOOPBACK
        with (
            running(ServerSettings(users=ALICE, limits=Limits(per_user=1))) as server,
            socket.create_server(("127.0.0.1", 0)) as there,
            server.connect() as first,
            server.connect() as second,
        ):
            request += port(there.getsockname()[1])
            first.sendall(request)
            assert receive(first, 8)[5] == 0
            second.sendall(request)
            assert receive(second, 8)[5] == 1
            second.close()
            server.until(lambda: server.server.session_count == 1)
            assert "'alice' socks5" in server.lines[-1]
