"""The server's configuration file, `pysocksify-server -c FILE`: TOML, with the wrapper's keys for chains and rules.

Every failure is a ConfigError with the file, the key as a person would write it (`access[0].match[2]`) and the reason.
Paths in the file are taken from its directory.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pysocksify.address import Address
from pysocksify.codes import Command
from pysocksify.config import Config, schema
from pysocksify.config.files import beside
from pysocksify.config.files import read as read_toml
from pysocksify.errors import ConfigError
from pysocksify.route.rules import DIRECT, Pattern, Rules
from pysocksify.server import ports
from pysocksify.server.access import ANYBODY, Access, AccessRule
from pysocksify.server.settings import Limits, ServerSettings
from pysocksify.server.users import Users, name_of, readable_by_others, shown

UNIX = "unix:"
UNIX_PATH_LIMIT = 107  # bytes: sun_path of unix(7), less the NUL that ends it
LOG_FORMATS = ("text", "json")
DRAIN = 0.0  # s; nginx and HAProxy end at once at SIGTERM, too
COMMANDS = {"connect": Command.CONNECT, "bind": Command.BIND, "udp": Command.UDP_ASSOCIATE}
ALLOW, DENY = ACTIONS = ("allow", "deny")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where to listen: an address (port 0: any), or the path of a Unix socket. With a certificate's file and its
    key's, in TLS."""

    address: Address | None = None
    path: str = ""
    certificate: str = ""
    key: str = ""

    @classmethod
    def parse(cls, text: str) -> "Listen":
        """What `ADDRESS:PORT` or `unix:PATH` means. Raises ValueError."""
        if not text.startswith(UNIX):
            return cls(address=Address.parse(text))
        path = text.removeprefix(UNIX)
        if not path or "\0" in path:
            raise ValueError(f"a path is needed after {UNIX}")
        return cls(path=path)

    def __str__(self) -> str:
        return str(self.address) if self.address is not None else f"{UNIX}{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFile:
    """All that a server is told: what it does, which a reload replaces, and what belongs to its process.

    settings    what it does
    listen      () when nothing is said
    workers     processes
    log_format  "text" or "json"
    log_file    None: standard error
    verbosity   as the wrapper's: -1 quiet, 0 problems, 1 connections too, 2 everything
    metrics     where counters are to be read, on loopback; None: nowhere
    drain       seconds that connections have to end by themselves after SIGTERM
    warnings    lines for whoever starts it
    """

    settings: ServerSettings
    listen: tuple[Listen, ...] = ()
    workers: int = 1
    log_format: str = "text"
    log_file: str | None = None
    verbosity: int = 0
    metrics: Address | None = None
    drain: float = DRAIN
    warnings: tuple[str, ...] = ()


def load(
    path: str | None, given: Mapping[str, Any] | None = None, plain: Mapping[bytes, bytes] | None = None
) -> ServerFile:
    """What this file says (None: no file), with what the command line has given in its place.

    `given` has the file's keys, with values as ServerFile, ServerSettings and Chain hold them: `hops` a tuple of Proxy,
    `users` a path, `limits` a dict, of which each key counts by itself, as each name of `hosts` does. `plain` are users
    with passwords, beside those of the file of users.

    Raises ConfigError, and PysocksifyError where a library is missing.
    """
    source = path or "command line"
    values = {} if path is None else _values(read_toml(path), path)
    given = given or {}
    merged = {key: {**values.get(key, {}), **given.get(key, {})} for key in ("limits", "hosts")}
    values = {**values, **given, **merged}
    users_path = values.get("users")
    settings = ServerSettings(
        users=Users.plain(plain or {}) if users_path is None else Users.read(users_path, plain),
        hosts=values["hosts"],
        open=values.get("open", False),
        access=Access(values.get("access", ()), default=values.get("access_default", ALLOW) == ALLOW),
        identd=values.get("identd", False),
        upstream=_upstream(values, source),
        limits=Limits(**values["limits"]),
    )
    warning = "" if users_path is None else readable_by_others(users_path)
    process = ("listen", "workers", "log_format", "log_file", "verbosity", "metrics", "drain")
    return ServerFile(
        settings=settings,
        warnings=(warning,) if warning else (),
        **{key: values[key] for key in process if key in values},
    )


