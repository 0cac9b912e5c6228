"""What stands in for getaddrinfo() and its older relatives: names are asked of the supervisor, never of the network.

Loaded into programs. What needs no looking up (numeric addresses, services) is still the C library's.
"""

import _socket

from pysocksify.engines.handover import wire
from pysocksify.engines.python import layers
from pysocksify.engines.python.addresses import INET, Numeric, getaddrinfo, resolve, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pysocksify.engines.python.layers import Answering

_gethostbyname = _socket.gethostbyname
_gethostbyname_ex = _socket.gethostbyname_ex
_gethostbyaddr = _socket.gethostbyaddr
_getnameinfo = _socket.getnameinfo
_HOST_NOT_FOUND = 1  # netdb.h


def _getaddrinfo(host: "Any", port: "Any", family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> "Any":
    asked = layers.here()
    if asked is None or host is None:
        return getaddrinfo(host, port, family, type, proto, flags)
    flags &= ~_socket.AI_ADDRCONFIG  # asks which addresses this machine has; ours are of both families
    numeric = flags | _socket.AI_NUMERICHOST
    try:
        return getaddrinfo(host, port, family, type, proto, numeric)
    except _socket.gaierror as refusal:
        if refusal.errno != _socket.EAI_NONAME or flags & _socket.AI_NUMERICHOST:
            raise
    addresses, canonical = resolve(asked, text_of(host), family)
    mapped = numeric & ~_socket.AI_CANONNAME
    found = [entry for each, text in addresses for entry in getaddrinfo(text, port, each, type, proto, mapped)]
    if flags & _socket.AI_CANONNAME and found:
        found[0] = (*found[0][:3], canonical, found[0][4])
    return found


def gethostbyname(host: "Any") -> str:
    """socket.gethostbyname()."""
    asked = layers.here()
    if asked is None or _is_numeric(host):
        return _gethostbyname(host)
    return resolve(asked, text_of(host), _socket.AF_INET)[0][0][1]


def gethostbyname_ex(host: "Any") -> "tuple[str, list[str], list[str]]":
    """socket.gethostbyname_ex()."""
    asked = layers.here()
    if asked is None:
        return _gethostbyname_ex(host)
    if _is_numeric(host):
        return text_of(host), [], [_gethostbyname(host)]
    addresses, canonical = resolve(asked, text_of(host), _socket.AF_INET)
    return canonical, [], [text for _, text in addresses]


def gethostbyaddr(host: "Any") -> "tuple[str, list[str], list[str]]":
    """socket.gethostbyaddr()."""
    asked = layers.here()
    if asked is None:
        return _gethostbyaddr(host)
    family, text = _first_address(asked, text_of(host))
    name = _pointer(asked, Numeric(family, text, 0).sockaddr)
    if name is None:
        raise _socket.herror(_HOST_NOT_FOUND, "Unknown host")
    return name, [], [text]


def getnameinfo(sockaddr: "Any", flags: int) -> "tuple[str, str]":
    """socket.getnameinfo()."""
    asked = layers.here()
    if asked is None or flags & _socket.NI_NUMERICHOST:
        return _getnameinfo(sockaddr, flags)
    numbers = _getnameinfo(sockaddr, (flags | _socket.NI_NUMERICHOST) & ~_socket.NI_NAMEREQD)
    family, text = _first_address(asked, numbers[0].partition("%")[0])
    name = _pointer(asked, Numeric(family, text, 0).sockaddr)
    if name is None and flags & _socket.NI_NAMEREQD:
        raise _socket.gaierror(_socket.EAI_NONAME, "Name or service not known")
    return name or numbers[0], numbers[1]


def _pointer(asked: "Answering", sockaddr: bytes) -> str | None:
    reply = asked.ask(wire.POINTER, sockaddr)
    return None if reply.error or reply.verdict != wire.ANSWER else reply.payload.decode("utf-8", "replace")


def _first_address(asked: "Answering", host: str) -> "tuple[int, str]":
    for family in INET:
        try:
            _socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return family, host
    return resolve(asked, host)[0][0]


def _is_numeric(host: "Any") -> bool:
    """Whether the C library needs nobody for this: an address in any form, "" and "<broadcast>"."""
    text = text_of(host)
    if text in ("", "<broadcast>"):
        return True
    try:
        getaddrinfo(text, None, _socket.AF_INET, 0, 0, _socket.AI_NUMERICHOST)
    except _socket.gaierror:
        return False
    return True


FUNCTIONS: "dict[str, Callable[..., Any]]" = {
    "getaddrinfo": _getaddrinfo,
    "gethostbyname": gethostbyname,
    "gethostbyname_ex": gethostbyname_ex,
    "gethostbyaddr": gethostbyaddr,
    "getnameinfo": getnameinfo,
}
