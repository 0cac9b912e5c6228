"""The server's side of a handshake: tells SOCKS4, SOCKS4a, SOCKS5 and HTTP CONNECT apart and reads the client's wish.

`serve` ends with a Request; the caller tries to reach its destination and sends what `reply` makes of the outcome.
Where the handshake itself fails, the steps send the protocol's answer to that and then raise: write `outgoing()`, then
close.
"""

from dataclasses import dataclass, field

from pysocksify.address import UNSPECIFIED, Address
from pysocksify.codes import Cd, Command, Method, Rep
from pysocksify.errors import Cause, ClientRefusedError, RemoteProtocolError
from pysocksify.protocol import http_connect, socks4, socks5
from pysocksify.protocol.conversation import Event, Exactly, Phase, Send, Steps
from pysocksify.protocol.firstbyte import unknown_protocol

_CHALLENGE = ("Proxy-Authenticate", 'Basic realm="pysocksify"')
_CLOSE = ("Connection", "close")
_COMMANDS = {
    "socks4": (Command.CONNECT, Command.BIND),
    "socks4a": (Command.CONNECT, Command.BIND),
    "socks5": (Command.CONNECT, Command.BIND, Command.UDP_ASSOCIATE),
    "http": (Command.CONNECT,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticate(Event):
    """May this user in? Answered with True or False. SOCKS4 has a user id and no password: `password` is None then, and
    the answer may also be Cd.NO_IDENTD, when the client's identd couldn't be asked; False is Cd.IDENTD_MISMATCH there.
    """

    username: bytes
    password: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the client wants.

    `version` is "socks4", "socks4a", "socks5" or "http". `command` may be one that `version` doesn't have (`is_known`):
    answer that with Cause.COMMAND_NOT_SUPPORTED. `username` is what the client called itself: nobody asked whether it's
    true unless an Authenticate came.
    """

    version: str
    command: Command
    destination: Address
    username: bytes | None

    @property
    def is_known(self) -> bool:
        """Whether the protocol has this command: UDP ASSOCIATE is SOCKS5's alone."""
        return self.command in _COMMANDS[self.version]


def serve(*, login_required: bool, check_userid: bool = False) -> Steps[Request]:
    """Everything up to the request. With `login_required` no Request comes before an Authenticate is answered True;
    with `check_userid` none of SOCKS4 does.

    Raises RemoteProtocolError, ClientRefusedError and PeerClosedError.
    """
    yield Phase("greeting")
    start: bytes = yield Exactly(1)
    if start[0] == socks4.VERSION:
        return (yield from _serve_socks4(start, login_required or check_userid))
    if start[0] == socks5.VERSION:
        return (yield from _serve_socks5(start, login_required))
    if start.isupper():
        return (yield from _serve_http(start, login_required))
    raise unknown_protocol(start[0])


def reply(request: Request, outcome: Cause | None, bound: Address | None = None) -> bytes:
    """The bytes that tell the client how its request went; None is success, and `bound` then our end of it.

    BIND has two replies (RFC 1928 section 6): `bound` is the port that was opened, then the peer that connected. With
    UDP ASSOCIATE it's where the client sends its datagrams.
    """
    end = UNSPECIFIED if bound is None or outcome is not None else bound
    if request.version in ("socks4", "socks4a"):
        return socks4.Reply(cd=Cd.GRANTED if outcome is None else outcome.cd, bound=end).encode()
    if request.version == "socks5":
        return socks5.Reply(rep=Rep.SUCCEEDED if outcome is None else outcome.rep, bound=end).encode()
    if outcome is None:
        return http_connect.reply(200).encode()
    return http_connect.reply(outcome.http_status, _CLOSE).encode()


def _serve_socks4(start: bytes, check_userid: bool) -> Steps[Request]:
    yield Phase("request")
    try:
        request = yield from socks4.Request.decode(start)
    except RemoteProtocolError:
        yield Send(socks4.Reply(cd=Cd.REJECTED).encode())
        raise
    if check_userid:
        answer: bool | Cd = yield Authenticate(username=request.userid, password=None)
        if answer is Cd.NO_IDENTD:
            yield Send(socks4.Reply(cd=Cd.NO_IDENTD).encode())
            raise ClientRefusedError("the client's identd can't be asked for its SOCKS4 user id")
        if answer is not True:
            # The one code of SOCKS4 that speaks of the user id.
            yield Send(socks4.Reply(cd=Cd.IDENTD_MISMATCH).encode())
            raise ClientRefusedError("the client's SOCKS4 user id isn't allowed")
    version = "socks4a" if request.destination.is_name else "socks4"
    return Request(
        version=version, command=request.cd, destination=request.destination, username=request.userid or None
    )


def _serve_socks5(start: bytes, login_required: bool) -> Steps[Request]:
    greeting = yield from socks5.Greeting.decode(start)
    method = _method(greeting.methods, login_required)
    yield Send(socks5.Choice(method=method).encode())
    if method == Method.NO_ACCEPTABLE:
        offered = ", ".join(f"0x{number:02X}" for number in greeting.methods[:8]) or "none"
        wanted = "0x02 (user name and password)" if login_required else "0x00 or 0x02"
        raise ClientRefusedError(f"the client offers no SOCKS5 method that we take: {offered}; not {wanted}")
    username = None
    if method == Method.USERNAME_PASSWORD:
        yield Phase("authentication")
        username = yield from _socks5_login()
    yield Phase("request")
    try:
        request = yield from socks5.Request.decode()
    except socks5.UnknownAddressTypeError:
        yield Send(socks5.Reply(rep=Rep.ADDRESS_TYPE_NOT_SUPPORTED).encode())
        raise
    except RemoteProtocolError:
        yield Send(socks5.Reply(rep=Rep.GENERAL_FAILURE).encode())
        raise
    return Request(version="socks5", command=request.cmd, destination=request.destination, username=username)


def _method(offered: tuple[Method, ...], login_required: bool) -> Method:
    if Method.NO_AUTHENTICATION in offered and not login_required:
        return Method.NO_AUTHENTICATION
    return Method.USERNAME_PASSWORD if Method.USERNAME_PASSWORD in offered else Method.NO_ACCEPTABLE


def _socks5_login() -> Steps[bytes]:
    try:
        login = yield from socks5.Login.decode()
    except RemoteProtocolError:
        yield Send(socks5.LOGIN_REFUSED.encode())
        raise
    allowed: bool = yield Authenticate(username=login.uname, password=login.passwd)
    if not allowed:
        yield Send(socks5.LOGIN_REFUSED.encode())
        raise ClientRefusedError("the client's user name or password is wrong")
    yield Send(socks5.LOGIN_ACCEPTED.encode())
    return login.uname


def _serve_http(start: bytes, login_required: bool) -> Steps[Request]:
    yield Phase("request")
    while True:
        try:
            request = yield from http_connect.Request.decode(start)
            if request.method != "CONNECT":
                yield Send(http_connect.reply(405, ("Allow", "CONNECT"), _CLOSE).encode())
                raise ClientRefusedError(
                    f"the client sent {request.method[:32]}; only CONNECT is served", Cause.COMMAND_NOT_SUPPORTED
                )
            if request.has_content:
                raise RemoteProtocolError("the CONNECT request has content")
            destination = request.destination
        except http_connect.HeadTooLongError:
            yield Send(http_connect.reply(431, _CLOSE).encode())
            raise
        except RemoteProtocolError:
            yield Send(http_connect.reply(400, _CLOSE).encode())
            raise
        login = request.login
        if login is not None or not login_required:
            break
        # Clients such as Java's send a login only when they are asked for it, and on the same connection.
        yield Send(http_connect.reply(407, _CHALLENGE).encode())
        start = b""
    if login_required and login is not None:
        yield Phase("authentication")
        allowed: bool = yield Authenticate(username=login[0], password=login[1])
        if not allowed:
            yield Send(http_connect.reply(407, _CHALLENGE, _CLOSE).encode())
            raise ClientRefusedError("the client's user name or password is wrong")
    username = None if login is None else login[0]
    return Request(version="http", command=Command.CONNECT, destination=destination, username=username)
