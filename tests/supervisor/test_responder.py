"""The responder, live: programs with resolvers of their own ask it in the enclosure, and by TCP on loopback."""

import errno
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pysocksify.address import Address
from pysocksify.reactor import READ, Reactor
from pysocksify.route.fakeip import FakeAddresses
from pysocksify.route.rules import Pattern, Rule, Rules
from pysocksify.supervisor.enclosure import Enclosure, EnclosureUnavailable, Refusal
from pysocksify.supervisor.names import Names
from pysocksify.supervisor.responder import Responder
from pysocksify.supervisor.search import Search
from tests.lab.wrapped import missing, need

PATIENCE = 10
RULES = Rules((Rule(match=(Pattern.parse("*.direct.example"),), to="direct"),))
FIRST = "198.18.1.1"  # of the first name asked for

MUSL_PROGRAM = r"""
#include <netdb.h>
#include <stdio.h>
int main(int count, char **words) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(words[1], "80", &hints, &found);
    if (error) return puts(gai_strerror(error)), 1;
    for (; found; found = found->ai_next) {
        char host[64];
        getnameinfo(found->ai_addr, found->ai_addrlen, host, sizeof host, 0, 0, NI_NUMERICHOST);
        puts(host);
    }
}
"""


def a_query(name: str, number: int = 1, kind: int = 1) -> bytes:
    wire = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + wire + b"\0" + struct.pack(">HH", kind, 1)


class Place:
    """A responder at work, with what it needs."""

    def __init__(self, mode: str = "fake", resolve: Callable[[str], Sequence[str]] | None = None) -> None:
        self.reactor = Reactor()
        try:
            self.enclosure = Enclosure.open(ipv6=True)
        except EnclosureUnavailable as error:
            missing(str(error))
            raise
        known = resolve or (lambda name: ["192.0.2.7"])
        self.names = Names(FakeAddresses(), RULES, Search(lambda: ""), ipv6=True, resolve=known)
        self.refused: list[Refusal] = []
        self.responder = Responder(self.reactor, self.names, self.enclosure, mode, refused=self.refused.append)

    def close(self) -> None:
        self.responder.close()
        self.enclosure.close()
        self.reactor.close()

    def until(self, condition: Callable[[], bool]) -> None:
        late: list[int] = []
        guard = self.reactor.call_at(self.reactor.now() + PATIENCE, lambda: late.append(1))
        while not condition():
            assert not late, "nothing happened in time"
            self.reactor.run_once()
        guard.cancel()

    def while_running(self, client: Callable[[], Any]) -> Any:
        """What `client` returns, run in a thread beside the loop."""
        outcome: list[tuple[Any, BaseException | None]] = []
        self.reactor.in_thread(client, lambda value, error: outcome.append((value, error)))
        self.until(lambda: bool(outcome))
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    def inside(self, *command: str | Path) -> str:
        """What a program of the machine's prints, run in the enclosure's namespaces."""
        words = ["nsenter", "-t", str(self.enclosure.pid), "-U", "-n", "--preserve-credentials", *map(str, command)]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        watch = os.pidfd_open(child.pid)
        ended: list[int] = []

        def readable(events: int) -> None:
            self.reactor.unwatch(watch)
            ended.append(events)

        self.reactor.watch(watch, READ, readable)
        try:
            self.until(lambda: bool(ended))
        finally:
            child.kill()
            os.close(watch)
        output, _ = child.communicate(timeout=PATIENCE)
        return output

    def asker(self, family: int) -> socket.socket:
        new = socket.socket(fileno=self.enclosure.socket(family, socket.SOCK_DGRAM, 0))
        new.settimeout(PATIENCE)
        return new

    def stream(self, family: int = socket.AF_INET) -> socket.socket:
        address = self.responder.tcp_address(family)
        assert address is not None
        return socket.create_connection(address, timeout=PATIENCE)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


@pytest.mark.parametrize(("family", "server"), [(socket.AF_INET, "10.255.255.53"), (socket.AF_INET6, "2001:db8::53")])
def test_datagrams(place: Place, family: int, server: str) -> None:
    with place.asker(family) as asker:

        def ask() -> tuple[bytes, Any]:
            asker.sendto(a_query("www.example", 7), (server, 53))
            return asker.recvfrom(512)

        answer, source = place.while_running(ask)
    assert answer[:2] == b"\0\x07"
    assert answer.endswith(socket.inet_aton(FIRST))
    assert source[:2] == (server, 53)


def test_junk_is_passed_over(place: Place) -> None:
    with place.asker(socket.AF_INET) as asker:

        def ask() -> bytes:
            for junk in (b"", b"x", bytes(11), b"\0\0\x80" + bytes(20)):
                asker.sendto(junk, ("192.0.2.53", 53))
            asker.sendto(a_query("www.example"), ("192.0.2.53", 53))
            return asker.recv(512)

        assert place.while_running(ask).endswith(socket.inet_aton(FIRST))


