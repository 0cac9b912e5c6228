"""Requests that a program makes of the supervisor, and the replies: what stands in the packets.

The supervisor listens on a Unix socket of the abstract namespace (unix(7)): it's reached from any root directory and by
any user, who must know the token. For each request the caller connects, sends one packet, reads one, and closes:
nothing stays open in the program. Numbers are the machine's own. A packet may carry a descriptor (SCM_RIGHTS).

    request   u32 magic, u32 op, i32 tid, u32 length, u8 token[16]; then the payload of that length
    reply     i32 error, u32 verdict, u32 length; then the payload

Loaded before the target's exec, and in the programs of the python engine: imports next to nothing.
"""

import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

VARIABLE = "PYSOCKSIFY_HANDOVER"
"""The environment variable `NAME:TOKEN`, hexadecimal both. Empty: another engine has taken over, stand aside."""

PRELOAD = "LD_PRELOAD"
SHIM = "/pysocksify/engines/preload/shim-"
"""What the path of each of the shim's objects has in it."""

MAGIC = 0x70736B31  # "psk1"
TOKEN_SIZE = 16
MOST = 8192
"""Bytes of a request's payload. Names have 255, paths 4096, and no query fills a packet of a local network."""
REPLY_MOST = 12 + 65535  # a DNS message by TCP (RFC 1035 section 4.2.2)

CONNECT = 1
"""A socket and a sockaddr: connect(2)."""
INTERRUPTED = 2
"""Second packet on the connection of a CONNECT that waits: a signal ended the wait. One reply follows, to both."""
PEER = 3
"""A socket: getpeername(2). ANSWER with the sockaddr, or PROCEED."""
ERROR = 4
"""A socket: getsockopt(2) of SO_ERROR. ANSWER with an i32, or PROCEED."""
SOCKET = 5
"""i32 family, type, protocol: socket(2) of what isn't TCP. ANSWER with a descriptor."""
SEND = 6
"""A UDP socket and the sockaddr of a send, or nothing: PROCEED; or REDIRECT, and without control messages then."""
SOURCE = 7
"""A socket and the sockaddr that a receive gave: ANSWER with what to show for it, or PROCEED."""
NAME = 8
"""i32 family (0: all) and a name: ANSWER with addresses as `pack_addresses` has them. Errors: see `NAME_ERRORS`."""
POINTER = 9
"""A sockaddr: ANSWER with the name, or ENOENT."""
DNS = 10
"""A query: ANSWER with the answer, or PROCEED: ask the name server."""
EXEC = 11
"""A file and the path by which it's to be executed: an errno, or ANSWER with the shim's object for it."""
PATH = 12
"""The path of a Unix socket: PROCEED or ECONNREFUSED."""
REFUSED = 13
"""Text: what the caller refuses by itself, for the person; ANSWER with the errno for it."""

ANSWER, PROCEED, REDIRECT = 0, 1, 2
"""Verdicts: `error` is the outcome; let the kernel do it as it stands; the same with the sockaddr in the payload."""

NAME_ERRORS = ("ENOENT", "ENODATA", "EAGAIN", "EIO")
"""errno of a NAME: no such name, no address of that family, not now, can't be had."""

_REQUEST = struct.Struct("=IIiI16s")
_REPLY = struct.Struct("=iII")
_ENTRY = struct.Struct("=I16s")
_FAMILY = struct.Struct("=i")
SOCKET_ARGUMENTS = struct.Struct("=iii")
ERROR_VALUE = struct.Struct("=i")


def variable(name: bytes, token: bytes) -> str:
    """The value of VARIABLE. `name` is the socket's, without its leading NUL."""
    return f"{name.hex()}:{token.hex()}"


def parse_variable(value: str) -> tuple[bytes, bytes]:
    """The socket's address for connect(), leading NUL and all, and the token. ValueError."""
    name, _, token = value.partition(":")
    if not name or len(token) != 2 * TOKEN_SIZE:
        raise ValueError(f"{VARIABLE} isn't what pysocksify has set")
    return b"\0" + bytes.fromhex(name), bytes.fromhex(token)


def pack_request(op: int, tid: int, token: bytes, payload: bytes = b"") -> bytes:
    """A request's packet."""
    return _REQUEST.pack(MAGIC, op, tid, len(payload), token) + payload


def unpack_request(packet: bytes) -> tuple[int, int, bytes, bytes]:
    """Op, tid, token and payload of a packet. ValueError: it's no request."""
    if len(packet) < _REQUEST.size:
        raise ValueError("too short")
    magic, op, tid, length, token = _REQUEST.unpack_from(packet)
    if magic != MAGIC or length != len(packet) - _REQUEST.size:
        raise ValueError("no request")
    return op, tid, token, packet[_REQUEST.size :]


def pack_reply(error: int, verdict: int = ANSWER, payload: bytes = b"") -> bytes:
    """A reply's packet."""
    return _REPLY.pack(error, verdict, len(payload)) + payload


def unpack_reply(packet: bytes) -> tuple[int, int, bytes]:
    """Error, verdict and payload of a packet. ValueError: it's no reply, for example the supervisor's end (b"")."""
    if len(packet) < _REPLY.size:
        raise ValueError("too short")
    error, verdict, length = _REPLY.unpack_from(packet)
    if length != len(packet) - _REPLY.size:
        raise ValueError("no reply")
    return error, verdict, packet[_REPLY.size :]


def pack_name(family: int, name: bytes) -> bytes:
    """The payload of a NAME."""
    return _FAMILY.pack(family) + name


def unpack_name(payload: bytes) -> tuple[int, bytes]:
    """Family and name of a NAME's payload. ValueError."""
    if len(payload) < _FAMILY.size:
        raise ValueError("too short")
    return _FAMILY.unpack_from(payload)[0], payload[_FAMILY.size :]


def pack_addresses(addresses: "list[tuple[int, bytes]]", canonical: bytes) -> bytes:
    """What a NAME is answered: u32 count; count times u32 family and 16 bytes, of which IPv4 uses 4; the name itself.

    `addresses` are (family, 4 or 16 bytes in network order), best first.
    """
    entries = b"".join(_ENTRY.pack(family, packed) for family, packed in addresses)
    return len(addresses).to_bytes(4, sys.byteorder) + entries + canonical


def unpack_addresses(payload: bytes) -> "tuple[list[tuple[int, bytes]], bytes]":
    """Addresses as (family, 4 or 16 bytes) and canonical name, of the answer to a NAME. ValueError."""
    count = int.from_bytes(payload[:4], sys.byteorder)
    end = 4 + count * _ENTRY.size
    if len(payload) < max(4, end):
        raise ValueError("too short")
    entries = _ENTRY.iter_unpack(payload[4:end])
    return [(family, packed[:4] if family == 2 else packed) for family, packed in entries], payload[end:]


def stand_aside(environ: "MutableMapping[str, str]") -> None:
    """Have no outer pysocksify's shim or hook work in a target that an engine of ours is going to catch.

    `environ` is one that was given by an outer pysocksify, or isn't changed.
    """
    if VARIABLE not in environ:
        return
    environ[VARIABLE] = ""
    left = [entry for entry in environ.get(PRELOAD, "").replace(" ", ":").split(":") if entry and SHIM not in entry]
    if left:
        environ[PRELOAD] = ":".join(left)
    else:
        environ.pop(PRELOAD, None)
