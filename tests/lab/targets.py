"""What is connected to: an HTTP server and small TCP services, all in threads of the test run, on IPv4 and IPv6.

Each service writes what it saw into one log of events; a test waits for an event instead of sleeping.

| service | what it does |
| --- | --- |
| http | GET /peer: JSON of the address that it was asked from; GET /files/…: a folder (git's too) |
| echo | sends back what it gets; half-closed, it closes |
| banner | speaks first: BANNER, then as echo |
| source | reads a line with a number, sends so many bytes of `block`s, closes |
| sink | reads to the end of file, answers with the sha256 of it, closes (a half-close must arrive for that) |
| early | closes its own direction first with FAREWELL, then reads to the end of file and notes what came |
| reset | reads a line, then resets the connection |
| watch | reads until the connection ends and notes whether by FIN or RST |
"""

import contextlib
import hashlib
import http.server
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import town

BANNER = b"220 target.test ready\r\n"
FAREWELL = b"that was all\n"
BLOCK_SIZE = 1 << 20
RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds; close(2) then sends RST


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a service saw: from which address and port, and what (in words), with bytes if any."""

    service: str
    peer: str
    port: int
    what: str
    data: bytes = b""


class EventLog:
    """What all services saw, in order."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._more = threading.Condition()

    def add(self, event: Event) -> None:
        """Appends and wakes who waits."""
        with self._more:
            self._events.append(event)
            self._more.notify_all()

    @property
    def events(self) -> tuple[Event, ...]:
        """All so far."""
        with self._more:
            return tuple(self._events)

    def mark(self) -> int:
        """A place in the log, for `since` and `wait`."""
        with self._more:
            return len(self._events)

    def since(self, mark: int) -> tuple[Event, ...]:
        """All after a mark."""
        with self._more:
            return tuple(self._events[mark:])

    def wait(self, mark: int, wanted: Callable[[Event], bool], timeout: float = 10.0) -> Event:
        """The first event after a mark that is wanted; raises TimeoutError with what there was instead."""
        deadline = time.monotonic() + timeout
        with self._more:
            while True:
                for event in self._events[mark:]:
                    if wanted(event):
                        return event
                if not self._more.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"not seen; instead: {self._events[mark:]}")


Service = Callable[[socket.socket, Callable[..., None]], None]


class Target:
    """All services on one host, from construction to `close()`; `ports` has their port numbers."""

    def __init__(self, namespace: str | None, addresses: tuple[str, ...], files: Path) -> None:
        self.log = EventLog()
        self.ports: dict[str, int] = {}
        self.refused = 0
        self._listeners: list[socket.socket] = []
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._http: list[http.server.ThreadingHTTPServer] = []
        for name in ("http", *SERVICES):
            port = 0
            for address in addresses:
                sock = town.listener(namespace, address, port)
                port = sock.getsockname()[1]
                if name == "http":
                    self._serve_http(sock, files)
                else:
                    self._serve(name, sock)
            self.ports[name] = port
        self.refused = town.free_port(namespace, addresses[0])

    def _serve_http(self, sock: socket.socket, files: Path) -> None:
        log = self.log

        class Site(Pages):
            events = log
            folder = files

        address = sock.getsockname()[:2]
        server = http.server.ThreadingHTTPServer(address, Site, bind_and_activate=False)
        server.socket.close()
        server.socket = sock
        server.daemon_threads = True
        server.block_on_close = False
        self._http.append(server)
        self._thread(lambda: server.serve_forever(poll_interval=0.05))

    def _serve(self, name: str, sock: socket.socket) -> None:
        self._listeners.append(sock)
        self._thread(lambda: self._accept(name, sock))

    def _thread(self, function: Callable[[], None]) -> None:
        thread = threading.Thread(target=function, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, name: str, sock: socket.socket) -> None:
        while True:
            try:
                connection, address = sock.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(name, connection, *address[:2]), daemon=True).start()

    def _talk(self, name: str, connection: socket.socket, peer: str, port: int) -> None:
        with self._lock:
            self._connections.add(connection)

        def note(what: str, data: bytes = b"") -> None:
            self.log.add(Event(service=name, peer=peer, port=port, what=what, data=data))

        note("connected")
        try:
            with connection:
                SERVICES[name](connection, note)
        except ConnectionResetError:
            note("reset")
        except OSError as error:
            note(f"error: {error}")
        finally:
            with self._lock:
                self._connections.discard(connection)

    def close(self) -> None:
        """Closes every socket and ends every thread that listens."""
        for server in self._http:
            server.shutdown()
            server.server_close()
        for sock in self._listeners:
            sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        with self._lock:
            connections = tuple(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)


