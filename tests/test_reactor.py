"""The event loop: watches, timers, threads, tasks, and descriptor numbers that are used again."""

import errno
import gc
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from pysocksify.reactor import READ, TIMERS_KEPT, WRITE, InThread, Pause, Reactor, Ready, Steps, Task, Timer
from pysocksify.threads import Job


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    yield left, right
    left.close()
    right.close()


Pair = tuple[socket.socket, socket.socket]
Outcomes = list[tuple[Any, BaseException | None]]
LIMIT = 20.0  # s for anything that has to happen


def ending(reactor: Reactor, last: Callable[[], None]) -> Callable[[], None]:
    """A call that stops the reactor after `last`."""

    def call() -> None:
        last()
        reactor.stop()

    return call


def finish(reactor: Reactor, outcomes: Outcomes) -> Callable[[Any, BaseException | None], None]:
    """A `done` that keeps the outcome and stops the reactor."""

    def done(value: Any, error: BaseException | None) -> None:
        outcomes.append((value, error))
        reactor.stop()

    return done


class TestWatches:
    def test_tells_what_is_ready(self, reactor: Reactor, pair: Pair) -> None:
        seen: list[int] = []
        reactor.watch(pair[0].fileno(), READ, seen.append)
        pair[1].send(b"x")
        reactor.run_once()
        assert seen == [READ]

    def test_modify(self, reactor: Reactor, pair: Pair) -> None:
        seen: list[int] = []
        reactor.watch(pair[0].fileno(), READ, seen.append)
        reactor.modify(pair[0].fileno(), WRITE)
        pair[1].send(b"x")
        reactor.run_once()
        assert seen == [WRITE]

    def test_rewatch(self, reactor: Reactor, pair: Pair) -> None:
        """Other events, another callback; unwatch() ends it as any watch."""
        fd = pair[0].fileno()
        seen: list[tuple[str, int]] = []
        reactor.watch(fd, READ, lambda events: seen.append(("old", events)))
        pair[1].send(b"x")
        reactor.rewatch(fd, READ | WRITE, lambda events: seen.append(("new", events)))
        reactor.call_soon(lambda: None)
        reactor.run_once()
        assert seen == [("new", READ | WRITE)]
        reactor.unwatch(fd)
        reactor.watch(fd, READ, lambda events: None)

    def test_rewatch_without_epoll(self, monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
        monkeypatch.delattr(select, "epoll")
        reactor = Reactor()
        fd = pair[0].fileno()
        seen: list[int] = []
        reactor.watch(fd, READ, lambda events: seen.append(-1))
        reactor.rewatch(fd, 0, seen.append)
        pair[1].send(b"x")
        reactor.call_at(reactor.now(), lambda: None)
        reactor.run_once()
        assert seen == []
        reactor.rewatch(fd, READ | WRITE, seen.append)
        reactor.run_once()
        assert seen == [READ | WRITE]
        reactor.close()

    def test_rewatched_within_the_batch_gets_nothing_of_it(self, reactor: Reactor) -> None:
        links = [socket.socketpair() for _ in range(2)]
        fds = [left.fileno() for left, _ in links]
        seen: list[str] = []

        def first(fd: int, events: int) -> None:
            seen.append("first")
            for each in fds:
                reactor.rewatch(each, WRITE, lambda events: seen.append("next"))

        for fd in fds:
            reactor.watch(fd, WRITE, partial(first, fd))
        reactor.run_once()
        assert seen == ["first"]
        reactor.run_once()
        assert seen == ["first", "next", "next"]
        for left, right in links:
            left.close()
            right.close()

    def test_a_second_watch_is_refused(self, reactor: Reactor, pair: Pair) -> None:
        reactor.watch(pair[0].fileno(), READ, lambda events: None)
        with pytest.raises(FileExistsError):
            reactor.watch(pair[0].fileno(), READ, lambda events: None)

    def test_unwatch_is_forgiving(self, reactor: Reactor, pair: Pair) -> None:
        fd = pair[0].fileno()
        reactor.unwatch(fd)
        reactor.watch(fd, READ, lambda events: None)
        pair[0].close()
        reactor.unwatch(fd)
        reactor.unwatch(fd)

    def test_unwatched_within_the_batch_gets_nothing(self, reactor: Reactor) -> None:
        links = [socket.socketpair() for _ in range(2)]
        fds = [left.fileno() for left, _ in links]
        seen: list[int] = []

        def first_wins(fd: int, events: int) -> None:
            seen.append(fd)
            for other in fds:
                reactor.unwatch(other)

        for fd in fds:
            reactor.watch(fd, WRITE, partial(first_wins, fd))
        reactor.run_once()
        assert len(seen) == 1
        for left, right in links:
            left.close()
            right.close()

    def test_a_number_used_again_does_not_get_the_old_event(self, reactor: Reactor) -> None:
        links = [socket.socketpair() for _ in range(2)]
        for left, right in links:
            right.send(b"x")
            left.setblocking(False)
        silent, keep = socket.socketpair()
        seen: list[str] = []

        def replace(mine: int, other: socket.socket, events: int) -> None:
            if seen:
                return
            seen.append("first")
            number = other.fileno()
            reactor.unwatch(mine)
            reactor.unwatch(number)
            os.dup2(silent.fileno(), number)
            reactor.watch(number, READ, lambda events: seen.append("stale"))

        for index in range(2):
            mine, other = links[index][0], links[1 - index][0]
            reactor.watch(mine.fileno(), READ, partial(replace, mine.fileno(), other))
        reactor.call_at(reactor.now(), lambda: None)
        reactor.run_once()
        reactor.call_at(reactor.now(), lambda: None)
        reactor.run_once()
        assert seen == ["first"]
        for sock in (silent, keep, *links[0], *links[1]):
            sock.close()


class TestTimers:
    def test_in_their_order(self, reactor: Reactor) -> None:
        seen: list[str] = []
        now = reactor.now()
        reactor.call_at(now + 0.02, ending(reactor, lambda: seen.append("later")))
        reactor.call_at(now + 0.01, lambda: seen.append("sooner"))
        reactor.run()
        assert seen == ["sooner", "later"]
        assert reactor.now() >= now + 0.02

    def test_cancelled_ones_are_not_kept_until_their_time(self, reactor: Reactor) -> None:
        seen: list[str] = []
        now = reactor.now()
        reactor.call_at(now + 0.02, ending(reactor, lambda: seen.append("in time")))
        for number in range(10 * TIMERS_KEPT):
            reactor.call_at(now + 1000 + number % 7, lambda: None).cancel()
        gc.collect()
        assert sum(isinstance(thing, Timer) for thing in gc.get_objects()) <= TIMERS_KEPT
        reactor.run()
        assert seen == ["in time"]

    def test_cancelled(self, reactor: Reactor) -> None:
        seen: list[str] = []
        now = reactor.now()
        timers = [reactor.call_at(now, lambda: seen.append("cancelled")) for _ in range(3)]
        timers.append(reactor.call_at(now + 0.01, reactor.stop))
        for timer in timers[:3]:
            timer.cancel()
        reactor.run()
        timers[3].cancel()
        assert seen == []

    def test_soon_comes_before_waiting(self, reactor: Reactor) -> None:
        seen: list[str] = []
        reactor.call_soon(lambda: reactor.call_soon(ending(reactor, lambda: seen.append("second"))))
        reactor.run()
        assert seen == ["second"]


class TestThreads:
    def test_values_and_exceptions_come_to_the_loop(self, reactor: Reactor) -> None:
        answers: list[tuple[Any, BaseException | None]] = []

        def answered(value: Any, error: BaseException | None) -> None:
            assert threading.current_thread() is threading.main_thread()
            answers.append((value, error))
            if len(answers) == 2:
                reactor.stop()

        def fail() -> None:
            raise OSError("no such name")

        reactor.in_thread(lambda: 42, answered)
        reactor.in_thread(fail, answered)
        reactor.run()
        assert (42, None) in answers
        assert any(isinstance(error, OSError) for _, error in answers)

    def test_a_hundred_that_wait(self, reactor: Reactor) -> None:
        """More than there are threads: none is lost, none runs in the loop."""
        gate = threading.Event()
        count = 0

        def answered(value: Any, error: BaseException | None) -> None:
            nonlocal count
            count += 1
            if count == 100:
                reactor.stop()

        for _ in range(100):
            reactor.in_thread(gate.wait, answered)
        gate.set()
        reactor.run()
        assert count == 100

    def test_none_can_be_started(self, reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
        """RLIMIT_NPROC is reached: the call fails, the loop goes on."""

        def start(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        answers: list[BaseException | None] = []

        def answered(value: Any, error: BaseException | None) -> None:
            answers.append(error)
            reactor.stop()

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            reactor.in_thread(lambda: 42, answered)
            reactor.run()
        reactor.in_thread(lambda: 42, answered)
        reactor.run()
        assert [type(each) for each in answers] == [BlockingIOError, type(None)]

    def test_a_cancelled_job_that_waits_is_never_made(self, reactor: Reactor) -> None:
        gate, made = threading.Event(), []
        outcomes: Outcomes = []
        threads = reactor.threads("one", 1)
        threads.run(gate.wait, lambda value, error: outcomes.append((value, error)))
        jobs = [threads.run(lambda: made.append("cancelled"), finish(reactor, outcomes)) for _ in range(3)]
        threads.run(lambda: "last", finish(reactor, outcomes))
        for job in jobs:
            job.cancel()
            job.cancel()
        assert sum(map(len, threads._waiting.values())) == 1
        gate.set()
        reactor.run()
        assert made == []
        assert outcomes == [(True, None), ("last", None)]

    def test_nobody_hears_of_a_job_cancelled_while_it_runs(self, reactor: Reactor) -> None:
        begun, gate = threading.Event(), threading.Event()
        outcomes: Outcomes = []

        def call() -> None:
            begun.set()
            gate.wait()

        job = reactor.threads().run(call, finish(reactor, outcomes))
        assert begun.wait(LIMIT)
        job.cancel()
        gate.set()
        reactor.in_thread(lambda: "after", finish(reactor, outcomes))
        reactor.run()
        assert outcomes == [("after", None)]

    def test_a_job_cancelled_by_another_ones_answer(self, reactor: Reactor) -> None:
        outcomes: Outcomes = []
        jobs: list[Job] = []
        both = threading.Barrier(2)

        def answered(value: Any, error: BaseException | None) -> None:
            outcomes.append((value, error))
            for job in jobs:
                job.cancel()

        threads = reactor.threads()
        jobs.extend(threads.run(lambda: both.wait(LIMIT) * 0, answered) for _ in range(2))
        while threads._running:
            reactor.run_once()
        assert outcomes == [(0, None)]

    def test_kinds_of_calls_dont_wait_for_each_other(self, reactor: Reactor) -> None:
        gate = threading.Event()
        outcomes: Outcomes = []
        for _ in range(3):
            reactor.threads("slow", 2).run(gate.wait, lambda value, error: None)
        assert reactor.threads("slow")._count == 2
        reactor.in_thread(lambda: "quick", finish(reactor, outcomes))
        reactor.run()
        assert outcomes == [("quick", None)]
        gate.set()

    def test_one_source_leaves_threads_to_others(self, reactor: Reactor) -> None:
        """However many calls one has, and also when nobody waits for those that hang."""
        gate, outcomes = threading.Event(), Outcomes()
        threads = reactor.threads("eight", 8)

        def ignored(value: Any, error: BaseException | None) -> None:
            return

        hanging = [threads.run(gate.wait, ignored, "one") for _ in range(100)]
        assert threads._held == {"one": 4}
        for job in hanging[:4]:
            job.cancel()
        assert threads._held == {"one": 4}
        for _ in range(100):
            threads.run(gate.wait, ignored, "two")
        assert threads._held == {"one": 4, "two": 2}
        threads.run(lambda: "another's", finish(reactor, outcomes), "three")
        reactor.run()
        assert outcomes == [("another's", None)]
        gate.set()
        while threads._running or threads._waiting:
            reactor.run_once()
        assert threads._held == {}

    def test_sources_take_turns(self, reactor: Reactor) -> None:
        gate = threading.Event()
        made: list[str] = []
        threads = reactor.threads("one", 1)
        threads.run(gate.wait, lambda value, error: None)
        for source in ("a", "a", "a", "b", "b", "c"):
            threads.run(partial(made.append, source), lambda value, error: None, source)
        gate.set()
        while threads._running:
            reactor.run_once()
        assert made == ["a", "b", "c", "a", "b", "a"]

    def test_without_a_source_all_threads_in_order(self, reactor: Reactor) -> None:
        gate = threading.Event()
        made: list[int] = []
        threads = reactor.threads("two", 2)
        for _ in range(2):
            threads.run(gate.wait, lambda value, error: None)
        assert threads._running == 2
        for number in range(20):
            threads.run(partial(made.append, number), lambda value, error: None)
        gate.set()
        while threads._running:
            reactor.run_once()
        assert sorted(made) == list(range(20))

    def test_no_more_threads_than_can_be_started(self, reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
        """One is there, a second isn't to be had: what waits is done by the first, in turn."""
        start = threading.Thread.start
        started: list[threading.Thread] = []

        def start_one(self: threading.Thread) -> None:
            if started:
                raise RuntimeError("can't start new thread")
            started.append(self)
            start(self)

        monkeypatch.setattr(threading.Thread, "start", start_one)
        gate, answers = threading.Event(), Outcomes()
        reactor.in_thread(gate.wait, lambda value, error: answers.append((value, error)))
        reactor.in_thread(lambda: "next", finish(reactor, answers))
        gate.set()
        reactor.run()
        assert answers == [(True, None), ("next", None)]

    def test_no_room_to_begin_with(self, reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
        """The callback hears of it, later; once there's room it works."""
        answers: list[BaseException | None] = []

        def full(fd: int, events: int, callback: Callable[[int], None]) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def answered(value: Any, error: BaseException | None) -> None:
            answers.append(error)
            reactor.stop()

        before = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(reactor, "watch", full)
            reactor.in_thread(lambda: 42, answered)
            reactor.threads().run(lambda: 42, answered).cancel()
            assert answers == []
            reactor.run()
            assert [getattr(error, "errno", None) for error in answers] == [errno.ENOSPC]
        assert len(os.listdir("/proc/self/fd")) == before
        reactor.in_thread(lambda: 42, answered)
        reactor.run()
        assert answers[1] is None

    @pytest.mark.parametrize("ready", [False, True])
    def test_out_of_descriptors(self, ready: bool) -> None:
        """Nothing can be imported or opened any more: without prepare() the call fails, and only the call."""
        program = f"""if True:
            import errno, os, resource, sys
            from pysocksify.reactor import Reactor

            reactor = Reactor()
            if {ready}:
                reactor.threads().prepare()
            else:
                assert "queue" not in sys.modules
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
            outcomes = []
            def answered(value, error):
                outcomes.append((value, error and error.errno))
                reactor.stop()
            reactor.in_thread(lambda: 42, answered)
            reactor.run()
            os.write(1, repr(outcomes == [(42, None) if {ready} else (None, errno.EMFILE)]).encode())
            os._exit(0)  # where threads are, the interpreter's end takes a descriptor (glibc's pthread_exit)
        """
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=LIMIT, check=False)
        assert (done.stdout, done.stderr) == (b"True", b"")


class TestTasks:
    def test_waits_and_returns(self, reactor: Reactor, pair: Pair) -> None:
        outcomes: Outcomes = []

        def steps() -> Steps[bytes]:
            events = yield Ready(pair[0].fileno(), READ)
            assert events == READ
            yield Pause(0.001)
            number = yield InThread(lambda: 7)
            return pair[0].recv(10) + b"%d" % number

        reactor.spawn(steps(), finish(reactor, outcomes))
        pair[1].send(b"x")
        reactor.run()
        assert outcomes == [(b"x7", None)]

    def test_deadline(self, reactor: Reactor, pair: Pair) -> None:
        outcomes: Outcomes = []

        def steps() -> Steps[None]:
            yield Ready(pair[0].fileno(), READ, reactor.now() + 0.01)

        reactor.spawn(steps(), finish(reactor, outcomes))
        reactor.run()
        assert isinstance(outcomes[0][1], TimeoutError)
        reactor.watch(pair[0].fileno(), READ, lambda events: None)  # the task has let go of it

    def test_exceptions_of_a_thread_are_thrown(self, reactor: Reactor) -> None:
        outcomes: Outcomes = []

        def fail() -> None:
            raise OSError("no such name")

        def steps() -> Steps[str]:
            try:
                yield InThread(fail)
            except OSError as error:
                return str(error)
            return "nothing"

        reactor.spawn(steps(), finish(reactor, outcomes))
        reactor.run()
        assert outcomes == [("no such name", None)]

    def test_cancel_runs_finally_and_says_nothing(self, reactor: Reactor, pair: Pair) -> None:
        outcomes: Outcomes = []
        closed: list[bool] = []

        def steps() -> Steps[None]:
            try:
                yield Ready(pair[0].fileno(), READ)
            finally:
                closed.append(True)

        task = reactor.spawn(steps(), lambda value, error: outcomes.append((value, error)))
        task.cancel()
        task.cancel()
        assert closed == [True]
        assert outcomes == []
        reactor.watch(pair[0].fileno(), READ, lambda events: None)

    @pytest.mark.parametrize("then", ["waits", "returns", "raises"])
    def test_cancelled_by_what_it_does_itself(self, reactor: Reactor, then: str) -> None:
        outcomes: Outcomes = []
        closed: list[bool] = []
        tasks: list[Task[None]] = []

        def steps() -> Steps[None]:
            try:
                yield Pause(0)
                tasks[0].cancel()
                assert not closed
                closed.append(False)
                if then == "waits":
                    yield Pause(0)
                if then == "raises":
                    raise OSError("too late")
            finally:
                closed.append(True)

        tasks.append(reactor.spawn(steps(), lambda value, error: outcomes.append((value, error))))
        reactor.call_at(reactor.now() + 0.01, reactor.stop)
        reactor.run()
        assert closed == [False, True]
        assert outcomes == []

    def test_the_late_answer_of_a_cancelled_thread(self, reactor: Reactor) -> None:
        gate = threading.Event()

        def steps() -> Steps[None]:
            yield InThread(gate.wait)
            raise AssertionError("resumed")

        reactor.spawn(steps()).cancel()
        gate.set()
        reactor.in_thread(lambda: None, lambda value, error: reactor.stop())
        reactor.run()

    def test_a_cancelled_ones_call_is_never_made(self, reactor: Reactor) -> None:
        gate, made = threading.Event(), []

        def steps() -> Steps[None]:
            yield InThread(lambda: made.append("cancelled"))

        threads = reactor.threads(limit=1)
        reactor.in_thread(gate.wait, lambda value, error: None)
        reactor.spawn(steps()).cancel()
        assert not threads._waiting
        gate.set()
        reactor.in_thread(lambda: None, lambda value, error: reactor.stop())
        reactor.run()
        assert made == []

    def test_an_error_nobody_takes_is_not_lost(self, reactor: Reactor) -> None:
        def steps() -> Steps[None]:
            if reactor.now():
                raise ValueError("a bug")
            yield Pause(0)

        with pytest.raises(ValueError, match="a bug"):
            reactor.spawn(steps())


def test_close_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    reactor = Reactor()
    done: Outcomes = []
    reactor.in_thread(lambda: None, finish(reactor, done))
    reactor.run()
    reactor.close()
    assert done == [(None, None)]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_stop_that_comes_before_the_run(reactor: Reactor) -> None:
    """A target can have ended before the supervisor's loop begins."""
    reactor.stop()
    reactor.run()
    reactor.call_soon(reactor.stop)
    reactor.run()


def test_waits_no_longer_than_the_next_timer(reactor: Reactor) -> None:
    start = time.monotonic()
    reactor.call_at(start + 0.02, reactor.stop)
    reactor.run()
    assert 0.02 <= time.monotonic() - start < 5
