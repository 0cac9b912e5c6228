"""The server's listeners. No state is outside a Server, so that one can run inside another program's reactor."""

import errno
import os
import socket

from pysocksify.address import Address
from pysocksify.errors import ConfigError
from pysocksify.reactor import READ, Reactor
from pysocksify.relay import PipePool
from pysocksify.report import Report
from pysocksify.server.session import ServerSettings, Session

ACCEPTED_AT_ONCE = 64  # in one round of the loop, so that a flood of clients doesn't stop the relays
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
NO_ROOM_PAUSE = 0.1  # s until accept is tried again; nginx waits 0.5 (accept_mutex_delay), Go 0.005 to 1

__all__ = ["Server", "ServerSettings"]


class Server:
    """Listens, and serves whoever comes, on the given reactor. `report` gets one line for each connection."""

    def __init__(self, reactor: Reactor, settings: ServerSettings, report: Report) -> None:
        self._reactor = reactor
        self._settings = settings
        self._report = report
        self._pool = PipePool()
        self._listeners: dict[int, socket.socket] = {}
        self._sessions: set[Session] = set()
        self._closed = False

    @property
    def session_count(self) -> int:
        """Clients that are there now."""
        return len(self._sessions)

    def listen(self, address: Address) -> Address:
        """Listen on an address (port 0: any) and return the one that it came to be.

        An IPv6 listener takes IPv6 only; name both `0.0.0.0` and `::` to have both. Raises ConfigError: the address
        can't be had, or is open to others while neither users are known nor `open` is set.
        """
        if address.host == "localhost":
            address = Address("127.0.0.1", address.port)
        family = address.family
        if family is None:
            raise ConfigError("--listen", str(address), "an address is needed, not a name")
        # The unspecified address is loopback for who connects, and everywhere for who listens.
        everywhere = not any(address.packed)
        if (everywhere or not address.is_loopback) and not self._settings.users and not self._settings.open:
            raise ConfigError(
                "--listen", str(address), "others could use this; name a --user, or say --open if that is meant"
            )
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address.host, address.port))
            sock.listen(socket.SOMAXCONN)
        except OSError as error:
            sock.close()
            raise ConfigError("--listen", str(address), os.strerror(error.errno or 0)) from None
        self._listeners[sock.fileno()] = sock
        self._watch(sock)
        return Address.of(*sock.getsockname()[:2])

    def close(self) -> None:
        """Close the listeners and give up all sessions; their relays' ends are reset."""
        self._closed = True
        for fd, sock in self._listeners.items():
            self._reactor.unwatch(fd)
            sock.close()
        self._listeners.clear()
        for session in tuple(self._sessions):
            session.close()
        self._pool.close()

    def _watch(self, sock: socket.socket) -> None:
        self._reactor.watch(sock.fileno(), READ, lambda events: self._accept(sock))

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, peer = sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_ROOM:
                    self._pause(sock, error)
                    return
                continue  # ECONNABORTED and what else accept(2) passes on: that one client's trouble
            self._serve(client, Address.of(*peer[:2]))

    def _pause(self, sock: socket.socket, error: OSError) -> None:
        """Leave waiting clients in the queue for a while: the level-triggered listener would spin."""
        self._report.problem(f"accept {error.errno}", f"no room for more clients: {error.strerror}; waiting")
        self._reactor.unwatch(sock.fileno())
        self._reactor.call_at(self._reactor.now() + NO_ROOM_PAUSE, lambda: self._resume(sock))

    def _resume(self, sock: socket.socket) -> None:
        if not self._closed:
            self._watch(sock)
            self._accept(sock)

    def _serve(self, client: socket.socket, peer: Address) -> None:
        client.setblocking(False)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError:  # reset before it was accepted
            client.close()
            return
        self._sessions.add(
            Session(self._reactor, self._settings, self._report, self._pool, client, peer, self._sessions.discard)
        )
