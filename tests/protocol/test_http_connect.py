"""HTTP CONNECT: messages, and the client's dialogues; the bytes by hand from RFC 9110, RFC 9112 and RFC 7617."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.address import Address
from pysocksify.errors import Cause, LocalProtocolError, PeerClosedError, RemoteProtocolError, ReplyError
from pysocksify.protocol.conversation import Accepted, Conversation, Steps
from pysocksify.protocol.http_connect import HEAD_LIMIT, HeadTooLongError, Reply, Request, connect, reply
from tests.protocol.driving import TRAILING, Start, bytewise, check_any, check_bad, check_good, dialogue, play, read

WEB = Address("www.example", 443)

REQUESTS = [
    (
        Request.connect(WEB, username=None, password=None),
        b"CONNECT www.example:443 HTTP/1.1\r\nHost: www.example:443\r\n\r\n",
        "RFC 9110 section 9.3.6",
    ),
    (
        Request.connect(Address("2001:db8::1", 80), username=None, password=None),
        b"CONNECT [2001:db8::1]:80 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n",
        "RFC 9112 section 3.2.3, RFC 3986 section 3.2.2",
    ),
    (
        Request.connect(Address("192.0.2.1", 80), username=b"Aladdin", password=b"open sesame"),
        b"CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: 192.0.2.1:80\r\n"
        b"Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n",
        "RFC 7617 section 2",
    ),
    (
        Request.connect(Address("192.0.2.1", 80), username=b"a\r\n", password=None),
        b"CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: 192.0.2.1:80\r\nProxy-Authorization: Basic YQ0KOg==\r\n\r\n",
        "any byte in base64",
    ),
    (Request(method="GET", target="http://a/"), b"GET http://a/ HTTP/1.1\r\n\r\n", "RFC 9112 section 3.2.2"),
]


@pytest.mark.parametrize(("message", "data", "section"), REQUESTS)
def test_requests(message: Request, data: bytes, section: str) -> None:
    assert message.encode() == data, section
    check_good(Request.decode, data, message)


REPLIES = [
    (Reply(status=200, reason="Connection established"), b"HTTP/1.1 200 Connection established\r\n\r\n", "RFC 9112 4"),
    (
        Reply(status=299, reason="", fields=(("Via", "1.1 p"), ("Content-Length", "9"))),
        b"HTTP/1.1 299 \r\nVia: 1.1 p\r\nContent-Length: 9\r\n\r\n",
        "RFC 9110 section 9.3.6",
    ),
]


@pytest.mark.parametrize(("message", "data", "section"), REPLIES)
def test_replies(message: Reply, data: bytes, section: str) -> None:
    assert message.encode() == data, section
    check_good(Reply.decode, data, message)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\n\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nA: b\nC: d\r\n\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 100\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nProxy-agent : odd\r\nno colon\r\n\xff\xfe\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n  folded\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 " + b"r" * 4000 + b"\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    ],
)
def test_any_2xx_is_yes(data: bytes) -> None:
    whole = play(www, [data + TRAILING])
    assert (whole.error, whole.result, whole.trailing) == (None, Accepted(None), TRAILING)
    slow = play(www, bytewise(data + TRAILING)) if len(data) < 1000 else whole
    assert slow == whole


def test_fields_are_read_as_they_stand() -> None:
    data = b"HTTP/1.1 200 OK\r\nA:\t b \r\nbad line\r\nC:d\r\n\t e\r\nF:\r\n\r\n"
    assert read(Reply.decode(), data).fields == (("A", "b"), ("C", "d e"), ("F", ""))


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (403, Cause.NOT_ALLOWED),
        (404, Cause.GENERAL_FAILURE),
        (405, Cause.COMMAND_NOT_SUPPORTED),
        (407, Cause.NOT_ALLOWED),
        (500, Cause.GENERAL_FAILURE),
        (501, Cause.COMMAND_NOT_SUPPORTED),
        (502, Cause.HOST_UNREACHABLE),
        (503, Cause.REFUSED),
        (504, Cause.TIMED_OUT),
        (302, Cause.GENERAL_FAILURE),
        (999, Cause.GENERAL_FAILURE),
    ],
)
def test_a_failure_is_one_as_soon_as_its_line_is_there(status: int, cause: Cause) -> None:
    line = b"HTTP/1.1 %d Because of me\r\n" % status
    check_bad(www, line, ReplyError, f"answered {status} Because of me")
    check_bad(www, line + b"Content-Length: 5\r\n\r\nhello", ReplyError, f"answered {status} Because of me")
    conversation = Conversation(www())
    with pytest.raises(ReplyError) as caught:
        conversation.receive(line)
    assert (caught.value.code, caught.value.cause) == (status, cause)


@pytest.mark.parametrize("end", range(12, 26))
def test_a_failure_cut_after_its_code_is_that_failure(end: int) -> None:
    line = b"HTTP/1.1 503 Out of order\r\n"[:end]
    assert play(www, [line]).waits
    for pieces in ([line], bytewise(line)):
        ending = play(www, pieces, eof=True)
        assert ending.error is not None
        assert ending.error[0] is ReplyError
        assert "503" in ending.error[1]


@pytest.mark.parametrize(
    "data", [b"", b"H", b"HTTP/1.1 50", b"HTTP/1.1 200", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK\r\n"]
)
def test_a_yes_or_a_code_cut_short_is_none(data: bytes) -> None:
    ending = play(www, [data], eof=True)
    assert ending.error is not None
    assert ending.error[0] is PeerClosedError


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "'SSH-2.0-Open'"),
        (b"HTTP/2 200 OK\r\n", "no HTTP/1 reply"),
        (b"HTTP/1.x 200 OK\r\n", "no HTTP/1 reply"),
        (b"http/1.1 200 OK\r\n", "no HTTP/1 reply"),
        (b"HTTP/1.1 20x OK\r\n", "no HTTP/1 reply"),
        (b"HTTP/1.1 2000 OK\r\n", "status is 200'0 OK"),
        (b"HTTP/1.1 101 Switching Protocols\r\n", "answered 101"),
        (b"HTTP/1.1 099 Odd\r\n", "answered 99"),
    ],
)
def test_no_replies(data: bytes, words: str) -> None:
    check_bad(www, data, RemoteProtocolError, words)


@pytest.mark.parametrize(("data", "shown"), [(b"\x05\xff", "\\x05\\xff"), (b"\x00\x5b" + bytes(6), "\\x00[")])
def test_a_socks_server_that_closes_is_seen(data: bytes, shown: str) -> None:
    ending = play(www, [data], eof=True)
    assert ending.error is not None
    assert ending.error[0] is RemoteProtocolError
    assert shown in ending.error[1]


def test_a_reason_is_printed_safely() -> None:
    line = b"HTTP/1.1 503 \x1b[31mred\x07\xff" + b"x" * 300 + b"\r\n"
    ending = check_bad(www, line, ReplyError, "503 [31mred" + "x" * 50)
    assert ending.error is not None
    assert len(ending.error[1]) < 150


@pytest.mark.parametrize(
    "tail",
    [
        b"x" * HEAD_LIMIT,
        b"\r\nX: " + b"y" * HEAD_LIMIT,
        b"\r\n" + b"X: y\r\n" * (HEAD_LIMIT // 6),
        b"\r\n" + b"X:" + b" " * 4000 + b"\r\n" + b" \r\n" * HEAD_LIMIT,
    ],
)
def test_a_head_has_a_limit(tail: bytes) -> None:
    for start, head in ((www, b"HTTP/1.1 200 OK"), (Request.decode, b"CONNECT a:1 HTTP/1.1")):
        ending = play(start, [(head + tail)[:HEAD_LIMIT]])
        assert ending.error is not None
        assert ending.error[0] is HeadTooLongError


def test_interim_replies_count_to_the_limit() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    ending = play(www, [interim * (HEAD_LIMIT // len(interim) + 1)])
    assert ending.error is not None
    assert ending.error[0] is HeadTooLongError


def test_a_head_of_exactly_the_limit_is_read() -> None:
    for start, head in ((www, b"HTTP/1.1 200 OK\r\n"), (Request.decode, b"CONNECT a:1 HTTP/1.1\r\n")):
        padding = b"X: " + b"y" * (HEAD_LIMIT - len(head) - 7) + b"\r\n\r\n"
        assert len(head + padding) == HEAD_LIMIT
        assert play(start, [head + padding + b"z"]).trailing == b"z"
        assert play(start, [head + b"X" + padding]).error is not None


def www() -> Steps[Accepted]:
    return connect(WEB, username=None, password=None)


def aladdin() -> Steps[Accepted]:
    return connect(WEB, username=b"Aladdin", password=b"open sesame")


def test_connect() -> None:
    dialogue(
        aladdin,
        (
            "we",
            b"CONNECT www.example:443 HTTP/1.1\r\nHost: www.example:443\r\n"
            b"Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n",
        ),
        ("they", b"HTTP/1.0 200 Connection established\r\nProxy-agent: x\r\n\r\n" + TRAILING),
        trailing=TRAILING,
    )


@pytest.mark.parametrize(
    ("start", "words"), [(www, "407 Auth: it wants a user name"), (aladdin, "407 Auth: wrong user name or password")]
)
def test_407_is_about_the_login(start: Start, words: str) -> None:
    ending = check_bad(start, b"HTTP/1.1 407 Auth\r\n", ReplyError, words)
    assert ending.phase == "authentication"


@pytest.mark.parametrize(
    ("destination", "username", "words"),
    [
        (WEB, b"a:b", "holds a colon"),
        (Address("", 80), None, "empty"),
        (Address("a" * 256, 80), None, "256 bytes"),
        (Address("a\r\nX", 80), None, "not a host name"),
        (Address("a\r\nX: y", 80), None, "not an IPv6 address"),
        (Address("a b", 80), None, "holds ' '"),
    ],
)
def test_what_cannot_be_said(destination: Address, username: bytes | None, words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words) as caught:
        Conversation(connect(destination, username=username, password=b"s3cret!"))
    assert "s3cret!" not in str(caught.value)


def test_no_password_in_a_repr() -> None:
    assert "QWxh" not in repr(Request.connect(WEB, username=b"Aladdin", password=b"open sesame"))


@pytest.mark.parametrize(
    ("target", "destination"),
    [
        ("www.example:443", WEB),
        ("WWW.example.:443", WEB),
        ("[2001:db8::1]:80", Address("2001:db8::1", 80)),
        ("192.0.2.1:80", Address("192.0.2.1", 80)),
    ],
)
def test_targets(target: str, destination: Address) -> None:
    assert Request(method="CONNECT", target=target).destination == destination


@pytest.mark.parametrize(
    "target",
    ["www.example", "www.example:", ":80", "2001:db8::1:80", "http://a/", "a:99999", "u:s3cret!@a:80", "[::1:80"],
)
def test_no_targets(target: str) -> None:
    with pytest.raises(RemoteProtocolError, match="CONNECT request's target") as caught:
        _ = Request(method="CONNECT", target=target).destination
    assert "s3cret!" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "login"),
    [
        ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", (b"Aladdin", b"open sesame")),
        ("bAsIc   QWxhZGRpbjpvcGVuIHNlc2FtZQ==", (b"Aladdin", b"open sesame")),
        ("Basic Og==", (b"", b"")),
        ("Basic YTpiOmM=", (b"a", b"b:c")),
        ("Basic YTr//gA=", (b"a", b"\xff\xfe\x00")),
        ("Basic YWJj", None),
        ("Basic QWxh!", None),
        ("Basic", None),
        ("Digest QWxhZGRpbjpvcGVuIHNlc2FtZQ==", None),
        ("", None),
    ],
)
def test_logins(value: str, login: tuple[bytes, bytes] | None) -> None:
    fields = (("Host", "a"), ("pROXY-aUTHORIZATION", value))
    assert Request(method="CONNECT", target="a:1", fields=fields).login == login


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"CONNECT a:1\r\n", "first line"),
        (b"CONNECT  a:1 HTTP/1.1\r\n", "first line"),
        (b"CON(NECT a:1 HTTP/1.1\r\n", "first line"),
        (b"\r\n\r\n", "first line"),
        (b"CONNECT a:1 HTTP/2.0\r\n", "has version 'HTTP/2.0'"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost : a\r\n", "isn't name: value"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost\r\n", "isn't name: value"),
        (b"CONNECT a:1 HTTP/1.1\r\n folded: first\r\n", "isn't name: value"),
    ],
)
def test_bad_requests(data: bytes, words: str) -> None:
    check_bad(Request.decode, data, RemoteProtocolError, words)


def test_an_empty_line_before_a_request_is_forgiven() -> None:
    data = b"\r\nCONNECT a:1 HTTP/1.0\nHost: a\n\n"
    assert read(Request.decode(), data) == Request(method="CONNECT", target="a:1", fields=(("Host", "a"),))


def test_what_the_server_answers() -> None:
    assert reply(200).encode() == b"HTTP/1.1 200 Connection established\r\n\r\n"
    assert reply(403).encode() == b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)), st.booleans())
def test_any_bytes(data: bytes, places: list[int], eof: bool) -> None:
    for head in (b"", b"HTTP/1.1 ", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 503 "):
        check_any(www, head + data, places, eof=eof)
    for head in (b"", b"CONNECT ", b"CONNECT a:1 HTTP/1.1\r\nX"):
        check_any(Request.decode, head + data, places, eof=eof)
