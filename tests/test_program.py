"""What kind of file a program is: real programs of every sort, scripts, and files made to mislead."""

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pysocksify.program import LINE_LIMIT, Kind, kind, kind_of_fd, privileges
from tests.lab.wrapped import missing, need

MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine of elf(5)
MACHINE = MACHINES[os.uname().machine]
SOURCE = "int main(void) { return 0; }\n"

COMPILED = [
    ("dynamic", ("gcc",), True),
    ("no-pie", ("gcc", "-no-pie"), True),
    ("static", ("gcc", "-static"), False),
    ("static-pie", ("gcc", "-static-pie"), False),
    ("musl", ("musl-gcc",), True),
    ("musl-static", ("musl-gcc", "-static"), False),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    (folder / "main.c").write_text(SOURCE)
    return folder


def compiled(folder: Path, name: str, words: tuple[str, ...]) -> str:
    need(words[0])
    program = folder / name
    if not program.exists():
        subprocess.run([*words, "-o", program, folder / "main.c"], check=True, timeout=60)
    return str(program)


@pytest.mark.parametrize(("name", "words", "dynamic"), COMPILED, ids=[row[0] for row in COMPILED])
def test_compiled(built: Path, name: str, words: tuple[str, ...], dynamic: bool) -> None:
    path = compiled(built, name, words)
    found = kind(path)
    assert (found.elf_class, found.machine, found.dynamic, found.script) == (2, MACHINE, dynamic, False)
    assert (found.privileges, found.readable) == ("", True)
    assert found.loader == found.interpreter
    assert ("ld-musl" in found.loader, "ld-linux" in found.loader) == (
        dynamic and "musl" in name,
        name in ("dynamic", "no-pie"),
    )


def test_go(built: Path) -> None:
    need("go")
    (built / "main.go").write_text("package main\nfunc main() {}\n")
    environ = {**os.environ, "CGO_ENABLED": "0", "GOCACHE": str(built / "cache"), "GOFLAGS": "-mod=mod"}
    command = ["go", "build", "-o", str(built / "go"), str(built / "main.go")]
    subprocess.run(command, check=True, timeout=300, env=environ, cwd=built)
    assert kind(str(built / "go")) == Kind(elf_class=2, machine=MACHINE, go=True)


def test_go_with_libc(built: Path) -> None:
    """A dynamic one is told from what C's compilers make."""
    need("go")
    need("gcc")
    (built / "cgo.go").write_text('package main\nimport "C"\nfunc main() {}\n')
    environ = {**os.environ, "CGO_ENABLED": "1", "GOCACHE": str(built / "cache"), "GOFLAGS": "-mod=mod"}
    command = ["go", "build", "-ldflags=-s -w", "-o", str(built / "cgo"), str(built / "cgo.go")]
    subprocess.run(command, check=True, timeout=300, env=environ, cwd=built)
    found = kind(str(built / "cgo"))
    assert (found.dynamic, found.go) == (True, True)
    assert not kind(compiled(built, "dynamic", ("gcc",))).go


def test_32_bit_and_big_endian(tmp_path: Path) -> None:
    """Headers as gcc -m32 and a PowerPC's compiler write them, with a loader."""
    loader = b"/lib/ld.so.1\0"
    ident = b"\x7fELF" + bytes([1, 2, 1]) + bytes(9)
    header = ident + struct.pack(">HHIIIIIHHHHHH", 2, 20, 1, 0, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    entries = struct.pack(">8I", 6, 52, 0, 0, 64, 64, 4, 4) + struct.pack(">8I", 3, 116, 0, 0, len(loader), 0, 4, 1)
    assert kind(file(tmp_path, header + entries + loader)) == Kind(
        elf_class=1, machine=20, dynamic=True, loader="/lib/ld.so.1", interpreter="/lib/ld.so.1"
    )


def file(folder: Path, content: bytes, mode: int = 0o755, name: str = "file") -> str:
    path = folder / name
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


SH = os.path.realpath("/bin/sh")
# first line, what `interpreter` is; {python} is this interpreter, {folder} one on PATH with `prog` (dynamic) in it
SCRIPTS = [
    ("#!/bin/sh\n", "/bin/sh"),
    ("#! /bin/sh -e\n", "/bin/sh"),
    ("#!\t/bin/sh\t-e x\n", "/bin/sh"),
    ("#!/bin/sh", "/bin/sh"),
    ("#!/bin/sh  \n", "/bin/sh"),
    ("#!{python} -I\n", "{python}"),
    ("#!/usr/bin/env prog\n", "{folder}/prog"),
    ("#!/usr/bin/env -S prog -u x\n", "{folder}/prog"),
    ("#!/usr/bin/env -Sprog\n", "{folder}/prog"),
    ("#!/usr/bin/env --split-string=A=1 B=2 prog\n", "{folder}/prog"),
    ("#!/usr/bin/env -S PATH=/none prog\n", "/usr/bin/env"),
    ("#!/usr/bin/env -S -i prog\n", "/usr/bin/env"),
    ("#!/usr/bin/env -S 'prog' $x\n", "/usr/bin/env"),
    ("#!/usr/bin/env no-such-program\n", "/usr/bin/env"),
    ("#!/usr/bin/env\n", "/usr/bin/env"),
    ("echo no first line\n", "/bin/sh"),
    ("", "/bin/sh"),
    ("#!\necho\n", "/bin/sh"),
    ("#!{folder}/inner\n", "/bin/sh"),
]


@pytest.mark.parametrize(("line", "interpreter"), SCRIPTS)
def test_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, interpreter: str) -> None:
    shutil.copy("/bin/true", tmp_path / "prog")
    file(tmp_path, b"#!/bin/sh\n", name="inner")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    known = {"python": os.path.realpath(sys.executable), "folder": tmp_path}
    found = kind(file(tmp_path, line.format(**known).encode()))
    assert (found.script, found.interpreter) == (True, interpreter.format(**known))
    assert (found.elf_class, found.machine, found.dynamic) == (2, MACHINE, True)
    assert found.loader == kind(SH).loader


def test_a_script_of_a_static_interpreter_is_static(built: Path, tmp_path: Path) -> None:
    static = compiled(built, "static", ("gcc", "-static"))
    script = file(tmp_path, f"#!{static}\n".encode())
    assert kind(script) == Kind(elf_class=2, machine=MACHINE, interpreter=static, script=True)


LINES = [  # what execve(2) doesn't take
    (b"#!/none/interpreter\n", Kind(script=True, interpreter="/none/interpreter", readable=False)),
    (b"#!/dev/null\n", Kind(script=True, interpreter="/dev/null", readable=False)),
    (b"#!/bin/\xff\n", Kind(script=True, interpreter="/bin/\udcff", readable=False)),
    (b"#!\0/bin/sh\n", Kind()),
    (b"\0", Kind()),
]


@pytest.mark.parametrize(("content", "expected"), LINES)
def test_lines_that_execve_does_not_take(tmp_path: Path, content: bytes, expected: Kind) -> None:
    assert kind(file(tmp_path, content)) == expected


def test_a_line_of_linux_ends_after_256_bytes(tmp_path: Path) -> None:
    """An interpreter whose name doesn't end before that isn't run; an argument may be cut."""
    name = "/bin/sh".rjust(LINE_LIMIT - 2, "/")
    path = file(tmp_path, f"#!{name}\n".encode())
    with pytest.raises(OSError, match="Exec format error"):
        os.posix_spawn(path, [path], {})
    with opened(path) as fd:
        assert kind_of_fd(fd) == Kind()
    with opened(file(tmp_path, f"#!{name[1:]}\n".encode())) as fd:
        assert kind_of_fd(fd).interpreter == name[1:]
    with opened(file(tmp_path, b"#!/bin/sh -" + 300 * b"x")) as fd:
        assert kind_of_fd(fd).interpreter == "/bin/sh"


def test_a_script_that_is_its_own_interpreter(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    file(tmp_path, f"#!{path}\n".encode())
    assert kind(path) == Kind(script=True, interpreter=path)


@pytest.mark.parametrize("make", [lambda path: None, os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)])
def test_what_is_no_file(tmp_path: Path, make: Callable[[str], None]) -> None:
    make(str(tmp_path / "x"))
    assert kind(str(tmp_path / "x")) == Kind(readable=False)
    assert kind("/dev/zero") == Kind(readable=False)


@pytest.fixture(scope="module")
def elf(built: Path) -> bytes:
    return Path(compiled(built, "dynamic", ("gcc",))).read_bytes()


def test_truncated(tmp_path: Path, elf: bytes) -> None:
    """Whatever is cut off: without all program headers and the loader's name it is nothing that could be run."""
    whole = kind(file(tmp_path, elf))
    for size in range(16, 1024):
        assert kind(file(tmp_path, elf[:size])) in (Kind(), whole), size


FIELDS = [  # struct elf64_hdr: offset, format, value
    (32, "<Q", 2**64 - 1),  # e_phoff
    (32, "<Q", 2**63 - 1),
    (54, "<H", 57),  # e_phentsize
    (56, "<H", 0),  # e_phnum
    (56, "<H", 65535),
]


@pytest.mark.parametrize(("at", "layout", "value"), FIELDS)
def test_headers_that_lie(tmp_path: Path, elf: bytes, at: int, layout: str, value: int) -> None:
    data = bytearray(elf)
    struct.pack_into(layout, data, at, value)
    assert kind(file(tmp_path, bytes(data))) == Kind()


@pytest.mark.parametrize(("offset", "size"), [(2**63, 20), (0, 2**63), (0, 1), (0, 5000), (0, 4), (10**6, 20)])
def test_a_loader_that_is_not_there(tmp_path: Path, elf: bytes, offset: int, size: int) -> None:
    data = bytearray(elf)
    phoff, phnum = struct.unpack_from("<Q", elf, 32)[0], struct.unpack_from("<H", elf, 56)[0]
    for at in range(phoff, phoff + 56 * phnum, 56):
        if struct.unpack_from("<I", elf, at)[0] == 3:
            struct.pack_into("<Q", data, at + 8, offset)
            struct.pack_into("<Q", data, at + 32, size)
    assert kind(file(tmp_path, bytes(data))) == Kind()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(changes=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=12), cut=st.integers(0, 1100))
