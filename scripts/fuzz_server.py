"""A running server, given cases through real sockets: in pieces, with urgent bytes, ends and resets anywhere.

Everything is in one process and on one reactor: four servers (open to all, for users, with identd, on a Unix socket),
what they connect to, and the clients. What must be so: no callback raises; what a client is told begins as the
conversation alone would have it; a client that waits in silence is parted with within the time limits; no watch is
called again and again without need; and when all clients are gone no session, descriptor or pipe is left.

Nothing leaves the machine: rules allow loopback alone, and no resolver is asked.
"""

import gc
import os
import socket
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pysocksify.codes import Cd
from pysocksify.protocol.serve import Authenticate
from pysocksify.reactor import READ, Reactor, Timer
from pysocksify.report import QUIET, Report
from pysocksify.route.rules import Pattern
from pysocksify.server import Limits, Server, ServerSettings, Users
from pysocksify.server.access import Access, AccessRule
from pysocksify.server.parting import PARTING_LIMIT
from scripts.fuzz_cases import NAME, USERS, Cases, Ports, Wrong, watched
from scripts.fuzz_conversation import Judge, play

AT_ONCE = 120  # clients
EACH = 0.5  # s, each of the server's limits
ENOUGH = 200  # cases, of which one in about seven is compared
SILENT_LIMIT = 5 * EACH + 4.0  # s: handshake, dial or bind, idle; what is more is for a machine with other work
HANG = 20.0  # s in which nothing comes to its end
CALLS = 3000  # of one watch; a client sends a few pieces, and the target as many
PAUSE = 0.004  # s at the most between two pieces
RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
KEEPS_OPEN = 0.002  # the share of clients that don't close when they're told of the end, of a long run
ENDINGS = ("silent", "close", "close", "reset", "reset", "fin", "fin", "fin")


def _knows(login: Authenticate) -> bool:
    return login.password is not None and USERS.get(login.username) == login.password


# the servers: whether a login is asked for, and an identd; and what they say to it (nothing listens on identd's port)
JUDGED: tuple[tuple[bool, bool, Judge], ...] = (
    (False, False, lambda login: True),
    (True, False, _knows),
    (False, True, lambda login: Cd.NO_IDENTD if login.password is None else True),
    (False, False, lambda login: True),
)
UNIX = 3  # the number of the one that listens on a Unix socket


def _listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def _unix_listener() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")  # the kernel finds a name (unix(7), "Autobind")
    sock.listen(1024)
    return sock


class CountingReactor(Reactor):
    """A reactor that looks how often a watch is called. `free` descriptors may be as often as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.free: set[int] = set()

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """As any reactor's; Wrong is raised in the call that is too much."""
        if fd in self.free:
            super().watch(fd, events, callback)
            return
        calls = 0

        def counted(found: int) -> None:
            nonlocal calls
            calls += 1
            if calls > CALLS:
                raise Wrong(f"{callback} was called {calls} times, with events {found:#x}")
            callback(found)

        super().watch(fd, events, counted)


