"""What counts as one source of clients, and that one can't take from others what they need."""

import socket
import threading
from contextlib import ExitStack
from typing import Any

import pytest

from pysocksify.address import Address
from pysocksify.server import happy_eyeballs
from pysocksify.server.shared import Client
from tests.server.running import LIMIT, receive_all, running, socks5_name

MANY = 40  # more than there are threads for blocking calls


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::1", "20010db800000001::/64"),
        ("2001:db8:0:1:ffff:ffff:ffff:ffff", "20010db800000001::/64"),
        ("2001:db8:0:2::1", "20010db800000002::/64"),
    ],
)
def test_who_counts_as_one(host: str, source: str) -> None:
    with socket.socket() as sock:
        assert Client("", Address(host, 1), sock).source == source


def test_slow_names_of_one_dont_keep_another_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def look_up(name: bytes, port: int) -> list[Any]:
        assert name == b"quick.test" or over.wait(LIMIT)
        return []

    monkeypatch.setattr(happy_eyeballs, "look_up", look_up)
    with running() as server, ExitStack() as clients:
        for _ in range(MANY):
            clients.enter_context(server.connect()).sendall(socks5_name(80, b"slow.test"))
        server.until(lambda: server.server.session_count == MANY)
        address = server.address.host, server.address.port
        with socket.create_connection(address, timeout=LIMIT, source_address=("127.0.0.2", 0)) as other:
            other.sendall(socks5_name(80, b"quick.test"))
            assert receive_all(other).startswith(b"\x05\x00\x05\x04")
            assert server.server.session_count >= MANY
        over.set()
