"""Which engine is taken: by what is asked for, by what works here (under real filters), and by the program."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pysocksify.engines import choice, features
from pysocksify.engines.seccomp import fit
from pysocksify.errors import PysocksifyError
from pysocksify.kernel import FEATURES, Kernel
from tests.lab.wrapped import missing, need

HERE = Kernel()
NAMES = ("seccomp", "preload", "ptrace", "python")


class Fits:
    """What four engines say of this machine and of a program; which of them were asked."""

    def __init__(self, absent: dict[str, str], refused: dict[str, str]) -> None:
        self.absent = absent
        self.refused = refused
        self.asked: list[str] = []

    def module(self, name: str, part: str) -> object:
        assert part == "fit"
        self.asked.append(name)
        return SimpleNamespace(
            availability=lambda kernel: self.absent.get(name, ""),
            refusal=lambda command: self.refused.get(name, ""),
            notice=lambda command: "only what it starts" if command[0] == "sh" else "",
        )


# absent, refused, wanted: the name and what is said
TAKEN = [
    ({}, {}, "auto", "seccomp", "engine seccomp"),
    ({}, {}, "ptrace", "ptrace", "engine ptrace"),
    ({"seccomp": "EBUSY"}, {}, "auto", "preload", "engine preload: seccomp can't be used here: EBUSY"),
    (
        {"seccomp": "EBUSY"}, {"preload": "static ELF"}, "auto",
        "ptrace", "engine ptrace: seccomp can't be used here: EBUSY; preload can't be used for prog: static ELF",
    ),
    (
        dict.fromkeys(NAMES[:3], "no"), {}, "auto",
        "python", "engine python: " + "; ".join(f"{name} can't be used here: no" for name in NAMES[:3]),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("absent", "refused", "wanted", "name", "words"), TAKEN)
def test_taken(
    monkeypatch: pytest.MonkeyPatch,
    absent: dict[str, str],
    refused: dict[str, str],
    wanted: str,
    name: str,
    words: str,
) -> None:
    fits = Fits(absent, refused)
    monkeypatch.setattr(choice, "_module", fits.module)
    assert choice.decide(wanted, HERE, ["prog", "-x"]) == (name, words)
    assert fits.asked[-1] == name  # none after it is looked at


NOT_TAKEN = [
    ({"preload": "no compiler"}, {}, "preload", 125, "engine preload can't be used here: no compiler"),
    ({}, {"preload": "static ELF"}, "preload", 126, "engine preload can't be used for prog: static ELF"),
    ({}, dict.fromkeys(NAMES, "setuid"), "auto", 126, "engine seccomp can't be used for prog: setuid"),
    (
        {"seccomp": "a", "ptrace": "c"}, {"preload": "b", "python": "d"}, "auto", 126,
        "no engine is left: seccomp can't be used here: a; preload can't be used for prog: b; "
        "ptrace can't be used here: c; python can't be used for prog: d",
    ),
    (
        dict.fromkeys(NAMES, "no"), {}, "auto", 125,
        "no engine is left: " + "; ".join(f"{name} can't be used here: no" for name in NAMES),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("absent", "refused", "wanted", "status", "words"), NOT_TAKEN)
def test_not_taken(
    monkeypatch: pytest.MonkeyPatch,
    absent: dict[str, str],
    refused: dict[str, str],
    wanted: str,
    status: int,
    words: str,
) -> None:
    monkeypatch.setattr(choice, "_module", Fits(absent, refused).module)
    with pytest.raises(PysocksifyError) as caught:
        choice.decide(wanted, HERE, ["prog"])
    assert (caught.value.exit_status, str(caught.value)) == (status, words)


def test_auto_takes_python_for_python_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell under that engine may start what goes past the proxy: one must have asked for it."""
    monkeypatch.setattr(choice, "_module", Fits(dict.fromkeys(NAMES[:3], "no"), {}).module)
    assert choice.decide("python", HERE, ["sh"]) == ("python", "engine python")
    with pytest.raises(PysocksifyError, match="python can't be used for sh: only what it starts"):
        choice.decide("auto", HERE, ["sh"])


# --- seccomp's own answers; a filter can't be taken off, so each is put on in a process of its own

FILTERED = """if True:
    import os, sys
    from pysocksify.engines.seccomp import fit
    from pysocksify.engines.syscalls import abi, bpf, installation
    from pysocksify.kernel import Kernel

    arch = abi.ARCHITECTURES[os.uname().machine]
    flags, action = int(sys.argv[1]), int(sys.argv[2])
    code = bpf.INSTRUCTION.pack(bpf.LOAD, 0, 0, bpf.NR)
    code += bpf.INSTRUCTION.pack(bpf.JUMP_EQUAL, 0, 1, arch.seccomp)
    code += bpf.INSTRUCTION.pack(bpf.RETURN, 0, 0, action)
    code += bpf.INSTRUCTION.pack(bpf.RETURN, 0, 0, abi.RET_ALLOW)
    installation.install(arch, code, flags)  # an outer filter need not have a listener
    print(fit.availability(Kernel()))
"""
HERE_SECCOMP = """if True:
    from pysocksify.engines.seccomp import fit
    from pysocksify.kernel import Kernel
    print(fit.availability(Kernel()))
"""
ALLOW, ERRNO, LISTENER = 0x7FFF0000, 0x00050000, 1 << 3  # linux/seccomp.h
FILTERS = [
    ("harmless", 0, ALLOW, ""),
    ("listener", LISTENER, ALLOW, fit.BUSY),
    ("EPERM", 0, ERRNO | 1, "seccomp(2) with a listener isn't allowed here (EPERM)"),
    ("ENOSYS", 0, ERRNO | 38, "seccomp(2) with a listener isn't allowed here (ENOSYS)"),
]