class Target:
    """What is connected to. It says something, echoes, ends or resets, as its count of connections goes on."""

    def __init__(self, reactor: CountingReactor) -> None:
        self._reactor = reactor
        self._listener = _listener()
        self._listener.setblocking(False)
        self._count = 0
        self._open: set[socket.socket] = set()
        self.port: int = self._listener.getsockname()[1]
        reactor.free.add(self._listener.fileno())
        reactor.watch(self._listener.fileno(), READ, self._accept)

    def _accept(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        self._count += 1
        how = self._count % 8
        sock.setblocking(False)
        if how == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if how < 2:
            sock.close()
            return
        try:
            if how == 2:
                sock.send(b"!", socket.MSG_OOB)
            elif how == 3:
                sock.shutdown(socket.SHUT_WR)
            elif how == 4:
                sock.send(bytes(200_000))
        except OSError:
            sock.close()
            return
        self._open.add(sock)
        self._reactor.watch(sock.fileno(), READ, lambda events: self._echo(sock, how))

    def _echo(self, sock: socket.socket, how: int) -> None:
        try:
            data = sock.recv(65536)
            if data and how > 4:
                sock.send(data)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._reactor.unwatch(sock.fileno())
            sock.close()
            self._open.discard(sock)

    def close(self) -> None:
        """Close all."""
        self._reactor.unwatch(self._listener.fileno())
        self._listener.close()
        for sock in self._open:
            self._reactor.unwatch(sock.fileno())
            sock.close()


class Client:
    """One case: its pieces with pauses between them, things that go wrong, and one of the ENDINGS."""

    def __init__(self, fuzz: "Fuzz", number: int) -> None:
        self.number = number
        self._fuzz = fuzz
        self._reactor = fuzz.reactor
        cases = fuzz.cases
        self.data = cases.data(number)
        self._pieces = cases.cuts(self.data)
        rng = cases.rng
        self._which = int(rng.random() * len(fuzz.addresses))
        self._urgent_at = int(rng.random() * 6) if rng.random() < 0.2 else -1
        self._stops_at = int(rng.random() * 6) if rng.random() < 0.1 else -1
        self._ending = ENDINGS[int(rng.random() * len(ENDINGS))]
        self._pause = PAUSE * rng.random() if rng.random() < 0.5 else 0.0
        self._keeps_open = rng.random() < fuzz.keeps_open
        self._got = b""
        self._sent = 0
        self._began = fuzz.reactor.now()
        self._whole = False  # all was sent, and nothing else
        self._timer: Timer | None = None
        family, address = fuzz.addresses[self._which]
        self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if family == socket.AF_INET:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.connect_ex(address)
        self._reactor.watch(self._sock.fileno(), READ, self._on_readable)
        self._soon()

    def __str__(self) -> str:
        cuts = [len(piece) for piece in self._pieces]
        sent = f"{self._sent} pieces of {cuts} sent, then {self._ending}; got {self._got[:64]!r}"
        return f"case {self.number}, server {self._which}: {self.data[:1000]!r}, {sent}"

    def _soon(self) -> None:
        self._timer = self._reactor.call_at(self._reactor.now() + self._pause, self._go_on)

    def _go_on(self) -> None:
        """Send the next piece, or come to the ending."""
        self._timer = None
        try:
            if self._sent == self._urgent_at:
                self._sock.send(b"!", socket.MSG_OOB)
                self._urgent_at = -2
            elif self._sent < len(self._pieces) and self._sent != self._stops_at:
                piece = self._pieces[self._sent]
                size = self._sock.send(piece)
                if size == len(piece):
                    self._sent += 1
                else:
                    self._pieces[self._sent] = piece[size:]
            else:
                self._finish()
                return
        except BlockingIOError:  # not connected yet, or full
            self._pause = self._pause or PAUSE
            if self._reactor.now() - self._began > SILENT_LIMIT:
                self._end("full")
                return
        except OSError:
            self._end("cut")
            return
        self._soon()

    def _finish(self) -> None:
        self._whole = self._sent == len(self._pieces) and self._urgent_at == -1
        if self._ending == "fin":
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._end("cut")
                return
        elif self._ending != "silent":
            if self._ending == "reset":
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._end(self._ending)
            return
        self._timer = self._reactor.call_at(self._reactor.now() + SILENT_LIMIT, self._forgotten)

    def _forgotten(self) -> None:
        raise Wrong(f"{self} is still connected after {SILENT_LIMIT:g} s of silence")

    def _on_readable(self, events: int) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self._end("cut")
            return
        if len(self._got) < 4096:
            self._got += data
        if not data:
            self._look()
            self._end("parted")

    def _look(self) -> None:
        """Whether what it was told begins as it must."""
        in_time = self._reactor.now() - self._began < EACH  # later, it may have been given up in the handshake
        if self._whole and self._ending == "fin" and in_time:
            expected = self._fuzz.expected(self._which, self.data)
            if not self._got.startswith(expected):
                raise Wrong(f"{self} should have begun with {expected!r}")

    def _end(self, how: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._reactor.unwatch(self._sock.fileno())
        if self._keeps_open and how == "parted":
            self._fuzz.keep(self._sock)
        else:
            self._sock.close()
        self._fuzz.ended(self, how)


class Fuzz:
    """The servers, the target and the clients; `within` is called with the seconds in which one has to end."""

    def __init__(self, within: Callable[[float], None], keeps_open: float) -> None:
        self._within = within
        self.keeps_open = keeps_open
        self.reactor = CountingReactor()
        self.kinds: Counter[str] = Counter()
        self.compared = 0  # replies, with what the conversation alone says
        self._target = Target(self.reactor)
        self._closed = socket.socket()
        self._closed.bind(("127.0.0.1", 0))
        self._silent = socket.create_server(("127.0.0.1", 0), backlog=0)
        self._filler = socket.socket()  # a full queue drops every SYN
        self._filler.connect(self._silent.getsockname())
        ports = Ports(self._target.port, self._closed.getsockname()[1], self._silent.getsockname()[1])
        self.cases = Cases(ports)
        self.servers = [
            Server(self.reactor, settings, Report(lambda line: None, QUIET)) for settings in _settings(ports)
        ]
        self.addresses: list[tuple[int, Any]] = []
        for server in self.servers:
            listener = _unix_listener() if len(self.addresses) == UNIX else _listener()
            self.reactor.free.add(listener.fileno())
            self.addresses.append((listener.family, listener.getsockname()))
            server.adopt(listener)
        self._numbers = iter(range(0))
        self._clients: set[Client] = set()
        self._kept: list[socket.socket] = []

    def run(self, numbers: range) -> None:
        """Play all these cases. Raises Wrong, with those that were under way in it."""
        self._numbers = iter(numbers)
        for _ in range(AT_ONCE):
            self._next()
        try:
            while self._clients:
                self.reactor.run_once()
        except Exception as error:
            where = "".join(traceback.format_exception(error))
            raise Wrong("\n".join([where, "under way:", *(f"  {client}" for client in self._clients)])) from error

    def expected(self, which: int, data: bytes) -> bytes:
        """What the conversation alone says to these bytes, as far as the server of this number can't say otherwise."""
        self.compared += 1
        login, userid, judge = JUDGED[which]
        return play([data] if data else [], login, userid, judge).said

    def ended(self, client: Client, how: str) -> None:
        """A client has come to its end; the next one begins."""
        self._clients.discard(client)
        self.kinds[how] += 1
        self._within(HANG)
        self.reactor.call_soon(self._next)

    def keep(self, sock: socket.socket) -> None:
        """A socket that its client doesn't close."""
        self._kept.append(sock)

    def _next(self) -> None:
        number = next(self._numbers, None)
        if number is not None:
            self._clients.add(Client(self, number))

    def wait_for_the_end(self) -> None:
        """Wait until no session is left, as long as the limits allow. Raises Wrong."""
        end = time.monotonic() + SILENT_LIMIT + (PARTING_LIMIT if self._kept else 0)
        self._tick()
        while any(server.session_count for server in self.servers):
            self.reactor.run_once()
            if time.monotonic() > end:
                counts = [server.session_count for server in self.servers]
                raise Wrong(f"{counts} sessions are left although all clients are gone")

    def _tick(self) -> None:
        self.reactor.call_at(self.reactor.now() + 0.05, self._tick)

    def close(self) -> None:
        """Close all that is still open."""
        for server in self.servers:
            server.close()
        self._target.close()
        for sock in (self._closed, self._silent, self._filler, *self._kept):
            sock.close()
        self.reactor.close()


def _settings(ports: Ports) -> Iterator[ServerSettings]:
    own = tuple((port, port) for port in (ports.target, ports.closed, ports.silent))
    loopback = tuple(Pattern.parse(text) for text in ("127.0.0.0/8", "::1/128", "0.0.0.0/32"))
    access = Access([AccessRule(text="own", allow=True, destinations=loopback, ports=own)], default=False)
    limits = Limits(handshake=EACH, dial=EACH, bind=EACH, idle=EACH, udp_idle=EACH)
    hosts = {NAME.decode(): ("127.0.0.1",)}
    users = Users.plain(USERS)
    yield ServerSettings(access=access, limits=limits, hosts=hosts)
    yield ServerSettings(access=access, limits=limits, hosts=hosts, users=users)
    yield ServerSettings(access=access, limits=limits, hosts=hosts, identd=True)
    yield ServerSettings(access=access, limits=limits, hosts=hosts)


def _unknown(*arguments: object, **options: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "no resolver is asked")


@contextmanager
def _no_resolver() -> Iterator[None]:
    asked = socket.getaddrinfo
    socket.getaddrinfo = _unknown  # type: ignore[assignment]
    try:
        yield
    finally:
        socket.getaddrinfo = asked


def descriptors() -> int:
    """How many this process has."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def run(numbers: range, keeps_open: float = 0.0) -> Counter[str]:
    """Play all these cases; how they ended. Of the clients, `keeps_open` is the share of those that don't close when
    they are told of the end: the server waits ten seconds for them. Raises Wrong."""
    before = descriptors()
    with watched() as within, _no_resolver():
        fuzz = Fuzz(within, keeps_open)
        try:
            within(HANG)
            fuzz.run(numbers)
            within(SILENT_LIMIT + PARTING_LIMIT + HANG)
            fuzz.wait_for_the_end()
        finally:
            fuzz.close()
    left = descriptors() - before
    if left > 0:
        raise Wrong(f"cases {numbers.start} to {numbers.stop}: {left} descriptors are left")
    if len(numbers) >= ENOUGH and not fuzz.compared:
        raise Wrong(f"cases {numbers.start} to {numbers.stop}: no reply came in time to be compared")
    return fuzz.kinds


def measured(numbers: range) -> tuple[Counter[str], float]:
    """As `run`, with the seconds that it took."""
    start = time.perf_counter()
    kinds = run(numbers, KEEPS_OPEN)
    return kinds, time.perf_counter() - start
