"""Configuration: command line, environment and file become one frozen Config, or a ConfigError that says what is wrong.

The first that exists of: the command line's -p, -c or --embedded (-p and --embedded beside -c take the place of the
file's hops), PYSOCKSIFY_PROXY, PYSOCKSIFY_CONFIG, the user's config.toml, the machine's, all_proxy or ALL_PROXY. Other
tools' files (proxychains', tsocks') will come after these; nothing reads them yet. What exists and can't be used is an
error, never a reason to look further: that would be to use another proxy than was meant.
"""

from pysocksify.address import Address
from pysocksify.config import files, schema
from pysocksify.config.environment import direct_rules, first_set, split_urls
from pysocksify.config.urls import parse_proxy
from pysocksify.errors import ConfigError, PysocksifyError
from pysocksify.options import Options
from pysocksify.record import record, replace
from pysocksify.route.chain import Chain, Proxy
from pysocksify.route.rules import DIRECT, Pattern, Rule, Rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["Config", "load"]

ALL_PROXY = ("all_proxy", "ALL_PROXY")  # in this order, as curl has it
NO_PROXY = ("no_proxy", "NO_PROXY")

NOTHING_CONFIGURED = (
    "no proxy is configured, so the program wasn't run. Name one on the command line (-p socks5://HOST:PORT, repeated "
    "for a chain), in the environment (PYSOCKSIFY_PROXY or ALL_PROXY), or in a file (hops = [...] in "
    "~/.config/pysocksify/config.toml, or -c FILE); --embedded goes through the bundled server."
)


@record(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that a run is told.

    chains      the first is the default one; with `embedded` it has no hops until `with_embedded` gave it one
    dns         "fake" or "system"
    engine      "auto" or an engine's name
    verbosity   -1 quiet, 0 problems, 1 connections too, 2 everything
    embedded    a server of our own is to be started first, as the default chain
    source      where the default chain was named
    unset       variables to take out of the target's environment
    """

    chains: tuple[Chain, ...]
    rules: Rules
    dns: str
    engine: str
    verbosity: int
    log_file: str | None
    embedded: bool
    source: str
    unset: tuple[str, ...]

    def with_embedded(self, address: Address, username: bytes, password: bytes) -> "Config":
        """This configuration once the server of `embedded` listens there and asks for this login."""
        hop = Proxy(scheme="socks5", address=address, username=username, password=password)
        chain = replace(self.chains[0], hops=(hop,))
        return replace(self, chains=(chain, *self.chains[1:]))


def load(options: Options, environ: "Mapping[str, str]") -> Config:
    """The Config of a command line and an environment.

    Raises ConfigError for what can't be used and PysocksifyError when no proxy is named anywhere.
    """
    if options.embedded and options.proxies:
        raise ConfigError("--embedded", "", "goes through the bundled server alone; leave it or -p out")
    if options.embedded and (options.mode is not None or options.length is not None):
        raise ConfigError("--embedded", "", "goes through one server; leave it or --mode and --length out")
    source, values, unset = _found(options, environ)
    overrides = _overrides(options)
    written = {**values, **overrides}
    if options.embedded:
        default = _embedded_chain(written)
    else:
        default = schema.chain(schema.DEFAULT_CHAIN, written, source, "")
    if options.length is not None and default.mode not in ("random", "round_robin"):
        raise ConfigError("--length", "", f"is for --mode random and round_robin; this chain is {default.mode}")
    chains = [default]
    for name, chain in values.get("chains", {}).items():
        chains.append(schema.chain(name, {**chain, **_timeouts(overrides)}, source, f"chains.{name}"))
    rules = values.get("rules", [])
    schema.check_rules(rules, [chain.name for chain in chains], source)
    return Config(
        chains=tuple(chains),
        rules=Rules((*_direct(options.direct), *rules), default=default.name),
        dns=written.get("dns", "fake"),
        engine=written.get("engine", "auto"),
        verbosity=written.get("verbosity", 0),
        log_file=written.get("log_file"),
        embedded=options.embedded,
        source="--embedded" if options.embedded else "-p" if options.proxies else source,
        unset=unset,
    )


def _found(options: Options, environ: "Mapping[str, str]") -> "tuple[str, dict[str, Any], tuple[str, ...]]":
    """Where the configuration is, what it says (as a file's settings), and the variables that it takes away."""
    if options.config is not None:
        return _file(files.named(options.config, "-c", environ))
    if options.proxies or options.embedded:
        return "-p", {}, ()
    if urls := split_urls(environ.get("PYSOCKSIFY_PROXY", "")):
        source = "PYSOCKSIFY_PROXY"
        return source, {"hops": _hops(urls, source)}, ()
    if first_set(environ, "PYSOCKSIFY_CONFIG"):
        return _file(files.named(environ["PYSOCKSIFY_CONFIG"], "PYSOCKSIFY_CONFIG", environ))
    if path := files.default(environ):
        return _file(path)
    if name := first_set(environ, *ALL_PROXY):
        return name, _from_all_proxy(name, environ), ALL_PROXY
    raise PysocksifyError(NOTHING_CONFIGURED)


def _file(path: str) -> "tuple[str, dict[str, Any], tuple[str, ...]]":
    values = schema.settings(files.read(path), path)
    if "log_file" in values:
        values["log_file"] = files.beside(path, values["log_file"])
    return path, values, ()


def _from_all_proxy(name: str, environ: "Mapping[str, str]") -> "dict[str, Any]":
    exceptions = first_set(environ, *NO_PROXY)
    return {
        "hops": _hops([environ[name].strip()], name),
        "rules": list(direct_rules(environ.get(exceptions, ""), exceptions)),
    }


def _hops(urls: list[str], source: str) -> tuple[Proxy, ...]:
    return tuple(parse_proxy(url, source) for url in urls)


def _overrides(options: Options) -> "dict[str, Any]":
    """What the command line says, under the names of a file's keys."""
    given: dict[str, Any] = {
        "mode": options.mode,
        "length": options.length,
        "dns": options.dns,
        "engine": options.engine,
        "log_file": options.log_file,
        "connect_timeout": options.timeout,
        "reply_timeout": options.timeout,
        "verbosity": -1 if options.quiet else min(options.verbose, 2) or None,
        "hops": _hops(list(options.proxies), "-p") or None,
    }
    result = {key: value for key, value in given.items() if value is not None}
    for key, option, check in (
        ("length", "--length", schema.count),
        ("connect_timeout", "--timeout", schema.seconds),
    ):
        try:
            if key in result:
                check(result[key])
        except ValueError as error:
            raise ConfigError(option, "", str(error)) from None
    return result


def _timeouts(overrides: "Mapping[str, Any]") -> "dict[str, float]":
    return {key: overrides[key] for key in ("connect_timeout", "reply_timeout") if key in overrides}


def _embedded_chain(values: "Mapping[str, Any]") -> Chain:
    return Chain(
        name=schema.DEFAULT_CHAIN,
        mode="strict",
        length=1,
        hops=(),
        connect_timeout=values.get("connect_timeout", schema.CONNECT_TIMEOUT),
        reply_timeout=values.get("reply_timeout", schema.REPLY_TIMEOUT),
    )


def _direct(hosts: tuple[str, ...]) -> tuple[Rule, ...]:
    """The rules of --direct."""
    rules = []
    for host in hosts:
        if host == "*":
            raise ConfigError("--direct", "", "'*' is every host, so nothing would go through the proxy")
        try:
            rules.append(Rule(match=(Pattern.parse(host),), to=DIRECT))
        except ValueError as error:
            raise ConfigError("--direct", "", str(error)) from None
    return tuple(rules)
