"""Two of our servers with microsocks between them: for pysocksify, and behind a third one for programs that know one
proxy only."""

from collections.abc import Iterator

import pytest

from tests.lab import proxies, town
from tests.lab.accounts import Account
from tests.lab.children import Child
from tests.lab.clients import BY_NAME, check
from tests.lab.proxies import Server
from tests.lab.targets import Target
from tests.lab.town import EXIT6, PROXY
from tests.lab.ways import Way
from tests.lab.wrapped import PlaceOf, Servers, Wrap
from tests.server.clients.conftest import Runs, got
from tests.server.clients.test_curl import Page

FIRST = ("socks5", "socks4a", "http")
LAST = ("socks5", "http")


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("first", FIRST)
def test_pysocksify(
    first: str, last: str, user: Way, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    hops = [
        servers("bundled").url(first),
        servers("microsocks").url("socks5"),
        servers("bundled-login").url(last),
    ]
    curl = BY_NAME["curl"]
    mark = target.log.mark()
    done = wrap(user, curl.command(place(user.account, "target.test")), via=hops)
    check(curl, done, target.log.since(mark))


@pytest.fixture(scope="module")
def front(lab_town: town.Town, user_account: Account, servers: Servers) -> Iterator[Server]:
    """A server that reaches everything through the chain."""
    hops = (servers("bundled").url("http"), servers("microsocks").url("socks5"), servers("bundled-login").url("socks5"))
    port = town.free_port(lab_town.proxy, PROXY)
    words = [word for hop in hops for word in ("-p", hop)]
    command = user_account.command(*user_account.server, "--listen", f"0.0.0.0:{port}", "--open", *words, "-v")
    child = Child(*command, namespace=lab_town.proxy, env=user_account.environment)
    made = proxies.ready(lab_town, child, name="front", port=port, schemes=(), login=False)
    yield made
    made.stop()


@pytest.mark.parametrize("words", ["--socks4a", "--socks5-hostname", "--proxytunnel --proxy"])
def test_curl(words: str, front: Server, runs: Runs, page: Page) -> None:
    done = runs("curl", "-gsS", *words.split(), f"{PROXY}:{front.port}", page("v6only.test"))
    assert got(done, EXIT6), done
    line = front.children[0].wait_line(r"-> v6only\.test:\d+ through")
    assert town.PASSWORD not in line.string


@pytest.mark.parametrize(
    ("words", "host", "said"),
    [
        ("--socks5-hostname", "target.test", "(5)"),
        ("--socks5-hostname", "nosuch.test", "(4)"),
        ("--proxytunnel --proxy", "target.test", "503"),
    ],
)
def test_it_says_why(words: str, host: str, said: str, front: Server, runs: Runs, target: Target) -> None:
    """What the last one says comes through to the client."""
    done = runs("curl", "-gsS", *words.split(), f"{PROXY}:{front.port}", f"http://{host}:{target.refused}/")
    assert said in done.err, done
