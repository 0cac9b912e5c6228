"""Counts of clients and connections: what limits are compared with and what the metrics show, over all workers.

Theory of operation. Each worker has a region of memory that it alone writes; regions are anonymous shared memory, made
before the fork, so that every process reads all of them. A region holds cells (numbers, each written in one store) and
two tables, in which a source's or a user's connections of this worker are counted. A sum over the regions is taken
only to compare it with a limit. That comparison and the count that follows it are one step, under a lock of all
workers; everything else needs no lock, because a sum read a moment early is too high at most, and refuses what would
have fitted a moment later. The lock is fcntl(2)'s record lock: the kernel drops it when its holder dies. In one process
there is one thread that counts, and no lock at all.

A worker that died leaves its connections in its region: the master calls bury(), which takes them out and keeps the
metrics, whose numbers never go down. The next worker of that number goes on with the region.

A table has open addressing: its key is a keyed hash of 64 bits (nobody outside can choose sources that collide), which
lies within WINDOW slots from where the hash points, whatever is empty between. Entries never move, so that reading
needs no lock. There are twice as many slots as the process may have descriptors, SLOTS_LIMIT at most: a window that is
full means more than about a hundred thousand different sources at once in one worker. Who can't be counted then is
refused as if the limit were reached, while there is one; whoever has connections already isn't concerned.
"""

import fcntl
import hashlib
import mmap
import os
import resource
import sys
import tempfile
from array import array
from dataclasses import dataclass

from pysocksify.codes import Command
from pysocksify.errors import Cause

WINDOW = 64
SLOTS_LEAST = 1024
SLOTS_LIMIT = 1 << 18
_CELL = 8  # bytes
_EMPTY = bytes(_CELL)

TOTAL, SOURCE, USER = "total", "source", "user"  # the limits, as enter() and enter_user() name them
LIMITS = (TOTAL, SOURCE, USER)
COMMANDS = (*(command.name.lower() for command in Command), "other")
OUTCOMES = ("ok", "reset", "client_gone", *(cause.name.lower() for cause in Cause), "other")
FAILURES = ("closed", "login", "protocol", "timeout", "other")  # of handshakes, before there is a request

