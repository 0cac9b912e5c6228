"""The program: finding it as execvp(3) does, telling what kind it is, refusing what can't be caught, becoming it."""

import errno
import os
import stat
import struct

from pysocksify.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

CANNOT_RUN = 126  # POSIX.1-2024, XCU 2.8.2: found, but not an executable utility
NOT_FOUND = 127
OWN_FAILURE = 125  # as env(1), timeout(1) and nohup(1) have it

DEFAULT_PATH = "/bin:/usr/bin"  # execvp(3) without PATH
SHELL = "/bin/sh"  # runs what no loader knows, as shells and execvp(3) have it
_ASIDE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT)  # try next, execvp(3)


LINE_LIMIT = 256  # bytes of a file that Linux looks at for "#!": BINPRM_BUF_SIZE, linux/binfmts.h
DEPTH = 5  # interpreters that are scripts themselves, execve(2)
PATH_LIMIT = 4096  # PATH_MAX
HEADERS_LIMIT = 65536  # bytes of program headers, linux/fs/binfmt_elf.c
PT_INTERP, PT_NOTE = 3, 4  # elf(5)
NOTES_LIMIT = 4096  # bytes of one PT_NOTE that are looked at
_BYTE_ORDERS = {1: "<", 2: ">"}  # EI_DATA
# By EI_CLASS: struct elf_hdr from e_type to e_phnum, and struct elf_phdr.
_HEADERS = {1: ("HHIIIIIHHH", "8I"), 2: ("HHIQQQIHHH", "2I6Q")}
# By byte order: type 4 and name of the note that Go's linker writes, cmd/link/internal/ld/elf.go.
GO_BUILD_ID = {"<": b"\4\0\0\0Go\0\0", ">": b"\0\0\0\4Go\0\0"}
OPENAT2, RESOLVE_IN_ROOT = 437, 0x10  # openat2(2), Linux 5.6; the number is the same everywhere


@record(frozen=True, slots=True, kw_only=True)
class Kind:
    """What execve(2) of a file would run. Of a script all but `script` and `interpreter` tell of what finally runs it.

    elf_class     EI_CLASS of elf(5): 1 for 32 bits, 2 for 64; 0 when it is no ELF file, or can't be read
    machine       e_machine of elf(5): 62 x86-64, 183 aarch64
    loader        the dynamic linker that the file names (PT_INTERP); "" for static ones, static-pie among them
    dynamic       there is a loader
    interpreter   of a script the path of the program that finally runs it, after env(1); else the loader
    script        the file begins with "#!", or a shell would read it
    go            Go's compiler made it: it makes its system calls itself, dynamic or not
    privileges    what execve(2) would give an ordinary user on top (see `privileges`)
    readable      the files could be looked into; where they couldn't, all else says nothing
    """

    elf_class: int = 0
    machine: int = 0
    loader: str = ""
    dynamic: bool = False
    interpreter: str = ""
    script: bool = False
    go: bool = False
    privileges: str = ""
    readable: bool = True


class NotStartedError(Exception):
    """The program can't be run: the reason, and the exit status that a shell gives for it."""

    def __init__(self, reason: str, exit_status: int) -> None:
        super().__init__(reason)
        self.exit_status = exit_status


def check_program(name: str) -> None:
    """Raise NotStartedError when a program isn't there or would lose privileges that it needs."""
    path = find_program(name)
    if path is None:
        raise NotStartedError(os.strerror(errno.ENOENT), NOT_FOUND)
    if os.geteuid() == 0:
        return
    what = privileges(path)
    if what:
        raise NotStartedError(
            f"it is a {what} program, and no_new_privs, without which an ordinary user can't catch its calls, "
            "would take its privileges away; run pysocksify as root",
            CANNOT_RUN,
        )


def candidates(name: str) -> list[str]:
    """The files that execvp(3) tries for a name, in order."""
    if "/" in name or not name:
        return [name]
    return [f"{folder or '.'}/{name}" for folder in os.environ.get("PATH", DEFAULT_PATH).split(":")]


def find_program(name: str) -> str | None:
    """The file that would be run: the first that can be executed, else the first that is there."""
    there = None
    for path in candidates(name):
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            if error.errno == errno.EACCES and "/" in name:  # in a folder that can't be searched: execve(2) says so
                there = path
            continue
        if stat.S_ISREG(mode) and os.access(path, os.X_OK, effective_ids=True):
            return path
        there = there or path
    return there


