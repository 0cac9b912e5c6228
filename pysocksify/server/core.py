"""The server's listeners. No state is outside a Server, so that one can run inside another program's reactor."""

import socket
import sys
from dataclasses import dataclass
from functools import partial

from pysocksify.address import Address
from pysocksify.flow import PipePool
from pysocksify.reactor import READ, Reactor
from pysocksify.relay import reset
from pysocksify.report import Report
from pysocksify.server import ports
from pysocksify.server.connect import Upstream
from pysocksify.server.counting import Counter, Counts
from pysocksify.server.happy_eyeballs import told
from pysocksify.server.journal import Journal
from pysocksify.server.ports import NO_ROOM, NO_ROOM_PAUSE
from pysocksify.server.session import Session
from pysocksify.server.settings import ServerSettings
from pysocksify.server.shared import NO_PORT, Client, Shared

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl

    from pysocksify.server.tls import TlsTunnel

ACCEPTED_AT_ONCE = 64  # in one round of the loop, so that a flood of clients doesn't stop the relays
REFUSED_AT_ONCE = 256  # clients over a limit that are told so at the same time; what comes beyond that is reset
QUEUE_LIMIT = 4096  # clients that wait to be accepted: the default of net.core.somaxconn
INHERITS = sys.platform == "linux"  # elsewhere it isn't sure what a listening socket's options are to those it accepts


@dataclass(slots=True)
class Listener:
    """A listening socket; `tls` is spoken on it first, if it isn't None.

    passes_on   who comes has its options; not so who was in the queue before it had them
    """

    sock: socket.socket
    tls: "ssl.SSLContext | None"
    passes_on: bool = False


