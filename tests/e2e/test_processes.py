"""pysocksify as a process: exit status, signals, refusals. Needs no network and no root but where it says so."""

import os
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysocksify import __version__
from tests.lab.accounts import Account
from tests.lab.children import signal_group
from tests.lab.wrapped import Done, command, finish

VIA = "socks5://127.0.0.1:9"  # nothing connects in these tests


@pytest.fixture(params=[pytest.param("root", marks=pytest.mark.root), "user"])
def account(request: pytest.FixtureRequest) -> Account:
    """Both accounts, one after the other."""
    found: Account = request.getfixturevalue(f"{request.param}_account")
    return found


def run(account: Account, argv: Sequence[str], *, options: Sequence[str] = (), stdin: str = "") -> Done:
    return finish(command(account, argv, via=VIA, options=options), environment=account.environment, stdin=stdin)


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status(status: int, account: Account) -> None:
    assert run(account, ["sh", "-c", f"exit {status}"]).status == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGPIPE, signal.SIGINT])
def test_death_by_signal(number: signal.Signals, account: Account) -> None:
    assert run(account, ["sh", "-c", f"ulimit -c 0; kill -{number.value} $$"]).status == -number


def test_death_by_signal_as_a_shell_sees_it(account: Account) -> None:
    line = " ".join([*account.pysocksify, "-p", VIA])
    script = f"{line} sh -c 'kill -9 $$'; echo $?"
    done = finish(account.command("sh", "-c", script), environment=account.environment)
    assert done.out == "137\n", done


def test_a_missing_program(account: Account) -> None:
    done = run(account, ["no-such-program-anywhere"])
    assert done.status == 127
    assert "no-such-program-anywhere" in done.err


def test_inside_another_one(account: Account) -> None:
    done = run(account, [*account.pysocksify, "-p", VIA, "true"])
    assert done.status == 125
    assert "catches calls already" in done.err


def test_what_is_no_program(account: Account, folder: Path) -> None:
    file = folder / "no-program"
    file.touch(0o644)
    assert run(account, [str(file)]).status == 126
    assert run(account, ["/etc"]).status == 126


def test_a_setuid_program_is_refused(user_account: Account) -> None:
    done = run(user_account, ["/usr/bin/su", "--version"])
    assert done.status in (125, 126), done
    assert "set" in done.err, done
    assert done.out == ""


def test_standard_streams(account: Account) -> None:
    done = run(account, ["sh", "-c", "cat; echo error >&2"], stdin="through\n")
    assert (done.status, done.out, done.err) == (0, "through\n", "error\n")


def test_arguments_after_the_program_are_its_own(account: Account) -> None:
    done = run(account, ["echo", "-p", "--help", "-c", "x", "--", "-v"])
    assert done.out == "-p --help -c x -- -v\n"


def test_without_a_proxy_nothing_runs(account: Account) -> None:
    done = finish(command(account, ["echo", "ran"]), environment=account.environment)
    assert done.status == 125, done
    assert done.out == ""
    assert "-p" in done.err


@pytest.mark.parametrize(
    "url", ["socks5://host:notaport", "gopher://h:1", "socks4://user:s3cret@h", "socks5://u:" + "s3cret" * 50 + "@h"]
)
def test_a_bad_url_is_one_line(url: str, user_account: Account) -> None:
    done = finish(command(user_account, ["echo", "ran"], via=url), environment=user_account.environment)
    assert (done.status, done.out) == (125, "")
    assert len(done.err.splitlines()) == 1, done
    assert "s3cret" not in done.err


def test_version_and_help(user_account: Account) -> None:
    version = finish(command(user_account, ["--version"]), environment=user_account.environment)
    assert version.status == 0
    assert __version__ in version.out
    shown = finish(command(user_account, ["--help"]), environment=user_account.environment)
    assert shown.status == 0
    for option in ("--proxy", "--config", "--embedded", "--direct", "--dns", "--timeout", "--log-file", "--version"):
        assert option in shown.out


@contextmanager
def started(account: Account, argv: Sequence[str]) -> "Iterator[subprocess.Popen[bytes]]":
    """A wrapped program with a pipe from its standard output, in a session of its own, whose rest is ended after it."""
    with subprocess.Popen(
        command(account, argv, via=VIA),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=account.environment,
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_killing_pysocksify_kills_the_program(number: signal.Signals, account: Account) -> None:
    with started(account, ["sh", "-c", "echo $$; exec cat /dev/zero >/dev/null"]) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(10) == -number
        assert gone(pid)


def test_a_program_may_take_a_signal(account: Account) -> None:
    script = "trap 'echo taken; exit 3' TERM; echo $$; while :; do read x </dev/null; done"
    with started(account, ["sh", "-c", script]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.stdout.readline() == b"taken\n"
        assert process.wait(10) == 3


def test_a_program_in_the_background_gives_the_prompt_back(account: Account, folder: Path) -> None:
    """The daemon reads a pipe that we hold open; the wrapper's status is there before its end."""
    fifo = folder / f"fifo-{account.name}"
    os.mkfifo(fifo)
    fifo.chmod(0o644)
    with started(account, ["sh", "-c", f"cat {fifo} >/dev/null & echo $!"]) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        with fifo.open("wb"):
            assert process.wait(10) == 0
            assert Path(f"/proc/{pid}").exists()
        assert gone(pid)
