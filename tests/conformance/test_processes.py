"""A wrapped program as a process: exit status, signals, standard streams, the background. Nothing connects."""

import os
import select
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.children import signal_group
from tests.lab.done import Done
from tests.lab.ways import Way, same_kernel
from tests.lab.wrapped import command, finish

VIA = "socks5://127.0.0.1:9"


def python(way: Way, script: str) -> list[str]:
    """The command line of a script, which every engine runs."""
    return [str(way.account.python), "-c", script]


def ended(way: Way, argv: Sequence[str], *, stdin: str = "") -> Done:
    """Runs a program to its end, wrapped."""
    return finish(command(way, argv, via=VIA), environment=way.environment, stdin=stdin)


@pytest.mark.parametrize("status", [0, 1, 255])
def test_exit_status(status: int, way: Way) -> None:
    assert ended(way, python(way, f"raise SystemExit({status})")).status == status


@pytest.mark.everywhere(only=same_kernel)
def test_standard_streams_and_exit_status(way: Way) -> None:
    script = "import sys; print(sys.stdin.read(), end=''); print('error', file=sys.stderr); sys.exit(7)"
    done = ended(way, python(way, script), stdin="through\n")
    assert (done.status, done.out, done.err) == (7, "through\n", "error\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE, signal.SIGINT])
def test_death_by_signal(number: signal.Signals, way: Way) -> None:
    script = (
        "import os, resource, signal; resource.setrlimit(resource.RLIMIT_CORE, (0, 0));"
        f" signal.signal({number.value}, signal.SIG_DFL) if {number.value} != signal.SIGKILL else None;"
        f" os.kill(os.getpid(), {number.value})"
    )
    assert ended(way, python(way, script)).status == -number


@pytest.mark.everywhere(only=same_kernel)
def test_death_by_signal_as_a_shell_sees_it(way: Way) -> None:
    line = shlex.join(command(way, python(way, "import os; os.kill(os.getpid(), 9)"), via=VIA))
    done = finish(["sh", "-c", f"{line}; echo $?"], environment=way.environment)
    assert done.out == "137\n", done


def test_a_missing_program(way: Way) -> None:
    done = ended(way, ["no-such-program-anywhere"])
    assert done.status == 127
    assert "no-such-program-anywhere" in done.err


def test_what_is_no_program(way: Way, folder: Path) -> None:
    file = folder / "no-program"
    file.touch(0o644)
    assert ended(way, [str(file)]).status == 126
    assert ended(way, ["/etc"]).status == 126


@contextmanager
def started(way: Way, argv: Sequence[str]) -> "Iterator[subprocess.Popen[bytes]]":
    """A wrapped program with a pipe from its standard output, in a session of its own, whose rest is ended after it."""
    with subprocess.Popen(
        command(way, argv, via=VIA),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=way.environment,
        cwd="/",
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            signal_group(process.pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    """Waits for the end of a process that isn't our child; False when it still runs after ten seconds."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], 10)[0])
    finally:
        os.close(pidfd)


@pytest.mark.everywhere(only=lambda way: same_kernel(way) or way.without == "wait_killable")
def test_its_supervisor_ends_too(way: Way) -> None:
    """Also when the program has ended before the supervisor began to serve it."""
    done = ended(way, python(way, "import os; print(os.getppid())"))
    assert gone(int(done.out)), "the supervisor is still there"


WAITS = (
    "import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); print(os.getpid(), flush=True); signal.pause()"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_killing_pysocksify_kills_the_program(number: signal.Signals, way: Way) -> None:
    with started(way, python(way, WAITS)) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(10) == -number
        assert gone(pid)


@pytest.mark.everywhere(only=same_kernel)
def test_killing_pysocksify_itself_kills_the_program(way: Way) -> None:
    """SIGKILL, of which it can tell the program nothing."""
    with started(way, python(way, WAITS)) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert gone(pid)


TAKES = (
    "import os, signal, sys; signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'taken\\n'), sys.exit(3)));"
    " os.write(1, b'ready\\n'); signal.pause()"
)


@pytest.mark.everywhere(only=same_kernel)
def test_a_program_may_take_a_signal(way: Way) -> None:
    with started(way, python(way, TAKES)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.stdout.readline() == b"taken\n"
        assert process.wait(10) == 3


def test_a_program_in_the_background_gives_the_prompt_back(way: Way, folder: Path) -> None:
    """The daemon reads a pipe that we hold open; the wrapper's status is there before its end."""
    fifo = folder / f"fifo-{way.account.name}"
    if not fifo.exists():
        os.mkfifo(fifo)
        fifo.chmod(0o644)
    script = (
        "import os\nchild = os.fork()\nif child: print(child, flush=True)\n"
        f"else:\n os.dup2(os.open(os.devnull, os.O_WRONLY), 1); open({str(fifo)!r}).read()"
    )
    with started(way, python(way, script)) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        with fifo.open("wb"):
            assert process.wait(10) == 0
            assert Path(f"/proc/{pid}").exists()
        assert gone(pid)