def test_a_hundred_at_once(place: Place) -> None:
    with place.asker(socket.AF_INET) as asker:
        for number in range(100):
            asker.sendto(a_query(f"n{number}.example", number), ("192.0.2.53", 53))
        answers = place.while_running(lambda: [asker.recv(512) for _ in range(100)])
    for answer in answers:
        (number,) = struct.unpack_from(">H", answer)
        meant = place.names.destination(Address(socket.inet_ntoa(answer[-4:]), 80))
        assert meant.host == f"n{number}.example"


def test_dig(place: Place) -> None:
    need("dig")
    assert place.inside("dig", "+short", "+tries=1", "@10.255.255.53", "WWW.example").split() == [FIRST]
    assert place.inside("dig", "+short", "+tries=1", "@2001:db8::53", "www.example", "AAAA").split() == [
        "fd73:6f63:6b73::c612:101"
    ]
    assert place.inside("dig", "+short", "+tries=1", "@192.0.2.53", "-x", FIRST).split() == ["www.example."]
    assert "status: NXDOMAIN" in place.inside("dig", "+tries=1", "@192.0.2.53", "-x", "192.0.2.1")
    assert "status: BADVERS" in place.inside("dig", "+tries=1", "+edns=9", "+noednsneg", "@192.0.2.53", "www.example")


def test_glibc_puts_ipv4_first(place: Place) -> None:
    program = "import socket\nfor a in socket.getaddrinfo('www.example', 80, 0, socket.SOCK_STREAM): print(a[4][0])"
    assert place.inside(sys.executable, "-c", program).split() == [FIRST, "fd73:6f63:6b73::c612:101"]


def test_musl_puts_ipv4_first(place: Place, tmp_path: Path) -> None:
    need("musl-gcc")
    source, program = tmp_path / "resolve.c", tmp_path / "resolve"
    source.write_text(MUSL_PROGRAM)
    subprocess.run(["musl-gcc", "-static", "-o", program, source], check=True, timeout=60)
    assert place.inside(program, "www.example").split() == [FIRST, "fd73:6f63:6b73::c612:101"]


def receive(connection: socket.socket) -> bytes:
    """One message of a TCP connection; b"" at its end."""
    head = connection.recv(2, socket.MSG_WAITALL)
    return connection.recv(struct.unpack(">H", head)[0], socket.MSG_WAITALL) if head else b""


def framed(message: bytes) -> bytes:
    return struct.pack(">H", len(message)) + message


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_stream(place: Place, family: int) -> None:
    def ask() -> list[bytes]:
        with place.stream(family) as connection:
            connection.sendall(framed(a_query("one.example", 1)) + framed(a_query("two.example", 2)))
            answers = [receive(connection), receive(connection)]
            for byte in framed(a_query("three.example", 3)):
                connection.sendall(bytes([byte]))
            answers.append(receive(connection))
            connection.sendall(framed(a_query("four.example", 4)))
            connection.shutdown(socket.SHUT_WR)
            return [*answers, receive(connection), receive(connection)]

    *answers, end = place.while_running(ask)
    assert [answer[:2] for answer in answers] == [b"\0\1", b"\0\2", b"\0\3", b"\0\4"]
    assert end == b""


@pytest.mark.parametrize("junk", [framed(b""), framed(b"GET / HTTP/1.1"), framed(b"\0\0\x80" + bytes(20))])
def test_a_stream_that_is_not_dns_is_closed(place: Place, junk: bytes) -> None:
    def ask() -> bytes:
        with place.stream() as connection:
            connection.sendall(junk)
            return receive(connection)

    if junk[2:3] == b"G":  # "GET / HTTP/1.1" read as a header: an opcode that isn't served
        assert place.while_running(ask)[3] & 15 == 4
    else:
        assert place.while_running(ask) == b""


def test_a_reader_that_is_slow(place: Place) -> None:
    """No answer is read before the responder has stopped reading; then all questions are answered."""
    count = 5_000
    message = a_query(".".join(["a" * 60] * 4))
    expected = count * (2 + len(message) + 16)
    address = place.responder.tcp_address(socket.AF_INET)
    assert address is not None

    def ask() -> tuple[int, int]:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            connection.settimeout(PATIENCE)
            connection.connect(address)
            questions = memoryview(framed(message) * count)
            while questions and select.select([], [connection], [], 1)[1]:
                questions = questions[connection.send(questions, socket.MSG_DONTWAIT) :]
            unsent, received = len(questions), 0
            while received < expected:
                readable, writable, _ = select.select([connection], [connection] if questions else [], [], PATIENCE)
                assert readable or writable
                if writable:
                    questions = questions[connection.send(questions, socket.MSG_DONTWAIT) :]
                if readable:
                    received += len(connection.recv(1 << 20))
            return unsent, received

    unsent, received = place.while_running(ask)
    assert unsent > 0, "it read on and on"
    assert received == expected


