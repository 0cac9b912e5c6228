"""Rules: patterns and what they match, the order of rules, and loopback's own."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.address import Address
from pysocksify.route.rules import Pattern, Rule, Rules


def rule(to: str, *match: str, ports: tuple[tuple[int, int], ...] = ()) -> Rule:
    return Rule(match=tuple(Pattern.parse(text) for text in match), ports=ports, to=to)


MATCHES = [
    ("192.0.2.1", "192.0.2.1", True),
    ("192.0.2.1", "192.0.2.2", False),
    ("10.0.0.0/8", "10.255.255.255", True),
    ("10.0.0.0/8", "11.0.0.0", False),
    ("10.1.2.3/8", "10.200.0.1", True),  # bits behind the network don't count
    ("10.0.0.0/8", "ten.example", False),  # names aren't resolved
    ("0.0.0.0/0", "203.0.113.1", True),
    ("0.0.0.0/0", "2001:db8::1", False),
    ("::/0", "203.0.113.1", False),
    ("2001:db8::/32", "2001:db8:ffff::1", True),
    ("2001:db8::/32", "2001:db9::1", False),
    ("2001:DB8::1", "2001:db8:0:0::1", True),
    ("[2001:db8::1]", "2001:db8::1", True),
    ("[2001:db8::]/32", "2001:db8::1", True),
    ("::ffff:10.0.0.0/104", "10.2.3.4", True),
    ("10.0.0.0/8", "::ffff:10.2.3.4", True),
    ("example.com", "example.com", True),
    ("Example.COM.", "example.com", True),
    ("example.com", "EXAMPLE.com.", True),
    ("example.com", "www.example.com", False),
    ("*.example.com", "www.example.com", True),
    ("*.example.com", "a.b.example.com", True),
    ("*.example.com", "example.com", False),
    ("*.example.com", "badexample.com", False),
    ("bücher.example", "xn--bcher-kva.example", True),
    ("*.bücher.example", "www.xn--bcher-kva.example", True),
    ("*", "example.com", True),
    ("*", "203.0.113.1", True),
    ("*", "2001:db8::1", True),
]


@pytest.mark.parametrize(("pattern", "host", "matches"), MATCHES)
def test_patterns(pattern: str, host: str, matches: bool) -> None:
    route = Rules((rule("deny", pattern),)).route(Address.of(host, 80))
    assert route.kind == ("deny" if matches else "chain")


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6), st.ip_addresses(v=4) | st.ip_addresses(v=6), st.data())
def test_networks_as_the_standard_library_has_them(
    base: ipaddress.IPv4Address | ipaddress.IPv6Address,
    host: ipaddress.IPv4Address | ipaddress.IPv6Address,
    data: st.DataObject,
) -> None:
    prefix = data.draw(st.integers(0, base.max_prefixlen))
    network = ipaddress.ip_network((base, prefix), strict=False)
    if data.draw(st.booleans()):  # else hardly ever within
        host = network[data.draw(st.integers(0, network.num_addresses - 1))]
    destination = Address.of(str(host), 80)
    if not destination.is_loopback and ipaddress.ip_address(destination.host) == host:  # not IPv4-mapped
        route = Rules((rule("deny", f"{base}/{prefix}"),)).route(destination)
        assert route.kind == ("deny" if host in network else "chain")


BAD = [
    "", "*.", "*.*", "*example.com", "a.*.example", "10.*", "*.10.0.0.1", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1",
    "2001:db8::/129", "example.com/8", "10.0.0/8", "10.0.0.300", "127.1", "example.com:80", "10.0.0.1:80", "a b",
    "http://example.com", "10.0.0.0/8/8", "10.0.0.0/٨", "/8",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_no_pattern(text: str) -> None:
    with pytest.raises(ValueError):
        Pattern.parse(text)


RULES = Rules(
    (
        rule("deny", "secret.corp.example"),
        rule("office", "10.0.0.0/8", "*.corp.example", ports=((22, 22), (8000, 8999))),
        rule("direct", "*.corp.example"),
        rule("deny", ports=((25, 25),)),
        rule("default", "mail.example"),
        rule("direct", "*.example"),
    )
)
ROUTES = [
    ("secret.corp.example:22", "deny", None, "secret.corp.example"),
    ("www.corp.example:22", "chain", "office", "*.corp.example port 22,8000-8999"),
    ("www.corp.example:8000", "chain", "office", "*.corp.example port 22,8000-8999"),
    ("www.corp.example:8999", "chain", "office", "*.corp.example port 22,8000-8999"),
    ("www.corp.example:9000", "direct", None, "*.corp.example"),
    ("10.9.9.9:22", "chain", "office", "10.0.0.0/8 port 22,8000-8999"),
    ("10.9.9.9:23", "chain", "default", "default"),
    ("mail.example:25", "deny", None, "* port 25"),
    ("mail.example:26", "chain", "default", "mail.example"),
    ("www.example:26", "direct", None, "*.example"),
    ("127.0.0.1:25", "direct", None, "loopback"),  # loopback comes before "any host"
]


@pytest.mark.parametrize(("destination", "kind", "chain", "text"), ROUTES)
def test_first_match(destination: str, kind: str, chain: str | None, text: str) -> None:
    route = RULES.route(Address.parse(destination))
    assert (route.kind, route.chain, route.rule) == (kind, chain, text)


LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "localhost", "a.localhost", "::ffff:127.0.0.1"]


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("pattern", [None, "*", "0.0.0.0/0", "::/0", "126.0.0.0/7", "*.example"])
def test_loopback_is_direct(host: str, pattern: str | None) -> None:
    rules = Rules((rule("deny", pattern),) if pattern else ())
    assert rules.route(Address.of(host, 80)).kind == "direct"


NAMED = [
    ("127.0.0.0/8", {"127.0.0.1", "127.9.9.9", "::ffff:127.0.0.1", "localhost", "a.localhost"}),
    ("127.0.0.1", {"127.0.0.1", "::ffff:127.0.0.1", "localhost", "a.localhost"}),
    ("127.9.0.0/16", {"127.9.9.9"}),
    ("::1", {"::1", "localhost", "a.localhost"}),
    ("0.0.0.0", {"0.0.0.0"}),
    ("::/128", {"::"}),
    ("localhost", set(LOOPBACK)),
    ("a.localhost", {"a.localhost"}),
    ("*.localhost", {"a.localhost"}),
]


@pytest.mark.parametrize(("pattern", "hosts"), NAMED)
def test_loopback_by_name(pattern: str, hosts: set[str]) -> None:
    rules = Rules((rule("direct", "*"), rule("deny", pattern)))  # a star doesn't mean loopback
    assert {host for host in LOOPBACK if rules.route(Address.of(host, 80)).kind == "deny"} == hosts


DIRECT_NAMES = [
    ("www.corp.example", False),  # not on port 22
    ("www.example", False),  # not on port 25
    ("localhost", True),
    ("a.localhost", True),
    ("other.test", False),
]


@pytest.mark.parametrize(("name", "direct"), DIRECT_NAMES)
def test_direct_names(name: str, direct: bool) -> None:
    assert RULES.is_direct_name(name) is direct


def test_direct_names_on_every_port() -> None:
    rules = Rules((rule("direct", "*.example", ports=((80, 80),)), rule("direct", "*.example")))
    assert rules.is_direct_name("www.example")
    assert not Rules(rules.rules[:1]).is_direct_name("www.example")
    assert Rules((), default="direct").is_direct_name("www.example")
