"""One set of hold addresses for all tests: they are made once in a supervisor's life and never closed."""

import socket

from pysocksify.supervisor.hold import Holds

HOLDS = Holds()


def has_ipv6() -> bool:
    """Whether ::1 is there."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
