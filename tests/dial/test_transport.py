"""The steps of a dial on real sockets: whatever pieces a reply comes in, no byte behind it is ever taken."""

import errno
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pysocksify.address import Address
from pysocksify.dial.hops import DialSteps, Open, Take, dial
from pysocksify.dial.transport import OwnSocket, perform, resolve
from pysocksify.errors import Cause, DialError, PeerClosedError, RemoteProtocolError
from pysocksify.protocol.conversation import Exactly, Need, Send, Until
from pysocksify.reactor import READ, WRITE, InThread, Reactor, Ready, Steps
from pysocksify.route.chain import Chain, ChainState, Proxy

PATIENCE = 15.0
DESTINATION = Address("example.com", 443)
GREETING, REQUEST, YES = b"\5\1\0", b"\5\1\0\3\x0bexample.com\x01\xbb", b"\5\0\0\1\0\0\0\0\0\0"
HTTP_YES = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 example\r\nX-Long: " + b"x" * 2000 + b"\r\n\r\n"
HTTP_REQUEST_END = b"\r\n\r\n"
BANNER = b"220 ready\r\n\r\n\5\0\0"
LIMIT = 65536


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def address_of(listener: socket.socket) -> Address:
    return Address(*listener.getsockname()[:2])


def outcome(reactor: Reactor, steps: Steps[Any]) -> Any:
    """Run a task to its end: its value, or its exception raised."""
    outcomes: list[tuple[Any, BaseException | None]] = []

    def done(value: Any, error: BaseException | None) -> None:
        outcomes.append((value, error))

    def too_long() -> None:
        raise AssertionError("the task doesn't end")

    timer = reactor.call_at(reactor.now() + PATIENCE, too_long)
    reactor.spawn(steps, done)
    while not outcomes:
        reactor.run_once()
    timer.cancel()
    ((value, error),) = outcomes
    if error is not None:
        raise error
    return value


class Pair:
    """A transport on one end of a socket pair; the test writes on the other."""

    def __init__(self) -> None:
        self.sock, self.peer = socket.socketpair()
        self.sock.setblocking(False)
        self.readable = Ready(self.sock.fileno(), READ, keep=True)
        self.awaiting = True

    def open(self, address: Address, deadline: float) -> Steps[None]:
        raise AssertionError("it is open")

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def takes(needs: Sequence[Need], taken: list[bytes], timeout: float = 5.0) -> DialSteps:
    for need in needs:
        taken.append((yield Take(need, timeout)))
    return ()


def take_in_pieces(pair: Pair, needs: Sequence[Need], pieces: Sequence[bytes]) -> list[bytes]:
    """What the needs are served when the data comes in these pieces, each as soon as all before it was looked at."""
    reactor, taken = Reactor(), list[bytes]()
    ended: list[BaseException | None] = []
    try:
        steps = perform(takes(needs, taken), pair, reactor.now)
        reactor.spawn(steps, lambda value, error: ended.append(error))
        for piece in pieces:
            pair.peer.sendall(piece)
            reactor.call_soon(lambda: None)
            if not ended:
                timer = reactor.call_at(reactor.now() + PATIENCE, lambda: None)
                reactor.run_once()
                timer.cancel()
        assert ended == [None]
    finally:
        reactor.close()
    return taken


