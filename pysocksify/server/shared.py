"""What all sessions of one server have in common, and who a client is."""

import socket
from dataclasses import dataclass

from pysocksify.address import Address
from pysocksify.reactor import Reactor
from pysocksify.relay import PipePool
from pysocksify.report import Report
from pysocksify.server.connect import Upstream
from pysocksify.server.counting import Counter
from pysocksify.server.journal import Journal
from pysocksify.server.settings import ServerSettings


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


@dataclass(frozen=True, slots=True)
class Client:
    """Who came: `name` for the log; `local` is our end, `local_name` its host, as getsockname() says it."""

    name: str
    peer: Address
    local: Address
    local_name: str


def say(connection: socket.socket, data: bytes) -> bool:
    """Write some bytes of a handshake. False: a client that is gone, or doesn't read even these."""
    if not data:
        return True
    try:
        return connection.send(data) == len(data)
    except OSError:
        return False
