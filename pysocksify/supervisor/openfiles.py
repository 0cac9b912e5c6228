"""Which sockets programs have open, by proc(5)."""

import errno
import os
from collections import Counter

from pysocksify.linux import looked_into


def sockets_open(pids: list[int], more_than: int = 0) -> set[int]:
    """The inodes of the sockets of which the processes have more than so many descriptors. What can't be read is passed
    over.

    OSError: nothing can be read, for want of descriptors.
    """
    inodes: Counter[int] = Counter()
    for pid in pids:
        links = _links(pid, "fd")
        if not links:  # its first thread may have ended: then others have the files
            links = next(filter(None, (_links(pid, f"task/{tid}/fd") for tid in _listed(f"/proc/{pid}/task"))), [])
        inodes.update(int(link[8:-1]) for link in links if link.startswith("socket:["))
    return {inode for inode, count in inodes.items() if count > more_than}


def _links(pid: int, folder: str) -> list[str]:
    """What the descriptors in a folder of a process are; none when it isn't ours to look into. OSError: as above."""
    try:
        return looked_into(pid, lambda: _read_links(f"/proc/{pid}/{folder}"))
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return []


def _read_links(folder: str) -> list[str]:
    links = []
    for name in _listed(folder):
        try:
            links.append(os.readlink(f"{folder}/{name}"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return links


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(root: int) -> list[int]:
    """The processes below `root`, by their parents in /proc/PID/stat; not `root` itself. OSError: as above."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # pid (comm) state ppid …; comm may hold anything, so look behind its last parenthesis
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                continue
            children.setdefault(parent, []).append(int(name))
    found, frontier = [], [root]
    while frontier:
        below = children.get(frontier.pop(), [])
        found += below
        frontier += below
    return found
