"""SOCKS4 and SOCKS4a: CONNECT for the client, the messages for both roles.

From "SOCKS: A protocol for TCP proxy across firewalls" and "SOCKS 4A: A Simple Extension to SOCKS 4 Protocol" (Ying-Da
Lee). One request, one reply. SOCKS4 has no passwords, no IPv6 and one code for nearly every failure.
"""

from dataclasses import dataclass

from pysocksify.address import UNSPECIFIED, Address
from pysocksify.codes import Cd, Command
from pysocksify.errors import Cause, LocalProtocolError, RemoteProtocolError, ReplyError, cause_of_cd
from pysocksify.protocol.conversation import Accepted, Exactly, Phase, Send, Steps, Until
from pysocksify.protocol.firstbyte import wrong_version

VERSION = 4
_REPLY_VERSION = 0
# The specifications set no limits. User ids: 255 as in RFC 1929; names: 255 as in RFC 1928 section 5.
USERID_LIMIT = 255
NAME_LIMIT = 255
# SOCKS4a: an address 0.0.0.x with x not 0 says that a name follows the user id.
_NAME_FOLLOWS = bytes((0, 0, 0, 1))
_NO_ADDRESS = bytes(4)

_MEANINGS = {
    Cd.REJECTED: "request rejected or failed",
    Cd.NO_IDENTD: "it can't reach identd on this machine",
    Cd.IDENTD_MISMATCH: "identd reports another user id",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asks for; the destination's host is an IPv4 address or, in SOCKS4a, a name.

    ```
    vn=4  cd  dstport  dstip  userid ... 00                     SOCKS4
    vn=4  cd  dstport  00 00 00 x  userid ... 00  name ... 00   SOCKS4a, x not 0
    1     1   2        4      variable       variable
    ```
    """

    cd: Command
    destination: Address
    userid: bytes

    def encode(self) -> bytes:
        """The bytes of it. Raises LocalProtocolError for what can't be said."""
        if b"\0" in self.userid:
            raise LocalProtocolError("the user id holds a NUL byte, which ends it in SOCKS4", Cause.NOT_ALLOWED)
        if len(self.userid) > USERID_LIMIT:
            raise LocalProtocolError(
                f"the user id has {len(self.userid)} bytes, {USERID_LIMIT} are the most", Cause.NOT_ALLOWED
            )
        dstip, name = _dstip(self.destination)
        head = bytes((VERSION, self.cd)) + self.destination.port.to_bytes(2, "big") + dstip
        return head + self.userid + b"\0" + name

    @classmethod
    def decode(cls, start: bytes = b"") -> Steps["Request"]:
        """Read one; `start`: the bytes of it that were read already. Raises RemoteProtocolError."""
        head: bytes = start + (yield Exactly(8 - len(start)))
        if head[0] != VERSION:
            raise wrong_version("the SOCKS4 request", head[0], VERSION)
        cd, port, dstip = Command(head[1]), int.from_bytes(head[2:4], "big"), head[4:8]
        userid: bytes = yield Until(b"\0", USERID_LIMIT + 1, "a SOCKS4 user id")
        if dstip[:3] != bytes(3) or dstip == _NO_ADDRESS:
            return cls(cd=cd, destination=Address.from_packed(dstip, port), userid=userid[:-1])
        name: bytes = yield Until(b"\0", NAME_LIMIT + 1, "a SOCKS4a host name")
        try:
            destination = Address.from_wire_name(name[:-1], port)
        except ValueError as error:
            raise RemoteProtocolError(f"the SOCKS4a request's destination: {error}") from None
        return cls(cd=cd, destination=destination, userid=userid[:-1])


def _dstip(destination: Address) -> tuple[bytes, bytes]:
    """The four bytes of the address, and the name with its NUL or nothing."""
    if destination.is_name:
        name = destination.host.encode()
        if not name:
            raise LocalProtocolError("the host name is empty", Cause.ADDRESS_NOT_SUPPORTED)
        if b"\0" in name:
            raise LocalProtocolError(
                "the host name holds a NUL byte, which ends it in SOCKS4a", Cause.ADDRESS_NOT_SUPPORTED
            )
        if len(name) > NAME_LIMIT:
            raise LocalProtocolError(
                f"the host name has {len(name)} bytes, {NAME_LIMIT} are the most", Cause.ADDRESS_NOT_SUPPORTED
            )
        return _NAME_FOLLOWS, name + b"\0"
    packed = destination.packed
    if len(packed) != 4:
        raise LocalProtocolError("SOCKS4 can't carry IPv6; use socks5", Cause.ADDRESS_NOT_SUPPORTED)
    if packed[:3] == bytes(3) and packed[3]:
        raise LocalProtocolError(
            f"SOCKS4 can't ask for {destination.host}: SOCKS4a takes 0.0.0.x for the sign that a name follows",
            Cause.ADDRESS_NOT_SUPPORTED,
        )
    return packed, b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server answers; after CONNECT the address means nothing to most servers and is often zeros. In the first
    reply to BIND zeros stand for the address by which the client reached the server.

    ```
    vn=0  cd  dstport  dstip
    1     1   2        4
    ```
    """

    cd: Cd
    bound: Address = UNSPECIFIED

    def encode(self) -> bytes:
        """The bytes of it; an address that isn't IPv4 is sent as zeros."""
        packed = b"" if self.bound.is_name else self.bound.packed
        dstip = packed if len(packed) == 4 else _NO_ADDRESS
        return bytes((_REPLY_VERSION, self.cd)) + self.bound.port.to_bytes(2, "big") + dstip

    @classmethod
    def decode(cls) -> Steps["Reply"]:
        """Read one that says yes; one that says no is a ReplyError as soon as its code is there.

        Raises RemoteProtocolError too.
        """
        head: bytes = yield Exactly(2)
        if head[0] != _REPLY_VERSION:
            raise wrong_version("the SOCKS4 reply", head[0], _REPLY_VERSION)
        cd = Cd(head[1])
        if cd != Cd.GRANTED:
            meaning = _MEANINGS.get(cd, "a code that SOCKS4 doesn't have")
            raise ReplyError(f"the proxy answered 0x{cd:02X} ({cd:d}): {meaning}", cause_of_cd(cd), cd)
        rest: bytes = yield Exactly(6)
        return cls(cd=cd, bound=Address.from_packed(rest[2:], int.from_bytes(rest[:2], "big")))


def connect(destination: Address, *, userid: bytes, remote_dns: bool) -> Steps[Accepted]:
    """The client's side of CONNECT; `remote_dns` is what makes it SOCKS4a: names may be sent.

    Raises LocalProtocolError before anything is sent, ReplyError, RemoteProtocolError and PeerClosedError.
    """
    yield Phase("request")
    if destination.is_name and not remote_dns:
        raise LocalProtocolError("SOCKS4 can't carry a host name; use socks4a", Cause.ADDRESS_NOT_SUPPORTED)
    yield Send(Request(cd=Command.CONNECT, destination=destination, userid=userid).encode())
    reply = yield from Reply.decode()
    return Accepted(reply.bound)
