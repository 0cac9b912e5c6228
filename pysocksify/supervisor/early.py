"""Early connections: where the kernel refuses simultaneous open, a program's socket stands before its chain does.

Theory of operation. An *entrance* is an ordinary loopback listener of ours. A program's socket that connects to it
stands at once; its other end waits here for the chain, with what the program sends meanwhile in it, and is relayed
then. What is lost: a non-blocking connect() succeeds early, and a dial that fails shows as a reset. A blocking one
stays truthful: its socket enters when the chain stands, or when the call ends before that for a signal or its limit.

Everybody on this machine can connect to a listener. Only a socket that has just been connected here is expected, by its
own address and port, of which there's one at a time; whoever else comes is reset.
"""

import errno
import os
import socket
from dataclasses import dataclass

from pysocksify.pacing import unpaced
from pysocksify.reactor import READ, Pause, Reactor, Steps
from pysocksify.relay import reset
from pysocksify.supervisor.hold import LOOPBACK, CannotHold, Place, Places, connect_at_once, restore, set_aside

BACKLOG = 4096  # somaxconn's default
ARRIVAL_TIME = 10.0  # seconds; loopback takes 50 µs, and a stopped machine not for ever
ARRIVAL_LOOK = 0.002
NO_DESCRIPTOR_PAUSE = 0.1  # seconds until accept() is tried again after EMFILE


class Entrance(Place):
    """The listener of one family."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.listener = socket.socket(family)
        self.listener.setblocking(False)
        # what is accepted has the same: IP_MINTTL and IPV6_MINHOPCOUNT of the program's would drop smaller ones
        self.listener.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
        if family == socket.AF_INET6:
            self.listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        unpaced(self.listener)
        self.listener.bind((LOOPBACK[family], 0))
        self.listener.listen(BACKLOG)
        self.name = self.listener.getsockname()[:2]


@dataclass(slots=True, eq=False)
class Arrival:
    """A program's socket that has entered; `other` is its other end, once it's here."""

    entrances: "Entrances"
    key: tuple[int, str, int]
    inode: int
    sockaddr: bytes
    other: socket.socket | None = None

    def take(self, reactor: Reactor) -> Steps[socket.socket]:
        """The other end, which is the caller's from then on. OSError."""
        deadline = reactor.now() + ARRIVAL_TIME
        while self.other is None:
            if reactor.now() > deadline:
                raise OSError(errno.ECONNABORTED, "the program gave the connection up")
            yield Pause(ARRIVAL_LOOK)
        other, self.other = self.other, None
        return other

    @property
    def silent(self) -> bool:
        """Whether nothing that the program has sent waits here."""
        if self.other is None:
            return True
        try:
            return not self.other.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return True

    def reset(self) -> None:
        """Let the program see ECONNRESET."""
        self.entrances.expected.pop(self.key, None)
        if self.other is not None:
            reset(self.other)
            self.other = None


class Entrances:
    """The entrances of both families. Made when the first socket is to enter."""

    def __init__(self, reactor: Reactor, *, ipv6: bool) -> None:
        self._reactor = reactor
        self._places = Places(Entrance, ipv6=ipv6)
        self.expected: dict[tuple[int, str, int], Arrival] = {}
        for entrance in (self._places.ipv4, self._places.ipv6):
            if entrance is not None:
                self._watch(entrance)

    def enter(self, sock: socket.socket) -> Arrival:
        """Connect a target's socket here; the kernel owes it one 0 for its connect(). CannotHold."""
        entrance = self._places.of(sock)
        self._accept(entrance)  # who came before isn't this one
        aside = set_aside(sock)
        sockaddr = entrance.sockaddr(sock.family)
        error = connect_at_once(sock, sockaddr)
        restore(sock, aside)
        if error not in (0, errno.EINPROGRESS):
            raise CannotHold(error, f"this socket can't be connected on loopback: {os.strerror(error)}")
        host, port = sock.getsockname()[:2]
        if entrance.family == socket.AF_INET:
            host = host.removeprefix("::ffff:")
        arrival = Arrival(self, (entrance.family, host, port), os.fstat(sock.fileno()).st_ino, sockaddr)
        self.expected[arrival.key] = arrival
        self._accept(entrance)
        return arrival

    def _watch(self, entrance: Entrance) -> None:
        self._reactor.watch(entrance.listener.fileno(), READ, lambda events: self._accept(entrance))

    def _accept(self, entrance: Entrance) -> None:
        """Take all who have come."""
        while True:
            try:
                other, name = entrance.listener.accept()
            except BlockingIOError:
                return
            except OSError as failure:
                if failure.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._reactor.unwatch(entrance.listener.fileno())
                    when = self._reactor.now() + NO_DESCRIPTOR_PAUSE
                    self._reactor.call_at(when, lambda: self._watch_again(entrance))
                    return
                continue  # one that was gone already
            arrival = self.expected.pop((entrance.family, *name[:2]), None)
            if arrival is None:
                reset(other)
                continue
            other.setblocking(False)
            other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            arrival.other = other

    def _watch_again(self, entrance: Entrance) -> None:
        self._reactor.unwatch(entrance.listener.fileno())  # another socket that entered meanwhile may have failed too
        self._watch(entrance)
