"""The server's journal: one line for each connection, when it has ended, as text or as JSON.

Names, user ids and login names are the clients' own words: in a line of text every character that isn't printable is
written as an escape (`\\x1b`, `\\u202e`), and so are the quotes and backslashes of names, so that a line is one line,
does nothing to a terminal, and can't pass for another one. JSON is in ASCII.

The keys of a JSON line; those of what there wasn't are null:

    time        when it ended, UTC (RFC 3339): "2026-01-31T12:00:00.123Z"
    client      address and port that it came from; "" for one on a Unix socket
    user        the name that the client has proved, by a password or its identd; where neither is asked for, what it
                calls itself
    version     "socks4", "socks4a", "socks5" or "http"
    command     "connect", "bind" or "udp_associate"
    destination host:port that it asked for
    through     the way there: "direct", or the chain's hops without their passwords
    outcome     "ok", or why it came to nothing or was cut off
    bytes_up    bytes from the client to the destination
    bytes_down  bytes from the destination to the client
    dial_ms     milliseconds from the request to the connection, or to its failure
    seconds     seconds from accept to the end

Whatever else the server says in a journal of JSON lines (problems, details) is {"time": …, "message": …}.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

TEXT, JSON = "text", "json"
FORMATS = (TEXT, JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One connection. `when`: seconds since the epoch at its end; the others are the module's keys.

    A client that came to no request has no version, command, destination, through and milliseconds.
    """

    when: float
    client: str
    outcome: str
    seconds: float
    user: str | None = None
    version: str | None = None
    command: str | None = None
    destination: str | None = None
    through: str | None = None
    up: int = 0
    down: int = 0
    milliseconds: float | None = None


class Journal:
    """Writes entries as lines; `write` takes one without its line break."""

    def __init__(self, write: Callable[[str], None], format: str = TEXT) -> None:
        self._write = write
        self._line = as_json if format == JSON else as_text
        self._format = format

    def connection(self, entry: Entry) -> None:
        """Write the line of a connection that has ended."""
        self._write(self._line(entry))

    def message(self, line: str) -> None:
        """Write a line about something else: what a Report is given to write with."""
        if self._format == JSON:
            line = json.dumps({"time": _utc(time.time()), "message": _whole(line)})
        else:
            line = printable(line)
        self._write(line)


def as_text(entry: Entry) -> str:
    """A line for a person: `12:00:00 127.0.0.1:40000 'alice' socks5 -> example.com:443: ok, 12 ms, …`."""
    words = [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.when)), printable(entry.client) or "a client"]
    if entry.user is not None:
        words.append(quoted(entry.user))
    if entry.version is not None:
        words.append(entry.version)
    if entry.command not in (None, "connect"):
        words.append(str(entry.command))
    if entry.destination is not None:
        words += ["->", printable(entry.destination)]
    if entry.through not in (None, "direct"):
        words += ["through", printable(str(entry.through))]
    facts = [printable(entry.outcome)]
    if entry.milliseconds is not None:
        facts.append(f"{entry.milliseconds:.0f} ms")
    if entry.up or entry.down or entry.outcome == "ok":
        facts.append(f"{entry.up} bytes up, {entry.down} down")
    facts.append(f"{entry.seconds:.1f} s")
    return f"{' '.join(words)}: {', '.join(facts)}"


def as_json(entry: Entry) -> str:
    """A line for a program."""
    return json.dumps(
        {
            "time": _utc(entry.when),
            "client": _whole(entry.client),
            "user": None if entry.user is None else _whole(entry.user),
            "version": entry.version,
            "command": entry.command,
            "destination": None if entry.destination is None else _whole(entry.destination),
            "through": None if entry.through is None else _whole(entry.through),
            "outcome": _whole(entry.outcome),
            "bytes_up": entry.up,
            "bytes_down": entry.down,
            "dial_ms": None if entry.milliseconds is None else round(entry.milliseconds, 3),
            "seconds": round(entry.seconds, 3),
        }
    )


def printable(text: str) -> str:
    """The text with an escape for each character that a terminal, or a reader, might not take for itself."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def quoted(name: str) -> str:
    """A name in single quotes, printable, in which no other quote can be taken for its end."""
    return "'" + printable(name.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _whole(text: str) -> str:
    """The text without lone surrogates, which JSON's readers don't agree on (RFC 8259 section 8.2)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _utc(when: float) -> str:
    milliseconds = int(when * 1000)
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{seconds}.{milliseconds % 1000:03d}Z"
