"""A failed dial as the OSError that a program expects of connect(), with the line that says which hop and why.

`except ConnectionRefusedError`, `except TimeoutError` and the others catch it as they would without a proxy.
"""

import errno

from pysocksify.errors import DialError


class ProxyError(OSError):
    """No connection to the destination. `errno` is what connect(2) would say; str() is one line, without passwords.

    hop          the URL of the hop that failed, less its credentials; None: no hop, a direct connection
    phase        what was being done there: "connect", "greeting", "authentication" or "request"
    destination  host and port, as text
    """

    def __init__(self, number: int, message: str, hop: str | None, phase: str, destination: str) -> None:
        super().__init__(number, message)
        self.hop = hop
        self.phase = phase
        self.destination = destination

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type["ProxyError"], tuple[object, ...]]:
        return type(self), (self.errno, self.strerror, self.hop, self.phase, self.destination)


class ProxyRefusedError(ProxyError, ConnectionRefusedError):
    """ECONNREFUSED: the destination refuses, or a hop failed in general."""


class ProxyResetError(ProxyError, ConnectionResetError):
    """ECONNRESET: a hop closed the connection in the handshake."""


class ProxyAbortedError(ProxyError, ConnectionAbortedError):
    """ECONNABORTED: what a hop said isn't the protocol."""


class ProxyTimeoutError(ProxyError, TimeoutError):
    """ETIMEDOUT: no connection, or no reply, in time."""


class ProxyPermissionError(ProxyError, PermissionError):
    """EACCES: a rule denies it, a hop doesn't allow it, or the login is wrong."""


_BY_ERRNO: dict[int, type[ProxyError]] = {
    errno.ECONNREFUSED: ProxyRefusedError,
    errno.ECONNRESET: ProxyResetError,
    errno.ECONNABORTED: ProxyAbortedError,
    errno.ETIMEDOUT: ProxyTimeoutError,
    errno.EACCES: ProxyPermissionError,
}


def failure(number: int, message: str, hop: str | None, phase: str, destination: str) -> ProxyError:
    """The ProxyError for an errno, of the class that `except` clauses for that errno catch."""
    return _BY_ERRNO.get(number, ProxyError)(number, message, hop, phase, destination)


def failure_of(error: DialError) -> ProxyError:
    """The ProxyError for a failed dial."""
    return failure(error.errno, str(error), error.hop, error.phase, str(error.destination))
