"""`user add`, `user remove` and `user list` as commands: with a pipe, and on a terminal."""

import os
import pty
import select
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pysocksify.server.user_commands import default_file, group
from pysocksify.server.users import Users, names

LIMIT = 20.0  # s for anything that has to happen
PROGRAM = (
    "import sys\n"
    "from pysocksify.errors import PysocksifyError\n"
    "from pysocksify.server.user_commands import group\n"
    "try:\n"
    "    group()\n"
    "except PysocksifyError as error:\n"
    "    sys.exit(str(error))\n"
)
COMMAND = [sys.executable, "-c", PROGRAM]


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=LIMIT)


def on_a_terminal(arguments: list[str], answers: list[bytes]) -> tuple[int, bytes]:
    """Status and screen of a command whose questions get these answers."""
    terminal, end = pty.openpty()
    command = subprocess.Popen([*COMMAND, *arguments], stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    screen, asked, deadline = b"", 0, time.monotonic() + LIMIT
    try:
        while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                screen += os.read(terminal, 1000)
            except OSError:  # EIO: nobody has the other side open any more
                break
            if screen.count(b"Password: ") + screen.count(b"Once more: ") > asked < len(answers):
                os.write(terminal, answers[asked] + b"\n")
                asked += 1
        else:
            command.kill()
    finally:
        os.close(terminal)
        status = command.wait(LIMIT)
    return status, screen


def test_add_list_remove(tmp_path: Path) -> None:
    path = str(tmp_path / "users")
    done = run("add", "alice", "--file", path, stdin=b"s3cret\n")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{path}: alice added\n", b"")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert run("add", "b:ob", "--file", path, stdin=b"two").returncode == 0
    done = run("add", "alice", "--file", path, stdin=b" other \r\nnext line\n")
    assert done.stdout.decode() == f"{path}: alice has a new password\n"
    assert run("list", "--file", path).stdout == b"alice\nb%3Aob\n"
    users = Users.read(path)
    assert users.verify(b"alice", b" other ")
    assert users.verify(b"b:ob", b"two")
    done = run("remove", "alice", "--file", path)
    assert (done.returncode, done.stdout.decode()) == (0, f"{path}: alice removed\n")
    done = run("remove", "alice", "--file", path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"{path}: alice: there is no such user\n"


@pytest.mark.parametrize(
    ("stdin", "reason"),
    [(b"", "a line with the password"), (b"\n", "1 to 255 bytes"), (b"x" * 256 + b"\n", "1 to 255 bytes")],
)
def test_no_password(tmp_path: Path, stdin: bytes, reason: str) -> None:
    done = run("add", "alice", "--file", str(tmp_path / "users"), stdin=stdin)
    assert done.returncode == 1
    assert reason in done.stderr.decode()
    assert not (tmp_path / "users").exists()


def test_a_password_of_255_bytes(tmp_path: Path) -> None:
    assert run("add", "alice", "--file", str(tmp_path / "users"), stdin=b"\xff" * 255 + b"\r\n").returncode == 0
    assert Users.read(str(tmp_path / "users")).verify(b"alice", b"\xff" * 255)


def test_never_on_the_command_line(tmp_path: Path) -> None:
    done = run("add", "alice", "s3cret", "--file", str(tmp_path / "users"))
    assert done.returncode != 0
    assert b"isn't given on the command line" in done.stderr
    assert b"s3cret" not in done.stderr
    assert not (tmp_path / "users").exists()


@pytest.mark.parametrize("name", ["", "a" * 256])
def test_a_name_that_cant_be(tmp_path: Path, name: str) -> None:
    done = run("add", name, "--file", str(tmp_path / "users"), stdin=b"x\n")
    assert done.returncode == 1
    assert b"a name has 1 to 255 bytes" in done.stderr


def test_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_file() == "/etc/pysocksify/users"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = f"{tmp_path}/.config/pysocksify/users"
    assert default_file() == path
    done = CliRunner().invoke(group, ["add", "alice"], input="s3cret\n")
    assert (done.exit_code, done.output) == (0, f"{path}: alice added\n")
    assert CliRunner().invoke(group, ["list"]).output == "alice\n"


def test_on_a_terminal(tmp_path: Path) -> None:
    path = str(tmp_path / "users")
    status, screen = on_a_terminal(["add", "alice", "--file", path], [b"s3cret", b"s3cret"])
    assert status == 0, screen
    assert b"s3cret" not in screen
    assert b"alice added" in screen
    assert Users.read(path).verify(b"alice", b"s3cret")


def test_on_a_terminal_it_asks_again_when_they_differ(tmp_path: Path) -> None:
    path = str(tmp_path / "users")
    status, screen = on_a_terminal(["add", "alice", "--file", path], [b"one", b"two", b"three", b"three"])
    assert status == 0, screen
    assert names(path) == [b"alice"]
    assert Users.read(path).verify(b"alice", b"three")
