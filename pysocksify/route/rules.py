"""Rules: what becomes of a destination, by its host and its port. The first rule that matches decides.

Two kinds of host meet two kinds of pattern. An address is matched by networks, a name by names; nothing is resolved for
a match, so a rule about names holds whatever they resolve to. `localhost` and the names below it are loopback addresses
(RFC 6761 section 6.3), so for them, and only for them, both kinds of pattern count.

Loopback destinations are direct before all rules, or no test server, debugger or local database would be reached. Only
a pattern that means loopback takes them from there: `localhost`, a name below it, or a network within 127.0.0.0/8,
::1/128, 0.0.0.0/32 or ::/128. `*` and 0.0.0.0/0 don't.
"""

import _socket as sockets

from pysocksify.address import Address
from pysocksify.record import record

DIRECT = "direct"
DENY = "deny"

_LOCALHOST = "localhost"
# A network: bits of an address of its family, bits that count, and these bits as a number.
_Network = tuple[int, int, int]
_Bits = tuple[int, int]
_LOOPBACK_NETWORKS: tuple[_Network, ...] = ((32, 8, 127), (32, 32, 0), (128, 128, 1), (128, 128, 0))
_LOCALHOST_BITS: tuple[_Bits, ...] = ((32, 0x7F000001), (128, 1))
_MAPPED_PREFIX = 0xFFFF


