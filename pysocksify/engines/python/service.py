"""The supervisor in a thread of the program that asks for it: one block of `socksify(…)`, where there's Linux.

Theory of operation. The thread is started by the first request and runs the reactor with the one Supervisor in it,
listening as for the engines. The program's threads ask over the handover's wire, as a program under the wrapper does.
`end` takes the block away: no more requests; the thread ends once what is under way has an outcome and the relays are
through. At the interpreter's end (`deliver`) what the program wrote is waited for, a while.

fork(2). Before it the thread stops where it is (nothing is half done then, and Python 3.12 doesn't warn of threads),
after it it goes on in the parent. In the child all its descriptors are closed (`_made_here` knows the sockets; else a
peer wouldn't see the parent close them) and the first request starts a supervisor of its own, which takes over what
names mean.

Signals are blocked in the thread: whoever blocks in the program must be woken by them.
"""

import _socket
import atexit
import errno
import fcntl
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from pysocksify.config import Config
from pysocksify.engines.handover import wire
from pysocksify.engines.handover.listening import Listening
from pysocksify.engines.python import layers, sockets
from pysocksify.engines.python.asking import Reply, Supervised
from pysocksify.kernel import Kernel
from pysocksify.reactor import READ, Reactor
from pysocksify.report import DEBUG, NORMAL, QUIET, VERBOSE, Report
from pysocksify.supervisor.calls import Signalled
from pysocksify.supervisor.core import Plan, Supervisor
from pysocksify.supervisor.lookups import Hosts, Lookups
from pysocksify.threads import EventFd, Job

DRAIN_LIMIT = 60.0  # seconds that relays may go on after the block, as after a wrapped program's end
DELIVER_LIMIT = 5.0  # seconds that an ending interpreter waits for what it wrote
LOOK = 0.02
PAUSE_LIMIT = 2.0  # seconds for the thread to stop before fork(2)
FIONREAD = 0x541B  # asm-generic/ioctls.h

logger = logging.getLogger("pysocksify")


class LogReport(Report):
    """Problems as warnings, connections as information, the rest for debugging."""

    def __init__(self, config: Config) -> None:
        levels = (DEBUG, logging.DEBUG), (VERBOSE, logging.INFO), (NORMAL, logging.WARNING)
        wanted = next((verbosity for verbosity, level in levels if logger.isEnabledFor(level)), QUIET)
        super().__init__(logger.warning, QUIET if config.verbosity < NORMAL else wanted)

    def _warn(self, text: str) -> None:
        logger.warning("%s", text)

    def connection(self, text: str) -> None:
        """One line for one connection."""
        logger.info("%s", text)

    def debug(self, text: str) -> None:
        """A detail for whoever looks for a fault."""
        logger.debug("%s", text)


class ThreadReactor(Reactor):
    """A loop whose helper threads serve the same layer as its own thread."""

    def __init__(self, layer: layers.Layer) -> None:
        super().__init__()
        self._layer = layer
        self._spins_left_out = sys.maxsize  # who spins keeps the interpreter's lock from the program

    def in_thread(self, function: Callable[[], Any], callback: Callable[[Any, BaseException | None], None]) -> Job:
        """Run a blocking `function()` in a thread, as Reactor does."""

        def serving() -> Any:
            layers.serve_here(self._layer)
            try:
                return function()
            finally:
                layers.serve_here(None)  # the thread's number will be another's

        return super().in_thread(serving, callback)


class ProcessSupervisor(Supervisor):
    """A supervisor of its own process."""

    def __init__(
        self,
        reactor: Reactor,
        config: Config,
        report: Report,
        layer: layers.Layer,
        before: "ProcessSupervisor | None",
    ) -> None:
        """`before` is the one that this process had before it was forked."""
        nested = layer.below is not None or sockets.WRAPPED
        super().__init__(
            reactor,
            config,
            report,
            Kernel(enclosure=False),  # a process for it would be the program's child
            os.getpid(),
            set(),
            # direct dials use the socket by the C library's connect(), which passes by the block around this one
            signalled=Signalled.UNSEEN if nested else Signalled.TOLD,
            same_process=True,
        )
        self._nested = nested
        if before is not None:
            self._fake, self._names = before._fake, before._names
            system = config.dns == "system"
            hosts = Hosts.of_process(os.getpid())
            self.lookups = Lookups(reactor, self._names, hosts, system=system, ipv6=self._ipv6)

    def _plan(self, sockaddr: bytes) -> Plan | None:
        plan = super()._plan(sockaddr)
        if plan is not None and self._nested:
            plan.local = False
        return plan

    @property
    def under_way(self) -> bool:
        """Whether connections have no outcome, or relays aren't through."""
        return self.busy or self._connections.pending > 0

    @property
    def undelivered(self) -> bool:
        """Whether something that the program wrote hasn't been handed to the chain's socket yet."""
        for relay in self._relays:
            flow = relay.a_to_b
            if flow.full() or (not flow.ended and _readable_bytes(flow.source)):
                return True
        return False


