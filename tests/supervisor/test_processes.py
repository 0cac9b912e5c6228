"""The supervisor's side of processes: the link, signals from descriptors, children; each in a process made for it."""

import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator

import pytest

from pysocksify.supervisor import processes
from pysocksify.supervisor.processes import DROPPED, FORWARD, LINE, STATUS, Link

PATIENCE = 15.0  # seconds until a test gives up


def in_child(body: Callable[[], object]) -> None:
    """Run a test's body in a process of its own, all signals blocked, as the supervisor has it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(int(PATIENCE))  # blocked below with the rest, but for this one
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - {signal.SIGALRM})
            body()
            status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def child(body: Callable[[], object]) -> int:
    """Fork a child that runs `body` and exits with 0."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(0)
    return pid


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A link's socketpair: the front's end and the supervisor's."""
    front, supervisor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with front, supervisor:
        front.settimeout(PATIENCE)
        yield front, supervisor


Ends = tuple[socket.socket, socket.socket]


def readable(*fds: int) -> None:
    assert select.select(fds, [], [], PATIENCE)[0]


def test_signals_from_a_descriptor() -> None:
    def body() -> None:
        fd = processes.signal_descriptor({signal.SIGUSR1, signal.SIGRTMAX})
        assert processes.read_signals(fd) == []
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMAX, signal.SIGRTMAX):
            os.kill(os.getpid(), number)
        assert processes.read_signals(fd) == [(n, os.getpid()) for n in (signal.SIGUSR1, *[signal.SIGRTMAX] * 2)]
        assert not os.get_inheritable(fd)

    in_child(body)


def test_reports_and_the_targets_end(ends: Ends) -> None:
    front, supervisor = ends

    def body() -> None:
        target = child(lambda: os.kill(os.getpid(), signal.SIGSTOP))
        link = Link(supervisor.fileno(), target, os.getppid())
        called: list[str] = []
        link.on_target_end.append(lambda: link.line("last words"))
        link.on_target_end.append(lambda: called.append("target"))
        link.on_no_descendants.append(lambda: called.append("descendants"))
        readable(link.child_events)
        link.reap()
        assert os.WSTOPSIG(int(front.recv(100).removeprefix(STATUS))) == signal.SIGSTOP
        assert link.target_stopped
        os.kill(target, signal.SIGKILL)
        while not link.target_ended:
            readable(link.child_events)
            link.reap()
        assert front.recv(100) == LINE + b"last words"
        assert os.WTERMSIG(int(front.recv(100).removeprefix(STATUS))) == signal.SIGKILL
        assert called == ["target", "descendants"]
        assert not link.descendants_left

    in_child(body)


def test_own_children_are_no_descendants(ends: Ends) -> None:
    def body() -> None:
        own = child(signal.pause)
        link = Link(ends[1].fileno(), child(lambda: None), os.getppid())
        link.own_children.add(own)
        while not link.target_ended:
            readable(link.child_events)
            link.reap()
        assert not link.descendants_left
        os.kill(own, signal.SIGKILL)
        os.waitpid(own, 0)

    in_child(body)


def test_lines_never_block_and_are_counted(ends: Ends) -> None:
    front, supervisor = ends

    def body() -> None:
        link = Link(supervisor.fileno(), child(lambda: None), os.getppid())
        for number in range(2000):
            link.line(f"{number} " + 500 * "x")
        dropped = link.lines_dropped
        assert dropped > 0
        while not link.target_ended:  # a report waits behind them and isn't dropped
            readable(link.child_events)
            link.reap()
        link.flush(timeout=0)
        assert link.lines_dropped == dropped
        got = [front.recv(1000) for _ in range(2000 - dropped)]
        assert all(line.startswith(LINE + b"%d " % number) for number, line in enumerate(got))
        link.flush()
        assert front.recv(100) == STATUS + b"0"
        assert front.recv(100) == DROPPED + b"%d" % dropped

    in_child(body)


def test_front_that_is_gone() -> None:
    def body() -> None:
        front, supervisor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def target_body() -> None:
            front.close()
            signal.pause()

        link = Link(supervisor.fileno(), child(target_body), os.getppid())
        gone: list[bool] = []
        link.on_front_gone.append(lambda: gone.append(True))
        front.close()
        while not link.front_gone:
            link.line("into the void")
            readable(supervisor.fileno())
            link.receive()
        assert gone == [True]
        while not link.target_ended:
            readable(link.child_events)
            link.reap()

    in_child(body)


@pytest.mark.parametrize("to_group", [False, True])
def test_forwarding(ends: Ends, to_group: bool) -> None:
    front, supervisor = ends

    def body() -> None:
        os.setpgid(0, 0)
        reader, writer = os.pipe()

        def target_body() -> None:
            os.write(writer, b"%d" % signal.sigwait({signal.SIGUSR1, signal.SIGUSR2}))
            os.write(writer, b" %d" % signal.sigwait({signal.SIGUSR1, signal.SIGUSR2}))

        link = Link(supervisor.fileno(), child(target_body), os.getppid())
        os.close(writer)
        if to_group:
            os.killpg(0, signal.SIGUSR1)
        front.send(FORWARD + b"%d" % signal.SIGUSR1)
        link.receive()
        front.send(FORWARD + b"%d" % signal.SIGUSR2)
        link.receive()
        said = b""
        while data := os.read(reader, 100):
            said += data
        assert said == b"%d %d" % (signal.SIGUSR1, signal.SIGUSR2)

    in_child(body)


def test_children_and_whether_they_are_stopped() -> None:
    def body() -> None:
        pids = {child(signal.pause) for _ in range(3)}
        assert set(processes.children()) == pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            os.waitpid(pid, os.WUNTRACED)
            assert processes.stopped(pid)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            assert not processes.stopped(pid)
        assert processes.children() == []

    in_child(body)


def test_callers_descriptors_are_closed_and_ours_kept() -> None:
    def body() -> None:
        callers, ours = os.open(os.devnull, os.O_RDWR), os.open(os.devnull, os.O_RDWR)
        kept = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(callers, True)
        os.set_inheritable(kept, True)
        processes.let_go_of_callers_descriptors(standard=(0, 1), keep=kept)
        os.fstat(ours)
        os.fstat(kept)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(callers)
        assert os.path.sameopenfile(0, 1)
        assert os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev

    in_child(body)


def test_name_and_command_line() -> None:
    def body() -> None:
        processes.rename_process("supervisor of 123")
        with open("/proc/self/cmdline", "rb") as file:
            assert file.read().rstrip(b"\0") == b"supervisor of 123"
        with open("/proc/self/comm", "rb") as file:
            assert file.read() == b"supervisor\n"
        assert sys.argv[0]

    in_child(body)
