"""What an engine can't promise is what its entry in the table says, and is refused or goes past it as said there.

Each gap of each engine has its test here, by its key, or in test_gaps_of_places. An engine that has no such gap keeps
what the others can't.
"""

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pysocksify.engines import table
from pysocksify.engines.table import HOLE, REFUSED
from tests.lab import town
from tests.lab.accounts import Account
from tests.lab.clients import BY_NAME
from tests.lab.done import Done
from tests.lab.targets import Target
from tests.lab.ways import ENGINES, Way
from tests.lab.wrapped import PlaceOf, Run, Servers, Wrap

KEPT = "kept"
I386 = 3  # EM_386


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One gap to be tested: how it ends, and what the test needs. `run` wraps with the engine."""

    outcome: str
    run: Run
    via: str
    target: Target
    lab_town: town.Town
    folder: Path

    def __call__(self, *argv: str, **how: object) -> Done:
        """Runs a command line."""
        return self.run(argv, via=self.via, **how)

    @property
    def built(self) -> Path:
        """The folder of the built programs."""
        return self.run.at("").built

    def connects(self, command: Callable[[str, str], list[str]]) -> None:
        """A program that connects: kept, it comes to the target from the proxy; refused, to nobody.

        In a hole, it comes from this host: to a listener on this host, as the firewall would count all else.
        """
        mark = self.target.log.mark()
        if self.outcome == HOLE:
            with neighbour(self.lab_town) as (port, accepted):
                done = self(*command(town.CLOSED, str(port)))
                assert accepted() == town.CLOSED, done
            return
        done = self(*command(town.TARGET, str(self.target.ports["watch"])))
        peers = {event.peer for event in self.target.log.since(mark)}
        if self.outcome == KEPT:
            assert done.status == 0, done
            self.target.log.wait(mark, lambda event: event.what == "connected" and event.peer == town.EXIT)
        else:
            assert done.status != 0 or "connected" not in done.out, done
            assert not peers, done


@contextlib.contextmanager
def neighbour(lab_town: town.Town) -> Iterator[tuple[int, Callable[[], str]]]:
    """A listener of the closed client's own: its port, and who came."""
    with town.listener(lab_town.closed, town.CLOSED) as listening:
        listening.settimeout(10)

        def accepted() -> str:
            sock, (peer, _) = listening.accept()
            sock.close()
            return str(peer)

        yield listening.getsockname()[1], accepted


def setuid(case: Case) -> None:
    done = case("/usr/bin/su", "--version")
    assert done.refused, done
    assert "set" in done.err, done


def undumpable(case: Case) -> None:
    """PR_SET_DUMPABLE: what only asks is the kernel's to answer, what connects is refused."""
    done = case(f"{case.built}/behaviour", "closed", town.TARGET, str(case.target.ports["http"]))
    again = errno.EACCES if case.outcome == REFUSED else 0
    assert done.values == {"connect": "0", "peer": "0", "error": "0", "again": str(again)}, done


def io_uring(case: Case) -> None:
    done = case(f"{case.built}/gaps", "uring", town.TARGET, "1")
    assert int(done.values["uring"]) == (0 if case.outcome == HOLE else errno.ENOSYS), done


def foreign_sockets(case: Case) -> None:
    """A socket that was made before pysocksify ran, where the program's sockets can't be taken."""
    way = case.run.way
    at = case.run.at("")
    lesser = Way(account=way.account, engine=way.engine, without="pidfd_getfd")
    for one in (way, lesser) if case.outcome == REFUSED else (way,):
        program = at.python("gaps.py", "inherited", town.TARGET, str(case.target.ports["watch"]))
        done = case.run.before(at.python("with_socket.py"), one, program, via=case.via)
        assert (done.out.strip() == "connected") == (one is way), done


def static(case: Case) -> None:
    program = f"{case.built}/byname-musl"
    done = case(program, town.TARGET, str(case.target.ports["http"]))
    assert done.refused, done
    child = case("sh", "-c", f"{program} {town.TARGET} {case.target.ports['http']}; echo $?")
    assert child.out.strip() == "126", child
    assert "static" in child.err, child


