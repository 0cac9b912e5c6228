"""Connections, with the real kernel on one side and calls of a made-up engine on the other."""

import errno
import os
import random
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NoReturn

import pytest

from pysocksify.address import Address
from pysocksify.dial.hops import dial
from pysocksify.dial.transport import perform
from pysocksify.errors import DialError
from pysocksify.reactor import READ, Ready, Steps
from pysocksify.route.chain import Chain, ChainState, Proxy
from pysocksify.supervisor import connections as module
from pysocksify.supervisor import hold as holding
from pysocksify.supervisor.calls import Signalled
from pysocksify.supervisor.connection import Dial, State, cookie_of, is_connected, send_timeout
from pysocksify.supervisor.hold import TCP_FASTOPEN_CONNECT
from tests.supervisor.connecting import (
    CLOSE,
    DESTINATION,
    PATIENCE,
    REFUSED,
    SYN_SENT,
    TO_DESTINATION,
    UNREACHABLE,
    Lab,
    MadeUpCall,
    open_files,
    poll,
    so_error,
    tcp_state,
)
from tests.supervisor.holds import needs_ipv6


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    before = open_files()
    lab = Lab(signalled=getattr(request, "param", Signalled.LOOKED_FOR))
    yield lab
    lab.close()
    assert open_files() == before


