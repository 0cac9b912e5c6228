"""Users: who gets in, by name and password, and the file of their hashes.

The file has one user a line, `name:hash`, with hashes of argon2id (RFC 9106) in their usual text form; empty lines and
lines that begin with `#` are passed over. A name stands there as UTF-8; a byte that is none, a space, a control
character, `%`, `:` and `#` stand as `%` and two hexadecimal digits, as in a proxy's URL.

A hash is meant to take its time, and a browser opens a hundred connections: what was verified once is remembered, as a
keyed hash of name and password whose key nobody else has, until the users are read anew.
"""

import errno
import fcntl
import hmac
import os
import re
import secrets
import stat
import tempfile
import threading
from base64 import b64encode
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

from pysocksify.errors import ConfigError, PysocksifyError

LOGIN_LIMIT = 255  # bytes of a name, and of a password; RFC 1929 section 2 gives each length in one byte
HASHES_AT_ONCE = 2  # each takes tens of MiB, and a processor; who asks for threads for `verify` keeps to it
REMEMBERED = 4096  # logins, of each outcome
# OWASP's Password Storage Cheat Sheet: argon2id with 19 MiB, 2 iterations, 1 lane; 20 to 40 ms
MEMORY_COST, TIME_COST, PARALLELISM = 19456, 2, 1
NEEDS_ARGON2 = "password hashes need argon2-cffi: pip install 'pysocksify[server]'"
MOST_MEMORY = 2**21  # KiB; the most that RFC 9106 section 4 recommends
_HASH = re.compile(
    r"\$argon2id\$v=19\$m=(?P<memory>[1-9][0-9]{0,9}),t=[1-9][0-9]{0,2},p=[1-9][0-9]{0,2}"
    r"\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,86}"
)
_ESCAPED = frozenset("%:# ")
_HEXADECIMAL = frozenset(b"0123456789abcdefABCDEF")


class Users:
    """Who gets in. Empty: nobody has to log in. What was read from a file isn't empty, even with nobody in it."""

    def __init__(
        self, *, hashes: Mapping[bytes, str] | None = None, plain: Mapping[bytes, bytes] | None = None
    ) -> None:
        self._hashes = hashes
        self._stand_in = "" if hashes is None else _stand_in(hashes.values())
        self._key = secrets.token_bytes(32)
        self._plain = {name: self._digest(name, password) for name, password in (plain or {}).items()}
        self._right = Remembered()
        self._wrong = Remembered()

    @classmethod
    def plain(cls, passwords: Mapping[bytes, bytes]) -> "Users":
        """Users with these passwords, by name."""
        return cls(plain=passwords)

    @classmethod
    def read(cls, path: str, plain: Mapping[bytes, bytes] | None = None) -> "Users":
        """The users of a file, and these. Raises ConfigError, and PysocksifyError without argon2-cffi."""
        hashes = {entry.name: entry.hash for entry in entries(_content(path), path) if entry.name is not None}
        need_argon2()
        return cls(hashes=hashes, plain=plain)

    def __bool__(self) -> bool:
        return self._hashes is not None or bool(self._plain)

    def __repr__(self) -> str:
        return f"<Users: {len(self._hashes or ()) + len(self._plain)}>"

    def quick(self, name: bytes, password: bytes) -> bool | None:
        """Whether this login is right, as far as that is known without hashing; None: ask `verify`."""
        digest = self._digest(name, password)
        if hmac.compare_digest(self._plain.get(name, self._key), digest) or digest in self._right:
            return True
        return False if self._hashes is None or digest in self._wrong else None

    def verify(self, name: bytes, password: bytes) -> bool:
        """Whether this login is right. Any thread may call it; it takes tens of milliseconds, as long for unknown
        names as for known ones. Raises OSError when there is no memory for a hash."""
        known = self.quick(name, password)  # perhaps since another connection's turn
        if known is None:
            known = self._hash_says(name, password)
            (self._right if known else self._wrong).add(self._digest(name, password))
        return known

    def _digest(self, name: bytes, password: bytes) -> bytes:
        """What stands for this login in memory; 32 bytes, as the key."""
        return blake2b(b"%d:%b%b" % (len(name), name, password), key=self._key, digest_size=32).digest()

    def _hash_says(self, name: bytes, password: bytes) -> bool:
        from argon2.exceptions import VerificationError, VerifyMismatchError
        from argon2.low_level import Type, verify_secret

        assert self._hashes is not None
        known = self._hashes.get(name)
        try:
            matches = verify_secret((known or self._stand_in).encode(), password, Type.ID)
        except VerifyMismatchError:
            return False
        except VerificationError as error:
            raise OSError(errno.ENOMEM, str(error)) from None
        return matches and known is not None


