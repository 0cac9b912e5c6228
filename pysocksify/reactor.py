"""The event loop of supervisor and server: one epoll set, timers, threads for what blocks, and generators as tasks.

Where there's no epoll(7), as on other systems than Linux, `polling` takes its place.

Why not asyncio: importing it costs more than the whole start of a target, and a generator resumed straight from epoll
halves the cost of a dial. What is here is all that dialling, relaying and answering need.

Theory of operation. A *watch* is one descriptor with one callback. Callbacks run one after the other in the loop's
thread; each may watch, unwatch and close whatever it likes. A descriptor number closed and used again while a batch of
events is being worked off would get the old one's event, so a watch made during a batch takes no event of that batch
(epoll, level-triggered, says it again). An epoll registration belongs to the open file, not to the number: who closes a
descriptor must unwatch it first.

A *task* is a generator that yields what it waits for: `Ready`, `Pause` or `InThread`. Closing the generator
(Task.cancel) is how a task is given up: its `finally` clauses release what it holds.
"""

import errno
import heapq
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pysocksify.threads import Threads

if TYPE_CHECKING:
    from pysocksify.polling import Poller
    from pysocksify.threads import Answer, Job

T = TypeVar("T")

READ, WRITE = 1, 4  # EPOLLIN, EPOLLOUT (sys/epoll.h)
SPIN = 100e-6  # seconds; the kernel's own busy polling takes 50 µs for a good value (net.core.busy_read, socket(7))
SPINS_LEFT_OUT = 1024  # after spins that were in vain, as many waits at the most go without one
TIMERS_KEPT = 128  # so many aren't worth a look at which were cancelled


@dataclass(slots=True)
class Ready:
    """Wait until `fd` has one of `events` (EPOLLERR, EPOLLHUP always count); TimeoutError at `deadline` (monotonic).

    With `keep`, a task that waits for the same object again has its descriptor stay registered in between, which
    saves two system calls a wait. Such an object must not be used any more once its descriptor was closed.
    """

    fd: int
    events: int
    deadline: float | None = None
    keep: bool = False


@dataclass(slots=True)
class Pause:
    """Wait for some seconds."""

    seconds: float


@dataclass(slots=True)
class InThread:
    """Run a blocking function in a thread; its value is sent back, its exception thrown."""

    function: Callable[[], Any]


Steps = Generator[Ready | Pause | InThread, Any, T]


class Timer:
    """A call to be made at a time; cancel() may be called at any moment, also after it ran."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Make sure that the call isn't made."""
        self.callback = None


