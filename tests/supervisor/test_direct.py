"""The target's own socket as a transport: which hops it can reach itself, and what is left of a dial that failed."""

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pysocksify.address import Address
from pysocksify.reactor import InThread, Reactor, Ready, Steps
from pysocksify.supervisor.direct import DoesNotFit, TargetSocket
from tests.supervisor.holds import need_ipv6, needs_ipv6

PATIENCE = 10.0
IPV4, IPV6 = socket.AF_INET, socket.AF_INET6
CLOSE = 7
TCP_FASTOPEN_CONNECT = 30


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()


@pytest.fixture
def hop() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as hop:
        yield hop


@pytest.fixture
def nobody() -> Iterator[socket.socket]:
    """A port where nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield nobody


@pytest.fixture
def full() -> Iterator[socket.socket]:
    """A port that lets nobody in and says nothing."""
    with socket.socket() as full, socket.socket() as filler:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filler.connect(full.getsockname())
        yield full


def address_of(sock: socket.socket) -> Address:
    return Address(*sock.getsockname()[:2])


def run(reactor: Reactor, steps: Steps[Any]) -> Any:
    """The value of these steps, or their exception."""
    outcomes: list[tuple[Any, BaseException | None]] = []

    def too_long() -> None:
        raise AssertionError("it doesn't end")

    timer = reactor.call_at(reactor.now() + PATIENCE, too_long)
    reactor.spawn(steps, lambda value, error: outcomes.append((value, error)))
    while not outcomes:
        reactor.run_once()
    timer.cancel()
    ((value, error),) = outcomes
    if error is not None:
        raise error
    return value


def tcp_state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def so_error(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def open_steps(transport: TargetSocket, address: Address, seconds: float = PATIENCE) -> Steps[None]:
    return transport.open(address, Reactor.now() + seconds)


class TestOpen:
    def test_success(self, reactor: Reactor, hop: socket.socket) -> None:
        with socket.socket() as sock:
            transport = TargetSocket(sock)
            run(reactor, open_steps(transport, address_of(hop)))
            assert sock.getpeername() == hop.getsockname()
            assert os.get_blocking(sock.fileno())
            assert sock.connect_ex(hop.getsockname()) == errno.EISCONN, "the 0 has been said"
            assert transport.touched

    def test_refused(self, reactor: Reactor, nobody: socket.socket, hop: socket.socket) -> None:
        with socket.socket() as sock:
            transport = TargetSocket(sock)
            with pytest.raises(ConnectionRefusedError):
                run(reactor, open_steps(transport, address_of(nobody)))
            transport.give_up()
            assert (tcp_state(sock), so_error(sock)) == (CLOSE, 0)
            assert os.get_blocking(sock.fileno())
            sock.connect(hop.getsockname())

    def test_silence(self, reactor: Reactor, full: socket.socket, hop: socket.socket) -> None:
        with socket.socket() as sock:
            transport = TargetSocket(sock)
            with pytest.raises(TimeoutError):
                run(reactor, open_steps(transport, address_of(full), 0.05))
            assert os.get_blocking(sock.fileno()), "the flag was ours for one call only"
            transport.give_up()
            assert (tcp_state(sock), so_error(sock)) == (CLOSE, 0)
            sock.connect(hop.getsockname())

    def test_blocking_while_it_waits(self, reactor: Reactor, full: socket.socket) -> None:
        with socket.socket() as sock:
            steps = open_steps(TargetSocket(sock), address_of(full))
            wait = next(steps)
            assert isinstance(wait, Ready)
            assert wait.fd == sock.fileno()
            assert os.get_blocking(sock.fileno())
            steps.close()

    def test_another_hop_after_one_that_failed(
        self, reactor: Reactor, nobody: socket.socket, full: socket.socket, hop: socket.socket
    ) -> None:
        with socket.socket() as sock:
            transport = TargetSocket(sock)
            with pytest.raises(ConnectionRefusedError):
                run(reactor, open_steps(transport, address_of(nobody)))
            with pytest.raises(TimeoutError):
                run(reactor, open_steps(transport, address_of(full), 0.02))
            run(reactor, open_steps(transport, address_of(hop)))
            run(reactor, open_steps(transport, address_of(hop)))
            assert sock.getpeername() == hop.getsockname()

    def test_other_flags_of_the_file_stay(self, reactor: Reactor, hop: socket.socket) -> None:
        with socket.socket() as sock:
            fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | os.O_APPEND)
            before = fcntl.fcntl(sock, fcntl.F_GETFL)
            run(reactor, open_steps(TargetSocket(sock), address_of(hop)))
            assert fcntl.fcntl(sock, fcntl.F_GETFL) == before


class TestGiveUp:
    def test_nothing_was_done_yet(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            name = sock.getsockname()
            TargetSocket(sock).give_up()
            assert sock.getsockname() == name

    def test_a_bound_socket_keeps_its_name(self, reactor: Reactor, hop: socket.socket) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            name = sock.getsockname()
            transport = TargetSocket(sock)
            run(reactor, open_steps(transport, address_of(hop)))
            transport.give_up()
            assert sock.getsockname() == name
            assert tcp_state(sock) == CLOSE

    def test_the_hop_hears_of_it(self, reactor: Reactor, hop: socket.socket) -> None:
        with socket.socket() as sock:
            transport = TargetSocket(sock)
            run(reactor, open_steps(transport, address_of(hop)))
            peer, _ = hop.accept()
            transport.give_up()
            with peer:
                peer.settimeout(PATIENCE)
                with pytest.raises(ConnectionResetError):
                    peer.recv(1)

    def test_a_program_that_polls_is_woken_and_finds_no_error(self, reactor: Reactor, full: socket.socket) -> None:
        with socket.socket() as sock, select.epoll() as epoll:
            transport = TargetSocket(sock)
            steps = open_steps(transport, address_of(full))
            next(steps)
            epoll.register(sock, select.EPOLLOUT)
            assert epoll.poll(0) == []
            steps.close()
            transport.give_up()
            assert epoll.poll(PATIENCE) == [(sock.fileno(), select.EPOLLOUT | select.EPOLLHUP)]
            assert so_error(sock) == 0

    def test_tcp_fastopen_connect_is_there_again(self, reactor: Reactor, nobody: socket.socket) -> None:
        """The program's option: the socket is its own again, as it was."""
        with socket.socket() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            transport = TargetSocket(sock)
            with pytest.raises(ConnectionRefusedError):
                run(reactor, open_steps(transport, address_of(nobody)))
            transport.give_up()
            assert sock.getsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT) == 1


