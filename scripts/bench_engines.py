"""What `scripts/bench engines` measures: a start, a blocking and a non-blocking connect under every engine, in turn.

A C program's and a Python program's, beside no wrapper and proxychains4. An engine that can't be used is shown with
what it says of that.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scripts.measures import BIN, CONNECTS, HELD, ROUNDS, STARTS, Ends, Words, ends, in_turn
from tests.lab import surroundings

UNREACHED = "192.0.2.1"  # TEST-NET-1 (RFC 5737): only the proxy, which never answers, is told of it

# what serial.c does, in Python
SERIAL = """
import socket, sys, time
def connect():
    with socket.socket() as sock:
        sock.connect((sys.argv[1], int(sys.argv[2])))
connect()
start = time.perf_counter()
for _ in range(int(sys.argv[3])):
    connect()
print(time.perf_counter() - start)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to run a program: by which wrapper and engine, with which environment, and in which surroundings."""

    name: str
    wrapper: str = "pysocksify"
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    surroundings: str = ""

    def command(self, between: Ends, program: Words, *, silent: bool = False) -> list[str]:
        """The command line that runs a program through microsocks, or through the proxy that never answers."""
        words = [str(word) for word in program]
        if self.wrapper == "proxychains4":
            return [self.wrapper, "-f", str(between.proxychains), *words]
        if self.wrapper == "pysocksify":
            proxy = ["-p", f"socks5://127.0.0.1:{between.silent}"] if silent else ["-c", str(between.pysocksify)]
            return [str(BIN / self.wrapper), "-q", *self.options, *proxy, *words]
        return words

    def run(self, command: Words) -> str:
        """What it prints. Unusable: it can't be run, or it fails."""
        environment = {**os.environ, **self.environment}
        enter = None
        if self.surroundings:
            code = surroundings.program(self.surroundings, os.uname().machine)

            def enter() -> None:
                surroundings.install(code)

        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=120, env=environment, preexec_fn=enter
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise Unusable(f"{type(error).__name__}: {error}") from error
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise Unusable(said[-1])
        return done.stdout


class Unusable(Exception):
    """A way that can't be measured here; the text is the reason."""


def engine(name: str) -> Way:
    """An engine as it's asked for by name."""
    return Way(name=name, options=("--engine", name))


BESIDE = (Way(name="no wrapper, no proxy", wrapper=""), Way(name="proxychains4", wrapper="proxychains4"))
SECCOMP = (
    engine("seccomp"),
    Way(
        name="seccomp, adopted sockets",
        options=("--engine", "seccomp"),
        environment={"PYSOCKSIFY_WITHOUT": "pidfd_getfd"},
    ),
)
INSIDE = (
    engine("preload"),
    engine("ptrace"),
    Way(name="ptrace, without a filter", options=("--engine", "ptrace"), surroundings="no-seccomp"),
)
C_WAYS = (*BESIDE, *SECCOMP, *INSIDE)
PYTHON_WAYS = (*C_WAYS, engine("python"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of one way: ms, µs, µs; or why it wasn't."""

    name: str
    start: float = 0.0
    blocking: float = 0.0
    held: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"  {self.name:<26} not measured: {self.reason}"
        held = "      none" if self.held is None else f"{self.held:10.1f}"
        return f"  {self.name:<26} {self.start:10.1f} {self.blocking:10.1f} {held}"


def measured(ways: tuple[Way, ...], between: Ends, starting: Words, serial: Words) -> list[Row]:
    """A row for each way: a program that does nothing, and one that connects so and so often, all in turn."""
    reasons: dict[str, str] = {}
    for way in ways:
        try:
            way.run(way.command(between, [*serial, "127.0.0.1", str(between.target), "1"]))
        except Unusable as unusable:
            reasons[way.name] = str(unusable)
    usable = [way for way in ways if way.name not in reasons]

    def start(way: Way) -> Callable[[], float]:
        command = way.command(between, starting)

        def once() -> float:
            began = time.perf_counter()
            way.run(command)
            return (time.perf_counter() - began) * 1e3

        return once

    def blocking(way: Way) -> Callable[[], float]:
        command = way.command(between, [*serial, "127.0.0.1", str(between.target), str(CONNECTS)])
        return lambda: float(way.run(command)) * 1e6 / CONNECTS

    def held(way: Way) -> Callable[[], float]:
        host, port = ("127.0.0.1", between.silent) if not way.wrapper else (UNREACHED, 9)
        command = way.command(between, [sys.executable, "-c", HELD, host, str(port)], silent=True)
        return lambda: statistics.median(float(word) * 1e6 for word in way.run(command).split())

    starts = in_turn(STARTS, {way.name: start(way) for way in usable})
    each = in_turn(ROUNDS, {way.name: blocking(way) for way in usable})
    holding = in_turn(ROUNDS, {way.name: held(way) for way in usable if way.wrapper != "proxychains4"})
    return [
        Row(name=way.name, reason=reasons[way.name])
        if way.name in reasons
        else Row(name=way.name, start=starts[way.name], blocking=each[way.name], held=holding.get(way.name))
        for way in ways
    ]


def main() -> int:
    """Measures and prints both tables; the exit status."""
    with ends() as between:
        programs: tuple[tuple[str, tuple[Way, ...], Words, Words], ...] = (
            ("C program (/bin/true)", C_WAYS, ["/bin/true"], [between.serial]),
            (
                "Python program (-c pass)",
                PYTHON_WAYS,
                [sys.executable, "-c", "pass"],
                [sys.executable, "-c", SERIAL],
            ),
        )
        print(f"Start to end, each of {CONNECTS} serial connects through microsocks, and each of 200 non-blocking ones")
        print("until EINPROGRESS (by Python in both tables); proxychains4 lets even those wait for the connection.")
        for title, ways, starting, serial in programs:
            print(f"\n{title:<28} {'start ms':>10} {'connect µs':>10} {'held µs':>10}", flush=True)
            try:
                rows = measured(ways, between, starting, serial)
            except Unusable as unusable:
                print(f"  failed while it was measured: {unusable}")
                return 1
            print(*rows, sep="\n", flush=True)
    return 0