class Task(Generic[T]):
    """A running generator. When it ends uncancelled, `done` is called with (value, None) or (None, exception)."""

    __slots__ = ("_done", "_expected", "_job", "_kept", "_pausing", "_reactor", "_steps", "_timer", "_turn")

    def __init__(
        self, reactor: "Reactor", steps: Steps[T], done: Callable[[T | None, BaseException | None], None] | None
    ) -> None:
        self._reactor = reactor
        self._steps: Steps[T] | None = steps
        self._done = done
        self._expected: Ready | None = None  # registered with the reactor
        self._kept: Ready | None = None  # registered, but not waited for at the moment
        self._pausing = False
        self._timer: Timer | None = None
        self._job: Job | None = None
        self._turn = 0  # counts waits, so that a thread's late answer to a cancelled wait is told apart

    def start(self) -> None:
        """Run the first step. A task of Reactor.spawn() has been started."""
        self._advance(None)

    def cancel(self) -> None:
        """Give the task up: the generator's `finally` clauses run now, `done` is not called."""
        steps, self._steps = self._steps, None
        self._stop_waiting()
        self._let_go()
        if steps is not None and not getattr(steps, "gi_running", False):  # in its own step: closed after that
            steps.close()

    def _stop_waiting(self) -> None:
        self._turn += 1
        self._pausing = False
        if self._job is not None:
            self._job.cancel()
            self._job = None
        expected = self._expected
        if expected is not None:
            self._expected = None
            if expected.keep:
                self._kept = expected
            else:
                self._reactor.unwatch(expected.fd)

    def _let_go(self) -> None:
        """Nothing is registered any more."""
        if self._kept is not None:
            self._reactor.unwatch(self._kept.fd)
            self._kept = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ready(self, events: int) -> None:
        if self._expected is not None:
            self._advance(events)
        elif self._kept is not None:  # it waits for something else now, in which the reader has no part
            self._reactor.unwatch(self._kept.fd)
            self._kept = None

    def _advance(self, value: Any, error: BaseException | None = None) -> None:
        self._stop_waiting()
        steps = self._steps
        if steps is None:
            return
        try:
            wait = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as stop:
            self._end(stop.value, None)
        except Exception as failure:  # whatever a task raises is its outcome, handed to whoever started it
            self._end(None, failure)
        else:
            if self._steps is None:  # cancelled from inside its own step
                steps.close()
                return
            try:
                self._wait(wait)
            except OSError as failure:  # no room in the epoll set: the task's trouble, not the loop's
                self._expected = None
                self._advance(None, failure)

    def _end(self, value: T | None, error: BaseException | None) -> None:
        cancelled, self._steps = self._steps is None, None
        self._let_go()
        if cancelled:
            return
        if self._done is not None:
            self._done(value, error)
        elif error is not None:
            raise error

    def _wait(self, wait: Ready | Pause | InThread) -> None:
        reactor = self._reactor
        if isinstance(wait, Ready):
            self._expected = wait
            if self._kept is wait:
                self._kept = None
            else:
                if self._kept is not None:
                    reactor.unwatch(self._kept.fd)
                    self._kept = None
                reactor.watch(wait.fd, wait.events, self._ready)
            if wait.keep:
                reactor.expect_soon()
            deadline = wait.deadline
            if deadline is not None and (self._timer is None or self._timer.when > deadline):
                self._set_timer(deadline)
        elif isinstance(wait, Pause):
            self._pausing = True
            self._set_timer(reactor.now() + wait.seconds)
        else:
            turn = self._turn

            def answered(value: Any, error: BaseException | None) -> None:
                if self._turn == turn:
                    self._advance(value, error)

            self._job = reactor.in_thread(wait.function, answered)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._reactor.call_at(when, self._expire)

    def _expire(self) -> None:
        """A pause is over, or a deadline: perhaps one of an earlier wait, whose timer was left to run."""
        timer, self._timer = self._timer, None
        expected = self._expected
        if self._pausing:
            self._advance(None)
        elif expected is not None and expected.deadline is not None:
            assert timer is not None
            if timer.when < expected.deadline:
                self._set_timer(expected.deadline)
            else:
                self._advance(None, TimeoutError())


