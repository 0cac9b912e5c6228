"""The supervisor's end: it takes requests and has them served, each on a connection of its own.

Theory of operation. A connection is accepted, its one packet read and checked, and the request becomes a HandoverCall
that the supervisor answers, at once or when it's time to. While it waits, the connection stays watched: a second packet
says that a signal has ended the wait, its end that the caller is gone. The reply closes it. Descriptors that come with
a request are ours: each is closed here, or becomes a socket that is handed to the supervisor.

Anybody on this machine can connect. Without the token nothing is done for them, and no more than `STRANGERS` of them
are kept waiting for a first packet: the oldest goes.
"""

import _socket
import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from hmac import compare_digest
from typing import Any, cast

from pysocksify.address import INET, Address
from pysocksify.engines.handover import wire
from pysocksify.reactor import READ, Reactor
from pysocksify.report import Report
from pysocksify.supervisor.calls import CallRefused, program_of
from pysocksify.supervisor.core import Supervisor

SOCKADDR_MOST = 128  # sizeof(struct sockaddr_storage): longer is EINVAL (move_addr_to_kernel() in net/socket.c)
STRANGERS = 1024  # connections without a request; those of the target have one within microseconds
_AT_ONCE = 64  # connections accepted in one turn
_BREATH = 0.25  # seconds without accept() when there's no descriptor left
_PACKET = 32 + wire.MOST
_ROOM = socket.CMSG_SPACE(4 * 4)
_INT, _CREDENTIALS = 4, 12  # struct ucred (unix(7)): pid, uid, gid

Executed = Callable[["HandoverCall", int, bytes], None]
"""Answers an EXEC: the call, the file's descriptor (which stays the caller's) and the path. CallRefused, OSError."""