def go(case: Case) -> None:
    done = case(f"{case.built}/godial-dynamic", f"{town.TARGET}:{case.target.ports['http']}")
    assert done.refused, done


def other_machine(case: Case) -> None:
    """A program whose header says so; it need not run."""
    program = case.folder / "program-i386"
    shutil.copy("/bin/true", program)
    with program.open("r+b") as file:
        file.seek(4)
        file.write(b"\x01")  # EI_CLASS: ELFCLASS32
        file.seek(18)
        file.write(bytes([I386, 0]))  # e_machine
    program.chmod(0o755)
    assert case(str(program)).refused


def raw_calls(case: Case) -> None:
    case.connects(lambda host, port: [f"{case.built}/gaps", "raw", host, port])


def debuggers(case: Case) -> None:
    done = case(f"{case.built}/gaps", "traced", town.TARGET, "1")
    assert int(done.values["traced"]) == (errno.EPERM if case.outcome == REFUSED else 0), done


def interfaces(case: Case) -> None:
    done = case.run.python("leak.py", town.TARGET, town.TARGET6, case.target.ports["http"], via=case.via)
    answer = next(line for line in done.out.splitlines() if line.startswith("udp pktinfo: "))
    assert case.outcome != REFUSED or "sent" not in answer, done


def not_python(case: Case) -> None:
    for name in ("curl", "go-dial", "raw-calls"):
        done = case(*BY_NAME[name].command(case.run.at(town.TARGET)))
        assert done.refused, done
    gaps_by(case, "child")


def uvloop(case: Case) -> None:
    gaps_by(case, "uvloop")


def isolated(case: Case) -> None:
    gaps_by(case, "isolated")


def extensions(case: Case) -> None:
    gaps_by(case, "ctypes")


def from_shells(case: Case) -> None:
    case.connects(lambda host, port: ["sh", "-c", f"bash -c 'exec 3<>/dev/tcp/{host}/{port}'"])


def gaps_by(case: Case, how: str) -> None:
    """A way of connecting of gaps.py."""
    case.connects(lambda host, port: case.run.at("").python("gaps.py", how, host, port))


CASES: dict[str, Callable[[Case], None]] = {
    "setuid": setuid,
    "undumpable": undumpable,
    "io_uring": io_uring,
    "foreign-sockets": foreign_sockets,
    "static": static,
    "go": go,
    "other-machine": other_machine,
    "raw-calls": raw_calls,
    "debuggers": debuggers,
    "interfaces": interfaces,
    "not-python": not_python,
    "uvloop": uvloop,
    "isolated": isolated,
    "extensions": extensions,
    "from-shells": from_shells,
}
NOT_ALSO_KEPT = {"setuid", "static", "go", "other-machine", "not-python", "interfaces", "io_uring"}
"""What other engines refuse too or is tested with programs; and a C program isn't one that the python engine runs."""
IN_C = {"undumpable", "io_uring", "raw-calls", "debuggers"}


def outcomes() -> list[tuple[str, str, str]]:
    """Every engine with every key: as the table says, and else kept where that can be told."""
    found = []
    for name in ENGINES:
        gaps = {gap.key: gap.outcome for gap in table.BY_NAME[name].gaps if gap.key in CASES}
        found += [(name, key, outcome) for key, outcome in gaps.items()]
        for key in CASES.keys() - gaps.keys() - NOT_ALSO_KEPT:
            if name != "python" or key not in IN_C:
                found.append((name, key, KEPT))
    return sorted(found)


@pytest.mark.root
@pytest.mark.parametrize(("engine", "gap", "outcome"), outcomes())
def test_gap(
    engine: str,
    gap: str,
    outcome: str,
    user_account: Account,
    wrap: Wrap,
    place: PlaceOf,
    servers: Servers,
    target: Target,
    lab_town: town.Town,
    folder: Path,
) -> None:
    if gap == "uvloop" and not user_account.same_python:
        pytest.skip("uvloop is installed for another version of Python than this account's")
    run = Run(Way(account=user_account, engine=engine), wrap, place)
    via = servers("bundled").url("socks5")
    case = Case(outcome=outcome, run=run, via=via, target=target, lab_town=lab_town, folder=folder)
    CASES[gap](case)
