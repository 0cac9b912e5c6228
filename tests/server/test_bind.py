"""BIND on real sockets: where it listens, who gets in, who is reset, and how it ends."""

import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator, Mapping
from threading import Event

import pytest

from pysocksify.address import Address
from pysocksify.errors import Cause
from pysocksify.reactor import READ, Reactor
from pysocksify.server import bind
from pysocksify.server.bind import Bind
from pysocksify.server.happy_eyeballs import SockAddr
from tests.server.running import NOBODYS, need_ipv6

TIME_LIMIT = 10.0  # s, for what happens at once


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()


class Case:
    """A BIND and what came of it."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.bound: list[Address] = []
        self.peers: list[tuple[socket.socket, Address]] = []
        self.failures: list[tuple[Cause, str]] = []
        self.denied: set[str] = set()
        self.asked: list[Address] = []
        self.socks: list[socket.socket] = []

    def bind(
        self,
        expected: str,
        local: str = "127.0.0.1",
        seconds: float = 60.0,
        hosts: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Bind:
        def may_reach(address: Address) -> bool:
            self.asked.append(address)
            return address.host not in self.denied

        self.it = Bind(
            self.reactor,
            local=local,
            expected=Address.of(expected, 21),
            hosts=hosts or {},
            may_reach=may_reach,
            seconds=seconds,
            listening=self.bound.append,
            accepted=lambda sock, peer: self.peers.append((sock, peer)),
            failed=lambda cause, words: self.failures.append((cause, words)),
        )
        assert not self.bound
        assert not self.failures
        return self.it

    def until(self, done: Callable[[], object]) -> None:
        end = self.reactor.now() + TIME_LIMIT
        while not done():
            assert self.reactor.now() < end, "it never came to that"
            timer = self.reactor.call_at(self.reactor.now() + 0.05, lambda: None)
            self.reactor.run_once()
            timer.cancel()

    def listens(self) -> Address:
        self.until(lambda: self.bound or self.failures)
        assert self.failures == []
        return self.bound[0]

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection to it from there."""
        bound = self.bound[0]
        sock = socket.socket(bound.family or 0)
        self.socks.append(sock)
        sock.bind((source, 0))
        sock.connect((bound.host, bound.port))
        return sock

    def is_reset(self, sock: socket.socket) -> bool:
        came: list[int] = []
        self.reactor.watch(sock.fileno(), READ, came.append)
        self.until(lambda: came)
        self.reactor.unwatch(sock.fileno())
        try:
            sock.recv(1)
        except ConnectionResetError:
            return True
        return False

    def close(self) -> None:
        self.it.cancel()
        for sock in (*self.socks, *(sock for sock, _ in self.peers)):
            sock.close()


@pytest.fixture
def case(reactor: Reactor) -> Iterator[Case]:
    case = Case(reactor)
    yield case
    case.close()


def check_accepted(case: Case, sock: socket.socket) -> None:
    """This one got in, can be talked with, and nobody else can connect any more."""
    case.until(lambda: case.peers)
    mine, peer = case.peers[0]
    assert (peer.host, peer.port) == sock.getsockname()[:2]
    assert not mine.getblocking()
    assert not mine.get_inheritable()
    sock.sendall(b"220 hello")
    case.until(lambda: readable(mine))
    assert mine.recv(100) == b"220 hello"
    with pytest.raises(ConnectionRefusedError):
        case.connect(peer.host)
    assert (len(case.peers), case.failures) == (1, [])


