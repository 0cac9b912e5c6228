"""Address: what hosts and ports become, in text, in bytes and in the kernel's structures."""

import ctypes
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.address import Address

LITTLE = sys.byteorder == "little"
IN = b"\x02\x00" if LITTLE else b"\x00\x02"
IN6 = socket.AF_INET6.to_bytes(2, sys.byteorder)


@pytest.mark.parametrize(
    ("host", "canonical", "family"),
    [
        ("192.0.2.1", "192.0.2.1", socket.AF_INET),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1", socket.AF_INET6),
        ("[2001:db8::1]", "2001:db8::1", socket.AF_INET6),
        ("::ffff:192.0.2.1", "192.0.2.1", socket.AF_INET),
        ("::FFFF:c000:0201", "192.0.2.1", socket.AF_INET),
        ("fe80::1%eth0", "fe80::1", socket.AF_INET6),
        ("Example.COM", "example.com", None),
        ("example.com.", "example.com", None),
        ("_sip._tcp.example", "_sip._tcp.example", None),
        ("a-1", "a-1", None),
        ("bücher.example", "xn--bcher-kva.example", None),
        ("1.2.3.4.example", "1.2.3.4.example", None),
        ("1.2.3.4.5", "1.2.3.4.5", None),
        ("a" * 255, "a" * 255, None),
    ],
)
def test_hosts(host: str, canonical: str, family: int | None) -> None:
    address = Address.of(host, 80)
    assert address == Address(canonical, 80)
    assert address.family == family
    assert address.is_name == (family is None)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("", "empty"),
        (".", "empty"),
        ("a..b", "part of it is empty"),
        ("a..", "part of it is empty"),
        ("127.0.0.1..", "part of it is empty"),
        (".a", "part of it is empty"),
        ("a" * 256, "256 bytes"),
        ("a b", "holds ' '"),
        ("a\0b", "holds"),
        ("a\r\nHost", "holds"),
        ("user@host", "holds '@'"),
        ("a/b", "holds '/'"),
        ("[a]", "brackets"),
        ("1::2::3", "not an IPv6 address"),
        ("::g", "not an IPv6 address"),
        ("\u00ad", "empty"),
        ("ü" * 70, "not a host name"),
        ("127.1", "unusual form"),
        ("0x7f000001", "unusual form"),
        ("017700000001", "unusual form"),
        ("010.0.0.1", "unusual form"),
    ],
)
def test_no_hosts(host: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        Address.of(host, 80)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("port", [-1, 65536])
def test_no_ports(port: int) -> None:
    with pytest.raises(ValueError, match="not within 0-65535"):
        Address.of("a", port)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.com:80", "example.com", 80),
        ("192.0.2.1:0", "192.0.2.1", 0),
        ("[::1]:65535", "::1", 65535),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1", 80),
    ],
)
def test_parse(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)
    assert Address.parse(text, 1) == Address(host, port)


@pytest.mark.parametrize(("text", "host"), [("example.com", "example.com"), ("[::1]", "::1")])
def test_parse_with_a_default_port(text: str, host: str) -> None:
    assert Address.parse(text, 1080) == Address(host, 1080)
    with pytest.raises(ValueError, match="no port number"):
        Address.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "", ":80", "a:", "[::1]:", "a:b", "a:-1", "a:+1", "a: 1", "a:1_0", "a:٣", "a:65536", "a:000000080",
        "::1:80", "::1", "[::1", "[::1]80", "[a]:80", "[127.0.0.1]:80", "a:80:90",
    ],
)  # fmt: skip
def test_no_parse(text: str) -> None:
    for default in (None, 1080):
        with pytest.raises(ValueError):
            Address.parse(text, default)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("example.com", 80), "example.com:80"),
        (Address("192.0.2.1", 80), "192.0.2.1:80"),
        (Address("2001:db8::1", 80), "[2001:db8::1]:80"),
    ],
)
def test_text(address: Address, text: str) -> None:
    assert str(address) == text
    assert Address.parse(text) == address


