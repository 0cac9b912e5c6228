"""Whether the engine says where it can't be used, and why."""

import errno
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysocksify import linux
from pysocksify.engines.ptrace import fit
from pysocksify.kernel import Kernel
from pysocksify.supervisor.processes import PR_SET_DUMPABLE
from tests.engines.filtered import ACCOUNTS, as_account
from tests.lab.wrapped import missing, need

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("uid", ACCOUNTS)
def test_it_works_here(uid: int) -> None:
    fit.availability(Kernel())  # what it imports late, an ordinary user may not be able to read

    def act() -> None:
        linux.prctl(PR_SET_DUMPABLE, 1)  # as after an exec
        assert fit.availability(Kernel()) == ""

    as_account(uid, act)


def test_nothing_is_left_of_the_attempt() -> None:
    """Neither descriptors nor children. In a process that has none: the lab's servers are pytest's children."""

    def act() -> None:
        gc.collect()  # else descriptors that other tests forgot may be closed meanwhile
        before = os.listdir("/proc/self/fd")
        fit.availability(Kernel())
        assert os.listdir("/proc/self/fd") == before
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    as_account(os.geteuid(), act)


def test_without_pidfd_getfd() -> None:
    assert "pidfd_getfd" in fit.availability(Kernel(pidfd_getfd=False))


def test_without_python_ptrace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert fit.availability(Kernel()) == "python-ptrace isn't installed"


def test_where_another_traces_already() -> None:
    need("strace")
    script = (
        "from pysocksify.engines.ptrace import fit; from pysocksify.kernel import Kernel;"
        " print(fit.availability(Kernel()))"
    )
    words = ["strace", "-f", "-qq", "-e", "trace=none", "-e", "signal=none", sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=REPOSITORY)
    assert done.stdout.startswith("its programs are being traced already, by process "), done


@pytest.mark.parametrize(("scope", "words"), [("2", "only administrators may trace"), ("3", "nobody may trace")])
def test_yama_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str, words: str) -> None:
    (tmp_path / "ptrace_scope").write_text(scope + "\n")
    monkeypatch.setattr(fit, "YAMA", str(tmp_path / "ptrace_scope"))
    assert words in fit.words(errno.EPERM, os.getpid())


def test_another_refusal() -> None:
    assert fit.words(errno.ENOSYS, os.getpid()) == "ptrace(2) isn't allowed here (ENOSYS)"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can read."""
    path = Path(tempfile.mkdtemp(prefix="fit-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("uid", ACCOUNTS)
def test_setuid_programs(uid: int, folder: Path) -> None:
    program = folder / "program"
    shutil.copyfile("/bin/true", program)
    program.chmod(0o4755)
    if os.statvfs(program).f_flag & os.ST_NOSUID:
        missing("setuid programs, in the folder for temporary files")
    owner = program.stat().st_uid

    def act() -> None:
        assert ("setuid" in fit.refusal([str(program)])) == (uid not in (0, owner))

    as_account(uid, act)


def test_a_program_that_isnt_there() -> None:
    assert fit.refusal(["/nonexistent/program"]) == ""
