"""The front with an engine that catches nothing: statuses, signals, job control, in real shells on real terminals."""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.wrapped import need

REPOSITORY = Path(__file__).parent.parent
NOBODY = 65534
PATIENCE = 15.0  # seconds until a test gives up

# A command like pysocksify, less the catching. Everything is imported before the user changes, as an ordinary user may
# not be able to read this interpreter. LINES lines come when the target ends, FLOOD lines at once.
LAUNCHER = """\
#!{python}
import os, resource, select, signal, sys, traceback
sys.path.insert(0, {repository!r})
sys.dont_write_bytecode = True
from pysocksify import front, linux

class Watcher:
    def __init__(self):
        self.epoll, self.callbacks = select.epoll(), {{}}
    def watch(self, fd, events, callback):
        self.callbacks[fd] = callback
        self.epoll.register(fd, events)
    def modify(self, fd, events):
        self.epoll.modify(fd, events)
    def unwatch(self, fd):
        self.epoll.unregister(fd)
        del self.callbacks[fd]

class Engine:
    def before_fork(self):
        self.lines, self.flood = int(os.environ.pop("LINES_AT_END", 0)), int(os.environ.pop("LINES_AT_START", 0))
        self.refusal = os.environ.pop("REFUSAL", "")
    def in_front(self):
        pass
    def in_target(self, command):
        if self.refusal:
            raise OSError(self.refusal)
    def in_supervisor(self, link):
        watcher = Watcher()
        link.on_target_end.append(lambda: [link.line(f"line {{number}}") for number in range(self.lines)])
        for number in range(self.flood):
            link.line(f"line {{number}} " + 200 * "x")
        link.attach(watcher)
        while link.descendants_left:
            for fd, events in watcher.epoll.poll():
                if fd in watcher.callbacks:
                    watcher.callbacks[fd](events)

uid = {uid}
if uid != os.getuid():
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    linux.prctl(4, 1)  # PR_SET_DUMPABLE: as after the exec of an ordinary user's own process
os._exit(front.run(sys.argv[1:], Engine(), write_line=lambda line: os.write(2, f"pysocksify: {{line}}\\n".encode()),
                   unset=os.environ.pop("UNSET", "").split()))
"""

# Says each signal that it gets, at once; ends with status 5 at the end of its input.
WITNESS = """\
import os, select, signal, sys
if "own-group" in sys.argv:
    os.setpgid(0, 0)
come, go = os.pipe()
os.set_blocking(go, False)
signal.set_wakeup_fd(go)
stops = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
for number in signal.valid_signals() - stops - {signal.SIGKILL, signal.SIGCHLD}:
    signal.signal(number, lambda *_: None)
os.write(1, b"ready %d %d\\n" % (os.getpid(), os.getppid()))
while True:
    ready = select.select([0, come], [], [])[0]
    if come in ready:
        for number in os.read(come, 64):
            size = b" %dx%d" % os.get_terminal_size(0) if number == signal.SIGWINCH and os.isatty(0) else b""
            os.write(1, b"got %d%s\\n" % (number, size))
    elif not os.read(0, 1):
        sys.exit(5)
"""

PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


@pytest.fixture(params=["self", pytest.param("nobody", marks=pytest.mark.root)])
def user(request: pytest.FixtureRequest) -> int:
    """The user id to run as."""
    if request.param == "self":
        return os.getuid()
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    return NOBODY


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that every user can write to, with the launcher `front` in it."""
    path = Path(tempfile.mkdtemp(prefix="front-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def front(folder: Path, user: int) -> str:
    """The command's path."""
    path = folder / "front"
    path.write_text(LAUNCHER.format(python=sys.executable, repository=str(REPOSITORY), uid=user))
    path.chmod(0o755)
    return str(path)


def run(*command: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **options)  # type: ignore[call-overload,no-any-return]


