"""The environment: lists of URLs, and no_proxy as rules."""

import pytest

from pysocksify.address import Address
from pysocksify.config.environment import direct_rules, first_set, split_urls
from pysocksify.errors import ConfigError
from pysocksify.route.rules import Rules

LISTS = [
    ("", []),
    (" \t\n", []),
    (",", []),
    ("socks5://a:1", ["socks5://a:1"]),
    ("socks5://a:1 socks5://b:2", ["socks5://a:1", "socks5://b:2"]),
    ("\tsocks5://a:1\n  socks5://b:2 ", ["socks5://a:1", "socks5://b:2"]),
    ("socks5://a:1,socks5://b:2", ["socks5://a:1", "socks5://b:2"]),
    ("socks5://a:1, http://b:2,", ["socks5://a:1", "http://b:2"]),
    ("socks5://u:p,w@a:1,socks5://u:,,p@b:2", ["socks5://u:p,w@a:1", "socks5://u:,,p@b:2"]),
    ("a:1 b:2", ["a:1", "b:2"]),  # no URLs, and each is told so
]


@pytest.mark.parametrize(("text", "urls"), LISTS)
def test_lists_of_urls(text: str, urls: list[str]) -> None:
    assert split_urls(text) == urls


def test_first_that_is_set() -> None:
    environ = {"a": "", "b": "1", "c": "2"}
    assert first_set(environ, "x", "a", "b", "c") == "b"
    assert first_set(environ, "x", "a") == ""


# no_proxy, destination, direct
EXCEPTIONS = [
    ("example.com", "example.com:80", True),
    ("example.com", "www.example.com:80", True),
    ("example.com", "badexample.com:80", False),
    ("example.com.", "www.example.com:80", True),
    (".example.com", "www.example.com:80", True),
    (".example.com", "example.com:80", True),
    ("*.example.com", "www.example.com:80", True),
    ("EXAMPLE.com", "www.example.COM:80", True),
    ("192.0.2.1", "192.0.2.1:80", True),
    ("192.0.2.1", "192.0.2.11:80", False),
    ("192.0.2.0/24", "192.0.2.11:80", True),
    ("192.0.2.0/24", "192.0.3.11:80", False),
    ("2001:db8::1", "[2001:db8::1]:80", True),
    ("[2001:db8::1]", "[2001:db8::1]:80", True),
    ("2001:db8::/32", "[2001:db8::1]:80", True),
    ("[2001:db8::1]:81", "[2001:db8::1]:80", False),
    ("[2001:db8::1]:80", "[2001:db8::1]:80", True),
    ("example.com:443", "example.com:443", True),
    ("example.com:443", "example.com:80", False),
    ("a.example,b.example c.example, ,d.example", "c.example:80", True),
    ("a.example,b.example c.example, ,d.example", "d.example:80", True),
    ("a.example,b.example c.example, ,d.example", "e.example:80", False),
    ("localhost,127.0.0.1,::1", "localhost:80", True),
    ("", "example.com:80", False),
]


@pytest.mark.parametrize(("text", "destination", "direct"), EXCEPTIONS)
def test_no_proxy(text: str, destination: str, direct: bool) -> None:
    route = Rules(direct_rules(text, "no_proxy")).route(Address.parse(destination))
    assert route.kind == ("direct" if direct else "chain")


@pytest.mark.parametrize("text", ["*", "a.example,*", "192.168.*", "10.0.0.0/40", "a.example:x", "a.example:0", "."])
def test_no_proxy_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^NO_PROXY: "):
        direct_rules(text, "NO_PROXY")
