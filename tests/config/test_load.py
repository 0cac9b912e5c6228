"""load(): what is found first, what overrides what, and what each mistake is called."""

import os
from pathlib import Path

import pytest

from pysocksify.address import Address
from pysocksify.config import Config, files, load
from pysocksify.errors import ConfigError, PysocksifyError
from pysocksify.options import Options

ONE = 'hops = ["socks5://192.0.2.1:1"]\n'


class Home:
    """A user's and a machine's directory, and the environment that leads there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.user = path / "xdg" / "pysocksify"
        self.machine = path / "etc"
        self.environ = {"XDG_CONFIG_HOME": str(path / "xdg"), "HOME": str(path / "home")}

    def write(self, path: Path, text: str) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    def load(self, *, environ: dict[str, str] | None = None, **options: object) -> Config:
        return load(Options(command=("true",), **options), {**self.environ, **(environ or {})})  # type: ignore[arg-type]

    def error(self, text: str) -> str:
        """What is said of a file with this text; the file's name is cut off."""
        path = self.write(self.path / "f.toml", text)
        with pytest.raises(ConfigError) as caught:
            self.load(config=path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message.removeprefix(f"{path}: ")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path)
    monkeypatch.setattr(files, "SYSTEM_DIRECTORY", str(home.machine))
    return home


def hops(config: Config) -> list[str]:
    return [str(hop) for hop in config.chains[0].hops]


def test_search_order(home: Home) -> None:
    everything = {
        "PYSOCKSIFY_PROXY": "socks5://192.0.2.3 http://192.0.2.33",
        "PYSOCKSIFY_CONFIG": home.write(home.path / "env.toml", 'hops = ["socks5://192.0.2.4"]'),
        "all_proxy": "socks5h://192.0.2.7",
        "ALL_PROXY": "socks5h://192.0.2.8",
    }
    user = home.write(home.user / "config.toml", 'hops = ["socks5://192.0.2.5"]')
    machine = home.write(home.machine / "config.toml", 'hops = ["socks5://192.0.2.6"]')
    named = home.write(home.user / "work.toml", 'hops = ["socks5://192.0.2.2"]')

    config = home.load(environ=everything, proxies=("socks5://192.0.2.1",))
    assert (hops(config), config.source) == (["socks5://192.0.2.1:1080"], "-p")
    config = home.load(environ=everything, config="work")
    assert (hops(config), config.source) == (["socks5://192.0.2.2:1080"], named)
    config = home.load(environ=everything)
    assert (hops(config), config.source) == (["socks5://192.0.2.3:1080", "http://192.0.2.33:3128"], "PYSOCKSIFY_PROXY")
    del everything["PYSOCKSIFY_PROXY"]
    assert home.load(environ=everything).source == everything["PYSOCKSIFY_CONFIG"]
    everything["PYSOCKSIFY_CONFIG"] = ""
    assert home.load(environ=everything).source == user
    os.remove(user)
    assert home.load(environ=everything).source == machine
    os.remove(machine)
    config = home.load(environ=everything)
    assert (hops(config), config.source) == (["socks5://192.0.2.7:1080"], "all_proxy")
    del everything["all_proxy"]
    assert hops(home.load(environ=everything)) == ["socks5://192.0.2.8:1080"]
    everything["ALL_PROXY"] = ""
    with pytest.raises(PysocksifyError, match="no proxy is configured") as caught:
        home.load(environ=everything)
    assert all(way in str(caught.value) for way in ("-p", "PYSOCKSIFY_PROXY", "ALL_PROXY", "config.toml", "--embedded"))


def test_only_all_proxy_is_taken_away(home: Home) -> None:
    assert home.load(environ={"ALL_PROXY": " socks5://h "}).unset == ("all_proxy", "ALL_PROXY")
    environ = {"ALL_PROXY": "socks5://h", "PYSOCKSIFY_PROXY": "socks5://k"}
    assert home.load(environ=environ).unset == ()
    assert home.load(environ={"ALL_PROXY": "socks5://h"}, proxies=("http://k",)).unset == ()


def test_no_proxy_belongs_to_all_proxy(home: Home) -> None:
    environ = {"ALL_PROXY": "socks5://h", "NO_PROXY": "other.example", "no_proxy": "corp.example"}
    rules = home.load(environ=environ).rules
    assert rules.route(Address("www.corp.example", 80)).kind == "direct"
    assert rules.route(Address("other.example", 80)).kind == "chain"  # no_proxy comes first, as in curl
    rules = home.load(environ=environ, proxies=("socks5://h",)).rules
    assert rules.route(Address("www.corp.example", 80)).kind == "chain"
    with pytest.raises(ConfigError, match=r"^no_proxy: .*every host"):
        home.load(environ={**environ, "no_proxy": "*"})


