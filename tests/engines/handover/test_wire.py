"""Packets of the handover, written by hand."""

import socket
import struct

import pytest

from pysocksify.engines.handover import wire

TOKEN = bytes(range(16))
MAGIC = struct.pack("=I", 0x70736B31)


def test_request() -> None:
    packet = MAGIC + struct.pack("=IiI", 8, 77, 3) + TOKEN + b"abc"
    assert wire.pack_request(wire.NAME, 77, TOKEN, b"abc") == packet
    assert wire.unpack_request(packet) == (wire.NAME, 77, TOKEN, b"abc")


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        MAGIC,
        bytes(4) + struct.pack("=IiI", 8, 77, 0) + TOKEN,
        MAGIC + struct.pack("=IiI", 8, 77, 4) + TOKEN + b"abc",
        MAGIC + struct.pack("=IiI", 8, 77, 2) + TOKEN + b"abc",
    ],
    ids=["nothing", "cut", "no-magic", "too-short", "too-long"],
)
def test_what_is_no_request(packet: bytes) -> None:
    with pytest.raises(ValueError):
        wire.unpack_request(packet)


def test_reply() -> None:
    packet = struct.pack("=iII", 111, 2, 2) + b"xy"
    assert wire.pack_reply(111, wire.REDIRECT, b"xy") == packet
    assert wire.unpack_reply(packet) == (111, wire.REDIRECT, b"xy")
    for other in (b"", packet[:-1], packet + b"z"):
        with pytest.raises(ValueError):
            wire.unpack_reply(other)


def test_addresses() -> None:
    six = socket.inet_pton(socket.AF_INET6, "fd73::1")
    given = [(int(socket.AF_INET), b"\xc6\x12\0\1"), (int(socket.AF_INET6), six)]
    packed = struct.pack("=I", 2) + struct.pack("=I", 2) + b"\xc6\x12\0\1" + bytes(12) + struct.pack("=I", 10) + six
    assert wire.pack_addresses(given, b"a.example") == packed + b"a.example"
    assert wire.unpack_addresses(packed + b"a.example") == (given, b"a.example")
    assert wire.unpack_addresses(bytes(4)) == ([], b"")
    for other in (b"", packed[:-1], b"\xff\xff\xff\xff"):
        with pytest.raises(ValueError):
            wire.unpack_addresses(other)


def test_name() -> None:
    assert wire.unpack_name(wire.pack_name(socket.AF_INET6, b"a.example")) == (socket.AF_INET6, b"a.example")
    with pytest.raises(ValueError):
        wire.unpack_name(b"abc")


def test_variable() -> None:
    value = wire.variable(b"0002f", TOKEN)
    assert value == "3030303266:000102030405060708090a0b0c0d0e0f"
    assert wire.parse_variable(value) == (b"\x000002f", TOKEN)
    for other in ("", ":", "3030", "3030:00", "zz:" + "00" * 16, "30:" + "zz" * 16):
        with pytest.raises(ValueError):
            wire.parse_variable(other)


def test_stand_aside() -> None:
    ours = "/usr/lib/python3/site-packages/pysocksify/engines/preload/shim-glibc.so"
    untouched = {wire.PRELOAD: ours}
    wire.stand_aside(untouched)
    assert untouched == {wire.PRELOAD: ours}  # nobody's but the user's
    environ = {wire.PRELOAD: f"{ours}:/lib/libother.so {ours}", wire.VARIABLE: "30:00"}
    wire.stand_aside(environ)
    assert environ == {wire.PRELOAD: "/lib/libother.so", wire.VARIABLE: ""}
    alone = {wire.PRELOAD: ours, wire.VARIABLE: "30:00"}
    wire.stand_aside(alone)
    assert alone == {wire.VARIABLE: ""}
