"""Held connections: a target's socket kept in SYN_SENT until the chain stands, then let go or failed.

Theory of operation. A *hold address* is a loopback listener with a backlog of none and one filler connection that
nobody accepts. Its accept queue is full, so the kernel drops every further SYN without an answer, and a socket that
connects there stays in SYN_SENT: not writable, no event, SO_ERROR 0, just as on the way to a far host.

- *Release*: another socket, bound to the listener's own address (SO_REUSEPORT), connects to the held socket's local
  address. The SYNs cross (TCP simultaneous open, RFC 9293 section 3.5), the held socket is established and the other
  one is its peer, from which the relay goes on.
- *Failure*: connect(AF_UNSPEC) ends the attempt and wakes whoever waits (EPOLLERR, EPOLLHUP). The errno is told when
  the program asks (SO_ERROR, connect()); the kernel itself can only be made to say ECONNREFUSED, by connecting the
  socket to a bound port where nobody listens.

The held socket is the program's own open file: what is changed on it for the time of the hold is put back.

A kernel may refuse simultaneous open: that is tried once (`cross`), and `early` has the other way.
"""

import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pysocksify.linux import connect, dissolve
from pysocksify.pacing import unpaced

TCP_SYNCNT, TCP_USER_TIMEOUT, TCP_FASTOPEN_CONNECT = 7, 18, 30
SO_BINDTODEVICE, IP_MINTTL, IPV6_MINHOPCOUNT = 25, 21, 73
CROSS_TIME = 100  # milliseconds for a first simultaneous open, which takes 20 µs
SYN_RETRIES = 6  # tcp_syn_retries' default: a held SYN lives for 127 s (tcp(7)), longer than any dial
TCP_SYN_SENT = 2  # net/tcp_states.h
LOOPBACK: dict[int, str] = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
)

P = TypeVar("P", bound="Place")


class CannotHold(OSError):
    """This socket can't be kept in SYN_SENT on loopback; `errno` is what its program is told."""


@dataclass(slots=True)
class Hold:
    """One held socket: where it is held, and the options that were set aside."""

    place: "HoldAddress"
    aside: list[tuple[int, int, int]]


class Place:
    """A loopback address of one family, to which sockets of targets connect."""

    family: int
    name: tuple[str, int]

    def sockaddr(self, family: int, name: tuple[str, int] | None = None) -> bytes:
        """Its address, or another name of this host, as a socket of `family` connects to it."""
        host, port = name or self.name
        if family == socket.AF_INET:
            return struct.pack("=H", family) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
        if self.family == socket.AF_INET:
            host = f"::ffff:{host}"
        packed = socket.inet_pton(socket.AF_INET6, host)
        return struct.pack("=H", family) + struct.pack("!HI", port, 0) + packed + bytes(4)


class HoldAddress(Place):
    """The listener of one family, its filler, and a bound port where nobody listens."""

    def __init__(self, family: int) -> None:
        self.family = family
        host = LOOPBACK[family]
        self._listener = reusable(family)
        self._listener.bind((host, 0))
        self._listener.listen(0)
        self.name = self._listener.getsockname()[:2]
        self._filler = socket.socket(family)
        self._filler.connect(self.name)
        self._refusing = socket.socket(family)
        self._refusing.bind((host, 0))
        self.refusing_name: tuple[str, int] = self._refusing.getsockname()[:2]


class Places(Generic[P]):
    """One place for each family that there is."""

    def __init__(self, make: Callable[[int], P], *, ipv6: bool) -> None:
        self.ipv4 = make(socket.AF_INET)
        self.ipv6: P | None = None
        if ipv6 and socket.has_ipv6:
            try:
                self.ipv6 = make(socket.AF_INET6)
            except OSError:  # IPv6 is off, or ::1 isn't there: sockets of that family go by ::ffff:127.0.0.1
                self.ipv6 = None

    def of(self, sock: socket.socket) -> P:
        """Where this socket can go. CannotHold."""
        if sock.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16).strip(b"\0"):
            raise CannotHold(errno.ENETUNREACH, "a non-blocking socket bound to a device can't go through a proxy")
        if sock.family == socket.AF_INET:
            return self.ipv4
        only_ipv6 = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        bound = sock.getsockname()[0]
        if not only_ipv6 and (self.ipv6 is None or bound.startswith("::ffff:")):
            return self.ipv4
        if self.ipv6 is None:
            raise CannotHold(errno.ENETUNREACH, "IPv6 is off here, and this socket takes nothing else")
        return self.ipv6


