"""Many threads at once, again and again: nothing hangs, and nothing stays open in the program or its supervisor."""

import pytest

from tests.lab import town
from tests.lab.processes import comes_true, open_files, parent
from tests.lab.targets import Target
from tests.lab.wrapped import Background, Run, Servers

THREADS = 100
KEPT = 32
"""Sockets that a supervisor may keep for what comes next: where it holds connections, where it answers names, …"""


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    return sum(file.startswith("socket:") for file in open_files(pid))


@pytest.mark.slow
def test_a_hundred_threads(run: Run, background: Background, target: Target, servers: Servers) -> None:
    """Two connects each, then twenty; every other connect is a non-blocking one."""
    words = [town.TARGET, str(target.ports["echo"]), str(THREADS)]
    child = background(run.way, run.at("").python("rounds.py", *words), via=servers("microsocks").url("socks5"))
    supervisor = parent(int(child.wait_line(r"^ready (\d+)")[1]))
    before, in_program = sockets(supervisor), set()
    for turn, connects in ((1, 2), (2, 20)):
        child.tell(str(connects))
        done, open_there = child.wait_line(rf"^round {turn}: (\d+) (\d+)", 40).groups()
        assert int(done) == THREADS * connects, child.log
        in_program.add(open_there)
        assert comes_true(lambda: sockets(supervisor) <= before + KEPT), open_files(supervisor)
    assert len(in_program) == 1, child.log
