"""What a wrapped Python program executes: Python and shells only, with an environment in which they are wrapped too.

The first shell is told to the supervisor: what it starts that isn't Python goes past the proxy, and the person is told.

Loaded into programs. Every way of Python's to start a program ends in one of the functions that are replaced here.
"""

import _posixsubprocess
import errno
import os
import posix
import sys

from pysocksify.engines.handover import wire
from pysocksify.engines.python import fit
from pysocksify.program import find_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pysocksify.engines.python.layers import Answering

SEARCH_PATH = "PYTHONPATH"
SHELL = "/bin/sh"  # system(3)'s
EXECUTABLES, ENVIRONMENT = 1, 5  # arguments of _posixsubprocess.fork_exec()


class Guard:
    """The stand-ins. What isn't covered gets EACCES, and the person hears of it, as of a shell, which is let be."""

    def __init__(self, asked: "Answering", folder: str) -> None:
        self._asked = asked
        self._folder = folder
        self._given = os.environ[wire.VARIABLE]
        self._said: set[str] = set()
        self._said_of_shells = False
        self._execve: Callable[..., Any] = posix.execve
        self._posix_spawn: Callable[..., Any] = posix.posix_spawn
        self._posix_spawnp: Callable[..., Any] = posix.posix_spawnp
        self._system: Callable[..., Any] = posix.system
        self._fork_exec: Callable[..., Any] = _posixsubprocess.fork_exec

    def execv(self, path: "Any", args: "Any") -> None:
        """os.execv()."""
        self.execve(path, args, os.environ)

    def execve(self, path: "Any", args: "Any", env: "Any") -> None:
        """os.execve()."""
        self._check(f"/proc/self/fd/{path}" if isinstance(path, int) else path, args)
        self._execve(path, args, self._environment(env))

    def posix_spawn(self, path: "Any", args: "Any", env: "Any", **named: "Any") -> int:
        """os.posix_spawn()."""
        self._check(path, args)
        pid: int = self._posix_spawn(path, args, self._environment(env), **named)
        return pid

    def posix_spawnp(self, path: "Any", args: "Any", env: "Any", **named: "Any") -> int:
        """os.posix_spawnp()."""
        self._check(path, args)
        pid: int = self._posix_spawnp(path, args, self._environment(env), **named)
        return pid

    def system(self, command: "Any") -> int:
        """os.system(). A shell; its environment is this process's."""
        self._tell_of_shell(SHELL, [SHELL])
        before = dict(os.environ)
        os.environ.update(self._environment(before))
        try:
            status: int = self._system(command)
        finally:
            for name in (wire.VARIABLE, SEARCH_PATH):
                if name in before:
                    os.environ[name] = before[name]
                else:
                    os.environ.pop(name, None)
        return status

    def fork_exec(self, *arguments: "Any") -> int:
        """_posixsubprocess.fork_exec(), by which subprocess and multiprocessing start programs."""
        given = list(arguments)
        paths = [path for path in given[EXECUTABLES] if os.path.exists(path)]
        if paths:
            self._check(paths[0], given[0])
        listed = given[ENVIRONMENT]
        if listed is None:
            environment = self._environment(None)
        else:
            environment = self._environment(dict(entry.split(b"=", 1) for entry in map(os.fsencode, listed)))
        given[ENVIRONMENT] = [os.fsencode(name) + b"=" + os.fsencode(value) for name, value in environment.items()]
        pid: int = self._fork_exec(*given)
        return pid

    def _environment(self, env: "Mapping[Any, Any] | None") -> "dict[str, str]":
        """An environment in which Python is wrapped: by this engine, or by whoever has taken over.

        None is this process's own, as os.posix_spawn() has it since Python 3.13.
        """
        env = os.environ if env is None else env
        made = {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
        made.setdefault(wire.VARIABLE, self._given)
        entries = made.get(SEARCH_PATH, "").split(os.pathsep)
        if self._folder not in entries:
            made[SEARCH_PATH] = os.pathsep.join([self._folder, *(entry for entry in entries if entry)])
        return made

    def _check(self, path: "Any", args: "Any") -> None:
        """Raise PermissionError for what wouldn't ask the supervisor."""
        found = find_program(os.fsdecode(path))
        if found is None:
            return
        if "pysocksify.front" in sys.modules:
            reason = "pysocksify doesn't work inside its own python engine"
        else:
            reason = fit.unreached(found, [os.fsdecode(word) for word in args])
        if not reason:
            self._tell_of_shell(found, args)
            return
        name = os.fsdecode(path)
        if name not in self._said:
            self._said.add(name)
            self._asked.ask(wire.REFUSED, f"running {name} ({reason})".encode("utf-8", "surrogateescape"))
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

    def _tell_of_shell(self, found: str, args: "Any") -> None:
        """Tell the supervisor of the first shell that is started."""
        name = "" if self._said_of_shells else fit.shell([found, *map(os.fsdecode, args[1:])])
        if name:
            self._said_of_shells = True
            with open(find_program(name) or name, "rb", buffering=0, opener=_open_path) as program:
                self._asked.ask(wire.EXEC, os.fsencode(name), program)


def _open_path(path: str, flags: int) -> int:
    """A descriptor that names a file, which needn't be readable."""
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def guard(asked: "Answering", folder: str) -> None:
    """Put the stand-ins in place, for as long as the interpreter lives."""
    made = Guard(asked, folder)
    for name in ("execv", "execve", "posix_spawn", "posix_spawnp", "system"):
        for module in (os, posix):
            setattr(module, name, getattr(made, name))
    vars(_posixsubprocess)["fork_exec"] = made.fork_exec
    subprocess = sys.modules.get("subprocess")
    if hasattr(subprocess, "_fork_exec"):  # where it was imported by name
        vars(subprocess)["_fork_exec"] = made.fork_exec
