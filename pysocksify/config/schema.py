"""The keys of a configuration file: which there are, what each may hold, and what is wrong with one that is not so.

Every failure is a ConfigError with the file, the key as a person would write it (`rules[0].match[2]`) and the reason.
"""

from pysocksify.config.urls import parse_proxy
from pysocksify.errors import ConfigError
from pysocksify.options import DNS, ENGINES
from pysocksify.route.chain import MODES, Chain, Proxy
from pysocksify.route.rules import DENY, DIRECT, Pattern, Rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    Readers = Mapping[str, Callable[[Any], Any]]  # by key; they raise ValueError
    ItemReaders = Mapping[str, Callable[[Any, str, str], Any]]  # of (value, source, key); they raise ConfigError

DEFAULT_CHAIN = "default"
_KINDS: "dict[type, str]" = {
    bool: "true or false", str: "a string", int: "a whole number", float: "a number", list: "a list", dict: "a table",
}  # fmt: skip
CONNECT_TIMEOUT = 10.0  # seconds; curl's default is 300, proxychains-ng's 8
REPLY_TIMEOUT = 15.0  # a hop's reply waits for its own connect(); proxychains-ng's default is the same


def settings(
    table: "Mapping[str, Any]", source: str, readers: "Readers | None" = None, items: "ItemReaders | None" = None
) -> "dict[str, Any]":
    """What a file's table says, checked: the same keys, with `hops` a tuple of Proxy, `chains` a dict of such dicts,
    `rules` a list of Rule (see `check_rules` for their chains' names). For a file with other keys than the wrapper's,
    `readers` and `items` read them; UPSTREAM and ITEMS are a part of these."""
    result = read(table, readers or _TOP, source, "", items)
    result["chains"] = {
        name: _chain_settings(name, value, source) for name, value in mapping(result.get("chains", {})).items()
    }
    rules = result.get("rules", [])
    result["rules"] = [_rule(value, source, f"rules[{index}]") for index, value in enumerate(rules)]
    return result


def chain(name: str, values: "Mapping[str, Any]", source: str, key: str) -> Chain:
    """The chain with these settings; `key` is where it stands, "" at the top. Raises ConfigError."""
    hops: tuple[Proxy, ...] = values.get("hops", ())
    mode = values.get("mode", "strict")
    if not hops:
        raise ConfigError(source, _join(key, "hops"), "a chain needs at least one proxy")
    length = len(hops)
    if mode in ("random", "round_robin"):
        length = values.get("length", 1)
        if length > len(hops):
            raise ConfigError(source, _join(key, "length"), f"{length} hops are asked for, the chain has {len(hops)}")
    return Chain(
        name=name,
        mode=mode,
        length=length,
        hops=hops,
        connect_timeout=values.get("connect_timeout", CONNECT_TIMEOUT),
        reply_timeout=values.get("reply_timeout", REPLY_TIMEOUT),
    )


def check_rules(rules: "Iterable[Rule]", chains: "Iterable[str]", source: str) -> None:
    """Raise ConfigError for a rule whose chain doesn't exist."""
    known = [*chains, DIRECT, DENY]
    for index, rule in enumerate(rules):
        if rule.to not in known:
            raise ConfigError(source, f"rules[{index}].to", f"there is no chain {rule.to!a}{_nearest(rule.to, known)}")


def seconds(value: object) -> float:
    """A time limit: a number above 0. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"must be a number of seconds, not {kind(value)}")
    if not 0 < value < float("inf"):
        raise ValueError("must be more than 0 seconds and not endless")
    return float(value)


def count(value: object) -> int:
    """A number of hops. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, not {kind(value)}")
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def _chain_settings(name: str, value: object, source: str) -> "dict[str, Any]":
    key = f"chains.{name}"
    if name in (DEFAULT_CHAIN, DIRECT, DENY):
        raise ConfigError(source, key, "this name has a meaning of its own")
    if not isinstance(value, dict):
        raise ConfigError(source, key, f"must be a table, not {kind(value)}")
    return read(value, _CHAIN, source, key)


