"""Lines of the journal: exact for harmless connections, one harmless line for hostile ones."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.server.journal import Entry, Journal, as_json, as_text

WHOLE = Entry(
    when=1769860800.1239,
    client="127.0.0.1:40000",
    user="alice",
    version="socks5",
    command="connect",
    destination="example.com:443",
    through="socks5://10.0.0.1:1080",
    outcome="ok",
    up=120,
    down=30000,
    milliseconds=12.3456,
    seconds=3.25,
)
LEAST = Entry(when=0.0, client="", outcome="timed out in the handshake", seconds=30.0)
HOSTILE = ["a\nb", "\x1b[2J", "\r", "\x9b31m", "\u202egnp", "\u2028", "\udcff", "\0", "x' -> y:1: ok", "\\'", "\x7f"]


class TestText:
    def test_whole(self) -> None:
        line = as_text(WHOLE)
        assert re.fullmatch(r"2026-0[12]-\d\d \d\d:\d\d:00 .*", line)
        assert line[20:] == (
            "127.0.0.1:40000 'alice' socks5 -> example.com:443 through socks5://10.0.0.1:1080: "
            "ok, 12 ms, 120 bytes up, 30000 down, 3.2 s"
        )

    def test_least(self) -> None:
        assert as_text(LEAST)[20:] == "a client: timed out in the handshake, 30.0 s"

    def test_other_commands_are_named(self) -> None:
        entry = Entry(when=0.0, client="[::1]:1", version="socks4", command="bind", outcome="timed out", seconds=120.0)
        assert as_text(entry)[20:] == "[::1]:1 socks4 bind: timed out, 120.0 s"

    @pytest.mark.parametrize("name", HOSTILE)
    def test_names_are_harmless(self, name: str) -> None:
        entry = Entry(when=0.0, client=name, user=name, destination=name, through=name, outcome=name, seconds=0.0)
        assert as_text(entry).isprintable()

    def test_a_name_ends_where_it_ends(self) -> None:
        assert "'x\\' -> y:1: ok' -> z:1: " in as_text(
            Entry(when=0.0, client="c", user="x' -> y:1: ok", destination="z:1", outcome="refused", seconds=0.0)
        )

    @given(st.text(st.characters()))
    def test_any(self, name: str) -> None:
        line = as_text(Entry(when=0.0, client="c", user=name, outcome="ok", seconds=0.0))
        assert line.isprintable()
        (quoted,) = re.findall(r"'(?:[^'\\]|\\.)*'", line)
        assert f" c {quoted}: ok" in line


class TestJson:
    def test_whole(self) -> None:
        assert json.loads(as_json(WHOLE)) == {
            "time": "2026-01-31T12:00:00.123Z",
            "client": "127.0.0.1:40000",
            "user": "alice",
            "version": "socks5",
            "command": "connect",
            "destination": "example.com:443",
            "through": "socks5://10.0.0.1:1080",
            "outcome": "ok",
            "bytes_up": 120,
            "bytes_down": 30000,
            "dial_ms": 12.346,
            "seconds": 3.25,
        }

    def test_least(self) -> None:
        values = json.loads(as_json(LEAST))
        assert values.keys() == json.loads(as_json(WHOLE)).keys()
        assert values["time"] == "1970-01-01T00:00:00.000Z"
        assert values["user"] is None
        assert values["dial_ms"] is None

    @given(st.text(st.characters()))
    def test_any(self, name: str) -> None:
        line = as_json(Entry(when=0.0, client="c", user=name, destination=name, outcome=name, seconds=0.0))
        assert line.isascii()
        assert line.isprintable()
        if not any("\ud800" <= character <= "\udfff" for character in name):
            assert json.loads(line)["user"] == name
        json.loads(line)["user"].encode()


class TestJournal:
    def test_writes_what_it_is_told(self) -> None:
        lines: list[str] = []
        for format, expected in (("text", as_text(WHOLE)), ("json", as_json(WHOLE))):
            Journal(lines.append, format).connection(WHOLE)
            assert lines.pop() == expected

    def test_messages(self) -> None:
        lines: list[str] = []
        Journal(lines.append, "text").message("pysocksify-server: no \x1b[2J room")
        Journal(lines.append, "json").message("pysocksify-server: no\nroom \udcff")
        assert lines[0] == "pysocksify-server: no \\x1b[2J room"
        assert json.loads(lines[1])["message"] == "pysocksify-server: no\nroom \\udcff"
        assert lines[1].isprintable()
