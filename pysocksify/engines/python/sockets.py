"""What stands in for the methods of sockets: each asks whoever answers here, or does what it always did.

Loaded into programs. A stand-in takes any socket; where nobody answers (`layers.here()`) it is the true method. What
the kernel can't do wrong (a Unix socket, a numeric address on loopback) is left to it once the supervisor has said so.
"""

import _socket
import errno
import select
import struct
import sys
from time import monotonic

from pysocksify.engines.handover import wire
from pysocksify.engines.python import layers
from pysocksify.engines.python.addresses import INET, failure, numeric, python_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pysocksify.engines.python.layers import Answering

true = _socket.socket  # the class itself, whoever replaces its name
WRAPPED = type(true) is not type
"""This program is wrapped by the python engine: `true` is what its copy of this module put in place."""
_family, _type = true.family.__get__, true.type.__get__  # integers, not enum members
STREAM, DGRAM, KINDS = int(_socket.SOCK_STREAM), int(_socket.SOCK_DGRAM), 0xF  # SOCK_TYPE_MASK, linux/net.h
PLAIN = [
    getattr(_socket, name) for name in ("AF_UNIX", "AF_NETLINK", "AF_ALG") if hasattr(_socket, name)
]  # families that lead nowhere
FASTOPEN = getattr(_socket, "MSG_FASTOPEN", 0)
SO_BINDTODEVICE, SO_BINDTOIFINDEX = 25, 62  # asm-generic/socket.h


def connect(self: "Any", address: "Any") -> None:
    """socket.connect()."""
    asked = layers.here()
    if asked is None or _passes(asked, self, address):
        return true.connect(self, address)
    error = _connect(asked, self, address)
    if error == _TIMED_OUT:
        raise TimeoutError("timed out")
    if error:
        raise failure(error)
    return None


def connect_ex(self: "Any", address: "Any") -> int:
    """socket.connect_ex()."""
    asked = layers.here()
    if asked is None or _passes(asked, self, address):
        return true.connect_ex(self, address)
    error = _connect(asked, self, address)
    return errno.EWOULDBLOCK if error == _TIMED_OUT else error


_TIMED_OUT = -1


def _passes(asked: "Answering", sock: "Any", address: "Any") -> bool:
    """Whether this connect() is the kernel's. OSError: it's a name service's socket, which would ask the network."""
    if _family(sock) in INET:
        return False
    if _family(sock) == getattr(_socket, "AF_UNIX", None) and isinstance(address, (str, bytes)):
        path = address.encode(sys.getfilesystemencoding(), "surrogateescape") if isinstance(address, str) else address
        reply = asked.ask(wire.PATH, path)
        if reply.error:
            raise failure(reply.error)
    return True


def _connect(asked: "Answering", sock: "Any", address: "Any") -> int:
    """connect() of an inet socket: its errno, or _TIMED_OUT."""
    goal = numeric(asked, _family(sock), address, "connect")
    sys.audit("socket.connect", sock, address)
    limit = true.gettimeout(sock)
    reply = asked.ask(wire.CONNECT, goal.sockaddr, sock)
    error = reply.error
    if reply.verdict == wire.PROCEED:
        error = true.connect_ex(sock, goal.python)
        return _TIMED_OUT if error == errno.EWOULDBLOCK and limit else error
    if reply.verdict == wire.REDIRECT:
        return true.connect_ex(sock, python_address(reply.payload))
    if error == errno.EINPROGRESS and limit:
        if not _writable(sock, limit):
            return _TIMED_OUT
        error = _so_error(asked, sock)
    return error


def _writable(sock: "Any", limit: float) -> bool:
    """Wait until a connect() under way has an outcome. False: not within `limit` seconds."""
    if not hasattr(select, "poll"):
        _, writable, failed = select.select([], [sock.fileno()], [sock.fileno()], limit)
        return bool(writable or failed)
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLOUT)
    end = monotonic() + limit
    while True:
        if poller.poll(max(0.0, 1000 * (end - monotonic()))):
            return True
        if monotonic() >= end:
            return False


def getsockopt(self: "Any", level: int, option: int, *size: int) -> "Any":
    """socket.getsockopt()."""
    if option == _socket.SO_ERROR and level == _socket.SOL_SOCKET and _family(self) in INET:
        asked = layers.here()
        if asked is not None:
            error = _so_error(asked, self)
            return error if not size else struct.pack("=i", error)[: size[0]]
    return true.getsockopt(self, level, option, *size)


def _so_error(asked: "Answering", sock: "Any") -> int:
    reply = asked.ask(wire.ERROR, b"", sock)
    if reply.verdict == wire.ANSWER and not reply.error:  # the kernel may say it where nobody answers any more
        value: int = wire.ERROR_VALUE.unpack(reply.payload)[0]
        return value
    return int(true.getsockopt(sock, _socket.SOL_SOCKET, _socket.SO_ERROR))


def setsockopt(self: "Any", level: int, option: int, *value: "Any") -> None:
    """socket.setsockopt(). A UDP socket stays where it can't send anything out."""
    if level == _socket.SOL_SOCKET and option in (SO_BINDTODEVICE, SO_BINDTOIFINDEX) and _datagram(self):
        raise failure(errno.EPERM)
    return true.setsockopt(self, level, option, *value)


def getpeername(self: "Any") -> "Any":
    """socket.getpeername()."""
    peer = true.getpeername(self)
    if _family(self) in INET:
        asked = layers.here()
        if asked is not None:
            reply = asked.ask(wire.PEER, b"", self)
            if not reply.error and reply.verdict == wire.ANSWER:
                return python_address(reply.payload)
    return peer


