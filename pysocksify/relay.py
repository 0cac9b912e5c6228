"""The relay: a pump between two connected sockets that passes on ends, resets and urgent bytes as such.

Theory of operation. A relay owns two sockets, `a` and `b`, and has two flows (`flow`), a to b and b to a.

End of file: the sink is shut down for writing once all before it is delivered; the other flow goes on. When both flows
have ended both sockets are closed.

Reset: an error of either socket, seen by either flow, is one fact about the relay. The kernel reports ECONNRESET once
only and reads as end of file from then on, and a FIN that came before hides it altogether from reading; so `_cut` is
set first, SO_ERROR is asked at each end of file, and from then on no end of file counts. What the dead end had sent is
still delivered, as it would be without a relay, and then the other end is reset (SO_LINGER 0), at the latest after
DELIVER_LIMIT.

Events are level-triggered, so what isn't wanted isn't registered. EPOLLERR and EPOLLHUP can't be masked: a socket that
is dead, or shut both ways, is unwatched. EPOLLPRI may come before the bytes that precede the urgent one: when it brings
nothing it isn't waited for again before something was read.
"""

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from errno import ECONNRESET

from pysocksify.flow import SPLICES, CutError, Flow, PipePool
from pysocksify.reactor import READ, WRITE, Reactor, Timer

if SPLICES:
    import fcntl

DELIVER_LIMIT = 2.0  # s; nginx gives a closing peer 5 (lingering_timeout), but here somebody waits to hear of it
DELIVER_LOOK = 0.02  # s between looks at the send queue; the kernel tells nobody that it is empty

PRI, ERR, HUP = 2, 8, 16  # EPOLLPRI, EPOLLERR, EPOLLHUP (sys/epoll.h)
SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes not yet sent
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


@dataclass(frozen=True, slots=True)
class RelayOutcome:
    """How a relay ended: bytes delivered each way, and which end was cut off ("a", "b", or None) by which errno."""

    a_to_b: int
    b_to_a: int
    cut: str | None
    errno: int


def reset(sock: socket.socket) -> None:
    """Close a socket with RST rather than FIN: its peer shall not take it for the end of the data."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    except OSError:  # no such thing for its family: a plain close it is
        return
    finally:
        sock.close()


def unsent(sock: socket.socket) -> int:
    """The bytes that a socket's kernel has and hasn't sent (tcp(7)); 0 where that can't be known."""
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), SIOCOUTQNSD, b"\0\0\0\0"), "little") if SPLICES else 0
    except OSError:
        return 0


