"""The server's configuration file: what it says, and what is wrong with one that says it wrongly."""

import dataclasses
import os
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from pysocksify.address import Address
from pysocksify.codes import Command
from pysocksify.config.urls import parse_proxy
from pysocksify.errors import ConfigError
from pysocksify.route.rules import DIRECT
from pysocksify.server.access import Access
from pysocksify.server.cli import command
from pysocksify.server.files import Listen, ServerFile, load
from pysocksify.server.serving import given
from pysocksify.server.settings import Limits, ServerSettings

EXAMPLE = Path(__file__).parent.parent.parent / "conf" / "server.toml"
HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("s3cret")
CLIENT = Address("10.9.9.9", 40000)


def written(path: Path, text: str) -> str:
    file = path / "server.toml"
    file.write_text(text)
    return str(file)


@pytest.fixture
def example(tmp_path: Path) -> ServerFile:
    (tmp_path / "users").write_text(f"alice:{HASH}\n")
    (tmp_path / "users").chmod(0o600)
    return load(written(tmp_path, EXAMPLE.read_text()))


def decides(access: Access, host: str, port: int = 80, command: Command = Command.CONNECT, user: str = "alice") -> bool:
    return access.decide(user=user, source=CLIENT, command=command, destination=Address.of(host, port)).allowed


def test_example_of_the_process(example: ServerFile, tmp_path: Path) -> None:
    assert [str(listen) for listen in example.listen] == [
        "127.0.0.1:1080", "[::1]:1080", "unix:/run/pysocksify/server.sock", "0.0.0.0:1443",
    ]  # fmt: skip
    assert example.listen[3] == Listen(
        address=Address("0.0.0.0", 1443),
        certificate=str(tmp_path / "server.pem"),
        key=str(tmp_path / "server.key"),
    )
    assert (example.workers, example.log_format, example.verbosity, example.drain) == (2, "json", 1, 20.0)
    assert (example.metrics, example.log_file, example.warnings) == (Address("127.0.0.1", 9180), None, ())


def test_example_of_what_it_does(example: ServerFile) -> None:
    settings = example.settings
    assert settings.users.verify(b"alice", b"s3cret")
    assert settings.hosts == {"wiki.corp.example": ("10.1.1.1", "fd00:10::1")}
    assert not settings.open
    assert not settings.identd
    assert settings.limits == Limits(
        total=5000, per_user=500, per_source=200, handshake=30, dial=30, bind=120, idle=3600, udp_idle=300
    )
    assert settings.upstream is not None
    assert [chain.name for chain in settings.upstream.chains] == ["default"]
    assert settings.upstream.rules.route(Address("example.com", 80)).chain == "default"
    assert settings.upstream.rules.route(Address("wiki.corp.example", 80)).kind == DIRECT


def test_example_of_access(example: ServerFile) -> None:
    access = example.settings.access
    assert decides(access, "127.0.0.1", 5432)
    assert not decides(access, "127.0.0.1", 5432, user="bob")
    assert not decides(access, "127.0.0.1", 22)
    assert not decides(access, "169.254.169.254")
    assert not decides(access, "db.internal.example")
    assert not decides(access, "example.com", 25)
    assert decides(access, "example.com", command=Command.UDP_ASSOCIATE)
    outside = Address("192.0.2.1", 1)
    decision = access.decide(user="alice", source=outside, command=Command.BIND, destination=Address("example.com", 80))
    assert (decision.allowed, decision.rule) == (False, "access[4] deny")
    assert decides(access, "example.com")


def test_an_empty_file_is_the_server_without_options(tmp_path: Path) -> None:
    file = load(written(tmp_path, ""))
    assert file == dataclasses.replace(load(None), settings=file.settings)
    assert not file.settings.users
    assert (file.listen, file.settings.upstream, file.settings.limits) == ((), None, Limits())


def test_every_limit_has_its_key(tmp_path: Path) -> None:
    names = [field.name for field in dataclasses.fields(Limits)]
    text = "[limits]\n" + "".join(f"{name} = {at + 7}\n" for at, name in enumerate(names))
    limits = load(written(tmp_path, text)).settings.limits
    assert [getattr(limits, name) for name in names] == [at + 7 for at in range(len(names))]