class Remembered:
    """Digests, as many as are used now; those not asked for the longest go first. Any thread may use it."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._digests: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, digest: bytes) -> bool:
        with self._lock:
            if digest not in self._digests:
                return False
            self._digests.move_to_end(digest)
            return True

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, digest: bytes) -> None:
        """Remember it."""
        with self._lock:
            self._digests[digest] = None
            self._digests.move_to_end(digest)
            if len(self._digests) > self._limit:
                self._digests.popitem(last=False)


def shown(name: bytes) -> str:
    """A user's name as the file, the rules and the logs write it; no two names look the same."""
    return "".join(
        character
        if character.isprintable() and character not in _ESCAPED
        else "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))
        for character in name.decode("utf-8", "surrogateescape")
    )


def name_of(text: str) -> bytes:
    """The name that `shown` writes like this. Raises ValueError with the reason."""
    first, *others = text.encode().split(b"%")
    result = bytearray(first)
    for part in others:
        digits = part[:2]
        if len(digits) != 2 or not _HEXADECIMAL.issuperset(digits):
            raise ValueError("a percent sign in a name needs two hexadecimal digits after it, or be %25")
        result.append(int(digits, 16))
        result += part[2:]
    if not 1 <= len(result) <= LOGIN_LIMIT:
        raise ValueError(f"a name has 1 to {LOGIN_LIMIT} bytes, not {len(result)}")
    return bytes(result)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the file, with its end; `name` is None for a comment or an empty line."""

    line: bytes
    name: bytes | None = None
    hash: str = ""


def entries(data: bytes, path: str) -> list[Entry]:
    """The lines of a file. Raises ConfigError with path, line and reason."""
    result: list[Entry] = []
    lines: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        try:
            entry = _entry(line)
            if entry.name is not None and lines.setdefault(entry.name, number) != number:
                raise ValueError(f"{shown(entry.name)} stands in line {lines[entry.name]} already")
        except ValueError as error:
            raise ConfigError(path, f"line {number}", str(error)) from None
        result.append(entry)
    return result


def _entry(line: bytes) -> Entry:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8; other bytes of a name are written as %XX") from None
    if not text or text.startswith("#"):
        return Entry(line)
    name, colon, hashed = text.partition(":")
    if not colon:
        raise ValueError("name:hash is needed")
    _check_hash(hashed)
    return Entry(line, name_of(name), hashed)


def _check_hash(text: str) -> None:
    """Raise ValueError for what isn't a hash of argon2id. It isn't shown: perhaps it is a password."""
    found = _HASH.fullmatch(text)
    if found is None:
        raise ValueError("no hash of argon2id (v=19) after the colon; `pysocksify-server user add` makes one")
    if int(found["memory"]) > MOST_MEMORY:
        raise ValueError(f"the hash takes {found['memory']} KiB of memory, {MOST_MEMORY} are the most")


def _stand_in(hashes: Collection[str]) -> str:
    """A hash of nothing that takes as long as most of these."""
    prefix = f"$argon2id$v=19$m={MEMORY_COST},t={TIME_COST},p={PARALLELISM}$"
    if hashes:
        prefix = Counter(text[: text.index("$", text.index("p=")) + 1] for text in hashes).most_common(1)[0][0]
    return prefix + "$".join(b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32))


def hashed(password: bytes) -> str:
    """A new hash of a password. Raises ValueError for one that no client can send, and PysocksifyError without
    argon2-cffi."""
    if not 1 <= len(password) <= LOGIN_LIMIT:
        raise ValueError(f"a password has 1 to {LOGIN_LIMIT} bytes (RFC 1929 section 2), not {len(password)}")
    need_argon2()
    from argon2 import PasswordHasher

    return PasswordHasher(TIME_COST, MEMORY_COST, PARALLELISM).hash(password)


def need_argon2() -> None:
    """Raise PysocksifyError when argon2-cffi isn't installed."""
    try:
        import argon2.low_level  # noqa: F401
    except ImportError:
        raise PysocksifyError(NEEDS_ARGON2) from None


