"""pysocksify inside pysocksify: the inner one's chain goes through the outer one's proxies.

By default the outer one takes seccomp; where it uses preload, ptrace can't be used inside.
"""

import pytest

from tests.lab import town
from tests.lab.accounts import Account
from tests.lab.clients import BY_NAME
from tests.lab.scripted import Script
from tests.lab.targets import Target
from tests.lab.ways import CAN_WORK, NESTED, Way
from tests.lab.wrapped import PlaceOf, Run, Scripted, Wrap, need


@pytest.mark.root
@pytest.mark.parametrize("name", ["curl", "go-dial", "node-net", "python-urllib", "python-asyncio"])
@pytest.mark.parametrize("engine", ["auto", *CAN_WORK[NESTED]])
def test_a_chain_within_a_chain(
    name: str,
    engine: str,
    user_account: Account,
    wrap: Wrap,
    place: PlaceOf,
    target: Target,
    scripted_proxy: Scripted,
) -> None:
    client = BY_NAME[name]
    need(client.tool)
    outer, inner = scripted_proxy(Script()), scripted_proxy(Script())
    way = Way(account=user_account, engine=engine, around=NESTED, outer=outer.url())
    run = Run(way, wrap, place)
    mark = target.log.mark()
    done = run(client.command(run.at(town.TARGET)), via=inner.url(), stdin=client.stdin)
    if way.refuses(client.kind):
        assert done.refused, done
        assert (outer.asked, inner.asked) == ([], [])
        return
    assert done.status == 0, done
    assert {(one.host, one.port) for one in outer.asked} == {(town.PROXY, inner.port)}
    assert {one.peer for one in outer.asked} == {town.CLOSED}
    assert {(one.host, one.port) for one in inner.asked} == {(town.TARGET, target.ports["http"])}
    assert {one.peer for one in inner.asked} == {town.PROXY}, "the outer proxy is the inner one's client"
    assert {event.peer for event in target.log.since(mark)} == {town.EXIT}


@pytest.mark.root
@pytest.mark.parametrize(
    ("engine", "around", "taken"),
    [
        ("ptrace", "", ""),
        ("auto", "", "seccomp"),
        ("auto", "no-seccomp", "preload"),
        ("preload", "no-seccomp", "preload"),
    ],
)
def test_inside_preload(
    engine: str,
    around: str,
    taken: str,
    user_account: Account,
    wrap: Wrap,
    place: PlaceOf,
    target: Target,
    scripted_proxy: Scripted,
) -> None:
    """By name: with ptrace the program's UDP sockets and the inner one's would be made in different namespaces."""
    outer, inner = scripted_proxy(Script()), scripted_proxy(Script())
    way = Way(account=user_account, engine=engine, around=around)
    run = Run(way, wrap, place)
    preloading = [*user_account.pysocksify, "--engine", "preload", "-p", outer.url()]
    curl = BY_NAME["curl"].command(run.at("target.test"))
    done = run.before(preloading, way, curl, via=inner.url(), options=["-v"])
    if not taken:
        assert done.refused, done
        assert "programs couldn't ask for names" in done.err, done
        return
    assert done.status == 0, done
    assert f"pysocksify: engine {taken}" in done.err, done
    assert {(one.host, one.port) for one in outer.asked} == {(town.PROXY, inner.port)}
    assert {(one.host, one.port) for one in inner.asked} == {("target.test", target.ports["http"])}


@pytest.mark.root
def test_a_static_program_inside_preload_without_seccomp(
    user_account: Account, wrap: Wrap, place: PlaceOf, scripted_proxy: Scripted
) -> None:
    """Nothing is left for it, and each reason is said."""
    proxy = scripted_proxy(Script())
    way = Way(account=user_account, around="no-seccomp")
    run = Run(way, wrap, place)
    preloading = [*user_account.pysocksify, "-p", proxy.url()]
    done = run.before(preloading, way, BY_NAME["static-musl"].command(run.at(town.TARGET)), via=proxy.url())
    assert done.refused, done
    for words in ("seccomp can't be used here", "static program", "programs couldn't ask for names"):
        assert words in done.err, done
