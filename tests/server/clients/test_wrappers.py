"""Other wrappers: proxychains4, torsocks, tsocks and Dante's socksify, each with programs that know of no proxy."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.accounts import Account
from tests.lab.proxies import Server
from tests.lab.town import PASSWORD, PROXY, TARGET, USER
from tests.lab.wrapped import need
from tests.server.clients.conftest import ANSWER, CONTENT, Ftp, Runs, got

Page = Callable[[str], str]
Written = Callable[[str], Path]
CURL = ("curl", "-gsS")

PROXYCHAINS = """
strict_chain
proxy_dns
[ProxyList]
{kind} {proxy} {port} {login}
"""

TSOCKS = """
local = {proxy}/255.255.255.255
server = {proxy}
server_port = {port}
server_type = {version}
"""

DANTE = """
logoutput: stderr
resolveprotocol: fake
route {{
    from: 0.0.0.0/0 to: 0.0.0.0/0 via: {proxy} port = {port}
    protocol: tcp udp
    proxyprotocol: {protocol}
    command: bind connect udpassociate bindreply udpreply
    method: {method}
}}
"""

ACTIVE_FTP = {
    "curl": (*CURL, "--disable-epsv", "--disable-eprt", "--ftp-port", "-", f"ftp://{TARGET}:{{port}}/file"),
    "tnftp": ("tnftp", "-A", "-o", "-", f"ftp://{TARGET}:{{port}}/file"),
    "lftp": ("lftp", "-c", f"set ftp:passive-mode off; open ftp://{TARGET}:{{port}}; cat file"),
}


@pytest.fixture
def written(folder: Path, request: pytest.FixtureRequest) -> Iterator[Written]:
    """Writes a configuration file that every account can read."""
    path = folder / f"client-{abs(hash(request.node.nodeid))}.conf"

    def write(text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        return path

    yield write
    path.unlink(missing_ok=True)


class TestProxychains:
    @pytest.mark.parametrize(
        ("kind", "host"),
        [("socks4", TARGET), ("socks5", TARGET), ("socks5", "target.test"), ("http", TARGET), ("http", "target.test")],
    )
    def test_a_page(self, kind: str, host: str, server: Server, runs: Runs, page: Page, written: Written) -> None:
        config = written(PROXYCHAINS.format(kind=kind, proxy=PROXY, port=server.port, login=""))
        done = runs("proxychains4", "-q", "-f", config, *CURL, page(host))
        assert got(done), done

    @pytest.mark.parametrize("kind", ["socks5", "http"])
    def test_with_a_login(self, kind: str, login_server: Server, runs: Runs, page: Page, written: Written) -> None:
        for password, right in ((PASSWORD, True), ("wrong", False)):
            login = f"{USER} {password}"
            config = written(PROXYCHAINS.format(kind=kind, proxy=PROXY, port=login_server.port, login=login))
            done = runs("proxychains4", "-q", "-f", config, *CURL, page("target.test"))
            assert got(done) == right, done


class TestTorsocks:
    def test_a_page(self, server: Server, runs: Runs, page: Page) -> None:
        done = runs("torsocks", "-a", PROXY, "-P", server.port, *CURL, page(TARGET))
        assert got(done), done

    def test_with_a_login(self, login_server: Server, runs: Runs, page: Page) -> None:
        argv = ("torsocks", "-a", PROXY, "-P", login_server.port, "-u", USER, "-p")
        right, wrong = runs(*argv, PASSWORD, *CURL, page(TARGET)), runs(*argv, "wrong", *CURL, page(TARGET))
        assert got(right), right
        assert wrong.status, wrong
        assert not wrong.out

    def test_a_name(self, server: Server, runs: Runs, page: Page) -> None:
        """torsocks asks by RESOLVE, a command of Tor's own (0xF0), which is refused at once."""
        done = runs("torsocks", "-a", PROXY, "-P", server.port, *CURL, page("target.test"))
        assert done.status == 6, done  # curl(1): couldn't resolve host