def test_tcp_fastopen_connect_doesnt_make_it_look_connected(reactor: Reactor, nobody: socket.socket) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        with pytest.raises(ConnectionRefusedError):
            run(reactor, open_steps(TargetSocket(sock), address_of(nobody)))


# the socket's family, IPV6_V6ONLY, what it's bound to, the hop's host, whether it fits
FITS: list[tuple[int, int, str | None, str, bool]] = [
    (IPV4, 0, None, "127.0.0.1", True),
    (IPV4, 0, "0.0.0.0", "192.0.2.1", True),
    (IPV4, 0, "127.0.0.1", "127.0.0.2", True),
    (IPV4, 0, "127.0.0.1", "192.0.2.1", False),
    (IPV4, 0, None, "::1", False),
    (IPV4, 0, None, "2001:db8::1", False),
    (IPV6, 0, None, "::1", True),
    (IPV6, 0, None, "127.0.0.1", True),
    (IPV6, 0, "::", "192.0.2.1", True),
    (IPV6, 1, None, "2001:db8::1", True),
    (IPV6, 1, None, "127.0.0.1", False),
    (IPV6, 1, "::", "192.0.2.1", False),
    (IPV6, 0, "::1", "::1", True),
    (IPV6, 0, "::1", "127.0.0.1", False),
    (IPV6, 0, "::1", "2001:db8::1", False),
    (IPV6, 0, "::ffff:127.0.0.1", "127.0.0.1", True),
    (IPV6, 0, "::ffff:127.0.0.1", "192.0.2.1", False),
    (IPV6, 0, "::ffff:127.0.0.1", "::1", False),
    (IPV6, 0, "::ffff:0.0.0.0", "127.0.0.1", True),
]


@pytest.mark.parametrize(("family", "only_ipv6", "bound", "host", "fits"), FITS)
def test_which_hops_a_socket_reaches(family: int, only_ipv6: int, bound: str | None, host: str, fits: bool) -> None:
    if family == IPV6:
        need_ipv6()
    with socket.socket(family) as sock:
        if family == IPV6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        if bound is not None:
            sock.bind((bound, 0))
        transport = TargetSocket(sock)
        assert transport._fits(IPV6 if ":" in host else IPV4, host) is fits
        if not fits:
            with pytest.raises(DoesNotFit):
                next(open_steps(transport, Address(host, 1080)))
            assert not transport.touched


class TestHopsByName:
    def open(
        self, transport: TargetSocket, reactor: Reactor, found: Sequence[tuple[int, tuple[str, int]]]
    ) -> Steps[None]:
        """open() of a name that has these addresses."""
        steps = open_steps(transport, Address("hop.example", 1080))
        step = next(steps)
        assert isinstance(step, InThread)
        try:
            step = steps.send(found)
            while True:
                step = steps.send((yield step))
        except StopIteration:
            return

    def test_what_doesnt_fit_is_passed_over_and_what_fails_is_followed_by_the_next(
        self, reactor: Reactor, hop: socket.socket, nobody: socket.socket
    ) -> None:
        found = [(IPV6, ("::1", 9)), (IPV4, nobody.getsockname()), (IPV4, hop.getsockname())]
        with socket.socket() as sock:
            run(reactor, self.open(TargetSocket(sock), reactor, found))
            assert sock.getpeername() == hop.getsockname()

    def test_the_last_failure_is_told(self, reactor: Reactor, nobody: socket.socket) -> None:
        with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
            run(reactor, self.open(TargetSocket(sock), reactor, [(IPV4, nobody.getsockname())]))

    def test_none_fits(self, reactor: Reactor) -> None:
        with socket.socket() as sock, pytest.raises(DoesNotFit):
            run(reactor, self.open(TargetSocket(sock), reactor, [(IPV6, ("::1", 9))]))


@needs_ipv6
def test_an_ipv4_address_on_an_ipv6_socket(reactor: Reactor, hop: socket.socket) -> None:
    with socket.socket(IPV6) as sock:
        run(reactor, open_steps(TargetSocket(sock), address_of(hop)))
        assert sock.getpeername()[0] == "::ffff:127.0.0.1"


def test_connect_with_an_address_of_the_wrong_family(reactor: Reactor) -> None:
    with socket.socket() as sock:
        transport = TargetSocket(sock)
        wrong = struct.pack("=H", socket.AF_UNIX) + bytes(26)
        with pytest.raises(OSError) as caught:
            run(reactor, transport.connect(wrong, None))
        assert caught.value.errno == errno.EAFNOSUPPORT
        assert not transport.touched
        assert os.get_blocking(sock.fileno())
