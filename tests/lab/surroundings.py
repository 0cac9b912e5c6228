"""surroundings.py NAME PROGRAM ARGS…: runs a program where the kernel, or who stands before it, refuses some calls.

Run by root, it installs a seccomp filter that answers as these surroundings do and becomes the program, which may then
drop privileges. Nothing of the package is imported: any interpreter will do.

| name | as in |
| --- | --- |
| docker | a container with Docker's default profile, without CAP_SYS_ADMIN and CAP_SYS_PTRACE |
| no-seccomp | a sandbox that lets nobody install a filter: EPERM |
"""

import ctypes
import errno
import os
import struct
import sys
from dataclasses import dataclass

LD_WORD, JUMP_EQUAL, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, |JSET|K, BPF_RET|K
NUMBER, ARCH, ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the low half of the first argument
ALLOW, ERRNO = 0x7FFF0000, 0x00050000  # SECCOMP_RET_*
PR_SET_SECCOMP, MODE_FILTER = 22, 2

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {  # asm/unistd.h: x86_64, aarch64
    "clone": (56, 220),
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "prctl": (157, 167),
    "mount": (165, 40),
    "umount2": (166, 39),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "setns": (308, 268),
    "kcmp": (312, 272),
    "seccomp": (317, 277),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "clone3": (435, 435),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
}
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET

DOCKER_CAPABILITIES = (
    "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write"
    " setfcap"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A call that is answered with an errno: always, or only with this first argument, or with any of these bits."""

    call: str
    error: int = errno.EPERM
    equal: int | None = None
    bits: int | None = None


REFUSALS = {
    # moby's profiles/seccomp: what it doesn't list is EPERM, and clone3 ENOSYS so that libc tries clone
    "docker": (
        Refusal(call="clone3", error=errno.ENOSYS),
        Refusal(call="clone", bits=NEW_NAMESPACES),
        *(
            Refusal(call=call)
            for call in NUMBERS
            if call not in ("clone", "clone3", "ptrace", "prctl", "seccomp")  # ptrace is allowed since Linux 4.8
        ),
    ),
    "no-seccomp": (Refusal(call="seccomp"), Refusal(call="prctl", equal=PR_SET_SECCOMP)),
}
NAMES = tuple(REFUSALS)


def instruction(code: int, operand: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    """struct sock_filter."""
    return struct.pack("=HBBI", code, jump_true, jump_false, operand)


def refused(refusal: Refusal, machine: str) -> bytes:
    """Instructions that answer one call, with the call's number loaded before and after them."""
    number = NUMBERS[refusal.call][list(AUDIT_ARCH).index(machine)]
    answer = instruction(RETURN, ERRNO | refusal.error)
    if refusal.equal is None and refusal.bits is None:
        return instruction(JUMP_EQUAL, number, 0, 1) + answer
    test = (JUMP_EQUAL, refusal.equal) if refusal.equal is not None else (JUMP_ANY_BIT, refusal.bits or 0)
    return (
        instruction(JUMP_EQUAL, number, 0, 4)
        + instruction(LD_WORD, ARGUMENT)
        + instruction(*test, 0, 1)
        + answer
        + instruction(LD_WORD, NUMBER)
    )


def program(name: str, machine: str) -> bytes:
    """The whole filter. Calls of another architecture pass."""
    return (
        instruction(LD_WORD, ARCH)
        + instruction(JUMP_EQUAL, AUDIT_ARCH[machine], 1, 0)
        + instruction(RETURN, ALLOW)
        + instruction(LD_WORD, NUMBER)
        + b"".join(refused(refusal, machine) for refusal in REFUSALS[name])
        + instruction(RETURN, ALLOW)
    )


def install(code: bytes) -> None:
    """prctl(PR_SET_SECCOMP): struct sock_fprog. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, described):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


def main() -> None:
    """Install the filter and become the program."""
    name, *words = sys.argv[1:]
    if name == "docker":
        capabilities = ",".join(f"+{capability}" for capability in DOCKER_CAPABILITIES.split())
        words = ["setpriv", f"--bounding-set=-all,{capabilities}", "--inh-caps=-all", *words]
    install(program(name, os.uname().machine))
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
