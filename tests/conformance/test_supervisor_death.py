"""A dead supervisor: nothing goes out direct, a connect fails at once, the front says so and ends the program."""

import os
import signal

import pytest

from tests.lab import town
from tests.lab.processes import parent
from tests.lab.targets import Target
from tests.lab.ways import even_auto
from tests.lab.wrapped import Background, Run, Servers


@pytest.mark.everywhere(only=even_auto)
def test_killed_supervisor(
    run: Run, background: Background, lab_town: town.Town, target: Target, servers: Servers
) -> None:
    via = servers("bundled").url("socks5", town.PROXY_FROM_OPEN)
    words = run.at(town.TARGET).python("lines.py", town.TARGET, str(target.ports["watch"]))
    direct, before = lab_town.direct(), target.log.mark()
    child = background(run.way, words, via=via, namespace=lab_town.open)
    pid = int(child.wait_line(r"^ready (\d+)")[1])
    child.tell("")
    child.wait_line("^connected$")
    target.log.wait(before, lambda event: event.what == "connected")
    mark = target.log.mark()
    os.kill(parent(pid), signal.SIGKILL)
    child.tell("")
    assert child.wait(10) != 0
    assert child.log.count("connected") == 1
    child.wait_line("supervisor")
    assert not [event for event in target.log.since(mark) if event.what == "connected"]
    assert lab_town.direct() == direct
