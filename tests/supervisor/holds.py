"""One set of hold addresses for all tests: they are made once in a supervisor's life and never closed."""

import socket

import pytest

from pysocksify.supervisor.hold import Holds
from tests.lab.wrapped import CI, missing

HOLDS = Holds()


def has_ipv6() -> bool:
    """Whether ::1 is there."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def need_ipv6() -> None:
    """Skips the test where ::1 isn't there; in CI that is a failure."""
    if not has_ipv6():
        missing("::1 isn't there")


needs_ipv6 = pytest.mark.skipif(not CI and not has_ipv6(), reason="::1 isn't there")  # in CI they run, and fail
