"""What `scripts/bench server` measures: the server beside microsocks, dante, ssh -D and pproxy, all in turn.

Bulk throughput of one connection, connections per second, the time of one byte there and back, and the memory of 1,000
idle connections. The two ends are C programs (bench_server.c). A server that can't be started is shown with the reason.
pproxy is installed into an environment of its own below .venv.
"""

import getpass
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.measures import BIN, REPOSITORY, Words, free_port, in_turn, wait_listening

ROUNDS = 5
SECONDS = 1.5  # of bulk, and of connections
PROCESSES = 16  # that connect at once
ECHOES = 3000
HELD = 1000  # connections
BULK_TIMES, BULK_SHARE = 5.0, 0.8  # aims: times microsocks, and of the two ends talking directly
DIRECT, MICROSOCKS, ONE, TWO = "no proxy", "microsocks", "pysocksify-server", "pysocksify-server, 2 workers"

DANTED = """
logoutput: /dev/null
errorlog: /dev/null
internal: 127.0.0.1 port = {port}
external: 127.0.0.1
clientmethod: none
socksmethod: none
user.privileged: {user}
user.unprivileged: {user}
client pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: 0/0 to: 0/0 command: connect }}
"""

SSHD = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
AuthenticationMethods publickey
AuthorizedKeysFile {folder}/key.pub
AllowTcpForwarding yes
LogLevel QUIET
"""


class Unusable(Exception):
    """A server that can't be measured here; the text is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of one server: bytes/s, connections/s, s, bytes in all; or why it wasn't."""

    name: str
    bulk: float = 0.0
    connects: float = 0.0
    echo: float = 0.0
    memory: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"  {self.name:<30} not measured: {self.reason}"
        memory = "" if self.memory is None else f"{self.memory / 2**20:11.1f} {self.memory / 1024 / HELD:8.1f}"
        return f"  {self.name:<30} {self.bulk * 8 / 1e9:8.1f} {self.connects:10,.0f} {self.echo * 1e6:8.1f} {memory}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server: its port, and the processes that were started for it."""

    port: int
    processes: tuple["subprocess.Popen[bytes]", ...]

    def memory(self) -> int:
        """Bytes of its processes and their children, each page shared by several counted in parts (proc(5), Pss)."""
        parents: dict[int, int] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
                except OSError:
                    continue
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
        mine = {process.pid for process in self.processes}
        while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
            mine |= more
        return sum(map(_pss, mine))


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def start(stack: ExitStack, words: Words, port: int) -> "subprocess.Popen[bytes]":
    """A server process that takes connections on this port, until the stack ends."""
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise Unusable(f"{words[0]}: {error.strerror}") from error
    stack.callback(_stop, process)
    try:
        wait_listening(port, process)
    except RuntimeError:
        raise Unusable(f"{words[0]} doesn't start") from None
    return process


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ours(workers: int) -> Callable[[ExitStack, Path], Running]:
    """Our server with so many workers."""

    def run(stack: ExitStack, folder: Path) -> Running:
        port = free_port()
        words: Words = [BIN / "pysocksify-server", "-q", "--listen", f"127.0.0.1:{port}", "--workers", str(workers)]
        return Running(port=port, processes=(start(stack, words, port),))

    return run


def microsocks(stack: ExitStack, folder: Path) -> Running:
    """A thread for each connection, in C."""
    port = free_port()
    words = ["microsocks", "-i", "127.0.0.1", "-p", str(port)]
    return Running(port=port, processes=(start(stack, words, port),))


def dante(stack: ExitStack, folder: Path) -> Running:
    """Several processes, in C."""
    port = free_port()
    config = folder / "danted.conf"
    config.write_text(DANTED.format(port=port, user=getpass.getuser()), encoding="ascii")
    words: Words = ["danted", "-f", config, "-p", folder / "danted.pid"]
    return Running(port=port, processes=(start(stack, words, port),))


