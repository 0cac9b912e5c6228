"""Programs of C, built with each libc, and runs of them under the preload engine."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysocksify.engines.preload import fit
from tests.lab import town
from tests.lab.done import Done
from tests.lab.scripted import Script
from tests.lab.targets import Target
from tests.lab.ways import Way
from tests.lab.wrapped import Scripted, Wrap, finish, missing, need

HERE = Path(__file__).parent
COMPILERS = {fit.GLIBC: "gcc", fit.MUSL: "musl-gcc"}

Programs = Callable[[str], Path]
Calls = Callable[..., Done]


@pytest.fixture(scope="session", params=[fit.GLIBC, fit.MUSL])
def libc(request: pytest.FixtureRequest) -> str:
    """The libc of the programs, for which there's a shim."""
    name: str = request.param
    need(COMPILERS[name])
    if not (Path(fit.FOLDER) / f"shim-{name}.so").exists():
        missing(f"the shim for {name} isn't built")
    return name


@pytest.fixture(scope="session")
def built_for(folder: Path, libc: str) -> Iterator[Programs]:
    """Builds a program (or `module`, a library) of this folder for the libc, and says where it is."""
    out = folder / f"preload-{libc}"
    out.mkdir(exist_ok=True)

    def build(name: str) -> Path:
        path = out / name
        if not path.exists():
            shared = ["-shared", "-fPIC"] if name == "module" else ["-static"] if name == "static" else []
            source = HERE / ("module.c" if name == "static" else f"{name}.c")
            extra = ["-DALONE"] if name == "static" else []
            words = [COMPILERS[libc], "-Wall", "-Wextra", "-Werror", *shared, *extra, "-o", str(path), str(source)]
            subprocess.run(words, check=True, timeout=60)
            path.chmod(0o755)
        return path

    yield build
    shutil.rmtree(out)


@pytest.fixture
def account_way(request: pytest.FixtureRequest) -> Way:
    """The preload engine, as an ordinary user unless the test says otherwise: to most of the shim it's all the same."""
    account = getattr(request, "param", "user")
    return Way(account=request.getfixturevalue(f"{account}_account"), engine="preload")


@pytest.fixture
def calls(account_way: Way, wrap: Wrap, built_for: Programs, scripted_proxy: Scripted, target: Target) -> Calls:
    """Runs `calls WHAT` wrapped: `calls("errno")`. Its destination is the target's HTTP, by address and by name."""

    def run(
        what: str, name: str = "target.test", *, script: Script | None = None, env: dict[str, str] | None = None
    ) -> Done:
        words = [str(built_for("calls")), what, town.TARGET, str(target.ports["http"]), name]
        return wrap(account_way, words, via=scripted_proxy(script or Script()).url(), env=env)

    return run


@pytest.fixture
def alone(built_for: Programs) -> Callable[..., Done]:
    """Runs a program as it is, not wrapped: `alone("lookups", "localhost")`."""

    def run(name: str, *argv: str, env: dict[str, str] | None = None) -> Done:
        return finish([str(built_for(name)), *argv], environment={**os.environ, **(env or {})})

    return run
