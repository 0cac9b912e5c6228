"""TLS on a listener: a client whose records are in the test's own hands, and sockets at the other end."""

import contextlib
import gc
import hashlib
import os
import random
import select
import selectors
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysocksify.address import Address
from pysocksify.server import Limits, ServerSettings, tls
from tests.lab.certificates import certificate
from tests.lab.processes import open_files
from tests.server.running import (
    CASES,
    ECHO,
    LIMIT,
    PAYLOAD,
    Running,
    each_protocol,
    receive,
    receive_all,
    running,
    socks5,
)

MUCH = random.Random(8446).randbytes(8 << 20)
RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 s; close() resets then
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
each_version = pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")


@pytest.fixture
def context(files: tuple[Path, Path]) -> ssl.SSLContext:
    """The server's."""
    return tls.context(str(files[0]), str(files[1]))


@pytest.fixture
def theirs(files: tuple[Path, Path], request: pytest.FixtureRequest) -> ssl.SSLContext:
    """The client's; of the test's `version`, if it has one."""
    made = ssl.create_default_context(cafile=str(files[0]))
    if "version" in request.fixturenames:
        made.minimum_version = made.maximum_version = request.getfixturevalue("version")
    return made


@pytest.fixture
def destination() -> Iterator[socket.socket]:
    """A listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        yield listener


class Client:
    """A client after TLS's handshake. Its close_notify and its FIN are two things here."""

    def __init__(self, server: Running, context: ssl.SSLContext, *, little_room: bool = False) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(LIMIT)
        if little_room:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self.sock.connect((server.address.host, server.address.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
        self._flush()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()

    def records(self, data: bytes) -> bytes:
        """This, in records that weren't sent."""
        self._tls.write(data)
        return self._outgoing.read()

    def send(self, data: bytes) -> None:
        self.sock.sendall(self.records(data))

    def send_end(self) -> None:
        """close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._flush()

    def send_all(self, data: bytes) -> None:
        self.send(data)
        self.send_end()

    def receive(self, size: int) -> bytes:
        """What comes; b"" after the server's close_notify. ConnectionError: an end without one."""
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    def receive_all(self) -> bytes:
        data = bytearray()
        while piece := self.receive(65536):
            data += piece
        return bytes(data)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.receive(size - len(data))
            assert piece, f"an end after {data!r}"
            data += piece
        return data

    def _flush(self) -> None:
        self.sock.sendall(self._outgoing.read())

    def _fill(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("an end without close_notify")
        self._incoming.write(data)


@contextlib.contextmanager
def connected(
    context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket, settings: ServerSettings | None = None
) -> Iterator[tuple[Client, socket.socket, Running]]:
    """A client, the destination's end of its connection, and the server. Nothing is left open afterwards."""
    with running(settings, tls=context) as server:
        before = sockets()
        with Client(server, theirs) as client:
            client.send(socks5(destination.getsockname()[1]))
            assert client.exactly(12)[:4] == b"\x05\x00\x05\x00"
            with destination.accept()[0] as inner:
                inner.settimeout(LIMIT)
                yield client, inner, server
        gone(server, before)


def listen_with_little_room(server: Running, context: ssl.SSLContext) -> None:
    """Have the server listen elsewhere, where the kernel holds little for a client that doesn't read."""
    listener = socket.create_server(("127.0.0.1", 0))
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        listener.setsockopt(socket.SOL_SOCKET, option, 8192)
    server.address = Address(*listener.getsockname())
    server.in_loop(lambda: server.server.adopt(listener, context))


def sockets() -> int:
    """How many this process has open."""
    gc.collect()
    return sum(file.startswith("socket:") for file in open_files(os.getpid()))


def gone(server: Running, before: int) -> None:
    """No session, no tunnel and no socket is left."""
    server.until(lambda: not server.server.session_count)
    server.until(lambda: sockets() <= before)


class TestHandshakes:
    @each_version
    @each_protocol
    def test_and_early_payload(
        self, protocol: str, version: ssl.TLSVersion, context: ssl.SSLContext, theirs: ssl.SSLContext,
        destination: socket.socket,
    ) -> None:  # fmt: skip
        """One record."""
        request, size, beginning = CASES[protocol]
        with running(ServerSettings(hosts=ECHO), tls=context) as server, Client(server, theirs) as client:
            client.send(request(destination.getsockname()[1]) + PAYLOAD)
            with destination.accept()[0] as inner:
                assert receive(inner, len(PAYLOAD)) == PAYLOAD
            answer = client.receive_all()
            assert answer.startswith(beginning)
            assert size is None or len(answer) == size

    @each_version
    def test_byte_by_byte(
        self, version: ssl.TLSVersion, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket
    ) -> None:
        """A record for each byte, and a segment for each byte of those."""
        with running(tls=context) as server, Client(server, theirs) as client:
            for byte in socks5(destination.getsockname()[1]) + PAYLOAD:
                for piece in client.records(bytes([byte])):
                    client.sock.sendall(bytes([piece]))
            with destination.accept()[0] as inner:
                assert receive(inner, len(PAYLOAD)) == PAYLOAD

    @pytest.mark.parametrize(
        "sent",
        [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            socks5(80),
            b"\x16\x03\x01",
            b"\x16\x03\x01\x40\x00" + bytes(0x4000),
            bytes(range(256)) * 1000,
        ],
        ids=["http", "socks5", "the beginning of a hello", "zeros", "much"],
    )
    @pytest.mark.parametrize("end", [False, True], ids=["stays", "ends"])
    def test_no_hello(self, sent: bytes, end: bool, context: ssl.SSLContext) -> None:
        """Whoever stays silent, too, is sent away when the time for a handshake is over."""
        with running(ServerSettings(limits=Limits(handshake=0.2)), tls=context) as server:
            before = sockets()
            with server.connect() as client, contextlib.suppress(OSError):
                client.sendall(sent)
                if end:
                    client.shutdown(socket.SHUT_WR)
                receive_all(client)  # an alert, at most
            gone(server, before)
            assert not any("Traceback" in line for line in server.lines)

    @pytest.mark.parametrize("how", ["silent", "gone", "reset", "half a handshake"])
    def test_nothing(self, how: str, context: ssl.SSLContext, theirs: ssl.SSLContext) -> None:
        with running(ServerSettings(limits=Limits(handshake=0.2)), tls=context) as server:
            before = sockets()
            with server.connect() as client:
                server.until(lambda: server.server.session_count)
                if how == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                if how in ("gone", "reset"):
                    client.close()
                else:
                    if how == "half a handshake":
                        outgoing = ssl.MemoryBIO()
                        hello = theirs.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
                        with pytest.raises(ssl.SSLWantReadError):
                            hello.do_handshake()
                        client.sendall(outgoing.read())
                    with contextlib.suppress(ConnectionResetError):
                        receive_all(client)
            gone(server, before)

    def test_silent_after_the_handshake(
        self, context: ssl.SSLContext, theirs: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has heard that it was too slow, and doesn't end by itself."""
        monkeypatch.setattr(tls, "OVER_LIMIT", 0.2)
        with running(ServerSettings(limits=Limits(handshake=1.0)), tls=context) as server:
            before = sockets()
            with Client(server, theirs) as client:
                assert client.receive_all() == b""
                gone(server, before + 1)

    def test_over_a_limit(self, context: ssl.SSLContext, theirs: ssl.SSLContext) -> None:
        with running(ServerSettings(limits=Limits(total=1)), tls=context) as server, Client(server, theirs):
            server.until(lambda: server.server.session_count)
            with Client(server, theirs) as second:
                second.send(socks5(80))
                assert second.receive_all().startswith(b"\x05\x00\x05\x01")

    @pytest.mark.parametrize(("reason", "alert"), [("no common cipher", 40), ("wrong version", 70)])
    def test_an_alert_says_why(self, reason: str, alert: int, context: ssl.SSLContext, theirs: ssl.SSLContext) -> None:
        """RFC 5246 section 7.2: fatal handshake_failure, protocol_version; and then an end, not a reset."""
        theirs.maximum_version = ssl.TLSVersion.TLSv1_2
        if reason == "wrong version":
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        else:
            theirs.set_ciphers("AES128-SHA256")
        outgoing = ssl.MemoryBIO()
        hello = theirs.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
        with pytest.raises(ssl.SSLWantReadError):
            hello.do_handshake()
        with running(tls=context) as server, server.connect() as client:
            before = sockets()
            client.sendall(outgoing.read())
            answer = receive_all(client)
            assert answer[:1] + answer[3:] == bytes((21, 0, 2, 2, alert))
            server.until(lambda: server.counts.sums().failed["protocol"])
            assert "TLS handshake failed: " in server.lines[-1]
            gone(server, before)

    def test_a_refusal_ends_with_close_notify(self, context: ssl.SSLContext, theirs: ssl.SSLContext) -> None:
        with socket.socket() as nobody, running(tls=context) as server:
            nobody.bind(("127.0.0.1", 0))
            before = sockets()
            with Client(server, theirs) as client:
                client.send(socks5(nobody.getsockname()[1]))
                assert client.receive_all()[2:4] == b"\x05\x05"
                client.send_end()
            gone(server, before)


class TestEnds:
    @each_version
    def test_the_clients_first(
        self, version: ssl.TLSVersion, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket
    ) -> None:
        with connected(context, theirs, destination) as (client, inner, _):
            client.send(b"question")
            client.send_end()
            assert receive_all(inner) == b"question"
            inner.sendall(b"late answer")
            inner.close()
            assert client.receive_all() == b"late answer"

    @each_version
    def test_the_destinations_first(
        self, version: ssl.TLSVersion, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket
    ) -> None:
        """The client goes on with much, after it has heard of it."""
        with connected(context, theirs, destination) as (client, inner, _):
            inner.sendall(b"that was all")
            inner.shutdown(socket.SHUT_WR)
            assert client.receive_all() == b"that was all"
            sender = threading.Thread(target=client.send_all, args=[MUCH])
            sender.start()
            assert digest(receive_all(inner)) == digest(MUCH)
            sender.join(LIMIT)

    @pytest.mark.parametrize("how", ["end", "reset"])
    def test_cut_off(
        self, how: str, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket
    ) -> None:
        """RFC 8446 section 6.1: without close_notify it isn't known whether that was all."""
        with connected(context, theirs, destination) as (client, inner, server):
            client.send(b"part of a")
            if how == "end":
                client.sock.shutdown(socket.SHUT_WR)
            assert receive(inner, 9) == b"part of a"
            if how == "reset":
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.sock.close()
            with pytest.raises(ConnectionResetError):
                inner.recv(1)
            server.until(lambda: not server.server.session_count)
            assert "reset by the client" in server.lines[-1]

    def test_a_slow_reader_of_the_last_bytes(
        self, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket
    ) -> None:
        """The session has ended, but the client is there, and counts, as long as it takes something of what is left."""
        much = MUCH[:150_000]
        with running(ServerSettings(limits=Limits(total=1)), tls=context) as server:
            listen_with_little_room(server, context)
            before = sockets()
            with Client(server, theirs, little_room=True) as client:
                client.send(socks5(destination.getsockname()[1]))
                client.exactly(12)
                with destination.accept()[0] as inner:
                    inner.settimeout(LIMIT)
                    client.send_end()
                    assert receive_all(inner) == b""
                    inner.sendall(much)
                server.until(lambda: "ok, " in server.lines[-1])
                assert server.server.session_count == 1
                assert server.counts.sums().active == 1
                (tunnel,) = server.server._tunnels
                came = b""
                for _ in range(3):
                    for _ in range(20):
                        came += client.receive(1500)
                    server.in_loop(tunnel._look_at_progress)
                    assert server.server.session_count == 1
                assert came + client.receive_all() == much
            gone(server, before)
            assert not server.counts.sums().active

    def test_a_reader_of_the_last_bytes_who_stops(
        self, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(tls, "OVER_LIMIT", 0.1)
        with running(tls=context) as server:
            listen_with_little_room(server, context)
            before = sockets()
            with Client(server, theirs, little_room=True) as client:
                client.send(socks5(destination.getsockname()[1]))
                client.exactly(12)
                with destination.accept()[0] as inner:
                    client.send_end()
                    inner.sendall(MUCH[:150_000])
                gone(server, before + 1)
                with pytest.raises(ConnectionError):
                    client.receive_all()

    def test_nonsense_later(self, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket) -> None:
        with connected(context, theirs, destination) as (client, inner, _):
            client.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            with pytest.raises(ConnectionResetError):
                inner.recv(1)

    def test_a_reset_of_the_destination(
        self, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket
    ) -> None:
        """It doesn't look like an end."""
        with connected(context, theirs, destination) as (client, inner, _):
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            inner.close()
            with pytest.raises(ConnectionError):
                client.receive_all()

    def test_a_reset_comes_after_the_data_before_it(
        self, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket
    ) -> None:
        """Also when the client takes them slowly."""
        much = MUCH[:150_000]
        with running(tls=context) as server, Client(server, theirs, little_room=True) as client:
            client.send(socks5(destination.getsockname()[1]))
            client.exactly(12)
            with destination.accept()[0] as inner:
                inner.sendall(much)
                inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                with selectors.DefaultSelector() as nothing:
                    while tls._unacknowledged(inner):
                        nothing.select(0.01)
            server.until(lambda: "reset by the destination" in server.lines[-1])
            came = bytearray()
            with pytest.raises(ConnectionError):  # noqa: PT012
                while len(came) <= len(much):
                    came += client.receive(1500)
            assert bytes(came) == much

    def test_close(self, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket) -> None:
        with connected(context, theirs, destination) as (client, inner, server):
            server.in_loop(server.server.close)
            with pytest.raises(ConnectionError):
                client.receive_all()
            with pytest.raises(ConnectionResetError):
                inner.recv(1)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class TestRelay:
    @each_version
    def test_8_mb_both_ways_at_once(
        self, version: ssl.TLSVersion, context: ssl.SSLContext, files: tuple[Path, Path], destination: socket.socket
    ) -> None:
        """The client is an ordinary one, of the ssl module."""
        plain = ssl.create_default_context(cafile=str(files[0]))
        plain.minimum_version = plain.maximum_version = version
        with running(tls=context) as server, server.connect() as sock:
            before = sockets()
            with plain.wrap_socket(sock, server_hostname="127.0.0.1") as client:
                client.sendall(socks5(destination.getsockname()[1]))
                assert receive(client, 12)[:4] == b"\x05\x00\x05\x00"
                with destination.accept()[0] as inner:
                    inner.settimeout(LIMIT)
                    came: list[str] = []
                    threads = [
                        threading.Thread(target=lambda: inner.sendall(MUCH)),
                        threading.Thread(target=lambda: came.append(digest(receive(inner, len(MUCH))))),
                    ]
                    for thread in threads:
                        thread.start()
                    assert both_ways(client) == digest(MUCH)
                    for thread in threads:
                        thread.join(LIMIT)
                    assert came == [digest(MUCH)]
            gone(server, before)

    def test_a_slow_reader_holds_back_the_destination(
        self, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket
    ) -> None:
        """What the kernel's buffers hold is sent, no more; then all of it comes."""
        most = 64 << 20
        with connected(context, theirs, destination) as (client, inner, _):
            inner.setblocking(False)
            sent, expected = 0, hashlib.sha256()
            while sent < most and select.select([], [inner], [], 0.5)[1]:
                count = inner.send(MUCH[: 1 << 20])
                expected.update(MUCH[:count])
                sent += count
            assert sent < most
            inner.close()
            assert digest(client.receive_all()) == expected.hexdigest()

    def test_a_slow_destination_holds_back_the_client(
        self, context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket
    ) -> None:
        with connected(context, theirs, destination) as (client, inner, _):
            sender = threading.Thread(target=client.send_all, args=[MUCH * 4])
            sender.start()
            sender.join(0.5)
            assert sender.is_alive()
            assert digest(receive_all(inner)) == digest(MUCH * 4)
            sender.join(LIMIT)


def both_ways(client: ssl.SSLSocket) -> str:
    """Send MUCH and receive as much, in one thread, as the ssl module wants it; what came."""
    client.setblocking(False)
    to_send, came = memoryview(MUCH), bytearray()
    while to_send or len(came) < len(MUCH):
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            came += client.recv(65536)
        try:
            to_send = to_send[client.send(to_send[:65536]) :] if to_send else to_send
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            select.select([client], [client] if to_send else [], [], LIMIT)
    return digest(bytes(came))


def test_100_leave_nothing(context: ssl.SSLContext, theirs: ssl.SSLContext, destination: socket.socket) -> None:
    """Ended in turn by either side, and by a cut."""
    with running(tls=context) as server:
        before = sockets()
        for number in range(100):
            with Client(server, theirs) as client:
                client.send(socks5(destination.getsockname()[1]) + os.urandom(number))
                with destination.accept()[0] as inner:
                    receive(inner, number)
                    if number % 3 == 0:
                        client.send_end()
                if number % 3 == 1:
                    assert client.receive_all().startswith(b"\x05\x00")
        gone(server, before)