class Holds:
    """Holds sockets of both families. Made when the first one is to be held."""

    def __init__(self, *, ipv6: bool = True) -> None:
        self._places = Places(HoldAddress, ipv6=ipv6)

    def hold(self, sock: socket.socket) -> Hold:
        """Put a target's socket into SYN_SENT. CannotHold: its program is to be told at once."""
        place = self._places.of(sock)
        hold = Hold(place, set_aside(sock))
        error = connect_at_once(sock, place.sockaddr(sock.family))
        if error != errno.EINPROGRESS:
            put_back(sock, hold)
            if error == 0:
                dissolve(sock.fileno())
                error = errno.ENETUNREACH
            raise CannotHold(error, f"this socket can't be held: {os.strerror(error)}")
        return hold


def cross(holds: Holds) -> bool:
    """Whether a simultaneous open works here, by doing it. OSError: no descriptor is left."""
    with socket.socket() as sock:
        try:
            hold = holds.hold(sock)
        except CannotHold:
            return False
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_SYN_SENT:
            return False
        with release(sock, hold) as other:
            poller = select.poll()
            poller.register(other, select.POLLOUT)
            if not poller.poll(CROSS_TIME):
                return False
            return not any(end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for end in (sock, other))


def connect_at_once(sock: socket.socket, sockaddr: bytes) -> int:
    """connect(2) that doesn't wait; its errno. O_NONBLOCK is seen by all who share the open file: it's set for this
    call only."""
    blocking = os.get_blocking(sock.fileno())
    if blocking:
        os.set_blocking(sock.fileno(), False)
    error = connect(sock.fileno(), sockaddr)
    if blocking:
        os.set_blocking(sock.fileno(), True)
    return error


def release(sock: socket.socket, hold: Hold) -> socket.socket:
    """Begin the simultaneous open: the socket returned is connected when it's writable with SO_ERROR 0. OSError."""
    place = hold.place
    name = sock.getsockname()
    host = name[0].removeprefix("::ffff:") if place.family == socket.AF_INET else name[0]
    other = reusable(place.family)
    try:
        other.setblocking(False)
        # IP_MINTTL and IPV6_MINHOPCOUNT of the program's would drop packets of a smaller one
        other.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
        if place.family == socket.AF_INET6:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        unpaced(other)
        other.bind(place.name)
        error = other.connect_ex((host, name[1]))
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
    except OSError:
        other.close()
        raise
    return other


def fail(sock: socket.socket, hold: Hold, error: int) -> bool:
    """End a hold; whoever polls the socket is woken. True: the kernel itself says `error` from now on."""
    dissolve(sock.fileno())
    put_back(sock, hold)
    if error != errno.ECONNREFUSED or _drops_resets(sock):
        return False
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    connect_at_once(sock, hold.place.sockaddr(sock.family, hold.place.refusing_name))
    return True


def _drops_resets(sock: socket.socket) -> bool:
    """Whether the program wants a larger TTL than the kernel's resets have."""
    if sock.getsockopt(socket.IPPROTO_IP, IP_MINTTL):
        return True
    return sock.family == socket.AF_INET6 and sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT) != 0


def finish(sock: socket.socket, hold: Hold) -> int:
    """connect() to the hold address once more, as the program does: 0 the first time after a release, then EISCONN."""
    return connect(sock.fileno(), hold.place.sockaddr(sock.family))


def put_back(sock: socket.socket, hold: Hold) -> None:
    """Give the program its options again."""
    restore(sock, hold.aside)


def restore(sock: socket.socket, aside: list[tuple[int, int, int]]) -> None:
    """Set options to the values that they had before, once."""
    for level, option, value in aside:
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:
            # TCP_FASTOPEN_CONNECT can only be set on a closed socket; on a connected one it means nothing any more
            if option != TCP_FASTOPEN_CONNECT or error.errno != errno.EINVAL:
                raise
    aside.clear()


def keepalive(sock: socket.socket) -> list[tuple[int, int, int]]:
    """The options by which the program wishes for keep-alive probes; none when it doesn't."""
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return []
    return [(level, option, sock.getsockopt(level, option)) for level, option in _KEEPALIVE]


def reusable(family: int) -> socket.socket:
    """A socket that may be bound to the hold address beside the listener."""
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock


def set_aside(sock: socket.socket) -> list[tuple[int, int, int]]:
    """Set the options that would end a hold early, or let it pass, to what doesn't; their values are returned."""
    aside = []
    for option, least, harmless in (
        (TCP_FASTOPEN_CONNECT, 0, 0),
        (TCP_USER_TIMEOUT, 0, 0),
        (TCP_SYNCNT, SYN_RETRIES, SYN_RETRIES),
    ):
        value = sock.getsockopt(socket.IPPROTO_TCP, option)
        if value < least or (not least and value):
            try:
                sock.setsockopt(socket.IPPROTO_TCP, option, harmless)
            except OSError as error:
                if option != TCP_FASTOPEN_CONNECT or error.errno != errno.EINVAL:
                    raise
                continue  # it isn't closed: connect() says so
            aside.append((socket.IPPROTO_TCP, option, value))
    return aside
