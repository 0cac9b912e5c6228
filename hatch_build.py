"""Builds the preload engine's C library into the wheel; without a C compiler the wheel is a pure one, less that engine.

A wheel built from source is for this machine: `cc` (or what CC names) makes the library for its own libc, musl-gcc, if
it's there, the one for musl. An editable install puts them into the source tree. scripts/wheels names the compilers and
the tag itself: PYSOCKSIFY_CC_GLIBC and PYSOCKSIFY_CC_MUSL are command lines, PYSOCKSIFY_PLATFORM the wheel's platform.
"""

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("pysocksify", "engines", "preload")
FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-U_FORTIFY_SOURCE", "-fvisibility=hidden", "-fPIC", "-shared", "-s"),
    *("-Wl,--as-needed", "-Wl,-z,defs", "-Wl,-z,now", "-Wl,-z,noexecstack"),
)
LIBRARIES = ("-ldl",)  # dlsym(3) before glibc 2.34; empty elsewhere
NAMED = {"glibc": "PYSOCKSIFY_CC_GLIBC", "musl": "PYSOCKSIFY_CC_MUSL"}
PLATFORM = "PYSOCKSIFY_PLATFORM"


class CustomBuildHook(BuildHookInterface[Any]):
    """What hatchling calls; the class's name is its own."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build what this machine's compilers can. CalledProcessError: a compiler that was named can't."""
        self._scratch = tempfile.TemporaryDirectory(prefix="pysocksify-")
        root = Path(self.root)
        into = root / FOLDER if version == "editable" else Path(self._scratch.name)
        sources = [str(source) for source in sorted((root / FOLDER).glob("*.c"))]
        named = {libc: shlex.split(os.environ[name]) for libc, name in NAMED.items() if name in os.environ}
        built = []
        for libc, compiler in (named or self._found()).items():
            library = into / f"shim-{libc}.so"
            command = [*compiler, *FLAGS, "-o", str(library), *sources, *LIBRARIES]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            if done.returncode == 0:
                built.append(library)
            elif named:
                raise RuntimeError(f"{shlex.join(command)}: {done.stdout}")
            else:
                self.app.display_warning(f"{shlex.join(command)}: {done.stdout}")
        if not built:
            self.app.display_warning("without a C compiler that works the engine `preload` is left out")
        elif version != "editable":
            machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{os.environ.get(PLATFORM, machine)}"
            build_data["pure_python"] = False
            build_data["force_include"].update({str(library): str(FOLDER / library.name) for library in built})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Take away what isn't needed any more."""
        self._scratch.cleanup()

    def _found(self) -> dict[str, list[str]]:
        """This machine's compilers, by libc."""
        found: dict[str, list[str]] = {}
        if not sysconfig.get_platform().startswith("linux"):
            return found
        if shutil.which("musl-gcc"):
            found["musl"] = ["musl-gcc"]
        compiler = shlex.split(os.environ.get("CC") or "cc")
        if shutil.which(compiler[0]):
            done = subprocess.run([*compiler, "-dumpmachine"], stdout=subprocess.PIPE, text=True, check=False)
            found["musl" if "musl" in done.stdout else "glibc"] = compiler
        return found
