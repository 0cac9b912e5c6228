"""What people use: each library for real, against a web server with and without TLS, through a proxy that logs."""

import asyncio
import http.server
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import pysocksify
from tests.engines.python.servers import ECHO, LOOPBACK
from tests.lab.scripted import ScriptedProxy
from tests.lab.wrapped import need

BODY = b"a page\n"
LIMIT = 15


class Page(http.server.BaseHTTPRequestHandler):
    """One page, whatever is asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


def serve(context: ssl.SSLContext | None) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Page)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=partial(server.serve_forever, 0.02))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def page() -> Iterator[str]:
    """The page's URL."""
    for port in serve(None):
        yield f"http://{ECHO}:{port}/"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for the server's name, with its key behind it."""
    need("openssl")
    folder = tmp_path_factory.mktemp("tls")
    words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={ECHO}"
    names = ["-addext", f"subjectAltName=DNS:{ECHO}", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run(["openssl", *words.split(), *names], check=True, capture_output=True, timeout=30)
    both = folder / "both"
    both.write_bytes((folder / "cert").read_bytes() + (folder / "key").read_bytes())
    return both


@pytest.fixture
def secure_page(certificate: Path) -> Iterator[str]:
    """The page's URL with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    for port in serve(context):
        yield f"https://{ECHO}:{port}/"


@pytest.fixture
def trusting(certificate: Path) -> ssl.SSLContext:
    """What a client of the secure page trusts."""
    return ssl.create_default_context(cafile=str(certificate))


@pytest.fixture(autouse=True)
def asked_for_the_name(proxy: ScriptedProxy) -> Iterator[None]:
    """Each test reaches the server through the proxy, by its name."""
    yield
    assert {one.host for one in proxy.asked} == {ECHO}


def test_urllib(url: str, page: str) -> None:
    with pysocksify.socksify(url), urllib.request.urlopen(page, timeout=LIMIT) as answer:
        assert answer.read() == BODY


def test_urllib_without_a_limit(url: str, page: str) -> None:
    with pysocksify.socksify(url), urllib.request.urlopen(page) as answer:
        assert answer.read() == BODY


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_ssl(limit: float | None, url: str, secure_page: str, trusting: ssl.SSLContext) -> None:
    with (
        pysocksify.socksify(url),
        urllib.request.urlopen(secure_page, timeout=limit, context=trusting) as answer,
    ):
        assert answer.read() == BODY


def test_an_ssl_socket_that_connects_itself(url: str, secure_page: str, trusting: ssl.SSLContext) -> None:
    port = int(secure_page.rpartition(":")[2].strip("/"))
    with pysocksify.socksify(url), trusting.wrap_socket(socket.socket(), server_hostname=ECHO) as sock:
        sock.connect((ECHO, port))
        assert sock.version()
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert sock.recv(4) == b"HTTP"


def test_requests(url: str, page: str) -> None:
    requests = import_module("requests")
    with pysocksify.socksify(url), requests.Session() as session:
        assert session.get(page, timeout=LIMIT).content == BODY


def test_httpx(url: str, page: str, secure_page: str, trusting: ssl.SSLContext) -> None:
    httpx = import_module("httpx")
    with pysocksify.socksify(url), httpx.Client(verify=trusting, timeout=LIMIT, trust_env=False) as client:
        assert client.get(page).content == BODY
        assert client.get(secure_page).content == BODY


def test_httpx_in_asyncio(url: str, page: str, secure_page: str, trusting: ssl.SSLContext) -> None:
    httpx = import_module("httpx")

    async def main() -> None:
        async with httpx.AsyncClient(verify=trusting, timeout=LIMIT, trust_env=False) as client:
            answers = await asyncio.gather(*(client.get(one) for one in (page, secure_page) * 5))
            assert [answer.content for answer in answers] == [BODY] * 10

    with pysocksify.socksify(url):
        asyncio.run(main())


def test_aiohttp(url: str, page: str, secure_page: str, trusting: ssl.SSLContext) -> None:
    aiohttp = import_module("aiohttp")

    async def main() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT)) as session:
            async with session.get(page) as answer:
                assert await answer.read() == BODY
            async with session.get(secure_page, ssl=trusting) as answer:
                assert await answer.read() == BODY

    with pysocksify.socksify(url):
        asyncio.run(main())


def test_trio(url: str, page: str) -> None:
    trio = import_module("trio")
    port = int(page.rpartition(":")[2].strip("/"))

    async def one(results: list[bytes]) -> None:
        stream = await trio.open_tcp_stream(ECHO, port)
        async with stream:
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            data = b""
            async for piece in stream:
                data += piece
            results.append(data)

    async def main() -> None:
        results: list[bytes] = []
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(one, results)
        assert len(results) == 10
        assert all(each.endswith(BODY) for each in results)

    with pysocksify.socksify(url):
        trio.run(main)


def test_trio_with_a_socket_of_ours(url: str, page: str) -> None:
    trio = import_module("trio")
    port = int(page.rpartition(":")[2].strip("/"))

    async def main() -> None:
        dial = partial(pysocksify.create_connection, (ECHO, port), timeout=LIMIT, chain=[url])
        sock = await trio.to_thread.run_sync(dial)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            assert (await stream.receive_some(4)) == b"HTTP"

    trio.run(main)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_streams_with_tls(loop: str, url: str, secure_page: str, trusting: ssl.SSLContext) -> None:
    made = asyncio.new_event_loop() if loop == "asyncio" else import_module("uvloop").new_event_loop()
    port = int(secure_page.rpartition(":")[2].strip("/"))

    async def main() -> None:
        reader, writer = await pysocksify.open_connection(ECHO, port, chain=[url], ssl=trusting)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(BODY)
        writer.close()
        await writer.wait_closed()

    made.run_until_complete(main())
    made.close()
