"""One connection of the target's: its states, who waits for it, and what its socket can be asked.

DIALLING   the direct path: the target's own socket is being connected; blocking calls wait
HELD       the socket is in SYN_SENT on the hold address, the dial goes on beside it; calls may wait
           (where no hold is to be had it's left alone, and calls do wait)
EARLY      no hold is to be had: the socket stands on an entrance of ours, the dial goes on beside it (`early`)
RELEASED   the held socket stands; the kernel still owes the program one 0 for its connect()
UP         it stands
FAILED     the dial failed while nobody waited: the errno is told by SO_ERROR or the next connect()
"""

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from pysocksify.address import Address
from pysocksify.dial.transport import Transport
from pysocksify.reactor import Steps, Task, Timer
from pysocksify.supervisor.calls import Call
from pysocksify.supervisor.direct import TargetSocket
from pysocksify.supervisor.early import Arrival
from pysocksify.supervisor.hold import TCP_SYN_SENT, Hold

SO_COOKIE = 57
TCP_CLOSE, TCP_LISTEN = 7, 10  # net/tcp_states.h
NO_TIMEOUT = bytes(16)  # struct timeval

Way = tuple[object, ...]
"""The hops of a connection, or the word for none; for the log."""

Dial = Callable[[Transport], Steps[Way]]
"""How to connect a transport to a destination."""

Then = Callable[[socket.socket], None]
"""What answers a call with the connected socket, in place of a plain 0: a send that connects."""


class State(Enum):
    """Where a connection stands; see the module's text."""

    DIALLING = auto()
    HELD = auto()
    EARLY = auto()
    RELEASED = auto()
    UP = auto()
    FAILED = auto()


@dataclass(slots=True)
class Waiter:
    """A call that waits for a connection."""

    call: Call
    then: Then | None = None
    timer: Timer | None = None


@dataclass(slots=True, eq=False)
class Connection:
    """One connection of the target's."""

    cookie: bytes
    destination: Address
    sockaddr: bytes
    dial: Dial
    started: float
    sock: socket.socket | None
    state: State
    error: int = 0
    hold: Hold | None = None
    arrival: Arrival | None = None
    keepalive: list[tuple[int, int, int]] = field(default_factory=list)
    transport: TargetSocket | None = None
    task: "Task[Any] | None" = None
    waiters: list[Waiter] = field(default_factory=list)
    unheard: bool = False
    """The last answer didn't arrive: the same call comes once more and gets the same answer."""


def cookie_of(sock: socket.socket) -> bytes:
    """SO_COOKIE (socket(7)): the open file's own number, never used again."""
    return sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)


def send_timeout(sock: socket.socket) -> float | None:
    """SO_SNDTIMEO in seconds (socket(7)), which limits a blocking connect(); None: no limit."""
    value = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16)
    if value == NO_TIMEOUT:
        return None
    seconds, microseconds = struct.unpack("=qq", value)
    limit: float = seconds + microseconds / 1e6
    return limit


def is_connected(sock: socket.socket) -> bool:
    """Whether getpeername(2) has an answer (inet_getname() in net/ipv4)."""
    state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state not in (TCP_CLOSE, TCP_SYN_SENT, TCP_LISTEN)
