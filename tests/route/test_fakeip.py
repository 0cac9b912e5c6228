"""Fake addresses: what they look like, that they come back as names, and who loses a place when all are taken."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.route.fakeip import IPV4_NETWORK, IPV6_NETWORK, LARGEST, FakeAddresses, is_fake


def test_first_addresses() -> None:
    table = FakeAddresses()
    assert table.of("a.example") == ("198.18.1.1", "fd73:6f63:6b73::c612:101")
    assert table.of("b.example") == ("198.18.1.2", "fd73:6f63:6b73::c612:102")
    assert table.of("A.Example.") == table.of("a.example")
    assert len(table) == 2


def test_every_place() -> None:
    table = FakeAddresses()
    four, six = ipaddress.ip_network(IPV4_NETWORK), ipaddress.ip_network(IPV6_NETWORK)
    seen = set()
    for index in range(LARGEST):
        pair = table.of(f"n{index}.example")
        first, second = (ipaddress.ip_address(text) for text in pair)
        assert (str(first), str(second)) == pair  # canonical, so that texts can be compared
        assert first in four
        assert second in six
        assert first.packed[-1] not in (0, 255)
        assert second.packed[-4:] == first.packed
        assert first.packed[:3] != bytes((198, 18, 0))
        seen.add(pair)
    assert len(seen) == len(table) == LARGEST
    assert table.name("198.18.1.1") == "n0.example"
    assert table.name("198.19.255.254") == f"n{LARGEST - 1}.example"
    table.of("one.more.example")  # the place of n1: n0 has just been used
    assert table.name("198.18.1.2") == "one.more.example"
    assert table.name("198.18.1.1") == "n0.example"


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60), st.integers(1, 5))
def test_least_recently_used(names: list[str], capacity: int) -> None:
    table = FakeAddresses(capacity)
    recent: list[str] = []
    for name in names:
        four, six = table.of(name)
        recent = [*(other for other in recent if other != name), name][-capacity:]
        assert table.name(four) == table.name(six) == name
        assert len(table) == len(recent)
    for name in recent:
        assert table.name(table.of(name)[0]) == name
    assert len({table.of(name) for name in recent}) == len(recent)


CASES = [
    ("198.18.0.1", True),  # ours, never a name's
    ("198.18.1.0", True),
    ("198.18.1.255", True),
    ("198.19.255.255", True),
    ("198.20.0.1", False),
    ("198.17.255.255", False),
    ("fd73:6f63:6b73::", True),
    ("fd73:6f63:6b73::c612:2", True),
    ("fd73:6f63:6b73:0:ffff::1", True),
    ("fd73:6f63:6b73:1::c612:101", False),
    ("::1", False),
    ("::ffff:198.18.1.1", False),  # Address makes it IPv4 before
    ("example.com", False),
    ("", False),
    ("198.18.1", False),
]


@pytest.mark.parametrize(("address", "fake"), CASES)
def test_addresses_without_a_name(address: str, fake: bool) -> None:
    table = FakeAddresses()
    table.of("a.example")
    assert table.name(address) is None
    assert is_fake(address) is fake


def test_needs_a_place() -> None:
    with pytest.raises(ValueError):
        FakeAddresses(0)
