"""Whether the python engine works here, and which programs it reaches: CPython's, and what starts them.

Loaded before the target's exec, and into the programs of this engine, which ask the same of what they execute.
"""

import os
import sys

from pysocksify import program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pysocksify.kernel import Kernel

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inject")
"""Where `sitecustomize` is, which Python imports at its start; PYTHONPATH names it."""

OLDEST = (3, 10)
SHELLS = ("sh", "ash", "bash", "dash", "fish", "ksh", "ksh93", "mksh", "rbash", "yash", "zsh")
NOT_PYTHON = "it is not a Python program"
_WITH_VALUE = "WXQ"  # options that take a value; -c and -m end the options
_LEFT_OUT = {"I": "-I", "E": "-E", "S": "-S"}


def availability(kernel: "Kernel") -> str:
    """Why the engine doesn't work here; "" when it does."""
    if sys.platform != "linux":
        return "the wrapper is for Linux; a Python program can use the library here: pysocksify.socksify()"
    if os.pathsep in FOLDER:
        return f"PYTHONPATH can't name {FOLDER}: it takes colons for ends of names"
    return ""


def refusal(command: "list[str]") -> str:
    """Why this program can't be covered; "" when it can, or when it isn't there."""
    path = program.find_program(command[0])
    return "" if path is None else unreached(path, command)


def shell(command: "list[str]") -> str:
    """The shell that a command runs, as it's called there; "" when it runs none."""
    path = program.find_program(command[0]) if command else None
    if path is None:
        return ""
    if os.path.basename(path) == "env":
        return shell(_started_by_env(command[1:]))
    return command[0] if os.path.basename(_runner(path)) in SHELLS else ""


def notice(command: "list[str]") -> str:
    """What is to be said of a program that only starts others; "" for Python itself."""
    name = shell(command)
    return about_shell(name) if name else ""


def about_shell(name: str) -> str:
    """What isn't promised of a shell."""
    return f"{name} isn't Python itself: only the Python programs that it starts go through the proxy"


def unreached(path: str, command: "list[str]") -> str:
    """Why a program with these arguments wouldn't ask the supervisor; "" when it does, or only starts others."""
    runner = _runner(path)
    name = os.path.basename(runner)
    if name in SHELLS:
        return ""
    if os.path.basename(path) == "env":
        return _env(command[1:])
    if name.startswith("pypy"):
        return "it is for PyPy, and this engine is for CPython only"
    if not _is_python(runner):
        return NOT_PYTHON
    return _too_old(runner) or _ignoring(command[1:] if runner == path else _line_options(path))


def _runner(path: str) -> str:
    """The program that runs a file: itself, or its interpreter."""
    kind = program.kind(path)
    return kind.interpreter if kind.script else path


def _is_python(path: str) -> bool:
    return any(_version(os.path.basename(each)) is not None for each in (path, os.path.realpath(path)))


def _version(name: str) -> "tuple[int, ...] | None":
    """The version in an interpreter's name, "python3.11" or "python3-dbg", as far as it says; None: it's no Python."""
    if not name.startswith("python"):
        return None
    rest = name.removeprefix("python").removesuffix("-dbg").rstrip("td")
    parts = rest.split(".") if rest else []
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else None


def _too_old(path: str) -> str:
    """Why an interpreter that says its version in its name is too old; what others are they say themselves."""
    for name in (os.path.basename(path), os.path.basename(os.path.realpath(path))):
        version = _version(name) or ()
        if version and (version[0] < OLDEST[0] or (len(version) > 1 and version < OLDEST)):
            return f"it is for Python {'.'.join(map(str, version))}, and this engine needs 3.10"
    return ""


def _ignoring(words: "list[str]") -> str:
    """Why Python with these arguments wouldn't import `sitecustomize`."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            return ""
        if word.startswith("--"):
            if word == "--check-hash-based-pycs":
                del rest[:1]
            continue
        for at, letter in enumerate(word[1:], 1):
            if letter in _LEFT_OUT:
                return f"Python with {_LEFT_OUT[letter]} leaves out what this engine puts in"
            if letter in "cm":
                return ""
            if letter in _WITH_VALUE:
                if at == len(word) - 1:
                    del rest[:1]
                break
    return ""


def _line_options(path: str) -> "list[str]":
    """The interpreter's arguments in a script's first line, env's own left out."""
    try:
        with open(path, "rb") as file:
            line = file.readline(program.LINE_LIMIT)
    except OSError:
        return []
    words = os.fsdecode(line[2:]).split()
    while words and not _is_python(words[0]):
        del words[0]
    return words[1:]


def _env(words: "list[str]") -> str:
    """Why what env(1) starts isn't reached."""
    rest = _started_by_env(words)
    for word in words[: len(words) - len(rest)]:
        if word.startswith(("PYTHONPATH=", "PYSOCKSIFY_HANDOVER=", "PATH=")):
            return f"env with {word.partition('=')[0]} changes what this engine needs"
        if word.startswith("-"):
            return f"env with {word} may change what this engine needs"
    return refusal(rest) if rest else ""


def _started_by_env(words: "list[str]") -> "list[str]":
    """The command among env's words. Options aren't looked into: with any, env isn't run."""
    rest = list(words)
    while rest and (rest[0].startswith("-") or "=" in rest[0]):
        del rest[0]
    return rest