def ends(pid: int) -> bool:
    """Whether a process, anyone's child, ends."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], PATIENCE)[0])
    finally:
        os.close(pidfd)


def status_field(pid: int, field: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in text.splitlines() if line.startswith(field + ":"))


def settled(*pids: int) -> None:
    """Wait until processes sleep and have taken all signals: a stop within the millisecond of a SIGCONT undoes it."""
    deadline = time.monotonic() + PATIENCE
    while any(status_field(pid, "State") != "S" or int(status_field(pid, "ShdPnd"), 16) for pid in pids):
        assert time.monotonic() < deadline, "never at rest"
        time.sleep(0.002)


class Running:
    """A front with WITNESS, or another program that says "ready PID PPID", as target; leader of its own group."""

    def __init__(self, front: str, *target: str, **options: object) -> None:
        command = target or (PYTHON, "-c", WITNESS)
        self.front = subprocess.Popen(  # type: ignore[call-overload]
            [front, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, **options
        )
        ready = self.read_line().split()
        assert ready[0] == "ready", ready
        self.target, self.supervisor = int(ready[1]), int(ready[2])

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        if self.front.poll() is None:
            self.front.kill()
            self.front.wait()
        for stream in (self.front.stdin, self.front.stdout, self.front.stderr):
            if stream is not None:
                stream.close()

    def read_line(self) -> str:
        assert select.select([self.front.stdout], [], [], PATIENCE)[0], "nothing said"
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self.front.stdout.fileno(), 1)
            assert byte, f"ended after {line!r}"
            line += byte
        return line.decode()

    def signals(self) -> list[int]:
        """What the target says that it got, up to now.

        Signals are forwarded in order: what was sent before has arrived, once or twice, when a mark sent now has. A
        second mark is needed as the kernel may stack handlers, and the last one then runs first.
        """
        got: list[int] = []
        for marks in (1, 2):
            self.front.send_signal(signal.SIGRTMAX)
            while got.count(signal.SIGRTMAX) < marks:
                got.append(int(self.read_line().split()[1]))
        return [number for number in got if number != signal.SIGRTMAX]


class Terminal:
    """An interactive shell on a terminal of its own."""

    def __init__(self, *shell: str, folder: Path) -> None:
        self.master, slave = pty.openpty()
        self.shell = subprocess.Popen(
            shell,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "PS1": "prompt> ", "TERM": "dumb", "HOME": str(folder)},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.fchmod(slave, 0o666)  # for a target of another user that opens /dev/tty
        os.close(slave)
        self.seen = ""
        self.expect("prompt> ")

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.shell.kill()
        self.shell.wait()
        os.close(self.master)

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str) -> "re.Match[str]":
        """Read until a pattern is there; what stands up to its end is forgotten."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.seen)):
            left = deadline - time.monotonic()
            assert select.select([self.master], [], [], max(left, 0))[0], f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self.master, 4096).decode(errors="replace")
        self.seen = self.seen[match.end() :]
        return match

    def foreground(self, pid: int) -> None:
        """Wait until a process's group has the terminal."""
        deadline = time.monotonic() + PATIENCE
        while os.tcgetpgrp(self.master) != os.getpgid(pid):
            assert time.monotonic() < deadline, "never in the foreground"
            time.sleep(0.002)

    def command(self, line: str, pattern: str) -> "re.Match[str]":
        """Type a line and wait for its echo's end, then for what it says."""
        self.send(line + "\n")
        self.expect(r"\r\n")
        return self.expect(pattern)


@pytest.fixture(params=["bash", "dash"])
def terminal(request: pytest.FixtureRequest, folder: Path) -> Iterator[Terminal]:
    shells = {"bash": ("bash", "--norc", "--noprofile", "-i"), "dash": ("dash", "-i")}
    need(request.param)
    with Terminal(*shells[request.param], folder=folder) as terminal:
        yield terminal


# --- statuses


def test_exit_status(front: str) -> None:
    assert run(front, "sh", "-c", "exit 7").returncode == 7


@pytest.mark.parametrize("name", ["KILL", "SEGV", "TERM", "INT", "HUP", "PIPE", "ABRT", "USR1"])
def test_death_by_signal(front: str, name: str) -> None:
    assert run(front, "sh", "-c", f"kill -{name} $$").returncode == -signal.Signals[f"SIG{name}"]


def test_shell_sees_the_death(front: str) -> None:
    done = run("bash", "-c", f"{front} sh -c 'kill -9 $$'; echo $?; {front} sh -c 'kill -SEGV $$'; echo $?")
    assert done.stdout == "137\n139\n"
    assert "Killed" in done.stderr
    assert "Segmentation fault" in done.stderr
    assert "core dumped" not in done.stderr


