"""A caught system call, as the engines that see system calls have it, and what is taken from its arguments."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from pysocksify.supervisor.calls import Call


class CaughtCall(Call, Protocol):
    """A system call of the target that waits: its number and its six arguments (syscall(2))."""

    nr: int
    args: tuple[int, ...]


class Taker(Protocol):
    """How duplicates of the target's sockets are had."""

    def take(self, tid: int, fd: int) -> int:
        """A close-on-exec duplicate of a thread's descriptor. OSError: EBADF, ESRCH, EPERM, EMFILE."""
        ...


def integer(value: int) -> int:
    """An argument as the kernel takes an int: its low half, signed."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value


@contextmanager
def closing(sock: socket.socket) -> Iterator[None]:
    """The C type of sockets is no context manager itself."""
    try:
        yield
    finally:
        sock.close()
