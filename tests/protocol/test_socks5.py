"""SOCKS5: messages, and the client's dialogues; all bytes by hand from RFC 1928 and RFC 1929."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.address import Address
from pysocksify.codes import Command, Method, Rep
from pysocksify.errors import Cause, LocalProtocolError, RemoteProtocolError, ReplyError
from pysocksify.protocol.conversation import Accepted, Conversation, Steps
from pysocksify.protocol.socks5 import Choice, Greeting, Login, LoginStatus, Reply, Request, connect
from tests.protocol.driving import TRAILING, Start, check_any, check_bad, check_good, dialogue, play, read

V4 = Address("192.0.2.1", 80)
V6 = Address("2001:db8::1", 443)
NAME = Address("a.example", 8080)
V4_BYTES = bytes.fromhex("01 C0 00 02 01 00 50")
V6_BYTES = bytes.fromhex("04 20 01 0D B8 00 00 00 00 00 00 00 00 00 00 00 01 01 BB")
NAME_BYTES = bytes.fromhex("03 09") + b"a.example" + bytes.fromhex("1F 90")
LONGEST = "a" * 255

Message = Greeting | Choice | Login | LoginStatus | Request | Reply

CASES: list[tuple[Message, bytes, str]] = [
    (Greeting(methods=(Method(0),)), bytes.fromhex("05 01 00"), "RFC 1928 section 3"),
    (Greeting(methods=(Method(0), Method(2))), bytes.fromhex("05 02 00 02"), "RFC 1928 section 3"),
    (Greeting(methods=(Method(0x80), Method(0))), bytes.fromhex("05 02 80 00"), "RFC 1928 section 3: private methods"),
    (Greeting(methods=(Method(3),) * 255), b"\x05\xff" + b"\x03" * 255, "RFC 1928 section 3: 1 to 255 methods"),
    (Greeting(methods=()), bytes.fromhex("05 00"), "none, answered with FF"),
    (Choice(method=Method(0)), bytes.fromhex("05 00"), "RFC 1928 section 3"),
    (Choice(method=Method(2)), bytes.fromhex("05 02"), "RFC 1928 section 3"),
    (Choice(method=Method(0xFF)), bytes.fromhex("05 FF"), "RFC 1928 section 3"),
    (Login(uname=b"al", passwd=b"\x00\xff:"), bytes.fromhex("01 02 61 6C 03 00 FF 3A"), "RFC 1929 section 2"),
    (Login(uname=b"al", passwd=b""), bytes.fromhex("01 02 61 6C 00"), "RFC 1929 section 2, less its PLEN >= 1"),
    (Login(uname=b"u" * 255, passwd=b"p" * 255), b"\x01\xff" + b"u" * 255 + b"\xff" + b"p" * 255, "RFC 1929 section 2"),
    (LoginStatus(status=0), bytes.fromhex("01 00"), "RFC 1929 section 2"),
    (Request(cmd=Command.CONNECT, destination=V4), bytes.fromhex("05 01 00") + V4_BYTES, "RFC 1928 section 4"),
    (Request(cmd=Command.BIND, destination=V6), bytes.fromhex("05 02 00") + V6_BYTES, "RFC 1928 section 4"),
    (Request(cmd=Command.UDP_ASSOCIATE, destination=NAME), b"\x05\x03\x00" + NAME_BYTES, "RFC 1928 section 4"),
    (Request(cmd=Command(0xF0), destination=V4), bytes.fromhex("05 F0 00") + V4_BYTES, "Tor's RESOLVE"),
    (
        Request(cmd=Command.CONNECT, destination=Address(LONGEST, 1)),
        b"\x05\x01\x00\x03\xff" + b"a" * 255 + b"\0\x01",
        "RFC 1928 section 5",
    ),
    (Reply(rep=Rep.SUCCEEDED), bytes.fromhex("05 00 00 01 00 00 00 00 00 00"), "RFC 1928 section 6"),
    (Reply(rep=Rep.SUCCEEDED, bound=V4), bytes.fromhex("05 00 00") + V4_BYTES, "RFC 1928 section 6"),
    (Reply(rep=Rep.SUCCEEDED, bound=V6), bytes.fromhex("05 00 00") + V6_BYTES, "RFC 1928 section 6"),
    (Reply(rep=Rep.SUCCEEDED, bound=NAME), bytes.fromhex("05 00 00") + NAME_BYTES, "RFC 1928 section 6: ATYP 3"),
]


@pytest.mark.parametrize(("message", "data", "section"), CASES)
def test_messages(message: Message, data: bytes, section: str) -> None:
    assert message.encode() == data, section
    check_good(type(message).decode, data, message)


def test_what_is_only_read() -> None:
    assert read(LoginStatus.decode(), bytes.fromhex("05 00")) == LoginStatus(status=0)


@pytest.mark.parametrize("name", [b"0", b"", b"a b"])
def test_udp_associate_with_a_name_that_is_none(name: bytes) -> None:
    """RFC 1928 section 4 has all zeros there when the client doesn't know; "0" is PySocks'."""
    data = b"\x05\x03\x00\x03" + bytes([len(name)]) + name + b"\x1f\x90"
    check_good(Request.decode, data, Request(cmd=Command.UDP_ASSOCIATE, destination=Address("0.0.0.0", 0)))
    assert read(Request.decode(), bytes.fromhex("05 01 EE") + V4_BYTES) == Request(cmd=Command(1), destination=V4)
    assert read(Reply.decode(), bytes.fromhex("05 00 EE") + V4_BYTES) == Reply(rep=Rep(0), bound=V4)
    named_by_address = bytes.fromhex("05 01 00 03 09") + b"192.0.2.1" + bytes.fromhex("00 50")
    assert read(Request.decode(), named_by_address) == Request(cmd=Command(1), destination=V4)


@pytest.mark.parametrize("name", [b"", b"\xff", b"a b"])
def test_a_reply_whose_name_is_none_is_a_reply(name: bytes) -> None:
    data = bytes.fromhex("05 00 00 03") + bytes((len(name),)) + name + b"\x00\x50"
    check_good(Reply.decode, data, Reply(rep=Rep(0), bound=None))


@pytest.mark.parametrize(
    ("rep", "cause", "words"),
    [
        (1, Cause.GENERAL_FAILURE, "0x01: general failure"),
        (2, Cause.NOT_ALLOWED, "0x02: not allowed"),
        (3, Cause.NETWORK_UNREACHABLE, "0x03: network unreachable"),
        (4, Cause.HOST_UNREACHABLE, "0x04: host unreachable"),
        (5, Cause.REFUSED, "0x05: connection refused"),
        (6, Cause.TIMED_OUT, "0x06: TTL expired"),
        (7, Cause.COMMAND_NOT_SUPPORTED, "0x07: command"),
        (8, Cause.ADDRESS_NOT_SUPPORTED, "0x08: address type"),
        *((rep, Cause.GENERAL_FAILURE, f"0x{rep:02X}: a code that RFC 1928 doesn't") for rep in range(9, 256)),
    ],
)
def test_a_failure_is_one_as_soon_as_its_code_is_there(rep: int, cause: Cause, words: str) -> None:
    whole = bytes((5, rep, 0)) + V4_BYTES
    assert Reply(rep=Rep(rep), bound=V4).encode() == whole
    for length in (2, 3, 9, 10):
        check_bad(Reply.decode, whole[:length], ReplyError, words)
    with pytest.raises(ReplyError) as caught:
        read(Reply.decode(), whole[:2])
    assert (caught.value.code, caught.value.cause) == (rep, cause)


BAD: list[tuple[Start, bytes, tuple[str, ...]]] = [
    (Greeting.decode, b"\x04\x01", ("0x04 instead of 0x05", "SOCKS4")),
    (Choice.decode, b"\x00\x5b", ("method choice", "0x00 instead of 0x05", "SOCKS4 server")),
    (Choice.decode, b"HT", ("0x48 instead of 0x05", "HTTP")),
    (Choice.decode, b"\x15\x03", ("0x15 instead of 0x05", "TLS")),
    (Login.decode, b"\x05\x01", ("login", "0x05 instead of 0x01")),
    (Login.decode, b"\x01\x00", ("empty user name",)),
    (LoginStatus.decode, b"\x00\x00", ("login status", "0x00 instead of 0x01")),
    (Request.decode, b"\x04\x01\x00\x01", ("request", "0x04 instead of 0x05")),
    (Request.decode, b"\x05\x01\x00\x00", ("request has address type 0x00",)),
    (Request.decode, b"\x05\x01\x00\x02", ("request has address type 0x02",)),
    (Request.decode, b"\x05\x01\x00\xff", ("request has address type 0xFF",)),
    (Request.decode, bytes.fromhex("05 01 00 03 00 00 50"), ("the host name is empty",)),
    (Request.decode, bytes.fromhex("05 01 00 03 03 61 00 62 00 50"), ("holds '\\x00'",)),
    (Request.decode, bytes.fromhex("05 01 00 03 01 FF 00 50"), ("is not text",)),
    (Reply.decode, b"\x01\x00", ("reply", "0x01 instead of 0x05")),
    (Reply.decode, bytes.fromhex("05 00 00 02"), ("reply has address type 0x02",)),
    (Reply.decode, bytes.fromhex("05 00 00 00"), ("reply has address type 0x00",)),
]


@pytest.mark.parametrize(("start", "data", "words"), BAD)
def test_bad_messages(start: Start, data: bytes, words: tuple[str, ...]) -> None:
    check_bad(start, data, RemoteProtocolError, *words)


def anonymous() -> Steps[Accepted]:
    return connect(NAME, username=None, password=None)


def alice() -> Steps[Accepted]:
    return connect(NAME, username=b"alice", password=b"s3cret!")


REQUEST = bytes.fromhex("05 01 00") + NAME_BYTES
LOGIN = b"\x01\x05alice\x07s3cret!"
SUCCEEDED = bytes.fromhex("05 00 00") + V4_BYTES


def test_connect() -> None:
    accepted = dialogue(
        anonymous,
        ("we", b"\x05\x01\x00"),
        ("they", b"\x05\x00"),
        ("we", REQUEST),
        ("they", SUCCEEDED + TRAILING),
        trailing=TRAILING,
    )
    assert accepted == Accepted(V4)
    check_good(anonymous, b"\x05\x00" + SUCCEEDED, accepted)


def test_connect_with_a_login() -> None:
    dialogue(
        alice,
        ("we", b"\x05\x02\x00\x02"),
        ("they", b"\x05\x02"),
        ("we", LOGIN),
        ("they", b"\x01\x00"),
        ("we", REQUEST),
        ("they", SUCCEEDED),
    )
    check_good(alice, b"\x05\x02\x05\x00" + SUCCEEDED, Accepted(V4))
    # The login isn't asked for, so it isn't told.
    dialogue(alice, ("we", b"\x05\x02\x00\x02"), ("they", b"\x05\x00"), ("we", REQUEST), ("they", SUCCEEDED))


@pytest.mark.parametrize(
    ("start", "data", "kind", "phase", "words"),
    [
        (anonymous, b"\x05\xff", ReplyError, "greeting", ("0xFF to method 0x00", "wants a user name")),
        (alice, b"\x05\xff", ReplyError, "greeting", ("0xFF to method 0x00 and 0x02",)),
        (anonymous, b"\x05\x02", RemoteProtocolError, "greeting", ("0x02 (USERNAME_PASSWORD)", "not offered")),
        (alice, b"\x05\x01", RemoteProtocolError, "greeting", ("0x01 (GSSAPI)", "not offered")),
        (alice, b"\x05\x80", RemoteProtocolError, "greeting", ("0x80,", "not offered")),
        (alice, b"\x04\x00", RemoteProtocolError, "greeting", ("0x04 instead of 0x05",)),
        (alice, b"\x05\x02\x01\x01", ReplyError, "authentication", ("refused the user name", "0x01")),
        (alice, b"\x05\x02\x05\xff", ReplyError, "authentication", ("refused the user name", "0xFF")),
        (alice, b"\x05\x02\x02\x00", RemoteProtocolError, "authentication", ("0x02 instead of 0x01",)),
        (alice, b"\x05\x02\x01\x00\x05\x02", ReplyError, "request", ("0x02: not allowed",)),
        (anonymous, b"\x05\x00\x05\x09", ReplyError, "request", ("0x09: a code",)),
    ],
)
def test_connect_fails(
    start: Start, data: bytes, kind: type[ReplyError] | type[RemoteProtocolError], phase: str, words: tuple[str, ...]
) -> None:
    ending = check_bad(start, data, kind, *words)
    assert ending.phase == phase
    assert ending.error is not None
    assert "s3cret!" not in ending.error[1]


def test_a_login_that_is_refused_is_not_allowed() -> None:
    conversation = Conversation(alice())
    with pytest.raises(ReplyError) as caught:
        conversation.receive(b"\x05\x02\x01\x2a")
    assert (caught.value.cause, caught.value.code) == (Cause.NOT_ALLOWED, 0x2A)


@pytest.mark.parametrize(
    ("destination", "username", "password", "words"),
    [
        (NAME, b"", b"x", "user name is empty"),
        (NAME, b"u" * 256, b"s3cret!", "user name has 256 bytes"),
        (NAME, b"u", b"s3cret!" * 37, "password has 259 bytes"),
        (Address("", 80), None, None, "host name is empty"),
        (Address("a" * 256, 80), None, None, "host name has 256 bytes"),
        (Address("ü" * 128, 80), None, None, "host name has 256 bytes"),
    ],
)
def test_what_cannot_be_said(destination: Address, username: bytes | None, password: bytes | None, words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words) as caught:
        Conversation(connect(destination, username=username, password=password))
    assert "s3cret!" not in str(caught.value)


def test_an_empty_password_is_sent() -> None:
    for password in (b"", None):
        conversation = Conversation(connect(NAME, username=b"token", password=password))
        conversation.receive(b"\x05\x02")
        assert conversation.outgoing() == b"\x05\x02\x00\x02" + b"\x01\x05token\x00"


def test_no_password_in_a_repr() -> None:
    assert "s3cret!" not in repr(Login(uname=b"alice", passwd=b"s3cret!"))


@given(st.binary(max_size=600), st.lists(st.integers(0, 600)), st.booleans())
def test_any_bytes(data: bytes, places: list[int], eof: bool) -> None:
    for decode in (Greeting.decode, Choice.decode, Login.decode, LoginStatus.decode, Request.decode, Reply.decode):
        check_any(decode, data, places, eof=eof)
    check_any(Login.decode, b"\x01" + data, places, eof=eof)
    check_any(Request.decode, b"\x05\x01\x00\x03" + data, places, eof=eof)
    check_any(anonymous, b"\x05\x00\x05\x00\x00" + data, places, eof=eof)
    check_any(alice, b"\x05\x02" + data, places, eof=eof)


def test_every_end_of_file_has_its_phase() -> None:
    data = b"\x05\x02\x01\x00" + SUCCEEDED
    phases = [play(alice, [data[:end]], eof=True).phase for end in range(len(data))]
    assert phases == ["greeting"] * 2 + ["authentication"] * 2 + ["request"] * 10