FIRST_CHOICES = [
    ({"PYSOCKSIFY_PROXY": "socks5://h https://u:pw@k"}, "PYSOCKSIFY_PROXY: https://***@k: "),
    ({"PYSOCKSIFY_CONFIG": "/nonexistent.toml"}, "/nonexistent.toml: No such file or directory"),
    ({"PYSOCKSIFY_CONFIG": "nonexistent"}, "PYSOCKSIFY_CONFIG: nonexistent: there is no such file, nor "),
    ({"ALL_PROXY": "https://u:pw@k"}, "ALL_PROXY: https://***@k: "),
    ({"ALL_PROXY": "127.0.0.1:1080"}, "ALL_PROXY: 127.0.0.1:1080: a proxy is written scheme://"),
]


@pytest.mark.parametrize(("environ", "message"), FIRST_CHOICES)
def test_nothing_is_passed_over(home: Home, environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        home.load(environ={**environ, "all_proxy": environ.get("ALL_PROXY", "socks5://192.0.2.7")})
    assert str(caught.value).startswith(message.replace("ALL_PROXY", "all_proxy"))
    home.write(home.machine / "config.toml", ONE)
    home.user.mkdir(parents=True)
    (home.user / "config.toml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="No such file"):
        home.load()


def test_named_files(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    here = home.path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    user, machine = home.write(home.user / "work.toml", ONE), home.write(home.machine / "work.toml", ONE)
    assert home.load(config="work").source == user
    (here / "work").mkdir()
    assert home.load(config="work").source == user  # a directory is no file
    os.remove(user)
    assert home.load(config="work").source == machine
    home.write(here / "play", ONE)
    assert home.load(config="play").source == "play"
    assert home.load(config="./play").source == "./play"
    with pytest.raises(ConfigError, match=r"^work\.toml: No such file"):
        home.load(config="work.toml")
    with pytest.raises(ConfigError, match=r"^/: Is a directory"):
        home.load(config="/")
    with pytest.raises(ConfigError, match=r"^-c: the file's name is empty"):
        home.load(config="")


def test_directories() -> None:
    assert files.directories({"XDG_CONFIG_HOME": "/x", "HOME": "/h"})[0] == "/x/pysocksify"
    for relative in ("", "x"):
        assert files.directories({"XDG_CONFIG_HOME": relative, "HOME": "/h"})[0] == "/h/.config/pysocksify"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(home: Home) -> None:
    home.write(home.machine / "config.toml", ONE)
    Path(home.write(home.user / "config.toml", ONE)).chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        home.load()


WHOLE = """
mode = "random"
length = 2
hops = ["socks5://192.0.2.1", "socks5://192.0.2.2", "socks5://192.0.2.3"]
connect_timeout = 3
reply_timeout = 0.5
dns = "system"
engine = "seccomp"
verbosity = 2
log_file = "log"
[chains.office]
hops = ["http://192.0.2.9"]
[chains."the lab"]
mode = "round_robin"
hops = ["http://192.0.2.8"]
reply_timeout = 7.0
[[rules]]
match = ["10.0.0.0/8", "*.corp.example"]
ports = [22, "23", "8000-8999"]
to = "office"
"""


def test_every_key(home: Home) -> None:
    config = home.load(config=home.write(home.path / "f.toml", WHOLE))
    default, office, lab = config.chains
    assert (default.name, default.mode, default.length, len(default.hops)) == ("default", "random", 2, 3)
    assert (default.connect_timeout, default.reply_timeout) == (3.0, 0.5)
    assert (office.name, office.mode, office.connect_timeout, office.reply_timeout) == ("office", "strict", 10.0, 15.0)
    assert (lab.name, lab.mode, lab.length, lab.reply_timeout) == ("the lab", "round_robin", 1, 7.0)
    assert (config.dns, config.engine, config.verbosity) == ("system", "seccomp", 2)
    assert config.log_file == str(home.path / "log")
    assert config.rules.rules[0].ports == ((22, 22), (23, 23), (8000, 8999))
    assert config.rules.route(Address("a.corp.example", 8500)).chain == "office"


def test_defaults(home: Home) -> None:
    config = home.load(proxies=("socks5://a", "http://b"))
    chain = config.chains[0]
    assert (chain.name, chain.mode, chain.length, chain.connect_timeout, chain.reply_timeout) == (
        "default", "strict", 2, 10.0, 15.0,
    )  # fmt: skip
    assert (config.dns, config.engine, config.verbosity, config.log_file) == ("fake", "auto", 0, None)
    assert (config.embedded, config.unset, config.rules.rules) == (False, (), ())


def test_options_override_keys(home: Home) -> None:
    path = home.write(home.path / "f.toml", WHOLE)
    config = home.load(
        config=path, proxies=("socks5://a", "socks5://b"), mode="round_robin", length=1, timeout=2.5, dns="fake",
        engine="auto", quiet=True, log_file="here", direct=("10.1.0.0/16", "*.lab.example"),
    )  # fmt: skip
    default, office, _ = config.chains
    assert (hops(config), default.mode, default.length) == (["socks5://a:1080", "socks5://b:1080"], "round_robin", 1)
    assert {(c.connect_timeout, c.reply_timeout) for c in config.chains} == {(2.5, 2.5)}
    assert str(office.hops[0]) == "http://192.0.2.9:3128"
    assert (config.dns, config.engine, config.verbosity, config.log_file) == ("fake", "auto", -1, "here")
    assert config.rules.route(Address("10.1.2.3", 22)).kind == "direct"  # before the file's rules
    assert config.rules.route(Address("10.2.2.3", 22)).chain == "office"
    assert home.load(config=path).verbosity == 2
    assert home.load(config=path, verbose=1).verbosity == 1
    assert home.load(config=path, verbose=5).verbosity == 2
    assert hops(home.load(config=home.write(home.path / "g.toml", "dns = 'fake'"), proxies=("http://k",))) == [
        "http://k:3128"
    ]


BAD_OPTIONS = [
    ({"proxies": ("socks5://a", "ftp://u:pw@b")}, "-p: ftp://***@b: the scheme 'ftp' isn't spoken"),
    ({"proxies": ("",)}, "-p: "),
    ({"proxies": ("socks5://a",), "mode": "random", "length": 2}, "-p: length: 2 hops are asked for, the chain has 1"),
    ({"proxies": ("socks5://a",), "length": 0}, "--length: must be at least 1"),
    ({"proxies": ("socks5://a",), "timeout": 0.0}, "--timeout: must be more than 0"),
    ({"proxies": ("socks5://a",), "timeout": float("nan")}, "--timeout: must be more than 0"),
    ({"proxies": ("socks5://a",), "timeout": float("inf")}, "--timeout: must be more than 0"),
    ({"proxies": ("socks5://a",), "direct": ("10.0.0.0/99",)}, "--direct: /99 is not"),
    ({"proxies": ("socks5://a",), "direct": ("*",)}, "--direct: '*' is every host"),
    ({"proxies": ("socks5://a",), "embedded": True}, "--embedded: "),
    ({"embedded": True, "mode": "dynamic"}, "--embedded: "),
    ({"proxies": ("socks5://a",), "length": 1}, "--length: is for --mode random and round_robin"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(home: Home, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        home.load(**options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_embedded(home: Home) -> None:
    config = home.load(embedded=True, environ={"ALL_PROXY": "socks5://h"}, timeout=3.0)
    assert (config.embedded, config.source, config.unset) == (True, "--embedded", ())
    assert config.chains[0].hops == ()
    started = config.with_embedded(Address("127.0.0.1", 4321), b"user", b"sesame")
    (hop,) = started.chains[0].hops
    assert (str(hop), hop.username, hop.password) == ("socks5://127.0.0.1:4321", b"user", b"sesame")
    assert (started.chains[0].mode, started.chains[0].connect_timeout) == ("strict", 3.0)
    config = home.load(embedded=True, config=home.write(home.path / "f.toml", WHOLE))
    assert [chain.name for chain in config.chains] == ["default", "office", "the lab"]
    assert (config.chains[0].mode, config.chains[0].hops) == ("strict", ())


ERRORS = [
    ("", "hops: a chain needs at least one proxy"),
    ("hops = []", "hops: is empty"),
    ('hops = "socks5://a"', "hops: must be a list, not a string"),
    ('hops = ["socks5://a", 1080]', "hops[1]: must be a proxy's URL in quotes, not a whole number"),
    ('hops = ["socks5://a", "https://alice:sesame@b"]', "hops[1]: https://***@b: the scheme 'https'"),
    ('hops = ["socks4://alice:sesame@b"]', "hops[0]: socks4://alice:***@b: SOCKS4 has no passwords"),
    ('hosp = ["socks5://a"]', "hosp: no such key; did you mean hops?"),
    (ONE + 'Mode = "strict"', "Mode: no such key; did you mean mode?"),
    (ONE + "zzz = 1", "zzz: no such key"),
    (ONE + 'mode = "dynamc"', "mode: must be one of strict, dynamic, random, round_robin; did you mean dynamic?"),
    (ONE + "mode = 3", "mode: must be a string, not a whole number"),
    (ONE + 'length = "2"', "length: must be a whole number, not a string"),
    (ONE + "length = true", "length: must be a whole number, not true or false"),
    (ONE + "length = 0", "length: must be at least 1"),
    (ONE + 'mode = "random"\nlength = 2', "length: 2 hops are asked for, the chain has 1"),
    (ONE + "connect_timeout = 0", "connect_timeout: must be more than 0 seconds and not endless"),
    (ONE + "connect_timeout = inf", "connect_timeout: must be more than 0 seconds and not endless"),
    (ONE + "reply_timeout = nan", "reply_timeout: must be more than 0 seconds and not endless"),
    (ONE + "reply_timeout = 07:32:00", "reply_timeout: must be a number of seconds, not a date or time"),
    (ONE + 'dns = "tcp"', "dns: must be one of fake, system"),
    (ONE + 'engine = "netns"', "engine: must be one of auto, seccomp, preload, ptrace, python"),
    (ONE + "verbosity = 3", "verbosity: must be -1, 0, 1 or 2"),
    (ONE + 'log_file = ""', "log_file: is empty"),
    (ONE + "chains = 3", "chains: must be a table, not a whole number"),
    (ONE + "[chains]\noffice = 3", "chains.office: must be a table, not a whole number"),
    (ONE + "[chains.office]", "chains.office.hops: a chain needs at least one proxy"),
    (ONE + '[chains.office]\nhops = ["http://"]', "chains.office.hops[0]: http://: the host is missing"),
    (ONE + '[chains.office]\ndns = "fake"', "chains.office.dns: no such key"),
    (ONE + '[chains.direct]\nhops = ["http://a"]', "chains.direct: this name has a meaning of its own"),
    (ONE + '[chains.default]\nhops = ["http://a"]', "chains.default: this name has a meaning of its own"),
    (ONE + '[rules]\nto = "deny"', "rules: must be a list, not a table"),
    (ONE + "rules = [3]", "rules[0]: must be a table, not a whole number"),
    (ONE + '[[rules]]\nto = "deny"', 'rules[0]: has neither match nor ports; write match = ["*"] for every host'),
    (ONE + '[[rules]]\nmatch = ["*"]', 'rules[0].to: is missing: a chain, "direct" or "deny"'),
    (ONE + '[[rules]]\nmatch = "*"\nto = "deny"', "rules[0].match: must be a list, not a string"),
    (ONE + '[[rules]]\nmatch = []\nto = "deny"', "rules[0].match: is empty"),
    (ONE + '[[rules]]\nmatch = ["a", "b", "c*"]\nto = "deny"', "rules[0].match[2]: 'c*': a star stands alone"),
    (ONE + '[[rules]]\nmatch = [3]\nto = "deny"', "rules[0].match[0]: must be a string, not a whole number"),
    (ONE + '[[rules]]\nports = [0]\nto = "deny"', "rules[0].ports[0]: must be a port from 1 to 65535"),
    (ONE + '[[rules]]\nports = [1, "9-8"]\nto = "deny"', "rules[0].ports[1]: must be a port from 1 to 65535"),
    (ONE + '[[rules]]\nports = ["1-65536"]\nto = "deny"', "rules[0].ports[0]: must be a port"),
    (ONE + '[[rules]]\nports = [true]\nto = "deny"', "rules[0].ports[0]: must be a port"),
    (ONE + '[[rules]]\nports = [-1]\nto = "deny"', "rules[0].ports[0]: must be a port"),
    (ONE + '[[rules]]\nports = [1.5]\nto = "deny"', "rules[0].ports[0]: must be a port"),
    (ONE + '[[rules]]\nport = [1]\nto = "deny"', "rules[0].port: no such key; did you mean ports?"),
    (ONE + '[[rules]]\nmatch = ["*"]\nto = "dyrect"', "rules[0].to: there is no chain 'dyrect'; did you mean direct?"),
    (ONE + 'hops = ["http://a"]', "not TOML: Cannot overwrite a value"),
    ('hops = [\n  socks5://alice:sesame@h\n]', "not TOML: Invalid value (at line 2, column 3)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_what_is_wrong_with_a_file(home: Home, text: str, message: str) -> None:
    said = home.error(text)
    assert said.startswith(message)
    assert "sesame" not in said


def test_not_text(home: Home) -> None:
    path = home.path / "f.toml"
    path.write_bytes(ONE.encode() + b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"f\.toml: not TOML: line 2 is not UTF-8"):
        home.load(config=str(path))


def test_no_password_in_any_text(home: Home) -> None:
    assert "sesame" not in repr(home.load(proxies=("socks5://alice:sesame@h",)))
