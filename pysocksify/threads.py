"""Threads for blocking calls of a loop: who waits, whose turn it is, and what is given up.

Theory of operation. A *job* is a blocking call for a pool of threads. All but the call itself belongs to the loop's
thread: which jobs wait, whose turn it is, how many run. A job is handed to the threads when one of them is free for it
and not before, so one that is cancelled while it waits is gone without a trace. One that runs can't be stopped: it
holds its thread to its end, and counts for its source until then, whether or not anybody waits for it.

Who asks for jobs on behalf of others names the *source* of each. Sources take turns, and one gets a further thread only
while more are free than it holds: alone it has half of them, two have a third each, and there's one left for the next.
Without a source jobs run in their order, on all threads.
"""

import errno
import os
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from queue import SimpleQueue

    from pysocksify.polling import Waker
    from pysocksify.reactor import Reactor

T = TypeVar("T")
Answer = Callable[[T | None, BaseException | None], None]

BLOCKING_CALLS_AT_ONCE = 32  # as asyncio's default executor has on a large machine; getaddrinfo mostly waits


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

    def __init__(self, reactor: "Reactor", limit: int | None) -> None:
        self._reactor = reactor
        self._limit = BLOCKING_CALLS_AT_ONCE if limit is None else limit
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

        from pysocksify.reactor import READ  # here: it imports this

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


def _waker() -> "EventFd | Waker":
    if hasattr(os, "eventfd"):
        return EventFd()
    from pysocksify.polling import Waker

    return Waker()