def kind(path: str) -> Kind:
    """What running a file means, through scripts and their env(1) to the program that runs them. Raises nothing."""
    return _follow(path, os.geteuid(), os.getegid(), None, through_env=True)


def kind_of_fd(fd: int, *, uid: int | None = None, gid: int | None = None, root: int | None = None) -> Kind:
    """What execve(2) of an open file (O_PATH is enough) would run at once, for a process of that user and group.

    Without `uid` and `gid` it is for this process. `root` is a descriptor of that process's root directory, where a
    script's interpreter is looked for. What env(1) starts in turn isn't looked at. Raises nothing.
    """
    uid = os.geteuid() if uid is None else uid
    gid = os.getegid() if gid is None else gid
    return _follow(f"/proc/self/fd/{fd}", uid, gid, root, through_env=False)


def privileges(path: str, uid: int | None = None, gid: int | None = None) -> str:
    """What execve(2) of a file would give a user: "setuid", "setgid", "file capabilities"; "" for nothing.

    The user is this process's, or the one with these numbers; capabilities are told of even to root.
    """
    uid = os.geteuid() if uid is None else uid
    gid = os.getegid() if gid is None else gid
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or os.statvfs(path).f_flag & os.ST_NOSUID or _is_script(path):
            return ""
        if status.st_mode & stat.S_ISUID and status.st_uid != uid:
            return "setuid"
        # Without group execution the bit means mandatory locking, inode(7).
        if status.st_mode & stat.S_ISGID and status.st_mode & stat.S_IXGRP and status.st_gid != gid:
            return "setgid"
        if "security.capability" in os.listxattr(path):
            return "file capabilities"
    except OSError:  # not there, not searchable, no extended attributes: execve(2) will say what there is to say
        return ""
    return ""


def execute(argv: list[str]) -> "NoReturn":
    """execvp(3), with a shell for files that no loader knows, as shells do it. Raises NotStartedError."""
    refused: OSError | None = None
    where = argv[0]
    for path in candidates(argv[0]):
        try:
            os.execv(path, argv)
        except OSError as error:
            if error.errno == errno.ENOEXEC and not _is_binary(path):
                os.execv(SHELL, [SHELL, path, *argv[1:]])
            if error.errno not in _ASIDE:
                refused, where = error, path
                break
            # As in shells, a folder of PATH that can't be searched doesn't turn "not there" into "not allowed".
            if os.path.exists(path) or (error.errno == errno.EACCES and "/" in argv[0]):
                refused, where = refused or error, path
    if refused is None:
        raise NotStartedError(os.strerror(errno.ENOENT), NOT_FOUND)
    if os.path.isdir(where):
        raise NotStartedError(os.strerror(errno.EISDIR), CANNOT_RUN)
    if refused.errno == errno.ENOENT:
        raise NotStartedError("the interpreter that it names isn't there", CANNOT_RUN)
    raise NotStartedError(os.strerror(refused.errno or 0), CANNOT_RUN)


def coerced_locale() -> tuple[str, ...]:
    """The variables that Python's C locale coercion (PEP 538) put into the environment."""
    if os.environ.get("LC_CTYPE") not in ("C.UTF-8", "C.utf8", "UTF-8"):
        return ()
    try:
        with open("/proc/self/environ", "rb") as file:
            given = file.read()
    except OSError:
        return ()
    return () if given.startswith(b"LC_CTYPE=") or b"\0LC_CTYPE=" in given else ("LC_CTYPE",)


def _follow(path: str, uid: int, gid: int, root: int | None, *, through_env: bool) -> Kind:
    """The Kind of a file, through the interpreters of scripts; with `through_env` as a shell would start it."""
    interpreter = ""
    opened: list[int] = []
    try:
        for _ in range(DEPTH + 1):
            head = _head(path)
            words = _interpreter(head) if head.startswith(b"#!") else None
            if words is None and through_env and b"\0" not in head[:128]:
                words = (SHELL, "")  # as `execute`
            if words is None:
                if interpreter:
                    return _elf(path, head, script=True, interpreter=interpreter, privileges=privileges(path, uid, gid))
                return _elf(path, head, privileges=privileges(path, uid, gid))
            interpreter = path = _started_by_env(*words) if through_env else words[0]
            if root is not None:
                opened.append(_open_in(root, path))
                path = f"/proc/self/fd/{opened[-1]}"
        return Kind(script=True, interpreter=interpreter)  # execve(2) says ELOOP
    except OSError:
        gained = privileges(path, uid, gid)
        return Kind(script=bool(interpreter), interpreter=interpreter, privileges=gained, readable=False)
    finally:
        for fd in opened:
            os.close(fd)


