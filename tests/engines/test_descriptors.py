"""Duplicates of a target's descriptors: the same open file, by thread, through exec and after a thread's end."""

import errno
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pysocksify.engines.syscalls import descriptors as module
from pysocksify.engines.syscalls.descriptors import Descriptors
from tests.engines.filtered import PATIENCE

SO_COOKIE = 57


@pytest.fixture
def descriptors() -> Iterator[Descriptors]:
    before = len(os.listdir("/proc/self/fd"))
    descriptors = Descriptors()
    yield descriptors
    descriptors.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        yield sock


def cookie(fd: int) -> bytes:
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)


def program(sock: socket.socket) -> "subprocess.Popen[bytes]":
    """A program whose standard input is this socket."""
    return subprocess.Popen(["sleep", str(PATIENCE)], stdin=sock.fileno(), stdout=subprocess.PIPE)


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate(timeout=PATIENCE)


def test_it_is_the_same_open_file(descriptors: Descriptors, sock: socket.socket) -> None:
    process = program(sock)
    fd = descriptors.take(process.pid, 0)
    try:
        assert cookie(fd) == cookie(sock.fileno())
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
        end(process)


def test_errors(descriptors: Descriptors, sock: socket.socket) -> None:
    process = program(sock)
    for number in (99, -1, 1 << 30):
        with pytest.raises(OSError) as caught:
            descriptors.take(process.pid, number)
        assert caught.value.errno == errno.EBADF
    end(process)
    with pytest.raises(ProcessLookupError):
        descriptors.take(process.pid, 0)
    with pytest.raises(ProcessLookupError):
        descriptors.take(process.pid, 0)


def test_it_still_works_after_exec(descriptors: Descriptors, sock: socket.socket) -> None:
    with subprocess.Popen(
        ["sh", "-c", f"echo; read x; exec sleep {PATIENCE}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        os.close(descriptors.take(process.pid, 1))
        process.stdin.write(b"\n")
        process.stdin.flush()
        while not os.readlink(f"/proc/{process.pid}/exe").endswith(("sleep", "coreutils", "busybox")):
            os.sched_yield()
        os.close(descriptors.take(process.pid, 1))
        process.kill()


@pytest.mark.parametrize("by_thread", [True, False])
def test_a_thread_that_is_not_the_first(descriptors: Descriptors, sock: socket.socket, by_thread: bool) -> None:
    if not by_thread:
        descriptors._threads = False  # Linux before 6.9
    tids: list[int] = []
    started, finish = threading.Event(), threading.Event()

    def life() -> None:
        tids.append(threading.get_native_id())
        started.set()
        finish.wait(PATIENCE)

    thread = threading.Thread(target=life)
    thread.start()
    started.wait(PATIENCE)
    fd = descriptors.take(tids[0], sock.fileno())
    same = cookie(fd) == cookie(sock.fileno())
    os.close(fd)
    finish.set()
    thread.join(PATIENCE)
    assert same


def test_no_more_are_kept_than_said(
    descriptors: Descriptors, sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    before = len(os.listdir("/proc/self/fd"))
    processes = [program(sock) for _ in range(4)]
    pipes = len(processes)
    for process in (*processes, *processes):
        os.close(descriptors.take(process.pid, 0))
    assert len(os.listdir("/proc/self/fd")) == before + pipes + 2
    for process in processes:
        end(process)


def test_a_kept_one_whose_thread_is_gone_is_let_go(descriptors: Descriptors, sock: socket.socket) -> None:
    process = program(sock)
    os.close(descriptors.take(process.pid, 0))
    end(process)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ProcessLookupError):
        descriptors.take(process.pid, 0)
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_what_is_kept_makes_room(descriptors: Descriptors, sock: socket.socket) -> None:
    """A hard limit below what is kept: the supervisor would refuse all connections from then on."""
    processes = [program(sock) for _ in range(4)]
    for process in processes[:3]:
        os.close(descriptors.take(process.pid, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filling: list[int] = []
    taken = -1
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    try:
        with suppress(OSError):
            while True:
                filling.append(os.dup(0))
        taken = descriptors.take(processes[3].pid, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in filling:
            os.close(fd)
    assert cookie(taken) == cookie(sock.fileno())
    os.close(taken)
    for process in processes:
        end(process)
