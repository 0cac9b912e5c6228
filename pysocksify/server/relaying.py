"""What a client gets once it is connected: a relay, and an end to it when nothing comes any more."""

import socket
from collections.abc import Callable

from pysocksify.reactor import Timer
from pysocksify.relay import Relay, RelayOutcome, reset
from pysocksify.server.shared import Shared

IDLE_LOOKS = 4  # in the time of the idle limit
Outcome = tuple[str, str]
"""For the metrics, and for a person."""


class Relaying:
    """Owns both sockets, the client's among them. `ended(outcome)` is called when they're closed.

    `early` goes to the destination first. `idle` is for how many seconds nothing may be delivered either way, None for
    ever. Raises OSError from the constructor: there is no room for a relay, and both ends were reset.
    """

    __slots__ = ("_ended", "_moved", "_relay", "_shared", "_timer", "bytes_down", "bytes_up")

    def __init__(
        self,
        shared: Shared,
        client: socket.socket,
        destination: socket.socket,
        early: bytes,
        idle: float | None,
        ended: Callable[[Outcome], None],
    ) -> None:
        self._shared = shared
        self._ended = ended
        self._moved = self.bytes_up = self.bytes_down = 0
        self._timer: Timer | None = None
        try:
            self._relay = Relay(shared.reactor, client, destination, shared.pool, self._relayed, to_b=early)
        except OSError:
            for end in (client, destination):
                shared.reactor.unwatch(end.fileno())
                reset(end)
            raise
        if idle is not None:
            self._look_for_idleness(idle, shared.reactor.now())

    def cancel(self) -> None:
        """Give up: both ends are reset, and `ended` isn't called."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._relay.closed:
            self._count(self._relay.a_to_b.count, self._relay.b_to_a.count)
            self._relay.close()

    def cut_client(self) -> None:
        """The client was cut off, which its socket here doesn't show."""
        self._relay.cut_a()

    def _count(self, up: int, down: int) -> None:
        self.bytes_up, self.bytes_down = up, down

    def _look_for_idleness(self, limit: float, since: float) -> None:
        now = self._shared.reactor.now()
        moved = self._relay.a_to_b.count + self._relay.b_to_a.count
        if moved != self._moved:
            self._moved, since = moved, now
        if now - since >= limit:
            self.cancel()
            self._ended(("timed_out", f"idle for {limit:g} s"))
            return
        look = min(now + limit / IDLE_LOOKS, since + limit)
        self._timer = self._shared.reactor.call_at(look, lambda: self._look_for_idleness(limit, since))

    def _relayed(self, outcome: RelayOutcome) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._count(outcome.a_to_b, outcome.b_to_a)
        if outcome.cut is None:
            self._ended(("ok", "ok"))
        else:
            self._ended(("reset", f"reset by the {'client' if outcome.cut == 'a' else 'destination'}"))
