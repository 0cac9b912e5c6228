"""Who is let in and what for: limits, rules, chains, the server's own loopback, identds, idleness; each protocol's
reply."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysocksify.server import Limits, ServerSettings, Users
from pysocksify.server.access import Access, AccessRule
from pysocksify.server.files import load
from tests.lab import proxies, town
from tests.lab.accounts import Account
from tests.lab.children import Child
from tests.lab.proxies import Server
from tests.server.running import (
    CASES,
    ECHO,
    LIMIT,
    LOOPBACK,
    Running,
    http,
    login,
    port,
    receive,
    receive_all,
    receive_reply,
    running,
    socks4,
    socks4a,
    socks5,
    socks5_name,
)

OVER = {"socks4": b"\x00\x5b", "socks5": b"\x05\x00\x05\x01", "http": b"HTTP/1.1 503"}
DENIED = {"socks4": b"\x00\x5b", "socks5": b"\x05\x00\x05\x02", "http": b"HTTP/1.1 403"}
each_protocol = pytest.mark.parametrize("protocol", OVER)
BIND4 = b"\x04\x02" + port(21) + b"\0\0\0\0" + b"Fred\0"
UDP = socks5(0, b"\x01\0\0\0\0", cmd=3)


@pytest.fixture
def destination() -> Iterator[socket.socket]:
    """A listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        yield listener


class TestLimits:
    @pytest.mark.parametrize("limits", [Limits(total=1), Limits(per_source=1)], ids=["total", "per source"])
    @each_protocol
    def test_one_too_many(self, destination: socket.socket, protocol: str, limits: Limits) -> None:
        """It is told, the one before stays, and the one after it gets in."""
        request = CASES[protocol][0](destination.getsockname()[1])
        with running(ServerSettings(hosts=ECHO, limits=limits)) as server:
            with server.connect() as first, server.connect() as second:
                first.sendall(request)
                receive_reply(first, protocol)
                second.sendall(request)
                assert receive_all(second).startswith(OVER[protocol])
                with destination.accept()[0] as inner:
                    first.sendall(b"x")
                    assert receive(inner, 1) == b"x"
            server.until(lambda: not server.server.session_count)
            assert server.counts.sums().ended["connect", "over_limit"] == 1
            with server.connect() as third:
                third.sendall(request)
                assert receive_reply(third, protocol).startswith(CASES[protocol][2])

    @pytest.mark.parametrize("protocol", ["socks5", "http"])
    def test_per_user(self, destination: socket.socket, protocol: str) -> None:
        number = destination.getsockname()[1]
        settings = ServerSettings(users=Users.plain({b"al": b"a", b"bo": b"b"}), limits=Limits(per_user=1))
        basic = {"al": b"YWw6YQ==", "bo": b"Ym86Yg=="}

        def answer(client: socket.socket, user: str) -> bytes:
            if protocol == "http":
                client.sendall(http(number, b"127.0.0.1", b"Proxy-Authorization: Basic " + basic[user] + b"\r\n"))
                return receive(client, 12)
            client.sendall(b"\x05\x01\x02" + login(user.encode(), user[:1].encode()) + socks5(number)[3:])
            return receive(client, 7)[2:]

        with running(settings) as server, server.connect() as first, server.connect() as second:
            granted = b"HTTP/1.1 200" if protocol == "http" else b"\x01\x00\x05\x00\x00"
            over = b"HTTP/1.1 503" if protocol == "http" else b"\x01\x00\x05\x01\x00"
            assert answer(first, "al") == granted
            assert answer(second, "al") == over
            with server.connect() as other:
                assert answer(other, "bo") == granted
            first.close()
            second.close()
            server.until(lambda: not server.server.session_count)
            with server.connect() as later:
                assert answer(later, "al") == granted

    @pytest.mark.parametrize("request_bytes", [BIND4, socks5(0, b"\x01\0\0\0\0", cmd=2), UDP], ids=["4", "5", "udp"])
    def test_other_commands_count(self, request_bytes: bytes) -> None:
        with running(ServerSettings(limits=Limits(total=1))) as server, server.connect() as first:
            first.sendall(request_bytes)
            receive(first, 8)
            with server.connect() as second:
                second.sendall(request_bytes)
                assert receive_all(second).startswith(OVER["socks4" if request_bytes is BIND4 else "socks5"])

    def test_handshakes_count(self) -> None:
        with running(ServerSettings(limits=Limits(total=1))) as server, server.connect() as first:
            first.sendall(b"\x05")
            server.until(lambda: server.server.session_count)
            with server.connect() as second:
                second.sendall(socks5(80))
                assert receive_all(second).startswith(OVER["socks5"])