def test_every_setting_has_its_key(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"alice:{HASH}\n")
    text = (
        'open = true\nidentd = true\nusers = "users"\nhops = ["socks5://127.0.0.1:1"]\nlog_file = "log"\n'
        'access_default = "deny"\n[hosts]\na = "192.0.2.1"\n[limits]\ntotal = 1\n'
    )
    file = load(written(tmp_path, text))
    plain = ServerSettings()
    for field in dataclasses.fields(ServerSettings):
        assert getattr(file.settings, field.name) != getattr(plain, field.name), field.name
    assert not decides(file.settings.access, "example.com")
    assert file.log_file == str(tmp_path / "log")


def test_chains_without_hops(tmp_path: Path) -> None:
    text = '[chains.tor]\nhops = ["socks5://127.0.0.1:9050"]\n[[rules]]\nmatch = ["*.onion"]\nto = "tor"\n'
    upstream = load(written(tmp_path, text)).settings.upstream
    assert upstream is not None
    assert upstream.rules.route(Address("a.onion", 80)).chain == "tor"
    assert upstream.rules.route(Address("example.com", 80)).kind == DIRECT


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    text = 'workers = 3\nhops = ["socks5://127.0.0.1:1"]\n[hosts]\na = "192.0.2.1"\n[limits]\ntotal = 5\nidle = 6\n'
    values = {
        "workers": 4,
        "hops": (parse_proxy("socks5://127.0.0.1:2", "-p"),),
        "limits": {"total": 7},
        "hosts": {"b": ("192.0.2.2",)},
        "listen": (Listen.parse("127.0.0.1:0"),),
    }
    file = load(written(tmp_path, text), values, {b"bob": b"x"})
    assert file.workers == 4
    assert file.settings.limits == Limits(total=7, idle=6)
    assert file.settings.hosts == {"a": ("192.0.2.1",), "b": ("192.0.2.2",)}
    assert file.settings.users.quick(b"bob", b"x")
    assert file.settings.upstream is not None
    assert file.settings.upstream.chains[0].hops[0].address.port == 2
    assert file.listen == (Listen(address=Address("127.0.0.1", 0)),)
    without = load(None, values)
    assert without.settings.upstream is not None
    assert without.settings.limits == Limits(total=7)


def test_none_counts_as_given_on_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path, "drain = 20\nopen = true\n")
    for words, drain in (((), 20), (("--drain", "0"), 0)):
        with command.make_context("server", list(words)) as context:
            file = load(path, given(context.params))
        assert (file.drain, file.settings.open) == (drain, True)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_metrics(tmp_path: Path, host: str) -> None:
    assert load(written(tmp_path, f'metrics = "{host}:1"')).metrics == Address("127.0.0.1", 1)


def test_users_of_file_and_command_line(tmp_path: Path) -> None:
    (tmp_path / "names").write_text(f"alice:{HASH}\n")
    (tmp_path / "names").chmod(0o644)
    file = load(written(tmp_path, 'users = "names"\n'), None, {b"bob": b"x"})
    assert file.settings.users.verify(b"alice", b"s3cret")
    assert file.settings.users.verify(b"bob", b"x")
    assert file.warnings == (f"{tmp_path}/names: everybody can read these hashes (mode 0644)",)


def test_odd_names_of_users_are_written_one_way(tmp_path: Path) -> None:
    text = '[[access]]\naction = "deny"\nusers = ["a%3ab", "j%c3%bcrgen", "*"]\n'
    (rule,) = load(written(tmp_path, text)).settings.access.rules
    assert rule.users == ("a%3Ab", "jürgen", "*")


def test_listen(tmp_path: Path) -> None:
    assert load(written(tmp_path, 'listen = "127.0.0.1:0"\n')).listen == (Listen(address=Address("127.0.0.1", 0)),)
    (unix,) = load(written(tmp_path, 'listen = ["unix:run/a.sock"]\n')).listen
    assert (unix.address, unix.path) == (None, str(tmp_path / "run" / "a.sock"))