def bind(self: "Any", address: "Any") -> None:
    """socket.bind(), with names asked of whoever answers."""
    asked = layers.here()
    if asked is None or _family(self) not in INET:
        return true.bind(self, address)
    return true.bind(self, numeric(asked, _family(self), address, "bind").python)


def sendto(self: "Any", data: "Any", *rest: "Any") -> int:
    """socket.sendto()."""
    asked = layers.here()
    if asked is None or _family(self) not in INET or len(rest) not in (1, 2):
        return true.sendto(self, data, *rest)
    flags, address = rest if len(rest) == 2 else (0, rest[0])
    goal = numeric(asked, _family(self), address, "sendto")
    if _datagram(self):
        reply = asked.ask(wire.SEND, goal.sockaddr, self)
        if reply.error:
            raise failure(reply.error)
        where = python_address(reply.payload) if reply.verdict == wire.REDIRECT else goal.python
        return true.sendto(self, data, flags, where)
    if flags & FASTOPEN:
        connect(self, goal.python)
    return true.send(self, data, flags & ~FASTOPEN)


def sendmsg(
    self: "Any", buffers: "Any", ancdata: "Any" = (), flags: int = 0, address: "Any" = None, *more: "Any"
) -> int:
    """socket.sendmsg()."""
    asked = layers.here()
    if asked is None or _family(self) not in INET:
        named = () if address is None else (address,)
        return true.sendmsg(self, buffers, ancdata, flags, *named, *more)
    goal = None if address is None else numeric(asked, _family(self), address, "sendmsg")
    if not _datagram(self):
        if goal is not None and flags & FASTOPEN:
            connect(self, goal.python)
        return true.sendmsg(self, buffers, ancdata, flags & ~FASTOPEN)
    ancdata = list(ancdata)
    if goal is None and not ancdata:
        return true.sendmsg(self, buffers, ancdata, flags)
    reply = asked.ask(wire.SEND, b"" if goal is None else goal.sockaddr, self)
    if reply.error:
        raise failure(reply.error)
    if reply.verdict == wire.REDIRECT:
        named = (python_address(reply.payload),) if reply.payload else ()
        return true.sendmsg(self, buffers, (), flags, *named)
    return true.sendmsg(self, buffers, ancdata, flags, *(() if goal is None else (goal.python,)))


def recvfrom(self: "Any", *arguments: "Any", **named: "Any") -> "Any":
    """socket.recvfrom()."""
    data, source = true.recvfrom(self, *arguments, **named)
    return data, _source(self, source)


def recvfrom_into(self: "Any", *arguments: "Any", **named: "Any") -> "Any":
    """socket.recvfrom_into()."""
    size, source = true.recvfrom_into(self, *arguments, **named)
    return size, _source(self, source)


def recvmsg(self: "Any", *arguments: "Any") -> "Any":
    """socket.recvmsg()."""
    data, ancillary, flags, source = true.recvmsg(self, *arguments)
    return data, ancillary, flags, _source(self, source)


def recvmsg_into(self: "Any", *arguments: "Any") -> "Any":
    """socket.recvmsg_into()."""
    size, ancillary, flags, source = true.recvmsg_into(self, *arguments)
    return size, ancillary, flags, _source(self, source)


def _source(sock: "Any", source: "Any") -> "Any":
    """What to show for the address that a datagram came from."""
    if not source or not _datagram(sock):
        return source
    asked = layers.here()
    if asked is None:
        return source
    reply = asked.ask(wire.SOURCE, numeric(asked, _family(sock), source, "recvfrom").sockaddr, sock)
    answered = not reply.error and reply.verdict == wire.ANSWER
    return python_address(reply.payload) if answered else source


def _datagram(sock: "Any") -> bool:
    return _family(sock) in INET and _type(sock) & KINDS == DGRAM and layers.here() is not None


def made(family: int, kind: int, proto: int) -> "int | None":
    """The descriptor for a new socket of these arguments; None: the kernel may make it. OSError: there's none."""
    asked = layers.here()
    if asked is None or family in PLAIN:
        return None
    if family in INET and kind & KINDS == STREAM and proto in (0, _socket.IPPROTO_TCP):
        return None
    reply = asked.ask(wire.SOCKET, wire.SOCKET_ARGUMENTS.pack(family, kind, proto))
    if reply.error or reply.fd < 0:
        raise failure(reply.error or errno.EPERM)
    return reply.fd


def initialize(self: "Any", family: int = -1, type: int = -1, proto: int = -1, fileno: "Any" = None) -> None:
    """_socket.socket.__init__(), which socket.socket's calls."""
    serving = layers.served_here()
    if serving is not None and serving.made_here is not None:
        serving.made_here(self)
    if fileno is not None:
        true.__init__(self, family, type, proto, fileno)
        return
    family = int(_socket.AF_INET) if family == -1 else family
    type = STREAM if type == -1 else type
    fd = made(family, type, max(proto, 0))
    if fd is None:
        true.__init__(self, family, type, proto)
        return
    true.__init__(self, family, type & KINDS, max(proto, 0), fd)
    if type & getattr(_socket, "SOCK_NONBLOCK", 0):
        true.setblocking(self, False)


METHODS: "dict[str, Callable[..., Any]]" = {
    method.__name__: method
    for method in (
        *(connect, connect_ex, getsockopt, setsockopt, getpeername, bind),
        *(sendto, sendmsg, recvfrom, recvfrom_into, recvmsg, recvmsg_into),
    )
    if hasattr(true, method.__name__)
}
