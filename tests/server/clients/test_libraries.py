"""Libraries for Python programs: PySocks (TCP and UDP), python-socks, siosocks, aiohttp-socks; all within this process,
with sockets made in a client's namespace."""

import asyncio
import gc
import socket
from collections.abc import Iterator
from urllib.parse import quote

import aiohttp
import aiohttp_socks
import pytest
import python_socks.async_.asyncio
import python_socks.sync
import siosocks.exceptions
import siosocks.io.asyncio
import socks

from tests.lab import town
from tests.lab.proxies import Server
from tests.lab.targets import Target
from tests.lab.town import EXIT, EXIT6, PASSWORD, PROXY, PROXY_FROM_OPEN, TARGET, TARGET6, USER

LIMIT = 20.0  # s
PYSOCKS = {"socks4": socks.SOCKS4, "socks5": socks.SOCKS5, "http": socks.HTTP}
HOSTS = [
    pytest.param("socks4", TARGET, EXIT, id="socks4"),
    pytest.param("socks4", "target.test", EXIT, id="socks4a"),
    pytest.param("socks5", TARGET, EXIT, id="socks5"),
    pytest.param("socks5", TARGET6, EXIT6, id="socks5-ipv6"),
    pytest.param("socks5", "v6only.test", EXIT6, id="socks5-name"),
    pytest.param("http", TARGET, EXIT, id="http"),
    pytest.param("http", "target.test", EXIT, id="http-name"),
]
LOGINS = pytest.mark.parametrize("kind", ["socks5", "http"])
DATAGRAMS = [TARGET, "target.test"]


@pytest.fixture
def closed(lab_town: town.Town) -> Iterator[None]:
    """This thread's new sockets are in the closed client, and nothing leaves that but for the server."""
    before = lab_town.leaks()
    with town.inside(lab_town.closed):
        yield
    assert lab_town.leaks() == before, "packets left past the server"


@pytest.fixture
def direct(lab_town: town.Town) -> Iterator[None]:
    """This thread's new sockets are in the open client, and nothing reaches the target from there."""
    before = lab_town.direct()
    with town.inside(lab_town.open):
        yield
    assert lab_town.direct() == before, "packets went past the server"


