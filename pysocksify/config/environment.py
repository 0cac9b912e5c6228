"""What the environment says: lists of proxy URLs, and no_proxy as rules."""

from pysocksify.errors import ConfigError
from pysocksify.route.rules import DIRECT, Pattern, Rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def first_set(environ: "Mapping[str, str]", *names: str) -> str:
    """The first of these variables that is set and not empty; "" when none is."""
    return next((name for name in names if environ.get(name)), "")


def split_urls(text: str) -> list[str]:
    """The URLs of a list with white space or commas between them. A comma within a URL stays, as in a password."""
    urls: list[str] = []
    for word in text.split():
        pieces: list[str] = []
        for part in word.strip(",").split(","):
            if "://" in part or not pieces:
                pieces.append(part)
            else:
                pieces[-1] += f",{part}"
        urls += pieces
    return [url for url in urls if url]


def direct_rules(text: str, source: str) -> tuple[Rule, ...]:
    """The rules that no_proxy's value amounts to.

    As curl reads it: a name means itself and all names below it, with or without a dot in front; networks are CIDR.
    `host:port` means that port only, as in Go. Raises ConfigError for an entry that is none of these, and for `*`.
    """
    rules = []
    for entry in text.replace(",", " ").split():
        if entry == "*":
            raise ConfigError(source, "", "'*' excepts every host, so nothing would go through the proxy")
        host, port = _split_port(entry)
        try:
            patterns = _patterns(host, entry)
            ports = ((_port(port), _port(port)),) if port else ()
        except ValueError as error:
            raise ConfigError(source, "", str(error)) from None
        rules.append(Rule(match=patterns, ports=ports, to=DIRECT))
    return tuple(rules)


def _split_port(entry: str) -> tuple[str, str]:
    host, colon, port = entry.rpartition(":")
    if colon and port and (":" not in host or host.endswith("]")):
        return host, port
    return entry, ""


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535:
        return int(text)
    raise ValueError(f"{text!a} is not a port")


def _patterns(host: str, entry: str) -> tuple[Pattern, ...]:
    pattern = Pattern.parse(host.removeprefix("*").removeprefix("."))
    if pattern.network is not None:
        return (Pattern(text=entry, network=pattern.network),)
    return (Pattern(text=entry, name=pattern.name), Pattern(text=entry, suffix=f".{pattern.name}"))
