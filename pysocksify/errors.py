"""Every exception, and the one table from why a connection failed to errno, SOCKS5 REP, SOCKS4 CD and HTTP status."""

from enum import Enum
from errno import (
    EACCES,
    EADDRNOTAVAIL,
    EAFNOSUPPORT,
    ECONNABORTED,
    ECONNREFUSED,
    ECONNRESET,
    EHOSTDOWN,
    EHOSTUNREACH,
    ENETDOWN,
    ENETUNREACH,
    EOPNOTSUPP,
    EPERM,
    EPIPE,
    ETIMEDOUT,
)

from pysocksify.codes import Cd, Rep


class Cause(Enum):
    """Why a connection wasn't made, whoever says so: the machine, a hop, or the rules.

    Each has `words` for a person, the `errno` that the program sees, and what a server answers: `rep` (RFC 1928
    section 6), `cd` (SOCKS4, which has one code for all but identd's failures) and `http_status` (RFC 9110 section 15).
    """

    NOT_ALLOWED = ("not allowed", EACCES, Rep.NOT_ALLOWED, Cd.REJECTED, 403)
    NETWORK_UNREACHABLE = ("network unreachable", ENETUNREACH, Rep.NETWORK_UNREACHABLE, Cd.REJECTED, 502)
    HOST_UNREACHABLE = ("host unreachable", EHOSTUNREACH, Rep.HOST_UNREACHABLE, Cd.REJECTED, 502)
    REFUSED = ("connection refused", ECONNREFUSED, Rep.CONNECTION_REFUSED, Cd.REJECTED, 503)
    GENERAL_FAILURE = ("general failure", ECONNREFUSED, Rep.GENERAL_FAILURE, Cd.REJECTED, 500)
    TIMED_OUT = ("timed out", ETIMEDOUT, Rep.TTL_EXPIRED, Cd.REJECTED, 504)
    COMMAND_NOT_SUPPORTED = ("command not supported", EOPNOTSUPP, Rep.COMMAND_NOT_SUPPORTED, Cd.REJECTED, 405)
    ADDRESS_NOT_SUPPORTED = (
        "address type not supported", EAFNOSUPPORT, Rep.ADDRESS_TYPE_NOT_SUPPORTED, Cd.REJECTED, 501,
    )  # fmt: skip
    OVER_LIMIT = ("over a limit", ECONNREFUSED, Rep.GENERAL_FAILURE, Cd.REJECTED, 503)
    HOP_FAILED = ("a proxy on the way failed", ECONNREFUSED, Rep.GENERAL_FAILURE, Cd.REJECTED, 502)
    CLOSED = ("connection closed in the handshake", ECONNRESET, Rep.GENERAL_FAILURE, Cd.REJECTED, 502)
    NONSENSE = ("not the protocol", ECONNABORTED, Rep.GENERAL_FAILURE, Cd.REJECTED, 502)

    def __init__(self, words: str, errno: int, rep: Rep, cd: Cd, http_status: int) -> None:
        self.words = words
        self.errno = errno
        self.rep = rep
        self.cd = cd
        self.http_status = http_status


_NO_REP = (Cause.OVER_LIMIT, Cause.HOP_FAILED, Cause.CLOSED, Cause.NONSENSE)
_BY_REP = {cause.rep: cause for cause in Cause if cause not in _NO_REP}
_BY_CD = {Cd.NO_IDENTD: Cause.NOT_ALLOWED, Cd.IDENTD_MISMATCH: Cause.NOT_ALLOWED}
_BY_HTTP_STATUS = {
    403: Cause.NOT_ALLOWED,
    405: Cause.COMMAND_NOT_SUPPORTED,
    407: Cause.NOT_ALLOWED,
    501: Cause.COMMAND_NOT_SUPPORTED,
    502: Cause.HOST_UNREACHABLE,
    503: Cause.REFUSED,
    504: Cause.TIMED_OUT,
}
_BY_ERRNO = {
    EACCES: Cause.NOT_ALLOWED,
    EPERM: Cause.NOT_ALLOWED,
    ENETUNREACH: Cause.NETWORK_UNREACHABLE,
    ENETDOWN: Cause.NETWORK_UNREACHABLE,
    EADDRNOTAVAIL: Cause.NETWORK_UNREACHABLE,
    EHOSTUNREACH: Cause.HOST_UNREACHABLE,
    EHOSTDOWN: Cause.HOST_UNREACHABLE,
    ECONNREFUSED: Cause.REFUSED,
    ETIMEDOUT: Cause.TIMED_OUT,
    EOPNOTSUPP: Cause.COMMAND_NOT_SUPPORTED,
    EAFNOSUPPORT: Cause.ADDRESS_NOT_SUPPORTED,
    ECONNRESET: Cause.CLOSED,
    ECONNABORTED: Cause.CLOSED,
    EPIPE: Cause.CLOSED,
}


