"""What many idle relays cost the server, and whether clients that die abruptly leave anything in it.

The server is a process of its own (soak_server), whose memory and descriptors are counted in it. Clients and the
destination are other processes, so that each has the whole descriptor limit for itself.
"""

import argparse
import json
import multiprocessing
import random
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pysocksify.server.parting import PARTING_LIMIT
from scripts.measures import REPOSITORY
from scripts.soak_server import COUNTED

AIM = 5 * 1024  # bytes of memory for one idle relay
SPARE = 200  # descriptors: the pool's idle pipes, and what a process has anyway
TRACED = 2000  # relays while it's traced where the memory goes, which itself takes memory
WARMED = 300  # relays before the first measurement, which leave behind what is made once
PER_SECOND, SECONDS = 200, 30.0
KILLERS = 4  # processes of dying clients
LIMIT = 30.0  # s for anything that has to happen
RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
LOOPBACK = b"\x7f\x00\x00\x01"
KEPT = ("sessions", "sockets", "pipes", "descriptors", "timers", *COUNTED)
Found = dict[str, Any]


class Server:
    """The process that is measured."""

    def __init__(self) -> None:
        words = [sys.executable, "-m", "scripts.soak_server"]
        self._process = subprocess.Popen(
            words, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.port = int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server has ended: exit status {self._process.wait()}")
        return line

    def ask(self, what: str = "measure") -> Found:
        """What it says of itself."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        found: Found = json.loads(self._line())
        return found

    def wait_for(self, sessions: int, seconds: float = LIMIT) -> Found:
        """What it says once it has so many sessions, or as late as in so many seconds."""
        end = time.monotonic() + seconds
        while (found := self.ask())["sessions"] != sessions and time.monotonic() < end:
            time.sleep(0.2)
        return found

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(LIMIT)
        self._process.stdout.close()


@contextmanager
def server() -> Iterator[Server]:
    """A running server."""
    running = Server()
    try:
        yield running
    finally:
        running.stop()


def _accept(listener: socket.socket) -> None:
    kept: dict[int, socket.socket] = {}
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                sock = listener.accept()[0]
                kept[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
            elif _is_over(kept[fd]):
                kept.pop(fd).close()


def _is_over(sock: socket.socket) -> bool:
    try:
        return not sock.recv(65536)
    except OSError:
        return True


@contextmanager
def destination() -> Iterator[int]:
    """The port of a process that accepts, and keeps the connections until they are over."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        process = multiprocessing.get_context("fork").Process(target=_accept, args=(listener,), daemon=True)
        process.start()
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.join()


def receive(sock: socket.socket, size: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise RuntimeError(f"the server has closed after {data!r}")
        data += piece
    return data


def request(cmd: int, port: int) -> bytes:
    """A greeting and a request of SOCKS5 in one."""
    return b"\x05\x01\x00\x05" + bytes((cmd, 0, 1)) + LOOPBACK + port.to_bytes(2, "big")


def relayed(port: int, target: int) -> socket.socket:
    """A connection through the server."""
    sock = socket.create_connection(("127.0.0.1", port), LIMIT)
    sock.sendall(request(1, target))
    reply = receive(sock, 12)
    if reply[3]:
        raise RuntimeError(f"the server answers {reply.hex()}")
    return sock


def idle(running: Server, target: int, count: int) -> float:
    """Bytes of memory for each of so many idle relays, by the process's resident set."""
    for sock in [relayed(running.port, target) for _ in range(min(WARMED, count))]:
        sock.close()
    before = running.wait_for(0)
    with ExitStack() as kept:
        for _ in range(count):
            kept.enter_context(relayed(running.port, target))
        during = running.wait_for(count)
    running.wait_for(0)
    if during["sessions"] != count:
        raise RuntimeError(f"{during['sessions']} sessions instead of {count}")
    return float(during["rss"] - before["rss"]) / count


def traced(running: Server, target: int, count: int) -> Found:
    """Where the memory of so many idle relays was allocated."""
    for sock in [relayed(running.port, target) for _ in range(WARMED)]:
        sock.close()
    running.wait_for(0)
    running.ask("trace")
    with ExitStack() as kept:
        for _ in range(count):
            kept.enter_context(relayed(running.port, target))
        running.wait_for(count)
        return running.ask("trace")


# clients that die


def die(port: int, target: int, silent: int, rng: random.Random) -> None:
    """Come to some state, and end there: by RST, by FIN, or by FIN and then RST."""
    with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
        state = rng.choice(("handshake", "dialling", "relay", "busy relay", "bind", "bound", "udp", "refused"))
        if state == "handshake":
            whole = request(1, target)
            sock.sendall(whole[: rng.randrange(len(whole))])
        elif state == "dialling":
            sock.sendall(request(1, silent))
        elif state == "refused":
            sock.sendall(request(1, 1) + bytes(1000))
        elif state in ("relay", "busy relay"):
            sock.sendall(request(1, target))
            receive(sock, 12)
            if state == "busy relay":
                sock.sendall(bytes(rng.randrange(200_000)))
        else:
            sock.sendall(request(3 if state == "udp" else 2, 0))
            end = ("127.0.0.1", int.from_bytes(receive(sock, 12)[10:], "big"))
            if state == "bound":
                socket.create_connection(end, LIMIT).close()
            elif state == "udp":
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
                    datagrams.sendto(b"\0\0\0\1" + LOOPBACK + target.to_bytes(2, "big") + b"x", end)
        how = rng.choice(("RST", "FIN", "FIN, then RST"))
        if how == "FIN, then RST":
            sock.shutdown(socket.SHUT_WR)
        if how != "FIN":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def _kill(port: int, target: int, silent: int, seed: int, each: float, seconds: float) -> None:
    rng, start = random.Random(seed), time.monotonic()
    for number in range(int(seconds / each)):
        time.sleep(max(0.0, start + number * each - time.monotonic()))
        die(port, target, silent, rng)
    if time.monotonic() - start > 1.1 * seconds + 1:
        print(f"  the clients took {time.monotonic() - start:.0f} s to die", flush=True)


def deaths(running: Server, target: int, per_second: int, seconds: float) -> tuple[Found, Found]:
    """What the server holds before and after so many deaths a second."""
    with socket.socket() as silent, socket.socket() as filler:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        filler.connect(silent.getsockname())  # a full queue drops every SYN
        ends = running.port, target, silent.getsockname()[1]
        rng = random.Random(0)
        for _ in range(100):
            die(*ends, rng)
        before = running.wait_for(0, PARTING_LIMIT + LIMIT)
        context = multiprocessing.get_context("fork")
        killers = [
            context.Process(target=_kill, args=(*ends, seed, KILLERS / per_second, seconds)) for seed in range(KILLERS)
        ]
        for killer in killers:
            killer.start()
        for killer in killers:
            killer.join()
        if any(killer.exitcode for killer in killers):
            raise RuntimeError("a client couldn't do what it should")
        return before, running.wait_for(0, PARTING_LIMIT + LIMIT)


def left(before: Found, after: Found) -> dict[str, int]:
    """What there is more of than before; idle pipes may be kept, within the pool's number."""
    more = {name: after[name] - before[name] for name in KEPT if after[name] > before[name]}
    pipes = more.pop("pipes", 0)
    if pipes and after["pipes"] > 2 * 32:
        more["pipes"] = pipes
    if more.get("descriptors", 0) <= pipes:
        more.pop("descriptors", None)
    return more


def main() -> int:
    """Measures both; the exit status is 1 when an aim is missed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Many idle relays, and clients that die.")
    parser.add_argument(
        "--relays", type=int, default=(hard - SPARE) // 2, help="at once (default: what the limit allows)"
    )
    parser.add_argument("--per-second", type=int, default=PER_SECOND, help=f"deaths (default: {PER_SECOND})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of deaths (default: {SECONDS:g})")
    options = parser.parse_args()
    missed = 0
    with destination() as target:
        if options.relays:
            with server() as running:
                each = idle(running, target, options.relays)
            print(f"{options.relays:,} idle relays at once: {each:,.0f} bytes of memory each (aim: below {AIM:,})")
            missed += each >= AIM
            with server() as running:
                count = min(TRACED, options.relays)
                found = traced(running, target, count)
            print(f"allocated by Python: {found['total'] / count:,.0f} bytes each, of {count:,}, where:")
            for name, line, size, blocks in found["places"]:
                print(f"  {size / count:8.0f} bytes  {blocks / count:6.1f} blocks  {name}:{line}")
        if options.seconds:
            with server() as running:
                before, after = deaths(running, target, options.per_second, options.seconds)
            more = left(before, after)
            print(
                f"{options.per_second * options.seconds:,.0f} deaths, {options.per_second} a second; before and after:"
            )
            print(*(f"  {name:<16} {before[name]:>12,} {after[name]:>12,}" for name in before), sep="\n")
            print(f"left behind: {more or 'nothing'}")
            missed += bool(more)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
