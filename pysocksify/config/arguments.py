"""What a program's own call says (`pysocksify.socksify(…)`) becomes a Config, by the command line's rules."""

import os

from pysocksify.config import Config, load, schema
from pysocksify.errors import ConfigError
from pysocksify.options import Options
from pysocksify.record import replace
from pysocksify.route.rules import Rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

SOURCE = "socksify()"


def configuration(
    *hops: str,
    config: "Config | str | os.PathLike[str] | None" = None,
    mode: str | None = None,
    length: int | None = None,
    direct: "Sequence[str]" = (),
    rules: "Sequence[Mapping[str, Any]]" = (),
    dns: str | None = None,
    timeout: float | None = None,
) -> Config:
    """The configuration that these arguments describe.

    hops     proxies' URLs, in order; none: those of `config`, or of the environment and the files that the command
             line looks into (PYSOCKSIFY_PROXY, config.toml, ALL_PROXY, …)
    config   a Config (then nothing else may be given), a file's path, or NAME of NAME.toml
    mode     "strict", "dynamic", "random" or "round_robin", with `length` hops for the last two
    direct   hosts that are reached without a proxy: addresses, networks, names, "*.suffix"
    rules    as in a file: {"match": ["10.0.0.0/8"], "ports": [22], "to": "direct"}; before all other rules
    dns      "fake" (the last proxy resolves names) or "system"
    timeout  seconds, for connecting to each hop and for each of its replies

    Raises ConfigError for what can't be used and PysocksifyError when no proxy is named anywhere.
    """
    if isinstance(config, Config):
        if hops or direct or rules or any(each is not None for each in (mode, length, dns, timeout)):
            raise ConfigError(SOURCE, "config", "a Config says it all; change it, or give the options without it")
        return config
    options = Options(
        command=(),
        proxies=hops,
        config=None if config is None else os.fspath(config),
        mode=mode,
        length=length,
        direct=_listed(direct, "direct"),
        dns=dns,
        timeout=timeout,
    )
    schema.settings({name: value for name, value in (("mode", mode), ("dns", dns)) if value is not None}, SOURCE)
    loaded = load(options, os.environ)
    if not rules:
        return loaded
    first = schema.settings({"rules": [dict(rule) for rule in rules]}, SOURCE)["rules"]
    schema.check_rules(first, [chain.name for chain in loaded.chains], SOURCE)
    return replace(loaded, rules=Rules((*first, *loaded.rules.rules), default=loaded.rules.default))


def _listed(values: "Sequence[str]", key: str) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ConfigError(SOURCE, key, "must be a list of strings, not one string")
    return tuple(values)
