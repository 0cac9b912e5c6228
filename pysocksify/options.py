"""The command line's options, once, as data; and the way from arguments to Options that loads nothing for it.

`parse` serves whoever made no mistake and asked for no help. It returns None for everything else, and then the command
that click builds from the same table says what is wrong (see `cli`).
"""

from pysocksify.record import record
from pysocksify.route.chain import MODES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

ENGINES = ("auto", "seccomp", "preload", "ptrace", "python")
DNS = ("fake", "system")

# Kinds of option: TEXT, NUMBER (seconds) and COUNT (hops) take a value; a tuple is a value out of these; LIST takes one
# each time and may be repeated; FLAG takes none; TALLY takes none and counts how often it is there.
TEXT, NUMBER, COUNT, LIST, FLAG, TALLY = "text", "number", "count", "list", "flag", "tally"


class Option:
    """One option: its spellings, the field of Options that it fills, its kind, its value's name and its help."""

    __slots__ = ("field", "help", "kind", "metavar", "names")

    def __init__(
        self, names: tuple[str, ...], field: str, kind: str | tuple[str, ...], metavar: str, help: str
    ) -> None:
        self.names = names
        self.field = field
        self.kind = kind
        self.metavar = metavar
        self.help = help


# fmt: off
OPTIONS = (
    Option(("-p", "--proxy"), "proxies", LIST, "URL",
           "Go through this proxy: socks5://, socks4://, socks4a:// or http://[USER:PASSWORD@]HOST[:PORT]. "
           "Repeat it for a chain, in this order."),
    Option(("-c", "--config", "-f"), "config", TEXT, "FILE|NAME",
           "Read this file, or NAME.toml in ~/.config/pysocksify or /etc/pysocksify."),
    Option(("--embedded",), "embedded", FLAG, "",
           "Go through the bundled server, started for this command."),
    Option(("--mode",), "mode", MODES, "",
           "How the chain is used: all hops in order, those of them that answer, some drawn for each connection, "
           "or some in turn."),
    Option(("--length",), "length", COUNT, "N",
           "How many hops a connection goes through, for random and round_robin (1)."),
    Option(("--direct",), "direct", LIST, "CIDR|NAME",
           "Go to these hosts without a proxy: an address, a network, a name or *.SUFFIX. May be repeated."),
    Option(("--dns",), "dns", DNS, "",
           "Who resolves names: the last proxy (fake, the default) or this machine (system)."),
    Option(("--engine",), "engine", ENGINES, "",
           "How the program's calls are caught (auto: the first of them that works here for PROGRAM)."),
    Option(("--engines",), "engines", FLAG, "",
           "Show which engines work here, and for PROGRAM if one is given, and what each can't promise; run nothing."),
    Option(("--timeout",), "timeout", NUMBER, "SECONDS",
           "Limit for connecting to each hop and for each of its replies (10 and 15)."),
    Option(("-v", "--verbose"), "verbose", TALLY, "",
           "Say a line for each connection; -vv: say everything."),
    Option(("-q", "--quiet"), "quiet", FLAG, "",
           "Say nothing of what goes wrong while the program runs."),
    Option(("--log-file",), "log_file", TEXT, "FILE",
           "Write what is said while the program runs to the end of this file instead."),
)
# fmt: on


@record(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says; None and () where it says nothing. `command` is PROGRAM and all that follows it; it
    may be empty with `engines` only."""

    command: tuple[str, ...]
    proxies: tuple[str, ...] = ()
    config: str | None = None
    embedded: bool = False
    mode: str | None = None
    length: int | None = None
    direct: tuple[str, ...] = ()
    dns: str | None = None
    engine: str | None = None
    engines: bool = False
    timeout: float | None = None
    verbose: int = 0
    quiet: bool = False
    log_file: str | None = None


def parse(arguments: list[str]) -> Options | None:
    """The options in the command line's arguments, or None when click has to say something about them."""
    by_name = {name: option for option in OPTIONS for name in option.names}
    values: dict[str, Any] = {}
    rest = arguments[::-1]
    while rest:
        word = rest.pop()
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            rest.append(word)
            break
        if word.startswith("--"):
            name, equals, attached = word.partition("=")
            taken = _take(by_name.get(name), attached if equals else None, rest, values)
        else:
            taken = _take_short(word, by_name, rest, values)
        if not taken:
            return None
    return options(values, rest[::-1]) if rest or "engines" in values else None


def options(values: "Mapping[str, Any]", command: "Sequence[str]") -> Options:
    """The Options of values by field."""
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Options(command=tuple(command), **given)


def _take_short(word: str, by_name: dict[str, Option], rest: list[str], values: "dict[str, Any]") -> bool:
    """Take the short options of one word, as in -vvp URL; the last one may have its value in the word."""
    for index in range(1, len(word)):
        option = by_name.get(f"-{word[index]}")
        if option is None or option.kind not in (FLAG, TALLY):
            return _take(option, word[index + 1 :] or None, rest, values)
        _take(option, None, rest, values)
    return True


def _take(option: Option | None, attached: str | None, rest: list[str], values: "dict[str, Any]") -> bool:
    """Take one option, with the value attached to it or the next of `rest`; False when that can't be right."""
    if option is None:
        return False
    field, kind = option.field, option.kind
    if kind in (FLAG, TALLY):
        values[field] = True if kind == FLAG else values.get(field, 0) + 1
        return attached is None
    if attached is None and not rest:
        return False
    text = rest.pop() if attached is None else attached
    if kind == LIST:
        values.setdefault(field, []).append(text)
    elif isinstance(kind, tuple):
        values[field] = text
        return text in kind
    else:
        try:
            values[field] = text if kind == TEXT else int(text) if kind == COUNT else float(text)
        except ValueError:
            return False
    return True
