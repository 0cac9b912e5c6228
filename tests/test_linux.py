"""The few calls of Linux that go through ctypes: results, errors, and connect(2) with AF_UNSPEC."""

import errno
import os
import platform
import socket
import struct
from collections.abc import Iterator
from typing import NoReturn

import pytest

from pysocksify.linux import connect, dissolve, looked_into, prctl, syscall

GETPID, READ = {"x86_64": (39, 0), "aarch64": (172, 63)}[platform.machine()]
PR_SET_NAME, PR_SET_DUMPABLE = 15, 4
CLOSE, LISTEN = 7, 10


def sockaddr(name: tuple[str, int]) -> bytes:
    """struct sockaddr_in."""
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", name[1]) + socket.inet_aton(name[0]) + bytes(8)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def tcp_state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def test_syscall_returns_what_the_kernel_does() -> None:
    assert syscall(GETPID) == os.getpid()


def test_syscall_raises_as_the_library_does() -> None:
    with pytest.raises(OSError) as caught:
        syscall(READ, -1, 0, 0)
    assert caught.value.errno == errno.EBADF
    assert caught.value.strerror == os.strerror(errno.EBADF)
    with pytest.raises(OSError) as caught:
        syscall(4000)
    assert caught.value.errno == errno.ENOSYS


def test_an_errno_of_before_isnt_taken_for_this_calls() -> None:
    with pytest.raises(OSError):
        syscall(READ, -1, 0, 0)
    assert syscall(GETPID) == os.getpid()


def test_the_right_subclass_of_oserror() -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    with pytest.raises(BlockingIOError):
        syscall(READ, read, 0, 1)
    os.close(read)
    os.close(write)


def test_prctl() -> None:
    prctl(PR_SET_DUMPABLE, 1)
    with pytest.raises(OSError) as caught:
        prctl(PR_SET_DUMPABLE, 7)
    assert caught.value.errno == errno.EINVAL


def test_connect(server: socket.socket) -> None:
    with socket.socket() as sock:
        assert connect(sock.fileno(), sockaddr(server.getsockname())) == 0
        assert sock.getpeername() == server.getsockname()
        assert connect(sock.fileno(), sockaddr(server.getsockname())) == errno.EISCONN


@pytest.mark.parametrize(
    ("address", "number"),
    [(b"", errno.EINVAL), (b"\2\0\0\1", errno.EINVAL), (struct.pack("=H", 99) + bytes(14), errno.EAFNOSUPPORT)],
)
def test_connect_returns_its_errno(address: bytes, number: int) -> None:
    with socket.socket() as sock:
        assert connect(sock.fileno(), address) == number
    assert connect(-1, address) == errno.EBADF


def test_an_address_may_hold_any_byte() -> None:
    """A struct sockaddr is full of NULs."""
    with socket.socket() as bound, socket.socket() as sock:
        bound.bind(("127.0.0.1", 0))
        assert connect(sock.fileno(), sockaddr(bound.getsockname())) == errno.ECONNREFUSED


def test_dissolve_a_connected_socket(server: socket.socket) -> None:
    with socket.socket() as sock:
        sock.connect(server.getsockname())
        dissolve(sock.fileno())
        assert tcp_state(sock) == CLOSE
        dissolve(sock.fileno())
        sock.connect(server.getsockname())


def test_dissolve_a_datagram_socket() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 9))
        dissolve(sock.fileno())
        with pytest.raises(OSError) as caught:
            sock.getpeername()
        assert caught.value.errno == errno.ENOTCONN


def test_a_socket_that_cant_be_dissolved_is_no_error() -> None:
    left, right = socket.socketpair()
    with left, right:
        dissolve(left.fileno())
        left.send(b"x")
        assert right.recv(1) == b"x"


def test_dissolving_what_isnt_a_socket_is_one() -> None:
    read, write = os.pipe()
    with pytest.raises(OSError) as caught:
        dissolve(read)
    assert caught.value.errno == errno.ENOTSOCK
    os.close(read)
    os.close(write)


def test_what_isnt_ones_own_isnt_looked_into() -> None:
    def closed() -> NoReturn:
        raise PermissionError(errno.EACCES, "closed")

    with pytest.raises(PermissionError):
        looked_into(os.getpid(), closed)
    assert looked_into(os.getpid(), os.getpid) == os.getpid()