class TestTsocks:
    @pytest.mark.parametrize("version", [4, 5])
    def test_a_page(self, version: int, server: Server, runs: Runs, page: Page, written: Written) -> None:
        config = written(TSOCKS.format(proxy=PROXY, port=server.port, version=version))
        done = runs("tsocks", *CURL, page(TARGET), TSOCKS_CONF_FILE=str(config))
        assert got(done), done

    def test_with_a_login(self, login_server: Server, runs: Runs, page: Page, written: Written) -> None:
        config = written(TSOCKS.format(proxy=PROXY, port=login_server.port, version=5))
        for password, right in ((PASSWORD, True), ("wrong", False)):
            login = {"TSOCKS_USERNAME": USER, "TSOCKS_PASSWORD": password}
            done = runs("tsocks", *CURL, page(TARGET), TSOCKS_CONF_FILE=str(config), **login)
            assert got(done) == right, done

    def test_inspectsocks(self, server: Server, runs: Runs) -> None:
        """It tells a server's version by how it answers a SOCKS5 greeting; it ends with the version."""
        done = runs("inspectsocks", PROXY, server.port)
        assert "version 5" in done.out, done


class TestSocksify:
    @pytest.mark.parametrize(
        ("protocol", "host"), [("socks_v4", TARGET), ("socks_v5", TARGET), ("socks_v5", "target.test")]
    )
    def test_a_page(self, protocol: str, host: str, server: Server, runs: Runs, page: Page, written: Written) -> None:
        config = written(DANTE.format(proxy=PROXY, port=server.port, protocol=protocol, method="none"))
        done = runs("socksify", *CURL, page(host), SOCKS_CONF=str(config))
        assert got(done), done

    def test_with_a_login(self, login_server: Server, runs: Runs, page: Page, written: Written) -> None:
        config = written(DANTE.format(proxy=PROXY, port=login_server.port, protocol="socks_v5", method="username"))
        for password, right in ((PASSWORD, True), ("wrong", False)):
            login = {"SOCKS_USERNAME": USER, "SOCKS_PASSWORD": password}
            done = runs("socksify", *CURL, page(TARGET), SOCKS_CONF=str(config), **login)
            assert got(done) == right, done

    @pytest.mark.parametrize("protocol", ["socks_v4", "socks_v5"])
    @pytest.mark.parametrize("client", ACTIVE_FTP)
    def test_active_ftp(
        self, client: str, protocol: str, server: Server, ftp: Ftp, runs: Runs, written: Written
    ) -> None:
        """BIND: the FTP server connects to the port that the server opened for the client."""
        config = written(DANTE.format(proxy=PROXY, port=server.port, protocol=protocol, method="none"))
        need(ACTIVE_FTP[client][0])
        words = [word.format(port=ftp.port) for word in ACTIVE_FTP[client]]
        done = runs("socksify", *words, SOCKS_CONF=str(config))
        assert CONTENT in done.out, f"{done}{ftp.child.log}"
        ftp.child.wait_line(r"<- (PORT 198,51,100,1,|EPRT \|1\|198.51.100.1\|)")

    def test_datagrams(self, server: Server, echo: int, runs: Runs, written: Written) -> None:
        """UDP ASSOCIATE, for socat."""
        config = written(DANTE.format(proxy=PROXY, port=server.port, protocol="socks_v5", method="none"))
        words = ("socat", "-t", "20", "-", f"UDP:{TARGET}:{echo},readbytes=5")
        done = runs("socksify", *words, stdin="hello", datagrams=True, SOCKS_CONF=str(config))
        assert done.out == "hello", done

    def test_a_question(self, server: Server, dns: int, runs: Runs, written: Written, user_account: Account) -> None:
        """UDP ASSOCIATE, for a lookup. BIND's dig is on libuv, whose sockets Dante doesn't catch, for TCP neither."""
        config = written(DANTE.format(proxy=PROXY, port=server.port, protocol="socks_v5", method="none"))
        words = (user_account.python, "-m", "dnslib.client", "--server", f"{TARGET}:{dns}", "question.test", "A")
        done = runs("socksify", *words, datagrams=True, SOCKS_CONF=str(config))
        assert ANSWER in done.out, done