def _rule(value: object, source: str, key: str) -> Rule:
    if not isinstance(value, dict):
        raise ConfigError(source, key, f"must be a table, not {kind(value)}")
    values = read(value, _RULE, source, key)
    if "to" not in values:
        raise ConfigError(source, f"{key}.to", 'is missing: a chain, "direct" or "deny"')
    if "match" not in values and "ports" not in values:
        raise ConfigError(source, key, 'has neither match nor ports; write match = ["*"] for every host')
    return Rule(match=values.get("match", ()), ports=values.get("ports", ()), to=values["to"])


def read(
    table: "Mapping[str, Any]", readers: "Readers", source: str, prefix: str, items: "ItemReaders | None" = None
) -> "dict[str, Any]":
    """The table with each value read by its key's reader, and each element of a list by its item reader (else ITEMS').

    Raises ConfigError; `prefix` is the key of the table itself, "" for the whole file.
    """
    result: dict[str, Any] = {}
    for name, value in table.items():
        key = _join(prefix, name)
        if name not in readers:
            raise ConfigError(source, key, f"no such key{_nearest(name, readers)}")
        item = (items or ITEMS).get(name)
        try:
            result[name] = readers[name](value)
            if item is not None:
                result[name] = tuple(item(each, source, f"{key}[{at}]") for at, each in enumerate(result[name]))
        except ValueError as error:
            raise ConfigError(source, key, str(error)) from None
    return result


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _nearest(name: str, known: "Iterable[str]") -> str:
    """The end of a message about a name that isn't known: the known one that was perhaps meant."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def kind(value: object) -> str:
    """What a TOML value is, for a message. The value itself isn't shown: it might be a password."""
    return _KINDS.get(type(value), "a date or time")


def string(value: object) -> str:
    """A string that isn't empty. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {kind(value)}")
    if not value:
        raise ValueError("is empty")
    return value


def one_of(words: tuple[str, ...]) -> "Callable[[object], str]":
    """A reader of one of these words."""

    def read(value: object) -> str:
        text = string(value)
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}{_nearest(text, words)}")
        return text

    return read


def verbosity(value: object) -> int:
    """-1, 0, 1 or 2. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= 2:
        raise ValueError("must be -1, 0, 1 or 2")
    return value


def listing(value: object) -> "list[Any]":
    """A list. Raises ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list, not {kind(value)}")
    return value


def nonempty(value: object) -> "list[Any]":
    """A list that isn't empty. Raises ValueError."""
    if not listing(value):
        raise ValueError("is empty")
    return listing(value)


def mapping(value: object) -> "dict[str, Any]":
    """A table. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a table, not {kind(value)}")
    return value


def _hop(value: object, source: str, key: str) -> Proxy:
    if not isinstance(value, str):
        raise ConfigError(source, key, f"must be a proxy's URL in quotes, not {kind(value)}")
    return parse_proxy(value, source, key)


def pattern(value: object, source: str, key: str) -> Pattern:
    """A host, as rules have it. Raises ConfigError."""
    try:
        return Pattern.parse(string(value))
    except ValueError as error:
        raise ConfigError(source, key, str(error)) from None


def ports(value: object, source: str, key: str) -> tuple[int, int]:
    """The first and the last of a port or a range of them. Raises ConfigError."""
    first, dash, last = str(value).partition("-")
    bounds = (first.strip(), last.strip() if dash else first.strip())
    if isinstance(value, (int, str)) and all(text.isascii() and text.isdigit() and len(text) <= 5 for text in bounds):
        low, high = int(bounds[0]), int(bounds[1])
        if 1 <= low <= high <= 65535:
            return low, high
    raise ConfigError(source, key, 'must be a port from 1 to 65535, or a range as in "8000-8999"')


_CHAIN: "Readers" = {
    "mode": one_of(MODES),
    "length": count,
    "hops": nonempty,
    "connect_timeout": seconds,
    "reply_timeout": seconds,
}
UPSTREAM: "Readers" = {**_CHAIN, "chains": mapping, "rules": listing}
_TOP: "Readers" = {
    **UPSTREAM,
    "dns": one_of(DNS),
    "engine": one_of(ENGINES),
    "log_file": string,
    "verbosity": verbosity,
}
_RULE: "Readers" = {"match": nonempty, "ports": nonempty, "to": string}
# What the elements of a list are read by.
ITEMS: "ItemReaders" = {"hops": _hop, "match": pattern, "ports": ports}