def python(*words: str, under: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A Python program with the package."""
    command = [*under, sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(("flags", "action", "words"), [row[1:] for row in FILTERS], ids=[row[0] for row in FILTERS])
def test_seccomp_under_another_filter(flags: int, action: int, words: str) -> None:
    done = python("-c", FILTERED, str(flags), str(action))
    assert (done.stdout, done.stderr) == (f"{words}\n", "")


def test_seccomp_where_a_child_dies_of_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "_try", lambda arch, use, killable: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(fit, "OLDEST", (99, 0))
    monkeypatch.setattr(fit, "release", lambda: (98, 0))
    assert "is older than 99.0" in fit.availability(HERE)


@pytest.mark.parametrize(
    ("release", "number"), [("6.18.0-rc3", (6, 18)), ("5.4-generic", (5, 4)), ("4.4.0", (4, 4)), ("6", (6, 0))]
)
def test_release(monkeypatch: pytest.MonkeyPatch, release: str, number: tuple[int, int]) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    assert fit.release() == number


def test_seccomp_on_another_machine() -> None:
    need("setarch")
    done = python("-c", HERE_SECCOMP, under=("setarch", "i686"))
    assert done.stdout.startswith("the calls of i686 aren't known")


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="hides /proc")
def test_seccomp_without_proc() -> None:
    script = 'mount -t tmpfs none /proc && exec "$0" "$@"'
    done = python("-c", HERE_SECCOMP, under=("unshare", "--mount", "sh", "-c", script))
    assert done.stdout.startswith("/proc isn't there")


def test_seccomp_refuses_what_would_lose_its_privileges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        missing(f"{tmp_path} is mounted nosuid")
    path = shutil.copy("/bin/true", str(tmp_path / "prog"))
    os.chmod(path, 0o4755)
    assert fit.refusal([path]) == ""
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(path).st_uid + 1)
    assert "setuid program" in fit.refusal([path])
    assert fit.refusal(["no-such-program"]) == ""


PYSOCKSIFY = ("-m", "pysocksify", "-p", "socks5://127.0.0.1:1")


def test_the_line_at_v(tmp_path: Path) -> None:
    done = python(*PYSOCKSIFY, "-v", "--engine", "seccomp", "true")
    assert (done.returncode, done.stderr) == (0, "pysocksify: engine seccomp\n")
    assert python(*PYSOCKSIFY, "--engine", "seccomp", "true").stderr == ""
    log = tmp_path / "log"
    done = python(*PYSOCKSIFY, "-v", "--engine", "seccomp", "--log-file", str(log), "true")
    assert (done.returncode, done.stderr) == (0, "")
    assert log.read_text().split(" ", 3)[0] == "pysocksify:"
    assert log.read_text().endswith(" engine seccomp\n")


def test_a_second_listener_is_refused_in_one_line() -> None:
    done = python(*PYSOCKSIFY, "--engine", "seccomp", sys.executable, *PYSOCKSIFY, "--engine", "seccomp", "echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == f"pysocksify: engine seccomp can't be used here: {fit.BUSY}\n"


# --- the kernel's features


def test_features_are_probed_by_using_them() -> None:
    """On a kernel of today each is there; where one isn't, it says why in a word."""
    found = features.probe()
    assert tuple(found) == FEATURES == tuple(features.WORDS)
    assert all(" " not in why or name == "enclosure" for name, why in found.items())


def test_features_under_a_container_like_filter() -> None:
    """Where an outer filter has a listener, and namespaces and pidfd_getfd(2) are refused."""
    code = """if True:
        import os
        from pysocksify.engines import features
        from pysocksify.engines.seccomp import installation
        from pysocksify.engines.syscalls import abi, bpf

        code = bpf.INSTRUCTION.pack(bpf.LOAD, 0, 0, bpf.NR)
        code += bpf.INSTRUCTION.pack(bpf.JUMP_EQUAL, 0, 1, abi.PIDFD_GETFD)
        code += bpf.INSTRUCTION.pack(bpf.RETURN, 0, 0, abi.RET_ERRNO | 1)
        code += bpf.INSTRUCTION.pack(bpf.RETURN, 0, 0, abi.RET_ALLOW)
        installation.install(abi.ARCHITECTURES[os.uname().machine], code, killable=False)
        print(features.probe())
    """
    done = python("-c", code)
    found = eval(done.stdout)
    assert {name: found[name] for name in ("wait_killable", "addfd_send", "sync_wake_up", "pidfd_getfd")} == {
        "wait_killable": "EBUSY", "addfd_send": "EBUSY", "sync_wake_up": "EBUSY", "pidfd_getfd": "EPERM",
    }  # fmt: skip
    assert found["simultaneous_open"] == ""
