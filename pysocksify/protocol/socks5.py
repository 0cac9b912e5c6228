"""SOCKS5: CONNECT for the client, the messages for both roles (RFC 1928; user name and password, RFC 1929).

Three rounds: greeting and method; with method 02 a user name, a password and a status; request and reply.
"""

from dataclasses import dataclass, field

from pysocksify.address import UNSPECIFIED, Address
from pysocksify.codes import Atyp, Command, Method, Rep
from pysocksify.errors import Cause, LocalProtocolError, RemoteProtocolError, ReplyError, cause_of_rep
from pysocksify.protocol.conversation import Accepted, Exactly, Phase, Send, Steps
from pysocksify.protocol.firstbyte import wrong_version

VERSION = 5
_LOGIN_VERSION = 1
_LOGIN_SUCCEEDED = 0
_LOGIN_FAILED = 1
# Each length is one byte.
_LIMIT = 255

_MEANINGS = {
    Rep.GENERAL_FAILURE: "general failure",
    Rep.NOT_ALLOWED: "not allowed by its rules",
    Rep.NETWORK_UNREACHABLE: "network unreachable",
    Rep.HOST_UNREACHABLE: "host unreachable",
    Rep.CONNECTION_REFUSED: "connection refused",
    Rep.TTL_EXPIRED: "TTL expired",
    Rep.COMMAND_NOT_SUPPORTED: "command not supported",
    Rep.ADDRESS_TYPE_NOT_SUPPORTED: "address type not supported",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """The methods that a client offers (RFC 1928 section 3).

    ```
    ver=5  nmethods  methods
    1      1         1 to 255
    ```
    """

    methods: tuple[Method, ...]

    def encode(self) -> bytes:
        """The bytes of it."""
        return bytes((VERSION, len(self.methods), *self.methods))

    @classmethod
    def decode(cls, start: bytes = b"") -> Steps["Greeting"]:
        """Read one; `start`: the bytes of it that were read already. Raises RemoteProtocolError.

        No method at all is a greeting too: a server answers it as one without an acceptable method.
        """
        head: bytes = start + (yield Exactly(2 - len(start)))
        if head[0] != VERSION:
            raise wrong_version("the SOCKS5 greeting", head[0], VERSION)
        methods: bytes = yield Exactly(head[1])
        return cls(methods=tuple(Method(number) for number in methods))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The method that the server chose, FF for none (RFC 1928 section 3).

    ```
    ver=5  method
    1      1
    ```
    """

    method: Method

    def encode(self) -> bytes:
        """The bytes of it."""
        return bytes((VERSION, self.method))

    @classmethod
    def decode(cls) -> Steps["Choice"]:
        """Read one. Raises RemoteProtocolError."""
        return cls(method=Method((yield from cls.decode_method())))

    @staticmethod
    def decode_method() -> Steps[int]:
        """Read one; the method's number. Raises RemoteProtocolError."""
        data: bytes = yield Exactly(2)
        if data[0] != VERSION:
            raise wrong_version("the SOCKS5 method choice", data[0], VERSION)
        return data[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """User name and password (RFC 1929 section 2).

    ```
    ver=1  ulen  uname     plen  passwd
    1      1     1 to 255  1     1 to 255
    ```
    The RFC asks for at least one byte of each. An empty password is taken and sent all the same: proxies that give out
    tokens as user names have their clients send none, and curl does so. An empty user name isn't.
    """

    uname: bytes
    passwd: bytes = field(repr=False)

    def encode(self) -> bytes:
        """The bytes of it. Raises LocalProtocolError for a length that SOCKS5 doesn't have."""
        if not self.uname:
            raise LocalProtocolError("the user name is empty, SOCKS5 asks for 1 to 255 bytes", Cause.NOT_ALLOWED)
        for what, data in (("user name", self.uname), ("password", self.passwd)):
            if len(data) > _LIMIT:
                raise LocalProtocolError(f"the {what} has {len(data)} bytes, {_LIMIT} are the most", Cause.NOT_ALLOWED)
        return bytes((_LOGIN_VERSION, len(self.uname))) + self.uname + bytes((len(self.passwd),)) + self.passwd

    @classmethod
    def decode(cls) -> Steps["Login"]:
        """Read one. Raises RemoteProtocolError."""
        head: bytes = yield Exactly(2)
        if head[0] != _LOGIN_VERSION:
            raise wrong_version("the SOCKS5 login", head[0], _LOGIN_VERSION)
        if not head[1]:
            raise RemoteProtocolError("the SOCKS5 login has an empty user name")
        uname: bytes = yield Exactly(head[1])
        plen: bytes = yield Exactly(1)
        passwd: bytes = yield Exactly(plen[0])
        return cls(uname=uname, passwd=passwd)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginStatus:
    """What the server says to a login: 00 is yes, all else no (RFC 1929 section 2).

    ```
    ver=1  status
    1      1
    ```
    """

    status: int

    def encode(self) -> bytes:
        """The bytes of it."""
        return bytes((_LOGIN_VERSION, self.status))

    @classmethod
    def decode(cls) -> Steps["LoginStatus"]:
        """Read one that says yes; one that says no is a ReplyError. Raises RemoteProtocolError too."""
        data: bytes = yield Exactly(2)
        # Some servers put the version of SOCKS here instead of the login's.
        if data[0] not in (_LOGIN_VERSION, VERSION):
            raise wrong_version("the SOCKS5 login status", data[0], _LOGIN_VERSION)
        if data[1] != _LOGIN_SUCCEEDED:
            raise ReplyError(
                f"the proxy refused the user name or the password (status 0x{data[1]:02X})", Cause.NOT_ALLOWED, data[1]
            )
        return cls(status=data[1])


LOGIN_ACCEPTED = LoginStatus(status=_LOGIN_SUCCEEDED)
LOGIN_REFUSED = LoginStatus(status=_LOGIN_FAILED)


class UnknownAddressTypeError(RemoteProtocolError):
    """An address type that RFC 1928 doesn't have, so what follows can't be read; `atyp` is its number."""

    def __init__(self, message: str, atyp: int) -> None:
        super().__init__(f"{message} has address type 0x{atyp:02X}, which SOCKS5 doesn't have")
        self.atyp = atyp


def encode_address(address: Address) -> bytes:
    """ATYP, address and port (RFC 1928 sections 4 and 5). Raises LocalProtocolError for a name of a wrong length.

    ```
    atyp=1  4 bytes         port
    atyp=3  length and name port
    atyp=4  16 bytes        port
    1       variable        2
    ```
    """
    port = address.port.to_bytes(2, "big")
    if not address.is_name:
        packed = address.packed
        return bytes((Atyp.IPV4 if len(packed) == 4 else Atyp.IPV6,)) + packed + port
    name = address.host.encode()
    if not name:
        raise LocalProtocolError("the host name is empty", Cause.ADDRESS_NOT_SUPPORTED)
    if len(name) > _LIMIT:
        raise LocalProtocolError(
            f"the host name has {len(name)} bytes, {_LIMIT} are the most", Cause.ADDRESS_NOT_SUPPORTED
        )
    return bytes((Atyp.DOMAINNAME, len(name))) + name + port


def decode_address(atyp: int, message: str) -> Steps[Address]:
    """Read the address and the port that follow ATYP.

    Raises UnknownAddressTypeError, and ValueError once all of a name has been read that isn't one; `message` is the
    noun for the error's text.
    """
    if atyp == Atyp.DOMAINNAME:
        length: bytes = yield Exactly(1)
        name: bytes = yield Exactly(length[0] + 2)
        return Address.from_wire_name(name[:-2], int.from_bytes(name[-2:], "big"))
    if atyp not in (Atyp.IPV4, Atyp.IPV6):
        raise UnknownAddressTypeError(message, atyp)
    packed: bytes = yield Exactly(6 if atyp == Atyp.IPV4 else 18)
    return Address.from_packed(packed[:-2], int.from_bytes(packed[-2:], "big"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asks for (RFC 1928 section 4).

    ```
    ver=5  cmd  rsv=0  atyp  dst_addr  dst_port
    1      1    1      1     variable  2
    ```
    """

    cmd: Command
    destination: Address

    def encode(self) -> bytes:
        """The bytes of it. Raises LocalProtocolError."""
        return bytes((VERSION, self.cmd, 0)) + encode_address(self.destination)

    @classmethod
    def decode(cls) -> Steps["Request"]:
        """Read one. Raises RemoteProtocolError, UnknownAddressTypeError among them."""
        head: bytes = yield Exactly(4)
        if head[0] != VERSION:
            raise wrong_version("the SOCKS5 request", head[0], VERSION)
        try:
            destination = yield from decode_address(head[3], "the SOCKS5 request")
        except ValueError as error:
            if head[1] != Command.UDP_ASSOCIATE:
                raise RemoteProtocolError(f"the SOCKS5 request's destination: {error}") from None
            # Where the client will send from, not where to. PySocks says the name "0" when it doesn't know.
            destination = UNSPECIFIED
        return cls(cmd=Command(head[1]), destination=destination)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server answers (RFC 1928 section 6).

    ```
    ver=5  rep  rsv=0  atyp  bnd_addr  bnd_port
    1      1    1      1     variable  2
    ```
    """

    rep: Rep
    bound: Address | None = UNSPECIFIED

    def encode(self) -> bytes:
        """The bytes of it."""
        return bytes((VERSION, self.rep, 0)) + encode_address(self.bound or UNSPECIFIED)

    @classmethod
    def decode(cls) -> Steps["Reply"]:
        """Read one that says yes; one that says no is a ReplyError as soon as its code is there.

        `bound` is None where the server sent a name that isn't one, as an empty one: nobody needs it after CONNECT.
        Raises RemoteProtocolError too.
        """
        head: bytes = yield Exactly(2)
        if head[0] != VERSION:
            raise wrong_version("the SOCKS5 reply", head[0], VERSION)
        rep = Rep.SUCCEEDED
        if head[1] != rep:
            rep = Rep(head[1])
            meaning = _MEANINGS.get(rep, "a code that RFC 1928 doesn't assign")
            raise ReplyError(f"the proxy answered 0x{rep:02X}: {meaning}", cause_of_rep(rep), rep)
        rest: bytes = yield Exactly(2)
        try:
            bound = yield from decode_address(rest[1], "the SOCKS5 reply")
        except ValueError:
            return cls(rep=rep, bound=None)
        return cls(rep=rep, bound=bound)


_WITHOUT_LOGIN = Greeting(methods=(Method.NO_AUTHENTICATION,))
_WITH_LOGIN = Greeting(methods=(Method.NO_AUTHENTICATION, Method.USERNAME_PASSWORD))


def connect(destination: Address, *, username: bytes | None, password: bytes | None) -> Steps[Accepted]:
    """The client's side of CONNECT. With a user name the method 02 is offered beside 00; no password is an empty one.

    Raises LocalProtocolError before anything is sent, ReplyError, RemoteProtocolError and PeerClosedError.
    """
    yield Phase("greeting")
    login = None if username is None else Login(uname=username, passwd=password or b"").encode()
    request = Request(cmd=Command.CONNECT, destination=destination).encode()
    offered = _WITHOUT_LOGIN if login is None else _WITH_LOGIN
    yield Send(offered.encode())
    method = yield from Choice.decode_method()
    if method != Method.NO_AUTHENTICATION:
        _check_choice(Method(method), offered.methods)
    if login is not None and method == Method.USERNAME_PASSWORD:
        yield Phase("authentication")
        yield Send(login)
        yield from LoginStatus.decode()
    yield Phase("request")
    yield Send(request)
    reply = yield from Reply.decode()
    return Accepted(reply.bound)


def _check_choice(method: Method, offered: tuple[Method, ...]) -> None:
    if method == Method.NO_ACCEPTABLE:
        wants = "it wants another one" if len(offered) > 1 else "it probably wants a user name and a password"
        numbers = " and ".join(f"0x{number:02X}" for number in offered)
        raise ReplyError(f"the proxy answered 0xFF to method {numbers}: {wants}", Cause.NOT_ALLOWED, method)
    if method not in offered:
        name = f" ({method.name})" if method.assigned else ""
        raise RemoteProtocolError(f"the proxy chose method 0x{method:02X}{name}, which was not offered")
