"""Every program through every kind of server, in a host whose only way out is the proxy's port.

The target's name is known to the proxy host only: a client that gets there by name proves that the proxy resolved it.
"""

import os

import pytest

from tests.lab import town
from tests.lab.accounts import Account
from tests.lab.clients import BY_NAME, CLIENTS, Client, Place
from tests.lab.targets import Target
from tests.lab.wrapped import Done, PlaceOf, Servers, Wrap, command, finish, need

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


def check(client: Client, done: Done, target: Target, mark: int, seen: str = town.EXIT) -> None:
    """The program succeeded, and the target saw only the proxy."""
    assert done.status == 0, done
    assert done.err == "" or client.name.startswith("java"), done
    assert done.out.count(seen) >= client.answers, done
    peers = [event.peer for event in target.log.since(mark) if event.service == client.service]
    assert set(peers) <= {seen}
    assert client.service != "http" or len(peers) >= client.answers


def host(client: Client, scheme: str = "socks5") -> str:
    """How the client names the target: SOCKS4 carries addresses only."""
    return "target.test" if client.takes_names and scheme != "socks4" else town.TARGET


def go(client: Client, place: Place, wrap: Wrap, via: str) -> Done:
    """Runs a client wrapped."""
    need(client.tool)
    return wrap(place.account, client.command(place), via=via, stdin=client.stdin)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_every_program(
    client: Client, account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    if client.name == "python-aiohttp" and not account.same_python:
        pytest.skip("aiohttp is installed for another version of Python than this account's")
    mark = target.log.mark()
    done = go(client, place(account, host(client)), wrap, servers("bundled").url("socks5"))
    check(client, done, target, mark)


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
    user_account: Account,
    wrap: Wrap,
    place: PlaceOf,
    target: Target,
    servers: Servers,
) -> None:
    client = BY_NAME[name]
    if client.name == "python-aiohttp" and not user_account.same_python:
        pytest.skip("aiohttp is installed for another version of Python than this account's")
    mark = target.log.mark()
    done = go(client, place(user_account, host(client, scheme)), wrap, servers(server).url(scheme))
    check(client, done, target, mark)


