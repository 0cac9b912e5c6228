"""The measurements that `scripts/bench` runs; `--check` makes a missed aim an exit status of 1.

`scripts/bench engines` measures each engine instead (bench_engines), `scripts/bench server` the server beside others
(bench_server). How it's measured: measures.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from scripts import bench_engines, bench_server
from scripts.measures import BIN, CONNECTS, HELD, ROUNDS, STARTS, Ends, Words, ends, in_turn

START_LIMIT, CONNECT_LIMIT = 5.0, 1.5  # times `python -c pass`, times proxychains4
HELD_LIMIT = 2000.0  # µs until EINPROGRESS


def duration(words: Words) -> float:
    """Seconds that a command takes from start to end. No time limit: Python looks for the end of one that has ever more
    seldom, up to every 50 ms."""
    start = time.perf_counter()
    subprocess.run(words, check=True)
    return time.perf_counter() - start


def printed(words: Words) -> float:
    """The number that a command prints."""
    return float(subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout)


def start_up() -> dict[str, float]:
    """Milliseconds from start to end."""
    commands: dict[str, Words] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "pysocksify /bin/true": [BIN / "pysocksify", "-p", "socks5://127.0.0.1:9", "/bin/true"],
    }
    for words in commands.values():
        duration(words)
    found = in_turn(STARTS, {name: lambda words=words: duration(words) for name, words in commands.items()})  # type: ignore[misc]
    return {name: seconds * 1e3 for name, seconds in found.items()}


def connects(between: Ends) -> dict[str, float]:
    """Microseconds for each connect."""
    serial: Words = [between.serial, "127.0.0.1", str(between.target), str(CONNECTS)]
    commands: dict[str, Words] = {
        "no wrapper, no proxy": serial,
        "proxychains4": ["proxychains4", "-f", between.proxychains, *serial],
        "pysocksify": [BIN / "pysocksify", "-c", between.pysocksify, *serial],
    }
    found = in_turn(ROUNDS, {name: lambda words=words: printed(words) for name, words in commands.items()})  # type: ignore[misc]
    return {name: seconds * 1e6 / CONNECTS for name, seconds in found.items()}


def held(between: Ends) -> dict[str, float]:
    """Microseconds until a non-blocking connect() returns EINPROGRESS, through a proxy that never answers."""
    url = f"socks5://127.0.0.1:{between.silent}"
    words: Words = [BIN / "pysocksify", "-q", "-p", url, sys.executable, "-c", HELD, "192.0.2.1", "9"]
    took = [float(word) * 1e6 for word in subprocess.check_output(words, text=True, timeout=60).split()]
    return {"median": statistics.median(took), "slowest of 200": max(took)}


def table(title: str, unit: str, values: dict[str, float], base: str) -> None:
    """Prints the values with their ratio to one of them."""
    print(f"\n{title}")
    for name, value in values.items():
        print(f"  {name:<24} {value:9.1f} {unit}   {value / values[base]:5.2f} times {base}")


def usual(check: bool) -> int:
    """Measures the engine that is chosen by itself; 1 if an aim that is checked is missed, else 0."""
    starts = start_up()
    table("Start-up", "ms", starts, "python -c pass")
    with ends() as between:
        each = connects(between)
        starts_held = held(between)
    table(f"{CONNECTS} serial blocking connects through microsocks, each", "µs", each, "proxychains4")
    table("200 non-blocking connects started at once, until each returns", "µs", starts_held, "median")
    missed = []
    if starts["pysocksify /bin/true"] > START_LIMIT * starts["python -c pass"]:
        missed.append(f"start-up takes more than {START_LIMIT} times python -c pass")
    if each["pysocksify"] > CONNECT_LIMIT * each["proxychains4"]:
        missed.append(f"a connect takes more than {CONNECT_LIMIT} times proxychains4's")
    if starts_held["median"] > HELD_LIMIT:
        missed.append(f"a non-blocking connect takes more than {HELD_LIMIT:.0f} µs to return")
    for line in missed:
        print(f"missed: {line}")
    return 1 if check and missed else 0


def main() -> int:
    """Measures what the command line says; the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="What pysocksify costs.")
    parser.add_argument(
        "what",
        nargs="?",
        choices=["engines", "server"],
        help="each engine, beside no wrapper and proxychains4; or the server, beside others",
    )
    parser.add_argument("--check", action="store_true", help="fail when an aim is missed (not with engines)")
    options = parser.parse_args()
    if options.what == "engines" and options.check:
        parser.error("there are no aims for engines")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed pysocksify is compiled already
    if options.what == "server":
        return bench_server.main(options.check)
    return bench_engines.main() if options.what else usual(options.check)


if __name__ == "__main__":
    sys.exit(main())