# struct sockaddr_in, ip(7); struct sockaddr_in6, ipv6(7).
@pytest.mark.parametrize(
    ("data", "address", "family", "exact"),
    [
        (IN + b"\x00\x50" + b"\xc0\x00\x02\x01" + bytes(8), Address("192.0.2.1", 80), socket.AF_INET, True),
        (IN + b"\x00\x50" + b"\xc0\x00\x02\x01" + b"\xff" * 12, Address("192.0.2.1", 80), socket.AF_INET, False),
        (
            IN6 + b"\x1f\x90" + bytes(4) + b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01" + bytes(4),
            Address("2001:db8::1", 8080),
            socket.AF_INET6,
            True,
        ),
        (
            IN6 + b"\x1f\x90" + b"\x00\x01\x02\x03" + b"\xfe\x80" + bytes(13) + b"\x01" + b"\x02\x00\x00\x00",
            Address("fe80::1", 8080),
            socket.AF_INET6,
            False,
        ),
        (
            IN6 + b"\x1f\x90" + bytes(4) + bytes(10) + b"\xff\xff\xc0\x00\x02\x01" + bytes(4),
            Address("192.0.2.1", 8080),
            socket.AF_INET6,
            True,
        ),
        (IN6 + b"\x1f\x90" + bytes(4) + bytes(15) + b"\x01", Address("::1", 8080), socket.AF_INET6, False),
    ],
)
def test_sockaddr(data: bytes, address: Address, family: int, exact: bool) -> None:
    assert Address.from_sockaddr(data) == address
    if exact:
        assert address.to_sockaddr(family) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        IN,
        IN + bytes(13),
        IN6 + bytes(21),
        socket.AF_UNIX.to_bytes(2, sys.byteorder) + b"/run/nscd/socket\0",
        bytes(28),
    ],
)
def test_no_sockaddr(data: bytes) -> None:
    assert Address.from_sockaddr(data) is None


@pytest.mark.parametrize(
    ("address", "family"),
    [
        (Address("example.com", 80), socket.AF_INET),
        (Address("example.com", 80), socket.AF_INET6),
        (Address("2001:db8::1", 80), socket.AF_INET),
        (Address("192.0.2.1", 80), socket.AF_UNIX),
    ],
)
def test_no_sockaddr_of_that_family(address: Address, family: int) -> None:
    with pytest.raises(ValueError):
        address.to_sockaddr(family)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_kernel_takes_our_sockaddr(family: socket.AddressFamily) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_INET) as listener, socket.socket(family) as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        data = Address(*listener.getsockname()).to_sockaddr(family)
        assert libc.connect(client.fileno(), data, len(data)) == 0, ctypes.get_errno()
        size = ctypes.c_uint32(128)
        got = ctypes.create_string_buffer(128)
        assert libc.getpeername(client.fileno(), got, ctypes.byref(size)) == 0
        assert got.raw[: size.value] == data
        assert Address.from_sockaddr(got.raw[: size.value]) == Address(*listener.getsockname())


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.255.0.9", True), ("::1", True), ("0.0.0.0", True), ("::", True),
        ("::ffff:127.0.0.1", True), ("localhost", True), ("LOCALHOST.", True), ("a.localhost", True),
        ("128.0.0.1", False), ("0.0.0.1", False), ("::2", False), ("notlocalhost", False), ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert Address.of(host, 80).is_loopback == loopback


@pytest.mark.parametrize(
    ("name", "host"),
    [(b"Example.com", "example.com"), (b"192.0.2.1", "192.0.2.1"), (b"::1", "::1"), ("ü.de".encode(), "xn--tda.de")],
)
def test_names_on_the_wire(name: bytes, host: str) -> None:
    assert Address.from_wire_name(name, 80) == Address(host, 80)


@pytest.mark.parametrize("name", [b"", b"\xff\xfe", b"a\0b", b"a b"])
def test_no_names_on_the_wire(name: bytes) -> None:
    with pytest.raises(ValueError):
        Address.from_wire_name(name, 80)


@given(st.text(max_size=300), st.integers(0, 65535))
def test_any_host_is_canonical_or_refused(host: str, port: int) -> None:
    try:
        address = Address.of(host, port)
    except ValueError:
        return
    assert Address.of(address.host, port) == address
    assert Address.parse(str(address)) == address
    assert address.host.isascii()


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), st.integers(0, 65535))
def test_any_packed_address_survives(packed: bytes, port: int) -> None:
    address = Address.from_packed(packed, port)
    assert address.packed in (packed, packed[12:])
    assert Address.parse(str(address)) == address
    assert Address.from_sockaddr(address.to_sockaddr(socket.AF_INET6)) == address