class Pages(http.server.BaseHTTPRequestHandler):
    """The HTTP service."""

    protocol_version = "HTTP/1.1"
    events: EventLog
    folder: Path

    def do_GET(self) -> None:
        peer, port = self.client_address[:2]
        self.events.add(Event(service="http", peer=peer, port=port, what=self.path))
        path = self.path.partition("?")[0]
        if path == "/peer":
            self._answer(200, "application/json", json.dumps({"peer": peer, "host": self.headers["Host"]}).encode())
            return
        file = (self.folder / path.removeprefix("/files/")).resolve()
        if path.startswith("/files/") and file.is_relative_to(self.folder) and file.is_file():
            self._answer(200, "application/octet-stream", file.read_bytes())
        else:
            self._answer(404, "text/plain", b"no such page\n")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()
            return
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are in the events; nothing is printed."""


def block(index: int) -> bytes:
    """The `index`-th MiB of what `source` sends: a fixed random block with its number in front."""
    return struct.pack("!Q", index) + NOISE


NOISE = random.Random(1928).randbytes(BLOCK_SIZE - 8)


def source_digest(size: int) -> str:
    """The sha256 of the first `size` bytes of the source."""
    digest = hashlib.sha256()
    for index in range((size + BLOCK_SIZE - 1) // BLOCK_SIZE):
        digest.update(block(index)[: size - index * BLOCK_SIZE])
    return digest.hexdigest()


def line(sock: socket.socket) -> bytes:
    """What comes up to a line's end, at most 100 bytes."""
    data = b""
    while not data.endswith(b"\n") and len(data) < 100:
        piece = sock.recv(1)
        if not piece:
            break
        data += piece
    return data


def echo(sock: socket.socket, note: Callable[..., None]) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)
    note("end of file")


def banner(sock: socket.socket, note: Callable[..., None]) -> None:
    sock.sendall(BANNER)
    echo(sock, note)


def source(sock: socket.socket, note: Callable[..., None]) -> None:
    size = int(line(sock) or b"0")
    for index in range((size + BLOCK_SIZE - 1) // BLOCK_SIZE):
        sock.sendall(memoryview(block(index))[: size - index * BLOCK_SIZE])
    note(f"sent {size}")


def sink(sock: socket.socket, note: Callable[..., None]) -> None:
    digest = hashlib.sha256()
    buffer = bytearray(BLOCK_SIZE)
    view, size = memoryview(buffer), 0
    while count := sock.recv_into(buffer):
        digest.update(view[:count])
        size += count
    note(f"received {size}")
    sock.sendall(f"{size} {digest.hexdigest()}\n".encode())


def early(sock: socket.socket, note: Callable[..., None]) -> None:
    sock.sendall(FAREWELL)
    sock.shutdown(socket.SHUT_WR)
    received = b""
    while data := sock.recv(65536):
        received += data
    note("end of file", received)


def reset(sock: socket.socket, note: Callable[..., None]) -> None:
    line(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    note("resetting")


def watch(sock: socket.socket, note: Callable[..., None]) -> None:
    received = b""
    while data := sock.recv(65536):
        received += data
    note("end of file", received)


SERVICES: dict[str, Service] = {
    "echo": echo,
    "banner": banner,
    "source": source,
    "sink": sink,
    "early": early,
    "reset": reset,
    "watch": watch,
}
