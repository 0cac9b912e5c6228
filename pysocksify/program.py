"""The program: finding it as execvp(3) does, refusing what can't be caught, and becoming it."""

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

CANNOT_RUN = 126  # POSIX.1-2024, XCU 2.8.2: found, but not an executable utility
NOT_FOUND = 127
OWN_FAILURE = 125  # as env(1), timeout(1) and nohup(1) have it

DEFAULT_PATH = "/bin:/usr/bin"  # execvp(3) without PATH
_ASIDE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT)  # try next, execvp(3)


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


def privileges(path: str) -> str:
    """What execve(2) of a file would give an ordinary user: "setuid", "setgid", "file capabilities"; "" for nothing."""
    try:
        status = os.stat(path)
        if os.statvfs(path).f_flag & os.ST_NOSUID or _is_script(path):
            return ""
        if status.st_mode & stat.S_ISUID and status.st_uid != os.geteuid():
            return "setuid"
        # Without group execution the bit means mandatory locking, inode(7).
        if status.st_mode & stat.S_ISGID and status.st_mode & stat.S_IXGRP and status.st_gid != os.getegid():
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
                os.execv("/bin/sh", ["/bin/sh", path, *argv[1:]])
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
