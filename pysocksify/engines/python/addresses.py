"""Python's socket addresses to struct sockaddr and back, with names asked of the supervisor. Loaded into programs."""

import _socket
import errno
import os
import struct
from operator import index
from sys import byteorder

from pysocksify.engines.handover import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pysocksify.engines.python.layers import Answering

INET = (_socket.AF_INET, _socket.AF_INET6)
BROADCAST = "255.255.255.255"
getaddrinfo = _socket.getaddrinfo  # the true ones
_GAI_TEXTS = {
    _socket.EAI_NONAME: "Name or service not known",
    _socket.EAI_AGAIN: "Temporary failure in name resolution",
    _socket.EAI_FAIL: "Non-recoverable failure in name resolution",
}
_CODES = {
    errno.ENOENT: _socket.EAI_NONAME,
    errno.ENODATA: getattr(_socket, "EAI_NODATA", _socket.EAI_NONAME),
    errno.EAGAIN: _socket.EAI_AGAIN,
}
_NODATA_TEXT = "No address associated with hostname"


class Numeric:
    """A host that needs no looking up, and a port: the sockaddr of a family, and what Python calls it."""

    __slots__ = ("python", "sockaddr")

    def __init__(self, family: int, host: str, port: int, flow: int = 0, scope: int = 0) -> None:
        packed = _socket.inet_pton(family, host)
        head = struct.pack("=H", family) + struct.pack("!H", port)
        self.python: tuple[Any, ...]
        if family == _socket.AF_INET:
            self.sockaddr = head + packed + bytes(8)
            self.python = (host, port)
        else:
            self.sockaddr = head + struct.pack("!I", flow) + packed + struct.pack("=I", scope)
            self.python = (host, port, flow, scope)


def numeric(asked: "Answering", family: int, address: object, caller: str) -> Numeric:
    """The address that a program gave for a socket of an inet family. TypeError, OverflowError, OSError (gaierror)."""
    if not isinstance(address, tuple):
        raise TypeError(f"{caller}(): {_name(family)} address must be tuple, not {type(address).__name__}")
    most = 2 if family == _socket.AF_INET else 4
    if not 2 <= len(address) <= most:
        form = "a pair (host, port)" if most == 2 else "a tuple (host, port[, flowinfo[, scopeid]])"
        raise TypeError(f"{caller}(): {_name(family)} address must be {form}")
    host, port = _host(address[0]), index(address[1])
    flow, scope = (*(index(each) for each in address[2:]), 0, 0)[:2]
    if not 0 <= port <= 65535:
        raise OverflowError(f"{caller}(): port must be 0-65535.")
    if not 0 <= flow <= 0xFFFFF:
        raise OverflowError(f"{caller}(): flowinfo must be 0-1048575.")
    if host == "":
        host = "0.0.0.0" if family == _socket.AF_INET else "::"
    elif host == "<broadcast>" and family == _socket.AF_INET:
        host = BROADCAST
    elif not _is_numeric(family, host):
        found, named = _written(family, host)
        host = found or resolve(asked, host, family)[0][0][1]
        scope = scope or named
    return Numeric(family, host, port, flow, scope)


def resolve(asked: "Answering", name: str, family: int = 0) -> "tuple[list[tuple[int, str]], str]":
    """The addresses of a name as (family, text), and the name itself, from the supervisor. gaierror."""
    try:
        wanted = name.encode("ascii")
    except UnicodeError:
        wanted = name.encode("idna")
    reply = asked.ask(wire.NAME, wire.pack_name(family, wanted))
    if reply.error or reply.verdict != wire.ANSWER:
        raise gaierror(reply.error)
    addresses, canonical = wire.unpack_addresses(reply.payload)
    if not addresses:
        raise gaierror(errno.ENODATA)
    texts = [(each, _socket.inet_ntop(each, packed)) for each, packed in addresses]
    return texts, canonical.decode("ascii", "replace") or name


def python_address(sockaddr: bytes) -> "tuple[Any, ...]":
    """What Python calls a struct sockaddr of an inet family."""
    family = int.from_bytes(sockaddr[:2], byteorder)
    (port,) = struct.unpack_from("!H", sockaddr, 2)
    if family == _socket.AF_INET:
        return _socket.inet_ntop(family, sockaddr[4:8]), port
    (flow,) = struct.unpack_from("!I", sockaddr, 4)
    scope = int.from_bytes(sockaddr[24:28], byteorder)
    return _socket.inet_ntop(family, sockaddr[8:24]), port, flow, scope


def text_of(host: object) -> str:
    """A host as getaddrinfo() takes it, str or bytes, as text. TypeError."""
    return _host(host)


def failure(number: int) -> OSError:
    """The OSError for an errno; Python makes it the subclass that belongs to it."""
    return OSError(number, os.strerror(number))


def _host(host: object) -> str:
    if isinstance(host, str):
        return host
    if isinstance(host, (bytes, bytearray)):
        return host.decode("ascii")
    raise TypeError(f"str, bytes or bytearray expected, not {type(host).__name__}")


def _is_numeric(family: int, host: str) -> bool:
    try:
        _socket.inet_pton(family, host)
    except (OSError, ValueError):
        return False
    return True


def _written(family: int, host: str) -> "tuple[str, int]":
    """A host in an unusual form, "127.1" or "fe80::1%eth0", and its scope; "" for a name. Asks nobody."""
    try:
        found = getaddrinfo(host, None, family, _socket.SOCK_STREAM, 0, _socket.AI_NUMERICHOST)
    except OSError as refusal:
        if refusal.errno == _socket.EAI_NONAME and ":" not in host:
            return "", 0
        raise
    sockaddr = found[0][4]
    return str(sockaddr[0]).partition("%")[0], int(sockaddr[3]) if len(sockaddr) > 3 else 0


def gaierror(number: int) -> OSError:
    """The gaierror for what a NAME was answered (`wire.NAME_ERRORS`)."""
    code = _CODES.get(number, _socket.EAI_FAIL)
    text = _NODATA_TEXT if number == errno.ENODATA else _GAI_TEXTS[code]
    return _socket.gaierror(code, text)


def _name(family: int) -> str:
    return "AF_INET" if family == _socket.AF_INET else "AF_INET6"
