"""The command before a program runs: help, version, completion, mistakes, and what is imported on the way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pysocksify import __version__, cli
from pysocksify.config import Config
from pysocksify.errors import PysocksifyError
from pysocksify.options import ENGINES, OPTIONS
from tests.lab.wrapped import need

PROXY_VARIABLES = ("PYSOCKSIFY_PROXY", "PYSOCKSIFY_CONFIG", "ALL_PROXY", "all_proxy")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    left = {name: value for name, value in os.environ.items() if name not in PROXY_VARIABLES}
    return {**left, "XDG_CONFIG_HOME": str(tmp_path / "xdg")}


def run(*words: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pysocksify", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)


def test_help(environ: dict[str, str]) -> None:
    result = run("--help", environ=environ)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: pysocksify [OPTIONS] PROGRAM [ARGS]...")
    for option in OPTIONS:
        assert all(name in result.stdout for name in option.names)
    assert run("-h", environ=environ).stdout == result.stdout


def test_version(environ: dict[str, str]) -> None:
    result = run("--version", environ=environ)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"pysocksify {__version__}\n", "")


MISTAKES = [
    ([], "missing argument 'PROGRAM [ARGS]...'"),
    (["--bogus", "ls"], "no such option '--bogus'"),
    (["--mode", "all", "ls"], "invalid value for '--mode'"),
    (["ls"], "no proxy is configured"),
    (["-p", "https://alice:sesame@h", "ls"], "-p: https://***@h: the scheme 'https'"),
    (["-p", "alice:sesame@h:1080", "ls"], "-p: ***@h:1080: a proxy is written"),
    (["-p", "socks5://a\nb\x1b[2J:1", "ls"], "-p: socks5://a\\nb\\x1b[2J:1: "),
    (["-c", "work", "ls"], "-c: work: there is no such file, nor "),
    (["-c", "/nonexistent/x", "ls"], "/nonexistent/x: No such file or directory"),
    (["-p", "socks5://h", "--log-file", "/nonexistent/log", "true"], "the log file: /nonexistent/log: No such file"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_one_line_and_125(environ: dict[str, str], words: list[str], message: str) -> None:
    result = run(*words, environ=environ)
    assert (result.returncode, result.stdout) == (125, "")
    assert result.stderr.startswith(f"pysocksify: {message}")
    assert result.stderr.count("\n") == 1
    assert "sesame" not in result.stderr


def test_standard_error_may_be_closed(environ: dict[str, str]) -> None:
    command = f"exec {sys.executable} -m pysocksify ls 2>&-"
    result = subprocess.run(command, shell=True, env=environ, capture_output=True, timeout=30, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (125, b"", b"")


@pytest.mark.parametrize("module", ["pysocksify", "pysocksify.server.cli"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_standard_output_may_be_full_or_closed(environ: dict[str, str], module: str, option: str) -> None:
    name = "pysocksify" if module == "pysocksify" else "pysocksify-server"
    for redirection, ends in ((">/dev/full", (125, f"{name}: No space left on device\n")), (">&-", (0, ""))):
        command = f"exec {sys.executable} -m {module} {option} {redirection}"
        result = subprocess.run(command, shell=True, env=environ, stderr=subprocess.PIPE, text=True, timeout=30)
        assert (result.returncode, result.stderr) == ends


COMPLETIONS = [
    ("pysocksify --engine p", 2, "plain,preload\nplain,ptrace\nplain,python"),
    ("pysocksify --engines cur-", 2, "plain,cur-program"),
    ("pysocksify --emb", 1, "plain,--embedded"),
    ("pysocksify --mode r", 2, "plain,random\nplain,round_robin"),
    ("pysocksify -v a-progr", 2, "plain,a-program"),
    ("pysocksify ls READ", 2, "file,READ"),
    ("pysocksify ./a", 1, "file,./a"),
]


@pytest.mark.parametrize(("line", "word", "answer"), COMPLETIONS)
def test_completion(environ: dict[str, str], tmp_path: Path, line: str, word: int, answer: str) -> None:
    for name in ("a-program", "cur-program"):
        (tmp_path / name).touch(mode=0o755)
    asked = {"_PYSOCKSIFY_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(word)}
    result = run(environ={**environ, **asked, "PATH": f"{tmp_path}:/nonexistent"})
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, answer, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(environ: dict[str, str], shell: str) -> None:
    if shell == "bash":
        need("bash")  # which click asks for its version
    result = run(environ={**environ, "_PYSOCKSIFY_COMPLETE": f"{shell}_source"})
    assert result.returncode == 0
    assert "_PYSOCKSIFY_COMPLETE" in result.stdout


def test_config_and_command_reach_the_front(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[Config, list[str]]] = []

    monkeypatch.setattr(cli, "_run", lambda config, command: seen.append((config, command)))
    cli.main(["-p", "socks5://192.0.2.1", "ls", "-la", "-p", "x"])
    ((config, command),) = seen
    assert str(config.chains[0].hops[0]) == "socks5://192.0.2.1:1080"
    assert command == ["ls", "-la", "-p", "x"]


def test_lines_of_a_run(environ: dict[str, str], tmp_path: Path) -> None:
    """They go to the log file, but for the reason why the program isn't run, or not any more."""
    code = """if True:
        import sys
        from pysocksify import cli, front

        def run(command, engine, *, write_line, write_fd, say, unset):
            write_line("pysocksify: a problem")
            write_line(f"{command[0]}: unset {unset}\\r")
            assert write_fd >= 2
            say("the end")
            return 7

        front.run = run
        cli.main(sys.argv[1:])
    """
    lines = "pysocksify: a problem\npysocksify: ls: unset ('all_proxy', 'ALL_PROXY')\\r\n"
    log = tmp_path / "log"
    for words, expected in (((), lines), (("--log-file", str(log)), ""), (("--log-file", str(log)), "")):
        result = subprocess.run(
            [sys.executable, "-c", code, *words, "ls"],
            env={**environ, "ALL_PROXY": "socks5://192.0.2.1"}, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (7, f"{expected}pysocksify: the end\n")
    assert log.read_text() == lines * 2
    assert log.stat().st_mode & 0o777 == 0o600


def test_why_it_was_not_run_is_said_beside_the_log_file(environ: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    for program, status in ((str(tmp_path), 126), (str(tmp_path / "none"), 127)):
        result = run("-p", "socks5://192.0.2.1", "--log-file", str(log), program, environ=environ)
        assert result.returncode == status
        assert result.stderr.startswith(f"pysocksify: {program}: ")
    assert log.read_text() == ""


def test_errors_while_starting(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(config: Config, command: list[str]) -> int:
        raise PysocksifyError("the engine can't")

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["-p", "socks5://192.0.2.1", "ls"]) == 125
    assert capfd.readouterr().err == "pysocksify: the engine can't\n"


@pytest.mark.parametrize("command", ["main", "server"])
def test_ctrl_c_while_modules_are_loaded(tmp_path: Path, command: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    code = f"""if True:
        import sys, time

        class Slow:
            def find_spec(self, name, path=None, target=None):
                if name in ("pysocksify.cli", "pysocksify.server"):
                    open({str(tmp_path / "fifo")!r})
                    for _ in range(1000):
                        time.sleep(0.03)

        sys.meta_path.insert(0, Slow())
        from pysocksify.__main__ import {command}
        {command}()
    """
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        with open(tmp_path / "fifo", "wb"):  # opens when the other side reads
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_ctrl_c_before_the_program_runs(environ: dict[str, str]) -> None:
    fifo = Path(environ["XDG_CONFIG_HOME"])
    fifo.mkdir()
    os.mkfifo(fifo / "conf.toml")
    with subprocess.Popen(
        [sys.executable, "-m", "pysocksify", "-c", str(fifo / "conf.toml"), "ls"], env=environ, stderr=subprocess.PIPE
    ) as process:
        with open(fifo / "conf.toml", "wb"):  # opens when the other side reads
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == b""


HEAVY = {
    "click", "asyncio", "urllib", "ipaddress", "logging", "pathlib", "socket", "typing", "tomllib", "random", "hashlib",
    "difflib", "subprocess", "tempfile", "shutil", "threading", "dnslib", "email", "json",
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_choosing_an_engine_is_light(engine: str) -> None:
    """All that is loaded before the program's exec, with each engine."""
    code = f"""if True:
        import sys
        before = set(sys.modules)
        import os
        from pysocksify import cli, config, front, kernel, options
        from pysocksify.engines import choice
        settings = config.load(options.parse(["-p", "socks5://127.0.0.1", "true"]), {{}})
        choice.availability({engine!r}, kernel.Kernel())
        choice.refusal({engine!r}, ["true"])
        choice.engine({engine!r}, settings, kernel.Kernel())
        print(*(set(sys.modules) - before))
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert not (HEAVY | {"dataclasses", "inspect", "re"}) & {name.partition(".")[0] for name in result.stdout.split()}


def test_the_plain_way_is_light() -> None:
    code = (
        "import sys; before = set(sys.modules); from pysocksify import cli, config, options; import os;"
        "config.load(options.parse(['-p', 'socks5://a:b@127.0.0.1', '--direct', '10.0.0.0/8', 'ls']), {});"
        "print(*(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert not HEAVY & {name.partition(".")[0] for name in result.stdout.split()}
