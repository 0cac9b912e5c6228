"""Access: what a client may reach, by its user, its address, the command, the destination and its port.

The first rule that matches decides, else the default. Nothing is resolved for a match: a name is compared with names,
an address with networks. A name that is looked up here is judged once more with each of its addresses before that is
connected to (`may_reach`), by the first rule that matches the name or the address, so that nobody gets round "deny
10.0.0.0/8" with a name. What a chain's last proxy looks up is judged by its name alone.

The server's own loopback (127.0.0.0/8, ::1, the unspecified addresses, `localhost` and the names below it) holds what
was never meant for others. For a client that isn't on this machine a rule opens it only with a destination that means
loopback, as in `route.rules`: `*` and 0.0.0.0/0 don't, nor does a name that resolves to it. The machine's other
addresses are like any other destination: what listens there listens for others.

An IPv6 address that carries an IPv4 one, and leads to it by NAT64 or 6to4, is refused with that, too; what allows the
IPv4 address doesn't allow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pysocksify.address import Address
from pysocksify.codes import Command
from pysocksify.route.rules import Pattern, bits_of

ANYBODY = "*"  # among a rule's users: whoever has logged in
OWN_LOOPBACK = "own loopback"
DEFAULT = "default"
_NAT64 = bytes.fromhex("0064ff9b0000000000000000")  # 64:ff9b::/96
_6TO4 = bytes.fromhex("2002")  # 2002::/16


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a client may, and what says so, for a person: a rule's text, "default" or "own loopback"."""

    allowed: bool
    rule: str

    def __bool__(self) -> bool:
        return self.allowed


_GUARDED = Decision(allowed=False, rule=OWN_LOOPBACK)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRule:
    """One rule. What is empty is no condition.

    text          the rule as logs name it
    users         names as `users.shown` writes them, or "*" for whoever has logged in
    sources       networks of clients
    destinations  hosts as in `route.rules`
    ports         first and last of each range
    """

    text: str
    allow: bool
    users: tuple[str, ...] = ()
    sources: tuple[Pattern, ...] = ()
    destinations: tuple[Pattern, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    commands: tuple[Command, ...] = ()

    def is_for(self, user: str | None, source: Address, command: Command) -> bool:
        """Whether the rule is for this client and this command."""
        if self.users and (user is None or (user not in self.users and ANYBODY not in self.users)):
            return False
        if self.commands and command not in self.commands:
            return False
        bits = bits_of(source, source.is_loopback)
        return not self.sources or any(pattern.matches(source, bits) for pattern in self.sources)

    def fits_port(self, port: int) -> bool:
        """Whether the rule is for this port."""
        return not self.ports or any(first <= port <= last for first, last in self.ports)


class Access:
    """The rules in order, and whether what fits none of them is allowed."""

    __slots__ = ("_usual", "default", "rules")

    def __init__(self, rules: Sequence[AccessRule] = (), *, default: bool = True) -> None:
        self.rules = tuple(rules)
        self.default = default
        self._usual = Decision(allowed=default, rule=DEFAULT)

    def decide(
        self,
        *,
        user: str | None,
        source: Address,
        command: Command,
        destination: Address | None,
        resolved_here: bool = False,
    ) -> Decision:
        """Whether the client may ask for this.

        user            as `users.shown` writes it; None: hasn't logged in. A SOCKS4 user id that no identd confirmed
                        is none
        destination     None: not known yet, as for UDP ASSOCIATE, whose datagrams are asked about one by one. The
                        unspecified address of a BIND is taken for that, too: whoever connects is asked about then
        resolved_here   the destination's name will be looked up here, and `may_reach` asked about what comes of it

        What depends on something that isn't known yet isn't refused here when a rule allows it for some.
        """
        destination = _known(command, destination)
        rules = [rule for rule in self.rules if rule.is_for(user, source, command)]
        if destination is None:
            for rule in rules:
                open_ended = not rule.destinations and not rule.ports
                if rule.allow or open_ended:
                    return Decision(allowed=rule.allow, rule=rule.text)
            return self._usual
        guarded = _is_loopback(destination) and not source.is_loopback
        if not rules:
            return self._otherwise(guarded)
        undecided = resolved_here and destination.is_name and not destination.is_loopback
        for rule in rules:
            if not rule.fits_port(destination.port):
                continue
            by_address = any(pattern.network is not None for pattern in rule.destinations)
            if _fits(rule, (destination,), guarded) or (undecided and rule.allow and by_address):
                return Decision(allowed=rule.allow, rule=rule.text)
        return self._otherwise(guarded)

    def may_reach(
        self,
        *,
        user: str | None,
        source: Address,
        command: Command,
        destination: Address | None,
        address: Address,
    ) -> Decision:
        """Whether the client may reach this address: one that the destination's name has, before it's connected to,
        or one that connected to what BIND opened."""
        destination = _known(command, destination)
        hosts = (address,) if destination is None else (destination, address)
        guarded = _is_loopback(address) and not source.is_loopback
        for rule in self.rules:
            if rule.is_for(user, source, command) and rule.fits_port(hosts[0].port) and _fits(rule, hosts, guarded):
                return Decision(allowed=rule.allow, rule=rule.text)
        return self._otherwise(guarded)

    def _otherwise(self, guarded: bool) -> Decision:
        return _GUARDED if guarded else self._usual


def _known(command: Command, destination: Address | None) -> Address | None:
    """The destination, or None for a BIND that anybody may connect to."""
    if command == Command.BIND and destination is not None and not destination.is_name and not any(destination.packed):
        return None
    return destination


def _fits(rule: AccessRule, hosts: Sequence[Address], guarded: bool) -> bool:
    """Whether one of the hosts is meant. Of a guarded one only by a pattern that means loopback, if it allows."""
    if not rule.destinations:
        return not (guarded and rule.allow)
    if not rule.allow:
        hosts = [meant for host in hosts for meant in (host, _carried(host)) if meant is not None]
    return any(
        pattern.matches(host, bits_of(host, host.is_loopback))
        for pattern in rule.destinations
        if pattern.is_loopback or not (guarded and rule.allow)
        for host in hosts
    )


def _is_loopback(host: Address) -> bool:
    carried = _carried(host)
    return host.is_loopback or (carried is not None and carried.is_loopback)


def _carried(host: Address) -> Address | None:
    """The IPv4 address that an IPv6 address leads to: by NAT64 (RFC 6052) or 6to4 (RFC 3056). A mapped one is IPv4
    already."""
    if ":" not in host.host:
        return None
    packed = host.packed
    if packed.startswith(_NAT64):
        return Address.from_packed(packed[12:], host.port)
    return Address.from_packed(packed[2:6], host.port) if packed.startswith(_6TO4) else None
