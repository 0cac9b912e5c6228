"""Classic BPF (linux/filter.h) as seccomp(2) takes it: an assembler with labels, and nothing more."""

import struct

LOAD, AND, RETURN = 0x20, 0x54, 0x06
JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_ANY_BIT = 0x15, 0x35, 0x45

INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k

# struct seccomp_data (seccomp(2)): int nr; u32 arch; u64 instruction_pointer; u64 args[6]
NR, ARCH = 0, 4


def argument(index: int) -> int:
    """Offset of the low half of an argument; the calls caught take int where the filter looks."""
    return 16 + 8 * index


class Assembler:
    """Collects instructions; jumps name labels, which may only lie ahead, as the kernel has it."""

    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, str | None, str | None]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """The next instruction is called `name`."""
        self._labels[name] = len(self._instructions)

    def load(self, offset: int) -> None:
        """Load the 32-bit word at `offset` of struct seccomp_data."""
        self._instructions.append((LOAD, offset, None, None))

    def mask(self, bits: int) -> None:
        """Keep only `bits` of what is loaded."""
        self._instructions.append((AND, bits, None, None))

    def jump(self, code: int, value: int, yes: str | None = None, no: str | None = None) -> None:
        """Compare; go on at label `yes` or `no`, or with the next instruction where that is None."""
        self._instructions.append((code, value, yes, no))

    def ret(self, value: int) -> None:
        """End with a SECCOMP_RET_ value."""
        self._instructions.append((RETURN, value, None, None))

    def assemble(self) -> bytes:
        """The program as an array of struct sock_filter. ValueError: a jump goes back or further than 255."""
        code = bytearray()
        for at, (operation, value, yes, no) in enumerate(self._instructions):
            distances = []
            for name in (yes, no):
                distance = 0 if name is None else self._labels[name] - at - 1
                if not 0 <= distance <= 255:
                    raise ValueError(f"jump to {name} is out of range")
                distances.append(distance)
            code += INSTRUCTION.pack(operation, *distances, value)
        return bytes(code)
