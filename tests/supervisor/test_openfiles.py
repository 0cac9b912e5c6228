"""Which sockets programs have open, and which programs there are below one."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from pysocksify.supervisor.openfiles import descendants, sockets_open

PATIENCE = 15


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        yield sock


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate(timeout=PATIENCE)


def test_ones_own(sock: socket.socket) -> None:
    assert inode(sock) in sockets_open([os.getpid()])
    assert inode(sock) not in sockets_open([])
    assert inode(sock) not in sockets_open([os.getpid()], 1)
    with sock.dup():
        assert inode(sock) in sockets_open([os.getpid()], 1)
    gone = inode(sock)
    sock.close()
    assert gone not in sockets_open([os.getpid()])


def test_another_programs(sock: socket.socket) -> None:
    process = subprocess.Popen(["sleep", "60"], stdin=sock.fileno())
    other = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
    try:
        assert sockets_open([process.pid, other.pid]) == {inode(sock)}
        assert sockets_open([other.pid]) == set()
    finally:
        end(process)
        end(other)
    assert sockets_open([process.pid]) == set()


WITHOUT_ITS_FIRST_THREAD = """
import ctypes, os, threading, time
def rest():
    while "State:\tZ" not in open(f"/proc/{os.getpid()}/status").read():
        time.sleep(0.001)
    print(flush=True)
    time.sleep(60)
threading.Thread(target=rest).start()
ctypes.CDLL(None).syscall(EXIT, 0)
"""


def test_after_the_first_thread_has_ended(sock: socket.socket) -> None:
    code = WITHOUT_ITS_FIRST_THREAD.replace("EXIT", "60" if os.uname().machine == "x86_64" else "93")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=sock.fileno(), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"\n"
        assert sockets_open([process.pid]) == {inode(sock)}
    finally:
        end(process)


def test_what_isnt_a_socket_isnt_one() -> None:
    process = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    found = sockets_open([process.pid])
    end(process)
    assert found == set()


def test_descendants_of_all_generations() -> None:
    script = "sh -c 'sleep 60 & echo $! $$; exec sleep 60' & wait"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    grandchild, child = map(int, process.stdout.readline().split())
    try:
        assert set(descendants(process.pid)) == {child, grandchild}
        assert {process.pid, child, grandchild} <= set(descendants(os.getpid()))
        assert process.pid not in descendants(process.pid)
        assert descendants(grandchild) == []
    finally:
        os.killpg(process.pid, 9)
        process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("name", ["a) S 1 (b", "x y", ") ) 1 1"])
def test_a_program_may_be_called_anything(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        assert process.pid in descendants(os.getpid())
    finally:
        process.kill()
        process.wait()


def test_no_process_has_this_id() -> None:
    assert descendants(1 << 30) == []


@pytest.mark.parametrize("look", [lambda: sockets_open([os.getpid()]), lambda: descendants(os.getpid())])
def test_no_descriptor_to_look_with(look: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing found would mean that nothing is open."""

    def none_left(path: str) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "listdir", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        look()
