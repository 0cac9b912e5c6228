"""How `scripts/bench` measures: everything in turn, medians, between a target that accepts and closes and microsocks.

What else the machine does falls on all measures alike, since each is taken once per round.
"""

import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
STARTS, ROUNDS, CONNECTS = 20, 5, 1000

Words = Sequence[str | Path]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What is connected to and through: ports on loopback, the built client, configuration for both wrappers."""

    target: int
    silent: int
    serial: Path
    proxychains: Path
    pysocksify: Path


@contextmanager
def ends() -> Iterator[Ends]:
    """The target, microsocks, and a server that takes connections and never answers, as long as the block lasts."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as name,
        socket.create_server(("127.0.0.1", 0), backlog=1024) as listener,
        socket.create_server(("127.0.0.1", 0), backlog=1024) as silent,
        subprocess.Popen(["microsocks", "-i", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL) as microsocks,
    ):
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        try:
            wait_listening(port, microsocks)
            folder = Path(name)
            serial = folder / "serial"
            source = REPOSITORY / "tests" / "lab" / "programs" / "serial.c"
            subprocess.run(["gcc", "-O2", "-o", serial, source], check=True)
            chains = folder / "proxychains.conf"
            chains.write_text(f"strict_chain\nquiet_mode\n[ProxyList]\nsocks5 127.0.0.1 {port}\n", encoding="ascii")
            config = folder / "pysocksify.toml"
            rule = '[[rules]]\nmatch = ["127.0.0.0/8"]\nto = "default"\n'
            config.write_text(f'hops = ["socks5://127.0.0.1:{port}"]\n{rule}', encoding="ascii")
            yield Ends(
                target=listener.getsockname()[1],
                silent=silent.getsockname()[1],
                serial=serial,
                proxychains=chains,
                pysocksify=config,
            )
        finally:
            microsocks.terminate()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


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


def in_turn(rounds: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The median of each measure, all of them taken once per round."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            taken[name].append(measure())
    return {name: statistics.median(values) for name, values in taken.items()}