def test_any_bytes_give_a_kind(tmp_path: Path, elf: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(elf[:1100])
    for at, value in changes:
        data[at] = value
    assert isinstance(kind(file(tmp_path, bytes(data[:cut]))), Kind)


# --- by descriptor


class opened:
    """A descriptor of a path that is only good for looking (O_PATH), as the supervisor gets it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> int:
        self.fd = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        return self.fd

    def __exit__(self, *_error: object) -> None:
        os.close(self.fd)


@pytest.fixture
def nothing_left_open() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.usefixtures("nothing_left_open")
def test_by_descriptor(tmp_path: Path) -> None:
    with opened("/bin/true") as fd:
        assert kind_of_fd(fd) == kind("/bin/true")
    with opened(file(tmp_path, b"#!/usr/bin/env sh\n")) as fd:
        assert kind_of_fd(fd).interpreter == "/usr/bin/env"
    with opened(file(tmp_path, b"no first line\n")) as fd:
        assert kind_of_fd(fd) == Kind()
    with opened(str(tmp_path)) as fd:
        assert kind_of_fd(fd) == Kind(readable=False)
    assert kind_of_fd(-1) == Kind(readable=False)


@pytest.mark.usefixtures("nothing_left_open")
def test_the_interpreter_in_another_root_directory(built: Path, tmp_path: Path) -> None:
    """Where a process has changed its root, /bin/sh is another file; an absolute link there stays inside."""
    static = compiled(built, "static", ("gcc", "-static"))
    (tmp_path / "bin").mkdir()
    shutil.copy(static, tmp_path / "bin" / "busybox")
    (tmp_path / "bin" / "sh").symlink_to("/bin/busybox")
    script = file(tmp_path, b"#!/bin/sh\n")
    with opened(script) as fd, opened(str(tmp_path)) as root:
        found = kind_of_fd(fd, root=root)
        assert found == Kind(elf_class=2, machine=MACHINE, interpreter="/bin/sh", script=True)
        assert kind_of_fd(fd).dynamic
    with opened(file(tmp_path, b"#!/bin/none\n")) as fd, opened(str(tmp_path)) as root:
        assert kind_of_fd(fd, root=root) == Kind(script=True, interpreter="/bin/none", readable=False)


def test_privileges_are_those_that_another_user_would_gain(tmp_path: Path) -> None:
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        missing(f"{tmp_path} is mounted nosuid")
    path = shutil.copy("/bin/true", tmp_path / "prog")
    mine, group = os.getuid(), os.getgid()
    os.chmod(path, 0o4755)
    assert privileges(str(path)) == ""
    assert privileges(str(path), mine + 1, group) == "setuid"
    os.chmod(path, 0o2755)
    assert privileges(str(path), mine, group + 1) == "setgid"
    os.chmod(path, 0o6755)
    with opened(str(path)) as fd:
        assert kind_of_fd(fd).privileges == ""
        assert kind_of_fd(fd, uid=mine + 1).privileges == "setuid"
    script = file(tmp_path, f"#!{path}\n".encode(), 0o6755)
    with opened(script) as fd:  # of the interpreter's bits, execve(2)
        assert kind_of_fd(fd, uid=mine + 1).privileges == "setuid"
    file(tmp_path, b"#!/bin/true\n", 0o6755)
    with opened(script) as fd:
        assert kind_of_fd(fd, uid=mine + 1).privileges == ""