def test_no_core_of_the_front(front: str, folder: Path) -> None:
    run("sh", "-c", f"ulimit -c unlimited; {front} sh -c 'ulimit -c 0; kill -SEGV $$'", cwd=folder)
    assert [path.name for path in folder.iterdir()] == ["front"]


def file(folder: Path, name: str, content: bytes, mode: int) -> str:
    path = folder / name
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


NOT_STARTED: list[tuple[str, Callable[[Path], str], int, str]] = [
    ("missing", lambda folder: "no-such-program", 127, "No such file or directory"),
    ("missing path", lambda folder: str(folder / "none"), 127, "No such file or directory"),
    ("empty name", lambda folder: "", 127, "No such file or directory"),
    ("directory", str, 126, "Is a directory"),
    ("not executable", lambda folder: file(folder, "x", b"#!/bin/sh\n", 0o644), 126, "Permission denied"),
    ("not a program", lambda folder: file(folder, "x", b"\x7fELF\0\0", 0o755), 126, "Exec format error"),
    ("no interpreter", lambda folder: file(folder, "x", b"#!/none\n", 0o755), 126, "interpreter"),
]


@pytest.mark.parametrize(
    ("make", "code", "reason"), [row[1:] for row in NOT_STARTED], ids=[row[0] for row in NOT_STARTED]
)
def test_not_started(front: str, folder: Path, make: Callable[[Path], str], code: int, reason: str) -> None:
    name = make(folder)
    done = run(front, name)
    assert done.returncode == code
    assert re.fullmatch(rf"pysocksify: {re.escape(name)}: .*{reason}.*\n", done.stderr)


def test_path_is_searched_as_execvp_does(front: str, folder: Path) -> None:
    for name, mode in (("first", 0o644), ("second", 0o755)):
        (folder / name).mkdir()
        file(folder / name, "prog", b'echo "$0" "$@"', mode)
    path = f"{folder}/none:{folder}/first:{folder}/second:/bin:/usr/bin"
    done = run(front, "prog", "a b", "-c", env={"PATH": path})
    assert (done.stdout, done.stderr) == (f"{folder}/second/prog a b -c\n", "")


def test_engine_that_cannot_catch(front: str) -> None:
    done = run(front, "echo", "ran", env=dict(os.environ, REFUSAL="no filter"))
    assert (done.returncode, done.stdout) == (125, "")
    assert "pysocksify: echo: can't be caught: no filter" in done.stderr


def privileged(folder: Path, kind: str) -> str:
    path = shutil.copy("/bin/true", folder / "privileged")
    if kind == "capabilities":  # struct vfs_cap_data, revision 2, effective: CAP_NET_RAW
        os.setxattr(path, "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
    else:
        os.chmod(path, 0o755 | (stat.S_ISUID if kind == "setuid" else stat.S_ISGID))
    return str(path)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="makes files of root's")
@pytest.mark.parametrize("kind", ["setuid", "setgid", "capabilities"])
def test_privileged_program(front: str, folder: Path, user: int, kind: str) -> None:
    if os.statvfs(folder).f_flag & os.ST_NOSUID:
        pytest.skip(f"{folder} is mounted nosuid")
    path = privileged(folder, kind)
    done = run(front, path)
    if user == 0:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 126
        assert kind in done.stderr
        assert "no_new_privs" in done.stderr


def test_setuid_script_is_an_ordinary_program(front: str, folder: Path) -> None:
    assert run(front, file(folder, "script", b"#!/bin/sh\nexit 3\n", 0o4755)).returncode == 3


# --- what the target inherits

SIGNAL_STATES = ["true", "trap '' HUP", "trap '' INT QUIT", "trap '' CHLD USR1", "trap '' TSTP TTIN TTOU"]


@pytest.mark.parametrize("prepare", SIGNAL_STATES)
def test_signal_dispositions_are_the_callers(front: str, prepare: str) -> None:
    look = "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status"
    assert run("bash", "-c", f"{prepare}; {front} {look}").stdout == run("bash", "-c", f"{prepare}; {look}").stdout


