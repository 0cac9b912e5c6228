"""Options of the whole test suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The combinations that are too many for every run."""
    parser.addoption(
        "--every-pair",
        action="store_true",
        help="run every program through every server, not only some programs: several minutes more",
    )
