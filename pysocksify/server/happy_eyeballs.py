"""Connecting to a host that may have many addresses, the way of RFC 8305 ("happy eyeballs").

The addresses come in the order of getaddrinfo(3), which is RFC 6724's, with the families taking turns. An attempt is
started every ATTEMPT_DELAY, and at once when the one before has failed; the first that is up wins. RFC 8305 section 3's
separate queries for A and AAAA are left to getaddrinfo(3): it answers when both are there.
"""

import errno
import os
import socket
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

from pysocksify.address import Address
from pysocksify.errors import Cause, cause_of_errno
from pysocksify.pacing import unpaced
from pysocksify.reactor import WRITE, Reactor, Timer
from pysocksify.threads import Job

ATTEMPT_DELAY = 0.25  # s; RFC 8305 section 8, Connection Attempt Delay
SockAddr = tuple[int, Any]  # family, and what connect() takes

# Which one of several attempts' failures is told: the one that says most about the host itself.
TELLING = (Cause.REFUSED, Cause.TIMED_OUT, Cause.NOT_ALLOWED, Cause.HOST_UNREACHABLE, Cause.NETWORK_UNREACHABLE)


class ConnectRace:
    """Attempts to reach one destination. `done(socket, None, "")` or `done(None, cause, words)` is called once, later.

    `hosts` gives addresses for names, looked up before any resolver is asked. `timeout` is in seconds, for all of it.
    Only addresses are tried of which `may_reach` says so. `source` is on whose behalf names are looked up, as the
    reactor's threads take it.
    """

    def __init__(
        self,
        reactor: Reactor,
        destination: Address,
        hosts: Mapping[str, tuple[str, ...]],
        timeout: float,
        done: Callable[[socket.socket | None, Cause | None, str], None],
        may_reach: Callable[[Address], bool] = lambda address: True,
        source: str | None = None,
    ) -> None:
        self._reactor = reactor
        self._destination = destination
        self._may_reach = may_reach
        self._done: Callable[[socket.socket | None, Cause | None, str], None] | None = done
        self._left: list[SockAddr] = []
        self._running: dict[int, socket.socket] = {}
        self._failures: list[tuple[Cause, str]] = []
        self._next: Timer | None = None
        self._lookup: Job | None = None
        self._deadline = reactor.call_at(reactor.now() + timeout, self._time_out)
        known = hosts.get(destination.host)
        if known is None and destination.is_name:
            name, port = destination.host.encode("ascii"), destination.port
            self._lookup = reactor.threads().run(lambda: look_up(name, port), self._resolved, source)
        else:
            if known is None:
                self._left = [(destination.family or 0, (destination.host, destination.port))]
            else:
                addresses = [Address.of(host, destination.port) for host in known]
                self._left = interleave([(address.family or 0, (address.host, address.port)) for address in addresses])
            reactor.call_soon(self._start_next)

    def cancel(self) -> None:
        """Give up; `done` is not called."""
        self._done = None
        self._deadline.cancel()
        if self._next is not None:
            self._next.cancel()
        if self._lookup is not None:
            self._lookup.cancel()
        for fd, sock in self._running.items():
            self._reactor.unwatch(fd)
            sock.close()
        self._running.clear()

    def _resolved(self, addresses: list[SockAddr] | None, error: BaseException | None) -> None:
        self._lookup = None
        if error is not None or not addresses:
            words = getattr(error, "strerror", None) or str(error or "it has no address")
            self._end(None, Cause.HOST_UNREACHABLE, f"{self._destination.host}: {words}")
            return
        self._left = interleave(addresses)
        self._start_next()

    def _start_next(self) -> None:
        """Start the next attempt; those that fail at once make way for the one after."""
        if self._done is None:
            return
        if self._next is not None:
            self._next.cancel()
            self._next = None
        while self._left:
            family, address = self._left.pop(0)
            if not self._may_reach(told(address)):
                self._failures.append((Cause.NOT_ALLOWED, f"{address[0]}: not to be reached from there"))
                continue
            try:
                started = self._start(family, address)
            except OSError as error:
                self._failures.append(describe(address, error.errno or 0))
                continue
            if started and self._left:
                self._next = self._reactor.call_at(self._reactor.now() + ATTEMPT_DELAY, self._start_next)
            return
        if not self._running:
            self._fail()

    def _start(self, family: int, address: Any) -> bool:
        """Begin to connect. False: it's up already, and the race over."""
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if self._destination.is_loopback:
            unpaced(sock)
        try:
            error = sock.connect_ex(address)
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
            fd = sock.fileno()
            if error:
                self._reactor.watch(fd, WRITE, lambda events: self._answered(fd, address))
        except OSError:
            sock.close()
            raise
        if not error:
            self._end(sock, None, "")
            return False
        self._running[fd] = sock
        return True

    def _answered(self, fd: int, address: Any) -> None:
        sock = self._running.pop(fd)
        self._reactor.unwatch(fd)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not error:
            self._end(sock, None, "")
            return
        sock.close()
        self._failures.append(describe(address, error))
        self._start_next()

    def _time_out(self) -> None:
        self._failures.append((Cause.TIMED_OUT, f"{self._destination}: no answer in time"))
        self._fail()

    def _fail(self) -> None:
        for cause in TELLING:
            for failure in self._failures:
                if failure[0] is cause:
                    self._end(None, *failure)
                    return
        self._end(None, *self._failures[0])

    def _end(self, sock: socket.socket | None, cause: Cause | None, words: str) -> None:
        done = self._done
        self.cancel()
        if done is not None:
            done(sock, cause, words)


def look_up(name: bytes, port: int) -> list[SockAddr]:
    """The addresses of a name, by getaddrinfo(3). Blocks; raises OSError. Bytes, lest Python encode the name again."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def told(sockaddr: tuple[Any, ...]) -> Address:
    """What getsockname(2) or getaddrinfo(3) says, without the scope that a link-local address has."""
    host, port = sockaddr[:2]
    return Address(host, port) if ":" not in host else Address.of(host, port)


def interleave(addresses: list[SockAddr]) -> list[SockAddr]:
    """The families in turn, the first one's first (RFC 8305 section 4, First Address Family Count 1)."""
    if not addresses:
        return []
    first = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    return [address for pair in zip_longest(first, others) for address in pair if address is not None]


def describe(address: Any, error: int) -> tuple[Cause, str]:
    """What a failed attempt means, and the words for it."""
    return cause_of_errno(error), f"{address[0]}: {os.strerror(error)}"
