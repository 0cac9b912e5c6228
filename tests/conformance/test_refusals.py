"""Where an engine can't work, it says so in one line and runs nothing."""

import pytest

from tests.lab import town
from tests.lab.accounts import Account
from tests.lab.ways import AROUND, CAN_WORK, ENGINES, NESTED, Way
from tests.lab.wrapped import PlaceOf, Run, Servers, Wrap

CANNOT = [(engine, around) for around in AROUND for engine in ENGINES if engine not in CAN_WORK[around]]


@pytest.mark.root
@pytest.mark.parametrize(("engine", "around"), CANNOT, ids=lambda value: value)
def test_an_engine_that_cannot_work_here(
    engine: str, around: str, user_account: Account, wrap: Wrap, place: PlaceOf, servers: Servers
) -> None:
    outer = servers("bundled").url("socks5") if around == NESTED else ""
    way = Way(account=user_account, engine=engine, around=around, outer=outer)
    done = Run(way, wrap, place)(["echo", "ran"], via=servers("bundled").url("socks5"))
    assert done.refused, done


@pytest.mark.root
def test_a_feature_that_there_is_none_of(user_account: Account, wrap: Wrap, place: PlaceOf, servers: Servers) -> None:
    way = Way(account=user_account, without="gravity")
    done = Run(way, wrap, place)(["echo", "ran"], via=f"socks5://{town.PROXY}:1080")
    assert done.refused, done
    assert "gravity" in done.err, done
