"""The listeners: who waits in the queue, who is one too many, and what is set on a connection."""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysocksify.address import Address
from pysocksify.server import Limits, ServerSettings, core
from pysocksify.server.ports import listening
from tests.server.running import LIMIT, socks5
from tests.server.stepped import Stepped, ended

KEEPALIVE = 2  # which timer a socket has, in /proc/net/tcp ("tr": Documentation/networking/proc_net_tcp.rst)


@pytest.fixture
def server() -> Iterator[Stepped]:
    made = Stepped(ServerSettings())
    yield made
    made.close()


def test_draining_serves_who_is_in_the_queue(server: Stepped) -> None:
    """However many they are."""
    with contextlib.ExitStack() as stack, socket.create_server(("127.0.0.1", 0), backlog=200) as destination:
        clients = [stack.enter_context(server.connect()) for _ in range(150)]
        server.server.drain()
        assert server.server.session_count == 150
        for client in clients:
            client.sendall(socks5(destination.getsockname()[1]))
        for client in clients:
            said = bytearray()
            server.reactor.until(lambda client=client, said=said: ended(client, said) or len(said) == 12)  # type: ignore[misc]
            assert bytes(said[:4]) == b"\x05\x00\x05\x00"


def test_who_comes_when_too_many_are_told_so_is_reset(server: Stepped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "REFUSED_AT_ONCE", 1)
    server.server.settings = ServerSettings(limits=Limits(total=1))
    with server.connect(), server.connect(), server.connect() as third:
        server.reactor.until(lambda: server.sums.accepted == 3)
        third.settimeout(LIMIT)
        with pytest.raises(ConnectionResetError):
            third.recv(1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/tcp")
@pytest.mark.parametrize("given", [False, True], ids=["opened", "inherited"])
def test_a_client_that_lost_power_is_found_out(given: bool, server: Stepped) -> None:
    """Its connection is probed, also where the listening socket was somebody else's, and the client was there first."""
    if given:
        sock = socket.create_server(("127.0.0.1", 0))
    else:
        (sock,) = listening(Address("127.0.0.1", 0))
    with socket.create_connection(sock.getsockname()) as client:
        server.server.adopt(sock)
        server.reactor.until(lambda: server.server.session_count)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert timer_of(client.getpeername()[1], client.getsockname()[1]) == KEEPALIVE


def timer_of(local: int, remote: int) -> int:
    """Which timer runs for a connection on loopback."""
    host = "0100007F" if sys.byteorder == "little" else "7F000001"
    ends = [f"{host}:{local:04X}", f"{host}:{remote:04X}"]
    (line,) = (line for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[1:3] == ends)
    return int(line.split()[5].partition(":")[0], 16)
