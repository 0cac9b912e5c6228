"""What the build backend makes of a checkout: wheels with and without a C compiler, an editable install, an sdist.

The backend is called as pip does (PEP 517, PEP 660), on a copy of the files that it takes.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pysocksify.program import kind
from tests.lab.wrapped import need

REPOSITORY = Path(__file__).parent.parent
FILES = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore")
SHIM = "pysocksify/engines/preload/shim"
MACHINES = {"x86_64": 62, "aarch64": 183}
BUILD = "import hatchling.build, sys; print(getattr(hatchling.build, 'build_' + sys.argv[1])(sys.argv[2]))"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that the backend takes, without libraries that were built."""
    folder = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(REPOSITORY / "pysocksify", folder / "pysocksify", ignore=ignore)
    for name in FILES:
        shutil.copy(REPOSITORY / name, folder)
    return folder


def build(checkout: Path, what: str, **environ: str) -> tuple[Path, str]:
    """The file that the backend's `build_…` makes, and what it said."""
    out = checkout.parent / "out"
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(out)],
        cwd=checkout, env={**os.environ, **environ}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return out / done.stdout.split()[-1], done.stdout + done.stderr


def libraries(wheel: Path) -> list[str]:
    """The libcs for which a wheel has a library."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".so"))
    return [name.removeprefix(f"{SHIM}-").removesuffix(".so") for name in names]


def without_compilers(folder: Path) -> str:
    """A PATH on which nothing is."""
    (folder / "empty").mkdir()
    return str(folder / "empty")


def test_a_wheel_has_the_libraries_of_this_machine(checkout: Path, tmp_path: Path) -> None:
    need("cc")
    need("musl-gcc")
    wheel, _ = build(checkout, "wheel")
    machine = os.uname().machine
    assert wheel.name.endswith(f"-py3-none-linux_{machine}.whl")
    assert libraries(wheel) == ["glibc", "musl"]
    assert not list(checkout.rglob("*.so"))
    with zipfile.ZipFile(wheel) as archive:
        for libc in ("glibc", "musl"):
            found = kind(archive.extract(f"{SHIM}-{libc}.so", tmp_path))
            assert (found.elf_class, found.machine) == (2, MACHINES[machine])
    library = tmp_path / f"{SHIM}-glibc.so"
    subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r})"], check=True, timeout=30)


def test_without_a_compiler_the_wheel_is_for_every_machine(checkout: Path) -> None:
    (checkout / f"{SHIM}-glibc.so").write_bytes(b"of an editable install")
    wheel, said = build(checkout, "wheel", PATH=without_compilers(checkout.parent))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert libraries(wheel) == []
    assert "without a C compiler" in said


def test_a_compiler_that_fails_is_as_none_and_is_quoted(checkout: Path) -> None:
    (checkout / "pysocksify/engines/preload/sockets.c").write_text("no C\n")
    wheel, said = build(checkout, "wheel")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "error" in said
    assert "without a C compiler" in said


def test_a_compiler_that_was_named_must_work(checkout: Path) -> None:
    with pytest.raises(RuntimeError, match="false -std=gnu11"):
        build(checkout, "wheel", PYSOCKSIFY_CC_GLIBC="false")


def test_named_compilers_and_platform(checkout: Path) -> None:
    need("cc")
    named = {"PYSOCKSIFY_CC_GLIBC": "cc -DNDEBUG", "PYSOCKSIFY_PLATFORM": "manylinux_2_36_x86_64.linux_x86_64"}
    wheel, _ = build(checkout, "wheel", **named)
    assert wheel.name.endswith("-py3-none-manylinux_2_36_x86_64.linux_x86_64.whl")
    assert libraries(wheel) == ["glibc"]


def test_an_editable_install_has_them_in_the_source_tree(checkout: Path) -> None:
    need("cc")
    wheel, _ = build(checkout, "editable")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert (checkout / f"{SHIM}-glibc.so").exists()


def test_an_sdist_has_the_source_and_makes_the_same_wheel(checkout: Path, tmp_path: Path) -> None:
    need("cc")
    (checkout / f"{SHIM}-glibc.so").write_bytes(b"of an editable install")
    sdist, _ = build(checkout, "sdist")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    subprocess.run(["tar", "-xf", sdist, "-C", tmp_path], check=True)  # tarfile has another way since Python 3.11.4
    (root,) = {name.partition("/")[0] for name in names}
    sources = [*(checkout / "pysocksify/engines/preload").glob("*.[ch]"), checkout / "hatch_build.py"]
    assert len(sources) > 2
    assert {f"{root}/{source.relative_to(checkout)}" for source in sources} < set(names)
    assert not [name for name in names if name.endswith(".so")]
    wheel, _ = build(tmp_path / root, "wheel")
    assert "glibc" in libraries(wheel)


def test_an_installed_wheel_runs(checkout: Path, tmp_path: Path) -> None:
    """In a virtual environment of its own, with the packages that it requires where they are."""
    wheel, _ = build(checkout, "wheel")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=60)
    (site,) = (tmp_path / "venv").glob("lib/python3.*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> tuple[int, str, str]:
        command = [str(tmp_path / "venv" / "bin" / "python"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environ, cwd="/", check=False)
        return done.returncode, done.stdout, done.stderr

    assert run("-c", "import pysocksify; print(pysocksify.__file__)") == (0, f"{site}/pysocksify/__init__.py\n", "")
    options = ("-p", "socks5://127.0.0.1:1", "--engine", "seccomp")
    assert run("-m", "pysocksify", *options, "echo", "ran") == (0, "ran\n", "")
