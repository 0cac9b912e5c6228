"""Whether the preload engine works here, and which programs it reaches: those that load a library before all else.

Loaded before the target's exec.
"""

import os
import sys

from pysocksify import program
from pysocksify.kernel import Kernel
from pysocksify.program import Kind

FOLDER = os.path.dirname(os.path.abspath(__file__))
GLIBC, MUSL = "glibc", "musl"
_HARMLESS = ("/sbin/ldconfig", "/usr/sbin/ldconfig")  # static, connects to nothing, and ctypes.util asks it
_LOADERS = ("ld-linux", "ld-musl-", "ld64.so.", "ld.so.")  # run by name, they load a program as the kernel would


def availability(kernel: Kernel) -> str:
    """Why the engine doesn't work here; "" when it does."""
    if sys.platform != "linux":
        return "LD_PRELOAD as the shim knows it is Linux's"
    if any(character in FOLDER for character in ": "):
        return f"LD_PRELOAD can't name {FOLDER}: it takes blanks and colons for ends of names"
    if not any(os.path.exists(_object(libc)) for libc in (GLIBC, MUSL)):
        return "the shim isn't built: this package was installed without a C compiler"
    return ""


def refusal(command: list[str]) -> str:
    """Why this program can't be covered; "" when it can, or when it isn't there."""
    path = program.find_program(command[0])
    return "" if path is None else unreached(program.kind(path), path)


def unreached(kind: Kind, path: str) -> str:
    """Why the shim doesn't get into a program; "" when it does."""
    if not kind.readable:
        return "it can't be read, so nobody can tell how it's linked"
    if kind.privileges:
        return f"it is a {kind.privileges} program, for which LD_PRELOAD is ignored"
    if not kind.elf_class:
        return "it is no ELF program"
    own = object_for(kind.loader)
    if not own:
        return f"the shim isn't built for {libc_of(kind.loader)}"
    mine = program.kind(own)
    if (kind.elf_class, kind.machine) != (mine.elf_class, mine.machine):
        return "it is for another kind of machine than the shim"
    run = kind.interpreter if kind.script else path
    if not kind.dynamic and run not in _HARMLESS and not os.path.basename(run).startswith(_LOADERS):
        return "it is a static program, which loads no library"
    if kind.go:
        return "it is a Go program, which makes its system calls itself"
    return ""


def libc_of(loader: str) -> str:
    """The libc of programs with this dynamic linker."""
    return MUSL if "musl" in os.path.basename(loader) else GLIBC


def object_for(loader: str) -> str:
    """The shim's object for programs with this dynamic linker (PT_INTERP); "" when it isn't built."""
    path = _object(libc_of(loader))
    return path if os.path.exists(path) else ""


def _object(libc: str) -> str:
    return f"{FOLDER}/shim-{libc}.so"
