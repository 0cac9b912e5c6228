"""A dead supervisor: nothing goes out direct, a connect fails at once, the front says so and ends the program."""

import os
import signal
from pathlib import Path

import pytest

from tests.lab import town
from tests.lab.accounts import Account
from tests.lab.targets import Target
from tests.lab.wrapped import Background, PlaceOf, Servers

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces"),
]


def parent(pid: int) -> int:
    """The parent of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))


def test_killed_supervisor(
    account: Account, background: Background, place: PlaceOf, lab_town: town.Town, target: Target, servers: Servers
) -> None:
    via = servers("bundled").url("socks5", town.PROXY_FROM_OPEN)
    words = place(account, town.TARGET).python("lines.py", town.TARGET, str(target.ports["watch"]))
    direct, before = lab_town.direct(), target.log.mark()
    child = background(account, words, via=via, namespace=lab_town.open)
    pid = int(child.wait_line(r"^ready (\d+)")[1])
    assert child.process.stdin is not None
    child.process.stdin.write(b"\n")
    child.process.stdin.flush()
    child.wait_line("^connected$")
    target.log.wait(before, lambda event: event.what == "connected")
    mark = target.log.mark()
    os.kill(parent(pid), signal.SIGKILL)
    try:
        child.process.stdin.write(b"\n")
        child.process.stdin.flush()
    except BrokenPipeError:
        pass  # ended already
    assert child.wait(10) != 0
    assert child.log.count("connected") == 1
    assert "supervisor" in child.log, child.log
    assert not [event for event in target.log.since(mark) if event.what == "connected"]
    assert lab_town.direct() == direct
