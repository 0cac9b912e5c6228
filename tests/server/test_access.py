"""Rules of access: who may reach what, and what nobody reaches by a detour."""

import pytest

from pysocksify.address import Address
from pysocksify.codes import Command
from pysocksify.route.rules import Pattern
from pysocksify.server.access import ANYBODY, Access, AccessRule

CONNECT, BIND, UDP = Command.CONNECT, Command.BIND, Command.UDP_ASSOCIATE
LOCAL = Address("127.0.0.1", 40000)
REMOTE = Address("192.0.2.7", 40000)
OWN = [
    "127.0.0.1", "127.255.255.254", "::1", "0.0.0.0", "::", "localhost", "db.localhost", "::ffff:127.0.0.1",
    "::ffff:0.0.0.0", "0:0:0:0:0:0:0:1", "LOCALHOST.",
]  # fmt: skip


def rule(
    action: str,
    to: str = "",
    *,
    users: str = "",
    sources: str = "",
    ports: tuple[tuple[int, int], ...] = (),
    commands: tuple[Command, ...] = (),
) -> AccessRule:
    return AccessRule(
        text=f"{action} {to}",
        allow=action == "allow",
        users=tuple(users.split()),
        sources=tuple(Pattern.parse(text) for text in sources.split()),
        destinations=tuple(Pattern.parse(text) for text in to.split()),
        ports=ports,
        commands=commands,
    )


def allows(
    access: Access,
    host: str,
    port: int = 80,
    *,
    user: str | None = None,
    source: Address = REMOTE,
    command: Command = CONNECT,
    resolved_here: bool = False,
) -> bool:
    decision = access.decide(
        user=user,
        source=source,
        command=command,
        destination=Address.of(host, port),
        resolved_here=resolved_here,
    )
    assert bool(decision) is decision.allowed
    return decision.allowed


def reaches(
    access: Access,
    name: str,
    address: str,
    *,
    port: int = 80,
    source: Address = REMOTE,
    command: Command = CONNECT,
    user: str | None = None,
) -> bool:
    return access.may_reach(
        user=user,
        source=source,
        command=command,
        destination=Address.of(name, port),
        address=Address.of(address, port),
    ).allowed


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.com", "10.1.2.3"])
@pytest.mark.parametrize("source", [LOCAL, REMOTE])
def test_without_rules_all_but_the_own_loopback(host: str, source: Address) -> None:
    assert allows(Access(), host, source=source)


@pytest.mark.parametrize("host", OWN)
@pytest.mark.parametrize("command", [CONNECT, UDP])
def test_own_loopback_is_for_those_on_this_machine(host: str, command: Command) -> None:
    assert not allows(Access(), host, command=command)
    assert allows(Access(), host, command=command, source=LOCAL)
    assert allows(Access(), host, command=command, source=Address("::1", 40000))


@pytest.mark.parametrize("host", OWN)
@pytest.mark.parametrize("to", ["", "*", "0.0.0.0/0 ::/0", "example.com", "*.com", "10.0.0.0/8"])
def test_a_rule_that_doesnt_mean_loopback_doesnt_open_it(host: str, to: str) -> None:
    access = Access([rule("allow", to)])
    assert not allows(access, host)
    decision = access.decide(user=None, source=REMOTE, command=CONNECT, destination=Address.of(host, 80))
    assert decision.rule == "own loopback"


@pytest.mark.parametrize(
    ("to", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.0/8", "127.1.2.3"),
        ("localhost", "127.0.0.1"),
        ("localhost", "localhost"),
        ("localhost", "::1"),
        ("::1", "::1"),
        ("*.localhost", "db.localhost"),
        ("0.0.0.0", "0.0.0.0"),
    ],
)
def test_a_rule_that_means_loopback_opens_it(to: str, host: str) -> None:
    access = Access([rule("allow", to, ports=((5432, 5432),))])
    assert allows(access, host, 5432)
    assert not allows(access, host, 5433)


def test_a_rule_denies_loopback_to_those_on_this_machine_too() -> None:
    access = Access([rule("deny", "0.0.0.0/0")])
    assert not allows(access, "127.0.0.1", source=LOCAL)
    assert allows(access, "::1", source=LOCAL)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::ffff:127.0.0.1", "127.8.8.8"])
@pytest.mark.parametrize("rules", [[], [rule("allow", "*")], [rule("allow", "rebound.example")]])
def test_a_name_that_resolves_to_loopback(address: str, rules: list[AccessRule]) -> None:
    access = Access(rules)
    assert allows(access, "rebound.example")
    assert not reaches(access, "rebound.example", address)
    assert reaches(access, "rebound.example", address, source=LOCAL)
    assert reaches(access, "rebound.example", "192.0.2.1")
    assert reaches(Access([rule("allow", "127.0.0.0/8 ::1 ::/128 0.0.0.0")]), "rebound.example", address)


def test_a_network_is_denied_by_name_too() -> None:
    access = Access([rule("allow", "*.corp.example"), rule("deny", "10.0.0.0/8"), rule("allow", "*")])
    assert not allows(access, "10.1.1.1")
    assert allows(access, "other.example")
    assert not reaches(access, "other.example", "10.1.1.1")
    assert reaches(access, "other.example", "192.0.2.1")
    assert reaches(access, "www.corp.example", "10.1.1.1")


def test_a_network_is_allowed_by_name_where_the_name_is_looked_up_here() -> None:
    access = Access([rule("allow", "10.0.0.0/8", ports=((443, 443),))], default=False)
    assert allows(access, "10.1.1.1", 443)
    assert not allows(access, "www.corp.example", 443)  # who knows what it is for the chain's last proxy
    assert allows(access, "www.corp.example", 443, resolved_here=True)
    assert not allows(access, "www.corp.example", 80, resolved_here=True)
    assert not allows(access, "192.0.2.1", 443, resolved_here=True)
    assert reaches(access, "www.corp.example", "10.1.1.1", port=443)
    assert not reaches(access, "www.corp.example", "192.0.2.1", port=443)


