"""The server in the test's own thread, step by step, on a reactor that may be full."""

import errno
import json
import os
import socket
import ssl
from collections.abc import Callable

from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.server import Server, ServerSettings
from pysocksify.server.counting import Counts, Sums
from pysocksify.server.journal import Journal
from tests.server.running import LIMIT


class FullReactor(Reactor):
    """Its epoll set has no room for a watch with the callback that is named (epoll(7), max_user_watches)."""

    full_for = ""

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        if callback.__qualname__ == self.full_for:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().watch(fd, events, callback)

    def until(self, condition: Callable[[], object]) -> None:
        """Run until something is so."""
        end = self.now() + LIMIT
        while not condition():
            assert self.now() < end, "it didn't happen in time"
            self.call_at(self.now() + 0.01, lambda: None)
            self.run_once()


class Stepped:
    """A server in the test's own thread."""

    def __init__(self, settings: ServerSettings, context: ssl.SSLContext | None = None) -> None:
        self.reactor = FullReactor()
        self.lines: list[str] = []
        self.counts = Counts.single()
        journal = Journal(self.lines.append, "json")
        self.server = Server(
            self.reactor,
            settings,
            Report(journal.message),
            counter=self.counts.worker(0),
            journal=journal,
        )
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._address = self._listener.getsockname()
        self.server.adopt(self._listener, context)

    def connect(self) -> socket.socket:
        client = socket.create_connection(self._address, timeout=LIMIT)
        client.setblocking(False)
        return client

    def entry(self) -> dict[str, object]:
        """The journal's last line."""
        entry: dict[str, object] = json.loads(self.lines[-1])
        return entry

    @property
    def sums(self) -> Sums:
        return self.counts.sums()

    def close(self) -> None:
        self.server.close()
        self.reactor.close()


def ended(client: socket.socket, said: bytearray) -> bool:
    """Take what has come; whether the connection is at its end."""
    try:
        while piece := client.recv(4096):
            said += piece
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    return True
