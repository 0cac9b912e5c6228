"""Names asked without DNS messages: /etc/hosts as hosts(5) has it, then what stands in for DNS."""

import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pysocksify.address import Address
from pysocksify.reactor import Reactor
from pysocksify.route.fakeip import FakeAddresses
from pysocksify.route.rules import Pattern, Rule, Rules
from pysocksify.supervisor import lookups as module
from pysocksify.supervisor.lookups import Hosts, Lookups
from pysocksify.supervisor.names import Names
from pysocksify.supervisor.search import Search

HOSTS = """
# a comment
127.0.0.1  localhost
::1        localhost ip6-localhost
192.0.2.1  one.example   one  # behind
192.0.2.2  One.Example
fe80::1%lo scoped
2001:db8::7 only6
nonsense   line
192.0.2.9
"""
PATIENCE = 10.0
RULES = Rules((Rule(match=(Pattern.parse("*.direct.example"),), to="direct"),))

Ask = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    return path


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


@pytest.fixture
def lookups(hosts: Path, reactor: Reactor, request: pytest.FixtureRequest) -> Lookups:
    system: bool = getattr(request, "param", False)
    names = Names(FakeAddresses(), RULES, Search(lambda: ""), ipv6=True)
    return Lookups(reactor, names, Hosts([str(hosts)]), system=system, ipv6=True)


@pytest.fixture
def ask(lookups: Lookups, reactor: Reactor) -> Ask:
    """Asks for a name, and waits."""

    def asked(name: str | bytes, family: int = socket.AF_UNSPEC) -> tuple[int, list[str], str]:
        told: list[tuple[int, list[str], str]] = []

        def found(error: int, addresses: Sequence[str], canonical: str) -> None:
            told.append((error, list(addresses), canonical))

        lookups.by_name(name if isinstance(name, bytes) else name.encode(), family, found)
        end = reactor.now() + PATIENCE
        while not told:
            assert reactor.now() < end
            reactor.call_at(reactor.now() + 0.1, lambda: None)
            reactor.run_once()
        return told[0]

    return asked


class TestHosts:
    """The file itself."""

    def test_aliases_and_families(self, ask: Ask) -> None:
        assert ask("localhost") == (0, ["::1", "127.0.0.1"], "localhost")
        assert ask("LOCALHOST.", socket.AF_INET) == (0, ["127.0.0.1"], "localhost")
        assert ask("one") == (0, ["192.0.2.1"], "one.example")
        assert ask("one.example") == (0, ["192.0.2.1", "192.0.2.2"], "one.example")
        assert ask("scoped") == (0, ["fe80::1"], "scoped")

    def test_a_family_that_is_not_there(self, ask: Ask) -> None:
        assert ask("only6", socket.AF_INET)[0] == errno.ENOENT

    def test_it_is_read_again(self, hosts: Path, ask: Ask) -> None:
        assert ask("new")[1][0].startswith("198.18.")
        hosts.write_text("192.0.2.44 new\n")
        assert ask("new") == (0, ["192.0.2.44"], "new")
        hosts.unlink()
        assert ask("new")[1][0].startswith("198.18.")

    def test_of_a_process(self) -> None:
        expected = Hosts(["/etc/hosts"]).addresses("localhost")
        assert Hosts.of_process(os.getpid()).addresses("localhost") == expected
        assert Hosts.of_process(2**22 + 1).addresses("localhost") == expected  # one that is gone: our own


class TestNames:
    """What isn't in the file."""

    def test_fake(self, ask: Ask) -> None:
        error, (four, six), canonical = ask("Some.Example")
        assert (error, canonical) == (0, "some.example")
        assert four.startswith("198.18.")
        assert six.startswith("fd")
        assert ask("some.example.") == (0, [four, six], canonical)
        assert ask("some.example", socket.AF_INET6)[1] == [six]

    @pytest.mark.parametrize("name", ["", "192.0.2.1", "::1", "127.1", "a b", b"\xff"])
    def test_no_name(self, ask: Ask, name: str | bytes) -> None:
        assert ask(name)[0] == errno.ENOENT

    @pytest.mark.parametrize(
        ("failure", "number"),
        [
            (socket.EAI_NONAME, errno.ENOENT),
            (socket.EAI_NODATA, errno.ENODATA),
            (socket.EAI_AGAIN, errno.EAGAIN),
            (socket.EAI_FAIL, errno.EIO),
        ],
    )
    def test_direct_that_fails(self, ask: Ask, monkeypatch: pytest.MonkeyPatch, failure: int, number: int) -> None:
        def fails(name: str) -> list[str]:
            raise socket.gaierror(failure, "as told")

        monkeypatch.setattr(module, "addresses_here", fails)
        assert ask("a.direct.example")[0] == number

    def test_direct(self, ask: Ask, lookups: Lookups, monkeypatch: pytest.MonkeyPatch) -> None:
        """Real addresses, and rules about the name hold for them."""
        monkeypatch.setattr(module, "addresses_here", lambda name: ["203.0.113.5"])
        assert ask("a.direct.example") == (0, ["203.0.113.5"], "a.direct.example")
        assert ask("a.direct.example", socket.AF_INET6)[0] == errno.ENODATA
        assert lookups._names.destination(Address("203.0.113.5", 80)).host == "a.direct.example"

    @pytest.mark.parametrize("lookups", [True], indirect=True)
    def test_system(self, ask: Ask, lookups: Lookups, monkeypatch: pytest.MonkeyPatch) -> None:
        """Everything is looked up here, and stands for no name afterwards."""
        monkeypatch.setattr(module, "addresses_here", lambda name: ["203.0.113.6", "2001:db8::6"])
        assert ask("any.example")[1] == ["203.0.113.6", "2001:db8::6"]
        assert lookups._names.destination(Address("203.0.113.6", 80)).host == "203.0.113.6"
        assert ask("one")[1] == ["192.0.2.1"]


def pointer(lookups: Lookups, reactor: Reactor, host: str) -> str | None:
    told: list[str | None] = []
    lookups.by_address(Address.of(host, 0), told.append)
    while not told:
        reactor.call_at(reactor.now() + 0.1, lambda: None)
        reactor.run_once()
    return told[0]


def test_addresses(lookups: Lookups, reactor: Reactor, ask: Ask) -> None:
    fake = ask("some.example")[1]
    assert [pointer(lookups, reactor, host) for host in fake] == ["some.example"] * 2
    assert pointer(lookups, reactor, "192.0.2.1") == "one.example"
    assert pointer(lookups, reactor, "127.0.0.9") == "localhost"
    assert pointer(lookups, reactor, "203.0.113.77") is None


@pytest.mark.parametrize("lookups", [True], indirect=True)
def test_addresses_of_the_system(lookups: Lookups, reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "name_here", lambda host: f"name-of-{host}")
    assert pointer(lookups, reactor, "192.0.2.1") == "one.example"
    assert pointer(lookups, reactor, "203.0.113.77") == "name-of-203.0.113.77"
