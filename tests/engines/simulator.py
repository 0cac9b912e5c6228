"""Classic BPF as seccomp(2) runs it, written from linux/filter.h and linux/seccomp.h: checks and runs a program."""

import struct
from dataclasses import dataclass

MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS
DATA_SIZE = 64  # sizeof(struct seccomp_data)

LD_W_ABS, ALU_AND_K, RET_K = 0x20, 0x54, 0x06
JA, JEQ, JGT, JGE, JSET = 0x05, 0x15, 0x25, 0x35, 0x45
JUMPS = (JEQ, JGT, JGE, JSET)

ACTIONS = {
    0x80000000: "KILL",
    0x00030000: "TRAP",
    0x00050000: "ERRNO",
    0x7FC00000: "NOTIFY",
    0x7FF00000: "TRACE",
    0x7FFF0000: "ALLOW",
}
ACTION_MASK, DATA_MASK = 0xFFFF0000, 0x0000FFFF


@dataclass(frozen=True, slots=True)
class Action:
    """What a filter decides: "ALLOW", "NOTIFY", "ERRNO", ..., and its data, which is the errno for ERRNO."""

    name: str
    data: int = 0


class InvalidProgram(Exception):
    """A program that the kernel would refuse with EINVAL."""


def check(program: bytes) -> list[tuple[int, int, int, int]]:
    """The instructions (code, jt, jf, k) of a program that bpf_check_classic() and seccomp_check_filter() let pass."""
    if len(program) % 8:
        raise InvalidProgram("not an array of struct sock_filter")
    instructions = list(struct.iter_unpack("=HBBI", program))
    if not 0 < len(instructions) <= MOST_INSTRUCTIONS:
        raise InvalidProgram(f"{len(instructions)} instructions")
    for at, (code, jt, jf, k) in enumerate(instructions):
        left = len(instructions) - at - 1
        if code == LD_W_ABS:
            if k % 4 or k >= DATA_SIZE:
                raise InvalidProgram(f"{at}: load from {k}")
        elif code == JA:
            if k >= left:
                raise InvalidProgram(f"{at}: jump by {k} leaves the program")
        elif code in JUMPS:
            if jt >= left or jf >= left:
                raise InvalidProgram(f"{at}: jump by {jt} or {jf} leaves the program")
        elif code not in (ALU_AND_K, RET_K):
            raise InvalidProgram(f"{at}: code 0x{code:02X}")
    if instructions[-1][0] != RET_K:
        raise InvalidProgram("the last instruction isn't a return")
    return instructions


def run(program: bytes, arch: int, number: int, arguments: tuple[int, ...] = ()) -> Action:
    """What the program decides about one call."""
    instructions = check(program)
    # struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0x7F0012345678, *padded)
    accumulator = at = 0
    while True:
        code, jt, jf, k = instructions[at]
        at += 1
        if code == LD_W_ABS:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == ALU_AND_K:
            accumulator &= k
        elif code == RET_K:
            return Action(ACTIONS[k & ACTION_MASK], k & DATA_MASK)
        elif code == JA:
            at += k
        else:
            holds = {JEQ: accumulator == k, JGT: accumulator > k, JGE: accumulator >= k, JSET: accumulator & k}[code]
            at += jt if holds else jf
