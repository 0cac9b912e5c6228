"""The client of RFC 1413, in front of scripted identds on loopback that answer with bytes written by hand."""

import select
import socket
import threading
from collections.abc import Callable

import pytest

from pysocksify.address import Address
from pysocksify.reactor import Reactor
from pysocksify.server.identd import LINE_LIMIT, Ident, parse
from tests.server.running import need_ipv6

LIMIT = 20.0  # s for anything that has to happen
CLIENT, SERVER = Address("127.0.0.1", 6193), Address("127.0.0.1", 1080)
HIDDEN, UNREACHABLE = "", None

REPLIES = [
    (b"6193, 1080 : USERID : UNIX : stjohns\r\n", "stjohns"),
    (b"6193,1080:USERID:UNIX:stjohns\r\n", "stjohns"),
    (b"  6193\t, 1080 :\tUSERID : UNIX ,US-ASCII :\t stjohns \r\n", "stjohns"),
    (b"6193, 1080 : userid : OTHER : MarcSchwartz : Smith\n", "MarcSchwartz : Smith"),
    (b"6193, 1080 : USERID : UNIX, UTF-8 : j\xc3\xbcrgen\r\n", "jürgen"),
    (b"6193, 1080 : USERID : UNIX : \xff\r\n", "\udcff"),
    (b"6193, 1080 : USERID : UNIX : stjohns", "stjohns"),
    (b"6193, 1080 : USERID : UNIX : stjohns\r\nmore\r\n", "stjohns"),
    (b"6193, 1080 : USERID : UNIX : " + b"a" * 900 + b"\r\n", "a" * 900),
    (b"6193, 1080 : ERROR : NO-USER\r\n", HIDDEN),
    (b"6193, 1080:error:HIDDEN-USER\r\n", HIDDEN),
    (b"0, 0 : ERROR : INVALID-PORT\r\n", HIDDEN),
    (b"6193, 1080 : ERROR : X-PRIVATE : no\r\n", HIDDEN),
    (b"1080, 6193 : USERID : UNIX : stjohns\r\n", UNREACHABLE),
    (b"6193, 1081 : USERID : UNIX : stjohns\r\n", UNREACHABLE),
    (b"6193 : USERID : UNIX : stjohns\r\n", UNREACHABLE),
    (b"6193, 1080 : USERID : stjohns\r\n", UNREACHABLE),
    (b"6193, 1080 : USERID : UNIX : \r\n", UNREACHABLE),
    (b"6193, 1080 : USERID : UNIX : a\0b\r\n", UNREACHABLE),
    (b"6193, 1080 : ERROR\r\n", UNREACHABLE),
    (b"6193, 1080 : MAYBE : UNIX : stjohns\r\n", UNREACHABLE),
    (b"HTTP/1.1 400 Bad Request\r\n", UNREACHABLE),
    (b"\r\n", UNREACHABLE),
    (b"", UNREACHABLE),
    (b"6193, 1080 : USERID : UNIX : " + b"a" * LINE_LIMIT + b"\r\n", UNREACHABLE),
    (b"a" * 100_000, UNREACHABLE),
]


class Identd:
    """Takes one question on a loopback port and answers as `script` does; `asked` is what came."""

    def __init__(self, script: Callable[[socket.socket], None], host: str = "127.0.0.1") -> None:
        self.asked = b""
        self._script = script
        self._listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1
        )
        self._listener.settimeout(LIMIT)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener:
            sock, self.peer = self._listener.accept()
        with sock:
            sock.settimeout(LIMIT)
            while not self.asked.endswith(b"\r\n"):
                self.asked += sock.recv(100)
            try:
                self._script(sock)
            except ConnectionError:  # the other side has heard enough
                return

    def stop(self) -> None:
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()


def answer_of(port: int, seconds: float = LIMIT, client: Address = CLIENT, server: Address = SERVER) -> str | None:
    """What Ident says."""
    reactor = Reactor()
    answers: list[str | None] = []

    def done(answer: str | None) -> None:
        answers.append(answer)
        reactor.stop()

    Ident(reactor, client, server, seconds, done, port=port)
    assert not answers
    reactor.run()
    reactor.close()
    assert len(answers) == 1
    return answers[0]


@pytest.mark.parametrize(("reply", "answer"), REPLIES)
def test_reply(reply: bytes, answer: str | None) -> None:
    identd = Identd(lambda sock: sock.sendall(reply))
    assert answer_of(identd.port) == answer
    identd.stop()
    assert identd.asked == b"6193, 1080\r\n"


@pytest.mark.parametrize(("reply", "answer"), [case for case in REPLIES if len(case[0]) < 100])
def test_reply_byte_by_byte(reply: bytes, answer: str | None) -> None:
    def send(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for value in reply:
            sock.sendall(bytes((value,)))

    identd = Identd(send)
    assert answer_of(identd.port) == answer
    identd.stop()


def test_asks_from_the_address_that_the_client_is_connected_to() -> None:
    identd = Identd(lambda sock: sock.sendall(b"6193, 1080 : USERID : UNIX : stjohns\r\n"), "127.0.0.2")
    client, server = Address("127.0.0.2", 6193), Address("127.0.0.3", 1080)
    assert answer_of(identd.port, client=client, server=server) == "stjohns"
    identd.stop()
    assert identd.peer[0] == "127.0.0.3"


def test_ipv6() -> None:
    need_ipv6()
    identd = Identd(lambda sock: sock.sendall(b"6193, 1080 : USERID : UNIX : stjohns\r\n"), "::1")
    assert answer_of(identd.port, client=Address("::1", 6193), server=Address("::1", 1080)) == "stjohns"
    identd.stop()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert answer_of(port) is UNREACHABLE


def test_an_address_that_isnt_ours_any_more() -> None:
    assert answer_of(1, server=Address("192.0.2.1", 1080)) is UNREACHABLE


@pytest.mark.parametrize("said", [b"", b"6193, 1080 : USERID : UNI"])
def test_time_limit(said: bytes) -> None:
    over = threading.Event()

    def dawdle(sock: socket.socket) -> None:
        sock.sendall(said)
        over.wait(LIMIT)

    identd = Identd(dawdle)
    assert answer_of(identd.port, seconds=0.2) is UNREACHABLE
    over.set()
    identd.stop()


def test_cancel() -> None:
    reactor = Reactor()
    answers: list[str | None] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        ident = Ident(reactor, CLIENT, SERVER, LIMIT, answers.append, port=listener.getsockname()[1])

        def until_readable(sock: socket.socket) -> None:
            while not select.select([sock], [], [], 0)[0]:
                reactor.call_at(reactor.now() + 0.01, lambda: None)
                reactor.run_once()

        until_readable(listener)
        sock, _ = listener.accept()
        with sock:
            until_readable(sock)
            sock.settimeout(LIMIT)
            assert sock.recv(100) == b"6193, 1080\r\n"
            ident.cancel()
            ident.cancel()
            assert sock.recv(1) == b""
    reactor.close()
    assert answers == []


def test_parse_says_why() -> None:
    with pytest.raises(ValueError, match="another connection"):
        parse(b"1, 2 : USERID : UNIX : a\r\n", 6193, 1080)
