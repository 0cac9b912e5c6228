"""The DNS responder's sockets: UDP in the enclosure, TCP on loopback; queries are answered by Names or forwarded.

Theory of operation. A UDP socket of the enclosure takes queries to whatever address; the answer is sent from that
address. TCP connections to port 53 are turned by the supervisor to `tcp_address`; messages there have a length before
them and may follow each other without waiting (RFC 7766). A name that the rules send `direct` is looked up in a thread,
so that its answer may come late, out of order, or when nobody wants it any more.

In `system` mode (`--dns system`) a UDP query goes as it is to the name server that the program addressed, over a socket
of our own, and its answer comes back the same way; names then stay unknown to rules and chain. TCP to port 53 needs
nothing from here in that mode: it's a direct connection, so there's no TCP listener.
"""

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from pysocksify.reactor import READ, WRITE, Reactor, Ready, Steps, Task
from pysocksify.supervisor.enclosure import DNS_PORT, IP_PKTINFO, Enclosure, Refusal
from pysocksify.supervisor.lookups import answer
from pysocksify.supervisor.names import Names, failure

_Control = tuple[int, int, bytes]  # level, type and data of a control message

_DATAGRAM = 65535
_AT_ONCE = 32  # datagrams taken in one turn, so that one busy program doesn't stop all else
_FORWARD_PATIENCE = 10.0  # seconds; glibc gives a server 5, musl 5, c-ares 2, so the asker has given up by then
_FORWARDS = 512  # queries under way in system mode; the asker of one more asks again
_STREAM_PATIENCE = 30.0  # seconds a TCP connection may idle, as unbound's tcp-idle-timeout has it
_STREAM_READ = 4096  # bytes taken in one turn: about a hundred questions, ten milliseconds
_STREAM_OUTGOING = 65536  # bytes waiting for a slow reader; above, nothing more is read from it
_STREAM_LOOKUPS = 64  # questions of one connection under way; above, nothing more is read from it
_BREATH = 0.25  # seconds between looks at refusals, and after a failed accept()


