"""Logins that take their time: who waits for whom, clients that leave or end meanwhile, and a server that has no
descriptor left."""

import errno
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pysocksify.server import ServerSettings, Users
from pysocksify.server.handshake import Handshake
from pysocksify.server.users import HASHES_AT_ONCE
from tests.server.running import (
    LIMIT,
    PAYLOAD,
    Running,
    http,
    login,
    receive,
    receive_all,
    receive_head,
    running,
    socks5,
)

RESET = struct.pack("ii", 1, 0)  # struct linger: close() resets (socket(7))
GREETING = b"\x05\x01\x02"
WRONG = login(b"eve", b"x")
BASIC_WRONG = b"Proxy-Authorization: Basic ZXZlOng=\r\n"  # eve:x
MANY = 40  # more than there are threads for blocking calls


class Gated(Users):
    """bob's login is known; alice's and eve's take as long as the test likes. Only alice's is right."""

    def __init__(self) -> None:
        super().__init__(hashes={})
        self.gate = threading.Event()
        self.begun: list[bytes] = []

    def quick(self, name: bytes, password: bytes) -> bool | None:
        return True if name == b"bob" else None

    def verify(self, name: bytes, password: bytes) -> bool:
        self.begun.append(name)
        assert self.gate.wait(LIMIT)
        return name == b"alice"


@pytest.fixture
def users() -> Iterator[Gated]:
    users = Gated()
    yield users
    users.gate.set()


@pytest.fixture
def server(users: Gated) -> Iterator[Running]:
    with running(ServerSettings(users=users)) as server:
        yield server
        users.gate.set()


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        yield listener


def test_logins_dont_keep_names_from_being_looked_up(server: Running, users: Gated, target: socket.socket) -> None:
    with ExitStack() as clients:
        for _ in range(MANY):
            clients.enter_context(server.connect()).sendall(GREETING + WRONG)
        server.until(lambda: users.begun)
        with server.connect() as client:
            name = b"\x03\x09localhost"
            client.sendall(GREETING + login(b"bob", b"b") + socks5(target.getsockname()[1], name)[3:])
            assert receive(client, 5) == b"\x05\x02\x01\x00\x05"
            assert receive(client, 1) == b"\x00"
        assert len(users.begun) <= HASHES_AT_ONCE


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("protocol", ["socks5", "http"])
def test_who_leaves_takes_the_login_along(server: Running, users: Gated, protocol: str, how: str) -> None:
    """Whether it waits for its turn or is looked at just now: the session is over at once."""
    clients = [server.connect() for _ in range(MANY)]
    for client in clients:
        client.sendall(http(80, extra=BASIC_WRONG) if protocol == "http" else GREETING + WRONG)
    server.until(lambda: server.server.session_count == MANY and users.begun)
    for client in clients:
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
    server.until(lambda: not server.server.session_count)
    begun = len(users.begun)
    users.gate.set()
    with server.connect() as client:
        client.sendall(GREETING + login(b"alice", b"a"))
        assert receive(client, 4) == b"\x05\x02\x01\x00"
    assert len(users.begun) == begun + 1


@pytest.mark.parametrize("split", ["login", "request", "payload", "end"])
@pytest.mark.parametrize("protocol", ["socks5", "http"])
def test_all_that_was_sent_before_the_end_is_served(
    server: Running, users: Gated, target: socket.socket, monkeypatch: pytest.MonkeyPatch, protocol: str, split: str
) -> None:
    """A client says all that it has to say, and ends; what comes after the split comes while its login is hashed."""
    ends: list[int] = []
    on_end = Handshake._on_client_end

    def counted(self: Handshake, events: int) -> None:
        ends.append(events)
        on_end(self, events)

    monkeypatch.setattr(Handshake, "_on_client_end", counted)
    number = target.getsockname()[1]
    if protocol == "http":
        asked = http(number, b"127.0.0.1", extra=b"Proxy-Authorization: Basic YWxpY2U6YQ==\r\n")  # alice:a
        parts = [asked, b"", PAYLOAD]
    else:
        parts = [GREETING + login(b"alice", b"a"), socks5(number)[3:], PAYLOAD]
    at = ["login", "request", "payload", "end"].index(split)
    at_once, later = parts[: at + 1], parts[at + 1 :]
    with server.connect() as client:
        client.sendall(b"".join(at_once))
        if split == "end":
            client.shutdown(socket.SHUT_WR)
        server.until(lambda: users.begun)
        if later:
            client.sendall(b"".join(later))
        if split != "end":
            client.shutdown(socket.SHUT_WR)
        server.until(lambda: ends)
        for _ in range(10):
            server.in_loop(lambda: None)
        assert ends == [select.EPOLLRDHUP]  # it doesn't spin
        users.gate.set()
        with target.accept()[0] as inner:
            inner.settimeout(LIMIT)
            assert receive_all(inner) == PAYLOAD
            inner.sendall(b"answer")
        if protocol == "http":
            assert receive_head(client).startswith(b"HTTP/1.1 200")
        else:
            assert receive(client, 14)[:8] == b"\x05\x02\x01\x00\x05\x00\x00\x01"
        assert receive_all(client) == b"answer"
    server.until(lambda: not server.server.session_count)