RULES = {
    "a name": 'match = ["echo.test"]',
    "a network": 'match = ["127.0.0.0/8"]',
    "a port": "ports = [{port}]",
    "a client": 'sources = ["127.0.0.1"]',
    "a command": 'commands = ["connect"]',
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.toml"


def written(file: Path, text: str) -> ServerSettings:
    """Settings as the server's file has them."""
    file.write_text(f"{text}\n[hosts]\n'echo.test' = '127.0.0.1'\n")
    return load(str(file), {}, {}).settings


class TestRules:
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("protocol", CASES)
    def test_denied(self, destination: socket.socket, file: Path, protocol: str, rule: str) -> None:
        """A name is found out by its address too; a client that names the address isn't caught by a rule for names."""
        number = destination.getsockname()[1]
        settings = written(file, f'[[access]]\naction = "deny"\n{RULES[rule].format(port=number)}')
        with running(settings) as server, server.connect() as client:
            client.sendall(CASES[protocol][0](number))
            if rule == "a name" and protocol in ("socks4", "socks5"):
                assert receive_reply(client, protocol).startswith(CASES[protocol][2])
            else:
                assert receive_all(client).startswith(DENIED[protocol.removesuffix(" name").removesuffix("a")])

    @pytest.mark.parametrize(
        ("request_bytes", "command"),
        [(BIND4, "bind"), (socks5(0, b"\x01\0\0\0\0", cmd=2), "bind"), (UDP, "udp")],
        ids=["socks4 bind", "socks5 bind", "udp"],
    )
    def test_commands(self, file: Path, request_bytes: bytes, command: str) -> None:
        settings = written(file, f'[[access]]\naction = "deny"\ncommands = ["{command}"]')
        with running(settings) as server, server.connect() as client:
            client.sendall(request_bytes)
            assert receive_all(client).startswith(DENIED["socks4" if request_bytes is BIND4 else "socks5"])

    def test_users(self, destination: socket.socket) -> None:
        number = destination.getsockname()[1]
        rules = Access([AccessRule(text="al may", allow=True, users=("al",))], default=False)
        settings = ServerSettings(users=Users.plain({b"al": b"a", b"bo": b"b"}), access=rules)
        with running(settings) as server:
            for name, password, rep in ((b"al", b"a", 0), (b"bo", b"b", 2)):
                with server.connect() as client:
                    client.sendall(b"\x05\x01\x02" + login(name, password) + socks5(number)[3:])
                    assert receive(client, 6)[4:] == bytes((5, rep))

    def test_new_rules_are_for_those_who_come(self, destination: socket.socket, file: Path) -> None:
        """As after SIGHUP: who is there goes on."""
        with running() as server, server.connect() as before:
            before.sendall(socks5(destination.getsockname()[1]))
            receive(before, 12)
            settings = written(file, 'access_default = "deny"')

            def reload() -> None:
                server.server.settings = settings

            server.in_loop(reload)
            with server.connect() as after, destination.accept()[0] as inner:
                after.sendall(socks5(destination.getsockname()[1]))
                assert receive_all(after).startswith(DENIED["socks5"])
                before.sendall(b"x")
                assert receive(inner, 1) == b"x"


CHAINED = """
hops = ["{hop}"]
[[rules]]
match = ["denied.test"]
to = "deny"
[[rules]]
match = ["198.51.100.0/24"]
to = "deny"
"""
BY_NAME: dict[str, Callable[..., bytes]] = {"socks4": socks4a, "socks5": socks5_name, "http": http}
REFUSED = {"socks4": b"\x00\x5b", "socks5": b"\x05\x00\x05\x05", "http": b"HTTP/1.1 503"}


@contextlib.contextmanager
def chained(file: Path, hop: str, more: str = "") -> Iterator[tuple[Running, Running]]:
    """A server, and one before it that goes through it."""
    with running(ServerSettings(hosts=ECHO)) as far:
        url = f"{hop}://{far.address}"
        with running(written(file, CHAINED.format(hop=url) + more)) as near:
            yield near, far


class TestChains:
    @pytest.mark.parametrize("hop", ["socks4a", "socks5", "http"])
    @each_protocol
    def test_through_another_server(self, destination: socket.socket, file: Path, protocol: str, hop: str) -> None:
        """With early payload; the one that goes through says so."""
        with chained(file, hop) as (near, far), near.connect() as client:
            client.sendall(BY_NAME[protocol](destination.getsockname()[1]) + b"early")
            assert receive_reply(client, protocol).startswith(CASES[protocol][2])
            with destination.accept()[0] as inner:
                assert receive(inner, 5) == b"early"
                inner.sendall(b"answer")
                assert receive(client, 6) == b"answer"
            client.close()
            near.until(lambda: not near.server.session_count)
            far.until(lambda: not far.server.session_count)
        assert f"through {hop}://" in near.lines[-1]
        assert f"{hop} -> echo.test:" in far.lines[-1]

    @each_protocol
    def test_denied(self, file: Path, protocol: str) -> None:
        with chained(file, "socks5") as (near, far), near.connect() as client:
            client.sendall(BY_NAME[protocol](80, b"denied.test"))
            assert receive_all(client).startswith(DENIED[protocol])
            assert not far.lines

    def test_direct(self, destination: socket.socket, file: Path) -> None:
        rule = '[[rules]]\nmatch = ["echo.test"]\nto = "direct"\n'
        with chained(file, "socks5", rule) as (near, far), near.connect() as client:
            client.sendall(socks5_name(destination.getsockname()[1]))
            receive(client, 12)
            assert not far.server.session_count
            assert not far.lines

    @each_protocol
    def test_what_the_last_one_says_comes_through(self, file: Path, protocol: str) -> None:
        with socket.socket() as nobody, chained(file, "socks5") as (near, _), near.connect() as client:
            nobody.bind(("127.0.0.1", 0))
            client.sendall(BY_NAME[protocol](nobody.getsockname()[1]))
            assert receive_all(client).startswith(REFUSED[protocol])

    @each_protocol
    def test_a_hop_that_has_no_connect(self, destination: socket.socket, file: Path, protocol: str) -> None:
        """405 would tell the client that this server has none."""
        answers = {"socks4": b"\x00\x5b", "socks5": b"\x05\x00\x05\x01", "http": b"HTTP/1.1 502"}
        hop = f"http://127.0.0.1:{destination.getsockname()[1]}"
        with running(written(file, CHAINED.format(hop=hop))) as near, near.connect() as client:
            client.sendall(BY_NAME[protocol](80))
            with destination.accept()[0] as inner:
                inner.settimeout(LIMIT)
                assert inner.recv(1000).startswith(b"CONNECT ")
                inner.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
                assert receive_all(client).startswith(answers[protocol])

    @pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
    @each_protocol
    def test_a_dead_hop_says_nothing_of_the_destination(self, file: Path, protocol: str, last: bool) -> None:
        """Whichever hop it is: nobody has refused the client's destination."""
        answers = {"socks4": b"\x00\x5b", "socks5": b"\x05\x00\x05\x01", "http": b"HTTP/1.1 502"}
        with socket.socket() as nobody, running() as far:
            nobody.bind(("127.0.0.1", 0))
            dead = f"socks5://127.0.0.1:{nobody.getsockname()[1]}"
            hops = f'socks5://{far.address}", "{dead}' if last else dead
            settings = written(file, CHAINED.format(hop=hops))
            with running(settings) as server, server.connect() as client:
                client.sendall(BY_NAME[protocol](80))
                assert receive_all(client).startswith(answers[protocol])
                client.close()
                server.until(lambda: not server.server.session_count)
                assert "a proxy on the way failed" in server.lines[-1]

    @pytest.mark.parametrize(
        ("request_bytes", "reply"),
        [
            (BIND4, b"\x00\x5b"),
            (socks5(0, b"\x01\0\0\0\0", cmd=2), b"\x05\x00\x05\x07"),
            (socks5(21, b"\x03\x09echo.test", cmd=2), b"\x05\x00\x05\x07"),
            (socks5(21, b"\x03\x0bdenied.test", cmd=2), b"\x05\x00\x05\x02"),
            (socks5(21, b"\x01\xc6\x33\x64\x02", cmd=2), b"\x05\x00\x05\x02"),
            (UDP, b"\x05\x00\x05\x07"),
        ],
        ids=["socks4 bind", "socks5 bind", "bind for a name", "bind denied", "bind denied by address", "udp"],
    )
    def test_only_connect(self, file: Path, request_bytes: bytes, reply: bytes) -> None:
        with chained(file, "socks5") as (near, _), near.connect() as client:
            client.sendall(request_bytes)
            assert receive_all(client).startswith(reply)

    def test_datagrams_to_what_is_direct(self, file: Path) -> None:
        """An association is had when it's of use; what goes through the chain is dropped."""
        rule = '[[rules]]\nmatch = ["echo.test"]\nto = "direct"\n'
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as remote,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine,
            chained(file, "socks5", rule) as (near, _),
            near.connect() as client,
        ):
            remote.bind(("127.0.0.1", 0))
            remote.settimeout(LIMIT)
            client.sendall(UDP)
            bound = int.from_bytes(receive(client, 12)[10:], "big")
            number = port(remote.getsockname()[1])
            for name in (b"other.test", b"echo.test"):
                mine.sendto(b"\0\0\0\x03" + bytes([len(name)]) + name + number + name, ("127.0.0.1", bound))
            assert remote.recv(100) == b"echo.test"


