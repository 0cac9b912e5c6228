"""Proxy URLs: what each part means, what is refused, and that no text shows a password."""

import contextlib
import os
import pwd
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.config.urls import masked, parse_proxy
from pysocksify.errors import ConfigError

SECRET = "sesame"

# url, scheme, address, user, password
CASES = [
    ("socks5://127.0.0.1:1080", "socks5", "127.0.0.1:1080", None, None),
    ("socks5://127.0.0.1", "socks5", "127.0.0.1:1080", None, None),
    ("socks5h://127.0.0.1:9", "socks5", "127.0.0.1:9", None, None),
    ("SOCKS5H://Proxy.Example:9/", "socks5", "proxy.example:9", None, None),
    ("socks5://[::1]", "socks5", "[::1]:1080", None, None),
    ("socks5://[2001:db8::1]:65535", "socks5", "[2001:db8::1]:65535", None, None),
    ("http://proxy.example", "http", "proxy.example:3128", None, None),
    ("http://bücher.example:1", "http", "xn--bcher-kva.example:1", None, None),
    ("socks5://alice:s%20cret@h:1", "socks5", "h:1", b"alice", b"s cret"),
    ("socks5://alice:@h", "socks5", "h:1080", b"alice", b""),
    ("socks5://a%3Ab:p%40ss@h", "socks5", "h:1080", b"a:b", b"p@ss"),
    ("socks5://alice:p@ss:w/o?r#d@h:1", "socks5", "h:1", b"alice", b"p@ss:w/o?r#d"),
    ("socks5://alice:%00%ff%FF@h", "socks5", "h:1080", b"alice", b"\x00\xff\xff"),
    ("socks5://alice:é@h", "socks5", "h:1080", b"alice", b"\xc3\xa9"),
    ("socks5://alice:\udcff@h", "socks5", "h:1080", b"alice", b"\xff"),  # a byte of the command line that isn't UTF-8
    ("socks5://alice:100%25@h", "socks5", "h:1080", b"alice", b"100%"),
    ("socks5://alice:a+b@h", "socks5", "h:1080", b"alice", b"a+b"),  # a plus is a plus
    ("socks4://bob@h", "socks4", "h:1080", b"bob", None),
    ("socks4a://@h", "socks4a", "h:1080", b"", None),
    ("http://carol@h", "http", "h:3128", b"carol", b""),
    ("http://carol:x@h", "http", "h:3128", b"carol", b"x"),
    ("http://:x@h", "http", "h:3128", b"", b"x"),
    (f"socks5://{'u' * 255}:{'%00' * 255}@h", "socks5", "h:1080", b"u" * 255, bytes(255)),
    (f"http://u:{'p' * 300}@h", "http", "h:3128", b"u", b"p" * 300),  # Basic has no such limit
]


@pytest.mark.parametrize(("url", "scheme", "address", "user", "password"), CASES)
def test_urls(url: str, scheme: str, address: str, user: bytes | None, password: bytes | None) -> None:
    proxy = parse_proxy(url, "-p")
    assert (proxy.scheme, str(proxy.address), proxy.username, proxy.password) == (scheme, address, user, password)