# A region's cells, in their order: the name of a metric and its labels' values.
ACTIVE = 0
ACCEPTED = 1
DIED = 2  # written by the master, while there is no worker
BYTES_UP, BYTES_DOWN = 3, 4
_REFUSED = {limit: 5 + index for index, limit in enumerate(LIMITS)}
_FAILED = {failure: 5 + len(_REFUSED) + index for index, failure in enumerate(FAILURES)}
_ENDED = {
    (command, outcome): 5 + len(_REFUSED) + len(_FAILED) + index
    for index, (command, outcome) in enumerate((command, outcome) for command in COMMANDS for outcome in OUTCOMES)
}
_CELLS = 5 + len(_REFUSED) + len(_FAILED) + len(_ENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """All workers' numbers at one moment. All but `active` only grow; bytes count when their connection has ended."""

    active: int
    accepted: int
    died: int
    bytes_up: int
    bytes_down: int
    refused: dict[str, int]
    failed: dict[str, int]
    ended: dict[tuple[str, str], int]


class Counts:
    """The counts of a server of one process, or of all its workers. Make it before the workers are forked."""

    def __init__(self, regions: "list[Region]", lock: "Lock | None") -> None:
        self._regions = regions
        self._lock = lock
        self._secret = os.urandom(16)

    @classmethod
    def single(cls) -> "Counts":
        """For a process without workers."""
        return cls([Region(None, 0)], None)

    @classmethod
    def shared(cls, workers: int, slots: int | None = None) -> "Counts":
        """For so many workers, numbered from 0. `slots` of each table: a power of two."""
        if slots is None:
            slots = _slots(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        return cls([Region(mmap.mmap(-1, Region.size(slots)), slots) for _ in range(workers)], Lock())

    def worker(self, number: int) -> "Counter":
        """What worker `number` counts with. Ask for it in that worker's process."""
        own = self._regions[number]
        others = [region for region in self._regions if region is not own]
        return Counter(own, others, self._lock, self._secret)

    def bury(self, number: int) -> None:
        """Worker `number` died: its connections are no more. For the master, before it starts another."""
        self._regions[number].bury()

    def sums(self) -> Sums:
        """What all workers have counted until now. Any thread and any process may ask."""

        def total(cell: int) -> int:
            return sum(region.cells[cell] for region in self._regions)

        return Sums(
            active=total(ACTIVE),
            accepted=total(ACCEPTED),
            died=total(DIED),
            bytes_up=total(BYTES_UP),
            bytes_down=total(BYTES_DOWN),
            refused={limit: total(cell) for limit, cell in _REFUSED.items()},
            failed={failure: total(cell) for failure, cell in _FAILED.items()},
            ended={key: total(cell) for key, cell in _ENDED.items()},
        )


class Counter:
    """What one worker counts with. Not thread-safe: the reactor's thread alone calls it."""

    def __init__(self, own: "Region", others: "list[Region]", lock: "Lock | None", secret: bytes) -> None:
        self._cells = own.cells
        self._other_cells = [region.cells for region in others]
        self._lock = lock
        self._sources = Tally(own.sources, [region.sources for region in others], secret)
        self._users = Tally(own.users, [region.users for region in others], secret)
        self.limit()

    def limit(self, *, total: int | None = None, per_user: int | None = None, per_source: int | None = None) -> None:
        """Set the limits, None for none. They apply to who comes from now on, and count who is there already."""
        self._total = total
        self._per_user = per_user
        self._per_source = per_source

    def enter(self, source: str) -> str:
        """A client has come from `source`. "" and it is counted until leave(); else the limit that is
        reached, "total" or "source", and it isn't."""
        cells = self._cells
        cells[ACCEPTED] += 1
        lock = self._lock if self._total is not None or self._per_source is not None else None
        if lock is not None:
            lock.take()
        try:
            reached = self._reached(source)
            if not reached:
                cells[ACTIVE] += 1
        finally:
            if lock is not None:
                lock.drop()
        if reached:
            cells[_REFUSED[reached]] += 1
        return reached

    def _reached(self, source: str) -> str:
        if self._total is not None:
            active: int = self._cells[ACTIVE] + sum(cells[ACTIVE] for cells in self._other_cells)
            if active >= self._total:
                return TOTAL
        return "" if self._sources.add(source, self._per_source) else SOURCE

    def enter_user(self, user: str) -> str:
        """A client that has entered is this user. "" and it is counted until leave(); else "user"."""
        lock = self._lock if self._per_user is not None else None
        if lock is not None:
            lock.take()
        try:
            entered = self._users.add(user, self._per_user)
        finally:
            if lock is not None:
                lock.drop()
        if entered:
            return ""
        self._cells[_REFUSED[USER]] += 1
        return USER

    def leave(self, source: str, user: str | None) -> None:
        """A client whose enter() gave "" has gone; `user` is the one whose enter_user() gave "" too, or None."""
        self._cells[ACTIVE] -= 1
        self._sources.remove(source)
        if user is not None:
            self._users.remove(user)

    def ended(self, command: Command, outcome: str, up: int, down: int) -> None:
        """A request has come to its end: `outcome` is one of OUTCOMES (a Cause's name in lower case), and the bytes
        that were relayed."""
        cells = self._cells
        cell = _ENDED.get((command.name.lower(), outcome))
        if cell is None:
            name = command.name.lower() if command.assigned else "other"
            cell = _ENDED[name, outcome if outcome in OUTCOMES else "other"]
        cells[cell] += 1
        cells[BYTES_UP] += up
        cells[BYTES_DOWN] += down

    def handshake_failed(self, failure: str) -> None:
        """A client came to no request: `failure` is one of FAILURES."""
        self._cells[_FAILED.get(failure, _FAILED["other"])] += 1


class Tally:
    """How many connections each source, or user, has: this worker's in a dict, the other workers' in their tables."""

    def __init__(self, own: "Table | None", others: "list[Table | None]", secret: bytes) -> None:
        self._own = own
        self._others = [table for table in others if table is not None]
        self._secret = secret
        self._mine: dict[str, tuple[int, int, int]] = {}  # connections, hash, slot

    def add(self, name: str, limit: int | None) -> bool:
        """Count one connection more, or return False when there are `limit` of them, or no room to count them."""
        own = self._own
        known = self._mine.get(name)
        if known is not None:
            count, key, slot = known
        else:
            count, key, slot = 0, 0 if own is None else self._hash(name), -1
        if limit is not None and count + sum(table.get(key) for table in self._others) >= limit:
            return False
        if own is not None:
            if slot >= 0:
                own.set(slot, count + 1)
            else:
                slot = own.put(key, count + 1)
                if slot < 0 and limit is not None:
                    return False
        self._mine[name] = (count + 1, key, slot)
        return True

    def remove(self, name: str) -> None:
        """Count one connection less."""
        count, key, slot = self._mine[name]
        if count > 1:
            self._mine[name] = (count - 1, key, slot)
            if slot >= 0 and self._own is not None:
                self._own.set(slot, count - 1)
        else:
            del self._mine[name]
            if slot >= 0 and self._own is not None:
                self._own.clear(slot)

    def _hash(self, name: str) -> int:
        data = name.encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(data, digest_size=_CELL, key=self._secret).digest(), sys.byteorder) or 1


class Region:
    """One worker's memory: cells, and the tables of sources and users. Without memory: cells only."""

    def __init__(self, memory: mmap.mmap | None, slots: int) -> None:
        self.sources: Table | None = None
        self.users: Table | None = None
        if memory is None:
            self.cells = memoryview(array("Q", [0] * _CELLS))
        else:
            self.cells = memoryview(memory)[: _CELLS * _CELL].cast("Q")
            start = _CELLS * _CELL
            self.sources = Table(memory, start, slots)
            self.users = Table(memory, start + Table.size(slots), slots)

    @staticmethod
    def size(slots: int) -> int:
        """Bytes of a region whose tables have so many slots."""
        return _CELLS * _CELL + 2 * Table.size(slots)

    def bury(self) -> None:
        """Forget who is there, and keep what was."""
        self.cells[DIED] += 1
        self.cells[ACTIVE] = 0
        for table in (self.sources, self.users):
            if table is not None:
                table.forget()


class Table:
    """Hashes and counts in shared memory: one process writes, all read. The windows of the last slots go past them."""

    def __init__(self, memory: mmap.mmap, start: int, slots: int) -> None:
        self._memory = memory
        self._start = start
        self._mask = slots - 1
        size = (slots + WINDOW) * _CELL
        self._keys = memoryview(memory)[start : start + size].cast("Q")
        self._counts = memoryview(memory)[start + size : start + 2 * size].cast("Q")

    @staticmethod
    def size(slots: int) -> int:
        """Bytes of a table with so many slots."""
        return 2 * (slots + WINDOW) * _CELL

    def get(self, key: int) -> int:
        """The count of a hash, 0 for one that isn't there."""
        slot = self._find(key, key.to_bytes(_CELL, sys.byteorder))
        count: int = self._counts[slot] if slot >= 0 else 0
        return count

    def put(self, key: int, count: int) -> int:
        """Enter a hash that isn't there; its slot, or -1 when its window is full."""
        slot = self._find(key, _EMPTY)
        if slot >= 0:
            self._counts[slot] = count
            self._keys[slot] = key
        return slot

    def set(self, slot: int, count: int) -> None:
        """Change the count in a slot that put() gave."""
        self._counts[slot] = count

    def clear(self, slot: int) -> None:
        """Take out what is in a slot."""
        self._keys[slot] = 0

    def forget(self) -> None:
        """Take out everything."""
        self._keys[:] = memoryview(bytes(self._keys.nbytes)).cast("Q")

    def _find(self, key: int, wanted: bytes) -> int:
        """The first slot of the window of `key` that holds `wanted`, or -1."""
        first = self._start + (key & self._mask) * _CELL
        end = first + WINDOW * _CELL
        at = self._memory.find(wanted, first, end)
        while at >= 0:
            slot, across = divmod(at - self._start, _CELL)
            if not across:
                return slot
            at = self._memory.find(wanted, at + 1, end)
        return -1


class Lock:
    """One lock for all processes that were forked with it; the kernel drops it when its holder dies (fcntl(2))."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("pysocksify counts", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self._fd = os.dup(file.fileno())

    def take(self) -> None:
        """Wait until no other process has it."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def drop(self) -> None:
        """Let the next one have it."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN)


def _slots(descriptors: int) -> int:
    """As many slots as make a table's windows never full in practice: a connection has a descriptor at least."""
    wanted = 2 * descriptors if 0 <= descriptors < SLOTS_LIMIT else SLOTS_LIMIT
    return min(max(1 << (wanted - 1).bit_length() if wanted else 0, SLOTS_LEAST), SLOTS_LIMIT)