def test_reset_after_all_was_sent(server: Running, users: Gated) -> None:
    with server.connect() as client:
        client.sendall(GREETING + WRONG + socks5(80)[3:] + PAYLOAD)
        client.shutdown(socket.SHUT_WR)
        server.until(lambda: users.begun)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    server.until(lambda: not server.server.session_count)


@pytest.mark.parametrize("name", [b"alice", b"eve"])
def test_the_answer_needs_no_room(server: Running, users: Gated, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    """The epoll set is full once the login has been asked about."""

    def full(fd: int, events: int, callback: Callable[[int], None]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with server.connect() as client:
        client.sendall(GREETING + login(name, b"a"))
        server.until(lambda: users.begun)
        with monkeypatch.context() as patch:
            patch.setattr(server._reactor, "watch", full)
            users.gate.set()
            assert receive(client, 3) == b"\x05\x02\x01"
            assert (receive(client, 1) == b"\x00") is (name == b"alice")
    server.until(lambda: not server.server.session_count)


def test_no_memory_for_a_hash(server: Running, users: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(name: bytes, password: bytes) -> bool:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(users, "verify", verify)
    with server.connect() as client:
        client.sendall(GREETING + login(b"alice", b"a"))
        assert receive_all(client)[:3] == b"\x05\x02\x01"
    assert any("a login can't be looked at" in line for line in server.lines)


OUT_OF_DESCRIPTORS = """if True:
    import os, resource
    from pysocksify.address import Address
    from pysocksify.reactor import Reactor
    from pysocksify.report import Report
    from pysocksify.server import Server, ServerSettings
    from pysocksify.server.handshake import prepare

    reactor = Reactor()
    prepare(reactor)
    server = Server(reactor, ServerSettings(), Report(lambda line: print(line, flush=True)))
    print(server.listen(Address("127.0.0.1", 0)).port, flush=True)
    limit = len(os.listdir("/proc/self/fd")) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    reactor.run()
"""


def test_out_of_descriptors(target: socket.socket) -> None:
    """Whom it has let in it answers, whatever they ask for, and it is there when there's room again."""
    number = target.getsockname()[1]
    with (
        subprocess.Popen([sys.executable, "-c", OUT_OF_DESCRIPTORS], stdout=subprocess.PIPE) as process,
        ExitStack() as idle,
    ):
        assert process.stdout is not None
        try:
            there = ("127.0.0.1", int(process.stdout.readline()))
            asking = [idle.enter_context(socket.create_connection(there, timeout=LIMIT)) for _ in range(2)]
            for client in asking:
                client.sendall(b"\x05\x01\x00")
                assert receive(client, 2) == b"\x05\x00"
            for _ in range(30):
                idle.enter_context(socket.create_connection(there, timeout=LIMIT))
            assert b"no room for more clients" in process.stdout.readline()
            for client, name in zip(asking, (b"localhost", "bücher.invalid".encode()), strict=True):
                client.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + struct.pack("!H", number))
                reply = receive_all(client)
                assert reply[0] == 5
                assert reply[1] in (1, 4)
            idle.close()
            with socket.create_connection(there, timeout=LIMIT) as client:
                client.sendall(socks5(number, b"\x03\x09localhost"))
                assert receive(client, 4) == b"\x05\x00\x05\x00"
        finally:
            process.kill()
