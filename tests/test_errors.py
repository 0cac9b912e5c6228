"""The table from causes to errno, REP, CD and HTTP status, and what each exception says."""

import errno

import pytest

from pysocksify.errors import (
    Cause,
    ClientRefusedError,
    ConfigError,
    ConversationError,
    DialError,
    LocalProtocolError,
    PeerClosedError,
    PysocksifyError,
    RemoteProtocolError,
    ReplyError,
    cause_of_cd,
    cause_of_errno,
    cause_of_http_status,
    cause_of_rep,
)


@pytest.mark.parametrize(
    ("cause", "number", "rep", "http_status"),
    [
        (Cause.NOT_ALLOWED, errno.EACCES, 2, 403),
        (Cause.NETWORK_UNREACHABLE, errno.ENETUNREACH, 3, 502),
        (Cause.HOST_UNREACHABLE, errno.EHOSTUNREACH, 4, 502),
        (Cause.REFUSED, errno.ECONNREFUSED, 5, 503),
        (Cause.GENERAL_FAILURE, errno.ECONNREFUSED, 1, 500),
        (Cause.TIMED_OUT, errno.ETIMEDOUT, 6, 504),
        (Cause.COMMAND_NOT_SUPPORTED, errno.EOPNOTSUPP, 7, 405),
        (Cause.ADDRESS_NOT_SUPPORTED, errno.EAFNOSUPPORT, 8, 501),
        (Cause.OVER_LIMIT, errno.ECONNREFUSED, 1, 503),
        (Cause.HOP_FAILED, errno.ECONNREFUSED, 1, 502),
        (Cause.CLOSED, errno.ECONNRESET, 1, 502),
        (Cause.NONSENSE, errno.ECONNABORTED, 1, 502),
    ],
)
def test_what_a_cause_becomes(cause: Cause, number: int, rep: int, http_status: int) -> None:
    assert (cause.errno, cause.rep, cause.cd, cause.http_status) == (number, rep, 91, http_status)
    assert cause.words


def test_the_table_is_whole() -> None:
    assert len(Cause) == 12


@pytest.mark.parametrize(
    ("rep", "number"),
    [
        (1, errno.ECONNREFUSED),
        (2, errno.EACCES),
        (3, errno.ENETUNREACH),
        (4, errno.EHOSTUNREACH),
        (5, errno.ECONNREFUSED),
        (6, errno.ETIMEDOUT),
        (7, errno.EOPNOTSUPP),
        (8, errno.EAFNOSUPPORT),
        *((rep, errno.ECONNREFUSED) for rep in range(9, 256)),
    ],
)
def test_rep(rep: int, number: int) -> None:
    assert cause_of_rep(rep).errno == number


@pytest.mark.parametrize(
    ("cd", "number"),
    [(91, errno.ECONNREFUSED), (92, errno.EACCES), (93, errno.EACCES), (94, errno.ECONNREFUSED)],
)
def test_cd(cd: int, number: int) -> None:
    assert cause_of_cd(cd).errno == number


@pytest.mark.parametrize(
    ("status", "number"),
    [
        (403, errno.EACCES),
        (407, errno.EACCES),
        (405, errno.EOPNOTSUPP),
        (501, errno.EOPNOTSUPP),
        (502, errno.EHOSTUNREACH),
        (503, errno.ECONNREFUSED),
        (504, errno.ETIMEDOUT),
        (500, errno.ECONNREFUSED),
        (302, errno.ECONNREFUSED),
        (999, errno.ECONNREFUSED),
    ],
)
def test_http_status(status: int, number: int) -> None:
    assert cause_of_http_status(status).errno == number


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ETIMEDOUT, Cause.TIMED_OUT),
        (errno.EHOSTUNREACH, Cause.HOST_UNREACHABLE),
        (errno.ENETUNREACH, Cause.NETWORK_UNREACHABLE),
        (errno.ECONNREFUSED, Cause.REFUSED),
        (errno.ECONNRESET, Cause.CLOSED),
        (errno.EACCES, Cause.NOT_ALLOWED),
        (errno.EPERM, Cause.NOT_ALLOWED),
        (errno.EAFNOSUPPORT, Cause.ADDRESS_NOT_SUPPORTED),
        (errno.EMFILE, Cause.GENERAL_FAILURE),
        (0, Cause.GENERAL_FAILURE),
    ],
)
def test_errno(number: int, cause: Cause) -> None:
    assert cause_of_errno(number) is cause


def test_a_rep_that_we_send_means_the_same_when_it_comes() -> None:
    for cause in Cause:
        if cause not in (Cause.OVER_LIMIT, Cause.HOP_FAILED, Cause.CLOSED, Cause.NONSENSE):
            assert cause_of_rep(cause.rep) is cause


@pytest.mark.parametrize(
    ("error", "text", "cause"),
    [
        (LocalProtocolError("too long", Cause.NOT_ALLOWED), "too long", Cause.NOT_ALLOWED),
        (RemoteProtocolError("0x48"), "0x48", Cause.NONSENSE),
        (ReplyError("no", Cause.REFUSED, 5), "no", Cause.REFUSED),
        (PeerClosedError("gone", b"\x05"), "gone", Cause.CLOSED),
        (ClientRefusedError("no method"), "no method", Cause.NOT_ALLOWED),
    ],
)
def test_conversations_end_with_a_cause(error: ConversationError, text: str, cause: Cause) -> None:
    assert isinstance(error, PysocksifyError)
    assert str(error) == text
    assert error.cause is cause
    assert error.exit_status == 125


def test_a_config_error_names_source_key_and_reason() -> None:
    error = ConfigError("/etc/x.toml", "hops", "no scheme")
    assert str(error) == "/etc/x.toml: hops: no scheme"
    assert (error.source, error.key, error.reason, error.exit_status) == ("/etc/x.toml", "hops", "no scheme", 125)
    assert str(ConfigError("-p", "", "no scheme")) == "-p: no scheme"


def test_a_dial_error_names_destination_hop_and_phase() -> None:
    error = DialError("socks5://127.0.0.1:1080", "request", "example.com:80", Cause.HOST_UNREACHABLE, "it answered 04")
    assert str(error) == "example.com:80: socks5://127.0.0.1:1080: request: it answered 04"
    assert error.errno == errno.EHOSTUNREACH
    assert (error.hop, error.phase) == ("socks5://127.0.0.1:1080", "request")
    direct = DialError(None, "connect", "example.com:80", Cause.REFUSED, "connection refused")
    assert str(direct) == "example.com:80: direct: connect: connection refused"
