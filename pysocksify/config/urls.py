"""Proxy URLs: `scheme://user:password@host:port`, read without a generic URL parser.

The part before the last @ holds the credentials, whatever characters they have: neither a path nor a query has a
meaning here, so "/", "?", "#" and "@" may stand in a password as they are. Percent-encoding (RFC 3986 section 2.1)
gives any byte; a percent sign itself is written %25.
"""

import os

from pysocksify.address import Address
from pysocksify.errors import ConfigError
from pysocksify.route.chain import Proxy

# socks5h is curl's word for "the proxy resolves the name", which is what happens here anyway.
SCHEMES = {"socks4": "socks4", "socks4a": "socks4a", "socks5": "socks5", "socks5h": "socks5", "http": "http"}
# 1080 is registered for SOCKS; 3128 is what Squid and, after it, most HTTP proxies listen on.
DEFAULT_PORTS = {"socks4": 1080, "socks4a": 1080, "socks5": 1080, "http": 3128}
# One byte counts them in RFC 1929 section 2; servers keep about as much of a SOCKS4 user id.
_CREDENTIAL_LIMIT = 255

_MASK = "***"
# RFC 3986 section 3.1.
_SCHEME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.")
_HEXADECIMAL = frozenset(b"0123456789abcdefABCDEF")


def parse_proxy(url: str, source: str, key: str = "") -> Proxy:
    """The proxy that a URL names. A SOCKS4 user id that isn't given is the user's login name.

    Raises ConfigError, which says where the URL stands (`source`, `key`) and shows it without its password.
    """
    try:
        return _parse(url)
    except ValueError as error:
        raise ConfigError(source, key, f"{masked(url)}: {error}") from None


def masked(url: str) -> str:
    """The URL as it may be shown. Whatever might be a password is masked, in a URL of any form and in none."""
    scheme, separator, rest = url.partition("://")
    if not _SCHEME_CHARACTERS.issuperset(scheme):
        scheme, separator, rest = "", "", url
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    if credentials and scheme.lower() not in SCHEMES:  # who knows what these are
        credentials = _MASK
    elif colon:
        credentials = f"{user}:{_MASK}"
    for end in "/?#":
        place = place.partition(end)[0]
    if "%" in place:
        place = _MASK
    host, colon, port = place.rpartition(":")
    if colon and port and not place.endswith("]") and not (port.isdigit() and len(port) <= 5):
        place = f"{host}:{_MASK}"
    return f"{scheme}{separator}{credentials}{at}{place}"


def _parse(url: str) -> Proxy:
    """parse_proxy with ValueError instead of ConfigError; its texts hold nothing of the credentials."""
    written, separator, rest = url.partition("://")
    scheme = SCHEMES.get(written.lower())
    if not separator or not _SCHEME_CHARACTERS.issuperset(written):
        raise ValueError("a proxy is written scheme://host:port, for example socks5://127.0.0.1:1080")
    if scheme is None:
        raise ValueError(f"the scheme {written!a} isn't spoken here ({', '.join(SCHEMES)} are)")
    credentials, at, place = rest.rpartition("@")
    address = _address(place.removesuffix("/"), DEFAULT_PORTS[scheme])
    user, colon, secret = credentials.partition(":")
    username = _unquoted(user) if at else None
    password = _unquoted(secret) if colon else None
    if scheme in ("socks4", "socks4a"):
        username = _userid(username, password)
    elif scheme == "socks5":
        _check_socks5(username, password)
    elif username is not None:
        if b":" in username:
            raise ValueError("the user holds a colon, which ends it in HTTP Basic (RFC 7617 section 2)")
        password = password or b""
    return Proxy(scheme=scheme, address=address, username=username, password=password)


def _address(place: str, default_port: int) -> Address:
    host, colon, port = place.rpartition(":")
    if place.endswith("]") or not colon:
        host, port = place, str(default_port)
    if "/" in host or "/" in port:
        raise ValueError("nothing comes after the port")
    if "%" in host:
        raise ValueError("a host has neither percent-encoding nor a scope id")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("an IPv6 address stands in brackets, as in socks5://[::1]:1080")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError("the port is not a number from 1 to 65535")
    if not host:
        raise ValueError("the host is missing")
    return Address.of(host, int(port))


def _unquoted(text: str) -> bytes:
    """The bytes that percent-encoded text stands for; other characters are their UTF-8, or the bytes the shell gave."""
    first, *others = text.encode("utf-8", "surrogateescape").split(b"%")
    result = bytearray(first)
    for part in others:
        digits = part[:2]
        if len(digits) != 2 or not _HEXADECIMAL.issuperset(digits):
            raise ValueError("a percent sign in the user or password needs two hexadecimal digits after it, or be %25")
        result.append(int(digits, 16))
        result += part[2:]
    return bytes(result)


def _userid(username: bytes | None, password: bytes | None) -> bytes:
    if password is not None:
        raise ValueError("SOCKS4 has no passwords, only a user id, as in socks4://alice@host")
    if username is None:
        return _login_name()
    if b"\x00" in username:
        raise ValueError("a NUL byte ends a SOCKS4 user id, so none can be in it")
    if len(username) > _CREDENTIAL_LIMIT:
        raise ValueError(f"the user id has {len(username)} bytes, {_CREDENTIAL_LIMIT} are the most")
    return username


def _check_socks5(username: bytes | None, password: bytes | None) -> None:
    if username is None:
        return
    if password is None:
        raise ValueError("a user without a password (RFC 1929 has both; for an empty one write user:@host)")
    if not username:
        raise ValueError("the user is empty, which RFC 1929 doesn't allow")
    for what, value in (("user", username), ("password", password)):
        if len(value) > _CREDENTIAL_LIMIT:
            raise ValueError(f"the {what} has {len(value)} bytes, RFC 1929 allows {_CREDENTIAL_LIMIT}")


def _login_name() -> bytes:
    import pwd

    try:
        return os.fsencode(pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:  # an account that exists by number only, as in many containers
        return str(os.getuid()).encode()
