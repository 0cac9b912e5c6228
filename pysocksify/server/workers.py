"""A server of several processes: a master and its workers; reloads, deaths, and the end.

Theory of operation. The master holds the listening sockets and the counts' memory, forks the workers, and then only
waits: for signals, for its children's ends, and for words on channels. A channel is a pair of connected sockets, one
end the master's, the other a worker's; a word is one byte. The master tells a worker to LOAD the settings anew, to
DRAIN (accept nobody, end when nobody is left or the time is up), or to END; a worker says that it is UP, and LOADED.
Signals are the master's alone: a terminal, or systemd, sends them to every process of the group, and a worker that took
them too would hear of each of them twice. When the master dies, however it does, the workers' channels are at their
end, and so are they.

A worker that dies is told of and replaced, at once if it had lived for RESTART_PAUSE. One that dies before all were up
for the first time ends the server: what kills it will kill the next one.

The master has no threads, since it forks; metrics are served by one child more, which does nothing else.

SIGHUP: the master reads files and options anew. If they're good it lets each worker do the same; if not, it says why,
and all stays as it is. Whoever has lost the terminal it began with takes SIGHUP for the terminal's end, and ends too.
"""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from pysocksify.errors import PysocksifyError
from pysocksify.reactor import READ, Reactor, Timer
from pysocksify.server.process import Job, Serving, loaded
from pysocksify.server.settings import ServerSettings
from pysocksify.server.signals import STOPS, Hangup, Signals

RESTART_PAUSE = 1.0  # s; systemd's RestartSec is 0.1, with a limit on how often
KILL_GRACE = 5.0  # s that workers have beyond their draining time
HANDLED = (*STOPS, signal.SIGHUP, signal.SIGCHLD)

LOAD, DRAIN, END = b"l", b"d", b"e"  # to a worker
UP, LOADED = b"u", b"r"  # from a worker


class Child:
    """A forked process, as the master sees it."""

    def __init__(self, name: str, number: int, pid: int, channel: socket.socket, began: float) -> None:
        self.name = name
        self.number = number  # the worker's; -1 for the one that serves metrics
        self.pid = pid
        self.channel = channel
        self.began = began
        self.is_up = False
        self.is_loading = False

    def tell(self, word: bytes) -> None:
        """Send a word. To one that is dead already it goes nowhere: its end is heard of otherwise."""
        try:
            self.channel.send(word)
        except OSError:
            return