def test_look_ups_are_answered_when_they_are_done() -> None:
    release = threading.Event()

    def resolve(name: str) -> list[str]:
        assert name == "slow.direct.example"
        assert release.wait(PATIENCE)
        return ["192.0.2.7"]

    place = Place(resolve=resolve)

    def ask() -> list[bytes]:
        with place.stream() as connection, place.asker(socket.AF_INET) as asker:
            connection.sendall(framed(a_query("slow.direct.example", 1)) + framed(a_query("www.example", 2)))
            connection.shutdown(socket.SHUT_WR)
            asker.sendto(a_query("slow.direct.example", 3), ("192.0.2.53", 53))
            answers = [receive(connection)]
            release.set()
            return [*answers, receive(connection), receive(connection), asker.recv(512)]

    try:
        fast, slow, end, datagram = place.while_running(ask)
    finally:
        place.close()
    assert (fast[:2], slow[:2], end, datagram[:2]) == (b"\0\2", b"\0\1", b"", b"\0\3")
    assert slow.endswith(socket.inet_aton("192.0.2.7"))
    assert place.names.destination(Address("192.0.2.7", 80)) == Address("slow.direct.example", 80)


def test_a_look_up_for_a_connection_that_is_gone() -> None:
    release, begun = threading.Event(), threading.Event()

    def resolve(name: str) -> list[str]:
        begun.set()
        assert release.wait(PATIENCE)
        return ["192.0.2.7"]

    place = Place(resolve=resolve)
    try:
        connection = place.stream()
        connection.sendall(framed(a_query("slow.direct.example")))
        assert place.while_running(lambda: begun.wait(PATIENCE))  # which wakes the loop up
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        connection.close()  # with RST
        release.set()
        place.until(lambda: place.names.destination(Address("192.0.2.7", 80)).is_name)
    finally:
        place.close()


def test_refusals_are_told(place: Place) -> None:
    with place.asker(socket.AF_INET) as asker:
        for number in range(3):
            asker.sendto(b"x", (f"192.0.2.{number}", 443))
        place.until(lambda: len(place.refused) == 3)
        assert {each.host for each in place.refused} == {"192.0.2.0", "192.0.2.1", "192.0.2.2"}
        asker.sendto(b"x", ("192.0.2.9", 443))
        place.until(lambda: len(place.refused) == 4)


def test_close_leaves_nothing() -> None:
    before = set(os.listdir("/proc/self/fd"))
    place = Place()
    connection = place.stream()
    connection.sendall(framed(a_query("www.example")))
    place.until(lambda: readable(connection))
    place.close()
    assert receive(connection)
    assert receive(connection) == b""
    connection.close()
    assert set(os.listdir("/proc/self/fd")) <= before


def readable(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs port 53 of a loopback address")
def test_system_mode_asks_the_server_that_was_meant() -> None:
    place = Place("system")
    assert place.responder.tcp_address(socket.AF_INET) is None
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent,
        place.asker(socket.AF_INET) as asker,
    ):
        server.settimeout(PATIENCE)
        server.bind(("127.0.77.53", 53))
        silent.bind(("127.0.77.54", 53))

        def ask() -> tuple[bytes, bytes, bytes, Any, bytes]:
            asker.sendto(a_query("silent.example"), ("127.0.77.54", 53))
            asker.sendto(a_query("www.example", 9), ("127.0.77.53", 53))
            query, forwarder = server.recvfrom(512)
            server.sendto(b"\xff\xffnot the answer", forwarder)
            server.sendto(query[:2] + b"the answer", forwarder)
            answer, source = asker.recvfrom(512)
            asker.sendto(a_query("www.example", 10), ("127.0.77.55", 53))
            return query, silent.recv(512), answer, source, asker.recv(512)

        try:
            query, unanswered, answer, source, failed = place.while_running(ask)
        finally:
            place.close()
    assert query == a_query("www.example", 9)
    assert unanswered == a_query("silent.example")
    assert (answer, source) == (b"\0\x09the answer", ("127.0.77.53", 53))
    assert (failed[:2], failed[3] & 15) == (b"\0\x0a", 2)


def test_system_mode_without_a_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*arguments: int) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    place = Place("system")
    answers: list[bytes] = []
    try:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", none_left)
            place.responder.query(a_query("www.example", 9), "127.0.77.53", socket.AF_INET, answers.append)
    finally:
        place.close()
    assert [(answer[:2], answer[3] & 15) for answer in answers] == [(b"\0\x09", 2)]