def test_the_first_rule_that_matches_decides() -> None:
    rules = [rule("deny", "10.0.0.1"), rule("allow", "10.0.0.0/24"), rule("deny", "10.0.0.0/8"), rule("allow")]
    access = Access(rules, default=False)
    assert [allows(access, host) for host in ("10.0.0.1", "10.0.0.2", "10.0.1.1", "11.0.0.1", "example.com")] == [
        False, True, False, True, True,
    ]  # fmt: skip
    decision = access.decide(user=None, source=REMOTE, command=CONNECT, destination=Address("10.0.1.1", 80))
    assert decision.rule == "deny 10.0.0.0/8"


def test_default() -> None:
    decision = Access(default=False).decide(user=None, source=REMOTE, command=CONNECT, destination=Address("a", 1))
    assert (decision.allowed, decision.rule) == (False, "default")
    assert not allows(Access(default=False), "127.0.0.1", source=LOCAL)


def test_users() -> None:
    access = Access([rule("allow", users="alice b%3Ab"), rule("deny", users=ANYBODY)], default=True)
    assert allows(access, "example.com", user="alice")
    assert allows(access, "example.com", user="b%3Ab")
    assert not allows(access, "example.com", user="carol")
    assert not allows(access, "example.com", user="Alice")
    assert allows(access, "example.com", user=None)
    assert not allows(Access([rule("allow", users=ANYBODY)], default=False), "example.com", user=None)


@pytest.mark.parametrize(
    ("sources", "source", "matches"),
    [
        ("192.0.2.0/24", "192.0.2.7", True),
        ("192.0.2.0/24", "192.0.3.7", False),
        ("192.0.2.0/24 2001:db8::/32", "2001:db8::7", True),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("127.0.0.0/8", "127.0.0.1", True),
        ("127.0.0.0/8", "::1", False),
    ],
)
def test_sources(sources: str, source: str, matches: bool) -> None:
    access = Access([rule("allow", sources=sources)], default=False)
    assert allows(access, "example.com", source=Address.of(source, 1)) is matches


def test_ports_and_commands() -> None:
    access = Access(
        [rule("allow", ports=((80, 80), (8000, 8999)), commands=(CONNECT,)), rule("allow", commands=(UDP,))],
        default=False,
    )
    assert [allows(access, "a.example", port) for port in (79, 80, 81, 8000, 8999, 9000)] == [
        False, True, False, True, True, False,
    ]  # fmt: skip
    assert allows(access, "a.example", 53, command=UDP)
    assert not allows(access, "a.example", 80, command=BIND)


@pytest.mark.parametrize(
    ("rules", "default", "allowed"),
    [
        ([], True, True),
        ([], False, False),
        ([rule("deny", commands=(UDP, BIND))], True, False),
        ([rule("deny", commands=(CONNECT,))], True, True),
        ([rule("deny", "10.0.0.0/8")], True, True),
        ([rule("deny", ports=((53, 53),))], True, True),
        ([rule("allow", "10.0.0.0/8")], False, True),
        ([rule("deny", "10.0.0.0/8"), rule("deny")], True, False),
        ([rule("deny"), rule("allow", "10.0.0.0/8")], True, False),
        ([rule("deny", sources="192.0.2.0/24")], True, False),
    ],
)
def test_a_destination_that_isnt_known_yet(rules: list[AccessRule], default: bool, allowed: bool) -> None:
    access = Access(rules, default=default)
    assert access.decide(user=None, source=REMOTE, command=UDP, destination=None).allowed is allowed
    for anybody in ("0.0.0.0", "::"):
        assert allows(access, anybody, command=BIND) is allowed


def test_who_connects_to_a_bind_for_anybody_is_judged_by_its_address() -> None:
    access = Access([rule("deny", "10.0.0.0/8")])
    assert not reaches(access, "0.0.0.0", "10.1.1.1", command=BIND)
    assert reaches(access, "0.0.0.0", "192.0.2.1", command=BIND)
    assert not reaches(access, "0.0.0.0", "127.0.0.1", command=BIND)
    assert reaches(access, "0.0.0.0", "127.0.0.1", command=BIND, source=LOCAL)


@pytest.mark.parametrize("host", ["64:ff9b::a01:101", "2002:a01:101::1", "::ffff:10.1.1.1"])
def test_an_ipv4_address_in_an_ipv6_one(host: str) -> None:
    """It's denied as what it leads to, and allowed only as what it is."""
    assert not allows(Access([rule("deny", "10.0.0.0/8")]), host)
    assert not reaches(Access([rule("deny", "10.0.0.0/8")]), "a.example", host)
    allowing = Access([rule("allow", "10.0.0.0/8")], default=False)
    assert allows(allowing, host) is host.startswith("::ffff:")
    assert allows(Access([rule("deny", "10.0.0.0/8")]), "2001:db8::a01:101")


@pytest.mark.parametrize("host", ["64:ff9b::7f00:1", "2002:7f00:1::1"])
def test_loopback_in_an_ipv6_address(host: str) -> None:
    assert not allows(Access(), host)
    assert not allows(Access([rule("allow", "*")]), host)
    assert allows(Access(), host, source=LOCAL)


def test_a_rule_for_users_holds_for_addresses_too() -> None:
    access = Access([rule("deny", "10.0.0.0/8", users="bob")])
    assert not reaches(access, "a.example", "10.1.1.1", user="bob")
    assert reaches(access, "a.example", "10.1.1.1", user="alice")
