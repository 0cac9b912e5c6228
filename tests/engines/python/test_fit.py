"""Which programs the python engine takes: Python that will import what it puts in, and what may start such a Python."""

import os
import sys
from pathlib import Path

import pytest

from pysocksify.engines.python import fit
from pysocksify.kernel import Kernel

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_it_works_here() -> None:
    assert fit.availability(Kernel()) == ""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["program.py", "-I"],
        ["-c", "import x", "-E"],
        ["-m", "x", "-S"],
        ["-cimport x"],
        ["-Bu", "program.py"],
        ["-W", "ignore::ImportWarning", "-X", "dev", "-"],
        ["-Wignore", "-Xdev", "-OO", "program.py"],
        ["--check-hash-based-pycs", "never", "program.py"],
        ["-sP", "program.py"],
    ],
)
def test_python_is_taken(words: list[str]) -> None:
    assert fit.refusal([sys.executable, *words]) == ""
    assert fit.notice([sys.executable, *words]) == ""


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["-I", "program.py"], "-I"),
        (["-E"], "-E"),
        (["-BS", "program.py"], "-S"),
        (["-W", "error", "-I", "program.py"], "-I"),
        (["-Werror", "-vE", "-c", "pass"], "-E"),
        (["--check-hash-based-pycs", "never", "-S"], "-S"),
    ],
)
def test_python_that_leaves_it_out_is_refused(words: list[str], option: str) -> None:
    assert fit.refusal([sys.executable, *words]) == f"Python with {option} leaves out what this engine puts in"


def script(folder: Path, name: str, line: str) -> str:
    path = folder / name
    path.write_text(f"{line}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_scripts(tmp_path: Path) -> None:
    python = os.path.realpath(sys.executable)
    assert fit.refusal([script(tmp_path, "a", f"#!{python}"), "-I"]) == ""
    assert fit.refusal([script(tmp_path, "b", "#!/bin/sh")]) == ""
    assert "-I" in fit.refusal([script(tmp_path, "c", f"#!{python} -I")])
    assert "-E" in fit.refusal([script(tmp_path, "d", f"#!/usr/bin/env -S {python} -E")])
    assert fit.refusal([script(tmp_path, "e", "#!/usr/bin/awk -f")]) == fit.NOT_PYTHON
    assert fit.notice([script(tmp_path, "f", f"#!{python}")]) == ""
    assert "only the Python programs that it starts" in fit.notice([script(tmp_path, "g", "#!/bin/sh")])


def test_other_programs() -> None:
    assert fit.refusal(["/bin/ls"]) == fit.NOT_PYTHON
    assert fit.refusal(["sh", "-c", "anything"]) == ""
    assert fit.refusal(["no-such-program"]) == ""
    assert fit.notice(["no-such-program"]) == ""


def test_env() -> None:
    assert fit.refusal(["env", "A=b", sys.executable, "program.py"]) == ""
    assert fit.refusal(["env", "A=b", "ls"]) == fit.NOT_PYTHON
    assert fit.notice(["env", "A=b", sys.executable, "program.py"]) == ""
    assert fit.notice(["env", "A=b", "sh", "program"]).startswith("sh isn't Python itself")
    assert fit.notice(["env"]) == ""
    assert "may change" in fit.refusal(["env", "-i", sys.executable])
    assert "PYTHONPATH" in fit.refusal(["env", "PYTHONPATH=/x", sys.executable])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("python2.7", "it is for Python 2.7, and this engine needs 3.10"),
        ("python2", "it is for Python 2, and this engine needs 3.10"),
        ("python3.9", "it is for Python 3.9, and this engine needs 3.10"),
        ("pypy3", "it is for PyPy, and this engine is for CPython only"),
        ("python3.10", ""),
        ("python3.13t", ""),
        ("python3-dbg", ""),
        ("python3", ""),
        ("pythonic", fit.NOT_PYTHON),
        ("python-config", fit.NOT_PYTHON),
    ],
)
def test_names_of_interpreters(name: str, reason: str, tmp_path: Path) -> None:
    binary = tmp_path / name
    binary.write_bytes(Path(os.path.realpath(sys.executable)).read_bytes()[:4096])
    binary.chmod(0o755)
    assert fit.refusal([str(binary)]) == reason


def test_a_link_to_an_old_one(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_bytes(Path("/bin/true").read_bytes())
    old.chmod(0o755)
    link = tmp_path / "python"
    link.symlink_to(old)
    assert "3.8" in fit.refusal([str(link)])
