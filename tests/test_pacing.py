"""Sockets that send on loopback: no congestion control that works by a timer."""

import socket
from collections.abc import Iterator

import pytest

from pysocksify import pacing
from pysocksify.address import Address
from pysocksify.server import ports


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """The system's default is read once a process."""
    pacing._default_paces.cache_clear()
    yield
    pacing._default_paces.cache_clear()


def congestion(sock: socket.socket) -> bytes:
    """The name of a socket's congestion control."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


def accepted(monkeypatch: pytest.MonkeyPatch, paces: bool, host: str) -> bytes:
    """What a socket has that one of the server's listeners accepts."""
    monkeypatch.setattr(pacing, "_default_paces", lambda: paces)
    (listener,) = ports.listening(Address(host, 0))
    with listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
        listener.setblocking(True)
        sock, _ = listener.accept()
        with sock:
            return congestion(sock)


@pytest.fixture
def default() -> bytes:
    """What the system gives to a new socket."""
    with socket.socket() as sock:
        return congestion(sock)


@pytest.mark.parametrize(("paces", "host"), [(False, "127.0.0.1"), (True, "0.0.0.0")])
def test_the_default_stays(monkeypatch: pytest.MonkeyPatch, default: bytes, paces: bool, host: str) -> None:
    """Where it has no timer, and towards the network, which it's made for."""
    assert accepted(monkeypatch, paces, host) == default


def test_loopback_is_not_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accepted(monkeypatch, True, "127.0.0.1") == b"reno"


def test_the_default_is_read(default: bytes) -> None:
    assert pacing._default_paces() is default.startswith(b"bbr")
