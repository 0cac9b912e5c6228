"""What an engine can't promise in some places, where the kernel or a container lets it do less; and what else it can't.

Each gap is looked for where the table says that it is, and, if that is in some places only, that it isn't elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pysocksify.engines import table
from pysocksify.engines.table import Gap
from pysocksify.kernel import FEATURES
from tests.conformance import test_gaps
from tests.lab import town
from tests.lab.accounts import Account
from tests.lab.done import Done
from tests.lab.scripted import Script
from tests.lab.targets import Target
from tests.lab.ways import ENGINES, Way
from tests.lab.wrapped import PlaceOf, Run, Scripted, Servers, Wrap, command, finish

REFUSED = 5  # REP, RFC 1928 section 6
DELAY = 0.6  # seconds for each of the scripted proxy's two replies
SOON = 150  # milliseconds: long before the chain stands
WITHOUT_SYS_PTRACE = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]

LINKS = "ip link set lo up && ip link add name v0 type veth peer name v1 && ip link set v0 up"
A_NETWORK = ["unshare", "--net", "sh", "-c", f'{LINKS} && exec "$@"', "sh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One gap's test: whether it's there, and what runs places.py in that place."""

    there: bool
    engine: str
    attempt: Callable[..., Done]
    via: str
    refused_via: str
    target: Target

    def values(self, how: str, port: str = "http") -> dict[str, str]:
        """What comes of one way through a proxy that works."""
        done = self.attempt(how, town.TARGET, self.target.ports[port], via=self.via)
        assert done.status == 0, done
        return done.values


def dissolving(case: Case) -> None:
    kept = {"connect": "0", "dissolve": "0", "again": "0"}
    assert case.values("dissolve") == ({"connect": "0", "dissolve": "ENOTSUP", "answered": "1"} if case.there else kept)


def changed_user(case: Case) -> None:
    done = case.attempt("setuid", town.TARGET, case.target.ports["http"], via=case.via)
    assert done.values == {"connect": "EACCES" if case.there else "0"}, done
    assert ("--engine preload" in done.err) == case.there, done


def listeners(case: Case) -> None:
    assert case.values("listener") == {"listener": "EBUSY" if case.there else "0"}


def udp_numbers(case: Case) -> None:
    assert case.values("number") == {"dup2": "EPERM" if case.there else "0"}


def udp_groups(case: Case) -> None:
    values = case.values("groups")
    assert values == ({"join": "ENODEV", "device": "EPERM"} if case.there else {"join": "0", "device": "0"})


def early(case: Case) -> None:
    """By a proxy that refuses once it has been asked."""
    # the python engine's own connect() goes on after a signal, as Python's does (PEP 475)
    for how in ("early", "limit", *(("interrupted",) if case.engine != "python" else ())):
        words = [how, town.TARGET, case.target.refused]
        done = case.attempt(*words, via=case.refused_via, env={"MILLISECONDS": str(SOON)})
        values = done.values
        assert values["connect"] == ("EINTR" if how == "interrupted" else "EINPROGRESS"), done
        if case.there:
            assert (values["writable"], values["error"], values["read"]) == ("1", "0", "ECONNRESET"), done
        else:
            assert (values["writable"], values["error"]) == ("0", "ECONNREFUSED"), done


CASES: dict[str, Callable[[Case], None]] = {
    "dissolving": dissolving,
    "changed-user": changed_user,
    "listeners": listeners,
    "udp-numbers": udp_numbers,
    "udp-groups": udp_groups,
    "early": early,
}
ELSEWHERE = {"udp-passed", "multicast", "inside-preload"}  # below, and in test_nested


def gaps() -> list[tuple[str, Gap, bool]]:
    """Engine and gap where it is, and where it isn't if that can be told."""
    found = [(name, gap) for name in ENGINES for gap in table.BY_NAME[name].gaps if gap.key in CASES]
    return [(name, gap, there) for name, gap in found for there in ((True, False) if gap.where else (True,))]


def test_every_gap_has_a_test() -> None:
    keys = {gap.key for engine in table.ENGINES for gap in engine.gaps}
    assert keys == test_gaps.CASES.keys() | CASES.keys() | ELSEWHERE


@pytest.mark.root
@pytest.mark.parametrize("without", ["enclosure", ""])
def test_a_udp_socket_from_another_program(
    without: str, user_account: Account, place: PlaceOf, lab_town: town.Town, target: Target, servers: Servers
) -> None:
    """The table's udp-passed: the firewall counts the datagram that names an interface, not the one before it."""
    way = Way(account=user_account, engine="seccomp", without=without)
    program = place(user_account, "").python("places.py", "passed", town.TARGET, str(target.ports["http"]))
    line = command(way, program, via=servers("bundled").url("socks5"), namespace=lab_town.closed)
    before = lab_town.leaks()
    done = finish(line, environment=way.environment)
    assert lab_town.leaks() - before == (1 if without else 0), done


@pytest.mark.root
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "ptrace"])  # which never encloses
@pytest.mark.parametrize("without", ["enclosure", ""])
def test_multicast(engine: str, without: str, root_account: Account, place: PlaceOf) -> None:
    """In a network of its own: the reports would come in the middle of other tests."""
    way = Way(account=root_account, engine=engine, without=without)
    program = place(root_account, "").python("places.py", "multicast", town.TARGET, "1")
    line = command(way, program, via=f"socks5://{town.PROXY}:1", starter=A_NETWORK)
    done = finish(line, environment=way.environment)
    hole = without and "multicast" in {gap.key for gap in table.BY_NAME[engine].in_place("enclosure")}
    assert done.values == ({"join": "0", "heard": "1"} if hole else {"join": "ENODEV", "heard": "0"}), done


@pytest.mark.root
def test_preload_carries_a_program_that_changes_its_user(
    root_account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    """What the line of the other engines says, in a default container."""
    run = Run(Way(account=root_account, engine="preload", around="docker"), wrap, place)
    words = ["setuid", town.TARGET, target.ports["http"]]
    done = run.python("places.py", *words, via=servers("bundled").url("socks5"))
    assert done.values == {"connect": "0"}, done


@pytest.mark.root
def test_preload_leaves_listeners_to_programs(
    user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    run = Run(Way(account=user_account, engine="preload"), wrap, place)
    done = run.python("places.py", "listener", town.TARGET, 1, via=servers("bundled").url("socks5"))
    assert done.values == {"listener": "0"}, done


@pytest.mark.root
@pytest.mark.parametrize(
    ("engine", "gap", "there"),
    gaps(),
    ids=lambda value: (
        value.key if isinstance(value, Gap) else ("elsewhere", "there")[value] if value in (0, 1) else value
    ),
)
def test_gap(
    engine: str,
    gap: Gap,
    there: bool,
    root_account: Account,
    user_account: Account,
    wrap: Wrap,
    place: PlaceOf,
    servers: Servers,
    scripted_proxy: Scripted,
    target: Target,
) -> None:
    account = root_account if gap.where == "sys_ptrace" else user_account
    way = Way(account=account, engine=engine, without=gap.where if there and gap.where in FEATURES else "")
    starter = WITHOUT_SYS_PTRACE if there and gap.where == "sys_ptrace" else []
    run = Run(way, wrap, place)

    def attempt(*words: object, **how: object) -> Done:
        return run.before(starter, way, run.at("").python("places.py", *map(str, words)), **how)

    case = Case(
        there=there,
        engine=engine,
        attempt=attempt,
        via=servers("bundled").url("socks5"),
        refused_via=scripted_proxy(Script(delay=DELAY, answers={town.TARGET: REFUSED})).url(),
        target=target,
    )
    CASES[gap.key](case)
