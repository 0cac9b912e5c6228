"""The library's public names: single connections, by the calling thread and in asyncio's loop."""

import asyncio
import errno
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import pysocksify
from pysocksify.dial.failures import ProxyError
from tests.engines.python import servers
from tests.engines.python.servers import ANSWERS, ECHO, FORBIDDEN, LOOPBACK, REFUSED, UNREACHABLE
from tests.lab.scripted import Script, ScriptedProxy


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


def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        port: int = sock.getsockname()[1]
        return port


FAILURES = [
    (REFUSED, ConnectionRefusedError, errno.ECONNREFUSED),
    (UNREACHABLE, ProxyError, errno.EHOSTUNREACH),
    (FORBIDDEN, PermissionError, errno.EACCES),
]


def test_start_up_stays_light() -> None:
    code = "import pysocksify, sys; print(*sorted(name for name in sys.modules if 'pysocksify' in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "pysocksify\n"


def test_public_names() -> None:
    for name in pysocksify.__all__:
        assert getattr(pysocksify, name).__doc__, name
        assert name in dir(pysocksify)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pysocksify.nothing  # noqa: B018


class TestCreateConnection:
    def test_a_plain_socket(self, echo: servers.Echo, proxy: ScriptedProxy) -> None:
        threads = threading.active_count()
        chain = [servers.url(proxy)]
        with pysocksify.create_connection((ECHO, echo.port), timeout=5, chain=chain) as sock:
            assert type(sock) is socket.socket
            assert sock.gettimeout() == 5
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
            assert threading.active_count() <= threads + 1, "none but the echo server's"
        assert [(one.host, one.port) for one in proxy.asked] == [(ECHO, echo.port)]

    def test_a_chain(self, echo: servers.Echo, proxy: ScriptedProxy) -> None:
        with servers.proxy() as first:
            chain = [servers.url(first), servers.url(proxy)]
            with pysocksify.create_connection((ECHO, echo.port), chain=chain) as sock:
                assert sock.gettimeout() is None
                assert sock.getpeername() == (LOOPBACK, first.port)
            assert [(one.host, one.port) for one in first.asked] == [(LOOPBACK, proxy.port)]

    @pytest.mark.parametrize(("name", "wanted", "number"), FAILURES)
    def test_the_destinations_failure(
        self, name: str, wanted: type[OSError], number: int, proxy: ScriptedProxy
    ) -> None:
        with pytest.raises(wanted) as caught:
            pysocksify.create_connection((name, 80), chain=[servers.url(proxy)])
        error = caught.value
        assert isinstance(error, ProxyError)
        assert error.errno == number
        assert str(error).startswith(f"{name}:80: {servers.url(proxy)}: request: the proxy answered 0x0{ANSWERS[name]}")
        assert (error.hop, error.phase, error.destination) == (servers.url(proxy), "request", f"{name}:80")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.errno, again.hop) == (type(error), str(error), number, error.hop)

    def test_no_proxy_there(self) -> None:
        url = f"socks5://user:secret@{LOOPBACK}:{free_port()}"
        with pytest.raises(ConnectionRefusedError, match=r"connect: Connection refused") as caught:
            pysocksify.create_connection(("example.test", 80), chain=[url])
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("script", "wanted"),
        [
            (Script(garbage=b"HTTP/1.0 400 no\r\n\r\n"), ConnectionAbortedError),
            (Script(reset=True), ConnectionResetError),
            (Script(cut=3), ConnectionResetError),
        ],
    )
    def test_a_proxy_that_misbehaves(self, script: Script, wanted: type[OSError]) -> None:
        with servers.proxy(script) as proxy, pytest.raises(wanted):
            pysocksify.create_connection((ECHO, 80), chain=[servers.url(proxy)], timeout=5)

    def test_the_time_limit_is_for_all_of_it(self) -> None:
        with servers.proxy(Script(silent=True)) as proxy:
            began = time.monotonic()
            with pytest.raises(TimeoutError, match=f"{ECHO}:80: no connection in time"):
                pysocksify.create_connection((ECHO, 80), timeout=0.2, chain=[servers.url(proxy)])
            assert 0.2 <= time.monotonic() - began < 5

    def test_the_default_time_limit(self) -> None:
        with servers.proxy(Script(silent=True)) as proxy:
            socket.setdefaulttimeout(0.2)
            try:
                with pytest.raises(TimeoutError):
                    pysocksify.create_connection((ECHO, 80), chain=[servers.url(proxy)])
            finally:
                socket.setdefaulttimeout(None)

    def test_source_address(self, echo: servers.Echo, proxy: ScriptedProxy) -> None:
        with pysocksify.create_connection(
            (ECHO, echo.port), source_address=("127.0.0.2", 0), chain=[servers.url(proxy)]
        ) as sock:
            assert sock.getsockname()[0] == "127.0.0.2"

    def test_what_the_environment_says(
        self, echo: servers.Echo, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYSOCKSIFY_PROXY", servers.url(proxy))
        pysocksify.create_connection((ECHO, echo.port)).close()
        pysocksify.create_connection((LOOPBACK, echo.port)).close()
        assert [one.host for one in proxy.asked] == [ECHO], "loopback is direct"

    def test_a_config_with_rules(self, echo: servers.Echo, proxy: ScriptedProxy) -> None:
        rules = [{"match": ["denied.test"], "to": "deny"}]
        config = pysocksify.configuration(servers.url(proxy), direct=["127.0.0.0/8"], rules=rules)
        pysocksify.create_connection((LOOPBACK, echo.port), chain=config).close()
        with pytest.raises(PermissionError, match=r"denied by rule denied\.test"):
            pysocksify.create_connection(("denied.test", 80), chain=config)
        with pytest.raises(ConnectionRefusedError, match="direct: Connection refused"):
            pysocksify.create_connection((LOOPBACK, free_port()), chain=config)
        assert proxy.asked == []

    def test_turns_are_taken_between_connections(self, echo: servers.Echo, proxy: ScriptedProxy) -> None:
        with servers.proxy() as other:
            config = pysocksify.configuration(servers.url(proxy), servers.url(other), mode="round_robin")
            for _ in range(4):
                pysocksify.create_connection((ECHO, echo.port), chain=config).close()
            assert (len(proxy.asked), len(other.asked)) == (2, 2)

    def test_what_cannot_be_used(self) -> None:
        url = "socks5://127.0.0.1:1"
        for chain in ([], ["gopher://a"], url):
            with pytest.raises(pysocksify.ConfigError):
                pysocksify.create_connection(("a.test", 80), chain=chain)
        with pytest.raises(ValueError):
            pysocksify.create_connection(("a.test", 80), timeout=0, chain=[url])
        for host, port in (("a b", 80), ("a.test", 70000), ("", 80)):
            with pytest.raises(OSError, match=r"not a host name|not within|empty"):
                pysocksify.create_connection((host, port), chain=[url])

    def test_no_descriptor_is_left(self, proxy: ScriptedProxy) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with pytest.raises(OSError):
                pysocksify.create_connection(("a.test", 80), chain=[f"socks5://{LOOPBACK}:{free_port()}"])
        assert len(os.listdir("/proc/self/fd")) == before


class TestOpenConnection:
    def test_streams(self, echo: servers.Echo, proxy: ScriptedProxy) -> None:
        async def main() -> bytes:
            chain = [servers.url(proxy)]
            reader, writer = await pysocksify.open_connection(ECHO, echo.port, chain=chain, limit=1000)
            writer.write(b"hello")
            data = await reader.readexactly(5)
            writer.close()
            await writer.wait_closed()
            return data

        assert asyncio.run(main()) == b"hello"

    def test_many_at_once_in_one_loop(self, echo: servers.Echo) -> None:
        async def one(url: str) -> None:
            _, writer = await pysocksify.open_connection(ECHO, echo.port, chain=[url])
            writer.close()
            await writer.wait_closed()

        async def main(url: str) -> float:
            began = time.monotonic()
            await asyncio.gather(*(one(url) for _ in range(50)))
            return time.monotonic() - began

        with servers.proxy(Script(delay=0.2)) as proxy:
            assert asyncio.run(main(servers.url(proxy))) < 5, "one after the other they take 20"
            assert len(proxy.asked) == 50

    @pytest.mark.parametrize(("name", "wanted", "number"), FAILURES)
    def test_failures(self, name: str, wanted: type[OSError], number: int, proxy: ScriptedProxy) -> None:
        with pytest.raises(wanted) as caught:
            asyncio.run(self.open(name, servers.url(proxy)))
        assert caught.value.errno == number
        assert str(caught.value).startswith(f"{name}:80: {servers.url(proxy)}: request: ")

    async def open(self, name: str, url: str) -> None:
        await pysocksify.open_connection(name, 80, chain=[url])

    def test_cancelling(self) -> None:
        async def main(url: str) -> None:
            with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                await asyncio.wait_for(self.open(ECHO, url), 0.2)

        with servers.proxy(Script(silent=True)) as proxy:
            before = len(os.listdir("/proc/self/fd"))
            asyncio.run(main(servers.url(proxy)))
            assert len(os.listdir("/proc/self/fd")) <= before + 1, "the proxy's own end may take a moment"

    def test_a_hops_time_limit(self) -> None:
        async def main(url: str) -> None:
            config = pysocksify.configuration(url, timeout=0.2)
            with pytest.raises(TimeoutError, match="request: no reply in time"):
                await pysocksify.open_connection(ECHO, 80, chain=config)

        with servers.proxy(Script(silent=True)) as proxy:
            asyncio.run(main(servers.url(proxy)))