class Reactor:
    """One epoll loop. Not thread-safe but for `in_thread`'s own answers."""

    def __init__(self) -> None:
        self._epoll = _poller()
        self._watches: dict[int, tuple[Callable[[int], None], int]] = {}
        self._batch = 0
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_count = 0
        self._timers_kept = TIMERS_KEPT
        self._soon: deque[Callable[[], None]] = deque()
        self._spin_until = 0.0
        self._spins_failed = 0
        # where there's one processor, who spins keeps the server from answering
        self._spins_left_out = 0 if _several_processors() else sys.maxsize
        self._stopped = False
        self._threads: dict[str, Threads] = {}

    now = staticmethod(time.monotonic)

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` whenever `fd` has some of `events`. A second watch of it is FileExistsError."""
        self._epoll.register(fd, events)
        self._watches[fd] = (callback, self._batch)

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of a watched descriptor."""
        self._epoll.modify(fd, events)

    def rewatch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Have a watched descriptor wait for these events and call this instead, from the next batch on.

        One system call rather than the two of unwatch() and watch(), and one that doesn't fail for want of room.
        """
        self._epoll.modify(fd, events)
        self._watches[fd] = (callback, self._batch)

    def unwatch(self, fd: int) -> None:
        """End a watch; call it before closing `fd`. A descriptor that isn't watched is no error."""
        if self._watches.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError as error:  # its file was closed before, and the registration went with it
                if error.errno not in (errno.ENOENT, errno.EBADF):
                    raise

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call `callback()` at `when` (monotonic seconds)."""
        timer = Timer(when, callback)
        self._timer_count += 1
        if len(self._timers) >= self._timers_kept:
            self._drop_cancelled()
        heapq.heappush(self._timers, (when, self._timer_count, timer))
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback()` before the loop waits again."""
        self._soon.append(callback)

    def in_thread(self, function: Callable[[], T], callback: "Answer[T]") -> "Job":
        """Run a blocking `function()` in a thread; `callback(value, error)` is called in the loop, later, also when no
        thread can be had. Returns what cancels it."""
        return self.threads().run(function, callback)

    def threads(self, name: str = "", limit: int | None = None) -> "Threads":
        """The threads of a name, `limit` of them at most (None: the usual number). Kinds of calls that mustn't keep
        each other waiting have threads of their own. Nothing is opened, imported or started before it's needed."""
        threads = self._threads.get(name)
        if threads is None:
            threads = self._threads[name] = Threads(self, limit)
        return threads

    def spawn(self, steps: Steps[T], done: Callable[[T | None, BaseException | None], None] | None = None) -> "Task[T]":
        """Start a generator as a task; its first step runs now."""
        task = Task(self, steps, done)
        task.start()
        return task

    def stop(self) -> None:
        """Let run() return after the callbacks of this round."""
        self._stopped = True

    def run(self) -> None:
        """Work until stop() is called, or not at all when it was called since the last time."""
        while not self._stopped:
            self.run_once()
        self._stopped = False

    def run_once(self) -> None:
        """Wait for the next events, timers or calls, and work them off."""
        while self._soon:
            self._soon.popleft()()
            if self._stopped:
                return
        self._batch += 1
        watches, batch = self._watches, self._batch
        for fd, events in self._wait():
            watch = watches.get(fd)
            if watch is not None and watch[1] != batch:
                watch[0](events)
        if self._timers and self._timers[0][0] <= time.monotonic():
            self._run_timers()

    def close(self) -> None:
        """Close the epoll set. What is still watched is simply no longer watched."""
        self._watches.clear()
        self._epoll.close()
        for threads in self._threads.values():
            threads.close()

    def expect_soon(self) -> None:
        """The next event is likely to come at once: an answer of a server that may be on this machine."""
        if self._spins_left_out:
            self._spins_left_out -= 1
        else:
            self._spin_until = time.monotonic() + SPIN

    def _wait(self) -> list[tuple[int, int]]:
        """The next events, or none when a timer is due."""
        if self._spin_until:
            # To sleep and be woken takes longer than a server on this machine takes to answer
            until, self._spin_until = self._spin_until, 0.0
            while True:
                events = self._epoll.poll(0)
                if events:
                    self._spins_failed = 0
                    return events
                if time.monotonic() > until:
                    break
            self._spins_failed = min(self._spins_failed + 1, SPINS_LEFT_OUT)
            self._spins_left_out = self._spins_failed
        return self._epoll.poll(self._timeout())

    def _timeout(self) -> float:
        """Seconds until the next timer, rounded up to epoll's milliseconds; -1 is for ever."""
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        if not timers:
            return -1
        return max(0.0, timers[0][0] - time.monotonic())

    def _drop_cancelled(self) -> None:
        """Most are limits that are cancelled long before their time: there are never more of those than of others."""
        self._timers[:] = [entry for entry in self._timers if entry[2].callback is not None]
        heapq.heapify(self._timers)
        self._timers_kept = max(TIMERS_KEPT, 2 * len(self._timers))

    def _run_timers(self) -> None:
        now, timers = time.monotonic(), self._timers
        while timers and timers[0][0] <= now:
            callback = heapq.heappop(timers)[2].callback
            if callback is not None:
                callback()


def _poller() -> "select.epoll | Poller":
    if hasattr(select, "epoll"):
        return select.epoll()
    from pysocksify.polling import Poller

    return Poller()


def _several_processors() -> bool:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1