def readable(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_the_expected_peer(case: Case) -> None:
    case.bind("127.0.0.2")
    bound = case.listens()
    assert bound.host == "127.0.0.1"  # by which this machine reaches it
    assert bound.port
    check_accepted(case, case.connect("127.0.0.2"))


@pytest.mark.parametrize("anybody", ["0.0.0.0", "::"])
def test_anybody(case: Case, anybody: str) -> None:
    case.bind(anybody, local="127.0.0.3")
    assert case.listens().host == "127.0.0.3"  # by which the client reached us
    check_accepted(case, case.connect("127.0.0.5"))


def test_others_are_reset_and_it_goes_on_waiting(case: Case) -> None:
    case.bind("127.0.0.2")
    case.listens()
    for source in ("127.0.0.1", "127.0.0.3"):
        assert case.is_reset(case.connect(source))
    strangers = [case.connect("127.0.0.4") for _ in range(bind.WAITING_PEERS)]
    sock = case.connect("127.0.0.2")
    check_accepted(case, sock)
    assert all(case.is_reset(stranger) for stranger in strangers)
    assert [peer.host for peer in case.asked] == ["127.0.0.2"]


def test_rules_are_asked_about_who_connects(case: Case) -> None:
    case.denied = {"127.0.0.4"}
    case.bind("0.0.0.0")
    case.listens()
    assert case.is_reset(case.connect("127.0.0.4"))
    check_accepted(case, case.connect("127.0.0.5"))


@pytest.mark.parametrize("expected", ["ftp.test", "127.0.0.9", "localhost"])
def test_none_that_is_allowed(case: Case, expected: str) -> None:
    """It's said at once, and no port is opened."""
    case.denied = {"127.0.0.8", "127.0.0.9", "127.0.0.1", "::1"}
    case.bind(expected, hosts={"ftp.test": ("127.0.0.8", "127.0.0.9")})
    case.until(lambda: case.failures or case.bound)
    assert case.failures == [(Cause.NOT_ALLOWED, f"{expected}: not to be reached from there")]
    assert case.bound == []


def test_some_that_are_allowed(case: Case) -> None:
    case.denied = {"127.0.0.2"}
    case.bind("ftp.test", hosts={"ftp.test": ("127.0.0.2", "127.0.0.3")})
    case.listens()
    assert case.is_reset(case.connect("127.0.0.2"))
    check_accepted(case, case.connect("127.0.0.3"))


def test_ipv6(case: Case) -> None:
    need_ipv6()
    case.bind("::1", local="::1")
    assert case.listens().host == "::1"
    check_accepted(case, case.connect("::1"))


def test_a_peer_of_another_family_than_the_client(case: Case) -> None:
    need_ipv6()
    case.bind("::1", local="127.0.0.1")
    assert case.listens().host == "::1"
    check_accepted(case, case.connect("::1"))


def test_all_addresses_of_a_name(case: Case) -> None:
    case.bind("ftp.test", hosts={"ftp.test": ("2001:db8::1", "127.0.0.2", "127.0.0.3")})
    assert case.listens().host == "127.0.0.1"
    assert case.is_reset(case.connect("127.0.0.1"))
    check_accepted(case, case.connect("127.0.0.3"))


def test_a_name_that_is_looked_up(case: Case) -> None:
    case.bind("localhost")
    assert case.listens().host == "127.0.0.1"
    assert case.is_reset(case.connect("127.0.0.2"))
    check_accepted(case, case.connect("127.0.0.1"))


def test_a_name_nobody_knows(case: Case) -> None:
    case.bind(NOBODYS.decode())
    case.until(lambda: case.failures)
    cause, words = case.failures[0]
    assert cause is Cause.HOST_UNREACHABLE
    assert NOBODYS.decode() in words
    assert case.bound == []


def test_a_peer_that_can_not_be_reached(case: Case) -> None:
    case.bind("255.255.255.255")
    case.until(lambda: case.failures)
    assert case.failures[0][0] in (Cause.NOT_ALLOWED, Cause.NETWORK_UNREACHABLE)
    assert case.bound == []


def test_an_address_that_is_not_here(case: Case) -> None:
    case.bind("0.0.0.0", local="192.0.2.1")
    case.until(lambda: case.failures)
    assert case.failures[0][0] is Cause.NETWORK_UNREACHABLE


def test_nobody_comes(case: Case) -> None:
    start = case.reactor.now()
    case.bind("127.0.0.2", seconds=0.2)
    case.listens()
    sock = case.connect("127.0.0.3")  # a stranger doesn't make it longer
    case.until(lambda: case.failures)
    assert 0.2 <= case.reactor.now() - start < TIME_LIMIT
    assert case.failures[0][0] is Cause.TIMED_OUT
    assert case.is_reset(sock)
    with pytest.raises(ConnectionRefusedError):
        case.connect("127.0.0.2")
    assert case.peers == []


def test_two_minutes_at_most(case: Case) -> None:
    start = case.reactor.now()
    it = case.bind("127.0.0.2", seconds=3600.0)
    assert it._timer.when <= start + 120 + TIME_LIMIT


@pytest.mark.parametrize("after", [0.0, 0.05])
def test_cancelled(case: Case, after: float) -> None:
    """At once, or while it listens: nothing is said any more, nothing is left."""
    it = case.bind("127.0.0.2", seconds=0.1)
    if after:
        case.reactor.call_at(case.reactor.now() + after, it.cancel)
    else:
        it.cancel()
    case.reactor.call_at(case.reactor.now() + 0.3, case.reactor.stop)
    case.reactor.run()
    assert (case.peers, case.failures) == ([], [])
    assert len(case.bound) == (1 if after else 0)
    if after:
        with pytest.raises(ConnectionRefusedError):
            case.connect("127.0.0.2")


def test_cancelled_while_a_name_is_looked_up(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, cancelled, answered = Event(), Event(), Event()

    def look_up(name: bytes, port: int) -> list[SockAddr]:
        begun.set()
        assert cancelled.wait(TIME_LIMIT)
        answered.set()
        return [(socket.AF_INET, ("127.0.0.1", port))]

    monkeypatch.setattr(bind, "look_up", look_up)
    it = case.bind("slow.test")
    assert begun.wait(TIME_LIMIT)
    it.cancel()
    cancelled.set()
    assert answered.wait(TIME_LIMIT)
    case.reactor.call_at(case.reactor.now() + 0.1, case.reactor.stop)
    case.reactor.run()
    assert (case.bound, case.peers, case.failures) == ([], [], [])


def test_cancelled_before_a_name_is_looked_up(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, asked = Event(), []

    def look_up(name: bytes, port: int) -> list[SockAddr]:
        asked.append(name)
        return []

    monkeypatch.setattr(bind, "look_up", look_up)
    case.reactor.threads(limit=1).run(gate.wait, lambda value, error: None)
    case.bind("first.test").cancel()
    case.bind("second.test")
    gate.set()
    case.until(lambda: case.failures)
    assert asked == [b"second.test"]


def test_cancelled_by_its_own_first_word(case: Case) -> None:
    case.bind("127.0.0.2", seconds=0.1)
    listening = case.bound.append
    case.it._listening = lambda bound: (listening(bound), case.it.cancel())[0]  # type: ignore[func-returns-value]
    case.listens()
    case.reactor.call_at(case.reactor.now() + 0.2, case.reactor.stop)
    case.reactor.run()
    assert case.failures == []


def test_out_of_descriptors_it_waits_and_recovers(case: Case) -> None:
    case.bind("127.0.0.2")
    case.listens()
    sock = case.connect("127.0.0.2")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        rounds = 0
        case.reactor.call_at(case.reactor.now() + 0.35, case.reactor.stop)
        while not case.reactor._stopped:
            case.reactor.run_once()
            rounds += 1
        case.reactor.run()
        assert rounds < 20
        assert case.peers == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    check_accepted(case, sock)


def test_no_descriptor_to_listen_with(case: Case) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        case.bind("127.0.0.2")
        case.until(lambda: case.failures)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert case.failures == [(Cause.GENERAL_FAILURE, os.strerror(errno.EMFILE))]