class Server:
    """Listens, and serves whoever comes, on the given reactor. `report` is told of what goes wrong, `journal` of each
    connection when it has ended."""

    def __init__(
        self,
        reactor: Reactor,
        settings: ServerSettings,
        report: Report,
        *,
        counter: Counter | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._shared = Shared(
            reactor,
            report,
            journal,
            counter or Counts.single().worker(0),
            PipePool(),
            settings,
            Upstream(settings.upstream),
        )
        self._reactor = reactor
        self._report = report
        self._listeners: dict[int, Listener] = {}
        self._sessions: set[Session] = set()
        self._refused: set[Session] = set()
        self._tunnels: dict[TlsTunnel, Session] = {}
        self._set_limits()

    @property
    def session_count(self) -> int:
        """Clients that are there now, or still have something to come through a tunnel."""
        return len(self._sessions) + len(self._refused)

    @property
    def settings(self) -> ServerSettings:
        """What it does. New settings are for those who come from now on."""
        return self._shared.settings

    @settings.setter
    def settings(self, settings: ServerSettings) -> None:
        if settings.upstream != self._shared.settings.upstream:  # else what is known of the hops is kept
            self._shared.upstream = Upstream(settings.upstream)
        self._shared.settings = settings
        self._set_limits()

    def _set_limits(self) -> None:
        limits = self._shared.settings.limits
        self._shared.counter.limit(total=limits.total, per_user=limits.per_user, per_source=limits.per_source)

    def listen(self, address: Address) -> Address:
        """Listen on an address (port 0: any) and return the one that it came to be.

        An IPv6 listener takes IPv6 only; name both `0.0.0.0` and `::` to have both. Raises ConfigError: the address
        can't be had, or is open to others while neither users are known nor `open` is set.
        """
        address = ports.numeric(address)
        ports.check(address, self.settings)
        (sock,) = ports.listening(address)
        self.adopt(sock)
        return Address.of(*sock.getsockname()[:2])

    def adopt(self, sock: socket.socket, tls: "ssl.SSLContext | None" = None) -> None:
        """Serve those who come to a listening socket, which belongs to the server from now on."""
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            ports.tune(sock)
        self._watch(Listener(sock, tls))

    def drain(self) -> None:
        """Listen no more; who is there, or waits in the queue already, goes on."""
        for listener in tuple(self._listeners.values()):
            self._accept(listener, QUEUE_LIMIT)
        self._stop_listening()

    def _stop_listening(self) -> None:
        for fd, listener in self._listeners.items():
            self._reactor.unwatch(fd)
            listener.sock.close()
        self._listeners.clear()

    def close(self) -> None:
        """Close the listeners and give up all sessions; their relays' ends are reset."""
        self._stop_listening()
        for session in (*self._sessions, *self._refused):
            session.end()
        for tunnel in tuple(self._tunnels):
            tunnel.close()
        self._shared.pool.close()

    def _watch(self, listener: Listener) -> None:
        fd = listener.sock.fileno()
        self._listeners[fd] = listener
        self._reactor.watch(fd, READ, lambda events: self._accept(listener))

    def _accept(self, listener: Listener, at_once: int = ACCEPTED_AT_ONCE) -> None:
        for _ in range(at_once):
            try:
                connection, peer = listener.sock.accept()
            except BlockingIOError:
                listener.passes_on = INHERITS
                return
            except OSError as error:
                if error.errno in NO_ROOM:
                    self._pause(listener, error)
                    return
                continue  # ECONNABORTED and what else accept(2) passes on: that one client's trouble
            try:
                self._serve(listener, connection, peer)
            except OSError as error:  # reset before it was accepted; or there is no room for its session
                connection.close()
                if error.errno in NO_ROOM:
                    self._pause(listener, error)
                    return

    def _pause(self, listener: Listener, error: OSError) -> None:
        """Leave waiting clients in the queue for a while: the level-triggered listener would spin."""
        self._report.problem(f"accept {error.errno}", f"no room for more clients: {error.strerror}; waiting")
        self._reactor.unwatch(listener.sock.fileno())
        self._reactor.call_at(self._reactor.now() + NO_ROOM_PAUSE, lambda: self._resume(listener))

    def _resume(self, listener: Listener) -> None:
        if listener.sock.fileno() < 0:
            return
        try:
            self._watch(listener)
        except OSError as error:
            self._pause(listener, error)
        else:
            self._accept(listener)

    def _serve(self, listener: Listener, connection: socket.socket, peer: object) -> None:
        """Begin a session. OSError: it can't be, and the connection is the caller's."""
        connection.setblocking(False)
        client = _client(connection, peer)
        if not listener.passes_on and connection.family != socket.AF_UNIX:
            ports.tune(connection)
        over = self._shared.counter.enter(client.source)
        if over and len(self._refused) >= REFUSED_AT_ONCE:
            reset(connection)
            return
        try:
            session = self._session(listener, connection, client, over)
        except OSError:
            if not over:
                self._shared.counter.leave(client.source, None)
            raise
        (self._refused if over else self._sessions).add(session)

    def _session(self, listener: Listener, connection: socket.socket, client: Client, over: str) -> Session:
        """A session for this connection, behind a tunnel where TLS is spoken. OSError."""
        if listener.tls is None:
            return Session(self._shared, connection, client, self._leave, over)
        tunnel, inner = self._tunnel(connection, listener.tls)
        try:
            session = Session(self._shared, inner, client, partial(self._session_ended, tunnel), over)
        except OSError:
            tunnel.close()
            inner.close()
            raise
        self._tunnels[tunnel] = session
        tunnel.on_cut = session.cut
        return session

    def _tunnel(self, connection: socket.socket, context: "ssl.SSLContext") -> "tuple[TlsTunnel, socket.socket]":
        """A tunnel for a connection that speaks TLS, and the session's end of it. OSError."""
        from pysocksify.server.tls import TlsTunnel  # here: few listeners speak it

        inner, plain = socket.socketpair()
        try:
            tunnel = TlsTunnel(self._reactor, connection, plain, context, self._tunnel_ended)
        except BaseException:
            inner.close()
            plain.close()
            raise
        inner.setblocking(False)
        return tunnel, inner

    def _session_ended(self, tunnel: "TlsTunnel", session: Session) -> None:
        """Its client is there until the tunnel, too, has ended."""
        if tunnel.closed:
            self._leave(session)
        else:
            tunnel.over(cut=session.is_cut)

    def _tunnel_ended(self, tunnel: "TlsTunnel") -> None:
        session = self._tunnels.pop(tunnel, None)
        if session is not None and session.closed:
            self._leave(session)

    def _leave(self, session: Session) -> None:
        """Nothing of this client is left."""
        self._sessions.discard(session)
        self._refused.discard(session)
        session.leave()


def _client(connection: socket.socket, peer: object) -> Client:
    """Who is at the other end of an accepted connection."""
    if not isinstance(peer, tuple):  # a Unix socket's
        return Client("", NO_PORT, connection)
    address = told(peer)
    return Client(str(address), address, connection)
