"""pysocksify inside pysocksify: the inner one's chain goes through the outer one's proxies."""

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
