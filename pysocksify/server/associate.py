"""UDP ASSOCIATE: the datagrams of one client, to wherever it likes and back (RFC 1928 section 7).

Theory of operation. An association has one socket for its client, on the address by which the client reached us, and
at most one for each family towards the remotes, made when it is first needed. That one has one port for all remotes
(RFC 4787 REQ-1), so what a remote says of the client's address (STUN) holds for the others too.

Who may send what:

- To us: only the client's host, and of it one port: the one that the request named together with the client's own
  host, else the one that the first datagram with a readable header comes from. A request's host other than the client's
  is no limit: a client behind a NAT names its private address there, and most name 0.0.0.0:0.
- To the client: every port of the hosts that the client has sent to (RFC 4787 REQ-8, address-dependent filtering). RFC
  1928 is silent. TFTP answers from another port (RFC 1350 section 4), and peers that punch holes (ICE) send to each
  other first. Anybody at all would be more than clients need, and lets hosts in that the rules keep the client from.

What can't be delivered is dropped and nobody told, which is UDP's way and section 7's: a full buffer, an ICMP error, a
name without an address, a destination that isn't allowed. A reply that exceeds a datagram with its header is dropped
too: fragments are taken, not made, because most clients don't take them. Nothing of this ends an association. Its TCP
connection's end does, which its owner sees (close()), and the idle limit: no datagram of either direction.

A name that was asked is answered with the address that the reply came from, never with the name, as by every server.
"""

import socket
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pysocksify.address import Address
from pysocksify.errors import ConversationError
from pysocksify.protocol.socks5_udp import Datagram, Reassembly
from pysocksify.reactor import READ, Reactor, Timer
from pysocksify.server.happy_eyeballs import SockAddr, look_up
from pysocksify.threads import Job

READ_SIZE = 65535  # more than any UDP datagram holds
AT_ONCE = 32  # datagrams in one round of the loop, so that a flood doesn't stop the others
# RFC 1035 leaves it to the name's owner, whose time getaddrinfo(3) doesn't tell; nscd's default for hosts is 600 s.
NAME_SECONDS = 60.0
NO_NAME_SECONDS = 5.0
REMEMBERED = 1024  # destinations, and hosts that may answer; those unused for longest are forgotten
LOOKUPS_AT_ONCE = 8  # of one association, of the reactor's threads
WAITING_BYTES = 262144  # of datagrams to names that are being looked up; Linux' default for a socket is 212992


@dataclass(slots=True)
class _Way:
    """Where a destination's datagrams go, the first that can be sent to; none: they are dropped."""

    targets: list[SockAddr]
    until: float


