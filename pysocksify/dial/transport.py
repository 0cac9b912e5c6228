"""Performing the steps of a dial on sockets, in the reactor's loop.

A transport is the one connection that the steps of a dial are about. Here is the one that makes sockets of its own; the
supervisor's direct path has another one, which uses the target's socket.
"""

import errno
import os
import socket
from collections.abc import Callable
from typing import Protocol

from pysocksify.address import Address
from pysocksify.dial.hops import DialSteps, Take
from pysocksify.errors import ConversationError, PeerClosedError, RemoteProtocolError
from pysocksify.pacing import unpaced
from pysocksify.protocol.conversation import Exactly, Send, Until
from pysocksify.reactor import READ, WRITE, InThread, Ready, Steps
from pysocksify.route.chain import Proxy

PEEKED = 65536
# plain numbers: the enum's members take microseconds to be put together
# (not every system has these flags; the sockets made here don't wait anyway)
DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))
SEND_FLAGS = DONTWAIT | int(getattr(socket, "MSG_NOSIGNAL", 0))
KIND = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0)
UNDERWAY = (errno.EINPROGRESS, errno.EWOULDBLOCK)  # Windows has the second


class Transport(Protocol):
    """What a dial reads and writes."""

    sock: socket.socket
    readable: Ready
    """Waits for bytes of `sock`, with `keep`; a new one for each new connection."""
    awaiting: bool
    """Nothing can have come yet."""

    def open(self, address: Address, deadline: float) -> Steps[None]:
        """Connect `sock`, or a new one in its place, to `address`. OSError, TimeoutError."""
        ...


class OwnSocket:
    """A transport on sockets made here. `sock` is the caller's once the dial is up; close() until then.

    `source` is the address and port of this machine to connect from, ("", 0) for any.
    """

    def __init__(self, source: tuple[str, int] = ("", 0)) -> None:
        self._source = source
        self.sock = socket.socket.__new__(socket.socket)
        self._open = False
        self.readable = Ready(-1, READ)
        self.awaiting = True

    def open(self, address: Address, deadline: float) -> Steps[None]:
        """Connect a new socket to `address`; a name's addresses are tried in turn."""
        self.close()
        failure: OSError | None = None
        for family, sockaddr in (yield from resolve(address)):
            sock = socket.socket(family, KIND)
            self.sock, self._open = sock, True
            if KIND == socket.SOCK_STREAM:
                sock.setblocking(False)
            self.readable = Ready(sock.fileno(), READ, keep=True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.is_loopback:
                unpaced(sock)
            try:
                if self._source != ("", 0):
                    sock.bind(self._source)
                error = sock.connect_ex(sockaddr)
                if error in UNDERWAY:
                    yield Ready(sock.fileno(), WRITE, deadline)
                    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not error:
                    return
                failure = OSError(error, os.strerror(error))
            except TimeoutError:
                self.close()
                raise
            except OSError as refusal:  # bind(2)
                failure = refusal
            self.close()
        raise failure or OSError(errno.EHOSTUNREACH, "no address for this name")

    def close(self) -> None:
        """Close the socket, if there's one."""
        if self._open:
            self._open = False
            self.sock.close()


def resolve(address: Address) -> Steps[list[tuple[int, tuple[str, int]]]]:
    """The families and socket addresses that `address` stands for. OSError: EHOSTUNREACH for an unknown name."""
    if not address.is_name:
        assert address.family is not None
        return [(address.family, (address.host, address.port))]

    def look_up() -> list[tuple[int, tuple[str, int]]]:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        return [(int(family), (str(sockaddr[0]), address.port)) for family, _, _, _, sockaddr in found]

    try:
        found: list[tuple[int, tuple[str, int]]] = yield InThread(look_up)
    except socket.gaierror as error:
        raise OSError(errno.EHOSTUNREACH, f"{address.host}: {error.strerror}") from error
    return found


def perform(steps: DialSteps, transport: Transport, now: Callable[[], float]) -> Steps[tuple[Proxy, ...]]:
    """Perform a dial's steps; its value is returned and its DialError raised."""
    try:
        step = next(steps)
        while True:
            answer: bytes | None = None
            try:
                if isinstance(step, Take):
                    answer = yield from _take(transport, step, now)
                elif isinstance(step, Send):
                    # an answer takes its time: no use in looking for it at once
                    transport.awaiting = True
                    sent = transport.sock.send(step.data, SEND_FLAGS)
                    if sent != len(step.data):
                        yield from _send_rest(transport.sock, step.data[sent:])
                else:
                    yield from transport.open(step.address, now() + step.timeout)
            except (OSError, ConversationError) as failure:
                step = steps.throw(failure)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        path: tuple[Proxy, ...] = stop.value
        return path
    finally:
        steps.close()


def _send_rest(sock: socket.socket, data: bytes) -> Steps[None]:
    while data:
        yield Ready(sock.fileno(), WRITE)
        data = data[sock.send(data, SEND_FLAGS) :]


def _take(transport: Transport, step: Take, now: Callable[[], float]) -> Steps[bytes]:
    """The bytes of one need. Nothing behind them is taken from the socket: it belongs to the program."""
    sock, need, got = transport.sock, step.need, b""
    deadline = 0.0  # for the whole need, not for each byte of it
    while True:
        if transport.awaiting:
            deadline = deadline or now() + step.timeout
            readable = transport.readable
            readable.deadline = deadline
            yield readable
            transport.awaiting = False
        try:
            data = sock.recv(need.size - len(got) if isinstance(need, Exactly) else _owned(sock, need, got), DONTWAIT)
        except BlockingIOError:
            transport.awaiting = True
            continue
        except ConnectionError as error:
            raise PeerClosedError(error.strerror or "connection reset", got) from error
        if not data:
            raise PeerClosedError("the connection was closed in the handshake", got)
        got = got + data if got else data
        if isinstance(need, Exactly):
            if len(got) == need.size:
                return got
        elif got.endswith(need.delimiter):
            return got


def _owned(sock: socket.socket, need: Until, got: bytes) -> int:
    """How many of the bytes that wait belong to the need: up to its delimiter's end. RemoteProtocolError: too many."""
    if len(got) >= need.limit:
        raise RemoteProtocolError(f"{need.what} of more than {need.limit} bytes")
    waiting = sock.recv(PEEKED, DONTWAIT | int(socket.MSG_PEEK))
    if not waiting:
        return 1  # end of file: recv() says so again
    keep = got[-(len(need.delimiter) - 1) :] if len(need.delimiter) > 1 else b""
    found = (keep + waiting).find(need.delimiter)
    if found < 0:
        return min(len(waiting), need.limit - len(got))
    return min(found + len(need.delimiter) - len(keep), need.limit - len(got))
