"""One process that serves: what it is given, its server, and its end; alone, or as one of the workers of workers.py."""

import gc
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pysocksify.errors import PysocksifyError
from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.server.counting import Counter, Counts
from pysocksify.server.listening import Listeners
from pysocksify.server.metrics import Metrics
from pysocksify.server.settings import ServerSettings
from pysocksify.server.signals import STOPS, Hangup, Signals
from pysocksify.server.systemd import Notifier

if TYPE_CHECKING:
    import ssl

DRAIN_LOOK = 0.05  # s between looks at how many sessions are left


class Served(Protocol):
    """What is asked of core.Server here."""

    @property
    def settings(self) -> ServerSettings:
        """What it does."""

    @settings.setter
    def settings(self, settings: ServerSettings) -> None:
        """Do this from now on."""

    @property
    def session_count(self) -> int:
        """Clients that are there now, or still have something to come."""

    def adopt(self, sock: socket.socket, tls: "ssl.SSLContext | None" = None) -> None:
        """Accept clients on a listening socket."""

    def drain(self) -> None:
        """Accept nobody more."""

    def close(self) -> None:
        """Give up all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that is the same for every process of a server.

    server     makes a process's server, which tells its counter the settings' limits
    load       reads the settings anew; raises PysocksifyError for what can't be used
    listeners  are open
    metrics    their port, open; or None
    drain      seconds that connections have after the first SIGTERM
    """

    settings: ServerSettings
    server: Callable[[Reactor, ServerSettings, Counter], Served]
    load: Callable[[], ServerSettings]
    listeners: Listeners
    counts: Counts
    report: Report
    notifier: Notifier
    metrics: Metrics | None = None
    drain: float = 0.0


class Serving:
    """One process's server on its reactor, from adopting its listeners to the last session's end."""

    def __init__(self, job: Job, settings: ServerSettings, reactor: Reactor, number: int) -> None:
        gc.freeze()  # what is imported stays; looking through it again and again costs a twentieth of a connection
        gc.set_threshold(20_000, 20, 20)
        self._job = job
        self._reactor = reactor
        self._server = job.server(reactor, settings, job.counts.worker(number))
        for sock, tls in job.listeners.of(number):
            self._server.adopt(sock, tls)
        self._until: float | None = None

    def load(self) -> bool:
        """Take the settings as they're now for who comes from now on; what can't be used is said, and False."""
        settings = loaded(self._job)
        if settings is None:
            return False
        self._server.settings = settings
        return True

    def drain(self) -> None:
        """Accept nobody, and stop the reactor once nobody is left, or the time is up. A second time: at once."""
        if self._until is not None:
            self._reactor.stop()
            return
        self._until = self._reactor.now() + self._job.drain
        self._server.drain()
        self._look()

    def close(self) -> None:
        """Give up who is left."""
        self._server.close()

    def _look(self) -> None:
        now = self._reactor.now()
        if self._until is None or now >= self._until or not self._server.session_count:
            self._reactor.stop()
        else:
            self._reactor.call_at(min(now + DRAIN_LOOK, self._until), self._look)


def loaded(job: Job) -> ServerSettings | None:
    """The settings as they're now, or None, and the reason said in one line."""
    try:
        return job.load()
    except PysocksifyError as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    job.report.problem(f"reload {Reactor.now()}", f"not reloaded, all stays as it was: {' '.join(reason.split())}")
    return None


class Alone:
    """The only process of a server."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reactor = Reactor()
        self._serving: Serving | None = None

    def run(self, up: Callable[[], None]) -> None:
        """Serve until a signal ends it; `up` is called when clients are accepted."""
        job = self._job
        hangup = Hangup(self._load, self._stop)
        signals = Signals(self._reactor, {**dict.fromkeys(STOPS, self._stop), signal.SIGHUP: hangup})
        try:
            self._serving = Serving(job, job.settings, self._reactor, 0)
            if job.metrics is not None:
                job.metrics.start()
            up()
            job.notifier.ready()
            self._reactor.run()
        finally:
            signals.close()
            if self._serving is not None:
                self._serving.close()
            job.listeners.close()
            self._reactor.close()
            if job.metrics is not None:
                job.metrics.close()

    def _load(self) -> None:
        assert self._serving is not None
        self._job.notifier.reloading()
        if self._serving.load():
            self._job.report.connection("reloaded")
        self._job.notifier.ready()

    def _stop(self) -> None:
        assert self._serving is not None
        self._job.notifier.stopping()
        self._serving.drain()
        self._job.listeners.close()
