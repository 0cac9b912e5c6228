"""BIND of SOCKS4 and SOCKS5: a port for the one connection that the client's peer makes (RFC 1928 sections 4 and 6).

Theory of operation. The client tells its peer where to connect to (FTP's PORT), so the port is opened on an address
that the peer can reach: the one by which this machine itself would reach the peer. That is the address by which the
client reached us where both are on one side of this machine, and where the client doesn't know its peer (0.0.0.0). A
wildcard would say nothing to the peer.

States: looking up the peer's name, if it has one; listening; over. Whoever else connects is reset and the wait goes on.
SOCKS4's text ends it with a reply 91 instead, but then every stranger who finds the port could end it. RFC 1928 has
DST "used in evaluating the BIND request" and says no more. The peer's port isn't compared: neither text asks for it.
An address that the client may not reach is no peer, and where none is left no port is opened.
"""

import socket
from collections.abc import Callable, Mapping
from typing import Any

from pysocksify.address import Address
from pysocksify.errors import Cause, cause_of_errno
from pysocksify.reactor import READ, Reactor, Timer
from pysocksify.relay import reset
from pysocksify.server.happy_eyeballs import SockAddr, look_up
from pysocksify.server.ports import NO_ROOM, NO_ROOM_PAUSE
from pysocksify.threads import Job

LONGEST = 120.0  # s; "SOCKS: A protocol for TCP proxy across firewalls", BIND: 2 minutes
WAITING_PEERS = 16  # connections that may wait to be looked at, and that are looked at in one round of the loop
_ANY_PORT = 9  # discard; a datagram socket's connect() sends nothing, but wants a port


class Bind:
    """One BIND. `listening(bound)` comes first, for the first reply, unless it fails before; then exactly one of
    `accepted(socket, peer)`, for the second, with a non-blocking socket that is the caller's, and `failed(cause,
    words)`. None is called from the constructor.

    local       the address by which the client reached us, as getsockname() says it (with its scope, if it has one)
    expected    DST of the request: who may connect. The unspecified address: anybody. A name: all its addresses
    hosts       addresses for names, looked up before any resolver is asked
    may_reach   asked for each expected address before anything is opened; for whoever connects, where anybody may
    seconds     the time for all of it, LONGEST at most
    source      on whose behalf a name is looked up, as the reactor's threads take it
    """

    def __init__(
        self,
        reactor: Reactor,
        *,
        local: str,
        expected: Address,
        hosts: Mapping[str, tuple[str, ...]],
        may_reach: Callable[[Address], bool],
        seconds: float,
        listening: Callable[[Address], None],
        accepted: Callable[[socket.socket, Address], None],
        failed: Callable[[Cause, str], None],
        source: str | None = None,
    ) -> None:
        self._reactor = reactor
        self._local = local
        self._expected = expected
        self._may_reach = may_reach
        self._listening = listening
        self._accepted = accepted
        self._failed: Callable[[Cause, str], None] | None = failed
        self._peers: frozenset[str] = frozenset()  # empty: anybody
        self._sock: socket.socket | None = None
        self._timer = reactor.call_at(reactor.now() + min(seconds, LONGEST), self._time_out)
        self._pause: Timer | None = None
        self._lookup: Job | None = None
        known = hosts.get(expected.host)
        if known is not None:
            reactor.call_soon(lambda: self._listen(known))
        elif expected.is_name:
            name, port = expected.host.encode("ascii"), expected.port
            self._lookup = reactor.threads().run(lambda: look_up(name, port), self._looked_up, source)
        else:
            peers = (expected.host,) if any(expected.packed) else ()
            reactor.call_soon(lambda: self._listen(peers))

    def cancel(self) -> None:
        """Give up; nothing is called any more."""
        self._failed = None
        self._timer.cancel()
        if self._pause is not None:
            self._pause.cancel()
        if self._lookup is not None:
            self._lookup.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._reactor.unwatch(sock.fileno())
            sock.close()

    def _looked_up(self, found: list[SockAddr] | None, error: BaseException | None) -> None:
        self._lookup = None
        hosts = tuple(Address.of(*sockaddr[:2]).host for _, sockaddr in found or [])
        if hosts:
            self._listen(hosts)
        else:
            words = getattr(error, "strerror", None) or str(error or "it has no address")
            self._fail(Cause.HOST_UNREACHABLE, f"{self._expected.host}: {words}")

    def _listen(self, peers: tuple[str, ...]) -> None:
        if self._failed is None:
            return
        allowed = tuple(peer for peer in peers if self._may_reach(Address(peer, self._expected.port)))
        if peers and not allowed:  # a port that is open to nobody would be granted, and the client told so much later
            self._fail(Cause.NOT_ALLOWED, f"{self._expected.host}: not to be reached from there")
            return
        self._peers = frozenset(allowed)
        try:
            self._sock = _listener(self._way_for(allowed))
            bound = Address.of(*self._sock.getsockname()[:2])
            self._reactor.watch(self._sock.fileno(), READ, self._look)
        except OSError as error:
            self._fail(cause_of_errno(error.errno or 0), error.strerror or str(error))
            return
        self._listening(bound)

    def _way_for(self, peers: tuple[str, ...]) -> str:
        """The local address that the peers can reach: of the client's family, if one of them has that."""
        if not peers:
            return self._local
        family = Address.of(self._local, 0).family
        peer = next((peer for peer in peers if Address(peer, 0).family == family), peers[0])
        with socket.socket(Address(peer, 0).family or socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.connect((peer, _ANY_PORT))
            return str(probe.getsockname()[0])

    def _look(self, events: int) -> None:
        """Take whoever connects, up to the one who was expected."""
        for _ in range(WAITING_PEERS):
            if self._sock is None:
                return
            try:
                sock, sockaddr = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in NO_ROOM:  # that one is gone already (accept(2), "Error handling")
                    continue
                self._reactor.unwatch(self._sock.fileno())  # it would be readable all the time
                self._pause = self._reactor.call_at(self._reactor.now() + NO_ROOM_PAUSE, self._look_again)
                return
            self._judge(sock, Address.of(*sockaddr[:2]))

    def _look_again(self) -> None:
        if self._sock is not None:
            try:
                self._reactor.watch(self._sock.fileno(), READ, self._look)
            except OSError as error:
                self._fail(cause_of_errno(error.errno or 0), error.strerror or str(error))

    def _judge(self, sock: socket.socket, peer: Address) -> None:
        if not (peer.host in self._peers if self._peers else self._may_reach(peer)):
            reset(sock)
            return
        sock.setblocking(False)
        self.cancel()
        self._accepted(sock, peer)

    def _time_out(self) -> None:
        self._fail(Cause.TIMED_OUT, "nobody who was expected connected in time")

    def _fail(self, cause: Cause, words: str) -> None:
        failed = self._failed
        self.cancel()
        if failed is not None:
            failed(cause, words)


def _listener(host: str) -> socket.socket:
    """A listening socket on a port of its own there. Raises OSError."""
    family = Address.of(host, 0).family or socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        address: Any = (host, 0)
        sock.bind(address)
        sock.listen(WAITING_PEERS)
    except OSError:
        sock.close()
        raise
    return sock
