"""The relay between real sockets: ends, resets, urgent data, back-pressure, pipes, and that it never spins.

Most tests drive the reactor step by step from the test's own thread: `settle` runs it until it has nothing to do. What
is level-triggered and registered without need never settles.
"""

import fcntl
import gc
import hashlib
import os
import resource
import select
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

import pysocksify.flow as flow_module
from pysocksify.flow import COPY_SIZE, PIPE_SIZE, PipePool
from pysocksify.reactor import Reactor
from pysocksify.relay import Relay, RelayOutcome

LIMIT = 20.0  # s for anything that has to happen
SIOCATMARK = 0x8905
SIOCOUTQNSD = 0x894B
RESET = struct.pack("ii", 1, 0)
Link = tuple[socket.socket, socket.socket]


class Stepped(Reactor):
    """A reactor that counts its events and, while settling, doesn't wait."""

    def __init__(self) -> None:
        super().__init__()
        self.events = 0
        self.patience: float | None = None

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        def counted(got: int) -> None:
            self.events += 1
            callback(got)

        super().watch(fd, events, counted)

    def _timeout(self) -> float:
        timeout = super()._timeout()
        if self.patience is None:
            return timeout
        return self.patience if timeout < 0 else min(timeout, self.patience)

    def settle(self, most: int = 2000) -> int:
        """Run until a round brings no event; more than `most` events are a spin."""
        self.patience = 0.0
        start = self.events
        while True:
            before = self.events
            self.run_once()
            if self.events == before and not self._soon:
                return self.events - start
            assert self.events - start < most, "the loop has something to do for ever"

    def until(self, condition: Callable[[], object]) -> None:
        """Run until the condition holds."""
        self.patience = 0.01
        end = time.monotonic() + LIMIT
        while not condition():
            self.run_once()
            assert time.monotonic() < end, "it didn't happen in time"


@pytest.fixture
def reactor() -> Iterator[Stepped]:
    reactor = Stepped()
    yield reactor
    reactor.close()


def link(family: socket.AddressFamily = socket.AF_INET) -> Link:
    """A connected TCP pair: (the test's end, the relay's end)."""
    with socket.socket(family) as listener:
        listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        listener.listen()
        near = socket.create_connection(listener.getsockname()[:2], timeout=LIMIT)
        far, _ = listener.accept()
    near.settimeout(LIMIT)
    return near, far


class Bench:
    """A relay between two links, with the test at both outer ends."""

    def __init__(self, reactor: Stepped, pool: PipePool | None = None, to_b: bytes = b"", to_a: bytes = b"") -> None:
        self.reactor = reactor
        self.pool = pool or PipePool()
        self.outcomes: list[RelayOutcome] = []
        self.drained: list[bool] = []
        self.a, inner_a = link()
        self.b, inner_b = link()
        self.relay = Relay(
            reactor,
            inner_a,
            inner_b,
            self.pool,
            self.outcomes.append,
            to_b=to_b,
            to_a=to_a,
            drained=lambda: self.drained.append(True),
        )

    def ends(self, way: str) -> Link:
        """(who sends, who receives)"""
        return (self.a, self.b) if way == "a to b" else (self.b, self.a)

    def close(self) -> None:
        """Close what is left."""
        self.relay.close()
        self.a.close()
        self.b.close()
        self.pool.close()


@pytest.fixture
def bench(reactor: Stepped) -> Iterator[Bench]:
    bench = Bench(reactor)
    yield bench
    bench.close()


@pytest.fixture
def pipeless(reactor: Stepped) -> Iterator[Bench]:
    bench = Bench(reactor, PipePool(capacity=0))
    yield bench
    bench.close()


both_ways = pytest.mark.parametrize("way", ["a to b", "b to a"])


def fill(sender: socket.socket, reactor: Stepped) -> bytes:
    """Send until neither the sender nor the relay takes more; what was sent."""
    sender.setblocking(False)
    sent = bytearray()
    piece = bytes(range(256)) * 1024
    while True:
        try:
            sent += piece[: sender.send(piece)]
        except BlockingIOError:
            if not reactor.settle(100_000):
                break
    sender.settimeout(LIMIT)
    return bytes(sent)


