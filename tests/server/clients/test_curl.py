"""curl, by every option that names a proxy."""

from collections.abc import Callable

import pytest

from tests.lab import town
from tests.lab.proxies import Server
from tests.lab.town import EXIT, EXIT6, PASSWORD, TARGET, TARGET6, USER
from tests.server.clients.conftest import Certificate, Runs, got

Page = Callable[[str], str]

WAYS = [
    pytest.param(("--socks4",), TARGET, EXIT, id="socks4"),
    pytest.param(("--socks4a",), "target.test", EXIT, id="socks4a"),
    pytest.param(("--socks5",), TARGET, EXIT, id="socks5"),
    pytest.param(("--socks5",), f"[{TARGET6}]", EXIT6, id="socks5-ipv6"),
    pytest.param(("--socks5-hostname",), "target.test", EXIT, id="socks5-name"),
    pytest.param(("--socks5-hostname",), "v6only.test", EXIT6, id="socks5-name-ipv6"),
    pytest.param(("--proxytunnel", "--proxy"), TARGET, EXIT, id="http"),
    pytest.param(("--proxytunnel", "--proxy"), f"[{TARGET6}]", EXIT6, id="http-ipv6"),
    pytest.param(("--proxytunnel", "--proxy"), "target.test", EXIT, id="http-name"),
]
CURL = ("curl", "-gsS")
WITHOUT_LOGIN = 97  # curl(1): proxy handshake error


def place(server: Server) -> str:
    return f"{town.PROXY}:{server.port}"


@pytest.mark.parametrize(("words", "host", "exit_address"), WAYS)
def test_a_page(words: tuple[str, ...], host: str, exit_address: str, server: Server, runs: Runs, page: Page) -> None:
    done = runs(*CURL, *words, place(server), page(host))
    assert got(done, exit_address), done


@pytest.mark.parametrize(("words", "host", "exit_address"), WAYS)
def test_with_a_login(
    words: tuple[str, ...], host: str, exit_address: str, login_server: Server, runs: Runs, page: Page
) -> None:
    argv = (*CURL, *words, place(login_server), page(host), "--proxy-user")
    right, wrong = runs(*argv, f"{USER}:{PASSWORD}"), runs(*argv, f"{USER}:wrong")
    if "--socks4" in words[0]:  # it has no password, so nobody is let in by it
        assert right.status == WITHOUT_LOGIN, right
    else:
        assert got(right, exit_address), right
    assert wrong.status, wrong
    assert not wrong.out


def test_a_login_is_asked_for(login_server: Server, runs: Runs, page: Page) -> None:
    """--proxy-anyauth waits for the server to name its scheme, on the same connection or on another."""
    argv = (*CURL, "--proxytunnel", "--proxy-anyauth", "--proxy", place(login_server), page("target.test"))
    right, nothing = runs(*argv, "--proxy-user", f"{USER}:{PASSWORD}"), runs(*argv)
    assert got(right), right
    assert "407" in nothing.err, nothing


@pytest.mark.parametrize("words", [("--proxy",), ("--socks5-hostname",), ("--socks4a",)], ids=lambda words: words[0])
def test_an_https_page(
    words: tuple[str, ...], server: Server, https: int, certificate: Certificate, runs: Runs
) -> None:
    """TLS to the target, inside what the server relays."""
    url = f"https://target.test:{https}/"
    done = runs(*CURL, "--cacert", certificate[0], *words, place(server), url)
    assert "s_server" in done.out, done


def test_over_tls(tls_server: Server, certificate: Certificate, runs: Runs, page: Page) -> None:
    words = ("--proxytunnel", "--proxy", f"https://{place(tls_server)}", "--proxy-cacert", certificate[0])
    done = runs(*CURL, *words, page("target.test"))
    assert got(done), done


def test_an_https_page_over_tls(tls_server: Server, https: int, certificate: Certificate, runs: Runs) -> None:
    """TLS in TLS."""
    words = ("--proxy", f"https://{place(tls_server)}", "--proxy-cacert", certificate[0], "--cacert", certificate[0])
    done = runs(*CURL, *words, f"https://target.test:{https}/")
    assert "s_server" in done.out, done


def test_tls_to_a_port_without(server: Server, certificate: Certificate, runs: Runs, page: Page) -> None:
    words = ("--proxytunnel", "--proxy", f"https://{place(server)}", "--proxy-cacert", certificate[0])
    done = runs(*CURL, *words, page("target.test"))
    assert done.status == 35, done  # curl(1): TLS handshake failed


def test_no_tls_to_a_port_with_it(tls_server: Server, runs: Runs, page: Page) -> None:
    done = runs(*CURL, "--proxytunnel", "--proxy", place(tls_server), page("target.test"))
    assert done.status, done
    assert not done.out


@pytest.mark.parametrize("words", [("--proxytunnel", "--proxy"), ("--socks5-hostname",)], ids=["http", "socks5"])
def test_30_at_once(words: tuple[str, ...], server: Server, runs: Runs, page: Page) -> None:
    argv = (*CURL, "--parallel", "--parallel-immediate", *words, place(server))
    done = runs(*argv, *[page("target.test")] * 30)
    assert done.out.count(f'"peer": "{EXIT}"') == 30, done


REASONS = [
    pytest.param(("--socks5-hostname",), "unreachable.test", "(4)", id="socks5-unreachable"),
    pytest.param(("--socks5-hostname",), "nosuch.test", "(4)", id="socks5-no-such-name"),
    pytest.param(("--socks5-hostname",), "target.test", "(5)", id="socks5-refused"),
    pytest.param(("--proxytunnel", "--proxy"), "unreachable.test", "502", id="http-unreachable"),
    pytest.param(("--proxytunnel", "--proxy"), "target.test", "503", id="http-refused"),
    pytest.param(("--socks4a",), "target.test", "91", id="socks4a-refused"),
]


@pytest.mark.parametrize(("words", "host", "said"), REASONS)
def test_it_says_why(
    words: tuple[str, ...], host: str, said: str, server: Server, runs: Runs, lab_town: town.Town
) -> None:
    port = town.free_port(lab_town.target, town.TARGET)
    done = runs(*CURL, *words, place(server), f"http://{host}:{port}/")
    assert said in done.err, done


def test_other_methods_than_connect_are_refused(server: Server, runs: Runs, page: Page) -> None:
    """Without --proxytunnel curl asks a proxy for a page itself."""
    done = runs(*CURL, "-i", "--proxy", place(server), page("target.test"))
    assert done.out.startswith("HTTP/1.1 405"), done
    assert "Allow: CONNECT" in done.out