def cause_of_rep(rep: int) -> Cause:
    """What a SOCKS5 reply code other than 00 means; a code that isn't assigned is a general failure."""
    return _BY_REP.get(Rep(rep), Cause.GENERAL_FAILURE)


def cause_of_cd(cd: int) -> Cause:
    """What a SOCKS4 reply code other than 90 means."""
    return _BY_CD.get(Cd(cd), Cause.GENERAL_FAILURE)


def cause_of_http_status(status: int) -> Cause:
    """What an HTTP status other than 2xx means as the answer to CONNECT."""
    return _BY_HTTP_STATUS.get(status, Cause.GENERAL_FAILURE)


def cause_of_errno(errno: int) -> Cause:
    """What a failed connect(2), send(2) or recv(2) means."""
    return _BY_ERRNO.get(errno, Cause.GENERAL_FAILURE)


class PysocksifyError(Exception):
    """Anything that went wrong; its text is one line for a person and holds no password."""

    exit_status = 125


class ConfigError(PysocksifyError):
    """A file, a URL, a variable or an option that can't be used as it is."""

    def __init__(self, source: str, key: str, reason: str) -> None:
        super().__init__(": ".join(part for part in (source, key, reason) if part))
        self.source = source
        self.key = key
        self.reason = reason


class ConversationError(PysocksifyError):
    """A conversation with a proxy or with a client that came to nothing; `cause` says what that means."""

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


class LocalProtocolError(ConversationError):
    """What we were asked to send can't be said in this protocol. Nothing was sent."""


class RemoteProtocolError(ConversationError):
    """The other side sent what the protocol doesn't have."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Cause.NONSENSE)


class ReplyError(ConversationError):
    """The proxy answered no; `code` is its REP, CD, RFC 1929 status, method or HTTP status."""

    def __init__(self, message: str, cause: Cause, code: int) -> None:
        super().__init__(message, cause)
        self.code = code


class ClientRefusedError(ConversationError):
    """We, the server, answered no before there was a request to try: no common method, a wrong login, an HTTP GET."""

    def __init__(self, message: str, cause: Cause = Cause.NOT_ALLOWED) -> None:
        super().__init__(message, cause)


class PeerClosedError(ConversationError):
    """The other side closed the connection before the conversation was over.

    `partial` holds the bytes that had come of what was being waited for.
    """

    def __init__(self, message: str, partial: bytes = b"") -> None:
        super().__init__(message, Cause.CLOSED)
        self.partial = partial


class DialError(PysocksifyError):
    """No connection to the destination.

    `hop` is the hop that failed, without its password (None: no hop, a direct connection), `phase` what was being done
    there: "connect", "greeting", "authentication" or "request".
    """

    def __init__(self, hop: str | None, phase: str, destination: object, cause: Cause, message: str) -> None:
        where = "direct" if hop is None else hop
        super().__init__(f"{destination}: {where}: {phase}: {message}")
        self.hop = hop
        self.phase = phase
        self.destination = destination
        self.cause = cause
        self.message = message

    @property
    def errno(self) -> int:
        """The errno for the program."""
        return self.cause.errno
