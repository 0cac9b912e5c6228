"""Servers for the tests of the library and of the python engine."""

from collections.abc import Iterator

import pytest

from tests.engines.python import servers
from tests.lab.scripted import ScriptedProxy


@pytest.fixture
def echo() -> Iterator[servers.Echo]:
    """An echo server."""
    with servers.echo_server() as made:
        yield made


@pytest.fixture
def proxy() -> Iterator[ScriptedProxy]:
    """A proxy that knows the echo server."""
    with servers.proxy() as made:
        yield made


@pytest.fixture
def url(proxy: ScriptedProxy) -> str:
    """The proxy's URL."""
    return servers.url(proxy)
