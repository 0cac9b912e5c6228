"""The server inside a test's process, on a loopback port, and the requests that clients send it, by hand from the
specifications."""

import gc
import os
import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pysocksify.address import Address
from pysocksify.reactor import READ, Reactor
from pysocksify.report import Report
from pysocksify.server import Server, ServerSettings
from pysocksify.server.counting import Counts
from pysocksify.server.journal import Journal
from tests.lab.wrapped import missing
from tests.supervisor.holds import has_ipv6

LIMIT = 20.0  # s for anything that has to happen
PAYLOAD = b"early payload"


class Running:
    """A server on a loopback port, in a thread of its own, with TLS on it if that is given."""

    def __init__(self, settings: ServerSettings, host: str, tls: ssl.SSLContext | None) -> None:
        self.lines: list[str] = []
        self._reactor = Reactor()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake, self._woken = socket.socketpair()
        self._reactor.watch(self._woken.fileno(), READ, self._call)
        self.counts = Counts.single()
        counter, journal = self.counts.worker(0), Journal(self.lines.append)
        report = Report(self.lines.append, 2)
        self.server = Server(self._reactor, settings, report, counter=counter, journal=journal)
        if tls is None:
            self.address = self.server.listen(Address(host, 0))
        else:
            listener = socket.create_server((host, 0))
            self.address = Address(*listener.getsockname())
            self.server.adopt(listener, tls)
        self._thread = threading.Thread(target=self._reactor.run)
        self._thread.start()

    def _call(self, events: int) -> None:
        self._woken.recv(1)
        self._calls.get()()

    def in_loop(self, function: Callable[[], None]) -> None:
        """Run a function in the server's thread and wait for its end."""
        done = threading.Event()

        def call() -> None:
            function()
            done.set()

        self._calls.put(call)
        self._wake.send(b"x")
        assert done.wait(LIMIT)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that the loop brings about is so."""
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end, "it didn't happen in time"
            self.in_loop(lambda: None)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.address.host, self.address.port), timeout=LIMIT)

    def stop(self) -> None:
        self.in_loop(self.server.close)
        self.in_loop(self._reactor.stop)
        self._thread.join(LIMIT)
        self._reactor.close()
        self._wake.close()
        self._woken.close()


@contextmanager
def running(
    settings: ServerSettings | None = None, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[Running]:
    server = Running(settings or ServerSettings(), host, tls)
    try:
        yield server
    finally:
        server.stop()


def receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"an end after {bytes(data)!r}"
        data += piece
    return bytes(data)


def receive_head(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += receive(sock, 1)
    return data


def receive_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(65536):
        data += piece
    return bytes(data)


def port(number: int) -> bytes:
    return struct.pack("!H", number)


LOOPBACK = b"\x7f\x00\x00\x01"


def socks4(number: int, host: bytes = LOOPBACK) -> bytes:
    return b"\x04\x01" + port(number) + host + b"Fred\0"


def socks4a(number: int, name: bytes = b"echo.test") -> bytes:
    return b"\x04\x01" + port(number) + b"\0\0\0\1" + b"\0" + name + b"\0"


def socks5(number: int, address: bytes = b"\x01" + LOOPBACK, cmd: int = 1) -> bytes:
    return b"\x05\x01\x00" + b"\x05" + bytes([cmd]) + b"\x00" + address + port(number)


def socks5_name(number: int, name: bytes = b"Echo.TEST") -> bytes:
    return socks5(number, b"\x03" + bytes([len(name)]) + name)


def http(number: int, host: bytes = b"echo.test", extra: bytes = b"") -> bytes:
    authority = host + b":%d" % number
    return b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n" + extra + b"\r\n"


CASES = {
    "socks4": (socks4, 8, b"\x00\x5a"),
    "socks4a": (socks4a, 8, b"\x00\x5a"),
    "socks5": (socks5, 12, b"\x05\x00\x05\x00\x00\x01"),
    "socks5 name": (socks5_name, 12, b"\x05\x00\x05\x00\x00\x01"),
    "http": (http, None, b"HTTP/1.1 200"),
}
ECHO = {"echo.test": ("127.0.0.1",)}
NOBODYS = b"a" * 64 + b".invalid"
"""A name that nobody has, which is found without asking any resolver: a part is too long (RFC 1035 section 2.3.4)."""
each_protocol = pytest.mark.parametrize("protocol", CASES)


def receive_reply(client: socket.socket, protocol: str) -> bytes:
    size = CASES[protocol][1]
    return receive_head(client) if size is None else receive(client, size)


def need_ipv6(host: str = "::1") -> None:
    """Skips the test (fails it in CI) where it's about IPv6 and there is no ::1."""
    if ":" in host and not has_ipv6():
        missing("::1 isn't there")


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def login(name: bytes, password: bytes) -> bytes:
    return b"\x01" + bytes([len(name)]) + name + bytes([len(password)]) + password