class TestIdle:
    def test_both_ends_hear_of_it(self, destination: socket.socket) -> None:
        with running(ServerSettings(limits=Limits(idle=0.2))) as server, server.connect() as client:
            client.sendall(socks5(destination.getsockname()[1]))
            receive(client, 12)
            with destination.accept()[0] as inner:
                inner.settimeout(LIMIT)
                for sock in (client, inner):
                    with pytest.raises(ConnectionResetError):
                        sock.recv(1)
            server.until(lambda: not server.server.session_count)
            assert "idle for 0.2 s" in server.lines[-1]

    def test_what_moves_stays(self, destination: socket.socket) -> None:
        with running(ServerSettings(limits=Limits(idle=1.0))) as server, server.connect() as client:
            client.sendall(socks5(destination.getsockname()[1]))
            receive(client, 12)
            with destination.accept()[0] as inner:
                end = time.monotonic() + 2.0
                while time.monotonic() < end:
                    inner.sendall(b"x")
                    assert receive(client, 1) == b"x"


OTHERS = [
    pytest.param(b"127.0.0.1", id="address"),
    pytest.param(b"127.1.2.3", id="another"),
    pytest.param(b"0.0.0.0", id="unspecified"),
    pytest.param(b"localhost", id="localhost"),
    pytest.param(b"any.localhost", id="below localhost"),
    pytest.param(b"inside.test", id="name"),
    pytest.param(b"[::1]", id="ipv6"),
    pytest.param(b"[::ffff:127.0.0.1]", id="mapped"),
    pytest.param(b"[::]", id="unspecified ipv6"),
]