class TestDirect:
    """A blocking connect(): the program's own socket goes to the first hop."""

    def test_success(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        call = lab.connect(sock, lab.through())
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]
        assert lab.told == [(("a hop",), None)]
        assert sock.getpeername() == lab.hop.getsockname()
        assert os.get_blocking(sock.fileno())
        assert lab.connections.pending == 0
        peer, _ = lab.hop.accept()
        with peer:
            peer.send(b"x")
            assert sock.recv(10) == b"x"
        assert lab.joined == []

    def test_the_caller_waits_until_the_chain_is_up(self, lab: Lab) -> None:
        call = lab.connect(lab.sock(blocking=True), lab.through(gate=True))
        lab.run_for(0.05)
        assert call.answers == []
        assert lab.connections.pending == 1
        lab.open_gate()
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]

    @pytest.mark.parametrize("failure", [UNREACHABLE, REFUSED, OSError(errno.ENETUNREACH, "x"), TimeoutError()])
    def test_failure_leaves_a_socket_that_can_be_used_again(self, lab: Lab, failure: DialError | OSError) -> None:
        sock = lab.sock(blocking=True)
        call = lab.connect(sock, lab.through(failure))
        lab.run_until(lambda: call.answers)
        assert call.answers == [failure.errno or errno.ETIMEDOUT]
        assert tcp_state(sock) == CLOSE
        assert so_error(sock) == 0
        assert not lab.connections.failures_kept
        assert lab.connections.find(sock) is None
        call = lab.connect(sock, lab.through())
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]
        assert len(lab.told) == 2

    def test_a_first_hop_where_nobody_listens(self, lab: Lab) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            sock = lab.sock(blocking=True)
            call = lab.connect(sock, lab.through(to=Address(*bound.getsockname())))
            lab.run_until(lambda: call.answers)
        assert call.answers == [errno.ECONNREFUSED]
        assert os.get_blocking(sock.fileno())

    def test_it_is_connected_afterwards(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        lab.connect(sock, lab.through())
        lab.run_until(lambda: lab.told)
        for _ in range(2):
            assert lab.connect(sock, lab.through()).answers == [errno.EISCONN]

    def test_an_answer_that_nobody_heard_is_given_again(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        first = lab.connect(sock, lab.through(gate=True))
        first.gone = True
        lab.open_gate()
        lab.run_until(lambda: lab.told)
        assert lab.connect(sock, lab.through()).answers == [0]
        assert lab.connect(sock, lab.through()).answers == [errno.EISCONN]

    def test_two_threads_wait_for_one_dial(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        calls = [lab.connect(sock, lab.through(gate=True)) for _ in range(2)]
        lab.run_for(0.03)
        assert lab.entered == 1
        lab.open_gate()
        lab.run_until(lambda: all(call.answers for call in calls))
        assert [call.answers for call in calls] == [[0], [0]]

    def test_two_threads_hear_of_one_failure(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        calls = [lab.connect(sock, lab.through(UNREACHABLE, gate=True)) for _ in range(2)]
        lab.open_gate()
        lab.run_until(lambda: all(call.answers for call in calls))
        assert [call.answers for call in calls] == [[errno.EHOSTUNREACH]] * 2

    def test_dissolving_ends_the_dial(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        call = lab.connect(sock, lab.through(gate=True))
        connection = lab.connections.find(sock)
        assert connection is not None
        lab.connections.forget(connection)
        assert call.answers == [errno.ECONNABORTED]
        assert lab.cancelled == 1
        assert lab.connections.pending == 0

    def test_a_call_that_wants_the_socket_gets_it(self, lab: Lab) -> None:
        """A send that connects (MSG_FASTOPEN) goes on with the connected socket, and answers itself."""
        sock, got = lab.sock(blocking=True), list[socket.socket]()
        call = lab.connect(sock, lab.through(), then=got.append)
        lab.run_until(lambda: got)
        assert got[0].getpeername() == lab.hop.getsockname()
        assert call.answers == []
        got[0].close()

    @needs_ipv6
    def test_a_socket_that_doesnt_fit_the_hop_is_held_instead(self, lab: Lab) -> None:
        sock = lab.sock(socket.AF_INET6, blocking=True)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        call = lab.connect(sock, lab.through())
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]
        lab.end(sock)
        assert os.get_blocking(sock.fileno())
        assert lab.connect(sock, lab.through()).answers == [errno.EISCONN]

    @needs_ipv6
    def test_an_ipv6_socket_goes_to_an_ipv4_hop_itself(self, lab: Lab) -> None:
        sock = lab.sock(socket.AF_INET6, blocking=True)
        call = lab.connect(sock, lab.through())
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]
        assert lab.joined == []
        assert sock.getpeername()[0] == "::ffff:127.0.0.1"

    def test_through_a_real_chain_with_a_banner(self, lab: Lab) -> None:
        """Greeting and request over the program's own socket, which then has the banner and nothing else in it."""
        hop = Proxy(scheme="socks5", address=lab.address())
        chain = Chain(name="c", mode="strict", length=0, hops=(hop,), connect_timeout=5.0, reply_timeout=5.0)
        state, now = ChainState(chain, random.Random(1)), lab.reactor.now

        def answering() -> Steps[None]:
            yield Ready(lab.hop.fileno(), READ)
            peer, _ = lab.hop.accept()
            with peer:
                peer.setblocking(False)
                for expected, reply in (
                    (b"\5\1\0", b"\5\0"),
                    (b"\5\1\0\1\xc6\x33\x64\x07\0\x50", b"\5\0\0\1\0\0\0\0\0\0banner"),
                ):
                    yield Ready(peer.fileno(), READ)
                    assert peer.recv(100) == expected
                    peer.send(reply)

        lab.reactor.spawn(answering())
        sock = lab.sock(blocking=True)
        call = lab.connect(sock, lambda transport: perform(dial(state, DESTINATION, now), transport, now))
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]
        assert lab.told == [((hop,), None)]
        assert sock.recv(100) == b"banner"


class TestHeld:
    """A non-blocking connect(): the socket is in SYN_SENT until the chain is up."""

    def test_success(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        call = lab.connect(sock, lab.through(gate=True))
        assert call.answers == [errno.EINPROGRESS]
        lab.run_for(0.02)
        assert poll(sock) == 0
        assert so_error(sock) == 0
        assert tcp_state(sock) == SYN_SENT
        lab.open_gate()
        lab.run_until(lambda: lab.joined)
        assert poll(sock) == select.POLLOUT
        assert so_error(sock) == 0
        assert lab.told == [(("a hop",), None)]
        assert lab.connections.pending == 0
        lab.end(sock)

    def test_connect_again_as_the_kernel_has_it(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        how = lab.through(gate=True)
        assert lab.connect(sock, how).answers == [errno.EINPROGRESS]
        assert lab.connect(sock, how).answers == [errno.EALREADY]
        assert lab.connect(sock, how).answers == [errno.EALREADY]
        lab.open_gate()
        lab.run_until(lambda: lab.joined)
        assert lab.connect(sock, how).answers == [0]
        assert lab.connect(sock, how).answers == [errno.EISCONN]
        assert lab.connect(sock, how).answers == [errno.EISCONN]
        assert lab.entered == 1

    def test_an_answer_that_nobody_heard_is_given_again(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        call = MadeUpCall()
        call.gone = True
        duplicate = socket.socket(fileno=os.dup(sock.fileno()))
        how = lab.through(gate=True)
        lab.connections.begin(call, duplicate, cookie_of(sock), TO_DESTINATION, DESTINATION, how)
        assert lab.connect(sock, how).answers == [errno.EINPROGRESS]
        assert lab.connect(sock, how).answers == [errno.EALREADY]

    @pytest.mark.parametrize("failure", [UNREACHABLE, OSError(errno.ENETUNREACH, "x")])
    def test_failure_is_said_once_by_so_error(self, lab: Lab, failure: DialError | OSError) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through(failure, gate=True))
        lab.open_gate()
        lab.run_until(lambda: lab.told)
        assert poll(sock) & select.POLLHUP
        kept = [lab.connections.failures_kept]
        assert lab.connections.error(sock) == failure.errno
        kept.append(lab.connections.failures_kept)
        assert kept == [True, False]
        assert lab.connections.error(sock) is None
        assert so_error(sock) == 0
        call = lab.connect(sock, lab.through())
        assert call.answers == [errno.EINPROGRESS]
        lab.end(sock)

    def test_failure_is_said_once_by_connect(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through(UNREACHABLE))
        lab.run_until(lambda: lab.told)
        assert lab.connect(sock, lab.through()).answers == [errno.EHOSTUNREACH]
        assert not lab.connections.failures_kept
        assert lab.connect(sock, lab.through()).answers == [errno.EINPROGRESS]
        lab.end(sock)

    def test_refused_is_the_kernels_to_say(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through(REFUSED))
        lab.run_until(lambda: lab.told)
        assert not lab.connections.failures_kept
        assert lab.connections.error(sock) is None
        assert poll(sock, PATIENCE) & select.POLLERR
        assert so_error(sock) == errno.ECONNREFUSED
        assert lab.connect(sock, lab.through()).answers == [errno.EINPROGRESS]
        lab.end(sock)

    def test_refused_is_said_once_by_connect(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through(REFUSED))
        lab.run_until(lambda: lab.told)
        assert lab.connect(sock, lab.through()).answers == [errno.ECONNREFUSED]
        assert lab.connect(sock, lab.through()).answers == [errno.EINPROGRESS]
        lab.end(sock)

    def test_dissolving_gives_the_hold_up(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        sock.setsockopt(socket.IPPROTO_TCP, 18, 4321)  # TCP_USER_TIMEOUT
        lab.connect(sock, lab.through(gate=True))
        lab.run_for(0.02)
        connection = lab.connections.find(sock)
        assert connection is not None
        lab.connections.forget(connection)
        assert lab.cancelled == 1
        assert lab.connections.pending == 0
        assert lab.connections.find(sock) is None
        assert sock.getsockopt(socket.IPPROTO_TCP, 18) == 4321

    def test_many_at_once(self, lab: Lab) -> None:
        many = 100
        socks = [lab.sock(blocking=False) for _ in range(many)]
        lab.hop.listen(many)
        for sock in socks:
            assert lab.connect(sock, lab.through()).answers == [errno.EINPROGRESS]
        lab.run_until(lambda: len(lab.joined) == many)
        assert {poll(sock) for sock in socks} == {select.POLLOUT}
        assert lab.connections.pending == 0

    def test_a_blocking_call_joins_a_hold(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through(gate=True))
        sock.setblocking(True)
        call = lab.connect(sock, lab.through(gate=True))
        lab.run_for(0.02)
        assert call.answers == []
        lab.open_gate()
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]
        assert lab.entered == 1

    def test_a_socket_that_cant_be_held(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        assert lab.connect(sock, lab.through()).answers == [errno.EISCONN]
        assert lab.entered == 0
        assert lab.connections.pending == 0

    def test_a_peer_that_answers_in_a_while_hears_the_programs_keepalive(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 55)
        lab.connect(sock, lab.through())
        _, chain = lab.end(sock)
        assert chain.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 55


class TestRemembered:
    def test_a_connection_is_found_by_its_socket_and_its_duplicates(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through())
        lab.end(sock)
        with socket.socket(fileno=os.dup(sock.fileno())) as duplicate:
            connection = lab.connections.find(duplicate)
        assert connection is not None
        assert connection.sockaddr == TO_DESTINATION
        assert connection.state is State.RELEASED
        with socket.socket() as stranger:
            assert lab.connections.find(stranger) is None

    def test_no_more_are_remembered_than_said(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "PEERS_REMEMBERED", 3)
        socks = [lab.sock(blocking=True) for _ in range(6)]
        for sock in socks:
            call = lab.connect(sock, lab.through())
            lab.run_until(lambda call=call: call.answers)  # type: ignore[misc]
        assert [lab.connections.find(sock) is not None for sock in socks] == [False] * 3 + [True] * 3
        assert is_connected(socks[0])


class TestTheProgramsOwnFault:
    """What the kernel says of the program's socket is told as it is, and no hop is dead because of it."""

    def dial(self, lab: Lab) -> tuple[ChainState, Dial]:
        hop = Proxy(scheme="socks5", address=lab.address())
        chain = Chain(name="c", mode="strict", length=0, hops=(hop,), connect_timeout=5.0, reply_timeout=5.0)
        state, now = ChainState(chain, random.Random(1)), lab.reactor.now
        return state, lambda transport: perform(dial(state, DESTINATION, now), transport, now)

    def test_a_socket_that_was_reset(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        sock.connect(lab.hop.getsockname())
        peer, _ = lab.hop.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        assert poll(sock, PATIENCE) & select.POLLERR
        so_error(sock)
        assert sock.connect_ex(lab.hop.getsockname()) == errno.EISCONN, "as the kernel has it"
        call = lab.connect(sock, self.dial(lab)[1])
        lab.run_until(lambda: call.answers)
        assert call.answers == [errno.EISCONN]

    def test_a_socket_that_listens(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        call = lab.connect(sock, self.dial(lab)[1])
        lab.run_until(lambda: call.answers)
        assert call.answers == [errno.EISCONN]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

    @pytest.mark.parametrize("blocking", [True, False])
    def test_a_socket_that_listens_with_fast_open(self, lab: Lab, blocking: bool) -> None:
        """TCP_FASTOPEN_CONNECT can't be set aside there; nothing of the attempt is left behind."""
        sock = lab.sock(blocking=blocking)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        for _ in range(2):
            assert lab.connect(sock, self.dial(lab)[1]).answers == [errno.EISCONN]
        assert lab.connections.pending == 0


OPTIONS = [
    (socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1),
    (socket.IPPROTO_TCP, socket.TCP_CORK, 1),
    (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100),
]


class TestOptionsInTheWay:
    """Options of the program's that would spoil the handshakes on its own socket are set aside meanwhile."""

    @pytest.mark.parametrize("option", OPTIONS)
    def test_they_are_back_when_it_stands(self, lab: Lab, option: tuple[int, int, int]) -> None:
        level, name, value = option
        sock = lab.sock(blocking=True)
        sock.setsockopt(level, name, value)
        call = lab.connect(sock, lab.through(gate=True))
        lab.run_until(lambda: lab.entered)
        assert sock.getsockopt(level, name) != value
        lab.open_gate()
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]
        if name != TCP_FASTOPEN_CONNECT:  # which means nothing on a connected socket, and can't be set there
            assert sock.getsockopt(level, name) == value

    @pytest.mark.parametrize("option", OPTIONS)
    def test_they_are_back_when_it_failed(self, lab: Lab, option: tuple[int, int, int]) -> None:
        level, name, value = option
        sock = lab.sock(blocking=True)
        sock.setsockopt(level, name, value)
        call = lab.connect(sock, lab.through(UNREACHABLE))
        lab.run_until(lambda: call.answers)
        assert sock.getsockopt(level, name) == value

    @pytest.mark.parametrize("option", OPTIONS[1:])
    def test_they_are_back_when_the_program_dissolved_it(self, lab: Lab, option: tuple[int, int, int]) -> None:
        level, name, value = option
        sock = lab.sock(blocking=True)
        sock.setsockopt(level, name, value)
        lab.connect(sock, lab.through(gate=True))
        connection = lab.connections.find(sock)
        assert connection is not None
        lab.connections.forget(connection)
        assert sock.getsockopt(level, name) == value


class TestNoDescriptorLeft:
    """The supervisor has as many descriptors as its hard limit allows, which may be few."""

    @pytest.mark.parametrize("blocking", [True, False])
    def test_the_first_hold(self, lab: Lab, monkeypatch: pytest.MonkeyPatch, blocking: bool) -> None:
        def none_left(*, ipv6: bool) -> NoReturn:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        lab.connections._beside._holds = None
        monkeypatch.setattr(holding, "Holds", none_left)
        sock = lab.sock(blocking=blocking)
        if blocking:  # so that it's held
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", 5, 0))
        call = lab.connect(sock, lab.through())
        assert call.answers == [errno.ENOBUFS]
        assert lab.connections.pending == 0
        assert lab.connections.find(sock) is None

    def test_a_send_that_connects(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        def none_left(fd: int) -> NoReturn:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        sock = lab.sock(blocking=True)
        then = lambda connected: pytest.fail("there's no descriptor for it")  # noqa: E731
        call = lab.connect(sock, lab.through(gate=True), then=then)
        lab.open_gate()
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", none_left)
            lab.run_until(lambda: call.answers)
        assert call.answers == [errno.ENOBUFS]


@pytest.mark.parametrize(
    ("timeval", "seconds"), [((0, 0), None), ((1, 500_000), 1.5), ((0, 4000), 0.004)], ids=["none", "1.5", "small"]
)
def test_send_timeout(timeval: Sequence[int], seconds: float | None) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", *timeval))
        got = send_timeout(sock)
        assert got == seconds if seconds is None else got is not None and abs(got - seconds) < 0.005
