"""Dialling beside a program's socket: on one of ours, while the program's is held, or stands early, or only waits.

What becomes of the program's socket depends on the kernel: where sockets can be held and released (`hold`), it's held.
Elsewhere it enters (`early`): at once, when its program doesn't wait in connect(), else when the chain stands.
"""

import socket

from pysocksify.dial.transport import OwnSocket
from pysocksify.kernel import Kernel
from pysocksify.linux import connect, dissolve
from pysocksify.reactor import WRITE, Reactor, Ready, Steps
from pysocksify.supervisor import hold as holding
from pysocksify.supervisor.connection import Connection, State, Way
from pysocksify.supervisor.early import Arrival, Entrances

RELEASE_TIME = 10.0  # seconds; a simultaneous open on loopback takes 20 µs, and a stopped machine not for ever


class Beside:
    """Where the sockets of all connections are meanwhile: hold addresses and entrances, made when they're needed."""

    def __init__(self, reactor: Reactor, kernel: Kernel) -> None:
        self._reactor = reactor
        self._kernel = kernel
        self._holds: holding.Holds | None = None
        self._entrances: Entrances | None = None

    def keep(self, connection: Connection, *, waits: bool) -> None:
        """Have the socket wait for its chain; `waits`: so does a call. OSError: CannotHold, or no descriptor left."""
        assert connection.sock is not None
        connection.state = State.HELD
        if self._can_hold():
            assert self._holds is not None
            connection.hold = self._holds.hold(connection.sock)
        elif not waits:
            self.enter_early(connection)

    def enter_early(self, connection: Connection) -> None:
        """Nobody waits for the outcome: let the socket stand, and be the program's alone. OSError."""
        self._enter(connection)
        connection.state = State.EARLY
        assert connection.sock is not None
        connection.keepalive = holding.keepalive(connection.sock)
        connection.sock.close()
        connection.sock = None

    def dial(self, connection: Connection) -> Steps[tuple[Way, socket.socket, socket.socket]]:
        """Dial, then connect the program's socket: the way, that socket's other end, the chain. OSError, DialError."""
        transport = OwnSocket()
        try:
            way = yield from connection.dial(transport)
            if connection.sock is not None:
                connection.keepalive = holding.keepalive(connection.sock)
            for level, option, value in connection.keepalive:
                transport.sock.setsockopt(level, option, value)
            if connection.hold is None:
                other = yield from (connection.arrival or self._enter(connection)).take(self._reactor)
            else:
                other = yield from self._release(connection, connection.hold)
        except BaseException:
            transport.close()
            raise
        return way, other, transport.sock

    def stand(self, connection: Connection) -> None:
        """The program's socket stands: set its options back, and take the kernel's 0 for a call that waits."""
        sock, hold, arrival = connection.sock, connection.hold, connection.arrival
        connection.state = State.RELEASED
        if hold is not None:
            assert sock is not None
            holding.put_back(sock, hold)
        # where the kernel looks when connect() is called once more; any address does, a socket that stands goes nowhere
        if connection.waiters:
            assert sock is not None
            if hold is not None:
                holding.finish(sock, hold)
            elif arrival is not None:
                connect(sock.fileno(), arrival.sockaddr)
            connection.state = State.UP

    def give_back(self, connection: Connection) -> None:
        """The dial failed, and calls wait to be told, or the program was told early: it sees a reset then."""
        sock, hold, arrival = connection.sock, connection.hold, connection.arrival
        if arrival is not None:
            arrival.reset()
        if sock is not None and (hold is not None or arrival is not None):
            dissolve(sock.fileno())
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if hold is not None:
                holding.put_back(sock, hold)

    def _can_hold(self) -> bool:
        """Whether sockets can be held, and released: tried once, with the first one. OSError: no descriptor is left."""
        if self._holds is None and self._kernel.simultaneous_open:
            holds = holding.Holds(ipv6=self._kernel.ipv6)
            if holding.cross(holds):
                self._holds = holds
            else:
                self._kernel = self._kernel.without(("simultaneous_open",))
        return self._holds is not None

    def _enter(self, connection: Connection) -> Arrival:
        """Connect the program's socket to an entrance. OSError."""
        assert connection.sock is not None
        if self._entrances is None:
            self._entrances = Entrances(self._reactor, ipv6=self._kernel.ipv6)
        arrival = connection.arrival = self._entrances.enter(connection.sock)
        return arrival

    def _release(self, connection: Connection, hold: holding.Hold) -> Steps[socket.socket]:
        """The other end of the held socket, which stands then. OSError."""
        assert connection.sock is not None
        other = holding.release(connection.sock, hold)
        try:
            yield Ready(other.fileno(), WRITE, self._reactor.now() + RELEASE_TIME)
            error = other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "the program gave the connection up")
        except BaseException:
            other.close()
            raise
        return other