@pytest.mark.parametrize("name", ["curl", "node-net", "go-http", "static-musl"])
def test_a_chain_of_three(
    name: str, account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    client = BY_NAME[name]
    need(client.tool)
    mark = target.log.mark()
    via = [
        servers("danted").url("socks5"),
        servers("bundled-login").url("http"),
        servers("microsocks-login").url("socks5"),
    ]
    at = place(account, "target.test")
    check(client, wrap(account, client.command(at), via=via, stdin=client.stdin), target, mark)


@pytest.mark.parametrize("name", ["curl", "c-threads", "node-fetch", "go-dial", "java-socket"])
def test_an_ipv6_host_by_name(
    name: str, user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    client = BY_NAME[name]
    mark = target.log.mark()
    done = go(client, place(user_account, "v6only.test"), wrap, servers("bundled").url("socks5"))
    check(client, done, target, mark, town.EXIT6)


@pytest.mark.parametrize("scheme", ["socks5", "http"])
@pytest.mark.parametrize("name", ["curl", "node-fetch", "go-http"])
def test_an_ipv6_address(
    name: str, scheme: str, user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    client = BY_NAME[name]
    mark = target.log.mark()
    done = go(client, place(user_account, f"[{town.TARGET6}]"), wrap, servers("bundled").url(scheme))
    check(client, done, target, mark, town.EXIT6)


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_a_proxy_on_ipv6(
    scheme: str,
    user_account: Account,
    wrap: Wrap,
    place: PlaceOf,
    target: Target,
    lab_town: town.Town,
    servers: Servers,
) -> None:
    """The client's sockets are of the other family than the proxy's address."""
    client = BY_NAME["curl"]
    mark = target.log.mark()
    first = servers("danted").url("socks5", town.PROXY6)
    done = wrap(
        user_account,
        client.command(place(user_account, town.TARGET)),
        via=[first, servers("bundled").url(scheme)],
    )
    check(client, done, target, mark)


def test_from_the_environment(
    user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    """PYSOCKSIFY_PROXY is a chain, for the command and for what the shell started by it starts."""
    client = BY_NAME["curl"]
    mark = target.log.mark()
    urls = f"{servers('microsocks').url('socks5')} {servers('bundled').url('socks4a')}"
    words = ["sh", "-c", 'exec "$@"', "sh", *client.command(place(user_account, "target.test"))]
    done = wrap(user_account, words, env={"PYSOCKSIFY_PROXY": urls})
    check(client, done, target, mark)


def test_from_a_file(
    user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, lab_town: town.Town, servers: Servers
) -> None:
    """A named configuration with two chains, the second with a dead hop, and rules by name, port and network."""
    at = place(user_account, "target.test")
    dead = town.free_port(lab_town.proxy, town.PROXY)
    lab_town.admit(dead)
    config = user_account.home / ".config" / "pysocksify" / "work.toml"
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
    done = wrap(user_account, client.command(at), options=["-c", "work"])
    assert done.status == 0, done
    assert {event.peer for event in target.log.since(mark)} == {town.EXIT}
    denied = wrap(user_account, at.python("errors.py", town.TARGET, at.port), options=["-c", "work"])
    assert denied.out.strip() == "EACCES", denied


def test_the_embedded_server(account: Account, place: PlaceOf, lab_town: town.Town, target: Target) -> None:
    """It runs where the program runs, so the target sees this host."""
    client = BY_NAME["go-http"]
    need(client.tool)
    mark = target.log.mark()
    argv = client.command(place(account, town.TARGET))
    line = command(account, argv, options=["--embedded", "-v"], namespace=lab_town.open)
    done = finish(line, environment=account.environment)
    assert done.status == 0, done
    assert {event.peer for event in target.log.since(mark)} == {town.OPEN}
    assert done.err.count(f"{town.TARGET}:{target.ports['http']}") >= client.answers, done
    assert lab_town.settle(lab_town.open) == []


def test_all_proxy(user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers) -> None:
    """The variable is used once: curl must not see it again."""
    client = BY_NAME["curl"]
    mark = target.log.mark()
    url = servers("bundled-login").url("socks5h")
    done = wrap(user_account, client.command(place(user_account, "target.test")), env={"ALL_PROXY": url})
    check(client, done, target, mark)


def test_a_shell_and_its_children(
    user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, lab_town: town.Town, servers: Servers
) -> None:
    """bash connects itself, then becomes curl; a child's child connects too, with an empty environment."""
    at = place(user_account, "target.test")
    script = (
        f"exec 3<>/dev/tcp/target.test/{at.port}; printf 'GET /peer HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3; echo;"
        f" env -i /bin/sh -c '/usr/bin/curl -sS {at.url}'; exec curl -sS {at.url}"
    )
    mark = target.log.mark()
    done = wrap(user_account, ["bash", "-c", script], via=servers("bundled").url("socks5"))
    assert done.status == 0, done
    assert done.out.count(town.EXIT) == 3, done
    assert {event.peer for event in target.log.since(mark)} == {town.EXIT}


def test_what_the_person_is_told(
    user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    """Nothing when all is well; with -v a line a connection; the password never."""
    at = place(user_account, "target.test")
    url = servers("bundled-login").url("socks5")
    done = wrap(user_account, ["curl", "-sS", at.url], via=url, options=["-vv"])
    assert done.status == 0, done
    assert "target.test" in done.err
    for secret in (town.PASSWORD, "s3cret"):
        assert secret not in done.err
    wrong = wrap(user_account, ["curl", "-sS", at.url], via=url.replace("s3cret", "wr0ng"))
    assert wrong.status != 0, wrong
    assert "authentication" in wrong.err.lower() or "password" in wrong.err.lower(), wrong
    assert "wr0ng" not in wrong.err