def _values(table: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What the file says, with paths that hold from any directory."""
    values = schema.settings(table, path, _TOP, _ITEMS)
    for key in ("users", "log_file"):
        if key in values:
            values[key] = _beside(path, values[key])
    if "listen" in values:
        values["listen"] = tuple(_placed(listen, path, index) for index, listen in enumerate(values["listen"]))
    if "limits" in values:
        values["limits"] = schema.read(values["limits"], _LIMITS, path, "limits")
    if "hosts" in values:
        values["hosts"] = dict(_host(name, value, path) for name, value in values["hosts"].items())
    return values


def _beside(path: str, name: str) -> str:
    return beside(os.path.abspath(path), name)


def _placed(listen: Listen, path: str, index: int) -> Listen:
    place = {name: getattr(listen, name) for name in ("path", "certificate", "key")}
    place = {name: _beside(path, value) if value else "" for name, value in place.items()}
    if len(os.fsencode(place["path"])) > UNIX_PATH_LIMIT:
        raise ConfigError(path, f"listen[{index}]", f"the path has more than {UNIX_PATH_LIMIT} bytes")
    return Listen(address=listen.address, **place)


def _upstream(values: Mapping[str, Any], source: str) -> Config | None:
    """The chains and rules; None when all is direct. Without hops, what no rule is for is direct."""
    chains = []
    if any(key in values for key in ("hops", "mode", "length")):
        chains.append(schema.chain(schema.DEFAULT_CHAIN, values, source, ""))
    default = schema.DEFAULT_CHAIN if chains else DIRECT
    for name, chain in values.get("chains", {}).items():
        chains.append(schema.chain(name, chain, source, f"chains.{name}"))
    rules = values.get("rules", [])
    if not chains and not rules:
        return None
    schema.check_rules(rules, [chain.name for chain in chains], source)
    return Config(
        chains=tuple(chains),
        rules=Rules(tuple(rules), default=default),
        dns="fake",
        engine="auto",
        verbosity=values.get("verbosity", 0),
        log_file=values.get("log_file"),
        embedded=False,
        source=source,
        unset=(),
    )


def _listen(value: object, source: str, key: str) -> Listen:
    if not isinstance(value, dict):
        try:
            return Listen.parse(schema.string(value))
        except ValueError as error:
            raise ConfigError(source, key, str(error)) from None
    values = schema.read(value, _LISTEN, source, key)
    if "address" not in values:
        raise ConfigError(source, f"{key}.address", "is missing")
    if ("certificate" in values) != ("key" in values):
        missing = "key" if "certificate" in values else "certificate"
        raise ConfigError(source, f"{key}.{missing}", "is missing; TLS needs certificate and key")
    listen: Listen = values.pop("address")
    return replace(listen, **values)


def _access(value: object, source: str, key: str) -> AccessRule:
    if not isinstance(value, dict):
        raise ConfigError(source, key, f"must be a table, not {schema.kind(value)}")
    values = schema.read(value, _ACCESS, source, key, _ACCESS_ITEMS)
    if "action" not in values:
        raise ConfigError(source, f"{key}.action", f'is missing: "{ALLOW}" or "{DENY}"')
    return AccessRule(
        text=f"{key} {values['action']}",
        allow=values["action"] == ALLOW,
        users=values.get("users", ()),
        sources=values.get("sources", ()),
        destinations=values.get("match", ()),
        ports=values.get("ports", ()),
        commands=values.get("commands", ()),
    )


def _user(value: object, source: str, key: str) -> str:
    """A name in the one form that `shown` gives it, or "*"."""
    try:
        text = schema.string(value)
        return text if text == ANYBODY else shown(name_of(text))
    except ValueError as error:
        raise ConfigError(source, key, str(error)) from None


def _client(value: object, source: str, key: str) -> Pattern:
    pattern = schema.pattern(value, source, key)
    if pattern.network is None:
        raise ConfigError(source, key, "a client is known by its address: write one, or a network as in 10.0.0.0/8")
    return pattern


def _command(value: object, source: str, key: str) -> Command:
    try:
        return COMMANDS[schema.one_of(tuple(COMMANDS))(value)]
    except ValueError as error:
        raise ConfigError(source, key, str(error)) from None


def host(name: str, texts: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """A name, as it is looked up, and its addresses. Raises ValueError."""
    known = Address.of(name, 0)
    if not known.is_name:
        raise ValueError(f"{name} is an address already")
    addresses = [Address.of(text, 0) for text in texts]
    for address in addresses:
        if address.is_name:
            raise ValueError(f"{address.host} is not an address")
    return known.host, tuple(address.host for address in addresses)


def _host(name: str, value: object, source: str) -> tuple[str, tuple[str, ...]]:
    try:
        texts = [value] if isinstance(value, str) else schema.nonempty(value)
        return host(name, [schema.string(text) for text in texts])
    except ValueError as error:
        raise ConfigError(source, f"hosts.{name}", str(error)) from None


def _whether(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {schema.kind(value)}")
    return value


def _one_or_more(value: object) -> list[Any]:
    return [value] if isinstance(value, (str, dict)) else schema.nonempty(value)


def _parsed_listen(value: object) -> Listen:
    return Listen.parse(schema.string(value))


def _metrics(value: object) -> Address:
    return ports.private(schema.string(value))


def _drain(value: object) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else schema.seconds(value)


_TOP: "schema.Readers" = {
    **schema.UPSTREAM,
    "listen": _one_or_more,
    "users": schema.string,
    "hosts": schema.mapping,
    "open": _whether,
    "identd": _whether,
    "limits": schema.mapping,
    "access": schema.listing,
    "access_default": schema.one_of(ACTIONS),
    "workers": schema.count,
    "log_format": schema.one_of(LOG_FORMATS),
    "log_file": schema.string,
    "verbosity": schema.verbosity,
    "metrics": _metrics,
    "drain": _drain,
}
_LISTEN: "schema.Readers" = {"address": _parsed_listen, "certificate": schema.string, "key": schema.string}
_ACCESS: "schema.Readers" = {
    "action": schema.one_of(ACTIONS),
    "users": schema.nonempty,
    "sources": schema.nonempty,
    "match": schema.nonempty,
    "ports": schema.nonempty,
    "commands": schema.nonempty,
}
_ITEMS: "schema.ItemReaders" = {**schema.ITEMS, "listen": _listen, "access": _access}
_ACCESS_ITEMS: "schema.ItemReaders" = {
    "users": _user,
    "sources": _client,
    "match": schema.pattern,
    "ports": schema.ports,
    "commands": _command,
}
_LIMITS: "schema.Readers" = {
    "total": schema.count,
    "per_user": schema.count,
    "per_source": schema.count,
    "handshake": schema.seconds,
    "dial": schema.seconds,
    "bind": schema.seconds,
    "idle": schema.seconds,
    "udp_idle": schema.seconds,
}