@pytest.fixture(scope="module")
def lab_server(lab_town: town.Town, user_account: Account) -> Iterator[Server]:
    """The server on the proxy host, open to everybody; inside.test is its loopback."""
    port = town.free_port(lab_town.proxy, town.PROXY)
    words = ("--listen", f"0.0.0.0:{port}", "--open", "--resolve", "inside.test=127.0.0.1")
    child = Child(*user_account.command(*user_account.server, *words), namespace=lab_town.proxy)
    made = proxies.ready(lab_town, child, name="lab", port=port, schemes=(), login=False)
    yield made
    made.stop()


@pytest.fixture
def inside(lab_town: town.Town) -> Iterator[int]:
    """A port on the loopback of the proxy host that takes connections and datagrams; who comes there got in."""
    with town.listener(lab_town.proxy, "127.0.0.1") as listener:
        yield listener.getsockname()[1]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces")
class TestOwnLoopback:
    @pytest.mark.parametrize("host", OTHERS)
    def test_refused_to_others(self, host: bytes, lab_town: town.Town, lab_server: Server, inside: int) -> None:
        with town.inside(lab_town.closed):
            for protocol in BY_NAME:
                name = host if protocol == "http" else host.strip(b"[]")
                with socket.create_connection((town.PROXY, lab_server.port), timeout=LIMIT) as client:
                    client.sendall(BY_NAME[protocol](inside, name))
                    answer = receive_all(client)
                    assert answer.startswith(DENIED[protocol]), answer

    @pytest.mark.parametrize(
        ("request_bytes", "reply"),
        [
            (socks4(80), b"\x00\x5b"),
            (socks5(80), b"\x05\x00\x05\x02"),
            (socks5(80, b"\x04" + bytes(15) + b"\x01"), b"\x05\x00\x05\x02"),
            (socks5(80, cmd=2), b"\x05\x00\x05\x02"),
            (b"\x04\x02" + port(21) + LOOPBACK + b"\0", b"\x00\x5b"),
        ],
        ids=["socks4", "socks5", "socks5 ipv6", "socks5 bind", "socks4 bind"],
    )
    def test_by_address(self, request_bytes: bytes, reply: bytes, lab_town: town.Town, lab_server: Server) -> None:
        with (
            town.inside(lab_town.closed),
            socket.create_connection((town.PROXY, lab_server.port), timeout=LIMIT) as client,
        ):
            client.sendall(request_bytes)
            assert receive_all(client).startswith(reply)

    def test_datagrams(self, lab_town: town.Town, lab_server: Server) -> None:
        """Those to loopback are dropped: of all that are sent only the last one arrives."""
        with town.inside(lab_town.proxy):
            inner, outer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        with inner, outer, town.inside(lab_town.open):
            inner.bind(("127.0.0.1", 0))
            outer.bind((town.EXIT, 0))
            outer.settimeout(LIMIT)
            with (
                socket.create_connection((town.PROXY_FROM_OPEN, lab_server.port), timeout=LIMIT) as client,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine,
            ):
                client.sendall(UDP)
                bound = int.from_bytes(receive(client, 12)[10:], "big")
                number = inner.getsockname()[1]
                hosts = (b"\x01" + LOOPBACK, b"\x03\x09localhost", b"\x03\x0binside.test", b"\x01\0\0\0\0")
                for host in hosts:
                    mine.sendto(b"\0\0\0" + host + port(number) + b"in", (town.PROXY_FROM_OPEN, bound))
                last = b"\0\0\0\x01" + socket.inet_aton(town.EXIT) + port(outer.getsockname()[1]) + b"out"
                mine.sendto(last, (town.PROXY_FROM_OPEN, bound))
                assert outer.recv(100) == b"out"
                inner.setblocking(False)
                with pytest.raises(BlockingIOError):
                    inner.recv(100)

    @pytest.mark.parametrize("protocol", ["socks4", "socks4a", "socks5", "socks5 name", "http"])
    def test_not_refused_there(self, protocol: str, lab_town: town.Town, lab_server: Server, inside: int) -> None:
        requests = {
            "socks4": socks4(inside),
            "socks4a": socks4a(inside, b"inside.test"),
            "socks5": socks5(inside),
            "socks5 name": socks5_name(inside, b"localhost"),
            "http": http(inside, b"127.0.0.1"),
        }
        with (
            town.inside(lab_town.proxy),
            socket.create_connection(("127.0.0.1", lab_server.port), timeout=LIMIT) as client,
        ):
            client.sendall(requests[protocol])
            assert receive_reply(client, protocol).startswith(CASES[protocol][2])