def test_signal_mask_is_the_callers(front: str) -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})

    command = ("grep", "SigBlk", "/proc/self/status")
    assert run(front, *command, preexec_fn=block).stdout == run(*command, preexec_fn=block).stdout


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_interrupt_ignored_in_the_background_stays_ignored(front: str, shell: str) -> None:
    done = run(shell, "-c", f"{front} sh -c 'kill -INT $$; echo survived' & wait")
    assert done.stdout == "survived\n"


def test_environment_is_the_callers(front: str) -> None:
    environment = {"A": "1", "PATH": os.environ["PATH"], "LANG": "C", "ODD": "\udcff"}
    done = subprocess.run([front, "env", "-0"], env=environment, capture_output=True, timeout=PATIENCE)
    assert sorted(done.stdout.split(b"\0")[:-1]) == sorted(os.fsencode(f"{k}={v}") for k, v in environment.items())


def test_given_locale_stays(front: str) -> None:
    environment = {"PATH": os.environ["PATH"], "LC_CTYPE": "C.UTF-8"}
    assert run(front, "env", env=environment).stdout == "".join(f"{k}={v}\n" for k, v in environment.items())


def test_unset(front: str) -> None:
    done = run(front, "env", env={"PATH": os.environ["PATH"], "ALL_PROXY": "x", "UNSET": "ALL_PROXY all_proxy"})
    assert "ALL_PROXY" not in done.stdout


@pytest.mark.parametrize("redirect", ["3>&1 7>&1", "<&-", ">&- 5>&2", "<&- >&- 5>&2 2>&-"])
def test_descriptors_are_the_callers(front: str, redirect: str, folder: Path) -> None:
    (folder / "look.py").write_text(
        "import os\n"
        "seen = sorted(os.listdir('/proc/self/fd'))\n"
        "with open('out', 'w') as out:\n"
        "    print(seen, file=out)\n"
    )
    look = f"{PYTHON} look.py"
    seen = []
    for command in (f"{front} {look}", look):
        run("sh", "-c", f"exec {redirect}; {command}", cwd=folder)
        seen.append((folder / "out").read_text())
        (folder / "out").unlink()
    assert seen[0] == seen[1]


def test_descriptor_limit_is_the_callers(front: str) -> None:
    assert run("sh", "-c", f"ulimit -S -n 300; {front} sh -c 'ulimit -n'").stdout == "300\n"


# --- signals sent by others

FORWARDED = ["TERM", "INT", "QUIT", "HUP", "USR1", "WINCH", "CONT", "ALRM", "URG"]


