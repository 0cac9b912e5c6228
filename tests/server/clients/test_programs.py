"""ncat, socat and connect-proxy (under ssh): programs that speak to a proxy themselves."""

import re
import subprocess

import pytest

from tests.lab.accounts import Account
from tests.lab.clients import REQUEST
from tests.lab.done import Done
from tests.lab.proxies import SSH_OPTIONS, Server
from tests.lab.targets import Target
from tests.lab.town import EXIT, EXIT6, PASSWORD, PROXY, TARGET, TARGET6, USER
from tests.lab.wrapped import PlaceOf, need
from tests.server.clients.conftest import Runs, got

NCAT = [
    pytest.param("socks4", TARGET, EXIT, id="socks4"),
    pytest.param("socks5", TARGET, EXIT, id="socks5"),
    pytest.param("socks5", "target.test", EXIT, id="socks5-name"),
    pytest.param("socks5", TARGET6, EXIT6, id="socks5-ipv6"),
    pytest.param("http", TARGET, EXIT, id="http"),
    pytest.param("http", "target.test", EXIT, id="http-name"),
    pytest.param("http", TARGET6, EXIT6, id="http-ipv6"),
]


def ncat(server: Server, kind: str, target: Target, host: str) -> list[str]:
    words = ["ncat", "--proxy", f"{PROXY}:{server.port}", "--proxy-type", kind, "--proxy-dns", "remote"]
    return [*words, host, str(target.ports["http"])]


@pytest.mark.parametrize(("kind", "host", "exit_address"), NCAT)
def test_ncat(kind: str, host: str, exit_address: str, server: Server, target: Target, runs: Runs) -> None:
    done = runs(*ncat(server, kind, target, host), stdin=REQUEST)
    assert got(done, exit_address), done


@pytest.mark.parametrize(("kind", "host", "exit_address"), NCAT)
def test_ncat_with_a_login(
    kind: str, host: str, exit_address: str, login_server: Server, target: Target, runs: Runs
) -> None:
    argv = ncat(login_server, kind, target, host)
    right = runs(*argv, "--proxy-auth", f"{USER}:{PASSWORD}", stdin=REQUEST)
    wrong = runs(*argv, "--proxy-auth", f"{USER}:wrong", stdin=REQUEST)
    assert got(right, exit_address) == (kind != "socks4"), right
    assert not wrong.out, wrong


SOCAT = [
    pytest.param("SOCKS4:{proxy}:{target}:{port},socksport={number},socksuser=fred", EXIT, id="SOCKS4"),
    pytest.param("SOCKS4A:{proxy}:target.test:{port},socksport={number}", EXIT, id="SOCKS4A"),
    pytest.param("SOCKS4A:{proxy}:v6only.test:{port},socksport={number}", EXIT6, id="SOCKS4A-ipv6"),
    pytest.param("PROXY:{proxy}:target.test:{port},proxyport={number}", EXIT, id="PROXY"),
    pytest.param("PROXY:{proxy}:[{target6}]:{port},proxyport={number}", EXIT6, id="PROXY-ipv6"),
]


@pytest.mark.parametrize(("address", "exit_address"), SOCAT)
def test_socat(address: str, exit_address: str, server: Server, target: Target, runs: Runs) -> None:
    done = runs("socat", "-t", "10", "-", socat(address, server, target), stdin=REQUEST)
    assert got(done, exit_address), done


def socat(address: str, server: Server, target: Target) -> str:
    return address.format(proxy=PROXY, target=TARGET, target6=TARGET6, port=target.ports["http"], number=server.port)


def test_socat_with_socks5(server: Server, target: Target, runs: Runs) -> None:
    need("socat")
    known = subprocess.run(["socat", "-h"], capture_output=True, text=True, timeout=30).stdout
    if not re.search("socks5", known, re.IGNORECASE):
        pytest.skip("socat has SOCKS5 since 1.8; this one is older")
    address = socat("SOCKS5:{proxy}:{number}:target.test:{port}", server, target)
    done = runs("socat", "-t", "10", "-", address, stdin=REQUEST)
    assert got(done), done


def test_socat_with_a_login(login_server: Server, target: Target, runs: Runs) -> None:
    address = socat("PROXY:{proxy}:target.test:{port},proxyport={number},proxyauth=", login_server, target)
    right = runs("socat", "-t", "10", "-", f"{address}{USER}:{PASSWORD.replace(':', chr(92) + ':')}", stdin=REQUEST)
    wrong = runs("socat", "-t", "10", "-", f"{address}{USER}:wrong", stdin=REQUEST)
    assert got(right), right
    assert not wrong.out, wrong


CONNECT_PROXY = [
    pytest.param("-4 -S {proxy} -R local", TARGET, id="socks4"),
    pytest.param("-4 -S {proxy} -R remote", "target.test", id="socks4a"),
    pytest.param("-5 -S {proxy} -R local", TARGET, id="socks5"),
    pytest.param("-5 -S {proxy} -R remote", "target.test", id="socks5-name"),
    pytest.param("-H {proxy}", "target.test", id="http"),
]


@pytest.fixture
def ssh(user_account: Account, place: PlaceOf, runs: Runs, target: Target) -> Runs:
    """Runs a command on the target by ssh, which connect-proxy connects."""

    def run(words: str, host: str, **environment: str) -> Done:
        need("connect-proxy")
        command = f"ProxyCommand=connect-proxy {words} %h %p"
        at = ("-i", place(user_account, host).key, "-p", target.ports["ssh"], f"root@{host}")
        return runs("ssh", *SSH_OPTIONS, "-o", command, *at, "echo $SSH_CONNECTION", **environment)

    return run


@pytest.mark.parametrize(("words", "host"), CONNECT_PROXY)
def test_ssh(words: str, host: str, server: Server, ssh: Runs) -> None:
    done = ssh(words.format(proxy=f"{PROXY}:{server.port}"), host)
    assert done.out.startswith(f"{EXIT} "), done


@pytest.mark.parametrize(
    ("words", "variable"), [("-5 -S", "SOCKS5_PASSWD"), ("-H", "HTTP_PROXY_PASSWORD")], ids=["socks5", "http"]
)
def test_ssh_with_a_login(words: str, variable: str, login_server: Server, ssh: Runs) -> None:
    command = f"{words} {USER}@{PROXY}:{login_server.port}"
    right = ssh(command, TARGET, **{variable: PASSWORD})
    wrong = ssh(command, TARGET, **{variable: "wrong"})
    assert right.out.startswith(f"{EXIT} "), right
    assert wrong.status == 255, wrong
    assert not wrong.out