class Responder:
    """Answers the target's DNS. Everything happens in the reactor's thread but look-ups."""

    def __init__(
        self,
        reactor: Reactor,
        names: Names,
        enclosure: Enclosure | None,
        mode: str = "fake",
        *,
        refused: Callable[[Refusal], None] | None = None,
    ) -> None:
        """Start answering. `enclosure` stays the caller's; without one there's TCP only.

        `refused` is told of datagrams that went nowhere.
        """
        self._reactor = reactor
        self._names = names
        self._enclosure = enclosure
        self._system = mode == "system"
        self._refused = refused
        self._forwards: dict[socket.socket, Task[bytes]] = {}
        self._streams: set[_Stream] = set()
        self._listeners: list[socket.socket] = []
        self._datagrams = enclosure.responder_sockets() if enclosure else []
        self._closed = False
        for each in self._datagrams:
            self._serve_datagrams(each)
        if not self._system:
            for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                with suppress(OSError):  # no ::1 on this machine: then nobody can connect to it either
                    self._listen(family, host)
        if refused is not None:
            self._watch_refusals()

    def tcp_address(self, family: int) -> tuple[str, int] | None:
        """Where a TCP connection to port 53 goes instead; None where there's no listener (system mode, or no ::1)."""
        for each in self._listeners:
            if each.family == family:
                host, port = each.getsockname()[:2]
                return host, port
        return None

    def query(self, message: bytes, asked: str, family: int, reply: Callable[[bytes], None]) -> None:
        """Answer a datagram that was sent to the address `asked`: now, later, or never where nothing is to be said."""
        if self._system:
            self._forward(message, asked, family, reply)
        else:
            self._answer(message, False, reply)

    def close(self) -> None:
        """Stop answering: close the listeners and all connections."""
        self._closed = True
        for each in (*self._datagrams, *self._listeners):
            self._reactor.unwatch(each.fileno())
        for listener in self._listeners:
            listener.close()
        for task in list(self._forwards.values()):
            task.cancel()
        for stream in list(self._streams):
            stream.close()
        if self._enclosure and self._enclosure.refusals:
            self._reactor.unwatch(self._enclosure.refusals.fileno())

    def _serve_datagrams(self, server: socket.socket) -> None:
        def readable(events: int) -> None:
            for _ in range(_AT_ONCE):
                try:
                    message, ancillary, _, asker = server.recvmsg(_DATAGRAM, 128)
                except BlockingIOError:
                    return
                asked, control = _asked(ancillary)
                self.query(message, asked, server.family, partial(_send_answer, server, control, asker))

        self._reactor.watch(server.fileno(), READ, readable)

    def _answer(self, message: bytes, stream: bool, reply: Callable[[bytes], None]) -> bool:
        """Answer now or later; False when no answer will ever come."""

        def heard(given: bytes) -> None:
            if not self._closed:
                reply(given)

        return answer(self._reactor, self._names, message, stream, heard)

    def _forward(self, message: bytes, server: str, family: int, reply: Callable[[bytes], None]) -> None:
        if len(message) < 12 or len(self._forwards) >= _FORWARDS:
            return
        try:
            own = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:  # no descriptor left
            reply(failure(message))
            return
        try:
            own.connect((server, DNS_PORT))
            own.send(message)
        except OSError:
            own.close()
            reply(failure(message))
            return

        def ended(answer: bytes | None, error: BaseException | None) -> None:
            del self._forwards[own]
            if answer is not None:
                reply(answer)
            elif not isinstance(error, TimeoutError):  # a server that keeps silent is answered with silence
                reply(failure(message))

        deadline = self._reactor.now() + _FORWARD_PATIENCE
        self._forwards[own] = self._reactor.spawn(_answer_of(own, message, deadline), ended)

    def _listen(self, family: int, host: str) -> None:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # for connections too, else megabytes of answers wait
                listener.setsockopt(socket.SOL_SOCKET, buffer, _STREAM_OUTGOING)
            listener.bind((host, 0))
            listener.listen(128)
        except OSError:
            listener.close()
            raise

        def readable(events: int) -> None:
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor left: without a pause, epoll would say "readable" for ever
                self._reactor.unwatch(listener.fileno())
                self._reactor.call_at(self._reactor.now() + _BREATH, watch)
                return
            connection.setblocking(False)
            self._streams.add(_Stream(self._reactor, connection, self._answer, self._streams.discard))

        def watch() -> None:
            if not self._closed:
                self._reactor.watch(listener.fileno(), READ, readable)

        watch()
        self._listeners.append(listener)

    def _watch_refusals(self) -> None:
        """Look at most four times a second: a program that goes on sending costs nothing more."""
        enclosure, refused = self._enclosure, self._refused
        if self._closed or enclosure is None or enclosure.refusals is None or refused is None:
            return
        fd = enclosure.refusals.fileno()

        def readable(events: int) -> None:
            self._reactor.unwatch(fd)
            self._reactor.call_at(self._reactor.now() + _BREATH, self._watch_refusals)
            for refusal in enclosure.refused():
                refused(refusal)

        self._reactor.watch(fd, READ, readable)