def asks(sock: socket.socket) -> str:
    """The address that the target's web server sees."""
    with sock:
        sock.settimeout(LIMIT)
        sock.sendall(b"GET /peer HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    return answer.partition(b'"peer": "')[2].partition(b'"')[0].decode()


async def asks_there(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """The same by streams."""
    writer.write(b"GET /peer HTTP/1.0\r\n\r\n")
    answer = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    return answer.partition(b'"peer": "')[2].partition(b'"')[0].decode()


@pytest.mark.usefixtures("closed")
class TestPySocks:
    @pytest.mark.parametrize(("kind", "host", "exit_address"), HOSTS)
    def test_connects(self, kind: str, host: str, exit_address: str, server: Server, target: Target) -> None:
        sock = socks.socksocket()
        sock.set_proxy(PYSOCKS[kind], PROXY, server.port, rdns=True)
        sock.connect((host, target.ports["http"]))
        assert asks(sock) == exit_address

    @LOGINS
    def test_with_a_login(self, kind: str, login_server: Server, target: Target) -> None:
        for password in (PASSWORD, "wrong"):
            sock = socks.socksocket()
            sock.set_proxy(PYSOCKS[kind], PROXY, login_server.port, username=USER, password=password)
            with sock:
                if password is PASSWORD:
                    sock.connect((TARGET, target.ports["http"]))
                    assert asks(sock) == EXIT
                else:
                    with pytest.raises(socks.ProxyError):
                        sock.connect((TARGET, target.ports["http"]))


@pytest.mark.usefixtures("direct")
class TestPySocksDatagrams:
    @pytest.mark.parametrize("host", DATAGRAMS)
    @pytest.mark.parametrize("login", [False, True], ids=["open", "login"])
    def test_echo(self, host: str, login: bool, server: Server, login_server: Server, echo: int) -> None:
        """Datagrams of all sizes by one association; who answered is told."""
        with socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            if login:
                sock.set_proxy(socks.SOCKS5, PROXY_FROM_OPEN, login_server.port, username=USER, password=PASSWORD)
            else:
                sock.set_proxy(socks.SOCKS5, PROXY_FROM_OPEN, server.port)
            sock.settimeout(LIMIT)
            for size in (1, 1400, 60_000):
                sock.sendto(bytes(size), (host, echo))
                assert sock.recvfrom(65535) == (bytes(size), (TARGET, echo))

    def test_connected(self, server: Server, echo: int) -> None:
        with socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.set_proxy(socks.SOCKS5, PROXY_FROM_OPEN, server.port)
            sock.settimeout(LIMIT)
            sock.connect((TARGET, echo))
            sock.send(b"hello")
            assert sock.recv(100) == b"hello"


def url(server: Server, kind: str, password: str = "") -> str:
    login = f"{USER}:{quote(password, safe='')}@" if password else ""
    return f"{kind}://{login}{PROXY}:{server.port}"


@pytest.mark.usefixtures("closed")
class TestPythonSocks:
    @pytest.mark.parametrize(("kind", "host", "exit_address"), HOSTS)
    def test_connects(self, kind: str, host: str, exit_address: str, server: Server, target: Target) -> None:
        proxy = python_socks.sync.Proxy.from_url(url(server, kind), rdns=True)
        assert asks(proxy.connect(host, target.ports["http"], timeout=LIMIT)) == exit_address

    @pytest.mark.parametrize(("kind", "host", "exit_address"), HOSTS)
    def test_asyncio(self, kind: str, host: str, exit_address: str, server: Server, target: Target) -> None:
        async def main() -> str:
            proxy = python_socks.async_.asyncio.Proxy.from_url(url(server, kind), rdns=True)
            sock = await proxy.connect(host, target.ports["http"], timeout=LIMIT)
            return await asks_there(*await asyncio.open_connection(sock=sock))

        assert asyncio.run(main()) == exit_address

    @LOGINS
    def test_with_a_login(self, kind: str, login_server: Server, target: Target) -> None:
        right = python_socks.sync.Proxy.from_url(url(login_server, kind, PASSWORD))
        assert asks(right.connect(TARGET, target.ports["http"], timeout=LIMIT)) == EXIT
        wrong = python_socks.sync.Proxy.from_url(url(login_server, kind, "wrong"))
        with pytest.raises(python_socks.ProxyError):
            wrong.connect(TARGET, target.ports["http"], timeout=LIMIT)

    @pytest.mark.parametrize("kind", ["socks4", "socks5", "http"])
    def test_it_says_why(self, kind: str, server: Server, target: Target) -> None:
        proxy = python_socks.sync.Proxy.from_url(url(server, kind))
        with pytest.raises(python_socks.ProxyError) as caught:
            proxy.connect(TARGET, target.refused, timeout=LIMIT)
        assert caught.value.error_code == {"socks4": 91, "socks5": 5, "http": 503}[kind]


@pytest.mark.usefixtures("closed")
class TestSiosocks:
    @pytest.mark.parametrize(("kind", "host", "exit_address"), [case for case in HOSTS if "http" not in case.values])
    def test_connects(self, kind: str, host: str, exit_address: str, server: Server, target: Target) -> None:
        way = {"socks_host": PROXY, "socks_port": server.port, "socks_version": int(kind[-1])}

        async def main() -> str:
            return await asks_there(*await siosocks.io.asyncio.open_connection(host, target.ports["http"], **way))

        assert asyncio.run(main()) == exit_address

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("password", [PASSWORD, "wrong"], ids=["right", "wrong"])
    def test_with_a_login(self, password: str, login_server: Server, target: Target) -> None:
        """A refused connection isn't closed by the library, but by the garbage collector."""
        way = {"socks_host": PROXY, "socks_port": login_server.port, "socks_version": 5}
        login = {"username": USER, "password": password}

        async def main() -> str:
            streams = await siosocks.io.asyncio.open_connection(TARGET, target.ports["http"], **way, **login)
            return await asks_there(*streams)

        if password is PASSWORD:
            assert asyncio.run(main()) == EXIT
        else:
            with pytest.raises(siosocks.exceptions.SocksException):
                asyncio.run(main())
            gc.collect()


@pytest.mark.usefixtures("closed")
class TestAiohttpSocks:
    @pytest.mark.parametrize(("kind", "host", "exit_address"), HOSTS)
    def test_20_at_once(self, kind: str, host: str, exit_address: str, server: Server, target: Target) -> None:
        literal = f"[{host}]" if ":" in host else host
        page = f"http://{literal}:{target.ports['http']}/peer"

        async def ask(session: aiohttp.ClientSession) -> str:
            async with session.get(page) as answer:
                return str((await answer.json())["peer"])

        async def main() -> list[str]:
            connector = aiohttp_socks.ProxyConnector.from_url(url(server, kind), rdns=True)
            async with aiohttp.ClientSession(connector=connector) as session:
                return await asyncio.gather(*(ask(session) for _ in range(20)))

        assert asyncio.run(main()) == [exit_address] * 20

    @LOGINS
    @pytest.mark.parametrize("password", [PASSWORD, "wrong"], ids=["right", "wrong"])
    def test_with_a_login(self, kind: str, password: str, login_server: Server, target: Target) -> None:
        async def main() -> str:
            connector = aiohttp_socks.ProxyConnector.from_url(url(login_server, kind, password))
            page = f"http://{TARGET}:{target.ports['http']}/peer"
            async with aiohttp.ClientSession(connector=connector) as session, session.get(page) as answer:
                return str((await answer.json())["peer"])

        if password is PASSWORD:
            assert asyncio.run(main()) == EXIT
        else:
            with pytest.raises(aiohttp_socks.ProxyError):
                asyncio.run(main())
