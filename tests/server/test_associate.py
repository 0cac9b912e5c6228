"""UDP ASSOCIATE on real sockets: headers by hand, remotes of both families, and who may send what to whom."""

import errno
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from pysocksify.address import UNSPECIFIED, Address
from pysocksify.protocol.socks5_udp import Reassembly
from pysocksify.reactor import READ, Reactor
from pysocksify.server import associate
from pysocksify.server.associate import AT_ONCE, Association
from pysocksify.server.happy_eyeballs import SockAddr
from tests.server.running import NOBODYS, need_ipv6

TIME_LIMIT = 10.0  # s, for what happens at once


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()


def udp(host: str = "127.0.0.1") -> socket.socket:
    """A datagram socket there."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.setblocking(False)
    return sock


def until(reactor: Reactor, done: Callable[[], bool], seconds: float = TIME_LIMIT) -> None:
    """Run the reactor until that is so."""
    end = reactor.now() + seconds
    while not done():
        assert reactor.now() < end, "it never came to that"
        timer = reactor.call_at(min(end, reactor.now() + 0.05), lambda: None)
        reactor.run_once()
        timer.cancel()


def quiet(reactor: Reactor, sock: socket.socket) -> None:
    """All that was sent has been worked off, and nothing came there."""
    reactor.call_soon(lambda: None)
    for _ in range(10):
        reactor.call_at(reactor.now(), lambda: None)
        reactor.run_once()
    with pytest.raises(BlockingIOError):
        sock.recv(65535)


class Party:
    """A client with its association, and what is around it."""

    def __init__(self, reactor: Reactor, here: str = "127.0.0.1") -> None:
        self.reactor = reactor
        self.here = here
        self.sock = udp(here)
        self.reasons: list[str] = []
        self.open: list[socket.socket] = [self.sock]
        self.asked: list[Address] = []
        self.denied: set[str] = set()
        self.associations: list[Association] = []

    def associate(
        self,
        *,
        expected: Address = UNSPECIFIED,
        hosts: Mapping[str, tuple[str, ...]] | None = None,
        idle: float = 300.0,
        client: Address | None = None,
    ) -> Association:
        def allows(address: Address) -> bool:
            self.asked.append(address)
            return address.host not in self.denied

        association = Association(
            self.reactor,
            client=client or Address(self.here, 1),
            local=self.here,
            expected=expected,
            hosts=hosts or {},
            allows=allows,
            may_reach=lambda destination, address: allows(address),
            idle=idle,
            ended=self.reasons.append,
        )
        self.associations.append(association)
        self.to = (association.bound.host, association.bound.port)
        return association

    def remote(self, host: str = "127.0.0.1") -> socket.socket:
        sock = udp(host)
        self.open.append(sock)
        return sock

    def send(self, to: socket.socket | tuple[str, int], data: bytes, *, frag: int = 0, sock: Any = None) -> None:
        """A datagram with its header, to a socket's address or to a name and a port."""
        host, port = to.getsockname()[:2] if isinstance(to, socket.socket) else to
        (sock or self.sock).sendto(header(host, port, frag) + data, self.to)

    def at(self, sock: socket.socket) -> tuple[bytes, Any]:
        """What comes to that socket, and from where."""
        self.arrives(sock)
        return sock.recvfrom(65535)

    def arrives(self, sock: socket.socket) -> None:
        came: list[int] = []
        self.reactor.watch(sock.fileno(), READ, came.append)
        try:
            until(self.reactor, lambda: bool(came))
        finally:
            self.reactor.unwatch(sock.fileno())

    def talks_to(self, remote: socket.socket, name: str = "") -> None:
        """A datagram there and one back, whose header names the remote's address."""
        host, port = remote.getsockname()[:2]
        self.send((name or host, port), b"ping")
        data, relay = self.at(remote)
        assert data == b"ping"
        remote.sendto(b"pong", relay)
        answer, _ = self.at(self.sock)
        assert answer == header(host, port) + b"pong"

    def close(self) -> None:
        for association in self.associations:
            association.cancel()
        for sock in self.open:
            sock.close()


def header(host: str, port: int, frag: int = 0) -> bytes:
    """By RFC 1928 section 7."""
    for atyp, family in ((1, socket.AF_INET), (4, socket.AF_INET6)):
        try:
            packed = socket.inet_pton(family, host)
        except OSError:
            continue
        return bytes((0, 0, frag, atyp)) + packed + port.to_bytes(2, "big")
    return bytes((0, 0, frag, 3, len(host))) + host.encode() + port.to_bytes(2, "big")


@pytest.fixture
def party(reactor: Reactor) -> Iterator[Party]:
    party = Party(reactor)
    yield party
    party.close()


