"""`pysocksify --engines`: the table that a person sees, on this machine and where an engine can't be used."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pysocksify.engines.overview import LABELS
from pysocksify.engines.table import ENGINES
from pysocksify.kernel import FEATURES
from tests.lab.wrapped import need

NAMES = [engine.name for engine in ENGINES]
UNDER_A_LISTENER = """if True:
    import os, sys
    from pysocksify.engines.seccomp import installation
    from pysocksify.engines.syscalls import abi, bpf

    everything_goes = bpf.INSTRUCTION.pack(bpf.RETURN, 0, 0, abi.RET_ALLOW)
    listener, _ = installation.install(abi.ARCHITECTURES[os.uname().machine], everything_goes)
    os.set_inheritable(listener, True)  # closed, it would be one no more
    os.execv(sys.executable, [sys.executable, "-m", "pysocksify", *sys.argv[1:]])
"""


def show(*words: str, environ: dict[str, str] | None = None, start: tuple[str, ...] = ("-m", "pysocksify")) -> str:
    """What is shown; nothing goes wrong."""
    command = [sys.executable, *start, "--engines", *words]
    done = subprocess.run(
        command, env={**os.environ, **(environ or {})}, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def rows(shown: str) -> dict[str, list[str]]:
    """The words of the table of engines, by engine."""
    table = shown.split("\n\n")[1].splitlines()
    return {words[0]: words[1:] for words in (line.split() for line in table) if words[0] in NAMES}


def test_all_of_it() -> None:
    shown = show()
    assert list(rows(shown)) == NAMES
    assert os.uname().release in shown.splitlines()[0]
    words = " ".join(shown.split())
    for engine in ENGINES:
        assert f"{engine.name}: {engine.catches}" in shown
        assert all(f"{LABELS[gap.outcome]}: {gap.words}" in words for gap in engine.gaps)
    assert all(re.search(rf"^  {name} +(yes|no) ", shown, re.MULTILINE) for name in FEATURES)
    assert max(map(len, shown.splitlines())) <= 100
    assert "auto takes the first that works for the program: " in shown


def test_for_a_program(tmp_path: Path) -> None:
    need("gcc")
    source = tmp_path / "main.c"
    source.write_text("int main(void) { return 0; }\n")
    static = str(tmp_path / "static")
    subprocess.run(["gcc", "-static", "-o", static, str(source)], check=True, timeout=60)
    found = rows(show(static, "--its-own"))
    assert found["seccomp"] == ["yes", "yes"]
    assert found["python"][:2] == ["yes", "no"]
    assert found["preload"][:2] in (["yes", "no"], ["no", "-"])  # where it's built, or not
    assert rows(show(sys.executable))["python"] == ["yes", "yes"]
    assert rows(show(sys.executable, "-I"))["python"][:2] == ["yes", "no"]
    assert f"auto takes seccomp for {static}.\n" in show("--", static)


def test_for_a_program_that_is_not_there() -> None:
    shown = show("no-such-program")
    assert "There is no program no-such-program.\n" in shown
    assert all(len(words) == 1 for words in rows(shown).values() if words[0] == "yes")


def test_where_another_listens_already() -> None:
    shown = show("/bin/true", start=("-c", UNDER_A_LISTENER))
    found = rows(shown)
    assert found["seccomp"][:2] == ["no", "-"]
    assert "(EBUSY)" in found["seccomp"]
    works = [name for name in NAMES if found[name][:2] == ["yes", "yes"]]
    expected = f"auto takes {works[0]} for /bin/true." if works else "no engine is left: "
    assert expected in shown
    assert re.search(r"wait_killable +no .*\[EBUSY\]", " ".join(shown.split()))


def test_a_feature_taken_away() -> None:
    shown = show(environ={"PYSOCKSIFY_WITHOUT": "pidfd_getfd"})
    assert re.search(r"pidfd_getfd +no .*\[PYSOCKSIFY_WITHOUT\]", " ".join(shown.split()))
    assert rows(shown)["ptrace"][0] == "no"


def test_a_caller_that_ignores_sigchld() -> None:
    shell = ["sh", "-c", 'trap "" CHLD; exec "$@"', "sh", sys.executable, "-m", "pysocksify", "--engines"]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", show())


@pytest.mark.parametrize("words", [("-v", "true"), ("--engine", "seccomp"), ("-p", "socks5://h", "true")])
def test_other_options_would_mean_nothing(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pysocksify", "--engines", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "pysocksify: --engines: runs nothing; leave the other options out\n"