class _Running:
    """What the thread works with; made anew in a forked child."""

    def __init__(self, config: Config, layer: layers.Layer, before: "_Running | None") -> None:
        self.made: WeakSet[Any] = WeakSet()
        self.pid = os.getpid()
        self.reactor = ThreadReactor(layer)
        report = LogReport(config)
        supervisor = ProcessSupervisor(self.reactor, config, report, layer, before.supervisor if before else None)
        self.supervisor: ProcessSupervisor = supervisor
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.made.add(self.listener)
        self.listener.bind(b"")  # the kernel chooses a name, unix(7)
        self.listener.setblocking(False)
        self.listener.listen(1024)
        token = os.urandom(wire.TOKEN_SIZE)
        self.listening = Listening(self.reactor, self.supervisor, report, self.listener, token)
        self.asked = Supervised(self.listener.getsockname(), token)
        self.waker = EventFd()
        self.reactor.watch(self.waker.fileno(), READ, lambda events: self.waker.clear())
        self.thread: threading.Thread | None = None
        self.paused = False
        self.over = False
        self._waking = threading.Lock()
        self._closed = False

    def do(self, call: Callable[[], None]) -> None:
        """Have the loop make a call, from any thread. Nothing happens once all is closed."""
        with self._waking:  # or the descriptor might be another file's by now
            if not self._closed:
                self.reactor.call_soon(call)
                self.waker.wake()

    def close(self) -> None:
        """Close everything; nothing is shut down or reset. Relays and dials of a parent's go on there."""
        with self._waking:
            self._closed = True
            self.waker.close()
        for sock in list(self.made):
            sock.close()
        self.reactor.close()
        self.supervisor._pool.close()


class Service:
    """Answers for one block, from its first request on (`layers.Answering`)."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.layer = layers.Layer(self, self._made_here)
        self._lock = threading.RLock()  # a signal's handler may connect too
        self._running: _Running | None = None
        self._ending = False

    def ask(self, op: int, payload: bytes = b"", sock: Any = None) -> Reply:
        """Have the supervisor serve one request."""
        running = self._own()
        if running is None:
            running = self._start()
        return Reply(errno.ENETDOWN) if running is None else running.asked.ask(op, payload, sock)

    def end(self) -> None:
        """The block is over."""
        with self._lock:
            self._ending = True
            running = self._own()
            if running is not None:
                running.do(lambda: self._wind_up(running))
            else:
                _services.remove(self)

    def deliver(self) -> None:
        """Wait until what the program wrote is on its way, for DELIVER_LIMIT at most."""
        running = self._own()
        if running is None or running.thread is None or not running.thread.is_alive():
            return
        delivered = threading.Event()
        until = running.reactor.now() + DELIVER_LIMIT

        def look() -> None:
            if not running.supervisor.undelivered or running.reactor.now() > until:
                delivered.set()
            else:
                running.reactor.call_at(running.reactor.now() + LOOK, look)

        running.do(look)
        delivered.wait(DELIVER_LIMIT)

    def pause(self) -> None:
        """Before fork(2): let the thread stop between two steps."""
        self._lock.acquire()
        running = self._own()
        if running is None or running.over:
            return
        assert running.thread is not None
        running.paused = True
        running.do(running.reactor.stop)
        running.thread.join(PAUSE_LIMIT)

    def resume(self) -> None:
        """After fork(2), in the parent: go on."""
        running = self._own()
        if running is not None and running.paused:
            running.paused = False
            assert running.thread is not None
            if not running.thread.is_alive():
                self._start_thread(running)
        self._lock.release()

    def forked(self) -> None:
        """After fork(2), in the child: nothing of the parent's thread is left but what names mean."""
        if self._running is not None:
            self._running.close()
        self._lock.release()

    def _own(self) -> _Running | None:
        """What was started in this process."""
        running = self._running
        return None if running is None or running.pid != os.getpid() else running

    def _made_here(self, sock: Any) -> None:
        if self._running is not None:
            self._running.made.add(sock)

    def _start(self) -> _Running | None:
        with self._lock:
            running = self._own()
            if running is None and not self._ending:
                before = layers.served_here()
                layers.serve_here(self.layer)  # what is made here is the service's own
                try:
                    running = _Running(self._config, self.layer, self._running)
                finally:
                    layers.serve_here(before)
                self._running = running
                self._start_thread(running)
            return running

    def _start_thread(self, running: _Running) -> None:
        running.thread = threading.Thread(target=self._serve, args=(running,), name="pysocksify", daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            running.thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _serve(self, running: _Running) -> None:
        layers.serve_here(self.layer)
        try:
            running.reactor.run()
            while not running.over and not running.paused:  # resumed before it had stopped
                running.reactor.run()
            if running.over:
                running.close()
                _services.remove(self)
        finally:
            layers.serve_here(None)

    def _wind_up(self, running: _Running) -> None:
        """Stop once nothing is under way; who asked right before the block's end still gets its answer."""
        until = running.reactor.now() + DRAIN_LIMIT

        def look() -> None:
            if not running.supervisor.under_way or running.reactor.now() > until:
                running.over = True
                running.reactor.stop()
            else:
                running.reactor.call_at(running.reactor.now() + LOOK, look)

        look()


_services: list[Service] = []


def started(config: Config) -> Service:
    """A service for a block; its thread comes with the first request."""
    if not _services_known:
        _know_services()
    service = Service(config)
    _services.append(service)
    return service


_services_known: list[bool] = []


def _know_services() -> None:
    """Once: have fork(2) and the interpreter's end heard of."""
    _services_known.append(True)
    paused: list[Service] = []

    def before() -> None:
        paused[:] = reversed(_services)  # an inner one may be asking an outer one
        for service in paused:
            service.pause()

    def in_parent() -> None:
        for service in paused:
            service.resume()

    def in_child() -> None:
        layers.forget_threads()
        for service in paused:
            service.forked()

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
    atexit.register(_deliver)


def _deliver() -> None:
    for service in list(_services):
        service.deliver()


def _readable_bytes(sock: socket.socket) -> int:
    if sock.fileno() < 0:
        return 0
    return int.from_bytes(fcntl.ioctl(sock.fileno(), FIONREAD, bytes(4)), "little")