def test_there_and_back(party: Party) -> None:
    association = party.associate()
    assert association.bound.host == "127.0.0.1"
    remote = party.remote()
    for _ in range(3):
        party.talks_to(remote)
    party.talks_to(party.remote("127.0.0.2"))
    assert (association.bytes_up, association.bytes_down) == (16, 16)
    assert party.reasons == []


def test_both_families_and_names_from_one_association(party: Party) -> None:
    need_ipv6()
    four, six = party.remote(), party.remote("::1")
    party.associate(hosts={"four.test": ("127.0.0.1",), "six.test": ("::1",)})
    party.talks_to(four)
    party.talks_to(six)
    party.talks_to(four, "four.test")
    party.talks_to(six, "six.test")


def test_a_client_that_comes_by_ipv6(reactor: Reactor) -> None:
    need_ipv6()
    party = Party(reactor, "::1")
    try:
        association = party.associate()
        assert association.bound.host == "::1"
        party.talks_to(party.remote("::1"))
        party.talks_to(party.remote())
    finally:
        party.close()


def test_one_port_for_all_remotes(party: Party) -> None:
    """What a STUN server says of it is so for the others too (RFC 4787 REQ-1)."""
    party.associate()
    ports = set()
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        remote = party.remote(host)
        party.send(remote, b"x")
        ports.add(party.at(remote)[1][1])
    assert len(ports) == 1


@pytest.mark.parametrize("size", [0, 1, 1472, 65507 - 10])
def test_sizes(party: Party, size: int) -> None:
    association = party.associate()
    remote = party.remote()
    party.send(remote, bytes(size))
    data, relay = party.at(remote)
    assert data == bytes(size)
    remote.sendto(b"a" * size, relay)
    assert len(party.at(party.sock)[0]) == size + 10
    assert (association.bytes_up, association.bytes_down) == (size, size)


def test_what_is_too_long_with_its_header_is_dropped(party: Party) -> None:
    association = party.associate()
    remote = party.remote()
    party.send(remote, b"x")
    _, relay = party.at(remote)
    remote.sendto(bytes(65507), relay)
    party.talks_to(remote)
    assert association.bytes_down == 4


# who may send


def test_only_the_first_sender_of_the_clients_host(party: Party) -> None:
    party.associate()
    remote, other, foreign = party.remote(), party.remote(), party.remote("127.0.0.2")
    party.send(remote, b"not from the client's host", sock=foreign)
    other.sendto(b"not a SOCKS datagram", party.to)
    other.sendto(b"", party.to)
    party.talks_to(remote)
    party.send(remote, b"a second sender", sock=other)
    party.send(remote, b"not from the client's host", sock=foreign)
    party.talks_to(remote)
    quiet(party.reactor, other)


def test_only_the_port_that_the_client_named(party: Party) -> None:
    party.associate(expected=Address(*party.sock.getsockname()))
    remote, other = party.remote(), party.remote()
    party.send(remote, b"from another port", sock=other)
    party.talks_to(remote)


@pytest.mark.parametrize(
    "expected", [Address("127.0.0.1", 0), Address("10.0.0.5", 9), Address("0.0.0.0", 9), Address("a.example", 9)]
)
def test_what_does_not_name_the_clients_port_is_no_limit(party: Party, expected: Address) -> None:
    """A client behind a NAT names the address that it knows."""
    party.associate(expected=expected)
    party.talks_to(party.remote())


def test_whom_the_client_has_sent_to_may_answer_from_any_port(party: Party) -> None:
    party.associate()
    asked, same_host, stranger = party.remote(), party.remote(), party.remote("127.0.0.2")
    party.send(asked, b"x")
    _, relay = party.at(asked)
    stranger.sendto(b"nobody asked", relay)
    same_host.sendto(b"from another port", relay)
    data, _ = party.at(party.sock)
    assert data == header(*same_host.getsockname()) + b"from another port"
    quiet(party.reactor, party.sock)


# rules and names


def test_every_destination_is_asked_about_and_every_address_of_a_name(party: Party) -> None:
    party.associate(hosts={"a.test": ("127.0.0.2", "127.0.0.1"), "bad.test": ("127.0.0.2",)})
    party.denied = {"127.0.0.2", "denied.test"}
    remote, hidden = party.remote(), party.remote("127.0.0.2")
    port = remote.getsockname()[1]
    party.send(hidden, b"denied")
    party.send(("denied.test", port), b"denied")
    party.send(("bad.test", hidden.getsockname()[1]), b"denied")
    party.talks_to(remote, "a.test")
    party.talks_to(remote, "a.test")
    quiet(party.reactor, hidden)
    asked = [str(address) for address in party.asked if address.port == port]
    assert asked == [f"{host}:{port}" for host in ("denied.test", "a.test", "127.0.0.2", "127.0.0.1")]


