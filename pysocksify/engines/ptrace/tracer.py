"""Requests to the kernel about traced threads: python-ptrace's bindings, and what they lack, by ctypes.

python-ptrace has no PTRACE_SEIZE and what came with it (LISTEN, INTERRUPT), no PTRACE_GET_SYSCALL_INFO, and none of
aarch64's register set for the number of a call. It takes 20 ms to import, so it's imported once the target runs.

Each request fails with ProcessLookupError when the thread isn't in a stop: it was killed.
"""

import ctypes
import os
import struct

from pysocksify.engines.syscalls import abi
from pysocksify.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# linux/ptrace.h
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_LISTEN, PTRACE_GET_SYSCALL_INFO = 0x4206, 0x4207, 0x4208, 0x420E
PTRACE_GETREGSET, PTRACE_SETREGSET = 0x4204, 0x4205
EVENT_SECCOMP, EVENT_STOP = 7, 128
_TRACESYSGOOD, _TRACEFORK, _TRACEVFORK, _TRACECLONE, _TRACESECCOMP = 1, 2, 4, 8, 1 << 7
_EXITKILL = 1 << 20
OPTIONS = _TRACESYSGOOD | _TRACEFORK | _TRACEVFORK | _TRACECLONE | _TRACESECCOMP | _EXITKILL
ENTRY, EXIT, SECCOMP = 1, 2, 3  # PTRACE_SYSCALL_INFO_

NT_PRSTATUS, NT_ARM_SYSTEM_CALL = 1, 0x404  # linux/elf.h
_RAX, _ORIG_RAX = 80, 120  # offsets in x86-64's struct user (sys/user.h)
_AARCH64_REGISTERS = 34 * 8  # struct user_pt_regs: x0 to x30, sp, pc, pstate (asm/ptrace.h)

# struct ptrace_syscall_info: op, arch, instruction_pointer, stack_pointer; then nr, args, ret_data or rval, is_error
_INFO = struct.Struct("=B3xIQQQ6QI4x")
_RVAL = struct.Struct("=q")
_RVAL_OFFSET = 24

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = [ctypes.c_long] * 4
_ptrace.restype = ctypes.c_long


@record(frozen=True, slots=True)
class Stop:
    """What PTRACE_GET_SYSCALL_INFO says of a stop: `op` is ENTRY, EXIT, SECCOMP, or 0 in a stop of no call.

    At an EXIT only `value` tells of the call: what it returns, an errno negative.
    """

    op: int
    audit_arch: int
    instruction: int
    stack: int
    nr: int
    args: tuple[int, ...]
    data: int
    value: int


def seize(tid: int) -> None:
    """Trace a thread and all that it starts from now on; they are killed when this process ends. OSError: EPERM."""
    _request(PTRACE_SEIZE, tid, 0, OPTIONS)


def interrupt(tid: int) -> None:
    """Have a thread stop soon, or once more after the stop it is in."""
    _request(PTRACE_INTERRUPT, tid, 0, 0)


class Tracer:
    """Requests for one architecture. For one thread only, the one that has seized."""

    def __init__(self, arch: abi.Architecture) -> None:
        from ptrace import PtraceError
        from ptrace.binding import func as binding

        self._binding = binding
        self._error = PtraceError
        self._info = ctypes.create_string_buffer(_INFO.size)
        self._info_address = ctypes.addressof(self._info)
        self._registers: _X86Registers | _Aarch64Registers
        if arch is abi.ARCHITECTURES["x86_64"]:
            self._registers = _X86Registers(binding)
        else:
            self._registers = _Aarch64Registers()

    def stop(self, tid: int) -> Stop:
        """What stop a thread is in."""
        _request(PTRACE_GET_SYSCALL_INFO, tid, _INFO.size, self._info_address)
        op, audit_arch, instruction, stack, nr, *args, data = _INFO.unpack_from(self._info)
        (value,) = _RVAL.unpack_from(self._info, _RVAL_OFFSET)
        return Stop(op, audit_arch, instruction, stack, nr, tuple(args), data, value)

    def resume(self, tid: int, number: int, calls: bool) -> None:
        """Let a thread go on, with a signal (0: none); `calls`: it stops at the next entry or exit of a call."""
        try:
            (self._binding.ptrace_syscall if calls else self._binding.ptrace_cont)(tid, number)
        except self._error as error:
            _fail(error)

    def listen(self, tid: int) -> None:
        """Leave a thread stopped as the signal has it; what continues it makes another stop."""
        _request(PTRACE_LISTEN, tid, 0, 0)

    def set_number(self, tid: int, nr: int) -> None:
        """At a call's entry: which call the kernel performs (-1: none). At its exit: which one was performed."""
        try:
            self._registers.set_number(tid, nr)
        except self._error as error:
            _fail(error)

    def set_value(self, tid: int, value: int) -> None:
        """What a call returns, an errno negative: at its exit, or at the entry of one that isn't performed."""
        try:
            self._registers.set_value(tid, value)
        except self._error as error:
            _fail(error)


class _X86Registers:
    """Where x86-64 has a call's number and its result."""

    def __init__(self, binding: object) -> None:
        self._poke = binding.ptrace_pokeuser  # type: ignore[attr-defined]  # python-ptrace has no types

    def set_number(self, tid: int, nr: int) -> None:
        self._poke(tid, _ORIG_RAX, nr)

    def set_value(self, tid: int, value: int) -> None:
        self._poke(tid, _RAX, value)


class _Aarch64Registers:
    """Where aarch64 has them: the number has a register set of its own, the result is x0."""

    def __init__(self) -> None:
        self._all = ctypes.create_string_buffer(_AARCH64_REGISTERS)
        self._nr = ctypes.c_int()
        # struct iovec: base, length
        self._all_iovec = (ctypes.c_uint64 * 2)()
        self._nr_iovec = (ctypes.c_uint64 * 2)(ctypes.addressof(self._nr), ctypes.sizeof(self._nr))

    def set_number(self, tid: int, nr: int) -> None:
        self._nr.value = nr
        _request(PTRACE_SETREGSET, tid, NT_ARM_SYSTEM_CALL, ctypes.addressof(self._nr_iovec))

    def set_value(self, tid: int, value: int) -> None:
        iovec = self._all_iovec
        iovec[0], iovec[1] = ctypes.addressof(self._all), _AARCH64_REGISTERS
        _request(PTRACE_GETREGSET, tid, NT_PRSTATUS, ctypes.addressof(iovec))
        _RVAL.pack_into(self._all, 0, value)
        _request(PTRACE_SETREGSET, tid, NT_PRSTATUS, ctypes.addressof(iovec))


def _request(request: int, tid: int, address: int, data: int) -> None:
    if _ptrace(request, tid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")


def _fail(error: Exception) -> "NoReturn":
    number: int = error.errno  # type: ignore[attr-defined]  # PtraceError's
    raise OSError(number, f"ptrace: {os.strerror(number)}") from None
