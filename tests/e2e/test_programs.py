"""Programs through every kind of server and chain, however it was named, in a host with no other way out.

The target's name is known to the proxy host only: a client that gets there by name proves that the proxy resolved it.
"""

import os

import pytest

from tests.lab import town
from tests.lab.clients import BY_NAME, CLIENTS, check, host
from tests.lab.targets import Target
from tests.lab.ways import Way
from tests.lab.wrapped import PlaceOf, Servers, Wrap, command, finish, need

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces"),
]

SERVERS = (
    ("microsocks", "socks5"),
    ("microsocks-login", "socks5"),
    ("danted", "socks4"),
    ("danted", "socks5"),
    ("danted-login", "socks5"),
    ("ssh", "socks4"),
    ("ssh", "socks4a"),
    ("ssh", "socks5"),
    ("bundled", "socks4"),
    ("bundled", "socks4a"),
    ("bundled", "socks5"),
    ("bundled", "http"),
    ("bundled-login", "socks5"),
    ("bundled-login", "http"),
)

PROGRAMS_FOR_EVERY_SERVER = ("curl", "python-asyncio", "go-http")
"""One that blocks and takes names, an event loop, and a static program with 50 connections at once."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The programs of `test_every_server`."""
    if metafunc.function is test_every_server:
        every = metafunc.config.getoption("--every-pair")
        metafunc.parametrize("name", [client.name for client in CLIENTS] if every else PROGRAMS_FOR_EVERY_SERVER)


@pytest.mark.parametrize(("server", "scheme"), SERVERS, ids=lambda value: value)
def test_every_server(
    server: str,
    scheme: str,
    name: str,
    user: Way,
    wrap: Wrap,
    place: PlaceOf,
    target: Target,
    servers: Servers,
) -> None:
    client = BY_NAME[name]
    if client.name == "python-aiohttp" and not user.account.same_python:
        pytest.skip("aiohttp is installed for another version of Python than this account's")
    mark = target.log.mark()
    need(client.tool)
    via = servers(server).url(scheme)
    done = wrap(user, client.command(place(user.account, host(client, scheme))), via=via, stdin=client.stdin)
    check(client, done, target.log.since(mark))


def test_from_the_environment(user: Way, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers) -> None:
    """PYSOCKSIFY_PROXY is a chain, for the command and for what the shell started by it starts."""
    client = BY_NAME["curl"]
    mark = target.log.mark()
    urls = f"{servers('microsocks').url('socks5')} {servers('bundled').url('socks4a')}"
    words = ["sh", "-c", 'exec "$@"', "sh", *client.command(place(user.account, "target.test"))]
    done = wrap(user, words, env={"PYSOCKSIFY_PROXY": urls})
    check(client, done, target.log.since(mark))


def test_from_a_file(
    user: Way, wrap: Wrap, place: PlaceOf, target: Target, lab_town: town.Town, servers: Servers
) -> None:
    """A named configuration with two chains, the second with a dead hop, and rules by name, port and network."""
    at = place(user.account, "target.test")
    dead = town.free_port(lab_town.proxy, town.PROXY)
    lab_town.admit(dead)
    config = user.account.home / ".config" / "pysocksify" / "work.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(
        f"""
hops = ["socks5://{town.PROXY}:9"]

[chains.office]
mode = "dynamic"
hops = ["socks5://{town.PROXY}:{dead}", "{servers("bundled-login").url("socks5")}"]
connect_timeout = 2.0

[[rules]]
match = ["*.test"]
ports = [{at.port}]
to = "office"

[[rules]]
match = ["198.51.100.0/24"]
to = "deny"
""",
        encoding="utf-8",
    )
    client = BY_NAME["curl"]
    mark = target.log.mark()
    done = wrap(user, client.command(at), options=["-c", "work"])
    assert done.status == 0, done
    assert {event.peer for event in target.log.since(mark)} == {town.EXIT}
    denied = wrap(user, at.python("errors.py", town.TARGET, at.port), options=["-c", "work"])
    assert denied.out.strip() == "EACCES", denied


def test_the_embedded_server(user: Way, place: PlaceOf, lab_town: town.Town, target: Target) -> None:
    """It runs where the program runs, so the target sees this host."""
    client = BY_NAME["go-http"]
    need(client.tool)
    mark = target.log.mark()
    argv = client.command(place(user.account, town.TARGET))
    line = command(user, argv, options=["--embedded", "-v"], namespace=lab_town.open)
    done = finish(line, environment=user.environment)
    assert done.status == 0, done
    assert {event.peer for event in target.log.since(mark)} == {town.OPEN}
    assert done.err.count(f"{town.TARGET}:{target.ports['http']}") >= client.answers, done
    assert lab_town.settle(lab_town.open) == []


def test_all_proxy(user: Way, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers) -> None:
    """The variable is used once: curl must not see it again."""
    client = BY_NAME["curl"]
    mark = target.log.mark()
    url = servers("bundled-login").url("socks5h")
    done = wrap(user, client.command(place(user.account, "target.test")), env={"ALL_PROXY": url})
    check(client, done, target.log.since(mark))


def test_what_the_person_is_told(user: Way, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers) -> None:
    """Nothing when all is well; with -v a line a connection; the password never."""
    at = place(user.account, "target.test")
    url = servers("bundled-login").url("socks5")
    done = wrap(user, ["curl", "-sS", at.url], via=url, options=["-vv"])
    assert done.status == 0, done
    assert "target.test" in done.err
    for secret in (town.PASSWORD, "s3cret"):
        assert secret not in done.err
    wrong = wrap(user, ["curl", "-sS", at.url], via=url.replace("s3cret", "wr0ng"))
    assert wrong.status != 0, wrong
    assert "authentication" in wrong.err.lower() or "password" in wrong.err.lower(), wrong
    assert "wr0ng" not in wrong.err