def test_an_address_that_can_not_be_sent_to_makes_way_for_the_next(party: Party) -> None:
    party.associate(hosts={"a.test": ("255.255.255.255", "127.0.0.1")})  # broadcast: EACCES
    remote = party.remote()
    party.talks_to(remote, "a.test")
    party.talks_to(remote, "a.test")


def test_names_are_looked_up_in_a_thread_and_kept(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    party.associate()
    remote = party.remote()
    lookups: list[bytes] = []

    def look_up(name: bytes, port: int) -> list[Any]:
        lookups.append(name)
        return [(socket.AF_INET, ("127.0.0.1", port))] if name == b"here.test" else []

    monkeypatch.setattr(associate, "look_up", look_up)
    port = remote.getsockname()[1]
    for number in range(5):  # all but the first wait with it
        party.send(("here.test", port), bytes((number,)))
    assert [party.at(remote)[0] for _ in range(5)] == [bytes((number,)) for number in range(5)]
    party.talks_to(remote, "here.test")
    assert lookups == [b"here.test"]
    for _ in range(3):
        party.send(("nowhere.test", port), b"x")
    party.talks_to(remote)
    party.talks_to(remote, "here.test")
    until(party.reactor, lambda: b"nowhere.test" in lookups)
    quiet(party.reactor, remote)
    assert lookups == [b"here.test", b"nowhere.test"]


def test_a_name_keeps_its_address_as_long_as_it_has_it(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(associate, "NAME_SECONDS", 0.0)
    remote, other = party.remote(), party.remote("127.0.0.2")
    port = remote.getsockname()[1]
    turns = [["127.0.0.1"], ["127.0.0.2", "127.0.0.1"]]
    monkeypatch.setattr(
        associate, "look_up", lambda name, port: [(socket.AF_INET, (host, port)) for host in turns.pop(0)]
    )
    party.associate()
    for _ in range(2):
        party.send(("turns.test", port), b"x")
        assert party.at(remote)[0] == b"x"
    assert turns == []
    quiet(party.reactor, other)


def test_a_real_name(party: Party) -> None:
    party.associate()
    remote = party.remote()
    party.send(("localhost", remote.getsockname()[1]), b"x")
    assert party.at(remote)[0] == b"x"
    party.send((NOBODYS.decode(), 9), b"x")
    party.talks_to(remote)


def test_what_waits_for_names_is_bounded(party: Party) -> None:
    association = party.associate()
    gate, threads = threading.Event(), party.reactor.threads(limit=1)
    threads.run(gate.wait, lambda value, error: None)
    remote = party.remote()
    for number in range(associate.LOOKUPS_AT_ONCE + 5):
        party.send((f"n{number}.test", 9), b"x")
        party.talks_to(remote)
    assert sum(map(len, threads._waiting.values())) == associate.LOOKUPS_AT_ONCE
    for _ in range(10):
        party.send(("n0.test", 9), bytes(60000))
        party.talks_to(remote)
    waiting = association._waiting
    assert sum(len(data) for queue in waiting.values() for data in queue) <= associate.WAITING_BYTES
    assert len(waiting[Address("n0.test", 9)]) == 5
    gate.set()


def test_names_that_wait_are_not_looked_up_after_the_end(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, asked = threading.Event(), []

    def look_up(name: bytes, port: int) -> list[SockAddr]:
        asked.append(name)
        return []

    monkeypatch.setattr(associate, "look_up", look_up)
    threads = party.reactor.threads(limit=1)
    threads.run(gate.wait, lambda value, error: None)
    association = party.associate()
    remote = party.remote()
    party.send(("late.test", 9), b"x")
    party.talks_to(remote)
    assert threads._waiting
    association.cancel()
    gate.set()
    until(party.reactor, lambda: not threads._running)
    assert asked == []


def test_destinations_are_forgotten_in_turn(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(associate, "REMEMBERED", 3)
    association = party.associate()
    remotes = [party.remote(f"127.0.0.{number}") for number in range(1, 7)]
    for remote in remotes:
        party.talks_to(remote)
    assert len(association._ways) == len(association._answerers) == 3
    party.talks_to(remotes[0])


# fragments


def test_fragments(party: Party) -> None:
    association = party.associate()
    remote = party.remote()
    party.send(remote, b"a", frag=1)
    party.send(remote, b"b", frag=2)
    party.send(remote, b"alone")
    party.send(remote, b"c", frag=0x83)
    assert [party.at(remote)[0] for _ in range(2)] == [b"alone", b"abc"]
    party.send(remote, b"lost", frag=2)
    party.send(remote, b"d", frag=1)
    party.send(remote, b"e", frag=0x82)
    assert party.at(remote)[0] == b"de"
    assert association.bytes_up == 10


def test_fragments_are_given_up_when_nothing_comes_any_more(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(associate, "Reassembly", lambda: Reassembly(0.1))
    association = party.associate()
    remote = party.remote()
    for _ in range(2):
        party.send(remote, b"a", frag=1)
        until(party.reactor, lambda: association._reassembly.held == 1)
        until(party.reactor, lambda: association._reassembly.held == 0)
        party.send(remote, b"b", frag=0x82)
    party.talks_to(remote)


# errors


def test_icmp_errors_end_nothing_and_do_not_spin(party: Party) -> None:
    party.associate()
    remote = party.remote()
    gone = udp("127.0.0.1")
    nobody = gone.getsockname()
    gone.close()
    party.talks_to(remote)
    for _ in range(5):
        party.send(nobody, b"x")  # ICMP port unreachable
        party.talks_to(remote)
    party.sock.close()  # the client's port is gone: an ICMP error for each answer
    relay = ("127.0.0.1", outer_port(party))
    for _ in range(5):
        remote.sendto(b"late", relay)
    association = party.associations[0]
    until(party.reactor, lambda: association.bytes_down == 4 * 6 + 4 * 5)
    calls = 0
    end = party.reactor.now() + 1.2
    while party.reactor.now() < end:
        party.reactor.call_at(end, lambda: None)
        party.reactor.run_once()
        calls += 1
    assert calls < 20
    assert party.reasons == []


def outer_port(party: Party) -> int:
    (sock,) = party.associations[0]._outer.values()
    return int(sock.getsockname()[1])


@pytest.mark.parametrize("to", [("255.255.255.255", 9), ("127.0.0.1", 0), ("0.0.0.0", 9), ("::", 9)])
def test_what_can_not_be_sent_to_is_dropped(party: Party, to: tuple[str, int]) -> None:
    association = party.associate()
    remote = party.remote()
    party.send(to, b"x")
    party.talks_to(remote)
    assert association.bytes_up == 4


def test_a_flood_leaves_room_for_others_and_full_buffers_are_survived(party: Party) -> None:
    association = party.associate()
    remote = party.remote()
    party.talks_to(remote)
    for _ in range(AT_ONCE * 4):
        party.send(remote, b"flood")
    party.reactor.run_once()
    assert association.bytes_up == 4 + 5 * AT_ONCE
    for _ in range(2000):  # more than the remote's buffer holds: it reads nothing
        party.send(remote, bytes(1400))
        party.reactor.call_at(party.reactor.now(), lambda: None)
        party.reactor.run_once()
    while True:
        try:
            remote.recv(65535)
        except BlockingIOError:
            break
    party.talks_to(remote)
    assert party.reasons == []


def test_no_descriptor(party: Party, reactor: Reactor) -> None:
    """No association without a port; one that is there survives it."""
    party.associate()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.dup(0)
    os.close(highest)
    remote = party.remote()
    full = highest + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (full, hard))
    try:
        with pytest.raises(OSError) as caught:
            party.associate()
        assert caught.value.errno == errno.EMFILE
        party.send(remote, b"there is no socket for it")
        quiet(reactor, remote)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    party.talks_to(remote)


def test_no_port_there(party: Party) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        Association(
            party.reactor,
            client=Address("192.0.2.1", 1),
            local="192.0.2.1",
            expected=UNSPECIFIED,
            hosts={},
            allows=lambda address: True,
            may_reach=lambda destination, address: True,
            idle=1.0,
            ended=party.reasons.append,
        )
    assert len(os.listdir("/proc/self/fd")) == before


# its end


def test_it_ends_when_idle(party: Party) -> None:
    party.associate(idle=1.0)
    remote = party.remote()
    for _ in range(3):
        party.talks_to(remote)
        start = party.reactor.now()
    until(party.reactor, lambda: bool(party.reasons))
    assert 1.0 <= party.reactor.now() - start < TIME_LIMIT
    assert party.reasons == ["no datagram for 1 s"]


def test_nothing_is_left_and_nothing_said_after_close(party: Party) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    association = party.associate(idle=1.0)
    remote = party.remote()
    party.talks_to(remote)
    party.send(remote, b"a", frag=1)
    party.send((NOBODYS.decode(), 9), b"x")
    party.send(remote, b"last")
    party.at(remote)
    association.cancel()
    association.cancel()
    remote.close()
    end = party.reactor.now() + 0.2
    party.reactor.call_at(end, party.reactor.stop)
    party.reactor.run()
    assert party.reasons == []
    left = len(os.listdir("/proc/self/fd")) - len(before)
    assert left <= 1  # the threads' eventfd, the reactor's own
