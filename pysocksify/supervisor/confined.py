"""UDP where namespaces can't be had: sockets bound to the device lo, and loopback sockets that stand for name servers.

Theory of operation. A socket made here is bound to the device `lo` (SO_BINDTODEVICE, unprivileged since Linux 5.7): a
plain send on it doesn't leave the machine. That isn't enough. A control message that names an interface (IP_PKTINFO),
a bind() to a link-local address, a multicast membership and a dissolving connect() each get past it or undo it. So the
engine catches the calls that could, keeps the sockets recognisable by their descriptors' numbers, and has named sends
performed here: only to loopback addresses, without control messages, and only while the socket is on `lo`.

- Each address whose port 53 is asked gets a *stand-in*, a loopback socket of ours. connect() and named sends go to it,
  its queries go to the responder, and what it answers is shown as coming from the address that was asked: musl
  compares, glibc and c-ares connect.
- Any other destination is connected to a *dead end*: a loopback port that nobody listens on, held by a socket of ours
  that hears only itself. The kernel itself then says ECONNREFUSED to send() and recv(), and glibc, which sorts
  addresses by what connect() and getsockname() say (RFC 6724), finds a way to each family that there is.
- An unconnected send to any other destination is EPERM, as where a local firewall drops it (send(2)): programs give up
  that way at once. ECONNREFUSED would say that somebody answered.

What each connected socket was asked to connect to is kept by SO_COOKIE, for getpeername(). All tables are bounded; what
is forgotten makes a name server silent or shows a loopback address, and opens nothing.
"""

import errno
import os
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from pysocksify.address import INET, Address
from pysocksify.linux import connect
from pysocksify.reactor import READ, Reactor
from pysocksify.supervisor.calls import CallRefused
from pysocksify.supervisor.connection import cookie_of

DNS_PORT = 53
DATAGRAM = 65535  # no UDP datagram is longer (RFC 768)
STAND_INS = 256  # name servers at once; resolv.conf has three, and a scanner of servers must not take all descriptors
PEERS_REMEMBERED = 4096

_LO = b"lo\0"
_IFNAMSIZ = 16  # linux/if.h
_AT_ONCE = 32  # datagrams taken in one turn, so that one busy program doesn't stop all else
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what the kernel takes them for

Query = Callable[[bytes, str, int, Callable[[bytes], None]], None]
"""Takes a query, the address it was sent to, that address's family, and what sends the answer."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a datagram was meant to go; `scope` is the interface of a link-local IPv6 address."""

    address: Address
    scope: int = 0

    @classmethod
    def of(cls, sockaddr: bytes, family: int) -> "Destination":
        """The destination in the sockaddr that a program gave for a socket of that family. CallRefused."""
        address = Address.from_sockaddr(sockaddr)
        if address is None:
            raise CallRefused(errno.EAFNOSUPPORT if len(sockaddr) >= 16 else errno.EINVAL)
        six = int.from_bytes(sockaddr[:2], sys.byteorder) == socket.AF_INET6
        if six and family == socket.AF_INET:
            raise CallRefused(errno.EAFNOSUPPORT)
        if address.host in _UNSPECIFIED:
            address = Address(_UNSPECIFIED[address.host], address.port)
        link_local = six and sockaddr[8] == 0xFE and sockaddr[9] & 0xC0 == 0x80
        return cls(address, int.from_bytes(sockaddr[24:28], sys.byteorder) if link_local else 0)

    def sockaddr(self, family: int) -> bytes:
        """As a socket of that family shows it."""
        packed = self.address.to_sockaddr(family)
        return packed[:24] + self.scope.to_bytes(4, sys.byteorder) if self.scope else packed

    def __str__(self) -> str:
        return str(self.address)


@dataclass(frozen=True, slots=True)
class Datagram:
    """One that was received: all its data, the sockaddr of its source (b"" for none), and the kernel's msg_flags."""

    data: bytes
    source: bytes
    flags: int