@record(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One thing that a host is compared with; `text` is how it was written.

    At most one of the others is set: a network, an exact name, or a suffix that begins with a dot. None of them: any.
    """

    text: str
    network: _Network | None = None
    name: str = ""
    suffix: str = ""

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """The pattern in an address, `network/bits`, a name, `*.suffix` (the names below it) or `*`.

        Raises ValueError with the reason.
        """
        if text == "*":
            return cls(text=text)
        address, slash, bits = text.partition("/")
        if slash:
            return cls(text=text, network=_network(address, bits))
        stem = text.removeprefix("*.")
        if "*" in stem:
            raise ValueError(f"{text!a}: a star stands alone or in front of a suffix, as in *.example.com")
        host = Address.of(stem, 0)
        if stem != text:
            if not host.is_name:
                raise ValueError(f"{text!a} has an address after its star; write a network, as in 10.0.0.0/8")
            return cls(text=text, suffix=f".{host.host}")
        if not host.is_name:
            return cls(text=text, network=_network(host.host, None))
        if host.host.rpartition(".")[2].isdigit():
            raise ValueError(f"{text!a} is neither an address nor a name")
        return cls(text=text, name=host.host)

    @property
    def is_loopback(self) -> bool:
        """Whether this pattern means loopback, and so comes before loopback's own rule."""
        if self.network is not None:
            return any(_contains(loopback, self.network) for loopback in _LOOPBACK_NETWORKS)
        return self.name == _LOCALHOST or f"{self.name or self.suffix}".endswith(f".{_LOCALHOST}")

    def matches(self, destination: Address, bits: tuple[_Bits, ...]) -> bool:
        """Whether the destination's host is meant. `bits` are its addresses as numbers, () for an ordinary name."""
        if self.network is not None:
            size, prefix, network = self.network
            return any(width == size and value >> (size - prefix) == network for width, value in bits)
        if self.name == _LOCALHOST:
            return destination.is_loopback
        if self.name:
            return destination.host == self.name
        return destination.host.endswith(self.suffix) if self.suffix else True


@record(frozen=True, slots=True, kw_only=True)
class Rule:
    """A destination whose host fits one of `match` and whose port lies in one of `ports` goes to `to`.

    match   () means any host
    ports   first and last of each range; () means any port
    to      a chain's name, "direct" or "deny"
    """

    match: tuple[Pattern, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    to: str

    def fits_port(self, port: int) -> bool:
        """Whether the rule is for this port."""
        return not self.ports or any(first <= port <= last for first, last in self.ports)


@record(frozen=True, slots=True, kw_only=True)
class Route:
    """What becomes of a destination.

    kind    "chain", "direct" or "deny"
    chain   the chain's name; None for the other kinds
    rule    what decided it, for a person: a pattern with its ports, "loopback" or "default"
    """

    kind: str
    chain: str | None = None
    rule: str


_LOOPBACK_ROUTE = Route(kind=DIRECT, rule="loopback")


class Rules:
    """The rules in order, and the chain for whatever fits none of them."""

    __slots__ = ("default", "rules")

    def __init__(self, rules: tuple[Rule, ...] = (), default: str = "default") -> None:
        self.rules = rules
        self.default = default

    def __repr__(self) -> str:
        return f"Rules({self.rules!r}, default={self.default!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rules) and (self.rules, self.default) == (other.rules, other.default)

    def __hash__(self) -> int:
        return hash((self.rules, self.default))

    def route(self, destination: Address) -> Route:
        """What becomes of this destination."""
        loopback = destination.is_loopback
        bits = bits_of(destination, loopback)
        for rule in self.rules:
            if not rule.fits_port(destination.port):
                continue
            pattern = _fitting(rule, destination, bits, loopback)
            if pattern is not None:
                return _route(rule.to, _text(rule, pattern))
        return _LOOPBACK_ROUTE if loopback else _route(self.default, "default")

    def is_direct_name(self, name: str) -> bool:
        """Whether a name is direct on every port, so that a resolver may give its real addresses.

        Raises ValueError when it can't be a name.
        """
        host = Address.of(name, 0)
        loopback = host.is_loopback
        bits = bits_of(host, loopback)
        for rule in self.rules:
            if _fitting(rule, host, bits, loopback) is None:
                continue
            if not rule.ports or rule.to != DIRECT:
                return rule.to == DIRECT
        return loopback or self.default == DIRECT


_ANY = Pattern(text="*")


def _fitting(rule: Rule, destination: Address, bits: tuple[_Bits, ...], loopback: bool) -> Pattern | None:
    for pattern in rule.match or (_ANY,):
        if (pattern.is_loopback or not loopback) and pattern.matches(destination, bits):
            return pattern
    return None


def _route(to: str, rule: str) -> Route:
    if to in (DIRECT, DENY):
        return Route(kind=to, rule=rule)
    return Route(kind="chain", chain=to, rule=rule)


def _text(rule: Rule, pattern: Pattern) -> str:
    ports = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in rule.ports)
    return f"{pattern.text} port {ports}" if ports else pattern.text


def bits_of(destination: Address, loopback: bool) -> tuple[_Bits, ...]:
    """The addresses that a host is known to have, each as its width and a number: () for an ordinary name."""
    if destination.is_name:
        return _LOCALHOST_BITS if loopback else ()
    packed = destination.packed
    return ((len(packed) * 8, int.from_bytes(packed, "big")),)


def _contains(outer: _Network, inner: _Network) -> bool:
    size, prefix, bits = outer
    return inner[0] == size and inner[1] >= prefix and inner[2] >> (inner[1] - prefix) == bits


def _network(address: str, bits: str | None) -> _Network:
    """The network of an address and the number of bits that count (None: all). Bits behind these are dropped.

    IPv4-mapped networks become IPv4, as addresses do. Raises ValueError.
    """
    family = sockets.AF_INET6 if ":" in address else sockets.AF_INET
    try:
        packed = sockets.inet_pton(family, address.removeprefix("[").removesuffix("]"))
    except (OSError, ValueError):
        raise ValueError(f"{address!a} is not an address, and a network is one with a number of bits") from None
    size = len(packed) * 8
    if bits is None:
        prefix = size
    elif bits.isascii() and bits.isdigit() and len(bits) <= 3 and int(bits) <= size:
        prefix = int(bits)
    else:
        raise ValueError(f"/{bits} is not a number of bits from 0 to {size}")
    value = int.from_bytes(packed, "big")
    if size == 128 and prefix >= 96 and value >> 32 == _MAPPED_PREFIX:
        size, prefix, value = 32, prefix - 96, value & 0xFFFFFFFF
    return size, prefix, value >> (size - prefix)