def test_paths_hold_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 'listen = "unix:a.sock"\nlog_file = "log"\n')
    monkeypatch.chdir(tmp_path)
    file = load("server.toml")
    assert (file.listen[0].path, file.log_file) == (str(tmp_path / "a.sock"), str(tmp_path / "log"))


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("listen = []", "listen", "is empty"),
        ("listen = 1080", "listen", "must be a list, not a whole number"),
        ('listen = ["127.0.0.1"]', "listen[0]", "has no port number"),
        ('listen = ["127.0.0.1:1", "unix:"]', "listen[1]", "a path is needed"),
        (f'listen = ["unix:/{"a" * 107}"]', "listen[0]", "more than 107 bytes"),
        ('listen = [{certificate = "a", key = "b"}]', "listen[0].address", "is missing"),
        ('listen = [{address = "[::1]:1", certificate = "a"}]', "listen[0].key", "is missing"),
        ('listen = [{address = "[::1]:1", key = "a"}]', "listen[0].certificate", "is missing"),
        ('listen = [{address = "::1:1"}]', "listen[0].address", "brackets"),
        ('listen = [{address = "[::1]:1", cert = "a"}]', "listen[0].cert", "no such key"),
        ("users = 1", "users", "must be a string"),
        ('open = "yes"', "open", "must be true or false"),
        ("identd = 1", "identd", "must be true or false"),
        ("workers = 0", "workers", "at least 1"),
        ("workers = true", "workers", "whole number"),
        ('log_format = "jsn"', "log_format", "did you mean json"),
        ('metrics = "0.0.0.0:9180"', "metrics", "on loopback"),
        ('metrics = "192.0.2.1:9180"', "metrics", "on loopback"),
        ('metrics = "db.localhost:9180"', "metrics", "on loopback"),
        ('metrics = "[::]:9180"', "metrics", "on loopback"),
        ("drain = -1", "drain", "more than 0"),
        ("drain = false", "drain", "must be a number"),
        ('engine = "seccomp"', "engine", "no such key"),
        ("worker = 1", "worker", "did you mean workers"),
        ("[limits]\ntotal = 0", "limits.total", "at least 1"),
        ("[limits]\nidle = 0", "limits.idle", "more than 0"),
        ("[limits]\nper_usr = 1", "limits.per_usr", "did you mean per_user"),
        ("limits = 3", "limits", "must be a table"),
        ('[hosts]\n"10.0.0.1" = "10.0.0.2"', "hosts.10.0.0.1", "is an address already"),
        ('[hosts]\na = ["b"]', "hosts.a", "b is not an address"),
        ("[hosts]\na = []", "hosts.a", "is empty"),
        ("[hosts]\na = 1", "hosts.a", "must be a list"),
        ("access = [1]", "access[0]", "must be a table"),
        ("[[access]]\nports = [25]", "access[0].action", "is missing"),
        ('[[access]]\naction = "reject"', "access[0].action", "must be one of allow, deny"),
        ('[[access]]\naction = "deny"\nmatch = ["10.0.0.0/33"]', "access[0].match[0]", "/33"),
        ('[[access]]\naction = "deny"\nports = [0]', "access[0].ports[0]", "must be a port"),
        ('[[access]]\naction = "deny"\nsources = ["a.example"]', "access[0].sources[0]", "known by its address"),
        ('[[access]]\naction = "deny"\nsources = []', "access[0].sources", "is empty"),
        ('[[access]]\naction = "deny"\ncommands = ["conect"]', "access[0].commands[0]", "did you mean connect"),
        ('[[access]]\naction = "deny"\nusers = ["100%"]', "access[0].users[0]", "two hexadecimal digits"),
        ('[[access]]\naction = "deny"\nusers = [1]', "access[0].users[0]", "must be a string"),
        ('[[access]]\naction = "deny"\nuser = ["a"]', "access[0].user", "did you mean users"),
        ('access_default = "no"', "access_default", "must be one of"),
        ('hops = ["socks5://a:s3cret@"]', "hops[0]", ""),
        ('mode = "random"', "hops", "at least one proxy"),
        ('[[rules]]\nmatch = ["*"]\nto = "tor"', "rules[0].to", "there is no chain"),
        ('[chains.tor]\nmode = "strict"', "chains.tor.hops", "at least one proxy"),
    ],
)
def test_a_file_that_cant_be_used(tmp_path: Path, text: str, key: str, reason: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert (caught.value.source, caught.value.key) == (path, key)
    assert reason in caught.value.reason
    assert "s3cret" not in str(caught.value)


def test_files_that_arent_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(str(tmp_path / "server.toml"))
    with pytest.raises(ConfigError, match=f"{os.sep}users: No such file"):
        load(written(tmp_path, 'users = "users"'))


def test_not_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        load(written(tmp_path, "listen ="))
