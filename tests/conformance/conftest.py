"""The conformance suite: each promise written once and kept by every engine.

A test that asks for `run` (or `way`) is run once for each way of `tests.lab.ways`. One that runs `behaviour`, a program
in C, or is marked `foreign`, isn't run with the engines that refuse such programs, as test_programs asserts.
`promise(key)` names what a test is about: where that is said not to be promised, the test must fail.
"""

import pytest

from tests.lab import town
from tests.lab.accounts import Account
from tests.lab.done import Done
from tests.lab.targets import Target
from tests.lab.ways import NESTED, Named, Way, usual, ways
from tests.lab.wrapped import Behaviour, PlaceOf, Run, Wrap

LOST_WITHOUT = {
    # a non-blocking connect succeeds before the chain stands, whatever becomes of it
    "simultaneous_open": {"held"},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The ways of every test that has one."""
    if "way" not in metafunc.fixturenames:
        return
    foreign = metafunc.definition.get_closest_marker("foreign")
    everywhere = metafunc.definition.get_closest_marker("everywhere")
    kind = "dynamic" if foreign or "behaviour" in metafunc.fixturenames else "python"
    found = ways(
        kind=foreign.args[0] if foreign and foreign.args else kind,
        everywhere=everywhere.kwargs.get("only", usual) if everywhere else None,
        every_pair=metafunc.config.getoption("--every-pair"),
    )
    lab = "run" in metafunc.fixturenames
    marks = {one: [pytest.mark.root] if lab or one.needs_root else [] for one in found}
    metafunc.parametrize("way", [pytest.param(one, marks=marks[one], id=str(one)) for one in found], indirect=True)


def not_promised(named: Named, key: str) -> str:
    """Why this isn't promised in this way; "" when it is."""
    if key in LOST_WITHOUT.get(named.without, ()):
        return f"lost without {named.without}"
    return ""


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Way:
    """One way of wrapping a program."""
    named: Named = request.param
    if named.needs_root:
        request.getfixturevalue("root_only")
    for marker in request.node.iter_markers("promise"):
        if reason := not_promised(named, marker.args[0]):
            request.applymarker(pytest.mark.xfail(reason=reason, raises=AssertionError))
    account: Account = request.getfixturevalue(f"{named.account}_account")
    outer = request.getfixturevalue("servers")("bundled").url("socks5") if named.around == NESTED else ""
    return Way(account=account, engine=named.engine, around=named.around, without=named.without, outer=outer)


@pytest.fixture
def run(way: Way, wrap: Wrap, place: PlaceOf) -> Run:
    """Runs programs in this way."""
    return Run(way, wrap, place)


@pytest.fixture
def behaviour(run: Run, target: Target) -> Behaviour:
    """Runs one of the ways of connecting of behaviour.c: `behaviour("twice", via=url)`."""

    def one(what: str, *extra: str, **how: object) -> Done:
        at = run.at(town.TARGET)
        return run([f"{at.built}/behaviour", what, town.TARGET, at.port, *extra], **how)

    return one


@pytest.fixture
def echo(target: Target) -> str:
    """HOST:PORT of the target's echo service."""
    return f"{town.TARGET}:{target.ports['echo']}"