@pytest.mark.parametrize("name", FORWARDED)
@pytest.mark.parametrize("to", ["front", "group"])
def test_signal_reaches_the_target_once(front: str, name: str, to: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    with Running(front) as running:
        if to == "front":
            running.front.send_signal(number)
        else:
            os.killpg(running.front.pid, number)
        assert running.signals() == [number]
        running.front.stdin.close()
        assert running.front.wait(PATIENCE) == 5


@pytest.mark.parametrize("to", ["front", "group"])
def test_signal_reaches_a_target_in_a_group_of_its_own_once(front: str, to: str) -> None:
    with Running(front, PYTHON, "-c", WITNESS, "own-group") as running:
        if to == "front":
            running.front.send_signal(signal.SIGTERM)
        else:
            os.killpg(running.front.pid, signal.SIGTERM)
        assert running.signals() == [signal.SIGTERM]


def test_many_signals(front: str) -> None:
    with Running(front) as running:
        for _ in range(20):
            os.killpg(running.front.pid, signal.SIGTERM)
            assert running.signals() == [signal.SIGTERM]


def test_signals_while_the_target_ends(front: str) -> None:
    """Signals that the supervisor leaves unread don't hide the status that it sent."""
    for _ in range(5):
        with Running(front) as running:
            running.front.stdin.close()
            while running.front.poll() is None:
                running.front.send_signal(signal.SIGURG)
            assert running.front.returncode == 5


def test_terminating_signal_ends_both(front: str) -> None:
    with Running(front, "sh", "-c", "echo ready $$ $PPID; read x") as running:
        running.front.terminate()
        assert running.front.wait(PATIENCE) == -signal.SIGTERM
        assert ends(running.target)
        assert ends(running.supervisor)


def test_killed_front_kills_the_target(front: str) -> None:
    with Running(front) as running:
        running.front.kill()
        assert ends(running.target)
        assert ends(running.supervisor)


def test_killed_supervisor_ends_everything(front: str) -> None:
    script = "sleep 1000 & a=$!; setsid sleep 1000 & echo ready $$ $PPID; echo $a $!; wait"
    with Running(front, "sh", "-c", script, stderr=subprocess.PIPE) as running:
        others = [int(pid) for pid in running.read_line().split()]
        os.kill(running.supervisor, signal.SIGKILL)
        assert running.front.wait(PATIENCE) == 125
        said = running.front.stderr.read().decode()
        assert "pysocksify: the supervisor was killed by SIGKILL" in said
        assert all(ends(pid) for pid in (running.target, *others))


def test_supervisor_is_not_found_by_name(front: str) -> None:
    """The canary needs it: `pkill -f` must signal the front alone."""
    with Running(front) as running:
        os.kill(running.front.pid, signal.SIGUSR1)  # answered only when the supervisor serves
        running.read_line()
        assert status_field(running.supervisor, "Name") == "supervisor"
        assert Path(f"/proc/{running.supervisor}/cmdline").read_bytes().rstrip(b"\0").decode() == (
            f"supervisor of {running.target}"
        )


# --- descendants


def test_daemon_goes_on_and_the_prompt_is_back(front: str, folder: Path, user: int) -> None:
    os.mkfifo(folder / "fifo")
    os.chmod(folder / "fifo", 0o666)
    daemon = "cat fifo >copy; mv copy done"
    done = run("sh", "-c", f"{front} sh -c '({daemon}) </dev/null >/dev/null 2>&1 & echo $! $PPID' | cat", cwd=folder)
    pid, supervisor = map(int, done.stdout.split())
    assert status_field(supervisor, "Name") == "supervisor"
    (folder / "fifo").write_text("still here")
    assert ends(pid)
    assert (folder / "done").read_text() == "still here"
    assert ends(supervisor)


def test_pipes_end_when_the_target_closes_them(front: str) -> None:
    """The front and the supervisor hold none of the caller's descriptors but standard error."""
    script = "exec >&- 3>&-; read x"
    with subprocess.Popen(
        ["sh", "-c", f"exec 3>&1; exec {front} sh -c '{script}'"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], PATIENCE)[0]
        assert process.stdout.read() == b""
        assert process.poll() is None
        process.communicate(timeout=PATIENCE)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="makes a PID namespace")
