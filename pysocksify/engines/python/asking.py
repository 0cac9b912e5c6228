"""One request to the supervisor and its reply, over the handover's wire (`handover.wire`). Loaded into programs."""

import _socket
import errno
from _thread import get_native_id
from sys import byteorder

from pysocksify.engines.handover import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CLOEXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
_KIND = getattr(_socket, "SOCK_SEQPACKET", 0) | getattr(_socket, "SOCK_CLOEXEC", 0)
# The true ones, whoever replaces the names.
_Socket = _socket.socket
_connect, _sendmsg, _recvmsg, _close = _Socket.connect, _Socket.sendmsg, _Socket.recvmsg, _Socket.close
_settimeout = _Socket.settimeout


class Reply:
    """What was answered: a verdict of `wire`, error, payload, and perhaps a descriptor, which is the caller's."""

    __slots__ = ("error", "fd", "payload", "verdict")

    def __init__(self, error: int, verdict: int = wire.ANSWER, payload: bytes = b"", fd: int = -1) -> None:
        self.error = error
        self.verdict = verdict
        self.payload = payload
        self.fd = fd


class Supervised:
    """Who asks a supervisor at a Unix socket; one connection for each request, none is kept."""

    def __init__(self, name: bytes, token: bytes) -> None:
        """`name` is the socket's address, with its leading NUL."""
        self._name = name
        self._token = token

    def ask(self, op: int, payload: bytes = b"", sock: "Any" = None) -> Reply:
        """Send one request, with the socket's descriptor, and wait for the reply.

        When the supervisor is gone: ENETDOWN, so that nothing goes out without it. What a signal's handler raises
        ends the wait, and the supervisor is told so.
        """
        fd = -1 if sock is None else sock.fileno()
        if sock is not None and fd < 0:
            return Reply(errno.EBADF)
        connection = _Socket(_socket.AF_UNIX, _KIND)
        try:
            _settimeout(connection, None)  # whatever setdefaulttimeout() says
            try:
                _connect(connection, self._name)
                rights = [] if sock is None else [_rights(fd)]
                _sendmsg(connection, [wire.pack_request(op, get_native_id(), self._token, payload)], rights)
            except OSError:
                return Reply(errno.ENETDOWN)
            try:
                return _received(connection)
            except BaseException:
                if op == wire.CONNECT:
                    self._interrupt(connection)
                raise
        finally:
            _close(connection)

    def _interrupt(self, connection: "Any") -> None:
        """Let the wait of a CONNECT end: the socket stays on its way, as the kernel has it after EINTR."""
        try:
            _sendmsg(connection, [wire.pack_request(wire.INTERRUPTED, get_native_id(), self._token)])
        except OSError:
            return
        _received(connection)


def _received(connection: "Any") -> Reply:
    try:
        data, ancillary, _, _ = _recvmsg(connection, wire.REPLY_MOST, _socket.CMSG_SPACE(4), _CLOEXEC)
        error, verdict, payload = wire.unpack_reply(data)
    except (OSError, ValueError):  # the supervisor has ended
        return Reply(errno.ENETDOWN)
    fd = -1
    for level, kind, content in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fd = int.from_bytes(content[:4], byteorder)
    return Reply(error, verdict, payload, fd)


def _rights(fd: int) -> "tuple[int, int, bytes]":
    return _socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, byteorder)