IDENTD = 113  # RFC 1413 section 2


@contextlib.contextmanager
def identd(namespace: str, answer: str) -> Iterator[None]:
    """An identd there that says this about the first connection that it is asked about."""
    listener = town.listener(namespace, town.OPEN, IDENTD)
    listener.settimeout(LIMIT)

    def serve() -> None:
        with listener.accept()[0] as asker:
            asker.settimeout(LIMIT)
            question = b""
            while not question.endswith(b"\r\n"):
                question += receive(asker, 1)
            asker.sendall(question.strip() + f" : {answer}\r\n".encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # whoever waits in accept() is let go
        thread.join(LIMIT)
        listener.close()


@pytest.fixture(scope="module")
def asking_server(lab_town: town.Town, user_account: Account) -> Iterator[Server]:
    """The server on the proxy host, which asks its SOCKS4 clients' identds."""
    port = town.free_port(lab_town.proxy, town.PROXY)
    words = ("--listen", f"0.0.0.0:{port}", "--open", "--identd", "-v")
    child = Child(*user_account.command(*user_account.server, *words), namespace=lab_town.proxy)
    made = proxies.ready(lab_town, child, name="asking", port=port, schemes=(), login=False)
    yield made
    made.stop()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces")
class TestIdentd:
    """In the open client: the closed one's firewall lets no identd answer."""

    @pytest.fixture
    def client(self, lab_town: town.Town, asking_server: Server) -> Iterator[socket.socket]:
        with town.inside(lab_town.open):
            client = socket.create_connection((town.PROXY_FROM_OPEN, asking_server.port), timeout=LIMIT)
        with client:
            yield client

    @pytest.fixture
    def listening(self, lab_town: town.Town) -> Iterator[int]:
        with town.listener(lab_town.proxy, town.EXIT) as listener:
            yield listener.getsockname()[1]

    @pytest.mark.parametrize(
        ("answer", "cd"),
        [
            ("USERID : UNIX : Fred", 90),
            ("USERID : UNIX : Barney", 93),
            ("USERID : UNIX : fred", 93),
            ("ERROR : HIDDEN-USER", 93),
            ("nonsense", 92),
        ],
    )
    def test_it_says(self, answer: str, cd: int, lab_town: town.Town, client: socket.socket, listening: int) -> None:
        with identd(lab_town.open, answer):
            client.sendall(socks4(listening, socket.inet_aton(town.EXIT)))
            assert receive(client, 8)[:2] == bytes((0, cd))

    def test_it_is_asked_for_bind(self, lab_town: town.Town, client: socket.socket) -> None:
        with identd(lab_town.open, "USERID : UNIX : Barney"):
            client.sendall(BIND4)
            assert receive_all(client)[:2] == b"\x00\x5d"

    def test_nobody_is_there(self, client: socket.socket) -> None:
        client.sendall(socks4(80, socket.inet_aton(town.EXIT)))
        assert receive_all(client)[:2] == b"\x00\x5c"

    def test_socks5_needs_none(self, client: socket.socket, listening: int) -> None:
        client.sendall(socks5(listening, b"\x01" + socket.inet_aton(town.EXIT)))
        assert receive(client, 12)[:4] == b"\x05\x00\x05\x00"
