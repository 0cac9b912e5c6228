"""Who runs the target: root, or an ordinary user, each with an interpreter that it can reach.

Run by root, a test's ordinary user is `nobody`. It can't read a checkout or an interpreter under root's home, so it
gets a virtual environment of its own in the lab's folder: made from the first interpreter that nobody can run, with
copies of the package and of what it and the client programs import.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534
REPOSITORY = Path(__file__).parents[2]
COPIED = ("click", "dnslib", "python-ptrace", "tomli", "requests", "aiohttp", "uvloop")  # with what they require
VERSION = "import sys; print(*sys.version_info[:2])"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account to run a program as: `python` is its interpreter, `home` its home, `same_python` as pytest's own."""

    name: str
    uid: int
    python: Path
    home: Path
    same_python: bool

    def command(self, *argv: str | Path) -> list[str]:
        """The command line that runs this as the account, without any privilege when it isn't root."""
        words = [str(word) for word in argv]
        return words if self.uid == os.geteuid() else [*as_user(self.uid), *words]

    @property
    def pysocksify(self) -> list[str]:
        """The words that start the wrapper with the account's interpreter."""
        return [str(self.python), "-m", "pysocksify"]

    @property
    def server(self) -> list[str]:
        """The words that start the bundled server."""
        return [str(self.python), "-c", "from pysocksify.server.cli import main; main()"]

    @property
    def environment(self) -> dict[str, str]:
        """A small environment, without any proxy variable of the machine's."""
        return {
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "LOGNAME": self.name,
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TERM": "dumb",
            "USER": self.name,
        }


def as_user(uid: int) -> list[str]:
    """The words of setpriv(1) before a command that an ordinary user runs."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]


def myself(folder: Path) -> Account:
    """Whoever runs pytest, with pytest's interpreter."""
    home = folder / "home-self"
    home.mkdir()
    name = "root" if os.geteuid() == 0 else "user"
    return Account(name=name, uid=os.geteuid(), python=Path(sys.executable), home=home, same_python=True)


def nobody(folder: Path) -> Account:
    """The account `nobody` (root only), with a virtual environment in `folder`, which everyone can read."""
    base, version = reachable()
    venv = folder / "venv-nobody"
    run(str(base), "-m", "venv", "--without-pip", str(venv))
    site = next(venv.glob("lib/python3.*/site-packages"))
    for path in installed(COPIED):
        copy = site / path.name if path.parent == site else site / relative(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "pysocksify", site / "pysocksify", ignore=ignore, dirs_exist_ok=True)
    home = folder / "home-nobody"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    run(str(base), "-m", "compileall", "-q", str(site))
    readable(venv)
    same = version == sys.version_info[:2]
    return Account(name="nobody", uid=NOBODY, python=venv / "bin" / "python", home=home, same_python=same)


def reachable() -> tuple[Path, tuple[int, int]]:
    """The first interpreter that nobody can run, pytest's own first, and its version.

    A shell runs it: setpriv(1) itself still has root's privileges at its own execve(2).
    """
    names = [sys.executable, "/usr/bin/python3", *(f"python3.{minor}" for minor in range(14, 9, -1))]
    for name in names:
        found = shutil.which(name)
        if found is None:
            continue
        path = Path(found).resolve()
        try:
            command = [*as_user(NOBODY), "sh", "-c", 'exec "$@"', "sh", str(path), "-c", VERSION]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except OSError:
            continue
        if done.returncode == 0:
            major, minor = map(int, done.stdout.split())
            if (major, minor) >= (3, 10):
                return path, (major, minor)
    raise RuntimeError("no Python ≥ 3.10 that the account nobody can run; install Debian's python3")


def installed(names: tuple[str, ...]) -> Iterator[Path]:
    """The files of these distributions and of all they require, as far as they are installed here."""
    seen: set[str] = set()
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement and (required := re.match(r"[\w.-]+", requirement)):
                wanted.append(required[0])
        for file in distribution.files or ():
            path = Path(str(file.locate()))
            if ".." not in file.parts and "__pycache__" not in file.parts and path.is_file():
                yield path


def relative(path: Path) -> Path:
    """A path below the site-packages that it is in."""
    parts = path.parts
    return Path(*parts[len(parts) - parts[::-1].index("site-packages") :])


def readable(folder: Path) -> None:
    """Lets everyone read a tree, and run what its owner may run."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode & 0o777
            path.chmod(mode | 0o444 | (0o111 if path.is_dir() or mode & 0o100 else 0))


def run(*command: str) -> None:
    """Runs a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
