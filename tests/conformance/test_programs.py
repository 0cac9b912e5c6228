"""Programs as people use them, each by every engine; what an engine can't reach, it refuses in one line.

The target's name is known to the proxy host only: a client that gets there by name proves that the proxy resolved it.
"""

import pytest

from tests.lab import town
from tests.lab.accounts import Account
from tests.lab.clients import BY_NAME, CLIENTS, Client, check, host
from tests.lab.targets import Target
from tests.lab.ways import REFUSES, Way, about_sockets
from tests.lab.wrapped import PlaceOf, Run, Servers, Wrap, need

COMMON = ("curl", "node-fetch")
"""One that blocks, and an event loop."""

STATIC = ("go-http", "static-musl")
"""They resolve names in ways of their own."""

ONE_OF_PYTHONS = "python-asyncio"
EVERYWHERE = (*COMMON, *STATIC, ONE_OF_PYTHONS)


def goes(
    client: Client, run: Run, target: Target, via: str | list[str], to: str = "", address: str = town.EXIT
) -> None:
    """The client reaches the target through the proxy, or is refused and reaches nobody."""
    if client.name == "python-aiohttp" and not run.way.account.same_python:
        pytest.skip("aiohttp is installed for another version of Python than this account's")
    need(client.tool)
    mark = target.log.mark()
    refused = run.way.refuses(client.kind)
    # what a shell starts is a hole of the python engine's, which test_gaps tests where it does no harm
    words = [client.tool] if refused and client.in_shell else client.command(run.at(to or host(client)))
    done = run(words, via=via, stdin=client.stdin)
    if refused:
        assert done.refused, done
        assert not target.log.since(mark)
    else:
        check(client, done, target.log.since(mark), address)


@pytest.mark.parametrize(
    "client", [one for one in CLIENTS if one.name not in EVERYWHERE], ids=lambda client: client.name
)
def test_every_program(client: Client, run: Run, target: Target, servers: Servers) -> None:
    goes(client, run, target, servers("bundled").url("socks5"))


@pytest.mark.everywhere(only=about_sockets)
@pytest.mark.foreign
@pytest.mark.parametrize("name", COMMON)
def test_common_programs(name: str, run: Run, target: Target, servers: Servers) -> None:
    goes(BY_NAME[name], run, target, servers("bundled").url("socks5"))


@pytest.mark.everywhere(only=about_sockets)
@pytest.mark.foreign("static")
@pytest.mark.parametrize("name", STATIC)
def test_common_static_programs(name: str, run: Run, target: Target, servers: Servers) -> None:
    goes(BY_NAME[name], run, target, servers("bundled").url("socks5"))


@pytest.mark.everywhere(only=about_sockets)
def test_a_common_program_of_pythons(run: Run, target: Target, servers: Servers) -> None:
    goes(BY_NAME[ONE_OF_PYTHONS], run, target, servers("bundled").url("socks5"))


@pytest.mark.root
@pytest.mark.parametrize(
    ("engine", "name"),
    [(engine, name) for engine in REFUSES for name in EVERYWHERE if BY_NAME[name].kind in REFUSES[engine]],
)
def test_common_programs_that_are_refused(
    engine: str, name: str, user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    run = Run(Way(account=user_account, engine=engine), wrap, place)
    goes(BY_NAME[name], run, target, servers("bundled").url("socks5"))


@pytest.mark.parametrize("name", ["curl", "node-net", "go-http", "static-musl", "python-asyncio"])
def test_a_chain_of_three(name: str, run: Run, target: Target, servers: Servers) -> None:
    via = [
        servers("danted").url("socks5"),
        servers("bundled-login").url("http"),
        servers("microsocks-login").url("socks5"),
    ]
    goes(BY_NAME[name], run, target, via)


@pytest.mark.parametrize("name", ["curl", "c-threads", "node-fetch", "go-dial", "java-socket", "python-urllib"])
def test_an_ipv6_host_by_name(name: str, run: Run, target: Target, servers: Servers) -> None:
    goes(BY_NAME[name], run, target, servers("bundled").url("socks5"), "v6only.test", town.EXIT6)


@pytest.mark.parametrize("scheme", ["socks5", "http"])
@pytest.mark.parametrize("name", ["curl", "node-fetch", "go-http", "python-urllib"])
def test_an_ipv6_address(name: str, scheme: str, run: Run, target: Target, servers: Servers) -> None:
    goes(BY_NAME[name], run, target, servers("bundled").url(scheme), f"[{town.TARGET6}]", town.EXIT6)


@pytest.mark.parametrize("scheme", ["socks5", "http"])
@pytest.mark.parametrize("name", ["curl", "python-urllib"])
def test_a_proxy_on_ipv6(name: str, scheme: str, run: Run, target: Target, servers: Servers) -> None:
    """The client's sockets are of the other family than the proxy's address."""
    via = [servers("danted").url("socks5", town.PROXY6), servers("bundled").url(scheme)]
    goes(BY_NAME[name], run, target, via, town.TARGET)


@pytest.mark.foreign
@pytest.mark.promise("empty environment")
def test_a_shell_and_its_children(run: Run, target: Target, servers: Servers) -> None:
    """bash connects itself, then becomes curl; a child's child connects too, with an empty environment."""
    at = run.at("target.test")
    script = (
        f"exec 3<>/dev/tcp/target.test/{at.port}; printf 'GET /peer HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3; echo;"
        f" env -i /bin/sh -c '/usr/bin/curl -sS {at.url}'; exec curl -sS {at.url}"
    )
    mark = target.log.mark()
    done = run(["bash", "-c", script], via=servers("bundled").url("socks5"))
    assert done.status == 0, done
    assert done.out.count(town.EXIT) == 3, done
    assert {event.peer for event in target.log.since(mark)} == {town.EXIT}