def read_all(receiver: socket.socket, reactor: Stepped) -> bytes:
    """What comes up to the end, or to the reset, while the reactor runs."""
    receiver.setblocking(False)
    got = bytearray()

    def ended() -> bool:
        try:
            while data := receiver.recv(1 << 20):
                got.extend(data)
        except BlockingIOError:
            return False
        return True

    reactor.until(ended)
    return bytes(got)


def at_mark(sock: socket.socket) -> bool:
    return fcntl.ioctl(sock, SIOCATMARK, b"\0\0\0\0") != b"\0\0\0\0"


def urgent_byte(sock: socket.socket) -> bytes:
    """The byte that is there; a Python socket with a timeout would wait for ordinary data first."""
    sock.setblocking(False)
    byte = sock.recv(1, socket.MSG_OOB)
    sock.settimeout(LIMIT)
    return byte


def unsent(sock: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(sock, SIOCOUTQNSD, b"\0\0\0\0"), "little")


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def read_to_reset(receiver: socket.socket, got: bytearray) -> None:
    """Read what comes before the reset into `got`; an end of file instead of a reset is a failure."""
    while True:
        try:
            data = receiver.recv(1 << 20)
        except ConnectionResetError:
            return
        assert data, "an end instead of a reset"
        got += data


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


class TestData:
    @both_ways
    def test_passes_on_what_comes(self, bench: Bench, way: str) -> None:
        sender, receiver = bench.ends(way)
        sender.sendall(b"hello")
        assert bench.reactor.settle() == 1
        assert receiver.recv(100) == b"hello"

    def test_of_ipv6_sockets(self, reactor: Stepped) -> None:
        (a, inner_a), (b, inner_b) = link(socket.AF_INET6), link()
        relay = Relay(reactor, inner_a, inner_b, PipePool(), lambda outcome: None)
        a.sendall(b"six")
        reactor.settle()
        assert b.recv(100) == b"six"
        relay.close()
        a.close()
        b.close()

    def test_of_unix_sockets(self, reactor: Stepped) -> None:
        outcomes: list[RelayOutcome] = []
        (a, inner_a), (b, inner_b) = socket.socketpair(), link()
        Relay(reactor, inner_a, inner_b, PipePool(), outcomes.append)
        a.sendall(b"question")
        reactor.settle()
        assert b.recv(100) == b"question"
        b.sendall(b"answer")
        reactor.settle()
        assert a.recv(100) == b"answer"
        a.close()
        reactor.settle()
        assert b.recv(100) == b""
        b.close()
        reactor.settle()
        assert outcomes == [RelayOutcome(8, 6, None, 0)]

    def test_given_bytes_come_first(self, reactor: Stepped) -> None:
        bench = Bench(reactor, to_b=b"early ", to_a=b"banner ")
        bench.a.sendall(b"up")
        bench.b.sendall(b"down")
        reactor.settle()
        assert bench.b.recv(100) == b"early up"
        assert bench.a.recv(100) == b"banner down"
        bench.close()

    @pytest.mark.parametrize("given", [1, 3_000_000])
    def test_given_bytes_of_any_size(self, reactor: Stepped, given: int) -> None:
        bench = Bench(reactor, to_b=bytes(given))
        bench.a.shutdown(socket.SHUT_WR)
        assert read_all(bench.b, reactor) == bytes(given)
        bench.close()

    def test_small_writes_are_not_held_back(self, bench: Bench) -> None:
        assert bench.relay.a_to_b.sink.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert bench.relay.a_to_b.source.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    @pytest.mark.parametrize("capacity", [0, 1, 2])
    def test_64_mib_each_way_at_once(self, capacity: int) -> None:
        reactor = Reactor()
        outcomes: list[RelayOutcome] = []
        (a, inner_a), (b, inner_b) = link(), link()
        pool = PipePool(capacity)

        def done(outcome: RelayOutcome) -> None:
            outcomes.append(outcome)
            reactor.stop()

        Relay(reactor, inner_a, inner_b, pool, done)
        size = 64 << 20
        block = os.urandom(1 << 20)
        digests: dict[str, str] = {}

        def send(sock: socket.socket) -> None:
            for _ in range(size // len(block)):
                sock.sendall(block)
            sock.shutdown(socket.SHUT_WR)

        def receive(name: str, sock: socket.socket) -> None:
            digest = hashlib.sha256()
            while data := sock.recv(1 << 18):
                digest.update(data)
            digests[name] = digest.hexdigest()

        threads = [threading.Thread(target=send, args=(sock,)) for sock in (a, b)]
        threads += [threading.Thread(target=receive, args=pair) for pair in (("a", a), ("b", b))]
        for thread in threads:
            thread.start()
        reactor.run()
        for thread in threads:
            thread.join(LIMIT)
        expected = hashlib.sha256(block * (size // len(block))).hexdigest()
        assert digests == {"a": expected, "b": expected}
        assert outcomes == [RelayOutcome(size, size, None, 0)]
        pool.close()
        assert pool.open == 0
        a.close()
        b.close()
        reactor.close()


class TestEnds:
    @both_ways
    def test_half_close(self, bench: Bench, way: str) -> None:
        sender, receiver = bench.ends(way)
        sender.sendall(b"last words")
        sender.shutdown(socket.SHUT_WR)
        bench.reactor.settle()
        assert receiver.recv(100) == b"last words"
        assert receiver.recv(100) == b""
        assert not bench.outcomes
        receiver.sendall(bytes(300_000))
        receiver.shutdown(socket.SHUT_WR)
        assert len(read_all(sender, bench.reactor)) == 300_000
        bench.reactor.settle()
        assert bench.relay.closed
        ways = {"a to b": (10, 300_000), "b to a": (300_000, 10)}
        assert bench.outcomes == [RelayOutcome(*ways[way], None, 0)]

    def test_an_end_comes_after_all_data(self, bench: Bench) -> None:
        sent = fill(bench.a, bench.reactor)
        bench.a.close()
        bench.reactor.settle()
        assert not bench.drained
        assert read_all(bench.b, bench.reactor) == sent
        bench.reactor.settle()
        assert bench.drained == [True]

    def test_the_first_end_is_known_while_the_other_goes_on(self, bench: Bench) -> None:
        bench.a.close()
        bench.reactor.settle()
        assert bench.drained == [True]
        assert bench.relay.a_to_b.finished
        assert not bench.outcomes

    @both_ways
    def test_an_end_behind_unread_data_does_not_spin(self, bench: Bench, way: str) -> None:
        """The reader's own end has gone out, so EPOLLHUP comes with the sender's FIN, before the relay reads it."""
        sender, receiver = bench.ends(way)
        receiver.shutdown(socket.SHUT_WR)
        bench.reactor.settle()
        assert sender.recv(1) == b""
        sent = fill(sender, bench.reactor)
        sender.close()
        bench.reactor.settle(10)
        assert read_all(receiver, bench.reactor) == sent
        bench.reactor.settle()
        assert bench.outcomes[0].cut is None

    @pytest.mark.parametrize("capacity", [0, 1])
    def test_a_unix_socket_closed_behind_unread_data_does_not_spin(self, reactor: Stepped, capacity: int) -> None:
        outcomes: list[RelayOutcome] = []
        pool = PipePool(capacity)
        (a, inner_a), (b, inner_b) = socket.socketpair(), link()
        Relay(reactor, inner_a, inner_b, pool, outcomes.append)
        sent = fill(a, reactor)
        a.close()
        reactor.settle(10)
        assert read_all(b, reactor) == sent
        b.close()
        reactor.settle()
        assert outcomes == [RelayOutcome(len(sent), 0, None, 0)]
        pool.close()

    def test_close_gives_up(self, bench: Bench) -> None:
        bench.a.sendall(b"x")
        bench.relay.close()
        for end in (bench.a, bench.b):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        bench.relay.close()
        bench.reactor.settle()
        assert bench.outcomes == []


class TestResets:
    @both_ways
    def test_is_passed_on(self, bench: Bench, way: str) -> None:
        sender, receiver = bench.ends(way)
        reset(sender)
        bench.reactor.settle()
        with pytest.raises(ConnectionResetError):
            receiver.recv(1)
        assert bench.outcomes == [RelayOutcome(0, 0, way[0], 104)]
        assert bench.relay.closed

    @both_ways
    def test_comes_after_the_data_before_it(self, bench: Bench, way: str) -> None:
        sender, receiver = bench.ends(way)
        sender.sendall(b"answer")
        reset(sender)
        bench.reactor.settle()
        assert receiver.recv(100) == b"answer"
        with pytest.raises(ConnectionResetError):
            receiver.recv(1)

    def test_that_was_told(self, bench: Bench) -> None:
        """What has come before is delivered, as with one that the kernel knows of."""
        bench.a.sendall(b"question")
        bench.relay.cut_a()
        bench.reactor.settle()
        assert bench.b.recv(100) == b"question"
        with pytest.raises(ConnectionResetError):
            bench.b.recv(1)
        assert bench.outcomes == [RelayOutcome(8, 0, "a", 104)]
        bench.relay.cut_a()

    @both_ways
    def test_after_an_end_that_was_passed_on(self, bench: Bench, way: str) -> None:
        sender, receiver = bench.ends(way)
        sender.shutdown(socket.SHUT_WR)
        bench.reactor.settle()
        assert receiver.recv(1) == b""
        reset(sender)
        bench.reactor.settle()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            receiver.sendall(b"x")
        assert bench.outcomes[0].cut == way[0]

    @both_ways
    def test_wins_over_an_end_not_yet_seen(self, bench: Bench, way: str) -> None:
        """FIN and RST come before the relay looks: reading says end of file, and never anything else."""
        sender, receiver = bench.ends(way)
        sender.shutdown(socket.SHUT_WR)
        reset(sender)
        bench.reactor.settle()
        with pytest.raises(ConnectionResetError):
            receiver.recv(1)
        assert bench.outcomes[0].cut == way[0]

    @both_ways
    def test_seen_by_writing(self, bench: Bench, way: str) -> None:
        """The sender's data is refused by a reader that has closed: its kernel answers with RST."""
        sender, receiver = bench.ends(way)
        receiver.close()
        bench.reactor.settle()
        assert sender.recv(1) == b""
        sender.sendall(b"nobody reads this")
        bench.reactor.until(lambda: bench.outcomes)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sender.sendall(b"x")
        assert bench.outcomes[0].cut == ("b" if way == "a to b" else "a")

    @both_ways
    def test_of_the_sender_while_the_reader_is_slow(self, bench: Bench, way: str) -> None:
        sender, receiver = bench.ends(way)
        fill(sender, bench.reactor)
        reset(sender)
        bench.reactor.settle(10)
        bench.reactor.until(lambda: bench.outcomes)
        read_to_reset(receiver, bytearray())

    @both_ways
    def test_of_a_reader_that_was_slow(self, bench: Bench, way: str) -> None:
        sender, receiver = bench.ends(way)
        fill(sender, bench.reactor)
        reset(receiver)
        bench.reactor.settle(10)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sender.sendall(b"x")
        assert len(bench.outcomes) == 1

    @both_ways
    def test_late_reader_gets_all_the_dead_sender_had_sent(self, bench: Bench, way: str) -> None:
        sender, receiver = bench.ends(way)
        sent = fill(sender, bench.reactor)
        # What reached the relay's own socket at least: the kernel may send more until the reset. The rest dies with the
        # sender, as it would without a relay.
        arrived = len(sent) - unsent(sender)
        reset(sender)
        bench.reactor.settle(10)
        receiver.setblocking(False)
        got = bytearray()

        def ended() -> bool:
            try:
                read_to_reset(receiver, got)
            except BlockingIOError:
                return False
            return True

        bench.reactor.until(ended)
        assert arrived <= len(got) <= len(sent)
        assert sent[: len(got)] == got


class TestUrgentData:
    @pytest.mark.parametrize("kind", ["bench", "pipeless"])
    @both_ways
    def test_stays_urgent_and_in_its_place(self, kind: str, way: str, request: pytest.FixtureRequest) -> None:
        bench: Bench = request.getfixturevalue(kind)
        sender, receiver = bench.ends(way)
        sender.sendall(b"before")
        sender.send(b"!", socket.MSG_OOB)
        sender.sendall(b"after")
        bench.reactor.settle(10)
        assert select.select([], [], [receiver], LIMIT)[2]
        assert receiver.recv(100) == b"before"
        assert at_mark(receiver)
        assert urgent_byte(receiver) == b"!"
        assert receiver.recv(100) == b"after"
        sender.sendall(b"more")
        bench.reactor.settle(10)
        assert receiver.recv(100) == b"more"

    @both_ways
    def test_alone(self, bench: Bench, way: str) -> None:
        sender, receiver = bench.ends(way)
        sender.send(b"!", socket.MSG_OOB)
        bench.reactor.settle(10)
        assert urgent_byte(receiver) == b"!"
        sender.sendall(b"next")
        bench.reactor.settle(10)
        assert receiver.recv(100) == b"next"

    def test_again_and_again(self, bench: Bench) -> None:
        for number in range(20):
            bench.a.send(b"%c" % (65 + number), socket.MSG_OOB)
            bench.reactor.settle(10)
            assert urgent_byte(bench.b) == b"%c" % (65 + number)
            bench.a.sendall(b"text")
            bench.reactor.settle(10)
            assert bench.b.recv(100) == b"text"

    def test_two_before_the_relay_looks(self, bench: Bench) -> None:
        """Only the later one stays urgent, as between two programs."""
        bench.a.send(b"1", socket.MSG_OOB)
        bench.a.send(b"2", socket.MSG_OOB)
        bench.a.sendall(b"rest")
        bench.reactor.settle(20)
        assert urgent_byte(bench.b) == b"2"
        got = b""
        while len(got) < 5 and not got.endswith(b"rest"):
            got += bench.b.recv(100)
        assert got in (b"1rest", b"rest")

    def test_with_a_reader_that_takes_it_inline(self, bench: Bench) -> None:
        bench.b.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        bench.a.sendall(b"ab")
        bench.a.send(b"!", socket.MSG_OOB)
        bench.a.sendall(b"cd")
        bench.a.shutdown(socket.SHUT_WR)
        assert read_all(bench.b, bench.reactor) == b"ab!cd"

    def test_behind_a_slow_reader(self, bench: Bench) -> None:
        sent = fill(bench.a, bench.reactor)
        bench.b.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        got = bytearray()
        bench.b.setblocking(False)
        bench.a.setblocking(False)
        urgent = False

        def all_there() -> bool:
            nonlocal urgent
            if not urgent:
                try:
                    urgent = bench.a.send(b"!", socket.MSG_OOB) == 1
                except BlockingIOError:
                    urgent = False
            try:
                while data := bench.b.recv(1 << 16):
                    got.extend(data)
            except BlockingIOError:
                pass
            return len(got) == len(sent) + 1

        bench.reactor.until(all_there)
        assert bytes(got) == sent + b"!"
        bench.reactor.settle(10)

    def test_before_the_end(self, bench: Bench) -> None:
        bench.a.send(b"!", socket.MSG_OOB)
        bench.a.shutdown(socket.SHUT_WR)
        bench.reactor.settle(10)
        assert urgent_byte(bench.b) == b"!"
        assert bench.b.recv(100) == b""

    def test_before_a_reset(self, bench: Bench) -> None:
        bench.a.sendall(b"x")
        bench.a.send(b"!", socket.MSG_OOB)
        reset(bench.a)
        bench.reactor.settle(10)
        read_to_reset(bench.b, bytearray())


class TestBackPressure:
    @pytest.mark.parametrize("kind", ["bench", "pipeless"])
    @both_ways
    def test_a_reader_that_does_not_read(self, kind: str, way: str, request: pytest.FixtureRequest) -> None:
        bench: Bench = request.getfixturevalue(kind)
        sender, receiver = bench.ends(way)
        sent = fill(sender, bench.reactor)
        assert bench.pool.open <= 1
        assert not bench.reactor.settle()
        # Kernel buffers of four sockets and one pipe: tcp_wmem and tcp_rmem allow 4 and 6 MiB each by default.
        assert len(sent) < 64 << 20
        receiver.sendall(b"the other way is free")
        bench.reactor.settle(10)
        assert sender.recv(100) == b"the other way is free"
        sender.shutdown(socket.SHUT_WR)
        assert hashlib.sha256(read_all(receiver, bench.reactor)).digest() == hashlib.sha256(sent).digest()

    def test_hundreds_of_megabytes_wait_in_the_sender(self, reactor: Stepped) -> None:
        """Thirty senders of 16 MiB and more each, whose readers don't read: this process doesn't grow."""
        pool = PipePool(capacity=10)
        benches = [Bench(reactor, pool) for _ in range(30)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        piece = bytes(1 << 20)
        for bench in benches:
            bench.a.setblocking(False)
        sent = 0
        stuck = set[int]()
        while len(stuck) < len(benches):
            for number, bench in enumerate(benches):
                try:
                    sent += bench.a.send(piece)
                except BlockingIOError:
                    if not reactor.settle(100_000):
                        stuck.add(number)
        assert pool.open <= 10
        assert sent > 30 << 20
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 16 << 10, f"{grown} KiB more"
        for bench in benches:
            bench.close()

    def test_nothing_is_held_in_memory_without_a_pipe(self, reactor: Stepped) -> None:
        pool = PipePool(capacity=0)
        benches = [Bench(reactor, pool) for _ in range(20)]
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        sent = [fill(bench.a, reactor) for bench in benches]
        sizes = [len(data) for data in sent]
        del sent
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert min(sizes) > COPY_SIZE
        assert after - before < len(benches) * COPY_SIZE // 8
        for bench in benches:
            bench.close()


class TestPipes:
    def test_an_idle_connection_has_none(self, bench: Bench) -> None:
        before = descriptors()
        bench.a.sendall(b"x")
        bench.reactor.settle()
        bench.pool.close()
        assert bench.pool.open == 0
        assert descriptors() == before

    def test_are_used_again(self, bench: Bench) -> None:
        for _ in range(50):
            bench.a.sendall(b"x")
            bench.reactor.settle()
        assert bench.pool.open == 1

    def test_one_that_is_not_empty_is_closed(self, bench: Bench) -> None:
        fill(bench.a, bench.reactor)
        assert bench.pool.open == 1
        bench.relay.close()
        assert bench.pool.open == 0

    def test_size(self) -> None:
        pool = PipePool()
        pipe = pool.acquire()
        assert pipe is not None
        assert fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ) in (PIPE_SIZE, os.sysconf("SC_PAGE_SIZE") * 2, 65536)
        pool.release(pipe, empty=True)
        assert pool.acquire() == pipe
        pool.release(pipe, empty=True)
        pool.close()

    def test_a_smaller_one_will_do(self, reactor: Stepped, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pipe of one page, which is what F_SETPIPE_SZ leaves a user who has had his share."""
        monkeypatch.setattr(flow_module, "PIPE_SIZE", 4096)
        bench = Bench(reactor)
        sent = fill(bench.a, reactor)
        bench.a.shutdown(socket.SHUT_WR)
        assert read_all(bench.b, reactor) == sent
        bench.close()

    def test_the_size_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: object) -> int:
            raise PermissionError(1, "EPERM")

        monkeypatch.setattr(fcntl, "fcntl", refuse)
        pool = PipePool()
        pipe = pool.acquire()
        assert pipe is not None
        pool.release(pipe, empty=False)
        assert pool.open == 0

    def test_no_descriptor_for_one(self, bench: Bench) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            bench.a.sendall(b"through memory")
            bench.reactor.settle(10)
            assert bench.b.recv(100) == b"through memory"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert bench.pool.open == 0

    def test_500_relays_at_once_leave_nothing(self, reactor: Stepped) -> None:
        before = descriptors()
        pool = PipePool()
        benches = [Bench(reactor, pool) for _ in range(500)]
        for bench in benches:
            bench.a.sendall(b"ping")
        reactor.settle()
        for bench in benches:
            assert bench.b.recv(4) == b"ping"
            bench.b.sendall(b"pong")
        reactor.settle()
        assert pool.open <= flow_module.PIPES_KEPT
        for number, bench in enumerate(benches):
            assert bench.a.recv(4) == b"pong"
            if number % 2:
                bench.a.close()
                bench.b.close()
            else:
                reset(bench.a)
        reactor.settle(5000)
        assert [len(bench.outcomes) for bench in benches] == [1] * 500
        for bench in benches:
            bench.b.close()
        pool.close()
        assert pool.open == 0
        assert descriptors() == before
