"""One destination, many addresses: their order, the delay between them, and which failure is told."""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from pysocksify.address import Address
from pysocksify.errors import Cause
from pysocksify.reactor import Reactor
from pysocksify.server import happy_eyeballs
from pysocksify.server.happy_eyeballs import ATTEMPT_DELAY, ConnectRace, SockAddr, interleave
from tests.server.running import NOBODYS

V4, V6 = socket.AF_INET, socket.AF_INET6
Outcome = tuple[socket.socket | None, Cause | None, str]


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()


class Port:
    """A port number with something different on each loopback address: 127.0.0.1 is silent, .2 answers, .3 refuses."""

    def __init__(self) -> None:
        self.silent, self.filler, self.answering = socket.socket(), socket.socket(), socket.socket()
        self.silent.bind(("127.0.0.1", 0))
        self.number: int = self.silent.getsockname()[1]
        self.silent.listen(0)
        self.filler.connect(self.silent.getsockname())
        self.answering.bind(("127.0.0.2", self.number))
        self.answering.listen()

    def close(self) -> None:
        for sock in (self.silent, self.filler, self.answering):
            sock.close()


SILENT, ANSWERING, REFUSING, UNREACHABLE = "127.0.0.1", "127.0.0.2", "127.0.0.3", "255.255.255.255"


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.close()


def race(reactor: Reactor, port: Port, *hosts: str, timeout: float = 20) -> tuple[Outcome, float]:
    """The outcome for a name with these addresses, and the seconds that it took."""
    outcomes: list[Outcome] = []

    def done(sock: socket.socket | None, cause: Cause | None, words: str) -> None:
        outcomes.append((sock, cause, words))
        reactor.stop()

    start = reactor.now()
    ConnectRace(reactor, Address("many.test", port.number), {"many.test": hosts}, timeout, done)
    assert not outcomes, "done comes later, never from the constructor"
    reactor.run()
    assert len(outcomes) == 1
    sock = outcomes[0][0]
    if sock is not None:
        assert sock.getpeername()[0] == ANSWERING
        sock.close()
    return outcomes[0], reactor.now() - start


@pytest.fixture
def long_delay(monkeypatch: pytest.MonkeyPatch) -> float:
    """Until the next attempt, so long that a busy machine isn't taken for it."""
    monkeypatch.setattr(happy_eyeballs, "ATTEMPT_DELAY", 10.0)
    return 10.0


def test_the_first_that_answers(reactor: Reactor, port: Port, long_delay: float) -> None:
    (sock, cause, _), seconds = race(reactor, port, ANSWERING, SILENT)
    assert sock is not None
    assert cause is None
    assert seconds < long_delay


def test_one_that_does_not_answer_costs_the_delay(reactor: Reactor, port: Port) -> None:
    (sock, _, _), seconds = race(reactor, port, SILENT, ANSWERING)
    assert sock is not None
    assert seconds >= ATTEMPT_DELAY


@pytest.mark.parametrize("failing", [(REFUSING,), (UNREACHABLE,), (REFUSING, UNREACHABLE, REFUSING)])
def test_failures_cost_nothing(reactor: Reactor, port: Port, long_delay: float, failing: tuple[str, ...]) -> None:
    (sock, _, _), seconds = race(reactor, port, *failing, ANSWERING)
    assert sock is not None
    assert seconds < long_delay


@pytest.mark.parametrize(
    ("hosts", "cause"),
    [
        ((REFUSING,), Cause.REFUSED),
        ((UNREACHABLE,), Cause.NETWORK_UNREACHABLE),
        ((UNREACHABLE, REFUSING), Cause.REFUSED),
        ((REFUSING, UNREACHABLE), Cause.REFUSED),
        ((SILENT,), Cause.TIMED_OUT),
        ((UNREACHABLE, SILENT), Cause.TIMED_OUT),
        ((SILENT, REFUSING), Cause.REFUSED),
    ],
)
def test_the_failure_that_says_most(reactor: Reactor, port: Port, hosts: tuple[str, ...], cause: Cause) -> None:
    (sock, told, words), _ = race(reactor, port, *hosts, timeout=0.3)
    assert sock is None
    assert told is cause
    assert words


