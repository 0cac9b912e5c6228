"""What can come late in a connection: time limits, signals, calls that come again, programs that are gone."""

import errno
import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from typing import NoReturn

import pytest

from pysocksify.dial.transport import Transport
from pysocksify.reactor import Steps
from pysocksify.supervisor import connections as module
from pysocksify.supervisor.calls import ERESTARTSYS, Signalled
from pysocksify.supervisor.connection import Way
from tests.supervisor.connecting import (
    PATIENCE,
    SYN_SENT,
    UNREACHABLE,
    Lab,
    open_files,
    poll,
    so_error,
    tcp_state,
)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    before = open_files()
    lab = Lab(signalled=getattr(request, "param", Signalled.LOOKED_FOR))
    yield lab
    lab.close()
    assert open_files() == before


old_kernel = pytest.mark.parametrize("lab", [Signalled.UNSEEN], indirect=True, ids=["without WAIT_KILLABLE_RECV"])


class TestSendTimeout:
    """SO_SNDTIMEO limits a blocking connect(): EINPROGRESS after it, and the attempt goes on (socket(7))."""

    @pytest.fixture
    def sock(self, lab: Lab) -> socket.socket:
        sock = lab.sock(blocking=True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", 0, 50_000))
        return sock

    def test_in_time(self, lab: Lab, sock: socket.socket) -> None:
        call = lab.connect(sock, lab.through())
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]
        lab.end(sock)
        lab.run_for(0.1)
        assert call.answers == [0]

    def test_too_late(self, lab: Lab, sock: socket.socket) -> None:
        call = lab.connect(sock, lab.through(gate=True))
        lab.run_until(lambda: call.answers)
        assert call.answers == [errno.EINPROGRESS]
        assert poll(sock) == 0
        again = lab.connect(sock, lab.through(gate=True))
        lab.open_gate()
        lab.run_until(lambda: again.answers)
        assert again.answers == [0]
        assert lab.entered == 1
        assert os.get_blocking(sock.fileno())

    def test_a_dial_that_fails_at_once(self, lab: Lab, sock: socket.socket) -> None:
        def fails(transport: Transport) -> Steps[Way]:
            yield from ()
            raise OSError(errno.ENETUNREACH, "no route")

        call = lab.connect(sock, fails)
        lab.run_until(lambda: call.answers)
        assert call.answers == [errno.ENETUNREACH]

    def test_a_caller_that_dies_in_it(self, lab: Lab, sock: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sweep forgets the call; its time limit must then not be looked for any more."""
        monkeypatch.setattr(module, "SWEEP_INTERVAL", 0.01)
        call = lab.connect(sock, lab.through(gate=True))
        call.gone = True
        lab.run_for(0.15)
        assert lab.connections.pending == 1, "the socket is still open in a program"
        lab.open_gate()
        lab.end(sock)


@old_kernel
class TestWithoutWaitKillable:
    """Before Linux 5.19 a signal interrupts a waiting call behind our back: blocking connects are held too."""

    def test_success(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        call = lab.connect(sock, lab.through(gate=True))
        lab.run_for(0.05)
        assert call.answers == []
        assert tcp_state(sock) == SYN_SENT
        lab.open_gate()
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]
        lab.end(sock)
        assert os.get_blocking(sock.fileno())
        assert lab.connect(sock, lab.through()).answers == [errno.EISCONN]

    def test_failure(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        call = lab.connect(sock, lab.through(UNREACHABLE))
        lab.run_until(lambda: call.answers)
        assert call.answers == [errno.EHOSTUNREACH]
        assert so_error(sock) == 0
        assert not lab.connections.failures_kept
        call = lab.connect(sock, lab.through())
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]

    @pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.ECONNREFUSED])
    def test_a_dial_that_fails_at_once(self, lab: Lab, number: int) -> None:
        """As where there's no route to the first hop: nothing is waited for in between."""

        def fails(transport: Transport) -> Steps[Way]:
            yield from ()
            raise OSError(number, "at once")

        call = lab.connect(lab.sock(blocking=True), fails)
        lab.run_until(lambda: call.answers)
        assert call.answers == [number]

    def test_a_call_that_comes_again_joins_the_running_dial(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        interrupted = lab.connect(sock, lab.through(gate=True))
        interrupted.gone = True
        call = lab.connect(sock, lab.through(gate=True))
        lab.open_gate()
        lab.run_until(lambda: call.answers)
        assert call.answers == [0]
        assert lab.entered == 1


@pytest.fixture
def stopped() -> Iterator[int]:
    """A stopped process: a signal sent to it stays pending, as for a thread that waits for us."""
    process = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
    os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    yield process.pid
    process.kill()
    process.wait()


class TestSignals:
    def test_a_signal_ends_the_call_and_the_direct_path_becomes_a_hold(self, lab: Lab, stopped: int) -> None:
        sock = lab.sock(blocking=True)
        call = lab.connect(sock, lab.through(gate=True), tid=stopped)
        lab.run_for(0.06)
        assert call.answers == []
        assert tcp_state(sock) != SYN_SENT, "the program's own socket is connected to the hop"
        os.kill(stopped, signal.SIGUSR1)
        lab.run_until(lambda: call.answers)
        assert call.answers == [ERESTARTSYS]
        assert tcp_state(sock) == SYN_SENT
        assert poll(sock) == 0
        assert os.get_blocking(sock.fileno())
        assert (lab.entered, lab.cancelled) == (2, 1)
        again = lab.connect(sock, lab.through(gate=True))
        lab.open_gate()
        lab.run_until(lambda: again.answers)
        assert again.answers == [0]
        lab.end(sock)

    def test_the_other_thread_waits_on(self, lab: Lab, stopped: int) -> None:
        sock = lab.sock(blocking=True)
        other = lab.connect(sock, lab.through(gate=True))
        call = lab.connect(sock, lab.through(gate=True), tid=stopped)
        os.kill(stopped, signal.SIGUSR1)
        lab.run_until(lambda: call.answers)
        assert other.answers == []
        lab.open_gate()
        lab.run_until(lambda: other.answers)
        assert other.answers == [0]
        assert call.answers == [ERESTARTSYS]

    def test_a_program_that_polls_after_a_signal_hears_of_a_failure(self, lab: Lab, stopped: int) -> None:
        sock = lab.sock(blocking=True)
        call = lab.connect(sock, lab.through(UNREACHABLE, gate=True), tid=stopped)
        os.kill(stopped, signal.SIGUSR1)
        lab.run_until(lambda: call.answers)
        lab.open_gate()
        lab.run_until(lambda: lab.told)
        assert poll(sock) & select.POLLHUP
        assert lab.connections.error(sock) == errno.EHOSTUNREACH


def program(stdin: int) -> "subprocess.Popen[bytes]":
    """A program that has this descriptor open, until it's killed."""
    return subprocess.Popen(["sleep", "60"], stdin=stdin)


class TestSweep:
    """What is no longer open in any program is given up; the calls of threads that are gone are forgotten."""

    @pytest.fixture(autouse=True)
    def _often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "SWEEP_INTERVAL", 0.02)

    def test_a_program_that_closed_its_socket(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        holder = program(sock.fileno())
        lab.programs = [holder.pid]
        lab.connect(sock, lab.through(gate=True))
        sock.close()
        lab.run_for(0.2)
        assert lab.connections.pending == 1, "a program still has it"
        holder.kill()
        holder.wait()
        lab.run_until(lambda: not lab.connections.pending)
        assert lab.cancelled == 1
        peer, _ = lab.hop.accept()
        peer.settimeout(PATIENCE)
        assert peer.recv(1) == b"", "the hop hears of it"
        peer.close()

    @pytest.mark.parametrize("blocking", [True, False])
    def test_a_program_that_died_in_its_call(self, lab: Lab, blocking: bool) -> None:
        lab.programs = []
        sock = lab.sock(blocking=blocking)
        call = lab.connect(sock, lab.through(gate=True))
        sock.close()
        if blocking:
            lab.run_for(0.1)
            assert lab.connections.pending == 1, "somebody waits"
            call.gone = True
        lab.run_until(lambda: not lab.connections.pending)
        assert lab.cancelled == 1
        assert lab.joined == []

    def test_the_call_of_a_thread_that_is_gone_isnt_answered(self, lab: Lab) -> None:
        sock = lab.sock(blocking=True)
        gone, call = (lab.connect(sock, lab.through(gate=True)) for _ in range(2))
        gone.gone = True
        lab.run_for(0.1)
        lab.open_gate()
        lab.run_until(lambda: call.answers)
        assert (gone.answers, call.answers) == ([], [0])

    def test_a_socket_on_its_way_to_a_program_fails_there(self, lab: Lab) -> None:
        """No program has it open; whoever receives it must not wait for an outcome that never comes."""
        sock = lab.sock(blocking=False)
        ours, theirs = socket.socketpair()
        lab.programs = []
        lab.connect(sock, lab.through(gate=True))
        socket.send_fds(ours, [b"x"], [sock.fileno()])
        sock.close()
        lab.run_until(lambda: not lab.connections.pending)
        _, (fd,), _, _ = socket.recv_fds(theirs, 1, 1)
        with ours, theirs, socket.socket(fileno=fd) as received:
            assert poll(received) & select.POLLHUP

    def test_nothing_is_given_up_when_nothing_can_be_looked_at(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a descriptor for /proc."""

        def none_left(pids: list[int], more_than: int) -> NoReturn:
            looks.append(pids)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        looks: list[list[int]] = []
        monkeypatch.setattr(module, "sockets_open", none_left)
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through(gate=True))
        lab.run_until(lambda: len(looks) > 2)
        assert lab.connections.pending == 1
        lab.open_gate()
        lab.end(sock)

    def test_the_sweep_ends_with_the_last_pending_connection(self, lab: Lab) -> None:
        sock = lab.sock(blocking=False)
        lab.connect(sock, lab.through())
        lab.end(sock)
        lab.run_until(lambda: lab.connections._sweep is None)


def test_a_closed_socket_is_given_up_within_two_seconds(lab: Lab) -> None:
    lab.programs = []
    sock = lab.sock(blocking=False)
    lab.connect(sock, lab.through(gate=True))
    sock.close()
    lab.run_until(lambda: not lab.connections.pending, patience=2.5)
    assert lab.cancelled == 1
