"""Counts over several processes: limits are exact, a dead worker's connections are taken out, metrics never go down."""

import os
import random
import signal
from collections.abc import Callable

import pytest

from pysocksify.codes import Command
from pysocksify.server.counting import WINDOW, Counter, Counts, Table

LIMIT = 20


def forked(function: Callable[[], None]) -> int:
    """The pid of a process that runs `function` and ends with status 0, or 1 if it raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(LIMIT)
            function()
            status = 0
        finally:
            os._exit(status)
    return pid


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(params=["single", "shared"])
def counter(request: pytest.FixtureRequest) -> Counter:
    counts = Counts.single() if request.param == "single" else Counts.shared(3, 1024)
    return counts.worker(0)


class TestLimits:
    def test_total(self, counter: Counter) -> None:
        counter.limit(total=2)
        assert [counter.enter("192.0.2.1"), counter.enter("192.0.2.2"), counter.enter("192.0.2.3")] == ["", "", "total"]
        counter.leave("192.0.2.1", None)
        assert counter.enter("192.0.2.3") == ""

    def test_source(self, counter: Counter) -> None:
        counter.limit(per_source=2)
        assert [counter.enter("192.0.2.1") for _ in range(3)] == ["", "", "source"]
        assert counter.enter("192.0.2.2") == ""
        counter.leave("192.0.2.1", None)
        assert [counter.enter("192.0.2.1") for _ in range(2)] == ["", "source"]

    def test_user(self, counter: Counter) -> None:
        counter.limit(per_user=1)
        for source in ("192.0.2.1", "192.0.2.2"):
            assert counter.enter(source) == ""
        assert counter.enter_user("ålice") == ""
        assert counter.enter_user("ålice") == "user"
        assert counter.enter_user("\udcff") == ""
        counter.leave("192.0.2.1", "ålice")
        assert counter.enter_user("ålice") == ""

    def test_a_source_and_a_user_of_one_name_are_two(self, counter: Counter) -> None:
        counter.limit(per_user=1, per_source=1)
        assert counter.enter("192.0.2.1") == ""
        assert counter.enter_user("192.0.2.1") == ""

    def test_who_came_before_there_was_a_limit_counts(self, counter: Counter) -> None:
        for _ in range(3):
            assert counter.enter("192.0.2.1") == ""
        counter.limit(total=10, per_source=3)
        assert counter.enter("192.0.2.1") == "source"
        counter.leave("192.0.2.1", None)
        assert counter.enter("192.0.2.1") == ""


class TestSums:
    def test_metrics(self) -> None:
        counts = Counts.shared(2, 1024)
        workers = [counts.worker(number) for number in range(2)]
        workers[0].limit(total=2)
        assert [workers[0].enter("a"), workers[1].enter("b"), workers[0].enter("c")] == ["", "", "total"]
        workers[0].ended(Command.CONNECT, "ok", 10, 1 << 40)
        workers[1].ended(Command.CONNECT, "ok", 5, 1)
        workers[1].ended(Command.BIND, "timed_out", 0, 0)
        workers[1].ended(Command.UDP_ASSOCIATE, "never heard of", 0, 0)
        workers[1].ended(Command(0x7F), "command_not_supported", 0, 0)
        workers[1].handshake_failed("login")
        workers[1].handshake_failed("never heard of")
        sums = counts.sums()
        assert (sums.active, sums.accepted, sums.died) == (2, 3, 0)
        assert (sums.bytes_up, sums.bytes_down) == (15, (1 << 40) + 1)
        assert sums.refused == {"total": 1, "source": 0, "user": 0}
        assert {key: value for key, value in sums.ended.items() if value} == {
            ("connect", "ok"): 2,
            ("bind", "timed_out"): 1,
            ("udp_associate", "other"): 1,
            ("other", "command_not_supported"): 1,
        }
        assert {key: value for key, value in sums.failed.items() if value} == {"login": 1, "other": 1}


class TestProcesses:
    """Workers that are processes, all at the same limits at once."""

    def test_limits_are_exact(self) -> None:
        """The number that entered is kept independently, by bytes in a pipe: never more than the limit."""
        counts = Counts.shared(4, 1024)
        limit, rounds = 7, 400
        reading, writing = os.pipe()
        os.set_blocking(reading, False)

        lock = counts._lock
        assert lock is not None

        def work(number: int) -> None:
            counter = counts.worker(number)
            counter.limit(total=limit, per_source=4)
            dice = random.Random(number)
            here: list[str] = []
            for _ in range(rounds):
                source = dice.choice(("192.0.2.1", "192.0.2.2", "192.0.2.3"))
                if not counter.enter(source):
                    here.append(source)
                lock.take()  # else a client that moves from one worker to another while they're read counts twice
                active = counts.sums().active
                lock.drop()
                assert active <= limit
                if here and dice.random() < 0.6:
                    counter.leave(here.pop(dice.randrange(len(here))), None)
            os.write(writing, b"".join(source[-1:].encode() for source in here))

        pids = [forked(lambda number=number: work(number)) for number in range(4)]  # type: ignore[misc]
        assert [status_of(pid) for pid in pids] == [0] * 4
        left = os.read(reading, 4096)
        os.close(reading)
        os.close(writing)
        sums = counts.sums()
        assert sums.active == len(left) <= limit
        assert sums.accepted == 4 * rounds
        assert sums.refused["total"] + sums.refused["source"] > 0
        assert all(left.count(source) <= 4 for source in (b"1", b"2", b"3"))

    def test_many_at_the_same_moment(self) -> None:
        """All workers only enter: exactly `limit` of all their attempts are let in, over and over."""
        for turn in range(20):
            counts = Counts.shared(4, 1024)
            reading, writing = os.pipe()

            def work(number: int, counts: Counts = counts, reading: int = reading, turn: int = turn) -> None:
                counter = counts.worker(number)
                counter.limit(per_source=5) if turn % 2 else counter.limit(per_user=5)
                os.read(reading, 1)
                for _ in range(5):
                    if not counter.enter("192.0.2.1"):
                        counter.enter_user("alice")

            pids = [forked(lambda number=number, work=work: work(number)) for number in range(4)]  # type: ignore[misc]
            os.write(writing, b"1234")
            assert [status_of(pid) for pid in pids] == [0] * 4
            os.close(reading)
            os.close(writing)
            sums = counts.sums()
            assert sums.refused["source" if turn % 2 else "user"] == 15

    def test_a_dead_worker(self) -> None:
        counts = Counts.shared(2, 1024)
        mine = counts.worker(0)
        mine.limit(total=4, per_user=3, per_source=3)

        def work() -> None:
            counter = counts.worker(1)
            for _ in range(3):
                counter.enter("192.0.2.1")
                counter.enter_user("alice")
            counter.ended(Command.CONNECT, "ok", 1, 2)
            os.kill(os.getpid(), signal.SIGKILL)

        assert status_of(forked(work)) == -signal.SIGKILL
        assert mine.enter("192.0.2.1") == "source"
        assert mine.enter("192.0.2.2") == ""
        assert mine.enter_user("alice") == "user"
        assert mine.enter("192.0.2.3") == "total"
        counts.bury(1)
        assert mine.enter("192.0.2.1") == ""
        assert mine.enter_user("alice") == ""
        sums = counts.sums()
        assert (sums.active, sums.accepted, sums.died, sums.bytes_up) == (2, 7, 1, 1)
        again = counts.worker(1)
        assert again.enter("192.0.2.1") == ""
        again.ended(Command.CONNECT, "ok", 1, 2)
        assert counts.sums().bytes_up == 2

    def test_one_that_dies_with_the_lock(self) -> None:
        counts = Counts.shared(2, 1024)

        def work() -> None:
            lock = counts._lock
            assert lock is not None
            lock.take()
            os.kill(os.getpid(), signal.SIGKILL)

        assert status_of(forked(work)) == -signal.SIGKILL
        mine = counts.worker(0)
        mine.limit(total=1)
        assert mine.enter("192.0.2.1") == ""


class TestTable:
    def test_what_lies_across_slots_is_not_found(self) -> None:
        """A key whose bytes appear between two others', and empty bytes between two."""
        import mmap

        table = Table(mmap.mmap(-1, Table.size(1024)), 0, 1024)
        one, two = 0x1111_0000_0000_0000, 0x0000_0000_2222_0000
        assert (table.put(one, 1), table.put(two, 2)) == (0, 0x2222_0000 & 1023 or 1)
        across = int.from_bytes((one.to_bytes(8, "little") + two.to_bytes(8, "little"))[4:12], "little")
        assert table.get(across) == 0
        assert (table.get(one), table.get(two)) == (1, 2)

    def test_entries_behind_an_empty_one_are_found(self) -> None:
        import mmap

        table = Table(mmap.mmap(-1, Table.size(1024)), 0, 1024)
        slots = [table.put((n << 32) | 1023, n) for n in range(1, 6)]
        assert slots == [1023, 1024, 1025, 1026, 1027]
        table.clear(1024)
        assert [table.get((n << 32) | 1023) for n in range(1, 6)] == [1, 0, 3, 4, 5]
        assert table.put((9 << 32) | 1023, 9) == 1024

    def test_full(self) -> None:
        """Without a limit everybody is let in; with one, whoever can't be counted is refused."""
        counts = Counts.shared(2, 1024)
        counter = counts.worker(0)
        for number in range(1024 + WINDOW + 1):
            assert counter.enter(f"source {number}") == ""
        counter.limit(per_source=3)
        refused = [number for number in range(200) if counter.enter(f"new {number}")]
        assert refused
        assert counter.enter("source 0") == ""
        assert counter.enter("source 0") == ""
        assert counter.enter("source 0") == "source"
        for number in range(1024 + WINDOW + 1):
            counter.leave(f"source {number}", None)
        assert [counter.enter(f"new {number}") for number in refused] == [""] * len(refused)