def _head(path: str) -> bytes:
    """The first bytes of a regular file. OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would wait, a device act
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    with open(path, "rb", 0) as file:
        return file.read(LINE_LIMIT)


def _interpreter(head: bytes) -> tuple[str, str] | None:
    """The interpreter and its one argument in what begins with "#!", as Linux's fs/binfmt_script.c reads it."""
    line, newline, _ = head[2:].partition(b"\n")
    text, nul, _ = line.partition(b"\0")
    name, space, argument = text.strip(b" \t").replace(b"\t", b" ").partition(b" ")
    ends = newline or nul or space or text.endswith((b" ", b"\t")) or len(head) < LINE_LIMIT
    return (os.fsdecode(name), os.fsdecode(argument.strip(b" "))) if name and ends else None


def _started_by_env(name: str, argument: str) -> str:
    """The program that the interpreter of a script starts in turn if it is env(1); else the interpreter.

    Where env is asked for more than variables and a name, it is env itself.
    """
    if name.rpartition("/")[2] != "env":
        return name
    words = [argument]
    for option in ("-S", "--split-string="):
        if argument.startswith(option):
            words = argument.removeprefix(option).split()
    for word in words:
        if word.startswith(("-", "PATH=")) or set(word) & set("'\"\\$#"):
            return name
        if "=" not in word:
            return find_program(word) or name
    return name


def _open_in(root: int, path: str) -> int:
    """Open a file as a process with this root directory finds it. OSError."""
    import ctypes  # only for the supervisor, which has it

    from pysocksify.linux import syscall

    name = ctypes.create_string_buffer(os.fsencode(path))
    # struct open_how: u64 flags, mode, resolve
    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT)
    return syscall(OPENAT2, root, ctypes.addressof(name), ctypes.addressof(how), ctypes.sizeof(how))


def _elf(path: str, head: bytes, *, privileges: str, script: bool = False, interpreter: str = "") -> Kind:
    """The Kind of a file that is no script: what elf(5) says of it, read as Linux's fs/binfmt_elf.c does. OSError."""
    none = Kind(script=script, interpreter=interpreter, privileges=privileges)
    head = head.ljust(64, b"\0")
    if head[:4] != b"\x7fELF" or head[4] not in _HEADERS or head[5] not in _BYTE_ORDERS:
        return none
    elf_class, order = head[4], _BYTE_ORDERS[head[5]]
    header, entry = (struct.Struct(order + fields) for fields in _HEADERS[elf_class])
    _, machine, _, _, phoff, _, _, _, phentsize, phnum = header.unpack_from(head, 16)
    if phentsize != entry.size or not 0 < phnum * phentsize <= HEADERS_LIMIT:
        return none
    loader, go = b"", False
    with open(path, "rb", 0) as file:
        table = _read_at(file.fileno(), phoff, phnum * phentsize)
        if not table:
            return none
        for fields in entry.iter_unpack(table):
            offset, size = (fields[2], fields[5]) if elf_class == 2 else (fields[1], fields[4])
            if fields[0] == PT_INTERP and not loader:
                loader = _read_at(file.fileno(), offset, size) if 2 <= size <= PATH_LIMIT else b""
                if not loader.endswith(b"\0"):
                    return none
            elif fields[0] == PT_NOTE:
                go = go or GO_BUILD_ID[order] in _read_at(file.fileno(), offset, min(size, NOTES_LIMIT))
    name = os.fsdecode(loader.partition(b"\0")[0])
    return Kind(
        elf_class=elf_class,
        machine=machine,
        loader=name,
        dynamic=bool(loader),
        interpreter=interpreter if script else name,
        script=script,
        go=go,
        privileges=privileges,
    )


def _read_at(fd: int, offset: int, size: int) -> bytes:
    """That many bytes of a file, or none when they aren't all there. OSError."""
    if offset + size > os.fstat(fd).st_size:
        return b""
    data = os.pread(fd, size, offset)
    return data if len(data) == size else b""


def _is_script(path: str) -> bool:
    """Whether a file begins with "#!": Linux gives scripts no privileges. One that can't be read counts as none."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def _is_binary(path: str) -> bool:
    """Whether a shell would refuse to read it: a NUL in the first 128 bytes, as bash has it."""
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(128)
    except OSError:
        return True
