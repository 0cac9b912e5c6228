"""What /proc says of processes that other programs started."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path


def parent(pid: int) -> int:
    """The parent of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))


def open_files(pid: int) -> list[str]:
    """What a process's descriptors are, as /proc/PID/fd has them: `socket:[…]`, `pipe:[…]`, a path."""
    folder = Path(f"/proc/{pid}/fd")
    found = []
    for name in os.listdir(folder):
        try:
            found.append(os.readlink(folder / name))
        except FileNotFoundError:
            continue  # closed since
    return found


def comes_true(condition: Callable[[], bool], timeout: float = 10.0) -> bool:
    """Whether something that tells nobody, such as a count in /proc, becomes true in so many seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True