def left_over(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 20, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


MESSAGE = b"\5\0" + b"HTTP/1.1 200 OK\r\nA: \rb\r\n\r\n" + b"\0\1"
NEEDS: list[Need] = [Exactly(2), Until(b"\r\n", 100), Until(b"\r\n\r\n", 100), Exactly(2)]
SERVED = [b"\5\0", b"HTTP/1.1 200 OK\r\n", b"A: \rb\r\n\r\n", b"\0\1"]


class TestNeeds:
    def test_all_at_once_with_a_banner(self, pair: Pair) -> None:
        assert take_in_pieces(pair, NEEDS, [MESSAGE + BANNER]) == SERVED
        assert left_over(pair.sock) == BANNER

    def test_byte_by_byte(self, pair: Pair) -> None:
        assert take_in_pieces(pair, NEEDS, [MESSAGE[i : i + 1] for i in range(len(MESSAGE))]) == SERVED
        assert left_over(pair.sock) == b""

    @pytest.mark.parametrize("at", range(1, len(MESSAGE)))
    def test_cut_anywhere(self, pair: Pair, at: int) -> None:
        assert take_in_pieces(pair, NEEDS, [MESSAGE[:at], MESSAGE[at:] + BANNER]) == SERVED
        assert left_over(pair.sock) == BANNER

    @given(places=st.lists(st.integers(1, len(MESSAGE) - 1), unique=True))
    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_cut_in_many_places(self, places: list[int]) -> None:
        pair = Pair()
        try:
            ends = [*sorted(places), len(MESSAGE)]
            pieces = [MESSAGE[a:b] for a, b in zip([0, *ends], ends, strict=False)]
            pieces[-1] += BANNER
            assert take_in_pieces(pair, NEEDS, pieces) == SERVED
            assert left_over(pair.sock) == BANNER
        finally:
            pair.close()

    @pytest.mark.parametrize("at", [1, 99, 100])
    def test_a_limit_is_kept_to(self, reactor: Reactor, pair: Pair, at: int) -> None:
        pair.peer.sendall(b"x" * 200)
        with pytest.raises(RemoteProtocolError, match=r"the head of more than \d+ bytes"):
            outcome(reactor, perform(takes([Until(b"\n", at, "the head")], []), pair, reactor.now))
        assert left_over(pair.sock) == b"x" * (200 - at)

    def test_a_delimiter_that_ends_at_the_limit(self, reactor: Reactor, pair: Pair) -> None:
        taken: list[bytes] = []
        pair.peer.sendall(b"x" * 9 + b"\n" + BANNER)
        outcome(reactor, perform(takes([Until(b"\n", 10)], taken), pair, reactor.now))
        assert taken == [b"x" * 9 + b"\n"]
        assert left_over(pair.sock) == BANNER

    def test_a_limit_that_is_used_up(self, reactor: Reactor, pair: Pair) -> None:
        """The bytes are there, none of them is wanted any more: that's too long, not a closed connection."""
        pair.peer.sendall(b"\n")
        with pytest.raises(RemoteProtocolError):
            outcome(reactor, perform(takes([Until(b"\n", 0)], []), pair, reactor.now))

    @pytest.mark.parametrize("need", [Exactly(4), Until(b"\n", 100)])
    @pytest.mark.parametrize("before", [b"", b"ab"])
    def test_end_of_file_keeps_what_came_before(self, reactor: Reactor, pair: Pair, need: Need, before: bytes) -> None:
        pair.peer.sendall(before)
        pair.peer.shutdown(socket.SHUT_WR)
        with pytest.raises(PeerClosedError) as caught:
            outcome(reactor, perform(takes([need], []), pair, reactor.now))
        assert caught.value.partial == before

    @pytest.mark.parametrize("need", [Exactly(4), Until(b"\n", 100)])
    def test_silence(self, reactor: Reactor, pair: Pair, need: Need) -> None:
        pair.peer.sendall(b"ab")
        with pytest.raises(TimeoutError):
            outcome(reactor, perform(takes([need], [], timeout=0.05), pair, reactor.now))

    def test_a_reply_that_drips_isnt_waited_for_any_longer(self, reactor: Reactor, pair: Pair) -> None:
        """The time limit is for the whole need, not for each byte of it."""

        def drip() -> None:
            pair.peer.send(b"x")
            reactor.call_at(reactor.now() + 0.02, drip)

        drip()
        begin = reactor.now()
        with pytest.raises(TimeoutError):
            outcome(reactor, perform(takes([Exactly(10_000)], [], timeout=0.2), pair, reactor.now))
        assert reactor.now() - begin < 2


class TestWriting:
    def test_a_peer_that_doesnt_read_yet(self, reactor: Reactor, pair: Pair) -> None:
        data = b"0123456789" * 200_000

        def steps() -> DialSteps:
            yield Send(data)
            return ()

        got = bytearray()
        reactor.watch(pair.peer.fileno(), READ, lambda events: got.extend(pair.peer.recv(100_000)))
        outcome(reactor, perform(steps(), pair, reactor.now))
        while len(got) < len(data):
            reactor.run_once()
        reactor.unwatch(pair.peer.fileno())
        assert bytes(got) == data

    def test_a_peer_that_is_gone_is_an_error_and_no_signal(self, reactor: Reactor, pair: Pair) -> None:
        def steps() -> DialSteps:
            with pytest.raises(BrokenPipeError):
                yield Send(b"x")
            return ()

        pair.peer.close()
        outcome(reactor, perform(steps(), pair, reactor.now))


Script = Callable[[socket.socket], Iterator[bytes]]


def proxy_server(listener: socket.socket, lines: Sequence[bytes | int]) -> Steps[socket.socket]:
    """A hop with a script: bytes are written at once, a number is that many bytes to be read first."""
    yield Ready(listener.fileno(), READ)
    sock, _ = listener.accept()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for line in lines:
        if isinstance(line, bytes):
            sock.send(line)
        else:
            while line:
                yield Ready(sock.fileno(), READ)
                line -= len(sock.recv(line))
    return sock


def through(hop: Proxy, connect_timeout: float = 5.0, reply_timeout: float = 5.0) -> ChainState:
    chain = Chain(
        name="c", mode="strict", length=0, hops=(hop,), connect_timeout=connect_timeout, reply_timeout=reply_timeout
    )
    return ChainState(chain, random.Random(1))


def connect_through(
    reactor: Reactor, listener: socket.socket, scheme: str, lines: Sequence[bytes | int]
) -> tuple[socket.socket, socket.socket]:
    """A dial through a scripted hop: our socket and the hop's."""
    hops: list[socket.socket] = []
    reactor.spawn(proxy_server(listener, lines), lambda sock, error: hops.append(sock) if sock else None)
    transport = OwnSocket()
    state = through(Proxy(scheme=scheme, address=address_of(listener)))
    try:
        outcome(reactor, perform(dial(state, DESTINATION, reactor.now), transport, reactor.now))
        while not hops:
            reactor.run_once()
    except BaseException:
        transport.close()
        for sock in hops:
            sock.close()
        raise
    return transport.sock, hops[0]


HTTP_REQUEST = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"
DIALOGUES: dict[str, tuple[str, list[bytes | int]]] = {
    "socks5": ("socks5", [len(GREETING), b"\5\0", len(REQUEST), YES + BANNER]),
    "socks5 in bytes": (
        "socks5",
        [len(GREETING), b"\5", b"\0", len(REQUEST), *(YES[i : i + 1] for i in range(10)), BANNER],
    ),
    "http": ("http", [len(HTTP_REQUEST), HTTP_YES + BANNER]),
    "http with an interim reply": (
        "http",
        [len(HTTP_REQUEST), b"HTTP/1.1 100 Continue\r\n\r\n" + HTTP_YES + BANNER],
    ),
    "http without carriage returns": ("http", [len(HTTP_REQUEST), b"HTTP/1.0 200 OK\nA: b\n\n" + BANNER]),
    "http, cut in its end": (
        "http",
        [len(HTTP_REQUEST), b"HTTP/1.1 200 OK\r", b"\nA: b\r\n\r", b"\n" + BANNER],
    ),
    "socks4a": ("socks4a", [21, b"\0\x5a" + bytes(6) + BANNER]),
}


class TestDials:
    @pytest.mark.parametrize("name", DIALOGUES)
    def test_a_banner_behind_the_reply_is_the_programs(
        self, reactor: Reactor, listener: socket.socket, name: str
    ) -> None:
        sock, hop = connect_through(reactor, listener, *DIALOGUES[name])
        with sock, hop:
            sock.settimeout(PATIENCE)
            got = b""
            while len(got) < len(BANNER):
                got += sock.recv(100)
            assert got == BANNER
            assert not os.get_inheritable(sock.fileno())

    @pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1])
    def test_an_http_head_of_about_the_limit(self, reactor: Reactor, listener: socket.socket, size: int) -> None:
        head = b"HTTP/1.1 200 OK\r\nX: "
        head += b"x" * (size - len(head) - 4) + b"\r\n\r\n"
        assert len(head) == size
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LIMIT)
        dialogue: list[bytes | int] = [len(HTTP_REQUEST), head]
        if size <= LIMIT:
            sock, hop = connect_through(reactor, listener, "http", dialogue)
            sock.close()
            hop.close()
            return
        with pytest.raises(DialError) as caught:
            connect_through(reactor, listener, "http", dialogue)
        assert caught.value.cause is Cause.NONSENSE

    def test_http_fields_that_use_up_the_limit_to_the_byte(self, reactor: Reactor, listener: socket.socket) -> None:
        """The line that ends at the limit isn't the last one: too long, whatever follows."""
        head = b"HTTP/1.1 200 OK\r\nX: "
        head += b"x" * (LIMIT - len(head) - 2) + b"\r\n"
        assert len(head) == LIMIT
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LIMIT)
        with pytest.raises(DialError) as caught:
            connect_through(reactor, listener, "http", [len(HTTP_REQUEST), head + b"\r\n"])
        assert caught.value.cause is Cause.NONSENSE

    def test_a_hop_that_resets(self, reactor: Reactor, listener: socket.socket) -> None:
        def reset() -> Steps[None]:
            sock = yield from proxy_server(listener, [len(GREETING)])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

        reactor.spawn(reset())
        transport = OwnSocket()
        steps = dial(through(Proxy(scheme="socks5", address=address_of(listener))), DESTINATION, reactor.now)
        with pytest.raises(DialError) as caught:
            outcome(reactor, perform(steps, transport, reactor.now))
        transport.close()
        assert (caught.value.phase, caught.value.cause) == ("greeting", Cause.CLOSED)

    def test_a_hop_that_never_answers(self, reactor: Reactor, listener: socket.socket) -> None:
        transport = OwnSocket()
        state = through(Proxy(scheme="socks5", address=address_of(listener)), reply_timeout=0.05)
        with pytest.raises(DialError) as caught:
            outcome(reactor, perform(dial(state, DESTINATION, reactor.now), transport, reactor.now))
        transport.close()
        assert (caught.value.phase, caught.value.cause) == ("greeting", Cause.TIMED_OUT)

    def test_a_hop_where_nobody_listens(self, reactor: Reactor) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            transport = OwnSocket()
            state = through(Proxy(scheme="socks5", address=address_of(bound)))
            with pytest.raises(DialError) as caught:
                outcome(reactor, perform(dial(state, DESTINATION, reactor.now), transport, reactor.now))
        assert (caught.value.phase, caught.value.cause) == ("connect", Cause.REFUSED)

    def test_a_hop_that_doesnt_take_connections(self, reactor: Reactor) -> None:
        with socket.socket() as full, socket.socket() as filler:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            filler.connect(full.getsockname())
            transport = OwnSocket()
            state = through(Proxy(scheme="socks5", address=address_of(full)), connect_timeout=0.05)
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(DialError) as caught:
                outcome(reactor, perform(dial(state, DESTINATION, reactor.now), transport, reactor.now))
            assert len(os.listdir("/proc/self/fd")) == before
        assert (caught.value.phase, caught.value.cause) == ("connect", Cause.TIMED_OUT)


