"""What holds for all tests."""

import resource
import signal


def pytest_configure() -> None:
    """Takes what some tests count on: SIGINT, which a shell has the background ignore, and enough descriptors."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
