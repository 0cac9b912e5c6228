"""Listening TCP sockets, and who can reach them."""

import errno
import os
import socket

from pysocksify.address import Address
from pysocksify.errors import ConfigError
from pysocksify.pacing import unpaced
from pysocksify.server.settings import ServerSettings

OPTION = "--listen"
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)  # ENOSPC: epoll's max_user_watches
NO_ROOM_PAUSE = 0.1  # s until accept is tried again; nginx waits 0.5 (accept_mutex_delay), Go 0.005 to 1


def is_public(address: Address) -> bool:
    """Whether others than this machine reach who listens there. The unspecified address, which means loopback to who
    connects, means everywhere to who listens."""
    return not any(address.packed) or not address.is_loopback


def check(address: Address, settings: ServerSettings) -> None:
    """Raise ConfigError when others could use a server there who aren't meant to."""
    if is_public(address) and not settings.users and not settings.open:
        reason = "others could use this; name a --user or --users, or say --open if that is meant"
        raise ConfigError(OPTION, str(address), reason)


def numeric(address: Address) -> Address:
    """The address to listen on, which isn't a name but `localhost`. Raises ConfigError."""
    address = _numbered(address)
    if address.is_name:
        raise ConfigError(OPTION, str(address), "an address is needed, not a name")
    return address


def private(text: str) -> Address:
    """An address on loopback, for what doesn't ask for a password. Raises ValueError."""
    address = _numbered(Address.parse(text))
    if address.is_name or is_public(address):
        raise ValueError(f"{address}: must be an address on loopback: who reads it isn't asked for a password")
    return address


def _numbered(address: Address) -> Address:
    return Address("127.0.0.1", address.port) if address.host == "localhost" else address


def tune(sock: socket.socket) -> None:
    """Have what is said sent at once, as it is put together already, and a peer that lost power found out."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def listening(address: Address, count: int = 1) -> tuple[socket.socket, ...]:
    """So many sockets that listen on one address (port 0: any one, the same for all), among which the kernel spreads
    the clients (SO_REUSEPORT, socket(7)). IPv6 sockets take IPv6 only. Raises ConfigError."""
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            family = address.family or socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if count > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if not is_public(address):
                unpaced(sock)
            sock.bind((address.host, address.port))
            address = Address.of(*sock.getsockname()[:2])
        for sock in sockets:
            sock.listen(socket.SOMAXCONN)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ConfigError(OPTION, str(address), os.strerror(error.errno or 0)) from None
    return tuple(sockets)
