"""HTTP CONNECT: the client, and the messages for both roles (RFC 9110 section 9.3.6, RFC 9112; Basic, RFC 7617).

Only the head of a message is ever read here: what follows the empty line belongs to the tunnel, whatever Content-Length
or Transfer-Encoding say (RFC 9110 section 9.3.6 has a client ignore both in a 2xx reply to CONNECT).
"""

import base64
import binascii
from dataclasses import dataclass, field

from pysocksify.address import Address
from pysocksify.errors import (
    Cause,
    LocalProtocolError,
    PeerClosedError,
    RemoteProtocolError,
    ReplyError,
    cause_of_http_status,
)
from pysocksify.protocol.conversation import Accepted, Exactly, Phase, Send, Steps, Until

# All of a message's head, interim replies included. Servers allow 8 to 64 KiB for a request (nginx, Squid); Squid's
# reply_header_max_size is 64 KiB.
HEAD_LIMIT = 65536
# "HTTP/1.1 200": no shorter status line has a code (RFC 9112 section 4).
_STATUS_SIZE = 12
# A reason phrase is the proxy's own text and ends on somebody's terminal.
_REASON_LIMIT = 100

REASONS = {
    200: "Connection established",
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    407: "Proxy Authentication Required",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

Fields = tuple[tuple[str, str], ...]

_BLANKS = " \t"
# RFC 9110 section 5.6.2.
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class HeadTooLongError(RemoteProtocolError):
    """The head of a message has more than HEAD_LIMIT bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request of any method; `target` as it stands in the first line.

    ```
    CONNECT host:port HTTP/1.1 CRLF
    Host: host:port CRLF
    Proxy-Authorization: Basic base64(user:password) CRLF
    CRLF
    ```
    """

    method: str
    target: str
    fields: Fields = field(default=(), repr=False)

    @classmethod
    def connect(cls, destination: Address, *, username: bytes | None, password: bytes | None) -> "Request":
        """The request for a tunnel. Raises LocalProtocolError for what can't be said."""
        try:
            # No host gets into the head that hasn't been looked at for line ends.
            authority = str(Address.of(destination.host, destination.port))
        except ValueError as error:
            raise LocalProtocolError(str(error), Cause.ADDRESS_NOT_SUPPORTED) from None
        fields = [("Host", authority)]
        if username is not None:
            if b":" in username:
                raise LocalProtocolError(
                    "the user name holds a colon, which ends it in HTTP's Basic login", Cause.NOT_ALLOWED
                )
            login = base64.b64encode(username + b":" + (password or b"")).decode("ascii")
            fields.append(("Proxy-Authorization", f"Basic {login}"))
        return cls(method="CONNECT", target=authority, fields=tuple(fields))

    def encode(self) -> bytes:
        """The bytes of it."""
        return _encode(f"{self.method} {self.target} HTTP/1.1", self.fields)

    @classmethod
    def decode(cls, start: bytes = b"") -> Steps["Request"]:
        """Read one; `start`: the bytes of it that were read already. Raises RemoteProtocolError, HeadTooLongError."""
        left = HEAD_LIMIT - len(start)
        rest = yield from _read_line(left)
        left -= len(rest)
        line = start + rest
        if not line.strip(b"\r\n"):
            # An empty line before a request is to be forgiven (RFC 9112 section 2.2).
            line = yield from _read_line(left)
            left -= len(line)
        words = line.decode("latin-1").rstrip("\r\n").split(" ")
        if len(words) != 3 or not words[0] or not _TOKEN.issuperset(words[0]) or not words[1]:
            raise RemoteProtocolError("the HTTP request's first line isn't method, target and version")
        if not _is_http_1(words[2].encode("latin-1")):
            raise RemoteProtocolError(f"the HTTP request has version {_shown(words[2].encode('latin-1'))}, not HTTP/1")
        fields, _ = yield from _read_fields(left, strict=True)
        return cls(method=words[0], target=words[1], fields=fields)

    @property
    def destination(self) -> Address:
        """Where a CONNECT goes. Raises RemoteProtocolError when the target isn't host:port."""
        if "@" in self.target:
            raise RemoteProtocolError("the CONNECT request's target isn't host:port: it holds a login")
        try:
            return Address.parse(self.target)
        except ValueError as error:
            raise RemoteProtocolError(f"the CONNECT request's target: {error}") from None

    @property
    def login(self) -> tuple[bytes, bytes] | None:
        """User name and password of a Basic login; None for none, and for one that can't be read."""
        scheme, _, encoded = _value(self.fields, "proxy-authorization").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            username, colon, password = base64.b64decode(encoded.strip(" "), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return None
        return (username, password) if colon else None

    @property
    def has_content(self) -> bool:
        """Whether a body follows the head, which a CONNECT can't have (RFC 9110 section 9.3.6)."""
        length = _value(self.fields, "content-length")
        return length not in ("", "0") or _value(self.fields, "transfer-encoding") != ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server answers.

    ```
    HTTP/1.1 status reason CRLF
    fields CRLF
    CRLF
    ```
    """

    status: int
    reason: str
    fields: Fields = ()

    def encode(self) -> bytes:
        """The bytes of it."""
        return _encode(f"HTTP/1.1 {self.status} {self.reason}", self.fields)

    @classmethod
    def decode(cls) -> Steps["Reply"]:
        """Read one of 2xx, and the interim ones (1xx, RFC 9110 section 15.2) before it, which are dropped.

        Any other status is a ReplyError as soon as its line is there, or as much of it as the proxy sent before it
        closed. Raises RemoteProtocolError too, among them HeadTooLongError.
        """
        left = HEAD_LIMIT
        while True:
            status = yield from _read_status()
            left -= _STATUS_SIZE
            try:
                rest = yield from _read_line(left)
            except PeerClosedError as error:
                if 100 <= status <= 299:
                    raise
                rest = error.partial
            left -= len(rest)
            if rest[:1] not in (b"", b" ", b"\r", b"\n"):
                raise RemoteProtocolError(f"the HTTP reply's status is {status}{_shown(rest)}, not three digits")
            reason = _printable(rest)
            if status == 101 or status < 100:
                raise RemoteProtocolError(f"the proxy answered {status}, which CONNECT can't have as its answer")
            if status >= 300:
                raise _refusal(status, reason)
            fields, left = yield from _read_fields(left, strict=False)
            if status >= 200:
                return cls(status=status, reason=reason, fields=fields)


def reply(status: int, *fields: tuple[str, str]) -> Reply:
    """The server's answer with that status; all but 2xx say that nothing follows."""
    if 200 <= status <= 299:
        return Reply(status=status, reason=REASONS[status], fields=fields)
    return Reply(status=status, reason=REASONS[status], fields=(*fields, ("Content-Length", "0")))


def connect(destination: Address, *, username: bytes | None, password: bytes | None) -> Steps[Accepted]:
    """The client's side of CONNECT, with a Basic login when there is a user name.

    Raises LocalProtocolError before anything is sent, ReplyError, RemoteProtocolError and PeerClosedError.
    """
    yield Phase("request")
    yield Send(Request.connect(destination, username=username, password=password).encode())
    try:
        yield from Reply.decode()
    except ReplyError as error:
        if error.code != 407:
            raise
        why = "it wants a user name and a password" if username is None else "wrong user name or password"
        yield Phase("authentication")
        raise ReplyError(f"{error}: {why}", error.cause, error.code) from None
    return Accepted(None)


def _encode(first_line: str, fields: Fields) -> bytes:
    lines = [first_line, *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _read_line(left: int) -> Steps[bytes]:
    """A line with its end; a bare LF ends one too (RFC 9112 section 2.2). `left`: what HEAD_LIMIT still allows."""
    try:
        line: bytes = yield Until(b"\n", max(0, left), "the HTTP head")
    except RemoteProtocolError:
        raise HeadTooLongError(f"the head of the HTTP message has more than {HEAD_LIMIT} bytes") from None
    return line


def _read_status() -> Steps[int]:
    try:
        data: bytes = yield Exactly(_STATUS_SIZE)
    except PeerClosedError as error:
        # A SOCKS server answers some two bytes to "CONNECT" and closes.
        if not error.partial or b"HTTP/1."[: len(error.partial)] == error.partial[:7]:
            raise
        data = error.partial
    if not (_is_http_1(data[:8]) and data[8:9] == b" " and data[9:].isdigit()):
        raise RemoteProtocolError(f"the proxy answered {_shown(data)}, which is no HTTP/1 reply")
    return int(data[9:])


def _read_fields(left: int, *, strict: bool) -> Steps[tuple[Fields, int]]:
    """The header fields and the empty line after them (RFC 9112 section 5), and what is then left of HEAD_LIMIT.

    A line that is no field is a RemoteProtocolError, or left out if not `strict`.
    """
    fields: list[tuple[str, str]] = []
    while True:
        line = yield from _read_line(left)
        left -= len(line)
        text = line.decode("latin-1").rstrip("\r\n")
        if not text:
            return tuple(fields), left
        name, colon, value = text.partition(":")
        if text[0] in _BLANKS and fields:
            # obs-fold: a recipient takes it for spaces (RFC 9112 section 5.2).
            name, value = fields.pop()
            fields.append((name, f"{value} {text.strip(_BLANKS)}"))
        elif colon and name and _TOKEN.issuperset(name):
            fields.append((name, value.strip(_BLANKS)))
        elif strict:
            raise RemoteProtocolError("the HTTP message has a header line that isn't name: value")


def _is_http_1(version: bytes) -> bool:
    return len(version) == 8 and version.startswith(b"HTTP/1.") and version[7:].isdigit()


def _value(fields: Fields, name: str) -> str:
    """The first value of a field; empty for none."""
    return next((value for key, value in fields if key.lower() == name), "")


def _refusal(status: int, reason: str) -> ReplyError:
    said = f"{status} {reason}" if reason else f"{status}"
    return ReplyError(f"the proxy answered {said}", cause_of_http_status(status), status)


def _printable(text: bytes) -> str:
    return "".join(c for c in text.decode("latin-1") if " " <= c <= "~").strip()[:_REASON_LIMIT]


def _shown(data: bytes) -> str:
    """The beginning of some bytes, for an error's text. Never of a target or a field: they may hold a password."""
    return ascii(data[:32])[1:]
