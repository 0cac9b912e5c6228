"""A short run of scripts/fuzz: the same cases each time, and others, whose numbers a failure prints; what it found."""

import random
import socket

import pytest

from pysocksify.address import Address
from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.server import Server, ServerSettings, Users
from scripts import fuzz_conversation, fuzz_server

CONVERSATIONS, SERVED = 4000, 600
STARTS = pytest.mark.parametrize("start", [0, random.SystemRandom().randrange(2**40)], ids=["the same", "others"])


@STARTS
def test_the_conversation(start: int) -> None:
    kinds = fuzz_conversation.run(range(start, start + CONVERSATIONS))
    assert kinds.total() == CONVERSATIONS
    assert {"socks4", "socks4a", "socks5", "http", "refused", "nonsense", "cut"} <= set(kinds)


@STARTS
def test_a_running_server(start: int) -> None:
    kinds = fuzz_server.run(range(start, start + SERVED))
    assert kinds.total() == SERVED


def test_a_user_who_leaves_before_the_request() -> None:
    """Was taken off the count of this user's connections, on which only a request puts it."""
    reactor = Reactor()
    server = Server(reactor, ServerSettings(users=Users.plain({b"bob": b"b"})), Report(lambda line: None))
    address = server.listen(Address("127.0.0.1", 0))
    with socket.create_connection((address.host, address.port)) as client:
        client.sendall(b"\x05\x01\x02\x01\x03bob\x01b")
        client.shutdown(socket.SHUT_WR)
        reactor.call_at(reactor.now() + 20, reactor.stop)
        reactor.run_once()
        while server.session_count:
            reactor.run_once()
        client.settimeout(20)
        assert client.recv(4) == b"\x05\x02\x01\x00"
    server.close()
    reactor.close()