@pytest.mark.parametrize("user", [0], ids=["root"])
def test_process_1_waits_for_descendants(front: str, user: int) -> None:
    script = f"{PYTHON} -c '{DAEMON}' & exec 3<&0; read x <&3; exit 9"
    process = subprocess.Popen(
        ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child", front, "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"orphan\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert process.stdout.read() == b"term\n"
        assert process.wait(PATIENCE) == 9


# Waits until it is another's child, then for SIGTERM.
DAEMON = """
import os, select, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
parent = os.getppid()
pidfd = os.pidfd_open(parent)
print("up", flush=True)
select.select([pidfd], [], [])
print("orphan", flush=True)
signal.sigwait({signal.SIGTERM})
print("term", flush=True)
"""


# --- lines for the person


def test_lines_come_before_the_end(front: str) -> None:
    done = run(front, "true", env=dict(os.environ, LINES_AT_END="100"))
    assert done.stderr == "".join(f"pysocksify: line {number}\n" for number in range(100))


def test_blocked_standard_error_blocks_no_signal(front: str) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    environment = dict(os.environ, LINES_AT_START="3000")
    with Running(front, stderr=writer, env=environment) as running:
        os.close(writer)
        assert running.signals() == []
        running.front.stdin.close()
        said = b""
        while data := os.read(reader, 65536):
            said += data
        assert running.front.wait(PATIENCE) == 5
    os.close(reader)
    lost = re.findall(rb"pysocksify: (\d+) lines lost", said)
    assert lost
    assert sum(map(int, lost)) + said.count(b"xxx\n") == 3000


def test_closed_standard_error(front: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([front, "sh", "-c", "exit 4"], stderr=writer, env=dict(os.environ, LINES_AT_END="3"))
    os.close(writer)
    assert done.returncode == 4


# --- at a terminal


def test_interrupt_at_the_terminal(front: str, terminal: Terminal) -> None:
    terminal.command(f"{front} sh -c 'echo up; exec sleep 1000'", "up")
    terminal.send("\x03")
    terminal.expect("prompt> ")
    terminal.command("echo status=$?", "status=130")


def test_interrupt_ends_a_loop_of_the_shell(front: str, folder: Path) -> None:
    """A shell ends its loop only when the command died by SIGINT."""
    with Terminal("bash", "--norc", "--noprofile", "-i", folder=folder) as terminal:
        file(folder, "up", b"#!/bin/sh\necho up; exec sleep 1000\n", 0o755)
        terminal.command("for i in 1 2 3; do ./front ./up; done", r"up\r\n")
        terminal.send("\x03")
        terminal.expect("prompt> ")
        assert "up" not in terminal.seen


def test_trapped_interrupt_comes_once(front: str, folder: Path, terminal: Terminal) -> None:
    (folder / "witness.py").write_text(WITNESS)
    terminal.command(f"{front} {PYTHON} witness.py", r"ready (\d+) (\d+)")
    terminal.send("\x03")
    terminal.expect("got 2\r\n")
    terminal.send("\x1c")  # Ctrl-\
    terminal.expect("got 3\r\n")
    terminal.send("\x03")
    terminal.expect("got 2\r\n")
    terminal.send("\x04")
    between = terminal.expect("(?s)(.*)prompt> ")[1]
    assert "got" not in between


def test_stop_and_foreground(front: str, folder: Path, terminal: Terminal) -> None:
    (folder / "witness.py").write_text(WITNESS)
    ready = terminal.command(f"{front} {PYTHON} witness.py", r"ready (\d+) (\d+)")
    target, supervisor = int(ready[1]), int(ready[2])
    for _ in range(5):
        settled(target, supervisor, int(status_field(supervisor, "PPid")))
        terminal.send("\x1a")
        terminal.expect("prompt> ")
        terminal.command("jobs", r"Stopped\s")
        terminal.expect("prompt> ")
        terminal.command("fg", "got 18\r\n")
    terminal.send("\x04")
    between = terminal.expect("(?s)(.*)prompt> ")[1]
    assert "got" not in between
    terminal.command("echo status=$?", "status=5")


def test_target_stopped_alone_stops_the_job(front: str, terminal: Terminal) -> None:
    pid = int(terminal.command(f"{front} sh -c 'echo up $$; read x; echo read $x'", r"up (\d+)")[1])
    os.kill(pid, signal.SIGSTOP)
    terminal.expect("prompt> ")
    terminal.command("jobs", r"Stopped|Suspended")
    terminal.expect("prompt> ")
    terminal.command("fg", "front")
    terminal.send("word\n")
    terminal.expect("read word")
    terminal.expect("prompt> ")


def test_continuing_the_target_continues_the_front(front: str, folder: Path) -> None:
    with Terminal("bash", "--norc", "--noprofile", "-i", folder=folder) as terminal:
        pid = int(terminal.command(f"{front} sh -c 'echo up $$; exec sleep 1000'", r"up (\d+)")[1])
        for victim in (pid, "%1"):
            terminal.send("\x1a")
            terminal.expect("Stopped.*\r\nprompt> ")
            terminal.command(f"kill -CONT {victim}", "prompt> ")
            state = ""
            deadline = time.monotonic() + PATIENCE
            while "Running" not in state and time.monotonic() < deadline:
                state = terminal.command("jobs", "(?s)(.*)prompt> ")[1]
            assert "Running" in state
            terminal.command("fg", "front")
            terminal.foreground(pid)
        terminal.send("\x03")
        terminal.expect("prompt> ")
        terminal.command("echo status=$?", "status=130")


def test_continue_sent_to_the_front_continues_the_target(front: str) -> None:
    with Running(front) as running:
        os.kill(running.target, signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(running.front.pid, os.WUNTRACED)[1])
        os.kill(running.front.pid, signal.SIGCONT)
        assert running.signals() == [signal.SIGCONT]


def test_a_stop_that_was_not_forwarded_keeps_nothing_stopped(front: str) -> None:
    """The group's stop stays pending in the supervisor where the front heard of it first."""
    with Running(front) as running:
        os.kill(running.supervisor, signal.SIGTSTP)
        os.kill(running.target, signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(running.front.pid, os.WUNTRACED)[1])
        os.kill(running.target, signal.SIGCONT)
        assert running.signals() == [signal.SIGCONT]


def test_stop_and_continue_in_a_storm(front: str) -> None:
    """However stops and continues cross, the front goes on in the end."""
    with Running(front) as running:
        for _ in range(200):
            os.kill(running.target, signal.SIGSTOP)
            os.kill(running.target, signal.SIGCONT)
        running.signals()


def test_window_size(front: str, folder: Path, terminal: Terminal) -> None:
    (folder / "witness.py").write_text(WITNESS)
    terminal.command(f"{front} {PYTHON} witness.py", "ready")
    for columns in (77, 78):
        fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("4H", 33, columns, 0, 0))
        terminal.expect(f"got 28 {columns}x33\r\n")
    terminal.send("\x04")
    between = terminal.expect("(?s)(.*)prompt> ")[1]
    assert "got" not in between


def test_background_reader_stops(front: str, terminal: Terminal) -> None:
    terminal.command(f"{front} cat &", "prompt> ")
    state = ""
    deadline = time.monotonic() + PATIENCE
    while "tty input" not in state and "Stopped" not in state and time.monotonic() < deadline:
        state = terminal.command("jobs", "(?s)(.*)prompt> ")[1]
    assert "tty input" in state or "Stopped" in state
    terminal.command("fg", "cat")
    terminal.send("word\n")
    terminal.expect("word\r\nword\r\n")
    terminal.send("\x04")
    terminal.expect("prompt> ")


def test_stop_behind_a_pager_that_does_not_read(front: str, folder: Path) -> None:
    """The whole job stops although the front's standard error is full."""
    with Terminal("bash", "--norc", "--noprofile", "-i", folder=folder) as terminal:
        command = (
            f"LINES_AT_START=3000 {front} sh -c 'echo up $$ >/dev/tty; exec sleep 1000' 2>&1 |"
            " (echo up $BASHPID >/dev/tty; read x </dev/tty; cat)"
        )
        pids = [int(pid) for pid in terminal.command(command, r"up (\d+)\r\nup (\d+)\r\n").groups()]
        settled(*pids)
        terminal.send("\x1a")
        terminal.expect("Stopped")
        terminal.expect("prompt> ")
        terminal.command("fg", "front")
        terminal.foreground(pids[0])
        settled(*pids)  # bash's `read` goes on after a SIGINT that came while it was stopped
        terminal.send("\x03")
        terminal.expect("prompt> ")


def test_interactive_shell_inside(front: str, folder: Path, terminal: Terminal) -> None:
    terminal.command(f"PS1='inner> ' {front} bash --norc --noprofile -i", "inner> ")
    terminal.command("sh -c 'echo up; exec sleep 1000'", "up")
    terminal.send("\x03")
    terminal.expect("inner> ")
    terminal.command("echo status=$?", "status=130")
    terminal.expect("inner> ")
    terminal.command("sh -c 'echo up; exec sleep 1000'", "up")
    terminal.send("\x1a")
    terminal.expect("inner> ")
    terminal.command("jobs", "Stopped")
    terminal.expect("inner> ")
    terminal.command("kill -9 %1; fg; exit 3", "prompt> ")
    terminal.command("echo status=$?", "status=3")
    terminal.expect("prompt> ")
    terminal.command("sh -c 'echo up; exec cat'", "up")  # the terminal is the outer shell's to give again
    terminal.send("\x03")
    terminal.expect("prompt> ")


def test_suspended_shell_inside(front: str, folder: Path) -> None:
    with Terminal("bash", "--norc", "--noprofile", "-i", folder=folder) as terminal:
        terminal.command(f"PS1='inner> ' {front} bash --norc --noprofile -i", "inner> ")
        terminal.command("suspend", "Stopped")
        terminal.expect("prompt> ")
        terminal.command("fg", "inner> ")
        terminal.command("exit 6", "prompt> ")
        terminal.command("echo status=$?", "status=6")
