"""What the engines that see system calls ask of the machine and of a program. Loaded before the target runs."""

import os
import sys

from pysocksify.engines.syscalls import abi
from pysocksify.program import CANNOT_RUN, NotStartedError, check_program


def absence() -> str:
    """Why calls can't be seen on this machine; "" when they can."""
    if sys.platform != "linux":
        return "it is for Linux only"
    machine = os.uname().machine
    if machine not in abi.ARCHITECTURES or sys.maxsize < 2**32:
        return f"the calls of {machine} aren't known, or not to a 32-bit Python"
    return ""


def refusal(command: list[str]) -> str:
    """Why a program can't be run with its calls seen; "" when it can, and for one that isn't there."""
    try:
        check_program(command[0])
    except NotStartedError as error:
        return str(error) if error.exit_status == CANNOT_RUN else ""
    return ""
