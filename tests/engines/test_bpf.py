"""The assembler for classic BPF: what it writes, byte by byte, and which jumps it refuses."""

import struct

import pytest

from pysocksify.engines.syscalls import bpf
from tests.engines.simulator import Action, InvalidProgram, check, run

ALLOW, KILL = 0x7FFF0000, 0x80000000


def sock_filter(code: int, jt: int, jf: int, k: int) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


def test_instructions_are_what_filter_h_says() -> None:
    a = bpf.Assembler()
    a.load(bpf.ARCH)
    a.mask(0xFF)
    a.jump(bpf.JUMP_EQUAL, 7, "yes", "no")
    a.jump(bpf.JUMP_GREATER_EQUAL, 8, None, "no")
    a.jump(bpf.JUMP_ANY_BIT, 9)
    a.label("yes")
    a.ret(ALLOW)
    a.label("no")
    a.ret(KILL)
    assert a.assemble() == b"".join(
        (
            sock_filter(0x20, 0, 0, 4),
            sock_filter(0x54, 0, 0, 0xFF),
            sock_filter(0x15, 2, 3, 7),
            sock_filter(0x35, 0, 2, 8),
            sock_filter(0x45, 0, 0, 9),
            sock_filter(0x06, 0, 0, ALLOW),
            sock_filter(0x06, 0, 0, KILL),
        )
    )


@pytest.mark.parametrize(("index", "offset"), [(0, 16), (1, 24), (5, 56)])
def test_arguments_lie_behind_the_instruction_pointer(index: int, offset: int) -> None:
    assert bpf.argument(index) == offset


def program_with_gap(gap: int) -> bytes:
    a = bpf.Assembler()
    a.jump(bpf.JUMP_EQUAL, 0, "far")
    for _ in range(gap):
        a.mask(0xFF)
    a.label("far")
    a.ret(ALLOW)
    return a.assemble()


def test_a_jump_reaches_255_instructions() -> None:
    assert run(program_with_gap(255), 0, 0) == Action("ALLOW")


def test_a_jump_further_than_255_is_refused() -> None:
    with pytest.raises(ValueError, match="far"):
        program_with_gap(256)


def test_a_jump_back_is_refused() -> None:
    a = bpf.Assembler()
    a.label("again")
    a.load(bpf.NR)
    a.jump(bpf.JUMP_EQUAL, 1, "again")
    a.ret(ALLOW)
    with pytest.raises(ValueError, match="again"):
        a.assemble()


@pytest.mark.parametrize(
    "program",
    [
        b"",
        bytes(7),
        sock_filter(0x20, 0, 0, 4),  # no return at the end
        sock_filter(0x20, 0, 0, 2) + sock_filter(0x06, 0, 0, ALLOW),  # not aligned
        sock_filter(0x20, 0, 0, 64) + sock_filter(0x06, 0, 0, ALLOW),  # behind struct seccomp_data
        sock_filter(0x15, 0, 1, 0) + sock_filter(0x06, 0, 0, ALLOW),  # out of the program
        sock_filter(0x28, 0, 0, 4) + sock_filter(0x06, 0, 0, ALLOW),  # a load of half a word
    ],
)
def test_the_simulator_refuses_what_the_kernel_refuses(program: bytes) -> None:
    with pytest.raises(InvalidProgram):
        check(program)