class Relay:
    """Pumps between connected sockets `a` and `b`, which it owns, until both ways have ended or one end was cut off.

    `to_b` and `to_a` are bytes to be delivered first (read from the other end beforehand, or said for it). `done` is
    called once, after both sockets were closed, never from within the constructor. `drained` is called when all that
    `a` ever sent, and its end, has been handed to `b`'s kernel buffer (or can't be any more).
    """

    __slots__ = (
        "_a",
        "_b",
        "_cut",
        "_deadline",
        "_done",
        "_drained",
        "_reactor",
        "_timer",
        "_unix",
        "_wanted",
        "a_to_b",
        "b_to_a",
    )

    def __init__(
        self,
        reactor: Reactor,
        a: socket.socket,
        b: socket.socket,
        pool: PipePool,
        done: Callable[[RelayOutcome], None],
        *,
        to_b: bytes = b"",
        to_a: bytes = b"",
        drained: Callable[[], None] | None = None,
    ) -> None:
        self._reactor = reactor
        self._done = done
        self._drained = drained
        self._a, self._b = a, b
        self.a_to_b = Flow(a, b, pool, to_b)
        self.b_to_a = Flow(b, a, pool, to_a)
        self._unix = tuple(end for end in (a, b) if end.family == socket.AF_UNIX)
        self._cut: CutError | None = None
        self._timer: Timer | None = None
        self._deadline = 0.0
        self._wanted: dict[socket.socket, int | None] = {a: None, b: None}  # None: not watched
        for end in (a, b):
            if end.getblocking():
                end.setblocking(False)
            if end not in self._unix:  # small writes were put together, or not, by who made them
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._want_what_is_needed(end)

    @property
    def closed(self) -> bool:
        """Both sockets are closed."""
        return self._a.fileno() < 0

    def close(self) -> None:
        """Give up: both ends are reset, so that neither takes it for the end of the data. `done` is not called."""
        if not self.closed:
            self._close(cut=True)

    def cut_a(self) -> None:
        """`a` was cut off, which its kernel can't know: what has come from it is delivered, then `b` is reset."""
        if not self.closed:
            self._cut_off(CutError(self._a, ECONNRESET))

    def _on_a(self, events: int) -> None:
        self._on_event(self._a, events)

    def _on_b(self, events: int) -> None:
        self._on_event(self._b, events)

    def _out_of(self, end: socket.socket) -> Flow:
        return self.a_to_b if end is self._a else self.b_to_a

    def _into(self, end: socket.socket) -> Flow:
        return self.b_to_a if end is self._a else self.a_to_b

    def _on_event(self, end: socket.socket, events: int) -> None:
        reading, writing = self._out_of(end), self._into(end)
        try:
            if writing.full() and events & (WRITE | ERR | HUP):
                writing.flush()
            readable = events & ~WRITE and not reading.ended and not reading.full()
            if readable and not reading.fill() and events & PRI:
                reading.urgent_wanted = False
            if events & (ERR | HUP):
                self._look_for_error(end)
                if reading.ended and not writing.full():  # a Unix socket whose peer is gone says HUP for ever
                    self._unwatch(end)
            self._pass_end(reading)
            self._pass_end(writing)
        except CutError as cut:
            self._cut_off(cut)
        else:
            self._go_on()

    def _look_for_error(self, end: socket.socket) -> None:
        """Raise CutError if `end` failed, also when a FIN before hides that from whoever reads."""
        error = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise CutError(end, error)

    def _pass_end(self, flow: Flow) -> None:
        if not flow.ended or flow.full() or flow.finished:
            return
        if self._cut is None:
            self._look_for_error(flow.source)
            try:
                flow.sink.shutdown(socket.SHUT_WR)
            except OSError as error:  # ENOTCONN: it was reset, and that was told already
                raise CutError(flow.sink, error.errno or 0) from None
        flow.finished = True
        if flow is self.a_to_b:
            self._say_drained()

    def _say_drained(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            self._reactor.call_soon(drained)

    def _cut_off(self, cut: CutError) -> None:
        """The first failure: nothing goes to that end any more; what came from it is still delivered."""
        if self._cut is not None:
            self._end()
            return
        self._cut = cut
        self._unwatch(cut.end)
        self._into(cut.end).drop()
        self._deadline = self._reactor.now() + DELIVER_LIMIT
        self._timer = self._reactor.call_at(self._deadline, self._end)
        self._deliver_rest(self._out_of(cut.end))

    def _deliver_rest(self, flow: Flow) -> None:
        """After a cut: all that the dead end's receive queue holds, until it has no more or the sink takes no more."""
        try:
            flow.flush()
            while not flow.ended and not flow.full():
                if not flow.fill():
                    flow.ended = True
        except CutError as cut:
            if cut.end is flow.sink:
                self._end()
                return
            flow.ended = True
        if flow.full():
            self._want(flow.sink, WRITE)
        else:
            self._unwatch(flow.sink)
            self._end_when_sent(flow.sink)

    def _end_when_sent(self, sink: socket.socket) -> None:
        """Reset `sink` once its kernel has sent what it took: SO_LINGER 0 throws the unsent away."""
        look = self._reactor.now() + DELIVER_LOOK
        if not unsent(sink) or look > self._deadline:
            self._end()
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._reactor.call_at(look, lambda: self._end_when_sent(sink))

    def _go_on(self) -> None:
        cut = self._cut
        if cut is not None:
            self._deliver_rest(self._out_of(cut.end))
        elif self.a_to_b.finished and self.b_to_a.finished:
            self._end()
        else:
            self._want_what_is_needed(self._a)
            self._want_what_is_needed(self._b)

    def _want_what_is_needed(self, end: socket.socket) -> None:
        reading, writing = self._out_of(end), self._into(end)
        events = WRITE if writing.full() else 0
        if not reading.ended and not reading.full():
            events |= READ | PRI if reading.urgent_wanted and SPLICES else READ
        # EPOLLHUP can't be masked. It comes with the second FIN, and from a Unix socket as soon as its peer has closed.
        if not events and (writing.finished or end in self._unix):
            self._unwatch(end)
        else:
            self._want(end, events)

    def _want(self, end: socket.socket, events: int) -> None:
        wanted = self._wanted[end]
        if wanted == events:
            return
        if wanted is not None:
            self._reactor.modify(end.fileno(), events)
        elif events:
            self._reactor.watch(end.fileno(), events, self._on_a if end is self._a else self._on_b)
        else:
            return
        self._wanted[end] = events

    def _unwatch(self, end: socket.socket) -> None:
        if self._wanted[end] is not None:
            self._reactor.unwatch(end.fileno())
            self._wanted[end] = None

    def _end(self) -> None:
        cut = self._cut
        if cut is None:
            self._close(cut=False)
            outcome = RelayOutcome(self.a_to_b.count, self.b_to_a.count, None, 0)
        else:
            self._close(cut=True)
            outcome = RelayOutcome(self.a_to_b.count, self.b_to_a.count, "a" if cut.end is self._a else "b", cut.errno)
        self._say_drained()
        self._reactor.call_soon(lambda: self._done(outcome))

    def _close(self, *, cut: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for end in (self._a, self._b):
            self._unwatch(end)
        self.a_to_b.drop()
        self.b_to_a.drop()
        for end in (self._a, self._b):
            if cut:
                reset(end)
            else:
                end.close()
