"""Every handshake of every version, from both sides: split at every byte, and whole with payload behind it.

All must come to the same: result, what was said, the questions asked, the error's text, and the bytes left over.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from pysocksify.address import Address
from pysocksify.codes import Cd, Command
from pysocksify.protocol import http_connect, socks4, socks5
from pysocksify.protocol.conversation import Accepted, Steps
from pysocksify.protocol.serve import Request, serve
from tests.protocol.driving import TRAILING, Start, bytewise, cut, play

PAIRS_UP_TO = 64  # bytes; three pieces are tried up to there, two always
PAYLOADS = (b"", TRAILING, b"\x00", b"\n", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)))


@dataclass(frozen=True)
class Line:
    """A handshake as it comes in, and who reads it. `wrong`: it ends in an error."""

    name: str
    start: Start
    data: bytes
    wrong: bool = False
    answers: tuple[bool | Cd, ...] = ()


def open_to_all() -> Steps[Request]:
    return serve(login_required=False)


def members_only() -> Steps[Request]:
    return serve(login_required=True)


def by_userid() -> Steps[Request]:
    return serve(login_required=False, check_userid=True)


SOCKS4_HOST = bytes.fromhex("0050 42660763")
SOCKS4A_HOST = bytes.fromhex("01BB 00000001")
HOSTS = {
    "ipv4": bytes.fromhex("01 42660763 0050"),
    "name": b"\x03\x09a.example\x01\xbb",
    "ipv6": bytes.fromhex("04 20010DB8 00000000 00000000 00000001 01BB"),
    "zeros": bytes.fromhex("01 00000000 0000"),
}
LOGIN = b"\x01\x05alice\x07s3cret!"
HEAD = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n"
BASIC = b"Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"


def requests() -> Iterator[Line]:
    """What the server is sent and grants."""
    for command in (Command.CONNECT, Command.BIND):
        head = bytes((4, command))
        word = command.name.lower()
        yield Line(f"socks4 {word}", open_to_all, head + SOCKS4_HOST + b"Fred\0")
        yield Line(f"socks4 {word} without user id", open_to_all, head + SOCKS4_HOST + b"\0")
        yield Line(f"socks4 {word} for members", members_only, head + SOCKS4_HOST + b"Fred\0")
        yield Line(f"socks4 {word} by user id", by_userid, head + SOCKS4_HOST + b"Fred\0")
        yield Line(f"socks4a {word}", open_to_all, head + SOCKS4A_HOST + b"Fred\0a.example\0")
    for command in Command:
        for kind, host in HOSTS.items():
            name = f"socks5 {command.name.lower()} {kind}"
            request = bytes((5, command, 0)) + host
            yield Line(name, open_to_all, b"\x05\x01\x00" + request)
            yield Line(f"{name} with login", members_only, b"\x05\x02\x00\x02" + LOGIN + request)
    yield Line("socks5 udp_associate of no name", open_to_all, b"\x05\x01\x00\x05\x03\x00\x03\x010\x80\x00")
    yield Line("http", open_to_all, HEAD + b"\r\n")
    yield Line("http with a login nobody asked for", open_to_all, HEAD + BASIC + b"\r\n")
    yield Line("http with login", members_only, HEAD + BASIC + b"\r\n")
    yield Line("http after a 407", members_only, HEAD + b"\r\n" + HEAD + BASIC + b"\r\n")
    yield Line("http of bare line feeds", open_to_all, HEAD.replace(b"\r\n", b"\n") + b"\n")


def refused() -> Iterator[Line]:
    """What the server is sent and doesn't grant."""
    greeting, login = b"\x05\x01\x00", b"\x05\x01\x02"
    for name, data in (
        ("nothing known", b"\x16"),
        ("socks4 user id without end", b"\x04\x01" + SOCKS4_HOST + b"u" * 256),
        ("socks4a empty name", b"\x04\x02" + SOCKS4A_HOST + b"Fred\0\0"),
        ("socks4a name that is none", b"\x04\x02" + SOCKS4A_HOST + b"Fred\0a b\0"),
        ("socks4a name without end", b"\x04\x01" + SOCKS4A_HOST + b"\0" + b"n" * 256),
        ("socks5 without methods", b"\x05\x00"),
        ("socks5 unknown methods", b"\x05\x02\x01\x03"),
        ("socks5 request of another version", greeting + b"\x04\x01\x00\x01"),
        ("socks5 unknown address type", greeting + b"\x05\x01\x00\x05"),
        ("socks5 empty name", greeting + b"\x05\x01\x00\x03\x00\x00\x50"),
        ("socks5 name that is none", greeting + b"\x05\x02\x00\x03\x03a b\x00\x50"),
        ("http GET", b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("http without port", b"CONNECT a HTTP/1.1\r\n\r\n"),
        ("http with content", b"CONNECT a:1 HTTP/1.1\r\nContent-Length: 3\r\n\r\n"),
        ("http field without colon", b"CONNECT a:1 HTTP/1.1\r\nA\r\n"),
        ("not http", b"SSH-2.0-OpenSSH\r\n"),
    ):
        yield Line(name, open_to_all, data, wrong=True)
    yield Line("socks5 without login", members_only, greeting, wrong=True)
    yield Line("socks5 empty user name", members_only, login + b"\x01\x00", wrong=True)
    yield Line("socks5 login of another version", members_only, login + b"\x05\x01", wrong=True)
    yield Line("socks5 wrong login", members_only, login + LOGIN, wrong=True, answers=(False,))
    yield Line("http wrong login", members_only, HEAD + BASIC + b"\r\n", wrong=True, answers=(False,))
    for name, answer in (("mismatch", False), ("no identd", Cd.NO_IDENTD)):
        data = b"\x04\x02" + SOCKS4_HOST + b"Fred\0"
        yield Line(f"socks4 {name}", by_userid, data, wrong=True, answers=(answer,))
        yield Line(f"socks4 {name} for members", members_only, data, wrong=True, answers=(answer,))


NAME = Address("a.example", 443)


def by_socks4() -> Steps[Accepted]:
    return socks4.connect(NAME, userid=b"Fred", remote_dns=True)


def by_socks5() -> Steps[Accepted]:
    return socks5.connect(NAME, username=None, password=None)


def by_socks5_with_login() -> Steps[Accepted]:
    return socks5.connect(NAME, username=b"alice", password=b"s3cret!")


def by_http() -> Steps[Accepted]:
    return http_connect.connect(NAME, username=b"alice", password=b"s3cret!")


def replies() -> Iterator[Line]:
    """What the client is sent; the second reply of BIND is read by the same message."""
    granted = bytes.fromhex("00 5A 0050 42660763")
    yield Line("socks4 reply", by_socks4, granted)
    yield Line("socks4 message", socks4.Reply.decode, granted)
    for kind, host in HOSTS.items():
        reply = b"\x05\x00\x00" + host
        yield Line(f"socks5 reply {kind}", by_socks5, b"\x05\x00" + reply)
        yield Line(f"socks5 reply {kind} after login", by_socks5_with_login, b"\x05\x02\x01\x00" + reply)
        yield Line(f"socks5 message {kind}", socks5.Reply.decode, reply)
    yield Line("socks5 reply of an empty name", by_socks5, b"\x05\x00\x05\x00\x00\x03\x00\x00\x00")
    yield Line("http reply", by_http, b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
    yield Line("http reply after an interim one", by_http, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 a\r\n\r\n")
    for code in (91, 92, 93, 94):
        yield Line(f"socks4 no {code}", by_socks4, bytes((0, code)), wrong=True)
    yield Line("socks4 reply of another version", by_socks4, b"\x05\x5a", wrong=True)
    for rep in (1, 2, 5, 9, 255):
        yield Line(f"socks5 no {rep}", by_socks5, b"\x05\x00\x05" + bytes((rep,)), wrong=True)
    yield Line("socks5 no method", by_socks5, b"\x05\xff", wrong=True)
    yield Line("socks5 method not offered", by_socks5_with_login, b"\x05\x01", wrong=True)
    yield Line("socks5 login refused", by_socks5_with_login, b"\x05\x02\x01\x01", wrong=True)
    yield Line("socks5 reply of another version", by_socks5, b"\x05\x00\x04\x00", wrong=True)
    yield Line("socks5 reply of an unknown type", by_socks5, b"\x05\x00\x05\x00\x00\x07", wrong=True)
    yield Line("not a socks5 server", by_socks5, b"HT", wrong=True)
    yield Line("http no", by_http, b"HTTP/1.1 407 Proxy Authentication Required\r\nA: b\r\n\r\n", wrong=True)
    yield Line("not an http server", by_http, b"SSH-2.0-OpenSSH\r\n", wrong=True)


def splits(data: bytes) -> Iterator[list[bytes]]:
    """The data in two pieces at every place, in three at every two places while it's short, and byte by byte."""
    yield bytewise(data)
    for first in range(1, len(data)):
        yield cut(data, [first])
        if len(data) <= PAIRS_UP_TO:
            for second in range(first + 1, len(data)):
                yield cut(data, [first, second])


def lines(*sources: Callable[[], Iterator[Line]]) -> list[Line]:
    return [line for source in sources for line in source()]


@pytest.mark.parametrize("line", lines(requests, refused, replies), ids=lambda line: line.name)
def test_every_split(line: Line) -> None:
    whole = play(line.start, [line.data], answers=line.answers)
    assert (whole.error is not None) == line.wrong, whole
    assert (whole.result is None) == line.wrong
    assert not whole.waits
    for pieces in splits(line.data):
        assert play(line.start, pieces, answers=line.answers) == whole


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
@pytest.mark.parametrize("line", lines(requests, refused, replies), ids=lambda line: line.name)
def test_payload_behind_it(line: Line, payload: bytes) -> None:
    """In the last segment, in one of its own, and split anywhere."""
    alone = play(line.start, [line.data], answers=line.answers)
    data = line.data + payload
    for pieces in ([data], bytewise(data), *(cut(data, [place]) for place in range(1, len(data)))):
        ending = play(line.start, pieces, answers=line.answers)
        assert (ending.result, ending.sent, ending.error, ending.events, ending.phase) == (
            alone.result,
            alone.sent,
            alone.error,
            alone.events,
            alone.phase,
        )
        assert ending.trailing == (b"" if line.wrong else payload)


def test_nothing_is_left_out() -> None:
    """Each version with each of its commands is among the requests above."""
    walked = {(request.version, request.command) for line in requests() if (request := whole_request(line)).is_known}
    assert walked == {
        *((version, command) for version in ("socks4", "socks4a") for command in (Command.CONNECT, Command.BIND)),
        *(("socks5", command) for command in Command if command.assigned),
        ("http", Command.CONNECT),
    }


def whole_request(line: Line) -> Request:
    request = play(line.start, [line.data]).result
    assert isinstance(request, Request)
    return request
