"""Options of the whole test suite, and what holds for all tests."""

import gc
import resource
import signal

import hypothesis  # noqa: F401  # before the heap is frozen: it looks at who refers to what
import pytest

pytest_plugins = ["tests.lab.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The combinations that are too many for every run."""
    parser.addoption(
        "--every-pair",
        action="store_true",
        help="run every program through every server, and every promise in every way: more than an hour",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Takes what some tests count on: SIGINT, which a shell has the background ignore, and enough descriptors."""
    config.addinivalue_line(
        "markers", "everywhere(only=…): as root, in all surroundings and on lesser kernels too, or where `only` says so"
    )
    config.addinivalue_line("markers", "foreign(kind='dynamic'): runs a program that isn't one of Python's")
    config.addinivalue_line(
        "markers", "promise(key): what this tests; where it is said not to be promised, it must fail"
    )
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leaves the thousands of tests out of each gc.collect(): those who look for what they left behind do many."""
    gc.collect()
    gc.freeze()
