"""What `scripts/wheels` does: an sdist, and a wheel for each machine, cross-compiled with the package ziglang, checked.

A wheel holds the library for both libcs, for a machine with one may run programs with the other, and bears both tags.
What a tag promises is looked for in the ELF files: the machine, no other library than libc, no newer symbol.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from hatchling.build import build_sdist, build_wheel

REPOSITORY = Path(__file__).parent.parent
MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}  # as readelf(1) calls them
GLIBC = (2, 17)  # of manylinux2014, PEP 599; the oldest that has aarch64
PLATFORM = "manylinux_2_17_{0}.manylinux2014_{0}.musllinux_1_2_{0}"
LIBRARIES = {
    "glibc": {"libc.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"},
    "musl": {"libc.so"},
}
SYMBOL = re.compile(r"^ *\d+:(?: +\S+){5} +(\S+) ([^\s@]+)(?:@+GLIBC_([0-9.]+))?", re.MULTILINE)


def main() -> None:
    """Build into the folder given, check, and say what there is."""
    parser = argparse.ArgumentParser(prog="scripts/wheels")
    parser.add_argument("folder", nargs="?", type=Path, default=REPOSITORY / "dist")
    folder: Path = parser.parse_args().folder.resolve()
    os.chdir(REPOSITORY)
    print(build_sdist(str(folder)))
    for machine in MACHINES:
        zig = f"{sys.executable} -m ziglang cc -target {machine}-linux"
        os.environ["PYSOCKSIFY_CC_GLIBC"] = f"{zig}-gnu.{GLIBC[0]}.{GLIBC[1]}"
        os.environ["PYSOCKSIFY_CC_MUSL"] = f"{zig}-musl"
        os.environ["PYSOCKSIFY_PLATFORM"] = PLATFORM.format(machine)
        wheel = folder / build_wheel(str(folder))
        with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
            for libc, allowed in LIBRARIES.items():
                library = Path(archive.extract(f"pysocksify/engines/preload/shim-{libc}.so", scratch))
                check(library, MACHINES[machine], allowed)
        if machine == os.uname().machine:
            install(wheel)
        print(wheel.name)


def check(library: Path, machine: str, allowed: set[str]) -> None:
    """End with a line when a library isn't what the wheel's tag promises."""
    seen = readelf("--file-header", "--dynamic", library)
    found = re.search(r"Machine: *(.*)", seen)
    if found is None or found[1] != machine:
        fail(library, f"is for {found and found[1]}")
    if others := set(re.findall(r"\(NEEDED\).*\[(.*)\]", seen)) - allowed:
        fail(library, f"needs {', '.join(others)}")
    if re.search(r"\((RPATH|RUNPATH|TEXTREL)\)", seen):
        fail(library, "has a path or relocations of its own")
    defined = set()
    # number, value, size, type, binding, visibility, section, name@version
    for section, name, version in SYMBOL.findall(readelf("--dyn-syms", "--wide", library)):
        if section != "UND":
            defined.add(name)
        elif version and tuple(map(int, version.split("."))) > GLIBC:
            fail(library, f"needs {name} of glibc {version}")
    if "connect" not in defined:
        fail(library, "has no connect()")


def readelf(*words: str | Path) -> str:
    """What readelf(1) says."""
    return subprocess.run(["readelf", *words], stdout=subprocess.PIPE, text=True, check=True).stdout


def install(wheel: Path) -> None:
    """Have pip install a wheel for this machine, and load the library for its libc."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
        subprocess.run([*pip, "--no-deps", "--target", folder, str(wheel)], check=True)
        libc = "glibc" if platform.libc_ver()[0] == "glibc" else "musl"
        library = Path(folder, "pysocksify", "engines", "preload", f"shim-{libc}.so")
        subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r})"], check=True)


def fail(library: Path, words: str) -> None:
    """Say what is wrong."""
    sys.exit(f"scripts/wheels: {library.name} {words}")


if __name__ == "__main__":
    main()