class Association:
    """One association. Raises OSError from the constructor: there's no port to be had, and nothing is left open.

    client      the client's end of the TCP connection
    local       the address by which it reached us, as getsockname() says it (with its scope, if it has one)
    expected    DST of the request, which the client says that it will send from
    hosts       addresses for names, looked up before any resolver is asked
    allows      asked for each destination, a name before it's looked up
    may_reach   asked for each address that a name has: (the destination with the name, the address)
    idle        seconds without a datagram after which it ends
    ended       called once with the reason when it ends by itself, not by cancel()
    source      on whose behalf names are looked up, as the reactor's threads take it

    `bound` goes into the reply. `bytes_up` and `bytes_down` count what was relayed, without headers.
    """

    def __init__(
        self,
        reactor: Reactor,
        *,
        client: Address,
        local: str,
        expected: Address,
        hosts: Mapping[str, tuple[str, ...]],
        allows: Callable[[Address], bool],
        may_reach: Callable[[Address, Address], bool],
        idle: float,
        ended: Callable[[str], None],
        source: str | None = None,
    ) -> None:
        self.bytes_up = 0
        self.bytes_down = 0
        self._reactor = reactor
        self._client = client
        self._client_port = expected.port if expected.host == client.host else 0
        self._hosts = hosts
        self._allows = allows
        self._may_reach = may_reach
        self._idle = idle
        self._ended: Callable[[str], None] | None = ended
        self._sender: Any = None  # what sendto() takes for the client, once it has sent
        self._outer: dict[int, socket.socket] = {}
        self._ways: OrderedDict[Address, _Way] = OrderedDict()
        self._answerers: OrderedDict[str, None] = OrderedDict()
        self._source = source
        self._waiting: dict[Address, list[bytes]] = {}
        self._lookups: dict[Address, Job] = {}
        self._waiting_bytes = 0
        self._reassembly = Reassembly()
        self._inner = _datagram_socket(Address.of(local, 0).family or socket.AF_INET)
        try:
            self._inner.bind((local, 0))
            self.bound = Address.of(*self._inner.getsockname()[:2])
            reactor.watch(self._inner.fileno(), READ, self._from_client)
        except OSError:
            self._inner.close()
            raise
        self._active = reactor.now()
        self._idle_timer = reactor.call_at(self._active + idle, self._look_at_idleness)
        self._fragment_timer: Timer | None = None

    def cancel(self) -> None:
        """End it; `ended` is not called."""
        self._ended = None
        self._idle_timer.cancel()
        if self._fragment_timer is not None:
            self._fragment_timer.cancel()
        for sock in (self._inner, *self._outer.values()):
            if sock.fileno() >= 0:
                self._reactor.unwatch(sock.fileno())
                sock.close()
        for lookup in self._lookups.values():
            lookup.cancel()
        self._lookups.clear()
        self._waiting.clear()
        self._reassembly = Reassembly()

    # from the client

    def _from_client(self, events: int) -> None:
        for _ in range(AT_ONCE):
            if self._ended is None:
                return
            try:
                data, sender = self._inner.recvfrom(READ_SIZE)
            except OSError:  # nothing more, or an ICMP error, which is told once
                return
            if self._sender is None or sender == self._sender:
                self._take(data, sender)

    def _take(self, data: bytes, sender: Any) -> None:
        """One datagram of the client, or of somebody who might be it."""
        if self._sender is None and not self._may_be_client(sender):
            return
        try:
            datagram = Datagram.decode(data)
        except ConversationError:
            return
        self._sender = sender
        self._active = now = self._reactor.now()
        whole = self._reassembly.receive(datagram, now)
        if whole is not None:
            self._forward(whole.address, whole.data, now)
        elif self._fragment_timer is None:
            self._expect_fragments()

    def _may_be_client(self, sender: Any) -> bool:
        address = Address.of(*sender[:2])
        return address.host == self._client.host and self._client_port in (0, address.port)

    def _expect_fragments(self) -> None:
        """Have the queue's memory given back when its time is over, also when nothing comes any more."""
        deadline = self._reassembly.deadline
        if deadline is not None:
            self._fragment_timer = self._reactor.call_at(deadline, self._expire_fragments)

    def _expire_fragments(self) -> None:
        self._fragment_timer = None
        self._reassembly.expire(self._reactor.now())
        self._expect_fragments()

    def _forward(self, destination: Address, data: bytes, now: float) -> None:
        way = self._ways.get(destination)
        if way is None or way.until <= now:
            way = self._find_way(destination)
            if way is None:
                self._wait_for_name(destination, data, now)
                return
            self._remember(destination, way)
        self._ways.move_to_end(destination)
        self._send(way, data)

    def _find_way(self, destination: Address) -> _Way | None:
        """None: the name is to be looked up."""
        if not destination.port or not self._allows(destination):
            return _Way([], float("inf"))
        known = self._hosts.get(destination.host)
        if known is not None:
            addresses = [Address.of(host, destination.port) for host in known]
            return _Way(self._allowed(destination, addresses), float("inf"))
        if destination.is_name:
            return None
        return _Way([_target(destination)] if any(destination.packed) else [], float("inf"))

    def _allowed(self, destination: Address, addresses: list[Address]) -> list[SockAddr]:
        return [_target(address) for address in addresses if self._may_reach(destination, address)]

    def _remember(self, destination: Address, way: _Way) -> None:
        self._ways[destination] = way
        if len(self._ways) > REMEMBERED:
            self._ways.popitem(last=False)

    def _send(self, way: _Way, data: bytes) -> None:
        for family, target in way.targets:
            try:
                self._outer_socket(family).sendto(data, target)
            except BlockingIOError:  # no room: dropped, as by any router
                return
            except OSError:  # no such family here, no way there, too long: perhaps the next one
                continue
            if target is not way.targets[0][1]:  # it stays with the one that works
                way.targets.remove((family, target))
                way.targets.insert(0, (family, target))
            self.bytes_up += len(data)
            self._answerers[target[0]] = None
            self._answerers.move_to_end(target[0])
            if len(self._answerers) > REMEMBERED:
                self._answerers.popitem(last=False)
            return

    # names

    def _wait_for_name(self, destination: Address, data: bytes, now: float) -> None:
        queue = self._waiting.get(destination)
        if self._waiting_bytes + len(data) > WAITING_BYTES or (queue is None and len(self._waiting) >= LOOKUPS_AT_ONCE):
            return
        self._waiting_bytes += len(data)
        if queue is not None:
            queue.append(data)
            return
        self._waiting[destination] = [data]
        name, port = destination.host.encode("ascii"), destination.port
        self._lookups[destination] = self._reactor.threads().run(
            lambda: look_up(name, port), lambda found, error: self._looked_up(destination, found or []), self._source
        )

    def _looked_up(self, destination: Address, found: list[SockAddr]) -> None:
        del self._lookups[destination]
        addresses = [Address.of(*sockaddr[:2]) for _, sockaddr in found]
        targets = self._allowed(destination, addresses)
        before = self._ways.get(destination)
        if before is not None and before.targets:  # whom it talked to is kept, as long as the name has that address
            targets.sort(key=lambda target: target != before.targets[0])
        way = _Way(targets, self._reactor.now() + (NAME_SECONDS if found else NO_NAME_SECONDS))
        self._remember(destination, way)
        for data in self._waiting.pop(destination):
            self._waiting_bytes -= len(data)
            self._send(way, data)

    # from the remotes

    def _outer_socket(self, family: int) -> socket.socket:
        """The socket towards the remotes of that family. Raises OSError."""
        sock = self._outer.get(family)
        if sock is not None:
            return sock
        sock = _datagram_socket(family)
        try:
            sock.bind(("", 0))
            self._reactor.watch(sock.fileno(), READ, lambda events: self._from_remotes(sock))
        except OSError:
            sock.close()
            raise
        self._outer[family] = sock
        return sock

    def _from_remotes(self, sock: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                data, remote = sock.recvfrom(READ_SIZE)
            except OSError:
                return
            host = remote[0].partition("%")[0]
            if host not in self._answerers:
                continue
            datagram = Datagram(address=Address(host, remote[1]), data=data).encode()
            try:
                self._inner.sendto(datagram, self._sender)
            except OSError:  # no room, or too long together with its header
                continue
            self._active = self._reactor.now()
            self.bytes_down += len(data)

    def _look_at_idleness(self) -> None:
        end = self._active + self._idle
        ended = self._ended
        if ended is None:
            return
        if self._reactor.now() < end:
            self._idle_timer = self._reactor.call_at(end, self._look_at_idleness)
            return
        self.cancel()
        ended(f"no datagram for {self._idle:g} s")


def _datagram_socket(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if family == socket.AF_INET6:
        try:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        except OSError:
            sock.close()
            raise
    return sock


def _target(address: Address) -> SockAddr:
    return address.family or socket.AF_INET, (address.host, address.port)