def readable_by_others(path: str) -> str:
    """A warning, when everybody on this machine can read the hashes; else ""."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError:  # Users.read says what is wrong with it
        return ""
    return f"{path}: everybody can read these hashes (mode {mode:04o})" if mode & stat.S_IROTH else ""


def names(path: str) -> list[bytes]:
    """The users of a file. Raises ConfigError."""
    return [entry.name for entry in entries(_content(path), path) if entry.name is not None]


def add(path: str, name: bytes, password: bytes) -> bool:
    """Add a user to the file, which may be new, or give one a new password; True: there was one of this name.

    Raises ConfigError and PysocksifyError, as `entries` and `hashed`, and ValueError for a name or password that can't
    be.
    """
    line = f"{shown(name)}:{hashed(password)}\n".encode()
    name_of(shown(name))  # its length
    with _edited(path, may_be_new=True) as lines:
        replaced = _take(lines, name, Entry(line, name))
        if not replaced:
            if lines and not lines[-1].line.endswith(b"\n"):
                lines[-1] = Entry(lines[-1].line + b"\n", lines[-1].name)
            lines.append(Entry(line, name))
    return replaced


def remove(path: str, name: bytes) -> bool:
    """Remove a user from the file; False: there is none of this name. Raises ConfigError."""
    with _edited(path, may_be_new=False) as lines:
        return _take(lines, name, None)


def _take(lines: list[Entry], name: bytes, instead: Entry | None) -> bool:
    """Replace the entry of a name, or take it out; False: there is none."""
    for at, entry in enumerate(lines):
        if entry.name == name:
            lines[at : at + 1] = [] if instead is None else [instead]
            return True
    return False


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(path, "", error.strerror or str(error)) from None


@contextmanager
def _edited(path: str, *, may_be_new: bool) -> Iterator[list[Entry]]:
    """The file's entries, to be changed; then they take the file's place at once. One at a time may do this.

    Where the path is a symbolic link, the file that it leads to is replaced. A new file is for its owner only (0600);
    one that was there keeps owner and mode, as a service may read it as somebody else.
    """
    path = os.path.realpath(path)
    try:
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(path, "", error.strerror or str(error)) from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        new = may_be_new and not os.path.lexists(path)
        before = [] if new else entries(_content(path), path)
        after = list(before)
        yield after
        if after != before:
            _replace(path, b"".join(entry.line for entry in after), None if new else os.stat(path))
            os.fsync(directory)
    except OSError as error:
        raise ConfigError(path, "", error.strerror or str(error)) from None
    finally:
        os.close(directory)


def _replace(path: str, data: bytes, before: os.stat_result | None) -> None:
    """Put a file with this content in the path's place: who reads it sees the old one or the new one, never half."""
    fd, temporary = tempfile.mkstemp(prefix=".", dir=os.path.dirname(path))  # 0600
    try:
        with open(fd, "wb") as file:
            file.write(data)
            if before is not None:
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(fd, before.st_uid, before.st_gid)
                os.fchmod(fd, stat.S_IMODE(before.st_mode))
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