class Lookup:
    """Performs a transport's steps with these addresses for every name; with none, with the system's, in no thread."""

    def __init__(self, *found: tuple[socket.AddressFamily, tuple[str, int]], fails: Exception | None = None) -> None:
        self.found = list(found)
        self.fails = fails

    def __call__(self, steps: Steps[Any]) -> Steps[Any]:
        step = next(steps)
        while True:
            try:
                if isinstance(step, InThread) and self.fails is not None:
                    step = steps.throw(self.fails)
                elif isinstance(step, InThread):
                    step = steps.send(self.found or step.function())
                else:
                    step = steps.send((yield step))
            except StopIteration as stop:
                return stop.value


class TestOpening:
    def test_a_new_socket_for_each_open(self, reactor: Reactor, listener: socket.socket) -> None:
        transport = OwnSocket()

        def steps() -> DialSteps:
            yield Open(address_of(listener), 5.0)
            yield Open(address_of(listener), 5.0)
            return ()

        before = len(os.listdir("/proc/self/fd"))
        outcome(reactor, perform(steps(), transport, reactor.now))
        assert len(os.listdir("/proc/self/fd")) == before + 1
        assert transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.close()
        transport.close()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_an_address_isnt_looked_up(self) -> None:
        with pytest.raises(StopIteration) as stop:
            next(resolve(Address("192.0.2.1", 80)))
        assert stop.value.value == [(socket.AF_INET, ("192.0.2.1", 80))]

    def test_all_addresses_of_a_name_are_tried(self, reactor: Reactor, listener: socket.socket) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            nobody = (socket.AF_INET, bound.getsockname())
            look_up = Lookup(nobody, nobody, (socket.AF_INET, listener.getsockname()))
            transport = OwnSocket()
            outcome(reactor, look_up(transport.open(Address("hop.example", 1), reactor.now() + 5)))
            assert transport.sock.getpeername() == listener.getsockname()
            transport.close()

    def test_a_name_that_is_not_known(self, reactor: Reactor) -> None:
        unknown = Lookup(fails=socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
        with pytest.raises(OSError) as caught:
            outcome(reactor, unknown(OwnSocket().open(Address("nowhere.invalid", 1), reactor.now() + 5)))
        assert caught.value.errno == errno.EHOSTUNREACH
        assert "nowhere.invalid: Name or service not known" in str(caught.value)

    def test_localhost(self, reactor: Reactor, listener: socket.socket) -> None:
        transport = OwnSocket()
        address = Address("localhost", listener.getsockname()[1])
        outcome(reactor, Lookup()(transport.open(address, reactor.now() + 5)))
        assert transport.sock.getpeername() == listener.getsockname()
        transport.close()


def test_what_else_goes_wrong_goes_through(reactor: Reactor) -> None:
    """A transport that can't be used for a hop says so with an exception of its own; the dial is closed, not asked."""

    class Unfit(Exception):
        pass

    class Refusing(Pair):
        def open(self, address: Address, deadline: float) -> Steps[None]:
            yield Ready(self.sock.fileno(), WRITE)
            raise Unfit

    closed: list[bool] = []

    def steps() -> DialSteps:
        try:
            yield Open(Address("192.0.2.1", 1), 1.0)
        finally:
            closed.append(True)
        return ()

    transport = Refusing()
    with pytest.raises(Unfit):
        outcome(reactor, perform(steps(), transport, reactor.now))
    transport.close()
    assert closed == [True]
