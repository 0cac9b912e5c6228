"""The end of a client that was refused: it's told so, and no RST may overtake that."""

import socket
from collections.abc import Callable

from pysocksify.reactor import READ, Timer
from pysocksify.server.shared import Shared, has_ended, say

PARTING_LIMIT = 10.0  # s; RFC 1928 section 6: closed no more than 10 seconds after the failure


class Parting:
    """Says the last words on a watched socket, ends what we send, and reads until the client's end: unread bytes at
    close(2) would make the kernel send RST. `ended` is called once, later, when nothing is left to be waited for.
    """

    __slots__ = ("_connection", "_ended", "_timer")

    def __init__(self, shared: Shared, connection: socket.socket, last_words: bytes, ended: Callable[[], None]) -> None:
        self._connection = connection
        self._ended = ended
        reactor = shared.reactor
        self._timer: Timer = reactor.call_at(reactor.now() + PARTING_LIMIT, ended)
        try:
            if not say(connection, last_words):
                raise BrokenPipeError
            connection.shutdown(socket.SHUT_WR)
            reactor.rewatch(connection.fileno(), READ, self._on_rest)
        except OSError:  # it is gone
            self._timer.cancel()
            reactor.call_soon(ended)

    def cancel(self) -> None:
        """Wait no more; `ended` isn't called."""
        self._timer.cancel()

    def _on_rest(self, events: int) -> None:
        if has_ended(self._connection):
            self._timer.cancel()
            self._ended()
