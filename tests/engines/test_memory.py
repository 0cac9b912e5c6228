"""The target's memory: read and written in another process, both ways, and every way in which it can't be."""

import ctypes
import errno
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pysocksify.engines.syscalls.memory import Memory
from pysocksify.linux import prctl
from pysocksify.record import replace
from tests.engines.filtered import ACCOUNTS, PATIENCE, as_account, fork, machine

NOT_A_CALL = 4000  # no call has this number: ENOSYS, as sandboxes answer process_vm_readv(2)
PAGE = mmap.PAGESIZE
PR_SET_DUMPABLE = 4

WAYS = {
    "process_vm": machine(),
    "/proc/TID/mem": replace(machine(), process_vm_readv=NOT_A_CALL, process_vm_writev=NOT_A_CALL),
}

each_account = pytest.mark.parametrize("uid", ACCOUNTS)


@pytest.fixture(params=WAYS)
def memory(request: pytest.FixtureRequest) -> Memory:
    return Memory(WAYS[request.param])


class Pages:
    """Two pages of private memory, the second of which nobody may touch; a fork()ed child has its own copy of them."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._hold = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._hold)
        self.end = self.address + PAGE
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(self.end), ctypes.c_size_t(PAGE), 0) == 0

    def put(self, data: bytes) -> None:
        self._map[: len(data)] = data

    def get(self, size: int) -> bytes:
        return self._map[:size]


PAGES = Pages()


@contextmanager
def child(before: Callable[[], None], after: Callable[[], None] = lambda: None) -> Iterator[int]:
    """A fork of this process that runs `before`, waits for the block's end, and then runs `after`; its id."""
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(PATIENCE)
            os.close(go_write)
            before()
            os.write(ready_write, b"r")
            os.read(go_read, 1)
            after()
            status = 0
        finally:
            os._exit(status)
    os.close(ready_write)
    os.close(go_read)
    try:
        assert os.read(ready_read, 1) == b"r"
        yield pid
    finally:
        os.close(go_write)
        os.close(ready_read)
        _, status = os.waitpid(pid, 0)
    assert status == 0


@pytest.mark.parametrize("size", [1, 16, 128, 256, 257, PAGE])
def test_read(memory: Memory, size: int) -> None:
    data = bytes(range(1, 252)) * (PAGE // 251 + 1)
    with child(lambda: PAGES.put(data[:PAGE])) as pid:
        assert memory.read(pid, PAGES.address, size) == data[:size]
        assert memory.read(pid, PAGES.end - size, size) == data[PAGE - size : PAGE]
        assert PAGES.get(4) == bytes(4), "that was the child's own copy"


def test_what_was_read_stays(memory: Memory) -> None:
    with child(lambda: PAGES.put(b"first second")) as pid:
        first = memory.read(pid, PAGES.address, 5)
        second = memory.read(pid, PAGES.address + 6, 6)
        assert (first, second) == (b"first", b"second")


def test_nothing_is_read_anywhere(memory: Memory) -> None:
    assert memory.read(os.getpid(), 0, 0) == b""
    memory.write(os.getpid(), 0, b"")


@pytest.mark.parametrize("size", [1, 16, 300, PAGE - 1])
def test_write(memory: Memory, size: int) -> None:
    data = (b"written " * PAGE)[:size]

    def after() -> None:
        assert PAGES.get(size + 1) == data + b"\0"

    with child(lambda: None, after) as pid:
        memory.write(pid, PAGES.address, data)


ADDRESSES = {
    "null": 0,
    "unmapped": 8,
    "protected": PAGES.end,
    "half": PAGES.end - 4,
    "kernel's": 0xFFFFFFFF81000000,
    "last": 0xFFFFFFFFFFFFFFFF,
    "not canonical": 1 << 62,
}


@pytest.mark.parametrize("where", [name for name in ADDRESSES if name not in ("protected", "half")])
def test_bad_addresses_are_efault(memory: Memory, where: str) -> None:
    with child(lambda: None) as pid:
        with pytest.raises(OSError) as caught:
            memory.read(pid, ADDRESSES[where], 8)
        assert caught.value.errno == errno.EFAULT
        with pytest.raises(OSError) as caught:
            memory.write(pid, ADDRESSES[where], b"12345678")
        assert caught.value.errno == errno.EFAULT


@pytest.mark.parametrize("where", ["protected", "half"])
def test_protected_pages_are_efault(where: str) -> None:
    memory = Memory(WAYS["process_vm"])
    with child(lambda: None) as pid:
        with pytest.raises(OSError) as caught:
            memory.read(pid, ADDRESSES[where], 8)
        assert caught.value.errno == errno.EFAULT
        with pytest.raises(OSError) as caught:
            memory.write(pid, ADDRESSES[where], b"12345678")
        assert caught.value.errno == errno.EFAULT


@pytest.mark.parametrize("size", [8, 1000])
def test_the_end_of_what_is_mapped_is_efault(memory: Memory, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def unmap() -> None:
        assert libc.munmap(ctypes.c_void_p(PAGES.end), ctypes.c_size_t(PAGE)) == 0

    with child(unmap) as pid:
        with pytest.raises(OSError) as caught:
            memory.read(pid, PAGES.end - size // 2, size)
        assert caught.value.errno == errno.EFAULT


def test_a_process_that_is_gone(memory: Memory) -> None:
    pid = fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(OSError) as caught:
        memory.read(pid, PAGES.address, 8)
    assert caught.value.errno in (errno.ESRCH, errno.ENOENT)
    with pytest.raises(OSError) as caught:
        memory.write(pid, PAGES.address, b"x")
    assert caught.value.errno in (errno.ESRCH, errno.ENOENT)


@each_account
def test_an_ordinary_user_reads_its_own(uid: int) -> None:
    def act() -> None:
        prctl(PR_SET_DUMPABLE, 1)  # lost when a process changes its user (prctl(2))
        memory = Memory(machine())
        with child(lambda: PAGES.put(b"mine")) as pid:
            assert memory.read(pid, PAGES.address, 4) == b"mine"

    as_account(uid, act)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_program_that_closed_itself_is_eperm() -> None:
    """ssh-agent and others do so; whoever asks gets an error, never wrong bytes."""

    def act() -> None:
        prctl(PR_SET_DUMPABLE, 1)
        with child(lambda: prctl(PR_SET_DUMPABLE, 0)) as pid:
            with pytest.raises(PermissionError):
                Memory(WAYS["process_vm"]).read(pid, PAGES.address, 4)
            with pytest.raises(PermissionError):
                Memory(WAYS["/proc/TID/mem"]).read(pid, PAGES.address, 4)

    as_account(ACCOUNTS[-1], act)


def test_no_descriptor_is_left(memory: Memory) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with child(lambda: None) as pid:
        for _ in range(10):
            memory.read(pid, PAGES.address, 4)
            memory.write(pid, PAGES.address, b"abcd")
            with pytest.raises(OSError):
                memory.read(pid, 8, 4)
    assert len(os.listdir("/proc/self/fd")) == before
