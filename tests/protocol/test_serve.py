"""The server's side: dialogues by hand for each protocol, logins, refusals, and what each outcome is answered with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.address import Address
from pysocksify.codes import Command
from pysocksify.errors import Cause, ClientRefusedError, ConversationError, PeerClosedError, RemoteProtocolError
from pysocksify.protocol.conversation import Steps
from pysocksify.protocol.serve import Authenticate, Request, reply, serve
from tests.protocol.driving import TRAILING, Start, bytewise, check_any, check_bad, check_good, dialogue, play

WEB = Address("66.102.7.99", 80)
V6 = Address("2001:db8::1", 443)
NAME = Address("a.example", 443)
CONNECT_V4 = bytes.fromhex("05 01 00 01 42 66 07 63 00 50")
LOGIN = b"\x01\x05alice\x07s3cret!"
BASIC = b"Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"
CHALLENGE = b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="pysocksify"\r\n'


def open_to_all() -> Steps[Request]:
    return serve(login_required=False)


def members_only() -> Steps[Request]:
    return serve(login_required=True)


def wish(version: str, destination: Address, username: bytes | None = None, command: int = 1) -> Request:
    return Request(version=version, command=Command(command), destination=destination, username=username)


@pytest.mark.parametrize(
    ("data", "request_", "sent"),
    [
        (bytes.fromhex("04 01 00 50 42 66 07 63 46 72 65 64 00"), wish("socks4", WEB, b"Fred"), b""),
        (bytes.fromhex("04 02 00 50 42 66 07 63 00"), wish("socks4", WEB, command=2), b""),
        (bytes.fromhex("04 01 01 BB 00 00 00 01 00") + b"a.example\0", wish("socks4a", NAME), b""),
        (b"\x05\x01\x00" + CONNECT_V4, wish("socks5", WEB), b"\x05\x00"),
        (b"\x05\x03\x01\x02\x00" + CONNECT_V4, wish("socks5", WEB), b"\x05\x00"),
        (b"\x05\x01\x02" + LOGIN + CONNECT_V4, wish("socks5", WEB, b"alice"), b"\x05\x02\x01\x00"),
        (b"\x05\x01\x00\x05\xf0" + CONNECT_V4[2:], wish("socks5", WEB, command=0xF0), b"\x05\x00"),
        (
            b"\x05\x01\x00" + bytes.fromhex("05 03 00 04 20010DB8 00000000 00000000 00000001 01BB"),
            wish("socks5", V6, command=3),
            b"\x05\x00",
        ),
        (b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", wish("http", NAME), b""),
        (b"CONNECT [2001:DB8::1]:443 HTTP/1.0\r\n\r\n", wish("http", V6), b""),
        (b"CONNECT 66.102.7.99:80 HTTP/1.1\r\n" + BASIC + b"\r\n", wish("http", WEB, b"Aladdin"), b""),
    ],
)
def test_requests(data: bytes, request_: Request, sent: bytes) -> None:
    check_good(open_to_all, data, request_)
    assert play(open_to_all, [data]).sent == sent


@pytest.mark.parametrize(
    ("data", "request_", "sent", "asked"),
    [
        (
            bytes.fromhex("04 01 00 50 42 66 07 63 46 72 65 64 00"),
            wish("socks4", WEB, b"Fred"),
            b"",
            Authenticate(username=b"Fred", password=None),
        ),
        (
            b"\x05\x02\x00\x02" + LOGIN + CONNECT_V4,
            wish("socks5", WEB, b"alice"),
            b"\x05\x02\x01\x00",
            Authenticate(username=b"alice", password=b"s3cret!"),
        ),
        (
            b"\x05\x01\x02\x01\x05alice\x00" + CONNECT_V4,
            wish("socks5", WEB, b"alice"),
            b"\x05\x02\x01\x00",
            Authenticate(username=b"alice", password=b""),
        ),
        (
            b"CONNECT 66.102.7.99:80 HTTP/1.1\r\n" + BASIC + b"\r\n",
            wish("http", WEB, b"Aladdin"),
            b"",
            Authenticate(username=b"Aladdin", password=b"open sesame"),
        ),
    ],
)
def test_logins(data: bytes, request_: Request, sent: bytes, asked: Authenticate) -> None:
    ending = play(members_only, [data + TRAILING])
    assert (ending.result, ending.sent, ending.events) == (request_, sent, [asked])
    assert ending.trailing == TRAILING
    assert play(members_only, bytewise(data + TRAILING)) == ending


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        (bytes.fromhex("04 01 00 50 42 66 07 63 00"), bytes.fromhex("00 5D 00 00 00 00 00 00")),
        (b"\x05\x01\x02" + LOGIN, b"\x05\x02\x01\x01"),
        (
            b"CONNECT a:1 HTTP/1.1\r\n" + BASIC + b"\r\n",
            CHALLENGE + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
        ),
    ],
)
def test_wrong_logins(data: bytes, sent: bytes) -> None:
    for pieces in ([data], bytewise(data)):
        ending = play(members_only, pieces, answers=[False])
        assert ending.sent == sent
        assert ending.error is not None
        assert ending.error[0] is ClientRefusedError
        assert "s3cret!" not in ending.error[1]
    refused = play(open_to_all, [b"\x05\x01\x02" + LOGIN], answers=[False])
    assert refused.sent == b"\x05\x02\x01\x01"


def test_a_client_without_a_login_may_send_one_on_the_same_connection() -> None:
    again = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a\r\n"
    challenge = CHALLENGE + b"Content-Length: 0\r\n\r\n"
    for extra in (b"", b"Proxy-Authorization: Digest x\r\n"):
        data = again + extra + b"\r\n" + again + BASIC + b"\r\n"
        ending = play(members_only, [data + TRAILING])
        assert (ending.sent, ending.result) == (challenge, wish("http", NAME, b"Aladdin"))
        assert ending.trailing == TRAILING
        assert play(members_only, bytewise(data + TRAILING)) == ending
    gone = play(members_only, [again + b"\r\n"], eof=True)
    assert gone.sent == challenge
    assert gone.error is not None
    assert gone.error[0] is PeerClosedError


def test_a_socks5_client_is_answered_in_turn() -> None:
    result = dialogue(
        open_to_all,
        ("they", b"\x05\x01\x00"),
        ("we", b"\x05\x00"),
        ("they", CONNECT_V4 + TRAILING),
        trailing=TRAILING,
    )
    assert result == wish("socks5", WEB)


CLOSES = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\n" + CLOSES
REJECTED = bytes.fromhex("00 5B 00 00 00 00 00 00")


@pytest.mark.parametrize(
    ("start", "data", "sent", "kind", "words"),
    [
        (open_to_all, b"\x00", b"", RemoteProtocolError, "0x00 is neither"),
        (
            open_to_all,
            b"\x16\x03",
            b"",
            RemoteProtocolError,
            "0x16 is neither SOCKS4, SOCKS5 nor HTTP and looks like TLS",
        ),
        (open_to_all, b"\xff", b"", RemoteProtocolError, "0xFF is neither"),
        (open_to_all, b"\r\n", b"", RemoteProtocolError, "0x0D is neither"),
        (open_to_all, bytes.fromhex("04 01 00 50 42 66 07 63") + b"u" * 256, REJECTED, RemoteProtocolError, "user id"),
        (open_to_all, bytes.fromhex("04 01 00 50 00 00 00 01 00 00"), REJECTED, RemoteProtocolError, "name is empty"),
        (open_to_all, b"\x05\x00", b"\x05\xff", ClientRefusedError, "none; not 0x00 or 0x02"),
        (open_to_all, b"\x05\x02\x01\x03", b"\x05\xff", ClientRefusedError, "0x01, 0x03; not 0x00 or 0x02"),
        (members_only, b"\x05\x01\x00", b"\x05\xff", ClientRefusedError, "0x00; not 0x02 (user name and password)"),
        (members_only, b"\x05\x01\x02\x01\x00", b"\x05\x02\x01\x01", RemoteProtocolError, "empty user name"),
        (members_only, b"\x05\x01\x02\x05\x01", b"\x05\x02\x01\x01", RemoteProtocolError, "0x05 instead of 0x01"),
        (
            open_to_all,
            b"\x05\x01\x00\x05\x01\x00\x05",
            bytes.fromhex("05 00 05 08 00 01 00 00 00 00 00 00"),
            RemoteProtocolError,
            "address type 0x05",
        ),
        (
            open_to_all,
            b"\x05\x01\x00" + bytes.fromhex("05 01 00 03 00 00 50"),
            bytes.fromhex("05 00 05 01 00 01 00 00 00 00 00 00"),
            RemoteProtocolError,
            "host name is empty",
        ),
        (
            open_to_all,
            b"\x05\x01\x00\x04\x01\x00\x01",
            bytes.fromhex("05 00 05 01 00 01 00 00 00 00 00 00"),
            RemoteProtocolError,
            "0x04 instead of 0x05",
        ),
        (
            open_to_all,
            b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n" + CLOSES,
            ClientRefusedError,
            "the client sent GET",
        ),
        (open_to_all, b"CONNECT a HTTP/1.1\r\n\r\n", BAD_REQUEST, RemoteProtocolError, "no port number"),
        (open_to_all, b"CONNECT ::1:80 HTTP/1.1\r\n\r\n", BAD_REQUEST, RemoteProtocolError, "in brackets"),
        (open_to_all, b"SSH-2.0-OpenSSH\r\n", BAD_REQUEST, RemoteProtocolError, "first line"),
        (open_to_all, b"CONNECT a:1 HTTP/1.1\r\nA\r\n", BAD_REQUEST, RemoteProtocolError, "name: value"),
        (
            open_to_all,
            b"CONNECT a:1 HTTP/1.1\r\nContent-Length: 3\r\n\r\n",
            BAD_REQUEST,
            RemoteProtocolError,
            "has content",
        ),
        (
            open_to_all,
            b"CONNECT " + b"a" * 65536,
            b"HTTP/1.1 431 Request Header Fields Too Large\r\n" + CLOSES,
            RemoteProtocolError,
            "more than 65536 bytes",
        ),
    ],
)
def test_refusals(start: Start, data: bytes, sent: bytes, kind: type[ConversationError], words: str) -> None:
    assert check_bad(start, data, kind, words).sent == sent


@pytest.mark.parametrize(
    ("version", "outcome", "bound", "data"),
    [
        ("socks4", None, Address("190.239.255.255", 0xDEAD), bytes.fromhex("00 5A DE AD BE EF FF FF")),
        ("socks4a", None, V6, bytes.fromhex("00 5A 01 BB 00 00 00 00")),
        ("socks4", Cause.REFUSED, None, REJECTED),
        ("socks4a", Cause.NOT_ALLOWED, WEB, REJECTED),
        ("socks5", None, WEB, bytes.fromhex("05 00 00 01 42 66 07 63 00 50")),
        ("socks5", None, V6, bytes.fromhex("05 00 00 04 20010DB8 00000000 00000000 00000001 01BB")),
        ("socks5", None, None, bytes.fromhex("05 00 00 01 00 00 00 00 00 00")),
        ("socks5", Cause.REFUSED, WEB, bytes.fromhex("05 05 00 01 00 00 00 00 00 00")),
        ("socks5", Cause.NETWORK_UNREACHABLE, None, bytes.fromhex("05 03 00 01 00 00 00 00 00 00")),
        ("socks5", Cause.HOST_UNREACHABLE, None, bytes.fromhex("05 04 00 01 00 00 00 00 00 00")),
        ("socks5", Cause.NOT_ALLOWED, None, bytes.fromhex("05 02 00 01 00 00 00 00 00 00")),
        ("socks5", Cause.CLOSED, None, bytes.fromhex("05 01 00 01 00 00 00 00 00 00")),
        ("http", None, WEB, b"HTTP/1.1 200 Connection established\r\n\r\n"),
        ("http", Cause.REFUSED, None, b"HTTP/1.1 503 Service Unavailable\r\n" + CLOSES),
        ("http", Cause.TIMED_OUT, None, b"HTTP/1.1 504 Gateway Timeout\r\n" + CLOSES),
    ],
)
def test_outcomes(version: str, outcome: Cause | None, bound: Address | None, data: bytes) -> None:
    assert reply(wish(version, WEB), outcome, bound) == data


@pytest.mark.parametrize("version", ["socks4", "socks4a", "socks5", "http"])
@pytest.mark.parametrize("outcome", list(Cause))
def test_every_outcome_has_an_answer(version: str, outcome: Cause) -> None:
    assert reply(wish(version, WEB), outcome)


def test_no_password_in_a_repr() -> None:
    assert "s3cret!" not in repr(Authenticate(username=b"alice", password=b"s3cret!"))


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)), st.booleans(), st.booleans())
def test_any_bytes(data: bytes, places: list[int], eof: bool, required: bool) -> None:
    start = members_only if required else open_to_all
    for head in (b"", b"\x04\x01", b"\x05\x02\x00\x02", b"\x05\x01\x02\x01", b"CONNECT a:1 HTTP/1.1\r\n"):
        check_any(start, head + data, places, eof=eof)