def ssh(stack: ExitStack, folder: Path) -> Running:
    """`ssh -D`, both of whose ends are on this machine."""
    if os.getuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    for name in ("host", "key"):
        keygen: Words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / name]
        try:
            subprocess.run(keygen, check=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unusable(str(error)) from error
    port, inner = free_port(), free_port()
    config = folder / "sshd.conf"
    config.write_text(SSHD.format(port=inner, folder=folder), encoding="ascii")
    server = start(stack, ["/usr/sbin/sshd", "-D", "-f", config], inner)
    options = [f"-o{name}" for name in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes")]
    words: Words = [
        "ssh",
        "-F",
        "none",
        *options,
        "-N",
        "-i",
        folder / "key",
        "-p",
        str(inner),
        "-D",
        f"127.0.0.1:{port}",
    ]
    client = start(stack, [*words, f"{getpass.getuser()}@127.0.0.1"], port)
    return Running(port=port, processes=(server, client))


def pproxy(stack: ExitStack, folder: Path) -> Running:
    """asyncio, in Python."""
    environment = REPOSITORY / ".venv" / "bench"
    command = environment / "bin" / "pproxy"
    if not command.exists():
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "pproxy"]
        try:
            subprocess.run(
                [sys.executable, "-m", "venv", str(environment)], check=True, capture_output=True, timeout=120
            )
            subprocess.run(pip, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unusable(f"pproxy can't be installed: {error}") from error
    port = free_port()
    return Running(port=port, processes=(start(stack, [command, "-l", f"socks5://127.0.0.1:{port}"], port),))


SERVERS: dict[str, Callable[[ExitStack, Path], Running]] = {
    ONE: ours(1),
    TWO: ours(2),
    MICROSOCKS: microsocks,
    "dante": dante,
    "ssh -D": ssh,
    "pproxy": pproxy,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The program that is both ends, and the ports of the one that is the target."""

    program: Path
    closing: str
    serving: str

    def number(self, *words: str) -> float:
        """The number that a client prints."""
        done = subprocess.run([self.program, *words], capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise Unusable((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
        return float(done.stdout)

    def bulk(self, proxy: int) -> float:
        """Bytes per second through one connection."""
        return self.number("bulk", str(proxy), self.serving, str(SECONDS))

    def connects(self, proxy: int) -> float:
        """Connections per second, from several processes."""
        return self.number("connects", str(proxy), self.closing, str(PROCESSES), str(SECONDS))

    def echo(self, proxy: int) -> float:
        """Seconds for one byte there and back, the median."""
        return self.number("echo", str(proxy), self.serving, str(ECHOES))

    def held(self, running: Running) -> float:
        """Bytes more that a server has with so many idle connections; NaN: they are too many for it."""
        before = running.memory()
        words: Words = [self.program, "hold", str(running.port), self.serving, str(HELD)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            if not client.stdout.readline():
                return float("nan")
            time.sleep(1)  # some go on for a moment after they have answered
            after = running.memory()
            client.stdin.close()
        return float(after - before)


@contextmanager
def ends(folder: Path) -> Iterator[Ends]:
    """The target, as long as the block lasts."""
    program = folder / "ends"
    source = REPOSITORY / "scripts" / "bench_server.c"
    subprocess.run(["gcc", "-std=gnu11", "-O2", "-pthread", "-o", program, source], check=True)
    with subprocess.Popen([program, "target"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as target:
        assert target.stdin is not None
        assert target.stdout is not None
        try:
            closing, serving = target.stdout.readline().strip(), target.stdout.readline().strip()
            yield Ends(program=program, closing=closing, serving=serving)
        finally:
            target.stdin.close()


def measured(names: list[str], rounds: int) -> list[Row]:
    """A row for each server, and one without."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        between = stack.enter_context(ends(folder))
        running: dict[str, Running] = {}
        reasons: dict[str, str] = {}
        for server in names:
            try:
                running[server] = SERVERS[server](stack, folder)
                between.echo(running[server].port)
            except Unusable as unusable:
                reasons[server] = str(unusable)
                running.pop(server, None)
        memory = {server: between.held(each) for server, each in running.items()}  # first: later they keep what is free
        ports = {DIRECT: 0, **{server: each.port for server, each in running.items()}}

        def taken(measure: Callable[[int], float]) -> dict[str, float]:
            return in_turn(rounds, {server: lambda port=port: measure(port) for server, port in ports.items()})  # type: ignore[misc]

        bulk, echo, connects = taken(between.bulk), taken(between.echo), taken(between.connects)
        rows = [Row(name=DIRECT, bulk=bulk[DIRECT], connects=connects[DIRECT], echo=echo[DIRECT])]
        for server in names:
            if server in reasons:
                rows.append(Row(name=server, reason=reasons[server]))
                continue
            rows.append(
                Row(
                    name=server,
                    bulk=bulk[server],
                    connects=connects[server],
                    echo=echo[server],
                    memory=memory[server],
                )
            )
        return rows


def aims(rows: list[Row]) -> list[str]:
    """What was aimed at and missed."""
    found = {row.name: row for row in rows if not row.reason}
    missing = [name for name in (ONE, TWO, DIRECT, MICROSOCKS) if name not in found]
    if missing:
        return [f"nothing to compare: {name} couldn't be measured" for name in missing]
    one, two, direct, other = (found[name] for name in (ONE, TWO, DIRECT, MICROSOCKS))
    compared = (
        ("bulk, times microsocks", one.bulk / other.bulk, BULK_TIMES),
        ("bulk, of the two ends talking directly", one.bulk / direct.bulk, BULK_SHARE),
        ("connections per second with 2 workers, times microsocks", two.connects / other.connects, 1.0),
    )
    print()
    for what, value, aim in compared:
        print(f"  {what}: {value:.2f} (aim: {aim:g})")
    return [what for what, value, aim in compared if value < aim]


def main(check: bool) -> int:
    """Measures and prints the table; the exit status is 1 if an aim that is checked is missed."""
    cpus, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"Medians of {ROUNDS} rounds; {PROCESSES} processes that connect; {HELD:,} idle connections.")
    print(f"{cpus} CPUs for both ends and the server; the load by others is {load:.1f}.")
    print(f"TCP sends by {Path('/proc/sys/net/ipv4/tcp_congestion_control').read_text().strip()}.")
    print(f"  {'':<30} {'Gbit/s':>8} {'connects/s':>10} {'echo µs':>8} {'MiB':>11} {'KiB each':>8}", flush=True)
    rows = measured(list(SERVERS), ROUNDS)
    print(*rows, sep="\n")
    missed = aims(rows)
    for what in missed:
        print(f"missed: {what}")
    return 1 if check and missed else 0
