"""SOCKS4 and SOCKS4a: messages, and the client's dialogues; all bytes by hand from Ying-Da Lee's two texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.address import Address
from pysocksify.codes import Cd, Command
from pysocksify.errors import Cause, LocalProtocolError, PeerClosedError, RemoteProtocolError, ReplyError
from pysocksify.protocol.conversation import Accepted, Conversation, Steps
from pysocksify.protocol.socks4 import Reply, Request, connect
from tests.protocol.driving import TRAILING, check_any, check_bad, check_good, dialogue, play, read

FRED = bytes.fromhex("04 01 00 50 42 66 07 63 46 72 65 64 00")
GRANTED = bytes.fromhex("00 5A DE AD BE EF FF FF")
WEB = Address("66.102.7.99", 80)


def request(host: str, port: int, userid: bytes, cd: Command = Command.CONNECT) -> Request:
    return Request(cd=cd, destination=Address(host, port), userid=userid)


REQUESTS = [
    (request("66.102.7.99", 80, b"Fred"), FRED, "SOCKS4 CONNECT"),
    (request("66.102.7.99", 80, b""), bytes.fromhex("04 01 00 50 42 66 07 63 00"), "SOCKS4 CONNECT"),
    (request("66.102.7.99", 80, b"", Command.BIND), bytes.fromhex("04 02 00 50 42 66 07 63 00"), "SOCKS4 BIND"),
    (request("66.102.7.99", 80, b"", Command(9)), bytes.fromhex("04 09 00 50 42 66 07 63 00"), "no such CD"),
    (request("0.0.0.0", 80, b"\xff"), bytes.fromhex("04 01 00 50 00 00 00 00 FF 00"), "SOCKS4A: x is not 0"),
    (request("0.0.1.0", 80, b""), bytes.fromhex("04 01 00 50 00 00 01 00 00"), "SOCKS4A: 0.0.0.x only"),
    (request("a.example", 443, b"Fred"), bytes.fromhex("04 01 01 BB 00 00 00 01") + b"Fred\0a.example\0", "SOCKS4A"),
    (request("a.example", 443, b""), bytes.fromhex("04 01 01 BB 00 00 00 01 00") + b"a.example\0", "SOCKS4A"),
    (
        request("a" * 255, 1, b"u" * 255),
        bytes.fromhex("04 01 00 01 00 00 00 01") + b"u" * 255 + b"\0" + b"a" * 255 + b"\0",
        "our own limits",
    ),
]


@pytest.mark.parametrize(("message", "data", "section"), REQUESTS)
def test_requests(message: Request, data: bytes, section: str) -> None:
    assert message.encode() == data, section
    check_good(Request.decode, data, message)


@pytest.mark.parametrize("x", [1, 7, 255])
def test_every_x_says_that_a_name_follows(x: int) -> None:
    data = bytes((4, 1, 0, 80, 0, 0, 0, x)) + b"Fred\0a.example\0"
    assert read(Request.decode(), data) == request("a.example", 80, b"Fred")


REPLIES = [
    (Reply(cd=Cd.GRANTED, bound=Address("190.239.255.255", 0xDEAD)), GRANTED, "SOCKS4 CONNECT"),
    (Reply(cd=Cd.GRANTED), bytes.fromhex("00 5A 00 00 00 00 00 00"), "SOCKS4 CONNECT"),
]


@pytest.mark.parametrize(("message", "data", "section"), REPLIES)
def test_replies(message: Reply, data: bytes, section: str) -> None:
    assert message.encode() == data, section
    check_good(Reply.decode, data, message)


@pytest.mark.parametrize("bound", [Address("::1", 80), Address("a.example", 80)])
def test_a_reply_holds_ipv4_only(bound: Address) -> None:
    assert Reply(cd=Cd.GRANTED, bound=bound).encode() == bytes.fromhex("00 5A 00 50 00 00 00 00")


@pytest.mark.parametrize(
    ("cd", "cause", "words"),
    [
        (91, Cause.GENERAL_FAILURE, "0x5B (91): request rejected or failed"),
        (92, Cause.NOT_ALLOWED, "0x5C (92): it can't reach identd"),
        (93, Cause.NOT_ALLOWED, "0x5D (93): identd reports another"),
        (0, Cause.GENERAL_FAILURE, "0x00 (0): a code that SOCKS4 doesn't have"),
        (94, Cause.GENERAL_FAILURE, "0x5E (94): a code that SOCKS4 doesn't have"),
        (255, Cause.GENERAL_FAILURE, "0xFF (255)"),
    ],
)
def test_a_failure_is_one_as_soon_as_its_code_is_there(cd: int, cause: Cause, words: str) -> None:
    for length in range(2, 9):
        data = bytes((0, cd, 0, 80, 1, 2, 3, 4))[:length]
        check_bad(Reply.decode, data, ReplyError, words)
        assert Reply(cd=Cd(cd), bound=Address("1.2.3.4", 80)).encode()[:length] == data
    with pytest.raises(ReplyError) as caught:
        read(Reply.decode(), bytes((0, cd)))
    assert (caught.value.code, caught.value.cause) == (cd, cause)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x04\x5a", ("0x04 instead of 0x00", "SOCKS4")),
        (b"\x05\xff", ("0x05 instead of 0x00", "SOCKS5")),
        (b"HT", ("0x48 instead of 0x00", "HTTP")),
        (b"\x01\x5a", ("0x01 instead of 0x00",)),
    ],
)
def test_replies_of_another_version(data: bytes, words: tuple[str, ...]) -> None:
    check_bad(Reply.decode, data, RemoteProtocolError, *words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x05\x01" + bytes(6), "0x05 instead of 0x04"),
        (FRED[:8] + b"u" * 256, "a SOCKS4 user id of 256 bytes or more"),
        (bytes.fromhex("04 01 00 50 00 00 00 01 00") + b"a" * 256, "a SOCKS4a host name of 256 bytes or more"),
        (bytes.fromhex("04 01 00 50 00 00 00 01 00 00"), "the host name is empty"),
        (bytes.fromhex("04 01 00 50 00 00 00 01 00 FF 00"), "is not text"),
        (bytes.fromhex("04 01 00 50 00 00 00 01 00 61 20 62 00"), "holds ' '"),
    ],
)
def test_bad_requests(data: bytes, words: str) -> None:
    check_bad(Request.decode, data, RemoteProtocolError, words)


@pytest.mark.parametrize(
    ("destination", "userid", "remote_dns", "words", "cause"),
    [
        (WEB, b"a\0b", False, "user id holds a NUL", Cause.NOT_ALLOWED),
        (WEB, b"u" * 256, False, "user id has 256 bytes", Cause.NOT_ALLOWED),
        (Address("a.example", 80), b"", False, "use socks4a", Cause.ADDRESS_NOT_SUPPORTED),
        (Address("2001:db8::1", 80), b"", False, "SOCKS4 can't carry IPv6", Cause.ADDRESS_NOT_SUPPORTED),
        (Address("2001:db8::1", 80), b"", True, "SOCKS4 can't carry IPv6", Cause.ADDRESS_NOT_SUPPORTED),
        (Address("0.0.0.9", 80), b"", True, "can't ask for 0.0.0.9", Cause.ADDRESS_NOT_SUPPORTED),
        (Address("0.0.0.9", 80), b"", False, "can't ask for 0.0.0.9", Cause.ADDRESS_NOT_SUPPORTED),
        (Address("a\0b", 80), b"", True, "host name holds a NUL", Cause.ADDRESS_NOT_SUPPORTED),
        (Address("", 80), b"", True, "host name is empty", Cause.ADDRESS_NOT_SUPPORTED),
        (Address("a" * 256, 80), b"", True, "host name has 256 bytes", Cause.ADDRESS_NOT_SUPPORTED),
    ],
)
def test_what_cannot_be_said(destination: Address, userid: bytes, remote_dns: bool, words: str, cause: Cause) -> None:
    with pytest.raises(LocalProtocolError, match=words) as caught:
        Conversation(connect(destination, userid=userid, remote_dns=remote_dns))
    assert caught.value.cause is cause


def fred() -> Steps[Accepted]:
    return connect(WEB, userid=b"Fred", remote_dns=False)


def test_connect() -> None:
    accepted = dialogue(fred, ("we", FRED), ("they", GRANTED + TRAILING), trailing=TRAILING)
    assert accepted == Accepted(Address("190.239.255.255", 0xDEAD))
    check_good(fred, GRANTED, accepted)
    assert play(fred, [GRANTED]).phase == "request"


def test_connect_by_name() -> None:
    dialogue(
        lambda: connect(Address("a.example", 443), userid=b"Fred", remote_dns=True),
        ("we", bytes.fromhex("04 01 01 BB 00 00 00 01") + b"Fred\0a.example\0"),
        ("they", GRANTED),
    )
    dialogue(lambda: connect(WEB, userid=b"Fred", remote_dns=True), ("we", FRED), ("they", GRANTED))


def test_connect_refused_and_cut() -> None:
    ending = check_bad(fred, b"\x00\x5b", ReplyError, "request rejected or failed")
    assert ending.sent == FRED
    short = play(fred, [b"\x00"], eof=True)
    assert short.error == (PeerClosedError, "the connection was closed 1 byte into the conversation")


@given(st.binary(max_size=600), st.lists(st.integers(0, 600)), st.booleans())
def test_any_bytes(data: bytes, places: list[int], eof: bool) -> None:
    check_any(fred, data, places, eof=eof)
    check_any(fred, b"\0" + data, places, eof=eof)
    check_any(fred, b"\0\x5a" + data, places, eof=eof)
    check_any(Request.decode, data, places, eof=eof)
    check_any(Request.decode, b"\x04\x01" + data, places, eof=eof)
    check_any(Request.decode, bytes.fromhex("04 01 00 50 00 00 00 01") + data, places, eof=eof)
