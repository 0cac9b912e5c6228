"""The rules for where every call stops, against the filter, which the simulator runs: both must decide the same."""

import errno
import itertools
import socket

import pytest

from pysocksify.engines.ptrace import selection
from pysocksify.engines.syscalls import abi, filter
from pysocksify.engines.syscalls.filter import JOINS, MSG_FASTOPEN, SO_BINDTOIFINDEX
from tests.engines import simulator
from tests.engines.simulator import Action, run

NAMES = list(abi.ARCHITECTURES)
ARGUMENTS: dict[str, list[tuple[int, ...]]] = {
    "connect": [()],
    "getpeername": [()],
    "getsockopt": [
        (3, level, option)
        for level, option in itertools.product((socket.SOL_SOCKET, socket.IPPROTO_TCP), (socket.SO_ERROR, 3))
    ],
    "setsockopt": [
        (3, level, option)
        for level in (socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_TCP)
        for option in (1, socket.SO_BINDTODEVICE, SO_BINDTOIFINDEX, *itertools.chain(*JOINS.values()))
    ],
    "socket": list(
        itertools.product((1, 2, 5, 10, 16, 17, 38, 40), (1, 2, 3, 5, 1 | 0o4000, 2 | 0o2000000), (0, 1, 6, 17, 262))
    ),
    "sendto": [(3, 0x1000, 4, flags, name, 16) for flags in (0, MSG_FASTOPEN) for name in (0, 0x7000, 1 << 40)],
    "recvfrom": [(3, 0x1000, 4, 0, name, 0x2000) for name in (0, 0x7000, 1 << 40)],
    "sendmsg": [(3, 0x1000, flags) for flags in (0, MSG_FASTOPEN)],
    "sendmmsg": [(3, 0x1000, 1, flags) for flags in (0, MSG_FASTOPEN)],
    "recvmsg": [(3, 0x1000, 0)],
    "recvmmsg": [(3, 0x1000, 1, 0, 0)],
    "seccomp": [(operation, flags, 0x1000) for operation in (0, 1, 2) for flags in (0, 1, 8, 9)],
    "dup": [(800,)],
    "dup3": [(800, 3, 0)],
    "fcntl": [(800, 0, 3), (800, 1030, 3), (3, 4, 0)],
    "getpid": [()],
}  # fmt: skip
ROWS = [(call, arguments) for call, each in ARGUMENTS.items() for arguments in each]


def decided(arch: abi.Architecture, audit_arch: int, number: int, arguments: tuple[int, ...]) -> Action:
    """What the rules decide, in the simulator's words."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    verdict = selection.Selection(arch).verdict(audit_arch, number, padded)
    return Action(simulator.ACTIONS[verdict & 0xFFFF0000], verdict & 0xFFFF)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_native_calls(name: str, row: tuple[str, tuple[int, ...]]) -> None:
    arch = abi.ARCHITECTURES[name]
    number = getattr(arch, row[0])
    filtered = run(filter.program(arch, traced=True), arch.audit_arch, number, row[1])
    assert decided(arch, arch.audit_arch, number, row[1]) == filtered


@pytest.mark.parametrize("name", NAMES)
def test_all_other_numbers(name: str) -> None:
    arch = abi.ARCHITECTURES[name]
    program = filter.program(arch, traced=True)
    stricter = {abi.CLONE3}
    for audit_arch in (arch.audit_arch, arch.compat.audit_arch, 0x12345678):
        for number in set(range(500)) - stricter:
            assert decided(arch, audit_arch, number, ()) == run(program, audit_arch, number), (audit_arch, number)


@pytest.mark.parametrize("number", [41, 42, 0, 521])
def test_x32(number: int) -> None:
    arch = abi.ARCHITECTURES["x86_64"]
    assert decided(arch, arch.audit_arch, number | arch.x32_bit, ()) == Action("ERRNO", errno.ENOSYS)


def test_no_call_at_all() -> None:
    """Number -1, as a tracee's tracer or a sandbox leaves it: the kernel itself says ENOSYS."""
    arch = abi.ARCHITECTURES["x86_64"]
    assert decided(arch, arch.audit_arch, (1 << 64) - 1, ()).name == "ALLOW"


@pytest.mark.parametrize("name", NAMES)
def test_children_without_a_tracer(name: str) -> None:
    arch = abi.ARCHITECTURES[name]
    untraced = (selection.CLONE_UNTRACED | 17,)
    for audit_arch, clone in ((arch.audit_arch, arch.clone), (arch.compat.audit_arch, arch.compat.clone)):
        assert decided(arch, audit_arch, clone, untraced) == Action("ERRNO", errno.EINVAL)
        assert decided(arch, audit_arch, clone, (17,)).name == "ALLOW"
        assert decided(arch, audit_arch, abi.CLONE3, ()) == Action("ERRNO", errno.ENOSYS)


@pytest.mark.parametrize("name", NAMES)
def test_the_mark_says_whose_filter_it_was(name: str) -> None:
    arch = abi.ARCHITECTURES[name]
    assert run(filter.program(arch, traced=True), arch.audit_arch, arch.connect) == Action("TRACE", abi.TRACE_MARK)
