"""Whether the ptrace engine can be used here, and for a program. Loaded before the target runs.

The kernel is asked by doing: a child is traced, and a descriptor of its taken.
"""

import errno
import os
import sys
from importlib.machinery import PathFinder

from pysocksify.engines.handover.wire import VARIABLE
from pysocksify.engines.syscalls import abi
from pysocksify.kernel import Kernel
from pysocksify.linux import syscall
from pysocksify.program import CANNOT_RUN, NotStartedError, check_program

YAMA = "/proc/sys/kernel/yama/ptrace_scope"


def availability(kernel: Kernel) -> str:
    """Why it can't be used here; "" when it can. This takes a fork."""
    if sys.platform != "linux":
        return "it is for Linux only"
    machine = os.uname().machine
    if machine not in abi.ARCHITECTURES or sys.maxsize < 2**32:
        return f"the calls of {machine} aren't known, or not to a 32-bit Python"
    if PathFinder.find_spec("ptrace") is None:
        return "python-ptrace isn't installed"
    if not kernel.pidfd_getfd:
        return _NO_DESCRIPTORS
    if os.environ.get(VARIABLE):  # its UDP sockets are made elsewhere than the program's
        return "inside a pysocksify that doesn't catch calls in the kernel programs couldn't ask for names"
    return _tried()


def refusal(command: list[str]) -> str:
    """Why it can't be used for a program; "" when it can."""
    try:
        check_program(command[0])
    except NotStartedError as error:
        return str(error) if error.exit_status == CANNOT_RUN else ""
    return ""


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


def _tried() -> str:
    """Trace a child and take a descriptor of its."""
    from contextlib import suppress
    from signal import SIGKILL

    from pysocksify.engines.ptrace import tracer

    childs, mine = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(mine)
            os.read(childs, 1)
        finally:
            os._exit(0)
    pidfd = -1
    try:
        try:
            tracer.seize(pid)
        except OSError as error:
            return words(error.errno or 0, pid)
        try:
            pidfd = syscall(abi.PIDFD_OPEN, pid, 0)
            os.close(syscall(abi.PIDFD_GETFD, pidfd, childs, 0))
        except OSError as error:
            return f"{_NO_DESCRIPTORS}: {os.strerror(error.errno or 0)}"
        return ""
    finally:
        os.kill(pid, SIGKILL)
        for fd in (childs, mine, pidfd):
            if fd >= 0:
                os.close(fd)
        with suppress(ChildProcessError):  # whoever started us may ignore SIGCHLD
            os.waitpid(pid, 0)


def _tracer_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return int(file.read().partition(b"\nTracerPid:")[2].split(b"\n", 1)[0])
    except (OSError, ValueError):
        return 0