class Master:
    """Starts the workers and keeps them going."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job = job
        self._settings = job.settings
        self._workers = workers
        self._reactor = Reactor()
        self._children: dict[int, Child] = {}  # by pid
        self._signals: Signals | None = None
        self._all_up = False
        self._is_stopping = False
        self._is_loading = False
        self._failure = ""
        self._kill: Timer | None = None

    def run(self, up: Callable[[], None]) -> None:
        """Serve until a signal ends it; `up` is called when all workers accept clients.

        Raises PysocksifyError when a worker died before that.
        """
        hangup = Hangup(self._load, self._stop)
        calls: dict[signal.Signals, Callable[[], None]]
        calls = {**dict.fromkeys(STOPS, self._stop), signal.SIGHUP: hangup, signal.SIGCHLD: self._reap}
        self._up = up
        self._signals = Signals(self._reactor, calls)
        try:
            if self._job.metrics is not None:
                self._start(-1)
            for number in range(self._workers):
                self._start(number)
            self._reactor.run()
        finally:
            self._signals.close()
            for child in self._children.values():
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
                child.channel.close()
            self._job.listeners.close()
            self._reactor.close()
            if self._job.metrics is not None:
                self._job.metrics.close()
        if self._failure:
            raise PysocksifyError(self._failure)

    # children

    def _start(self, number: int) -> None:
        name = "the metrics' process" if number < 0 else f"worker {number + 1}"
        ours, theirs = socket.socketpair()
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # until the child has left our wake-up descriptor
        try:
            pid = os.fork()
            if not pid:
                self._become(number, ours, theirs)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        ours.setblocking(False)
        child = Child(name, number, pid, ours, self._reactor.now())
        self._children[pid] = child
        self._reactor.watch(ours.fileno(), READ, lambda events: self._hear(child))

    def _become(self, number: int, ours: socket.socket, theirs: socket.socket) -> NoReturn:
        """In the child: leave all that is the master's, work, and end without the master's ends."""
        status = 1
        try:
            assert self._signals is not None
            for each in HANDLED:
                signal.signal(each, signal.SIG_DFL if each == signal.SIGCHLD else signal.SIG_IGN)
            self._signals.leave()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            self._reactor.close()
            ours.close()
            for child in self._children.values():
                child.channel.close()
            self._job.listeners.keep(number)
            if number < 0:
                serve_metrics(self._job, theirs)
            else:
                if self._job.metrics is not None:
                    self._job.metrics.close()
                work(self._job, self._settings, number, theirs)
            status = 0
        except PysocksifyError as error:
            self._job.report.problem("start", str(error))
        except BaseException:  # nothing may get out into the master's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _restart(self, number: int) -> None:
        if self._is_stopping:
            return
        try:
            self._start(number)
        except OSError as error:
            self._job.report.problem("fork", f"no worker can be started: {error.strerror}; trying again")
            self._reactor.call_at(self._reactor.now() + RESTART_PAUSE, lambda: self._restart(number))

    def _reap(self) -> None:
        """Some children may have ended; one SIGCHLD may stand for several."""
        for child in list(self._children.values()):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, status: int) -> None:
        del self._children[child.pid]
        self._reactor.unwatch(child.channel.fileno())
        child.channel.close()
        if self._is_stopping:
            self._end_if_all_ended()
            return
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        text = f"{child.name} (pid {child.pid}) {how}"
        if not self._all_up:
            self._failure = f"{text} before it served"
            self._reactor.stop()
            return
        if child.number >= 0:
            self._job.counts.bury(child.number)
        self._job.report.problem(f"ended {child.pid} {child.began}", f"{text}; another is started")
        self._said_loaded(child)
        again = max(self._reactor.now(), child.began + RESTART_PAUSE)
        self._reactor.call_at(again, lambda: self._restart(child.number))

    def _hear(self, child: Child) -> None:
        try:
            words = child.channel.recv(64)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if not words:  # it has ended, or is about to; SIGCHLD says so
            self._reactor.unwatch(child.channel.fileno())
        if UP in words:
            child.is_up = True
            if not self._all_up and self._are_up():
                self._all_up = True
                self._up()
                self._job.notifier.ready()
        if LOADED in words:
            self._said_loaded(child)

    def _are_up(self) -> bool:
        wanted = self._workers + (self._job.metrics is not None)
        return sum(child.is_up for child in self._children.values()) == wanted

    # signals

    def _load(self) -> None:
        if self._is_stopping:
            return
        self._job.notifier.reloading()
        settings = loaded(self._job)
        if settings is not None:
            self._settings = settings
            for child in self._children.values():
                if child.number >= 0:
                    child.is_loading = True
                    child.tell(LOAD)
            self._job.report.connection("reloaded")
        self._is_loading = True
        self._said_loaded(None)

    def _said_loaded(self, child: Child | None) -> None:
        """This child waits for no settings any more; the last one ends the reload."""
        if child is not None:
            child.is_loading = False
        if self._is_loading and not any(each.is_loading for each in self._children.values()):
            self._is_loading = False
            self._job.notifier.ready()

    def _stop(self) -> None:
        again, self._is_stopping = self._is_stopping, True
        if not again:
            self._job.notifier.stopping()
            self._job.listeners.close()
        for child in self._children.values():
            child.tell(END if again else DRAIN)
        if self._kill is not None:
            self._kill.cancel()
        wait = KILL_GRACE + (0.0 if again else self._job.drain)
        self._kill = self._reactor.call_at(self._reactor.now() + wait, self._kill_all)
        self._end_if_all_ended()

    def _end_if_all_ended(self) -> None:
        """Metrics are there as long as a worker is."""
        left = list(self._children.values())
        if not left:
            self._reactor.stop()
        elif all(child.number < 0 for child in left):
            for child in left:
                child.tell(END)

    def _kill_all(self) -> None:
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)


def work(job: Job, settings: ServerSettings, number: int, channel: socket.socket) -> None:
    """Be a worker, until the master says so or is no more."""
    reactor = Reactor()
    serving = Serving(job, settings, reactor, number)

    def hear(events: int) -> None:
        try:
            words = channel.recv(64)
        except OSError:
            words = b""
        for word in words:
            if word == LOAD[0]:
                serving.load()
                channel.send(LOADED)
            elif word == DRAIN[0]:
                serving.drain()
            else:
                reactor.stop()
        if not words:
            reactor.stop()

    reactor.watch(channel.fileno(), READ, hear)
    channel.send(UP)
    reactor.run()
    serving.close()
    reactor.close()


def serve_metrics(job: Job, channel: socket.socket) -> None:
    """Be the process that serves metrics, until the master says so or is no more."""
    assert job.metrics is not None
    job.metrics.start()
    channel.send(UP)
    while channel.recv(1) not in (END, b""):
        continue