def test_a_name_nobody_knows(reactor: Reactor, port: Port) -> None:
    outcomes: list[Outcome] = []
    ConnectRace(
        reactor,
        Address(NOBODYS.decode(), port.number),
        {},
        30,
        lambda *outcome: (outcomes.append(outcome), reactor.stop())[1],  # type: ignore[func-returns-value]
    )
    reactor.run()
    assert outcomes[0][1] is Cause.HOST_UNREACHABLE
    assert NOBODYS.decode() in outcomes[0][2]


@pytest.mark.parametrize("host", [SILENT, NOBODYS.decode()])
def test_cancelled(reactor: Reactor, port: Port, host: str) -> None:
    """Nothing is said any more, also not by the resolver's late answer."""
    outcomes: list[Outcome] = []
    contest = ConnectRace(reactor, Address(host, port.number), {}, 0.05, lambda *outcome: outcomes.append(outcome))
    reactor.call_soon(contest.cancel)
    reactor.call_at(reactor.now() + 0.1, reactor.stop)
    reactor.run()
    assert outcomes == []


@pytest.mark.parametrize("hosts", [(ANSWERING,), (ANSWERING, ANSWERING)])
def test_no_room_in_the_epoll_set(
    reactor: Reactor, port: Port, monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]
) -> None:
    """That attempt has failed, and at once: the next one is tried, or the reason told."""
    full = [True]
    watch = reactor.watch

    def watch_later(fd: int, events: int, callback: Callable[[int], None]) -> None:
        if full:
            full.clear()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch(fd, events, callback)

    monkeypatch.setattr(reactor, "watch", watch_later)
    before = len(os.listdir("/proc/self/fd"))
    (sock, cause, words), _ = race(reactor, port, *hosts)
    assert (sock is None) is (len(hosts) == 1)
    if sock is None:
        assert cause is Cause.GENERAL_FAILURE
        assert words == f"{ANSWERING}: {os.strerror(errno.ENOSPC)}"
    assert len(os.listdir("/proc/self/fd")) == before


def ignored(*outcome: object) -> None:
    return


def test_a_cancelled_one_asks_no_resolver(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, asked = threading.Event(), []

    def look_up(name: bytes, port: int) -> list[SockAddr]:
        asked.append(name)
        return []

    monkeypatch.setattr(happy_eyeballs, "look_up", look_up)
    reactor.threads(limit=1).run(gate.wait, ignored)
    races = [ConnectRace(reactor, Address(f"n{n}.test", 9), {}, 20, ignored) for n in range(3)]
    for each in races:
        each.cancel()
    ConnectRace(reactor, Address("last.test", 9), {}, 20, lambda *outcome: reactor.stop())
    gate.set()
    reactor.run()
    assert asked == [b"last.test"]


def test_slow_names_of_one_client_leave_threads_to_others(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it has hung up: what is asked already can't be stopped."""
    gate = threading.Event()

    def look_up(name: bytes, port: int) -> list[SockAddr]:
        if name == b"slow.test":
            gate.wait()
        return []

    monkeypatch.setattr(happy_eyeballs, "look_up", look_up)
    for _ in range(100):
        slow = ConnectRace(reactor, Address("slow.test", 9), {}, 20, ignored, source="192.0.2.1")
        reactor.call_soon(slow.cancel)
    outcomes: list[Outcome] = []

    def done(sock: socket.socket | None, cause: Cause | None, words: str) -> None:
        outcomes.append((sock, cause, words))
        reactor.stop()

    ConnectRace(reactor, Address("quick.test", 9), {}, 20, done, source="192.0.2.2")
    reactor.run()
    gate.set()
    assert outcomes == [(None, Cause.HOST_UNREACHABLE, "quick.test: it has no address")]


CASES: list[tuple[str, str]] = [
    ("", ""),
    ("4", "4"),
    ("444", "444"),
    ("666444", "646464"),
    ("446", "464"),
    ("64444", "64444"),
    ("4666", "4666"),
]


@pytest.mark.parametrize(("given", "order"), CASES)
def test_families_take_turns(given: str, order: str) -> None:
    addresses: list[SockAddr] = [(V6 if family == "6" else V4, number) for number, family in enumerate(given)]
    result = interleave(addresses)
    assert "".join("6" if family == V6 else "4" for family, _ in result) == order
    for family in (V4, V6):
        assert [address for address in result if address[0] == family] == [a for a in addresses if a[0] == family]
