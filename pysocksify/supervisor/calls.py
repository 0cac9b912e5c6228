"""What an engine and the supervisor say to each other: a call that waits, and the signals it must not miss.

An engine that holds a thread of the target in a call keeps its signals away too. So the supervisor looks at what is
pending for waiting threads, and lets a call go when a signal would be delivered: -ERESTARTSYS, which the kernel turns
into EINTR or into the call issued again (signal(7)).
"""

import os
from enum import Enum, auto
from typing import Protocol

ERESTARTSYS = 512  # linux/errno.h; never seen by a program that has a signal to take
OTHERS_LOOKED_AT = 4  # threads of a process, for a stop; all are in it but for those in the middle of a disk's answer
LOOK_INTERVAL = 0.02  # seconds between looks at pending signals: below what a person at a keyboard notices


class Signalled(Enum):
    """How an engine's waiting calls hear of signals."""

    LOOKED_FOR = auto()
    """A thread that waits takes no signal: we look at what is pending, and let it go when one would be delivered."""

    UNSEEN = auto()
    """The kernel ends a waiting call behind our back: nothing is done on the program's own socket while it waits."""

    TOLD = auto()
    """The caller itself says that a signal has ended its wait (`Supervisor.interrupted`)."""


class CallRefused(Exception):
    """The call can't be carried; it fails with `errno`."""

    def __init__(self, errno: int) -> None:
        super().__init__(os.strerror(errno))
        self.errno = errno


class Call(Protocol):
    """One waiting call of the target."""

    tid: int
    """The calling thread, in the supervisor's PID namespace."""

    def answer(self, error: int, value: int = 0) -> bool:
        """Let the call return `value`, or fail with `error`. False: nobody waits for it any more."""
        ...

    def proceed(self) -> bool:
        """Let the kernel perform the call as it stands. Only for calls that can't open a way out."""
        ...

    def waits(self) -> bool:
        """Whether the caller is still there."""
        ...


class Signals:
    """Which waiting threads have a signal to take."""

    def __init__(self) -> None:
        self._shared_before: set[int] = set()

    def deliverable(self, tids: list[int]) -> set[int]:
        """The threads of `tids` whose calls must end now.

        A signal of the thread's own (SigPnd) counts at once. One that is pending for the whole process (ShdPnd) may be
        another thread's to take: it counts when it is still there at the second look, and for one thread of a process
        at a time, the leader first, as the kernel prefers it (complete_signal() in kernel/signal.c).

        A stop (Ctrl-Z) is pending for one thread only, and the process isn't stopped before all others have joined it
        (do_signal_stop()): when another thread stands, the waiting ones must go.
        """
        found: set[int] = set()
        shared: set[int] = set()
        served: set[int] = set()
        stopping: dict[int, bool] = {}
        looked_at = [(tid, _masks(tid)) for tid in tids]
        for tid, masks in sorted(looked_at, key=lambda each: each[0] != each[1]["Tgid"]):
            heard = ~(masks["SigBlk"] | masks["SigIgn"])
            if masks["SigPnd"] & heard:
                found.add(tid)
            elif masks["ShdPnd"] & heard:
                shared.add(tid)
                process = int(masks["Tgid"])
                if tid in self._shared_before and process not in served:
                    served.add(process)
                    found.add(tid)
            elif masks["Threads"] > 1 and not masks["State"]:
                process = masks["Tgid"]
                if process not in stopping:
                    stopping[process] = _is_stopping(process, set(tids))
                if stopping[process]:
                    found.add(tid)
        self._shared_before = shared
        return found


def process_of(tid: int) -> int:
    """The process (thread group) of a thread; the thread's own id when it's gone."""
    return _masks(tid)["Tgid"] or tid


def program_of(tid: int) -> str:
    """The name of the program that a thread runs, for messages."""
    try:
        with open(f"/proc/{tid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return f"process {tid}"


def _is_stopping(process: int, waiting: set[int]) -> bool:
    """Whether a thread of the process that doesn't wait for us stands."""
    try:
        tids = [int(name) for name in os.listdir(f"/proc/{process}/task")]
    except OSError:
        return False
    others = [tid for tid in tids if tid not in waiting]
    return any(_masks(tid)["State"] for tid in others[:OTHERS_LOOKED_AT])


def _masks(tid: int) -> dict[str, int]:
    """Tgid, Threads and the signal masks of /proc/TID/status (proc_pid_status(5)); zeros for a thread that is gone.

    State is 1 for a thread that is stopped by a signal.
    """
    masks = {"State": 0, "Tgid": 0, "Threads": 0, "SigPnd": 0, "ShdPnd": 0, "SigBlk": 0, "SigIgn": 0}
    try:
        fd = os.open(f"/proc/{tid}/status", os.O_RDONLY)
    except OSError:
        return masks
    try:
        text = os.read(fd, 8192)
    except OSError:
        return masks
    finally:
        os.close(fd)
    for line in text.split(b"\n"):
        key, _, value = line.partition(b":")
        name = key.decode()
        if name == "State":
            masks[name] = int(value.strip().startswith(b"T"))
        elif name in masks:
            masks[name] = int(value, 10 if name in ("Tgid", "Threads") else 16)
    return masks
