"""Fake addresses: an IPv4 and an IPv6 address that stand for a name, so that the name reaches the proxy (RFC 3089).

A name gets one place in a table and with it one address of each family; the IPv6 address ends in the IPv4 one, so a
person can tell that they belong together. 198.18.0.0/15 is for tests between networks (RFC 2544), never for a host that
somebody wants to reach. A unique local address (RFC 4193) comes after IPv4 in RFC 6724's order.
"""

import _socket as sockets
from collections import OrderedDict

IPV4_NETWORK = "198.18.0.0/15"
IPV6_NETWORK = "fd73:6f63:6b73::/64"

_IPV4_BASE = 0xC6120000
_IPV4_MASK = 0xFFFE0000
_IPV6_PREFIX = sockets.inet_pton(sockets.AF_INET6, "fd73:6f63:6b73::")[:12]

# Of each /24, .0 and .255 are left out: programs and their filters take them for a network and a broadcast address. The
# whole first /24 is pysocksify's own.
_FIRST_BLOCK = 1
_HOSTS = 254
LARGEST = (512 - _FIRST_BLOCK) * _HOSTS


def is_fake(address: str) -> bool:
    """Whether an address lies in one of the two networks, given out or not. It must then never be dialled as such."""
    return _low_bits(address) is not None


class FakeAddresses:
    """The table of names. When it is full, the name that was longest not used loses its place.

    `capacity` is the number of places, LARGEST at the most.
    """

    def __init__(self, capacity: int = 131_000) -> None:
        if capacity < 1:
            raise ValueError("a table of names needs a place")
        self._capacity = min(capacity, LARGEST)
        self._places: OrderedDict[str, int] = OrderedDict()  # longest not used first
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def of(self, name: str) -> tuple[str, str]:
        """The IPv4 and the IPv6 address that stand for a name; upper case and a trailing dot make no difference."""
        name = name.removesuffix(".").lower()
        place = self._places.get(name)
        if place is not None:
            self._places.move_to_end(name)
        elif len(self._names) < self._capacity:
            place = self._places[name] = len(self._names)
            self._names.append(name)
        else:
            _, place = self._places.popitem(last=False)
            self._places[name] = place
            self._names[place] = name
        return _addresses(place)

    def name(self, address: str) -> str | None:
        """The name that an address stands for; None when it stands for none (see `is_fake`)."""
        bits = _low_bits(address)
        if bits is None:
            return None
        block, host = divmod(bits - _IPV4_BASE, 256)
        if block < _FIRST_BLOCK or not 1 <= host <= _HOSTS:
            return None
        place = (block - _FIRST_BLOCK) * _HOSTS + host - 1
        if place >= len(self._names):
            return None
        name = self._names[place]
        self._places.move_to_end(name)
        return name


def _addresses(place: int) -> tuple[str, str]:
    block, host = divmod(place, _HOSTS)
    packed = (_IPV4_BASE + (block + _FIRST_BLOCK) * 256 + host + 1).to_bytes(4, "big")
    return sockets.inet_ntop(sockets.AF_INET, packed), sockets.inet_ntop(sockets.AF_INET6, _IPV6_PREFIX + packed)


def _low_bits(address: str) -> int | None:
    """The IPv4 address, as a number, that is or ends this fake address; None for any other text.

    An IPv6 address of the network whose end isn't in the IPv4 network counts as the base address, which stands for no
    name.
    """
    family = sockets.AF_INET6 if ":" in address else sockets.AF_INET
    try:
        packed = sockets.inet_pton(family, address)
    except (OSError, ValueError):
        return None
    bits = int.from_bytes(packed[-4:], "big")
    inside = bits & _IPV4_MASK == _IPV4_BASE
    if family == sockets.AF_INET:
        return bits if inside else None
    if packed[:8] != _IPV6_PREFIX[:8]:
        return None
    return bits if inside and packed[:12] == _IPV6_PREFIX else _IPV4_BASE
