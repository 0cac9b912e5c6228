"""Users: logins, the file of hashes, and changing it."""

import itertools
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from argon2.low_level import Type
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.errors import ConfigError
from pysocksify.reactor import Reactor
from pysocksify.server.users import (
    HASHES_AT_ONCE,
    LOGIN_LIMIT,
    Remembered,
    Users,
    add,
    hashed,
    name_of,
    names,
    readable_by_others,
    remove,
    shown,
)

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
LIMIT = 20.0  # s for anything that has to happen


def users_file(path: Path, **passwords: str) -> str:
    file = path / "users"
    file.write_text("".join(f"{name}:{CHEAP.hash(password)}\n" for name, password in passwords.items()))
    file.chmod(0o600)
    return str(file)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes that are computed from now on."""
    from argon2 import low_level

    computed: list[str] = []
    verify_secret = low_level.verify_secret

    def verify(hash: bytes, secret: bytes, type: Type) -> bool:
        computed.append(hash.decode())
        return verify_secret(hash, secret, type)

    monkeypatch.setattr(low_level, "verify_secret", verify)
    return computed


def test_nobody() -> None:
    assert not Users()
    assert not Users.plain({})
    assert Users().quick(b"alice", b"x") is False


def test_plain_users() -> None:
    users = Users.plain({b"alice": b"s3cret", b"bob": b"\xff:"})
    assert users
    assert users.quick(b"alice", b"s3cret") is True
    assert users.quick(b"bob", b"\xff:") is True
    for name, password in (
        (b"alice", b"s3cre"),
        (b"alice", b""),
        (b"carol", b"s3cret"),
        (b"", b""),
        (b"bob", b"s3cret"),
    ):
        assert users.quick(name, password) is False
        assert users.verify(name, password) is False
    assert users.verify(b"alice", b"s3cret")


def test_name_and_password_dont_run_into_each_other() -> None:
    users = Users.plain({b"ab": b"c", b"1:a": b"x"})
    assert users.quick(b"a", b"bc") is False
    assert users.quick(b"1", b"a:x") is False


def test_neither_password_nor_hash_is_shown(tmp_path: Path) -> None:
    users = Users.read(users_file(tmp_path, alice="s3cret"), {b"bob": b"other"})
    assert repr(users) == "<Users: 2>"
    assert b"other" not in repr(vars(users)).encode()


def test_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = counted(monkeypatch)
    users = Users.read(users_file(tmp_path, alice="s3cret", bob="pass:word "))
    assert users
    assert users.quick(b"alice", b"s3cret") is None
    assert users.verify(b"alice", b"s3cret") is True
    assert users.quick(b"alice", b"s3cret") is True
    assert users.verify(b"bob", b"pass:word ") is True
    assert len(computed) == 2
    for name, password in ((b"alice", b"wrong"), (b"bob", b"s3cret"), (b"carol", b"s3cret"), (b"alice", b"")):
        assert users.quick(name, password) is None
        assert users.verify(name, password) is False
        assert users.quick(name, password) is False
        assert users.verify(name, password) is False
    assert len(computed) == 6


def test_what_is_remembered_goes_with_the_users(tmp_path: Path) -> None:
    path = users_file(tmp_path, alice="s3cret")
    users = Users.read(path)
    assert users.verify(b"alice", b"s3cret")
    users_file(tmp_path, alice="other")
    assert users.quick(b"alice", b"s3cret") is True
    anew = Users.read(path)
    assert anew.quick(b"alice", b"s3cret") is None
    assert not anew.verify(b"alice", b"s3cret")


def test_plain_users_beside_a_file(tmp_path: Path) -> None:
    users = Users.read(users_file(tmp_path, alice="s3cret"), {b"bob": b"plain"})
    assert users.quick(b"bob", b"plain") is True
    assert users.quick(b"bob", b"wrong") is None  # else it would show which names are plain
    assert users.verify(b"bob", b"wrong") is False
    assert users.verify(b"alice", b"s3cret") is True


def test_a_file_without_users_lets_nobody_in(tmp_path: Path) -> None:
    users = Users.read(users_file(tmp_path))
    assert users
    assert users.verify(b"alice", b"") is False


def test_unknown_names_take_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = counted(monkeypatch)
    file = tmp_path / "users"
    add(str(file), b"alice", b"s3cret")
    users = Users.read(str(file))
    users.verify(b"alice", b"wrong")
    users.verify(b"carol", b"wrong")
    known, unknown = computed
    assert known != unknown
    assert known.split("$")[:4] == unknown.split("$")[:4]
    assert [len(part) for part in known.split("$")] == [len(part) for part in unknown.split("$")]


def test_a_hundred_connections_at_once_cost_few_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = counted(monkeypatch)
    file = tmp_path / "users"
    add(str(file), b"alice", b"s3cret")
    users = Users.read(str(file))
    reactor, outcomes = Reactor(), list[tuple[bool | None, BaseException | None]]()
    threads = reactor.threads("hashing", HASHES_AT_ONCE)
    for number in range(100):
        verify = partial(users.verify, b"alice", b"s3cret")
        threads.run(verify, lambda *outcome: outcomes.append(outcome), f"192.0.2.{number}")
    reactor.call_at(reactor.now() + LIMIT, reactor.stop)
    while len(outcomes) < 100:
        reactor.run_once()
    reactor.close()
    assert outcomes == [(True, None)] * 100
    assert len(computed) <= HASHES_AT_ONCE


def test_remembered_is_bounded() -> None:
    remembered = Remembered(limit=3)
    for digest in (b"a", b"b", b"c"):
        remembered.add(digest)
    assert b"a" in remembered  # so it's the newest
    remembered.add(b"d")
    assert (len(remembered), b"b" in remembered, b"a" in remembered, b"d" in remembered) == (3, False, True, True)


def test_what_a_hash_costs() -> None:
    assert hashed(b"s3cret").startswith("$argon2id$v=19$m=19456,t=2,p=1$")


@pytest.mark.parametrize("password", [b"", b"x" * (LOGIN_LIMIT + 1)])
def test_a_password_that_no_client_can_send(password: bytes) -> None:
    with pytest.raises(ValueError, match=f"1 to {LOGIN_LIMIT} bytes"):
        hashed(password)


@given(st.binary(min_size=1, max_size=LOGIN_LIMIT))
def test_every_name_can_be_written(name: bytes) -> None:
    text = shown(name)
    assert name_of(text) == name
    assert text.isprintable()
    assert not set(text) & set(":# ")
    assert name_of("".join(f"%{byte:02x}" for byte in name)) == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"alice", "alice"),
        ("jürgen".encode(), "jürgen"),
        (b"a:b", "a%3Ab"),
        (b"#1", "%231"),
        (b"a b", "a%20b"),
        (b"100%", "100%25"),
        (b"\xff\n\0", "%FF%0A%00"),
        ("a\u2028b".encode(), "a%E2%80%A8b"),
    ],
)
def test_shown(name: bytes, text: str) -> None:
    assert shown(name) == text


HASH = CHEAP.hash("x")


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"alice\n", 1, "name:hash is needed"),
        (b"# users\n\nalice:s3cret\n", 3, "no hash of argon2id"),
        (b"alice:\n", 1, "no hash of argon2id"),
        (b"alice:$2b$12$abcdefghijklmnopqrstuv\n", 1, "no hash of argon2id"),
        (b"alice:$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA\n", 1, "no hash of argon2id"),
        (f"alice:{HASH[:-30]}\n".encode(), 1, "no hash of argon2id"),
        (f"alice:{HASH} x\n".encode(), 1, "no hash of argon2id"),
        (b"alice:$argon2id$v=19$m=4194304,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA\n", 1, "4194304 KiB of memory"),
        (f":{HASH}\n".encode(), 1, "1 to 255 bytes, not 0"),
        (f"{'a' * 256}:{HASH}\n".encode(), 1, "1 to 255 bytes, not 256"),
        (f"100%:{HASH}\n".encode(), 1, "%25"),
        (f"a%zz:{HASH}\n".encode(), 1, "two hexadecimal digits"),
        (f"alice:{HASH}\n\nalice:{HASH}\n".encode(), 3, "alice stands in line 1 already"),
        (f"a%3Ab:{HASH}\na%3ab:{HASH}\n".encode(), 2, "a%3Ab stands in line 1 already"),
        (b"caf\xe9:x\n", 1, "not UTF-8"),
    ],
    ids=itertools.count(),  # not the hashes, which differ at every collection
)
def test_a_file_that_cant_be_used(tmp_path: Path, content: bytes, line: int, reason: str) -> None:
    path = tmp_path / "users"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Users.read(str(path))
    assert (caught.value.source, caught.value.key) == (str(path), f"line {line}")
    assert reason in caught.value.reason
    for secret in ("s3cret", "c29tZXNhbHQ", HASH[-20:]):
        assert secret not in str(caught.value)


def test_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(f"# these get in\r\n\r\n  alice:{HASH}  \r\n\t# not bob\r\n%23carol:{HASH}")
    assert names(str(path)) == [b"alice", b"#carol"]
    assert Users.read(str(path)).verify(b"#carol", b"x")


@pytest.mark.parametrize("read", [Users.read, names, lambda path: remove(path, b"alice")])
def test_no_such_file(tmp_path: Path, read: Callable[[str], object]) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        read(str(tmp_path / "users"))
    assert os.listdir(tmp_path) == []


def test_readable_by_others(tmp_path: Path) -> None:
    path = users_file(tmp_path, alice="x")
    assert readable_by_others(path) == ""
    os.chmod(path, 0o640)
    assert readable_by_others(path) == ""
    os.chmod(path, 0o644)
    assert readable_by_others(path) == f"{path}: everybody can read these hashes (mode 0644)"


def test_add_replace_remove(tmp_path: Path) -> None:
    path = str(tmp_path / "users")
    old_mask = os.umask(0)
    try:
        assert add(path, b"alice", b"one") is False
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with open(path, "a") as file:
        file.write("\n# bob came later")
    assert add(path, b"b:ob", b"two") is False
    assert add(path, b"alice", b"three") is True
    assert names(path) == [b"alice", b"b:ob"]
    users = Users.read(path)
    assert users.verify(b"alice", b"three")
    assert users.verify(b"b:ob", b"two")
    assert not users.verify(b"alice", b"one")
    assert remove(path, b"alice") is True
    assert remove(path, b"alice") is False
    lines = Path(path).read_text().splitlines()
    assert lines[:2] == ["", "# bob came later"]
    assert lines[2].startswith("b%3Aob:$argon2id$")
    assert os.listdir(tmp_path) == ["users"]


def test_what_cant_be_added(tmp_path: Path) -> None:
    path = tmp_path / "users"
    for name, password in ((b"", b"x"), (b"a" * 256, b"x"), (b"alice", b""), (b"alice", b"x" * 256)):
        with pytest.raises(ValueError, match="1 to 255 bytes"):
            add(str(path), name, password)
    assert not path.exists()
    path.write_text("nonsense\n")
    with pytest.raises(ConfigError, match="line 1"):
        add(str(path), b"alice", b"x")
    assert path.read_text() == "nonsense\n"
    with pytest.raises(ConfigError, match="No such file"):
        add(str(tmp_path / "missing" / "users"), b"alice", b"x")


def test_a_link_stays_and_so_do_mode_and_owner(tmp_path: Path) -> None:
    target = tmp_path / "etc"
    target.mkdir()
    path = Path(users_file(target, alice="x"))
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12346)
    before = path.stat()
    link = tmp_path / "users"
    link.symlink_to("etc/users")
    add(str(link), b"bob", b"y")
    after = path.stat()
    assert link.is_symlink()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino
    assert names(str(link)) == [b"alice", b"bob"]


def test_a_failure_leaves_the_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = users_file(tmp_path, alice="x")
    before = Path(path).read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        add(path, b"bob", b"y")
    assert Path(path).read_bytes() == before
    assert os.listdir(tmp_path) == ["users"]


def test_additions_at_once_dont_lose_each_other(tmp_path: Path) -> None:
    path = str(tmp_path / "users")
    threads = [threading.Thread(target=add, args=(path, b"user%d" % n, b"x")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(names(path)) == [b"user%d" % n for n in range(8)]


def test_without_argon2(tmp_path: Path) -> None:
    path = users_file(tmp_path, alice="x")
    program = (
        "import sys; sys.modules['argon2'] = None\n"
        "from pysocksify.errors import PysocksifyError\n"
        "from pysocksify.server.users import Users, add\n"
        "assert Users.plain({b'a': b'b'}).verify(b'a', b'b')\n"
        "for call in (lambda: Users.read(sys.argv[1]), lambda: add(sys.argv[1], b'bob', b'x')):\n"
        "    try:\n"
        "        call()\n"
        "    except PysocksifyError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=LIMIT)
    line = "password hashes need argon2-cffi: pip install 'pysocksify[server]'"
    assert (done.stdout.splitlines(), done.stderr) == ([line, line], "")
