"""The files of conf/: each is loaded, and says what its comment promises."""

from pathlib import Path

import pytest

from pysocksify.address import Address
from pysocksify.config import Config, load
from pysocksify.options import Options

CONF = Path(__file__).parent.parent.parent / "conf"


def loaded(name: str) -> Config:
    return load(Options(command=("true",), config=str(CONF / name)), {})


@pytest.mark.parametrize("path", sorted(set(CONF.glob("*.toml")) - {CONF / "server.toml"}), ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    config = loaded(path.name)
    assert config.chains[0].name == "default"
    assert all(chain.hops for chain in config.chains)
    assert path.read_text(encoding="utf-8").startswith("#")


CASES = [
    ("single.toml", "strict", 1, ["socks5://127.0.0.1:1080"]),
    ("chain.toml", "strict", 3, ["socks5://127.0.0.1:1080", "socks4a://192.0.2.10:1080", "http://proxy.example:3128"]),
    ("dynamic.toml", "dynamic", 3, [f"socks5://192.0.2.{n}:1080" for n in (1, 2, 3)]),
    ("random.toml", "random", 2, [*(f"socks5://192.0.2.{n}:1080" for n in (1, 2, 3)), "http://192.0.2.4:3128"]),
    ("round_robin.toml", "round_robin", 1, [f"socks5://192.0.2.{n}:1080" for n in (1, 2, 3)]),
    ("tor.toml", "strict", 1, ["socks5://127.0.0.1:9050"]),
]


@pytest.mark.parametrize(("name", "mode", "length", "hops"), CASES)
def test_chain(name: str, mode: str, length: int, hops: list[str]) -> None:
    chain = loaded(name).chains[0]
    assert (chain.mode, chain.length, [str(hop) for hop in chain.hops]) == (mode, length, hops)


def test_credentials() -> None:
    hops = loaded("credentials.toml").chains[0].hops
    assert [(hop.username, hop.password) for hop in hops] == [
        (b"alice", b"s cret@home"),
        (b"bob", None),
        (b"carol", b"p%ss"),
    ]


ROUTES = [
    ("office.toml", "192.168.10.7:22", "direct", None),
    ("office.toml", "[fd00:10::7]:22", "direct", None),
    ("office.toml", "wiki.corp.example:443", "chain", "office-web"),
    ("office.toml", "wiki.corp.example:8500", "chain", "office-web"),
    ("office.toml", "wiki.corp.example:22", "chain", "office"),
    ("office.toml", "corp.example:443", "chain", "office"),
    ("office.toml", "10.200.0.1:5432", "chain", "office"),
    ("office.toml", "mail.example:25", "deny", None),
    ("office.toml", "example.com:443", "chain", "default"),
    ("office.toml", "127.0.0.1:25", "direct", None),
    ("allow_list.toml", "www.example.com:443", "chain", "default"),
    ("allow_list.toml", "www.example.com:80", "deny", None),
    ("allow_list.toml", "203.0.113.1:443", "deny", None),
    ("allow_list.toml", "127.0.0.1:6379", "deny", None),
    ("allow_list.toml", "localhost:6379", "deny", None),
]


@pytest.mark.parametrize(("name", "destination", "kind", "chain"), ROUTES)
def test_routes(name: str, destination: str, kind: str, chain: str | None) -> None:
    route = loaded(name).rules.route(Address.parse(destination))
    assert (route.kind, route.chain) == (kind, chain)
