"""Where the kernel refuses simultaneous open: non-blocking connections stand early, blocking ones stay truthful."""

import errno
import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing
from typing import NoReturn

import pytest

from pysocksify.kernel import Kernel
from pysocksify.linux import connect
from pysocksify.supervisor import connections as module
from pysocksify.supervisor import hold as holding
from pysocksify.supervisor.calls import ERESTARTSYS, Signalled
from pysocksify.supervisor.connection import State
from pysocksify.supervisor.early import Entrances
from pysocksify.supervisor.hold import CannotHold, Holds, cross
from tests.supervisor.connecting import PATIENCE, UNREACHABLE, Lab, open_files, poll, so_error
from tests.supervisor.holds import need_ipv6

WITHOUT = Kernel(simultaneous_open=False)
NO_IPV6 = Kernel(simultaneous_open=False, ipv6=False)
IN_PIECES = struct.pack("=qq", 0, 50_000)  # struct timeval


@pytest.fixture
def lab(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    before = open_files()
    monkeypatch.setattr(module, "SWEEP_INTERVAL", 0.05)
    lab = Lab(signalled=getattr(request, "param", Signalled.LOOKED_FOR), kernel=WITHOUT)
    yield lab
    lab.close()
    entrances = lab.connections._beside._entrances
    if entrances is not None:
        for place in (entrances._places.ipv4, entrances._places.ipv6):
            if place is not None:
                place.listener.close()
    assert open_files() == before


@pytest.fixture
def stopped() -> Iterator[int]:
    """A process that takes no signal."""
    process = subprocess.Popen(["sleep", "60"])
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    yield process.pid
    process.kill()
    process.wait()


old_kernel = pytest.mark.parametrize("lab", [Signalled.UNSEEN], indirect=True, ids=["without WAIT_KILLABLE_RECV"])


def entrance(lab: Lab) -> tuple[str, int]:
    """Where the lab's IPv4 sockets enter."""
    assert lab.connections._beside._entrances is not None
    return lab.connections._beside._entrances._places.ipv4.name


def ends(lab: Lab) -> tuple[socket.socket, socket.socket]:
    """The relay's two ends."""
    lab.run_until(lambda: lab.joined)
    ((other, chain),) = lab.joined
    other.setblocking(True)
    other.settimeout(PATIENCE)
    return other, chain


class TestNonBlocking:
    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
    def test_it_stands_early_and_what_it_sends_is_kept(self, lab: Lab, family: int) -> None:
        if family == socket.AF_INET6:
            need_ipv6()
        sock = lab.sock(family, blocking=False)
        call = lab.connect(sock, lab.through(gate=True))
        assert call.answers == [errno.EINPROGRESS]
        assert poll(sock, PATIENCE) == select.POLLOUT
        assert so_error(sock) == 0
        assert lab.connect(sock, lab.through()).answers == [0]
        assert lab.connect(sock, lab.through()).answers == [errno.EISCONN]
        sock.send(b"early ")
        sock.shutdown(socket.SHUT_WR)
        assert not lab.joined
        assert lab.connections.delivering
        lab.open_gate()
        other, chain = ends(lab)
        assert other.recv(100) == b"early "
        assert other.recv(100) == b""
        assert other.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert chain.getpeername() == lab.hop.getsockname()
        other.send(b"answer")
        assert poll(sock, PATIENCE) & select.POLLIN
        assert sock.recv(100) == b"answer"
        assert lab.told == [(("a hop",), None)]
        assert not lab.connections.delivering

    def test_a_failure_is_a_reset_and_told(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through(UNREACHABLE, gate=True))
        sock.send(b"early")
        lab.open_gate()
        lab.run_until(lambda: lab.told)
        assert poll(sock, PATIENCE) & select.POLLERR
        assert so_error(sock) == errno.ECONNRESET
        assert lab.told == [((), UNREACHABLE)]
        assert lab.connections.find(sock) is None
        assert lab.connections.pending == 0

    def test_the_asked_options_are_as_before(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        sock.setsockopt(socket.IPPROTO_TCP, holding.TCP_FASTOPEN_CONNECT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, holding.TCP_USER_TIMEOUT, 7000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        sock.setsockopt(socket.IPPROTO_IP, holding.IP_MINTTL, 255)
        lab.connect(sock, lab.through())
        _, chain = lab.end(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, holding.TCP_USER_TIMEOUT) == 7000
        assert not os.get_blocking(sock.fileno())
        assert chain.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77

    def test_one_that_is_closed_is_given_up(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through(gate=True))
        sock.close()
        lab.run_until(lambda: lab.cancelled)
        assert lab.connections.pending == 0

    def test_what_was_sent_before_the_close_is_delivered(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through(gate=True))
        sock.send(b"last words")
        sock.close()
        lab.run_for(0.3)  # sweeps come every 0.05 s here
        lab.open_gate()
        other, _ = ends(lab)
        assert other.recv(100) == b"last words"
        assert other.recv(100) == b""

    def test_the_programs_close_closes(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through())
        other, _ = lab.end(sock)
        sock.close()
        assert other.recv(100) == b""

    def test_bound_to_a_device(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        call = lab.connect(sock, lab.through())
        assert call.answers == [errno.ENETUNREACH]
        ((_, refusal),) = lab.told
        assert isinstance(refusal, CannotHold)

    def test_strangers_are_reset(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through(gate=True))
        with socket.create_connection(entrance(lab)) as stranger:
            lab.run_until(lambda: poll(stranger) & select.POLLERR)
            assert so_error(stranger) == errno.ECONNRESET
        lab.open_gate()
        lab.end(sock)

    def test_who_came_before_isnt_taken_for_it(self, lab: Lab) -> None:
        lab.connect(lab.sock(blocking=False), lab.through(gate=True))
        source = ("127.0.0.1", entrance(lab)[1])  # a port that no other socket is given by chance
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.77", 0))
            source = stranger.getsockname()
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stranger.connect(entrance(lab))
        sock = lab.sock(blocking=False)
        sock.bind(source)
        lab.connect(sock, lab.through())
        lab.run_until(lambda: lab.joined)
        lab.end(sock)

    def test_no_descriptor_for_who_arrives(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        lab.connect(lab.sock(blocking=False), lab.through(gate=True))
        entrances = lab.connections._beside._entrances
        assert entrances is not None

        class Full:
            def accept(self) -> NoReturn:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

            def fileno(self) -> int:
                return real.fileno()

        real, entrances._places.ipv4.listener = entrances._places.ipv4.listener, Full()  # type: ignore[assignment]
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through())
        lab.run_for(0.05)
        assert not lab.joined
        entrances._places.ipv4.listener = real
        lab.end(sock)


class TestBlocking:
    """A blocking connect() that needs a hold: here one with a time limit."""

    @pytest.fixture
    def sock(self, lab: Lab) -> socket.socket:
        sock = lab.sock(blocking=True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", 5, 0))
        return sock

    def test_it_waits_for_the_chain(self, lab: Lab, sock: socket.socket) -> None:
        call = lab.connect(sock, lab.through(gate=True))
        lab.run_for(0.05)
        assert not call.answers
        lab.open_gate()
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]
        assert os.get_blocking(sock.fileno())
        assert lab.connect(sock, lab.through()).answers == [errno.EISCONN]
        lab.end(sock)

    def test_it_is_told_the_truth_and_may_try_again(self, lab: Lab, sock: socket.socket) -> None:
        call = lab.connect(sock, lab.through(UNREACHABLE))
        lab.run_until(lambda: call.answers)
        assert call.answers == [errno.EHOSTUNREACH]
        assert so_error(sock) == 0
        again = lab.connect(sock, lab.through())
        lab.run_until(lambda: again.answers)
        assert again.answers == [0]
        lab.end(sock)

    def test_others_see_that_it_goes_on(self, lab: Lab, sock: socket.socket) -> None:
        call = lab.connect(sock, lab.through(gate=True))
        sock.setblocking(False)
        assert lab.connect(sock, lab.through()).answers == [errno.EALREADY]
        lab.open_gate()
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]

    @pytest.mark.parametrize("succeeds", [True, False])
    def test_a_time_limit_makes_it_early(self, lab: Lab, succeeds: bool) -> None:
        sock = lab.sock(blocking=True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, IN_PIECES)
        call = lab.connect(sock, lab.through(None if succeeds else UNREACHABLE, gate=True))
        lab.run_until(lambda: call.answers)
        assert call.answers == [errno.EINPROGRESS]
        assert poll(sock, PATIENCE) == select.POLLOUT
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bytes(16))
        again = lab.connect(sock, lab.through())  # waits for the truth again
        lab.run_for(0.05)
        assert not again.answers
        lab.open_gate()
        lab.run_until(lambda: again.answers)
        if succeeds:
            assert again.answers == [0]
            lab.end(sock)
        else:
            assert again.answers == [errno.EHOSTUNREACH]
            assert so_error(sock) == 0

    def test_a_signal_makes_it_early(self, lab: Lab, stopped: int) -> None:
        sock = lab.sock(blocking=True)
        call = lab.connect(sock, lab.through(gate=True), tid=stopped)
        os.kill(stopped, signal.SIGUSR1)
        lab.run_until(lambda: call.answers)
        assert call.answers == [ERESTARTSYS]
        connection = lab.connections.find(sock)
        assert connection is not None
        assert connection.state is State.EARLY
        again = lab.connect(sock, lab.through())
        lab.open_gate()
        lab.run_until(lambda: again.answers)
        assert again.answers == [0]
        lab.end(sock)

    @old_kernel
    def test_a_caller_that_is_gone_makes_it_early(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        call = lab.connect(sock, lab.through(gate=True))
        call.gone = True
        lab.run_until(lambda: poll(sock) == select.POLLOUT)
        sock.send(b"early")
        lab.open_gate()
        other, _ = ends(lab)
        assert other.recv(100) == b"early"

    def test_a_send_that_connects(self, lab: Lab, sock: socket.socket) -> None:
        connected: list[socket.socket] = []
        lab.connect(sock, lab.through(), then=connected.append)
        lab.run_until(lambda: connected)
        connected[0].send(b"first")
        connected[0].close()
        other, _ = ends(lab)
        assert other.recv(100) == b"first"

    def test_bound_to_a_device_at_a_signal(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, IN_PIECES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        call = lab.connect(sock, lab.through(gate=True))
        lab.run_until(lambda: call.answers)
        assert call.answers == [errno.EINPROGRESS]
        assert lab.connections.pending == 0
        assert lab.cancelled


class TestTryingIt:
    """Simultaneous open is tried with the first hold."""

    def test_where_it_works(self) -> None:
        holds = Holds()
        assert cross(holds)
        close(holds)

    @pytest.mark.parametrize("what", ["accepts", "never comes", "refuses"])
    def test_where_it_doesnt(self, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
        holds = Holds(ipv6=False)
        monkeypatch.setattr(holding, "CROSS_TIME", 20)
        if what == "accepts":  # as a kernel does whose accept queues are longer than they say
            holds._places.ipv4._listener.listen(10)
        else:  # a firewall drops it, a kernel resets it
            place = holds._places.ipv4
            name = place.name if what == "never comes" else place.refusing_name
            sockaddr = place.sockaddr(socket.AF_INET, name)

            def release(sock: socket.socket, hold: holding.Hold) -> socket.socket:
                other = socket.socket()
                other.setblocking(False)
                connect(other.fileno(), sockaddr)
                return other

            monkeypatch.setattr(holding, "release", release)
        assert not cross(holds)
        close(holds)

    def test_it_is_tried_once(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        tried: list[Holds] = []

        def fails(holds: Holds) -> bool:
            tried.append(holds)
            return False

        monkeypatch.setattr(holding, "cross", fails)
        lab.connections._beside._kernel = Kernel()
        for _ in range(2):
            sock = lab.sock(blocking=False)
            lab.connect(sock, lab.through(gate=True))
            assert poll(sock, PATIENCE) == select.POLLOUT
        assert len(tried) == 1
        close(tried[0])


class TestWithoutIpv6:
    """Where ::1 isn't there."""

    def test_an_ipv6_socket_enters_by_its_mapped_address(self, lab: Lab) -> None:
        lab.connections._beside._kernel = NO_IPV6
        sock = lab.sock(socket.AF_INET6, blocking=False)
        lab.connect(sock, lab.through())
        lab.end(sock)
        assert sock.getpeername()[0] == "::ffff:127.0.0.1"

    def test_one_that_takes_nothing_else(self, lab: Lab) -> None:
        lab.connections._beside._kernel = NO_IPV6
        sock = lab.sock(socket.AF_INET6, blocking=False)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        assert lab.connect(sock, lab.through()).answers == [errno.ENETUNREACH]


def test_as_many_as_there_are_descriptors() -> None:
    """Entrances don't fill up: what arrives is taken at once."""
    lab = Lab(kernel=NO_IPV6)
    with closing(lab):
        entrances = Entrances(lab.reactor, ipv6=False)
        socks = [lab.sock(blocking=False) for _ in range(300)]
        arrivals = [entrances.enter(sock) for sock in socks]
        lab.run_until(lambda: all(arrival.other is not None for arrival in arrivals))
        for arrival, sock in zip(arrivals, socks, strict=True):
            assert arrival.other is not None
            assert arrival.other.getpeername() == sock.getsockname()
            arrival.reset()
        assert not entrances.expected
        lab.reactor.unwatch(entrances._places.ipv4.listener.fileno())
        entrances._places.ipv4.listener.close()


def close(holds: Holds) -> None:
    for place in (holds._places.ipv4, holds._places.ipv6):
        if place is not None:
            for sock in (place._listener, place._filler, place._refusing):
                sock.close()