BAD = [
    ("", "scheme://host:port"),
    ("127.0.0.1:1080", "scheme://host:port"),
    (f"alice:{SECRET}@h:1", "scheme://host:port"),
    (f"alice:{SECRET}://x@h:1", "scheme://host:port"),
    (f"https://alice:{SECRET}@h", "'https' isn't spoken"),
    (f"ssh://alice:{SECRET}@h", "'ssh' isn't spoken"),
    ("socks://h", "'socks' isn't spoken"),
    ("socks5:h", "scheme://host:port"),
    ("socks5://", "host is missing"),
    ("socks5://:1080", "host is missing"),
    ("socks5://a b:1", "not a host name"),
    (f"socks5://alice:{SECRET}", "port"),
    (f"socks5://alice:{SECRET}@", "host is missing"),
    (f"socks5://alice:{SECRET}@h:", "port"),
    (f"socks5://alice:{SECRET}@h:0", "port"),
    (f"socks5://alice:{SECRET}@h:65536", "port"),
    (f"socks5://alice:{SECRET}@h:-1", "port"),
    (f"socks5://alice:{SECRET}@h:1x", "port"),
    (f"socks5://alice:{SECRET}@h:٨", "port"),
    (f"socks5://alice%3A{SECRET}%40h:1", "percent-encoding"),
    ("socks5://::1:1080", "brackets"),
    ("socks5://[::1:1080", "brackets"),
    ("socks5://[fe80::1%25eth0]:1", "scope id"),
    ("socks5://[h]:1", "IPv6"),
    (f"socks5://alice:{SECRET}@h:1/path", "after the port"),
    (f"socks5://h/{SECRET}", "after the port"),
    (f"socks5://alice:{SECRET}%@h", "%25"),
    (f"socks5://alice:{SECRET}%4@h", "%25"),
    (f"socks5://alice:{SECRET}%zz@h", "%25"),
    (f"socks5://alice:{SECRET}%+1@h", "%25"),
    ("socks5://alice@h", "without a password"),
    (f"socks5://:{SECRET}@h", "user is empty"),
    ("socks5://@h", "without a password"),
    (f"socks5://{'u' * 256}:{SECRET}@h", "the user has 256 bytes"),
    (f"socks5://u:{SECRET}{'x' * 250}@h", "the password has 256 bytes"),
    (f"socks5://u:{'é' * 128}@h", "the password has 256 bytes"),
    (f"socks4://bob:{SECRET}@h", "no passwords"),
    (f"socks4a://bob:{SECRET}@h", "no passwords"),
    ("socks4://bob:@h", "no passwords"),
    ("socks4://b%00b@h", "NUL"),
    (f"socks4://{'u' * 256}@h", "256 bytes"),
    (f"http://a%3Ab:{SECRET}@h", "colon"),
]


@pytest.mark.parametrize(("url", "reason"), BAD)
def test_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_proxy(url, "f.toml", "hops[1]")
    text = str(caught.value)
    assert text.startswith("f.toml: hops[1]: ")
    assert reason in caught.value.reason
    assert SECRET not in text
    assert caught.value.__cause__ is None
    assert caught.value.exit_status == 125


SHOWN = [
    ("socks5://alice:sesame@h:1", "socks5://alice:***@h:1"),
    ("socks5://alice@h:1", "socks5://alice@h:1"),
    ("socks5://h", "socks5://h"),
    ("socks5://[::1]:1080", "socks5://[::1]:1080"),
    ("alice:sesame@h", "***@h"),
    ("sesame@h", "***@h"),
    ("sesame@://h@k", "***@k"),
    ("h:sesame", "h:***"),
    ("socks5://a:p@ss@wo:rd@h:1", "socks5://a:***@h:1"),
]


@pytest.mark.parametrize(("url", "shown"), SHOWN)
def test_masked(url: str, shown: str) -> None:
    assert masked(url) == shown


@given(
    st.binary(min_size=1, max_size=255),
    st.binary(max_size=255),
    st.sampled_from(["", "!$&'()*+,;=:@/?#[] é"]),
)
def test_any_bytes_percent_encoded(user: bytes, password: bytes, safe: str) -> None:
    url = f"socks5://{quote_from_bytes(user, safe='')}:{quote_from_bytes(password, safe=safe)}@h:1"
    proxy = parse_proxy(url, "-p")
    assert (proxy.username, proxy.password) == (user, password)


@given(st.text(), st.text(alphabet="abcXYZ019%@:/?#[]. \n\x00é"))
def test_any_text_is_a_proxy_or_a_config_error(start: str, rest: str) -> None:
    for url in (start, f"socks5://{rest}", f"http://u:{rest}@{start}"):
        with contextlib.suppress(ConfigError):
            assert parse_proxy(url, "-p").address.port


@given(st.text(alphabet="ghijklmnop:/?#[]@", max_size=12))
def test_masks_the_password_whatever_surrounds_it(noise: str) -> None:
    assert SECRET not in masked(f"socks5://u:{noise}{SECRET}{noise}@h:1")
    assert SECRET not in masked(f"u:{noise}{SECRET}{noise}@h:1")


def test_socks4_user_id_is_the_login_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = pwd.getpwuid(os.getuid()).pw_name
    assert parse_proxy("socks4a://h", "-p").username == name.encode()
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # in no passwd file
    assert parse_proxy("socks4://h", "-p").username == b"4000000000"
