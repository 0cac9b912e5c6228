"""The front's own tests of signals and job control, with a target that is traced: nothing may be different.

As an ordinary user, where there is one: to a tracer it is all the same, except that root may do more.
"""

import os
import sys
from pathlib import Path

import pytest

from tests.test_front import (  # noqa: F401  # collected here, with this module's `front` and `user`
    NOBODY,
    REPOSITORY,
    folder,
    terminal,
    test_background_reader_stops,
    test_continue_sent_to_the_front_continues_the_target,
    test_continuing_the_target_continues_the_front,
    test_daemon_goes_on_and_the_prompt_is_back,
    test_death_by_signal,
    test_interactive_shell_inside,
    test_interrupt_at_the_terminal,
    test_killed_front_kills_the_target,
    test_killed_supervisor_ends_everything,
    test_many_signals,
    test_shell_sees_the_death,
    test_signal_dispositions_are_the_callers,
    test_signal_mask_is_the_callers,
    test_stop_and_continue_in_a_storm,
    test_stop_and_foreground,
    test_suspended_shell_inside,
    test_target_stopped_alone_stops_the_job,
    test_trapped_interrupt_comes_once,
)

# Everything is imported before the user changes, as an ordinary user may not be able to read this interpreter.
LAUNCHER = """\
#!{python}
import os, resource, sys, traceback
sys.path.insert(0, {repository!r})
sys.dont_write_bytecode = True
import pysocksify.__main__, pysocksify.cli, pysocksify.front, pysocksify.engines.ptrace.engine, ctypes
import pysocksify.engines.ptrace.serving, pysocksify.engines.syscalls.bpf, ptrace.binding.func
from pysocksify import linux

uid = {uid}
if uid != os.getuid():
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    linux.prctl(4, 1)  # PR_SET_DUMPABLE: as after the exec of an ordinary user's own process
sys.argv[1:1] = ["--engine", "ptrace", "--quiet", "--proxy", "socks5://127.0.0.1:9"]
sys.exit(pysocksify.__main__.main())
"""


@pytest.fixture
def user() -> int:
    """The user id to run as."""
    return NOBODY if os.getuid() == 0 else os.getuid()


@pytest.fixture
def front(folder: Path, user: int) -> str:  # noqa: F811
    """The command's path."""
    path = folder / "front"
    path.write_text(LAUNCHER.format(python=sys.executable, repository=str(REPOSITORY), uid=user))
    path.chmod(0o755)
    return str(path)
