"""Options of the whole test suite, and what holds for all tests."""

import resource
import signal

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The combinations that are too many for every run."""
    parser.addoption(
        "--every-pair",
        action="store_true",
        help="run every program through every server, not only some programs: several minutes more",
    )


def pytest_configure() -> None:
    """Takes what some tests count on: SIGINT, which a shell has the background ignore, and enough descriptors."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
