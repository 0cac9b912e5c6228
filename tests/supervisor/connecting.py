"""What tests of connections need: calls of a made-up engine, a first hop, and dials that wait to be let through."""

import os
import select
import socket
import struct
from collections.abc import Callable

from pysocksify.address import Address
from pysocksify.dial.transport import Transport
from pysocksify.errors import Cause, DialError
from pysocksify.kernel import Kernel
from pysocksify.reactor import READ, Reactor, Ready, Steps
from pysocksify.supervisor.calls import Signalled
from pysocksify.supervisor.connection import Connection, Dial, Then, Way, cookie_of
from pysocksify.supervisor.connections import Connections
from tests.supervisor.holds import HOLDS

PATIENCE = 10.0
SYN_SENT, CLOSE = 2, 7
KERNEL = Kernel()
DESTINATION = Address("198.51.100.7", 80)
TO_DESTINATION = struct.pack("=H", socket.AF_INET) + struct.pack("!H", 80) + bytes((198, 51, 100, 7)) + bytes(8)
UNREACHABLE = DialError("socks5://hop:1080", "request", DESTINATION, Cause.HOST_UNREACHABLE, "host unreachable")
REFUSED = DialError("socks5://hop:1080", "request", DESTINATION, Cause.REFUSED, "connection refused")


class MadeUpCall:
    """A waiting connect() of the target's, and what was answered to it."""

    def __init__(self, tid: int | None = None) -> None:
        self.tid = os.getpid() if tid is None else tid
        self.answers: list[int] = []
        self.gone = False

    def answer(self, error: int, value: int = 0) -> bool:
        assert value == 0
        self.answers.append(error)
        return not self.gone

    def proceed(self) -> bool:
        raise AssertionError("an inet connect() is never left to the kernel")

    def waits(self) -> bool:
        return not self.gone


class Lab:
    """A reactor with connections of its own, a first hop, and the programs that the sweep looks into."""

    def __init__(self, *, signalled: Signalled = Signalled.LOOKED_FOR, kernel: Kernel = KERNEL) -> None:
        self.reactor = Reactor()
        self.hop = socket.create_server(("127.0.0.1", 0))
        self.hop.settimeout(PATIENCE)
        self.joined: list[tuple[socket.socket, socket.socket]] = []
        self.told: list[tuple[Way, OSError | DialError | None]] = []
        self.programs = [os.getpid()]
        self.entered, self.cancelled = 0, 0
        self._gate = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
        self.connections = Connections(
            self.reactor,
            signalled=signalled,
            joined=lambda program, chain: self.joined.append((program, chain)),
            told=self._tell,
            programs=lambda: self.programs,
            kernel=kernel,
        )
        self.connections._beside._holds = HOLDS if kernel.simultaneous_open else None
        self._socks: list[socket.socket] = []

    def _tell(self, connection: Connection, way: Way, error: OSError | DialError | None) -> None:
        assert connection.destination == DESTINATION
        self.told.append((way, error))

    def sock(self, family: int = socket.AF_INET, *, blocking: bool) -> socket.socket:
        """A program's socket."""
        sock = socket.socket(family)
        sock.setblocking(blocking)
        self._socks.append(sock)
        return sock

    def address(self) -> Address:
        return Address(*self.hop.getsockname()[:2])

    def through(self, failure: Exception | None = None, *, gate: bool = False, to: Address | None = None) -> Dial:
        """A dial that connects to the hop, waits at the gate if there's one, and ends well or with `failure`."""

        def steps(transport: Transport) -> Steps[Way]:
            self.entered += 1
            done = False
            try:
                yield from transport.open(to or self.address(), self.reactor.now() + PATIENCE)
                while gate:
                    try:
                        os.eventfd_read(self._gate)
                        break
                    except BlockingIOError:
                        yield Ready(self._gate, READ)
                if failure is not None:
                    raise failure
                done = True
                return ("a hop",)
            finally:
                self.cancelled += not done and failure is None

        return steps

    def open_gate(self) -> None:
        """Let one dial through."""
        os.eventfd_write(self._gate, 1)

    def connect(
        self, sock: socket.socket, how: Dial, *, tid: int | None = None, then: Then | None = None
    ) -> MadeUpCall:
        """The program's connect(), as the supervisor takes it: on a duplicate."""
        call = MadeUpCall(tid)
        duplicate = socket.socket(fileno=os.dup(sock.fileno()))
        cookie = cookie_of(duplicate)
        connection = self.connections.get(cookie)
        if connection is None or not self.connections.again(connection, call, duplicate, then):
            self.connections.begin(call, duplicate, cookie, TO_DESTINATION, DESTINATION, how, then)
        return call

    def run_until(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        """Work until the condition holds."""

        def too_long() -> None:
            raise AssertionError("it doesn't come to pass")

        timer = self.reactor.call_at(self.reactor.now() + patience, too_long)
        while not condition():
            self.reactor.run_once()
        timer.cancel()

    def run_for(self, seconds: float) -> None:
        """Work for a while, when what's to be seen is that nothing happens."""
        over: list[bool] = []
        self.reactor.call_at(self.reactor.now() + seconds, lambda: over.append(True))
        while not over:
            self.reactor.run_once()

    def end(self, sock: socket.socket) -> tuple[socket.socket, socket.socket]:
        """The relay's two ends, once the connection is up."""
        self.run_until(lambda: self.joined)
        ((other, chain),) = self.joined
        other.setblocking(True)
        other.settimeout(PATIENCE)
        sock.send(b"from the program")
        assert other.recv(100) == b"from the program"
        assert chain.getpeername() == self.hop.getsockname()
        return other, chain

    def close(self) -> None:
        for sock in self._socks:
            sock.close()
        for pair in self.joined:
            for end in pair:
                end.close()
        for connection in list(self.connections._pending):
            self.connections.forget(connection)
        self.hop.close()
        os.close(self._gate)
        self.reactor.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def so_error(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def tcp_state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def poll(sock: socket.socket, timeout: float = 0) -> int:
    poller = select.poll()
    poller.register(sock, select.POLLIN | select.POLLOUT)
    return dict(poller.poll(timeout * 1000)).get(sock.fileno(), 0)
