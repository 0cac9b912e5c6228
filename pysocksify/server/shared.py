"""What all sessions of one server have in common, and who a client is."""

import select
import socket
from dataclasses import dataclass, field

from pysocksify.address import Address
from pysocksify.flow import PipePool
from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.server.connect import Upstream
from pysocksify.server.counting import Counter
from pysocksify.server.happy_eyeballs import told
from pysocksify.server.journal import Journal
from pysocksify.server.settings import ServerSettings

READ_SIZE = 65536


@dataclass(slots=True)
class Shared:
    """What all sessions use; a reload replaces `settings` and `upstream`."""

    reactor: Reactor
    report: Report
    journal: Journal | None
    counter: Counter
    pool: PipePool
    settings: ServerSettings
    upstream: Upstream


NO_PORT = Address("127.0.0.1", 0)
"""What stands for both ends of a connection over a Unix socket."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who came, by this connection: `name` for the log, `peer` the other end. Our own end is asked for by few."""

    name: str
    peer: Address
    connection: socket.socket = field(repr=False)

    @property
    def source(self) -> str:
        """Who counts as one: an IPv4 address, but all of an IPv6 address's /64, which is the least that anybody has to
        choose addresses from (RFC 4291 section 2.5.1, RFC 6177)."""
        host = self.peer.host
        return f"{self.peer.packed[:8].hex()}::/64" if ":" in host else host

    @property
    def local(self) -> Address:
        """Our end."""
        return told(self._sockname())

    @property
    def local_name(self) -> str:
        """The host of our end, as getsockname() says it."""
        return self._sockname()[0]

    def _sockname(self) -> tuple[str, int]:
        try:
            name = self.connection.getsockname()
        except OSError:  # closed in the meantime: nothing will come of what this is for
            name = ""
        return name[:2] if isinstance(name, tuple) else (NO_PORT.host, NO_PORT.port)


def has_ended(connection: socket.socket) -> bool:
    """Read and forget what a client sends; whether its end, or a reset, has come."""
    try:
        return not connection.recv(READ_SIZE)
    except BlockingIOError:
        return False
    except OSError:
        return True


def has_left(connection: socket.socket, events: int, unread: bool) -> bool:
    """Whether a client has gone that EPOLLRDHUP was awaited of. Not so if it said something more before it ended its
    sending side, which is in the kernel, or here and `unread`: it may wait for the answer."""
    if events & (select.EPOLLERR | select.EPOLLHUP):
        return True
    try:
        return not (unread or connection.recv(1, socket.MSG_PEEK))
    except OSError:
        return True


def say(connection: socket.socket, data: bytes) -> bool:
    """Write some bytes of a handshake. False: a client that is gone, or doesn't read even these."""
    if not data:
        return True
    try:
        return connection.send(data) == len(data)
    except OSError:
        return False
