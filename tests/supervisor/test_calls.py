"""Pending signals, read of real stopped processes; and which process and program a thread belongs to."""

import os
import platform
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from pysocksify.linux import syscall
from pysocksify.supervisor import calls as module
from pysocksify.supervisor.calls import Signals, process_of, program_of

TGKILL = {"x86_64": 234, "aarch64": 131}[platform.machine()]
PATIENCE = 10


def stop(*argv: str) -> "subprocess.Popen[bytes]":
    """A program, stopped: a signal sent to it stays pending, as for a thread that is held in a call."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    if argv[0] == "sleep":
        os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    return process


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def stopped() -> Iterator[int]:
    process = stop("sleep", "60")
    yield process.pid
    end(process)


def private_signal(tid: int, number: int) -> None:
    syscall(TGKILL, tid, tid, number)


def test_nothing_is_pending(stopped: int) -> None:
    signals = Signals()
    assert [signals.deliverable([stopped]) for _ in range(3)] == [set()] * 3


def test_a_threads_own_signal_counts_at_once(stopped: int) -> None:
    private_signal(stopped, signal.SIGUSR1)
    assert Signals().deliverable([stopped]) == {stopped}


def test_a_process_s_signal_counts_when_it_is_still_there_at_the_second_look(stopped: int) -> None:
    os.kill(stopped, signal.SIGUSR1)
    signals = Signals()
    assert [signals.deliverable([stopped]) for _ in range(3)] == [set(), {stopped}, {stopped}]


def test_a_look_without_the_thread_begins_anew(stopped: int) -> None:
    os.kill(stopped, signal.SIGUSR1)
    signals = Signals()
    assert signals.deliverable([stopped]) == set()
    assert signals.deliverable([]) == set()
    assert signals.deliverable([stopped]) == set()
    assert signals.deliverable([stopped]) == {stopped}


@pytest.mark.parametrize("private", [True, False])
def test_an_ignored_signal_is_none(private: bool) -> None:
    process = stop("sh", "-c", "trap '' USR1; kill -STOP $$")
    if private:
        private_signal(process.pid, signal.SIGUSR1)
    else:
        os.kill(process.pid, signal.SIGUSR1)
    signals = Signals()
    looks = [signals.deliverable([process.pid]) for _ in range(2)]
    end(process)
    assert looks == [set(), set()]


@pytest.mark.parametrize("private", [True, False])
def test_a_blocked_signal_is_none(private: bool) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        process = stop("sleep", "60")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if private:
        private_signal(process.pid, signal.SIGUSR1)
    else:
        os.kill(process.pid, signal.SIGUSR1)
    signals = Signals()
    looks = [signals.deliverable([process.pid]) for _ in range(2)]
    end(process)
    assert looks == [set(), set()]


def test_several_processes_are_served_together() -> None:
    processes = [stop("sleep", "60") for _ in range(3)]
    private_signal(processes[0].pid, signal.SIGUSR1)
    os.kill(processes[1].pid, signal.SIGTERM)
    pids = [process.pid for process in processes]
    signals = Signals()
    looks = [signals.deliverable(pids) for _ in range(2)]
    for process in processes:
        end(process)
    assert looks == [{pids[0]}, {pids[0], pids[1]}]


def test_one_thread_of_a_process_takes_its_signal_the_first_thread_before_others() -> None:
    program = (
        "import threading, os, signal\n"
        "threading.Thread(target=signal.pause, daemon=True).start()\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    process = stop(os.path.realpath("/proc/self/exe"), "-c", program)
    tids = sorted(int(name) for name in os.listdir(f"/proc/{process.pid}/task"))
    os.kill(process.pid, signal.SIGUSR1)
    signals = Signals()
    looks = [signals.deliverable(sorted(tids, reverse=True)) for _ in range(2)]
    alone = Signals()
    others = [alone.deliverable([tids[1]]) for _ in range(2)]
    end(process)
    assert len(tids) == 2
    assert looks == [set(), {process.pid}]
    assert others == [set(), {tids[1]}]


def test_a_stop_is_for_all_threads_of_a_process() -> None:
    """As a shell sees it: the process is stopped once the last thread is, also one that was held in a call."""
    program = (
        "import threading, os, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print(flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([os.path.realpath("/proc/self/exe"), "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    tids = sorted(int(name) for name in os.listdir(f"/proc/{process.pid}/task"))
    assert not module._is_stopping(process.pid, {tids[1]})
    os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    assert module._is_stopping(process.pid, {tids[1]})
    assert not module._is_stopping(process.pid, set(tids)), "those that wait for us are looked at by their signals"
    end(process)
    assert not module._is_stopping(process.pid, {tids[1]})


def test_a_thread_that_is_gone() -> None:
    process = stop("sleep", "60")
    end(process)
    assert Signals().deliverable([process.pid]) == set()
    assert process_of(process.pid) == process.pid
    assert program_of(process.pid) == f"process {process.pid}"


def test_process_of_a_thread() -> None:
    answers: list[tuple[int, int]] = []

    def life() -> None:
        tid = threading.get_native_id()
        answers.append((tid, process_of(tid)))

    thread = threading.Thread(target=life)
    thread.start()
    thread.join(PATIENCE)
    ((tid, process),) = answers
    assert tid != os.getpid()
    assert process == os.getpid()
    assert process_of(os.getpid()) == os.getpid()


def test_program_of(stopped: int) -> None:
    assert program_of(stopped) == "sleep"
