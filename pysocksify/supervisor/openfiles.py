"""Which sockets programs have open, by proc(5)."""

import errno
import os
from collections import Counter


def sockets_open(pids: list[int], more_than: int = 0) -> set[int]:
    """The inodes of the sockets of which the processes have more than so many descriptors. What can't be read is passed
    over.

    OSError: nothing can be read, for want of descriptors.
    """
    inodes: Counter[int] = Counter()
    for pid in pids:
        links = _links(f"/proc/{pid}/fd")
        if not links:  # its first thread may have ended: then others have the files
            links = next(
                filter(None, (_links(f"/proc/{pid}/task/{tid}/fd") for tid in _listed(f"/proc/{pid}/task"))), []
            )
        inodes.update(int(link[8:-1]) for link in links if link.startswith("socket:["))
    return {inode for inode, count in inodes.items() if count > more_than}


def _links(folder: str) -> list[str]:
    """What the descriptors in a folder are; none when it isn't ours to look into. OSError: as above."""
    links = []
    for name in _listed(folder):
        try:
            links.append(os.readlink(f"{folder}/{name}"))
        except OSError:
            continue
    return links


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
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
