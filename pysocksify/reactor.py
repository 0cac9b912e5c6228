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

A *job* is a blocking call for a pool of threads. All but the call itself belongs to the loop's thread: which jobs wait,
whose turn it is, how many run. A job is handed to the threads when one of them is free for it and not before, so one
that is cancelled while it waits is gone without a trace. One that runs can't be stopped: it holds its thread to its
end, and counts for its source until then, whether or not anybody waits for it. Who asks for jobs on behalf of others
names the *source* of each. Sources take turns, and one gets a further thread only while more are free than it holds:
alone it has half of them, two have a third each, and there's one left for the next. Without a source jobs run in their
order, on all threads.
"""

import errno
import heapq
import os
import select
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from queue import SimpleQueue

    from pysocksify.polling import Poller, Waker

T = TypeVar("T")
Answer = Callable[[T | None, BaseException | None], None]

READ, WRITE = 1, 4  # EPOLLIN, EPOLLOUT (sys/epoll.h)
SPIN = 100e-6  # seconds; the kernel's own busy polling takes 50 µs for a good value (net.core.busy_read, socket(7))
SPINS_LEFT_OUT = 1024  # after spins that were in vain, as many waits at the most go without one
TIMERS_KEPT = 128  # so many aren't worth a look at which were cancelled
BLOCKING_CALLS_AT_ONCE = 32  # as asyncio's default executor has on a large machine; getaddrinfo mostly waits


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

    def in_thread(self, function: Callable[[], T], callback: Answer[T]) -> "Job | None":
        """Run a blocking `function()` in a thread; `callback(value, error)` is called in the loop, later, also when no
        thread can be had. Returns what cancels it, or None where a loop has calls that can't be cancelled."""
        return self.threads().run(function, callback)

    def threads(self, name: str = "", limit: int = BLOCKING_CALLS_AT_ONCE) -> "Threads":
        """The threads of a name, `limit` of them at most: kinds of calls that mustn't keep each other waiting have
        threads of their own. Nothing is opened, imported or started for them before they're needed."""
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


class EventFd:
    """What wakes the loop from another thread, in one descriptor: eventfd(2)."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._fd

    def wake(self) -> None:
        """Make it readable. Any thread may call this."""
        os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Make it unreadable again."""
        os.eventfd_read(self._fd)

    def close(self) -> None:
        """Close it; nobody may wake any more."""
        os.close(self._fd)


class Job:
    """A blocking call for a thread; cancel() may be called at any moment, also after it ran."""

    __slots__ = ("_threads", "callback", "function", "source")

    def __init__(
        self, threads: "Threads", function: Callable[[], Any], callback: Answer[Any], source: str | None
    ) -> None:
        self._threads = threads
        self.function = function
        self.callback: Answer[Any] | None = callback
        self.source = source

    def cancel(self) -> None:
        """Make sure that the call isn't made, if it hasn't begun, and that nobody hears of it."""
        self.callback = None
        self._threads.forget(self)

    def answer(self, value: Any, error: BaseException | None) -> None:
        """Say what came of it, if anybody still wants to know."""
        callback, self.callback = self.callback, None
        if callback is not None:
            callback(value, error)


class Threads:
    """Daemon threads for blocking calls, so that a resolver that hangs never keeps the process from ending.

    Only `_handed`, `_answers` and `_event` are touched by the threads.
    """

    def __init__(self, reactor: Reactor, limit: int) -> None:
        self._reactor = reactor
        self._limit = limit
        self._waiting: OrderedDict[str | None, OrderedDict[Job, None]] = OrderedDict()  # by source, the next one first
        self._held: dict[str | None, int] = {}  # threads, by source
        self._running = 0
        self._count = 0
        self._handed: SimpleQueue[Job | None]
        self._answers: deque[tuple[Job, Any, BaseException | None]] = deque()
        self._event: EventFd | Waker | None = None
        self._closed = False

    def prepare(self) -> None:
        """Import and open now what the first call would. Raises OSError when there's no descriptor left for it."""
        if self._event is not None:
            return
        from queue import SimpleQueue  # here: threads are needed late or never
        from threading import Lock

        event = _waker()
        try:
            self._reactor.watch(event.fileno(), READ, self._collect)
        except OSError:
            event.close()
            raise
        self._handed = SimpleQueue()
        self._closing = Lock()  # nobody may write to the descriptor once its number can be another file's
        self._event = event

    def run(self, function: Callable[[], T], callback: Answer[T], source: str | None = None) -> Job:
        """Run `function()` when it's the turn of its source; `callback(value, error)` is called in the loop, later."""
        job = Job(self, function, callback, source)
        try:
            self.prepare()
        except OSError as error:
            self._fail(job, error)
        else:
            self._waiting.setdefault(source, OrderedDict())[job] = None
            self._hand_out()
        return job

    def forget(self, job: Job) -> None:
        """Let a job wait no longer; one that doesn't is no error."""
        jobs = self._waiting.get(job.source)
        if jobs is not None and job in jobs:
            del jobs[job]
            if not jobs:
                del self._waiting[job.source]

    def close(self) -> None:
        """Let the threads end, each after the call that it is in; no callback is called any more."""
        if self._event is None:
            return
        with self._closing:
            self._closed = True
            self._event.close()
        for _ in range(self._count):
            self._handed.put(None)

    def _hand_out(self) -> None:
        """Have all begin that may."""
        while (job := self._next()) is not None:
            if self._running == self._count and not self._start_one():
                if not self._count:
                    self._fail(job, BlockingIOError(errno.EAGAIN, "no thread can be started"))
                    self.forget(job)
                return
            self._waiting.move_to_end(job.source)
            self.forget(job)
            self._running += 1
            self._held[job.source] = self._held.get(job.source, 0) + 1
            self._handed.put(job)

    def _next(self) -> Job | None:
        """Whose turn it is; None: nobody's, or all who wait hold their share."""
        free = self._limit - self._running
        for source, jobs in self._waiting.items():
            if free > (0 if source is None else self._held.get(source, 0)):
                return next(iter(jobs))
        return None

    def _start_one(self) -> bool:
        from threading import Thread

        try:
            Thread(target=self._work, daemon=True).start()
        except RuntimeError:  # RLIMIT_NPROC, pids.max
            return False
        self._count += 1
        return True

    def _fail(self, job: Job, error: OSError) -> None:
        self._reactor.call_soon(lambda: job.answer(None, error))

    def _work(self) -> None:
        assert self._event is not None
        while (job := self._handed.get()) is not None:
            self._answers.append(_outcome(job))
            with self._closing:
                if self._closed:
                    return
                self._event.wake()

    def _collect(self, events: int) -> None:
        assert self._event is not None
        self._event.clear()
        while self._answers:
            job, value, error = self._answers.popleft()
            self._running -= 1
            self._held[job.source] -= 1
            if not self._held[job.source]:
                del self._held[job.source]
            self._hand_out()
            job.answer(value, error)


def _outcome(job: Job) -> tuple[Job, Any, BaseException | None]:
    if job.callback is None:  # cancelled on its way here
        return job, None, None
    try:
        return job, job.function(), None
    except Exception as error:  # handed to whoever waits for it, whatever it is
        return job, None, error


def _poller() -> "select.epoll | Poller":
    if hasattr(select, "epoll"):
        return select.epoll()
    from pysocksify.polling import Poller

    return Poller()


def _waker() -> "EventFd | Waker":
    if hasattr(os, "eventfd"):
        return EventFd()
    from pysocksify.polling import Waker

    return Waker()


def _several_processors() -> bool:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1