class Confined:
    """The UDP sockets of the target, and where what they send arrives."""

    def __init__(
        self, reactor: Reactor, query: Query, refused: Callable[[int, Address], None], *, ipv6: bool = True
    ) -> None:
        """`refused` is told the thread and the destination of what can't be carried. Without `ipv6` there's no ::1."""
        self._reactor = reactor
        self._ipv6 = ipv6
        self._query = query
        self._refused = refused
        self._stand_ins: OrderedDict[Destination, socket.socket] = OrderedDict()
        self._stood_for: dict[tuple[str, int], Destination] = {}
        self._dead_ends: dict[int, socket.socket] = {}
        self._peers: OrderedDict[bytes, Destination] = OrderedDict()
        self._given_away: set[bytes] = set()

    def make(self, family: int, proto: int) -> int:
        """Make a UDP socket for the target; the blocking, close-on-exec descriptor is the caller's.

        OSError: the kernel's own answer to socket(2), or EPERM where it can't be bound to `lo`.
        """
        with socket.socket(family, socket.SOCK_DGRAM, proto) as new:
            bind_to_lo(new)
            return new.detach()

    def adopt(self, sock: socket.socket) -> None:
        """Confine a UDP socket that the program has made itself. OSError: EPERM where it can't be bound to `lo`."""
        bind_to_lo(sock)

    def holds(self, sock: socket.socket) -> bool:
        """Whether this is a UDP socket that is on `lo` now."""
        if sock.family not in INET or sock.type != socket.SOCK_DGRAM:
            return False
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _IFNAMSIZ) == _LO

    def connect(self, sock: socket.socket, sockaddr: bytes) -> int:
        """connect(2) of a socket that is held; its errno, 0 for success. CallRefused."""
        cookie = cookie_of(sock)
        if int.from_bytes(sockaddr[:2], sys.byteorder) == socket.AF_UNSPEC and len(sockaddr) >= 2:
            return self._disconnect(sock, cookie, sockaddr)
        destination = Destination.of(sockaddr, sock.family)
        error = connect(sock.fileno(), self._way(destination).to_sockaddr(sock.family))
        if not error:
            self._peers[cookie] = destination
            self._peers.move_to_end(cookie)
            if len(self._peers) > PEERS_REMEMBERED:
                self._peers.popitem(last=False)
        return error

    def peer(self, sock: socket.socket) -> bytes | None:
        """getpeername(2): the sockaddr that the program asked for; None: let the kernel say."""
        destination = self._peers.get(cookie_of(sock))
        if destination is None or not is_connected(sock):
            return None
        return destination.sockaddr(sock.family)

    def send(self, tid: int, sock: socket.socket, data: bytes, flags: int, sockaddr: bytes | None) -> int:
        """Send one datagram of a thread's, to its peer or to a sockaddr; never waits. OSError, CallRefused."""
        flags |= socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        if sockaddr is None:
            return sock.sendmsg([data], [], flags)
        if not self.holds(sock):
            raise CallRefused(errno.EPERM)
        way = self._named(tid, sock, sockaddr)
        mapped = "::ffff:" if sock.family == socket.AF_INET6 and way.family == socket.AF_INET else ""
        return sock.sendmsg([data], [], flags, (mapped + way.host, way.port))

    def way(self, tid: int, sock: socket.socket, sockaddr: bytes) -> bytes:
        """The sockaddr to which a send of a thread's, to this one, has to go. CallRefused."""
        return self._named(tid, sock, sockaddr).to_sockaddr(sock.family)

    def source(self, family: int, sockaddr: bytes) -> bytes | None:
        """What to show for the sockaddr that a receive gave; None: itself."""
        address = Address.from_sockaddr(sockaddr)
        destination = None if address is None else self._stood_for.get((address.host, address.port))
        return None if destination is None else destination.sockaddr(family)

    def _named(self, tid: int, sock: socket.socket, sockaddr: bytes) -> Address:
        destination = Destination.of(sockaddr, sock.family)
        address = destination.address
        if address.port == 0:
            raise CallRefused(errno.EINVAL)
        if address.port != DNS_PORT:
            self._refused(tid, address)
            raise CallRefused(errno.EPERM)
        return self._way(destination)

    def receive(self, sock: socket.socket, flags: int) -> Datagram:
        """Take one datagram, whole; never waits. OSError: EAGAIN and what the socket has to say."""
        data, _, said, name = sock.recvmsg(DATAGRAM, 0, flags | socket.MSG_DONTWAIT)
        return Datagram(data, self._source(sock.family, name), said)

    def may_leave(self, sock: socket.socket) -> bool:
        """Whether it may have a descriptor that the engine can't recognise; if so it's known to have one from now on.

        A connected socket sends only to its peer, on loopback, as long as no call names another: it may go, and is
        never dissolved again, for that would take it off `lo` for a moment.
        """
        if not self.holds(sock) or not is_connected(sock):
            return False
        if len(self._given_away) < 1 << 16:
            self._given_away.add(cookie_of(sock))
            return True
        return False

    def close(self) -> None:
        """Close what stands for others; sockets of the target stay, and reach nobody."""
        for each in self._stand_ins.values():
            self._reactor.unwatch(each.fileno())
            each.close()
        for each in self._dead_ends.values():
            each.close()
        self._stand_ins.clear()
        self._stood_for.clear()
        self._dead_ends.clear()

    def _disconnect(self, sock: socket.socket, cookie: bytes, sockaddr: bytes) -> int:
        if cookie in self._given_away:
            raise CallRefused(errno.EPERM)
        self._peers.pop(cookie, None)
        error = connect(sock.fileno(), sockaddr)
        bind_to_lo(sock)  # __udp_disconnect() in net/ipv4/udp.c takes it off
        return error

    def _way(self, destination: Destination) -> Address:
        """The loopback address to which datagrams for a destination go. CallRefused."""
        family = destination.address.family
        assert family is not None
        try:
            if family == socket.AF_INET6 and not self._ipv6:
                raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
            if destination.address.port == DNS_PORT:
                end = self._stand_in(destination, family)
            else:
                end = self._dead_end(family)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise CallRefused(errno.ENOBUFS) from error
            raise CallRefused(errno.ENETUNREACH) from error  # no ::1 on this machine, so no IPv6 at all for the target
        return Address(*end.getsockname()[:2])

    def _stand_in(self, destination: Destination, family: int) -> socket.socket:
        found = self._stand_ins.get(destination)
        if found is not None:
            self._stand_ins.move_to_end(destination)
            return found
        if len(self._stand_ins) >= STAND_INS:
            _, oldest = self._stand_ins.popitem(last=False)
            del self._stood_for[oldest.getsockname()[:2]]
            self._reactor.unwatch(oldest.fileno())
            oldest.close()
        new = _on_loopback(family)
        self._stand_ins[destination] = new
        self._stood_for[new.getsockname()[:2]] = destination
        host = destination.address.host
        asked = f"{host}%{destination.scope}" if destination.scope else host

        def readable(events: int) -> None:
            for _ in range(_AT_ONCE):
                try:
                    message, asker = new.recvfrom(DATAGRAM)
                except OSError:  # nothing more, or an asker that is gone
                    return
                self._query(message, asked, family, partial(_answer, new, asker))

        self._reactor.watch(new.fileno(), READ, readable)
        return new

    def _dead_end(self, family: int) -> socket.socket:
        found = self._dead_ends.get(family)
        if found is None:
            found = _on_loopback(family)
            found.connect(found.getsockname()[:2])  # hears only itself from here on: others get ECONNREFUSED
            self._dead_ends[family] = found
        return found

    def _source(self, family: int, name: Any) -> bytes:
        """The sockaddr to show for what recvmsg() said."""
        if not name:
            return b""
        address = Address.of(*name[:2])
        destination = self._stood_for.get((address.host, address.port))
        if destination is None:
            destination = Destination(address, name[3] if len(name) > 3 else 0)
        return destination.sockaddr(family)


def bind_to_lo(sock: socket.socket) -> None:
    """Let the socket send and receive on `lo` only. OSError: EPERM before Linux 5.7, or when it's on another device."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _LO)
    except PermissionError:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _IFNAMSIZ) != _LO:  # as an outer one has it
            raise


def is_connected(sock: socket.socket) -> bool:
    """Whether the kernel knows a peer."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _on_loopback(family: int) -> socket.socket:
    """A socket on a free loopback port; on `lo` too, so that its answers stay there. OSError."""
    new = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        bind_to_lo(new)
        new.bind((_LOOPBACK[socket.AddressFamily(family)], 0))
    except OSError:
        new.close()
        raise
    return new


def _answer(stand_in: socket.socket, asker: Any, answer: bytes) -> None:
    with suppress(OSError):  # the asker is gone, or the stand-in itself, which then says EBADF
        stand_in.sendto(answer, asker)
