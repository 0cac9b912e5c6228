"""Nothing goes out beside the proxy: where there is no other way out, and where every way is open.

The fixture `wrap` looks after each test whether a packet was dropped by the closed client's firewall, or has come to
the target host from the open client's own address.
"""

import os

import pytest

from tests.lab import town
from tests.lab.accounts import Account
from tests.lab.clients import BY_NAME
from tests.lab.targets import Target
from tests.lab.wrapped import PlaceOf, Servers, Wrap, need

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces"),
]

REFUSED_WITH = {
    "raw icmp": {"EPERM"},
    "raw icmp6": {"EPERM"},
    "packet": {"EPERM"},
    "io_uring": {"ENOSYS"},
    "sctp": {"EPROTONOSUPPORT"},
    "mptcp": {"EPROTONOSUPPORT"},
}


@pytest.mark.parametrize("world", ["closed", "open"])
def test_other_ways_out(
    world: str, account: Account, wrap: Wrap, place: PlaceOf, lab_town: town.Town, target: Target, servers: Servers
) -> None:
    port = servers("bundled").port
    via = f"socks5://{town.PROXY if world == 'closed' else town.PROXY_FROM_OPEN}:{port}"
    mark = target.log.mark()
    words = place(account, town.TARGET).python("leak.py", town.TARGET, town.TARGET6, str(target.ports["http"]))
    done = wrap(account, words, via=via, namespace=getattr(lab_town, world))
    assert done.status == 0, done
    answers = dict(line.split(": ", 1) for line in done.out.splitlines())
    for name, wanted in REFUSED_WITH.items():
        assert answers[name] in wanted, name
    assert {event.peer for event in target.log.since(mark)} <= {town.EXIT, town.EXIT6}


@pytest.mark.parametrize(
    "name", ["curl", "python-asyncio", "go-http", "node-fetch", "java-socket", "static-musl", "c-threads", "raw-calls"]
)
def test_where_everything_is_open(
    name: str, user_account: Account, wrap: Wrap, place: PlaceOf, lab_town: town.Town, target: Target, servers: Servers
) -> None:
    """The target's log shows only the proxy's address, for its name and for its address."""
    client = BY_NAME[name]
    need(client.tool)
    mark = target.log.mark()
    via = servers("bundled").url("socks5", town.PROXY_FROM_OPEN)
    hosts = ["target.test", town.TARGET] if client.takes_names else [town.TARGET]
    for host in hosts:
        line = client.command(place(user_account, host))
        done = wrap(user_account, line, via=via, namespace=lab_town.open, stdin=client.stdin)
        assert done.status == 0, done
    assert {event.peer for event in target.log.since(mark)} == {town.EXIT}


@pytest.mark.parametrize("tool", ["dig", "getent"])
def test_questions_for_names_stay_here(
    tool: str, user_account: Account, wrap: Wrap, lab_town: town.Town, servers: Servers
) -> None:
    need(tool)
    ask = {
        "dig": ["dig", "+short", "+tries=1", "+time=3", "target.test"],
        "getent": ["getent", "ahosts", "target.test"],
    }
    done = wrap(user_account, ask[tool], via=servers("bundled").url("socks5"))
    assert done.status == 0, done
    assert done.out.startswith(("198.18.", "198.19.")), done


def test_a_proxy_that_is_gone(
    user_account: Account, wrap: Wrap, place: PlaceOf, lab_town: town.Town, target: Target
) -> None:
    """Where the target could be reached directly, it isn't."""
    gone = town.free_port(lab_town.proxy, town.PROXY_FROM_OPEN)
    mark = target.log.mark()
    url = place(user_account, town.TARGET).url
    via = f"socks5://{town.PROXY_FROM_OPEN}:{gone}"
    done = wrap(user_account, ["curl", "-sS", url], via=via, namespace=lab_town.open)
    assert done.status == 7, done
    assert str(gone) in done.err, "the line for the person names the hop"
    assert not target.log.since(mark)
