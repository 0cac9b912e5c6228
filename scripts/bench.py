"""The measurements that `scripts/bench` runs; `--check` makes a missed aim an exit status of 1.

Everything is measured in turn, round by round, so that what else the machine does falls on all alike; the medians of
the rounds are shown. The target accepts and closes, on loopback; microsocks stands between.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
STARTS, ROUNDS, CONNECTS = 20, 5, 1000
START_LIMIT, CONNECT_LIMIT = 5.0, 1.5  # times `python -c pass`, times proxychains4
HELD_LIMIT = 2000.0  # µs until EINPROGRESS

# prints the seconds that each of 200 non-blocking connects takes; a first one waits for what the supervisor loads
HELD = """
import errno, socket, sys, time
kept = []
for number in range(201):
    sock = socket.socket()
    sock.setblocking(False)
    start = time.perf_counter()
    assert sock.connect_ex((sys.argv[1], int(sys.argv[2]))) == errno.EINPROGRESS
    if number:
        print(time.perf_counter() - start)
    kept.append(sock)
"""


def accept(listener: socket.socket) -> None:
    """Takes connections and waits for their end, until the listener is shut down."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.recv(1)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def wait_listening(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Waits until a server takes connections."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
            raise RuntimeError("microsocks doesn't start") from None


def in_turn(rounds: int, measures: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The median of each measure, all of them taken once per round."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            taken[name].append(measure())
    return {name: statistics.median(values) for name, values in taken.items()}


def duration(words: Sequence[str | Path]) -> float:
    """Seconds that a command takes from start to end."""
    start = time.perf_counter()
    subprocess.run(words, check=True, timeout=60)
    return time.perf_counter() - start


def printed(words: Sequence[str | Path]) -> float:
    """The number that a command prints."""
    return float(subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout)


def start_up() -> dict[str, float]:
    """Milliseconds from start to end."""
    commands: dict[str, list[str | Path]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "pysocksify /bin/true": [BIN / "pysocksify", "-p", "socks5://127.0.0.1:9", "/bin/true"],
    }
    for words in commands.values():
        duration(words)
    found = in_turn(STARTS, {name: lambda words=words: duration(words) for name, words in commands.items()})  # type: ignore[misc]
    return {name: seconds * 1e3 for name, seconds in found.items()}


def connects(folder: Path, target: int, proxy: int) -> dict[str, float]:
    """Microseconds for each connect."""
    program = folder / "serial"
    source = REPOSITORY / "tests" / "lab" / "programs" / "serial.c"
    subprocess.run(["gcc", "-O2", "-o", program, source], check=True)
    chains = folder / "proxychains.conf"
    chains.write_text(f"strict_chain\nquiet_mode\n[ProxyList]\nsocks5 127.0.0.1 {proxy}\n", encoding="ascii")
    config = folder / "pysocksify.toml"
    config.write_text(
        f'hops = ["socks5://127.0.0.1:{proxy}"]\n[[rules]]\nmatch = ["127.0.0.0/8"]\nto = "default"\n', encoding="ascii"
    )
    serial: list[str | Path] = [program, "127.0.0.1", str(target), str(CONNECTS)]
    commands: dict[str, list[str | Path]] = {
        "no wrapper, no proxy": serial,
        "proxychains4": ["proxychains4", "-f", chains, *serial],
        "pysocksify": [BIN / "pysocksify", "-c", config, *serial],
    }
    found = in_turn(ROUNDS, {name: lambda words=words: printed(words) for name, words in commands.items()})  # type: ignore[misc]
    return {name: seconds * 1e6 / CONNECTS for name, seconds in found.items()}


def held() -> dict[str, float]:
    """Microseconds until a non-blocking connect() returns EINPROGRESS, through a proxy that never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as silent:
        url = f"socks5://127.0.0.1:{silent.getsockname()[1]}"
        words: list[str | Path] = [BIN / "pysocksify", "-q", "-p", url, sys.executable, "-c", HELD, "192.0.2.1", "9"]
        took = [float(word) * 1e6 for word in subprocess.check_output(words, text=True, timeout=60).split()]
    return {"median": statistics.median(took), "slowest of 200": max(took)}


def table(title: str, unit: str, values: dict[str, float], base: str) -> None:
    """Prints the values with their ratio to one of them."""
    print(f"\n{title}")
    for name, value in values.items():
        print(f"  {name:<24} {value:9.1f} {unit}   {value / values[base]:5.2f} times {base}")


def main() -> int:
    """Measures everything; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when an aim is missed")
    check: bool = parser.parse_args().check
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed pysocksify is compiled already
    starts = start_up()
    table("Start-up", "ms", starts, "python -c pass")
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0), backlog=1024) as listener,
        subprocess.Popen(["microsocks", "-i", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL) as microsocks,
    ):
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        try:
            wait_listening(port, microsocks)
            each = connects(Path(folder), listener.getsockname()[1], port)
            starts_held = held()
        finally:
            microsocks.terminate()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
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


if __name__ == "__main__":
    sys.exit(main())