class _Stream:
    """One TCP connection: messages with two bytes of length before each, both ways (RFC 1035 section 4.2.2)."""

    def __init__(
        self,
        reactor: Reactor,
        connection: socket.socket,
        answer: Callable[[bytes, bool, Callable[[bytes], None]], bool],
        gone: Callable[["_Stream"], None],
    ) -> None:
        self._reactor = reactor
        self._connection = connection
        self._answer = answer
        self._gone = gone
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._owed = 0  # answers under way
        self._ended = False  # the asker has sent its last question
        self._closed = False
        self._working = False
        self._watched = READ
        self._used = reactor.now()
        reactor.watch(connection.fileno(), READ, self._ready)
        self._timer = reactor.call_at(self._used + _STREAM_PATIENCE, self._look_at_time)

    def close(self) -> None:
        """Give the connection up; answers that are still to come are thrown away."""
        if not self._closed:
            self._closed = True
            self._timer.cancel()
            if self._watched:
                self._reactor.unwatch(self._connection.fileno())
            self._connection.close()
            self._gone(self)

    def _look_at_time(self) -> None:
        if self._reactor.now() - self._used >= _STREAM_PATIENCE:
            self.close()
        else:
            self._timer = self._reactor.call_at(self._used + _STREAM_PATIENCE, self._look_at_time)

    def _ready(self, events: int) -> None:
        self._used = self._reactor.now()
        try:
            if events & ~WRITE:
                data = self._connection.recv(_STREAM_READ)
                self._ended = not data
                self._incoming += data
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._work()

    def _work(self) -> None:
        """Send and take turn by turn, until the asker, or look-ups under way, must do something first."""
        self._working = True
        while not self._closed:
            self._send()
            if not self._take_messages():
                break
        self._working = False
        if self._closed:
            return
        if self._ended and not self._outgoing and not self._owed:
            self.close()
        else:
            self._watch((WRITE if self._outgoing else 0) | (0 if self._ended or self._is_full() else READ))

    def _take_messages(self) -> bool:
        """Answer, or begin to, what has come; False when there was nothing to take, or it must wait."""
        taken = False
        while len(self._incoming) >= 2 and not self._is_full():
            (size,) = struct.unpack_from(">H", self._incoming)
            if len(self._incoming) < 2 + size:
                break
            message = bytes(self._incoming[2 : 2 + size])
            del self._incoming[: 2 + size]
            taken = True
            self._owed += 1
            if not self._answer(message, True, self._reply):  # not DNS
                self.close()
        return taken

    def _reply(self, answer: bytes) -> None:
        self._owed -= 1
        if not self._closed:
            self._outgoing += struct.pack(">H", len(answer)) + answer
            if not self._working:
                self._work()

    def _is_full(self) -> bool:
        return self._closed or self._owed >= _STREAM_LOOKUPS or len(self._outgoing) > _STREAM_OUTGOING

    def _send(self) -> None:
        try:
            if self._outgoing:
                del self._outgoing[: self._connection.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def _watch(self, events: int) -> None:
        """Wait for these events; for none, not at all: epoll would report a hang-up again and again."""
        fd = self._connection.fileno()
        if events and self._watched:
            self._reactor.modify(fd, events)
        elif events:
            self._reactor.watch(fd, events, self._ready)
        elif self._watched:
            self._reactor.unwatch(fd)
        self._watched = events


def _send_answer(server: socket.socket, control: list[_Control], asker: Any, answer: bytes) -> None:
    with suppress(OSError):  # an asker that is gone, or that asked a broadcast address, gets nothing
        server.sendmsg([answer], control, 0, asker)


def _asked(ancillary: list[_Control]) -> tuple[str, list[_Control]]:
    """The address that a datagram was sent to, and the control message that sends the answer from it.

    struct in_pktinfo is index, local address (the source when sending), address in the header; struct in6_pktinfo is
    address, index.
    """
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            return socket.inet_ntop(socket.AF_INET, data[8:12]), [(level, kind, bytes(4) + data[8:12] + bytes(4))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return socket.inet_ntop(socket.AF_INET6, data[:16]), [(level, kind, data)]
    return "", []


def _answer_of(own: socket.socket, message: bytes, deadline: float) -> Steps[bytes]:
    """Wait for the answer to a query just sent; closes the socket. Raises OSError, TimeoutError at the deadline."""
    with own:
        while True:
            yield Ready(own.fileno(), READ, deadline)
            with suppress(BlockingIOError):
                answer = own.recv(_DATAGRAM)
                if answer[:2] == message[:2]:
                    return answer
