"""Whether the ptrace engine can be used here, and for a program. Loaded before the target runs.

The kernel is asked by doing: a child is traced, and a descriptor of its taken.
"""

import errno
import os
from importlib.machinery import PathFinder

from pysocksify.engines.handover.wire import VARIABLE
from pysocksify.engines.syscalls import abi
from pysocksify.engines.syscalls.fit import absence
from pysocksify.engines.syscalls.fit import refusal as refusal  # choice asks each engine
from pysocksify.kernel import Kernel
from pysocksify.linux import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

YAMA = "/proc/sys/kernel/yama/ptrace_scope"


def availability(kernel: Kernel) -> str:
    """Why it can't be used here; "" when it can. This takes a fork."""
    if why := absence():
        return why
    if PathFinder.find_spec("ptrace") is None:
        return "python-ptrace isn't installed"
    if not kernel.pidfd_getfd:
        return _NO_DESCRIPTORS
    if os.environ.get(VARIABLE):  # its UDP sockets are made elsewhere than the program's
        return "inside a pysocksify that doesn't catch calls in the kernel programs couldn't ask for names"
    return beside_child(_traced)


_NO_DESCRIPTORS = "the sockets of programs can't be taken (pidfd_getfd(2)), as in default containers"


def words(error: int, pid: int) -> str:
    """Why a process can't be traced, by the errno of ptrace(2)."""
    if error == errno.EPERM:
        if tracer := _tracer_of(pid):
            return f"its programs are being traced already, by process {tracer}"
        try:
            with open(YAMA, encoding="ascii") as file:
                scope = file.read().strip()
        except OSError:  # a kernel without Yama
            scope = ""
        if scope == "2":
            return f"only administrators may trace here ({YAMA} is 2)"
        if scope == "3":
            return f"nobody may trace here ({YAMA} is 3)"
    return f"ptrace(2) isn't allowed here ({errno.errorcode.get(error, error)})"


def beside_child(use: "Callable[[int, int], T]") -> "T":
    """What `use` says, given the pid of a child that waits and the number of a descriptor of its. Nothing is left."""
    from contextlib import suppress
    from signal import SIGKILL

    childs, mine = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(mine)
            os.read(childs, 1)
        finally:
            os._exit(0)
    try:
        return use(pid, childs)
    finally:
        os.kill(pid, SIGKILL)
        os.close(childs)
        os.close(mine)
        with suppress(ChildProcessError):  # whoever started us may ignore SIGCHLD
            os.waitpid(pid, 0)


def take(pid: int, fd: int) -> None:
    """Take a process's descriptor, and close it. OSError."""
    pidfd = syscall(abi.PIDFD_OPEN, pid, 0)
    try:
        os.close(syscall(abi.PIDFD_GETFD, pidfd, fd, 0))
    finally:
        os.close(pidfd)


def _traced(pid: int, fd: int) -> str:
    """Trace a child and take a descriptor of its: why that can't be done, "" when it can."""
    from pysocksify.engines.ptrace import tracer

    try:
        tracer.seize(pid)
    except OSError as error:
        return words(error.errno or 0, pid)
    try:
        take(pid, fd)
    except OSError as error:
        return f"{_NO_DESCRIPTORS}: {os.strerror(error.errno or 0)}"
    return ""


def _tracer_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return int(file.read().partition(b"\nTracerPid:")[2].split(b"\n", 1)[0])
    except (OSError, ValueError):
        return 0