class HandoverCall:
    """A waiting call of the target: `supervisor.calls.Call`."""

    def __init__(self, reactor: Reactor, connection: _socket.socket, tid: int, uid: int, gid: int) -> None:
        self.tid = tid
        self.uid, self.gid = uid, gid
        self._reactor = reactor
        self._connection: _socket.socket | None = connection

    def answer(self, error: int, value: int = 0) -> bool:
        """The outcome is `error`; no call that is handed over returns a number."""
        return self.reply(error)

    def proceed(self) -> bool:
        """Let the program perform the call as it stands."""
        return self.reply(0, wire.PROCEED)

    def waits(self) -> bool:
        """Whether it has no answer and its connection stands."""
        if self._connection is None:
            return False
        try:
            return bool(self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def reply(self, error: int, verdict: int = wire.ANSWER, payload: bytes = b"", fd: int | None = None) -> bool:
        """Send the reply, perhaps with a descriptor (which stays ours), and close. False: nobody waits any more."""
        connection, self._connection = self._connection, None
        if connection is None:
            return False
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(_INT, sys.byteorder))]
        try:
            connection.sendmsg(
                [wire.pack_reply(error, verdict, payload)], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            )
        except OSError:
            return False
        finally:
            self._reactor.unwatch(connection.fileno())
            connection.close()
        return True

    def watch(self, interrupted: Callable[["HandoverCall"], None]) -> None:
        """Hear of the caller's end, and of a signal that has ended its wait."""
        if self._connection is None:
            return
        connection = self._connection

        def readable(events: int) -> None:
            try:
                packet = connection.recv(_PACKET, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if packet:
                interrupted(self)
                return
            self._connection = None
            self._reactor.unwatch(connection.fileno())
            connection.close()

        self._reactor.watch(connection.fileno(), READ, readable)


class Listening:
    """Serves the requests of one target."""

    def __init__(
        self,
        reactor: Reactor,
        supervisor: Supervisor,
        report: Report,
        listener: _socket.socket,
        token: bytes,
        *,
        executed: Executed | None = None,
    ) -> None:
        """`listener` listens already and stays the caller's. Without `executed` anything may be executed."""
        self._reactor = reactor
        self._supervisor = supervisor
        self._report = report
        self._listener: Any = listener  # typeshed knows no _accept(), which makes no object of the other class
        self._token = token
        self._executed = executed
        self._strangers: dict[int, _socket.socket] = {}
        self._with_socket: dict[int, Callable[[HandoverCall, socket.socket, bytes], None]] = {
            wire.CONNECT: self._connect,
            wire.PEER: self._peer,
            wire.ERROR: self._error,
            wire.SEND: self._send,
            wire.SOURCE: self._source,
        }
        self._without: dict[int, Callable[[HandoverCall, bytes], None]] = {
            wire.SOCKET: self._socket,
            wire.NAME: self._name,
            wire.POINTER: self._pointer,
            wire.DNS: self._dns,
            wire.PATH: self._path,
            wire.REFUSED: self._refused,
        }
        self._watch()

    def close(self) -> None:
        """Take no requests any more; those under way keep their connections."""
        self._reactor.unwatch(self._listener.fileno())
        for connection in list(self._strangers.values()):
            self._forget(connection)

    def _watch(self) -> None:
        self._reactor.watch(self._listener.fileno(), READ, self._accept)

    def _accept(self, events: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                fd, _name = self._listener._accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor left: without a pause, epoll would say "readable" for ever
                self._reactor.unwatch(self._listener.fileno())
                self._reactor.call_at(self._reactor.now() + _BREATH, self._watch)
                self._out_of_descriptors()
                return
            connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
            if not self._take(connection):
                self._wait_for_request(connection)

    def _wait_for_request(self, connection: _socket.socket) -> None:
        if len(self._strangers) >= STRANGERS:
            self._forget(next(iter(self._strangers.values())))
        self._strangers[connection.fileno()] = connection

        def readable(events: int) -> None:
            del self._strangers[connection.fileno()]
            self._reactor.unwatch(connection.fileno())
            if not self._take(connection):  # nothing there after all
                connection.close()

        self._reactor.watch(connection.fileno(), READ, readable)

    def _forget(self, connection: _socket.socket) -> None:
        del self._strangers[connection.fileno()]
        self._reactor.unwatch(connection.fileno())
        connection.close()

    def _take(self, connection: _socket.socket) -> bool:
        """Read the request and serve it. False: it isn't there yet."""
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            packet, ancillary, said, _ = connection.recvmsg(_PACKET, _ROOM, flags)
        except BlockingIOError:
            return False
        except OSError:
            connection.close()
            return True
        fds = _descriptors(ancillary)
        try:
            op, _tid, token, payload = wire.unpack_request(packet)
            if not compare_digest(token, self._token):
                raise ValueError("not the token")
        except ValueError:
            connection.close()
        else:
            # the caller's own word for its thread may be of another PID namespace
            pid, uid, gid = _credentials(connection)
            call = HandoverCall(self._reactor, connection, pid, uid, gid)
            if said & socket.MSG_CTRUNC and not fds:
                self._out_of_descriptors()
                call.answer(errno.ENOBUFS)
            else:
                self._serve(call, op, fds, payload)
                call.watch(self._supervisor.interrupted)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _serve(self, call: HandoverCall, op: int, fds: list[int], payload: bytes) -> None:
        """Serve one request; what of `fds` is used is taken out. Any failure refuses the call."""
        try:
            if op in self._without:
                self._without[op](call, payload)
            elif op in self._with_socket and fds:
                # the standard library's class turns `family` and `type` into enum members at every look
                sock = cast(socket.socket, _socket.socket(fileno=fds[0]))
                del fds[0]
                self._with_socket[op](call, sock, payload)
            elif op == wire.EXEC and fds:
                self._exec(call, fds[0], payload)
            else:
                call.answer(errno.ENOSYS)
        except CallRefused as refusal:
            call.answer(refusal.errno)
        except OSError as failure:
            call.answer(self._refusal(call, op, failure))

    def _refusal(self, call: HandoverCall, op: int, failure: OSError) -> int:
        """The errno for a call that can't be looked into."""
        if failure.errno in (errno.EMFILE, errno.ENFILE):
            self._out_of_descriptors()
            return errno.ENOBUFS
        self._report.debug(f"request {op} of {program_of(call.tid)} refused: {failure}")
        return failure.errno or errno.ENOSYS

    def _out_of_descriptors(self) -> None:
        self._report.problem("descriptors", "the supervisor has no descriptor left: connections are refused")

    # requests with a socket, which each of them takes over

    def _connect(self, call: HandoverCall, sock: socket.socket, payload: bytes) -> None:
        if sock.family not in INET:
            sock.close()
            call.proceed()
        elif len(payload) > SOCKADDR_MOST:
            sock.close()
            call.answer(errno.EINVAL)
        else:
            self._supervisor.connect(call, sock, payload)

    def _peer(self, call: HandoverCall, sock: socket.socket, payload: bytes) -> None:
        try:
            sockaddr = self._supervisor.peer(sock) if sock.family in INET else None
        finally:
            sock.close()
        _answer_or_proceed(call, sockaddr)

    def _error(self, call: HandoverCall, sock: socket.socket, payload: bytes) -> None:
        try:
            error = self._supervisor.so_error(sock) if sock.family in INET else None
        finally:
            sock.close()
        _answer_or_proceed(call, None if error is None else wire.ERROR_VALUE.pack(error))

    def _send(self, call: HandoverCall, sock: socket.socket, payload: bytes) -> None:
        try:
            sockaddr = self._supervisor.redirect(call, sock, payload) if sock.family in INET else None
        finally:
            sock.close()
        if sockaddr is None:
            call.proceed()
        else:
            call.reply(0, wire.REDIRECT, sockaddr)

    def _source(self, call: HandoverCall, sock: socket.socket, payload: bytes) -> None:
        try:
            sockaddr = self._supervisor.source(sock, payload) if sock.family in INET else None
        finally:
            sock.close()
        _answer_or_proceed(call, sockaddr)

    # requests without one

    def _socket(self, call: HandoverCall, payload: bytes) -> None:
        if len(payload) != wire.SOCKET_ARGUMENTS.size:
            raise CallRefused(errno.EINVAL)
        family, kind, proto = wire.SOCKET_ARGUMENTS.unpack(payload)
        fd = self._supervisor.make_socket(call, family, kind, proto)
        try:
            os.set_blocking(fd, not kind & socket.SOCK_NONBLOCK)
            call.reply(0, fd=fd)
        finally:
            os.close(fd)

    def _name(self, call: HandoverCall, payload: bytes) -> None:
        try:
            family, name = wire.unpack_name(payload)
        except ValueError:
            raise CallRefused(errno.EINVAL) from None

        def found(error: int, addresses: Sequence[str], canonical: str) -> None:
            packed = [_packed(host) for host in addresses]
            call.reply(error, payload=wire.pack_addresses(packed, canonical.encode("utf-8", "surrogateescape")))

        self._supervisor.lookups.by_name(name, family, found)

    def _pointer(self, call: HandoverCall, payload: bytes) -> None:
        address = Address.from_sockaddr(payload)
        if address is None:
            raise CallRefused(errno.EAFNOSUPPORT)

        def found(name: str | None) -> None:
            if name is None:
                call.answer(errno.ENOENT)
            else:
                call.reply(0, payload=name.encode("utf-8", "surrogateescape"))

        self._supervisor.lookups.by_address(address, found)

    def _dns(self, call: HandoverCall, payload: bytes) -> None:
        self._supervisor.lookups.message(payload, lambda answer: _answer_or_proceed(call, answer))

    def _path(self, call: HandoverCall, payload: bytes) -> None:
        if self._supervisor.refuses_path(payload):
            raise CallRefused(errno.ECONNREFUSED)
        call.proceed()

    def _refused(self, call: HandoverCall, payload: bytes) -> None:
        what = payload.decode("utf-8", "backslashreplace")
        if what == "io_uring":
            self._supervisor.refuse_io_uring(call)
            return
        self._supervisor.refuse(call, what, True)
        raise CallRefused(errno.EPERM)

    def _exec(self, call: HandoverCall, fd: int, payload: bytes) -> None:
        if self._executed is None:
            call.answer(0)
        else:
            self._executed(call, fd, payload)


def _answer_or_proceed(call: HandoverCall, payload: bytes | None) -> None:
    if payload is None:
        call.proceed()
    else:
        call.reply(0, payload=payload)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found += [int.from_bytes(data[at : at + _INT], sys.byteorder) for at in range(0, len(data) - 3, _INT)]
    return found


def _credentials(connection: _socket.socket) -> tuple[int, int, int]:
    """Process, user and group at the other end, when it connected: SO_PEERCRED (unix(7))."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS)
    pid, uid, gid = (int.from_bytes(data[at : at + _INT], sys.byteorder) for at in range(0, _CREDENTIALS, _INT))
    return pid, uid, gid


def _packed(host: str) -> tuple[int, bytes]:
    address = Address.of(host, 0)
    return address.family or 0, address.packed
