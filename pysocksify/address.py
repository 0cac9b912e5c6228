"""Address: where a connection goes, as an IPv4 address, an IPv6 address or a domain name, and a port."""

import _socket as sockets
import struct

from pysocksify.record import record

INET = (sockets.AF_INET, sockets.AF_INET6)
"""The families of Internet sockets."""

# struct sockaddr_in: family, port, address, 8 bytes of zeros; family in the machine's byte order, port not (ip(7)).
_SOCKADDR_IN_SIZE = 16
# struct sockaddr_in6: family, port, flow information, address, scope id. The kernel takes it without the scope id
# too (SIN6_LEN_RFC2133 in net/ipv6).
_SOCKADDR_IN6_LEAST = 24
_MAPPED = bytes(10) + b"\xff\xff"
_IPV6_LOOPBACK = bytes(15) + b"\x01"

# SOCKS5 gives a name's length in one byte (RFC 1928 section 5); DNS allows 253 characters.
_NAME_LIMIT = 255
# The URL standard's forbidden domain code points, less the control characters, which are looked for separately.
_FORBIDDEN = frozenset(" #/:<>?@[\\]^|%")


@record(frozen=True, slots=True)
class Address:
    """A host and a port.

    The host is canonical: `192.0.2.1`, `2001:db8::1` (no brackets, no scope id, never IPv4-mapped) or a domain name in
    lower case, in ASCII, without a trailing dot. The dataclass's own constructor takes it as it is; `of`, `parse`,
    `from_packed` and `from_sockaddr` make it so.
    """

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> "Address":
        """The address of a host as a person or a program writes it.

        A name that isn't ASCII is turned into its IDNA form. Raises ValueError with the reason when this can be neither
        an address nor a name.
        """
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is not within 0-65535")
        return cls(_canonical_host(host), port)

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> "Address":
        """The address in `host:port` or `[ipv6]:port`; the port may be left out when there is a default for it.

        Raises ValueError with the reason.
        """
        if text.startswith("["):
            host, closed, rest = text[1:].partition("]")
            if not closed or (rest and not rest.startswith(":")) or ":" not in host:
                raise ValueError(f"{text!a} is not [IPv6 address]:port")
            port = rest[1:]
            has_port = bool(rest)
        else:
            host, colon, port = text.partition(":")
            has_port = bool(colon)
            if ":" in port:
                raise ValueError(f"{text!a}: an IPv6 address stands in brackets, as in [::1]:80")
        if not has_port and default_port is not None:
            return cls.of(host, default_port)
        if not (port.isascii() and port.isdigit() and len(port) <= 5):
            raise ValueError(f"{text!a} has no port number after its host")
        return cls.of(host, int(port))

    @classmethod
    def from_packed(cls, packed: bytes, port: int) -> "Address":
        """The address in 4 or 16 bytes of network order. An IPv4-mapped one becomes IPv4."""
        return cls(_unpacked(packed), port)

    @classmethod
    def from_wire_name(cls, name: bytes, port: int) -> "Address":
        """The address that a peer names with the bytes of a domain name (or of an address in text, as some do).

        Raises ValueError with the reason.
        """
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"host name {name[:_NAME_LIMIT]!r} is not text") from None
        return cls.of(text, port)

    @classmethod
    def from_sockaddr(cls, data: bytes) -> "Address | None":
        """The address in a struct sockaddr_in or sockaddr_in6, as connect(2) takes it; None for other families and for
        fewer bytes than the kernel asks for."""
        if len(data) < _SOCKADDR_IN_SIZE:
            return None
        (family,) = struct.unpack_from("=H", data)
        (port,) = struct.unpack_from("!H", data, 2)
        if family == sockets.AF_INET:
            return cls(_unpacked(data[4:8]), port)
        if family == sockets.AF_INET6 and len(data) >= _SOCKADDR_IN6_LEAST:
            return cls(_unpacked(data[8:24]), port)
        return None

    def to_sockaddr(self, family: int) -> bytes:
        """The struct sockaddr of that family (AF_INET or AF_INET6); an IPv4 address on AF_INET6 is IPv4-mapped.

        Raises ValueError for a name, for an IPv6 address on AF_INET and for another family.
        """
        packed = self.packed
        port = struct.pack("!H", self.port)
        if family == sockets.AF_INET and len(packed) == 4:
            return struct.pack("=H", family) + port + packed + bytes(8)
        if family == sockets.AF_INET6:
            if len(packed) == 4:
                packed = _MAPPED + packed
            return struct.pack("=H", family) + port + bytes(4) + packed + bytes(4)
        raise ValueError(f"{self} has no form in address family {family}")

    @property
    def family(self) -> int | None:
        """AF_INET, AF_INET6, or None for a name."""
        if ":" in self.host:
            return sockets.AF_INET6
        return sockets.AF_INET if _ipv4(self.host) is not None else None

    @property
    def is_name(self) -> bool:
        """Whether the host is a domain name."""
        return ":" not in self.host and _ipv4(self.host) is None

    @property
    def packed(self) -> bytes:
        """The host in 4 or 16 bytes of network order. Raises ValueError for a name."""
        packed = _packed(self.host)
        if packed is None:
            raise ValueError(f"{self.host} is a name, not an address")
        return packed

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine: 127.0.0.0/8, ::1, the unspecified addresses, which connect(2) takes for
        loopback, and localhost with all names below it (RFC 6761 section 6.3)."""
        packed = _packed(self.host)
        if packed is None:
            return self.host == "localhost" or self.host.endswith(".localhost")
        return (len(packed) == 4 and packed[0] == 127) or packed == _IPV6_LOOPBACK or not any(packed)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# What a server says of its own end when it has nothing to say (RFC 1928 has no other way).
UNSPECIFIED = Address("0.0.0.0", 0)


def _ipv4(host: str) -> bytes | None:
    try:
        return sockets.inet_pton(sockets.AF_INET, host)
    except (OSError, ValueError):
        return None


def _packed(host: str) -> bytes | None:
    """A canonical host in network order, None for a name."""
    return sockets.inet_pton(sockets.AF_INET6, host) if ":" in host else _ipv4(host)


def _unpacked(packed: bytes) -> str:
    if len(packed) == 16 and packed.startswith(_MAPPED):
        packed = packed[12:]
    return sockets.inet_ntop(sockets.AF_INET if len(packed) == 4 else sockets.AF_INET6, packed)


def _canonical_host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(f"{host!a} stands in brackets but is not an IPv6 address")
    if ":" in host:
        try:
            return _unpacked(sockets.inet_pton(sockets.AF_INET6, host.partition("%")[0]))
        except (OSError, ValueError):
            raise ValueError(f"{host!a} is not an IPv6 address") from None
    packed = _ipv4(host)
    return _unpacked(packed) if packed is not None else _canonical_name(host)


def _canonical_name(name: str) -> str:
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise ValueError(f"{name!a} is not a host name: {error}") from None
    name = name.removesuffix(".").lower()
    if not name:
        raise ValueError("the host name is empty")
    if len(name) > _NAME_LIMIT:
        raise ValueError(f"the host name has {len(name)} bytes, {_NAME_LIMIT} are the most")
    for character in name:
        if character < " " or character == "\x7f" or character in _FORBIDDEN:
            raise ValueError(f"{name!a} is not a host name: it holds {character!a}")
    if name.startswith(".") or name.endswith(".") or ".." in name:
        raise ValueError(f"{name!a} is not a host name: a part of it is empty")
    try:
        sockets.inet_aton(name)
    except OSError:
        return name
    # getaddrinfo(3) takes "127.1" and "0x7f000001" for 127.0.0.1: rules about addresses could be got round with them.
    raise ValueError(f"{name!a} is an unusual form of an IPv4 address; write it as four decimal numbers")
