"""The direct path: the target's own socket is connected to the first hop, and the handshakes are spoken over it.

Once that is done the program talks to the proxy itself: no relay, no copy, nothing to keep alive.
"""

import errno
import os
import socket
from functools import lru_cache

from pysocksify.address import Address
from pysocksify.dial.transport import resolve
from pysocksify.linux import connect, dissolve
from pysocksify.reactor import READ, WRITE, Ready, Steps
from pysocksify.supervisor.hold import TCP_FASTOPEN_CONNECT, restore

_IN_THE_WAY = (
    (socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 0),  # connect() would say 0 and wait for data
    (socket.IPPROTO_TCP, socket.TCP_CORK, 0),  # each message of ours would be kept back for 200 ms
    (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1),  # epoll would keep silent about a short reply
)
"""Options of the program's that would spoil the handshakes, and the values that don't."""

ANYWHERE = ("0.0.0.0", "::", "::ffff:0.0.0.0")


@lru_cache(1024)
def _sockaddr(address: Address, family: int) -> bytes:
    return address.to_sockaddr(family)


def stays_here(sock: socket.socket, destination: Address) -> bool:
    """Whether this is one of this machine's addresses for a socket that is bound to loopback, and so reaches no other.

    Another pysocksify inside this one connects to its own program's socket like that.
    """
    bound = _bound_host(sock)
    if bound is None or not Address(bound, 0).is_loopback:
        return False
    if destination.family is None or destination.is_loopback:
        return False
    with socket.socket(destination.family) as probe:
        try:
            probe.bind((destination.host, 0))
        except OSError:
            return False
    return True


def _bound_host(sock: socket.socket) -> str | None:
    """The address that a socket is bound to, an IPv4-mapped one as IPv4; None: to none, or to all."""
    bound: str = sock.getsockname()[0]
    return None if bound in ANYWHERE else bound.removeprefix("::ffff:")


class DoesNotFit(Exception):
    """This socket can't itself reach the hop: the dial needs a socket of the supervisor's."""


class OwnFault(Exception):
    """What the kernel says of the program's socket itself, not of the way to a hop; `errno` is for the program."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


OWN_FAULTS = (errno.EISCONN, errno.EINVAL, errno.EADDRINUSE, errno.EADDRNOTAVAIL)


class TargetSocket:
    """A transport on the target's own socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.readable = Ready(sock.fileno(), READ, keep=True)
        self.awaiting = True
        self._aside: list[tuple[int, int, int]] = []
        self.touched = False
        """Whether the socket has been connected to something, so that it's to be dissolved if the dial fails."""

    def open(self, address: Address, deadline: float) -> Steps[None]:
        """Connect the socket to `address`. DoesNotFit; OSError, TimeoutError."""
        self.give_up()
        family = address.family
        if family is not None:
            if not self._fits(family, address.host):
                raise DoesNotFit
            yield from self.connect(_sockaddr(address, self.sock.family), deadline)
            return
        failure: OSError | None = None
        for family, name in (yield from resolve(address)):
            if not self._fits(family, name[0]):
                continue
            try:
                yield from self.connect(_sockaddr(Address(*name), self.sock.family), deadline)
            except TimeoutError:
                raise
            except OSError as error:
                failure = error
                self.give_up()
            else:
                return
        raise failure or DoesNotFit

    def connect(self, sockaddr: bytes, deadline: float | None) -> Steps[None]:
        """connect(2) to `sockaddr` as a blocking socket's does it. OSError, TimeoutError; OwnFault."""
        fd = self.sock.fileno()
        self._set_aside()
        error = self._try_connect(sockaddr)
        # the connect() that says 0 is the program's own, which waits for it; the next one is EISCONN
        while error == errno.EALREADY:
            self.touched = True
            yield Ready(fd, WRITE, deadline)
            error = self._try_connect(sockaddr)
        self.touched = self.touched or error == 0
        if error in OWN_FAULTS and not self.touched:
            raise OwnFault(error)
        if error:
            raise OSError(error, os.strerror(error))

    def _try_connect(self, sockaddr: bytes) -> int:
        """connect(2) that doesn't wait: 0, EALREADY or an error.

        O_NONBLOCK is seen by all who share the open file: it's set for this call only.
        """
        fd = self.sock.fileno()
        blocking = os.get_blocking(fd)
        if blocking:
            os.set_blocking(fd, False)
        error = connect(fd, sockaddr)
        if error == errno.EINPROGRESS:
            self.touched = True
            error = connect(fd, sockaddr)  # on loopback the handshakes are through by now
        if blocking:
            os.set_blocking(fd, True)
        return error

    def give_up(self) -> None:
        """Let the socket be unconnected again, with no error left in it, so that the program may try once more."""
        if self.touched:
            self.touched = False
            dissolve(self.sock.fileno())
            self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.put_back()

    def put_back(self) -> None:
        """Give the program its options again."""
        restore(self.sock, self._aside)

    def _set_aside(self) -> None:
        if self._aside:
            return
        for level, option, harmless in _IN_THE_WAY:
            value = self.sock.getsockopt(level, option)
            if value == harmless:
                continue
            try:
                self.sock.setsockopt(level, option, harmless)
            except OSError as error:
                if option != TCP_FASTOPEN_CONNECT or error.errno != errno.EINVAL:
                    raise
                continue  # it isn't closed: connect() says so
            self._aside.append((level, option, value))

    def _fits(self, family: int, host: str) -> bool:
        if self.sock.family != family:
            if self.sock.family == socket.AF_INET:
                return False
            if self.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
                return False
        bound = _bound_host(self.sock)
        if bound is None:
            return True
        if (":" in bound) != (":" in host):
            return False
        return Address(bound, 0).is_loopback == Address(host, 0).is_loopback
