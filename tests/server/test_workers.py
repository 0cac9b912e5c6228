"""Processes of a server: forked, replaced, reloaded, drained and ended, with a server that only greets.

Run as a program this file is that server: its settings' `hosts` come from a file, and each client is told the pid of
who serves it, and that word.
"""

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from pysocksify.address import Address
from pysocksify.errors import ConfigError
from pysocksify.reactor import READ, Reactor
from pysocksify.report import VERBOSE, Report
from pysocksify.server import workers as workers_module
from pysocksify.server.counting import Counter, Counts
from pysocksify.server.files import Listen
from pysocksify.server.listening import Listeners
from pysocksify.server.metrics import Metrics
from pysocksify.server.process import Alone, Job
from pysocksify.server.settings import Limits, ServerSettings
from pysocksify.server.systemd import Notifier
from pysocksify.server.workers import Master

LIMIT = 20
ROOT = Path(__file__).parents[2]


class Greeter:
    """Says `PID WORD`, or the limit that is reached, and keeps the client until it hangs up."""

    def __init__(self, reactor: Reactor, settings: ServerSettings, counter: Counter) -> None:
        self._reactor = reactor
        self._counter = counter
        self.settings = settings
        self._listeners: list[socket.socket] = []
        self._clients: set[socket.socket] = set()
        if "dies" in settings.hosts:
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def settings(self) -> ServerSettings:
        return self._settings

    @settings.setter
    def settings(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._counter.limit(total=settings.limits.total)

    @property
    def session_count(self) -> int:
        return len(self._clients)

    def adopt(self, sock: socket.socket, tls: object = None) -> None:
        self._listeners.append(sock)
        self._reactor.watch(sock.fileno(), READ, lambda events: self._accept(sock))

    def _accept(self, sock: socket.socket) -> None:
        try:
            client, _ = sock.accept()
        except BlockingIOError:  # another worker was first, at a socket that is all workers'
            return
        reached = self._counter.enter("here")
        client.sendall(reached.encode() or b"%d %b" % (os.getpid(), next(iter(self.settings.hosts)).encode()))
        if reached:
            client.close()
            return
        self._clients.add(client)
        self._reactor.watch(client.fileno(), READ, lambda events: self._leave(client))

    def _leave(self, client: socket.socket) -> None:
        if client.recv(1):
            raise RuntimeError("a bug that a client met")
        self._counter.leave("here", None)
        self._reactor.unwatch(client.fileno())
        client.close()
        self._clients.discard(client)

    def drain(self) -> None:
        for sock in self._listeners:
            self._reactor.unwatch(sock.fileno())
            sock.close()
        self._listeners.clear()

    def close(self) -> None:
        self.drain()
        for client in self._clients:
            client.close()


def main(arguments: dict[str, object]) -> None:
    """The program: a line `[names, metrics]` on standard output when it serves; what it says on standard error."""
    workers, path = int(str(arguments["workers"])), Path(str(arguments["file"]))
    workers_module.KILL_GRACE = float(str(arguments.get("grace", workers_module.KILL_GRACE)))

    def load() -> ServerSettings:
        try:
            values = json.loads(path.read_text())
        except ValueError:
            raise ConfigError(str(path), "", "not\nJSON") from None
        return ServerSettings(hosts={values["word"]: ()}, limits=Limits(total=values.get("total")))

    counts = Counts.single() if workers == 1 else Counts.shared(workers, 1024)
    listeners = Listeners(workers, lambda certificate, key: ssl.create_default_context())
    listeners.open(Listen(address=Address("127.0.0.1", 0)))
    listeners.open(Listen(path=str(path.parent / "socket")))
    metrics = Metrics(Address("127.0.0.1", 0), counts) if arguments.get("metrics") else None
    job = Job(
        settings=load(),
        server=Greeter,
        load=load,
        listeners=listeners,
        counts=counts,
        report=Report(lambda line: print(line, file=sys.stderr, flush=True), VERBOSE, "greeter"),
        notifier=Notifier(os.environ),
        metrics=metrics,
        drain=float(str(arguments.get("drain", 0))),
    )
    names = listeners.names

    def up() -> None:
        print(json.dumps([names, str(metrics.address) if metrics else ""]), flush=True)

    if workers == 1:
        Alone(job).run(up)
    else:
        Master(job, workers).run(up)


class Running:
    """The program, with its listeners' addresses."""

    def __init__(self, folder: Path, workers: int, environ: dict[str, str], **arguments: object) -> None:
        self.folder = folder
        self.clients: list[Client] = []  # closed in the end
        self.write(word="first")
        arguments |= {"workers": workers, "file": str(folder / "settings")}
        self.process = subprocess.Popen(
            (sys.executable, "-m", "tests.server.test_workers", json.dumps(arguments)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environ,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.names, self.metrics = json.loads(self.process.stdout.readline() or "[[], null]")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def write(self, **values: object) -> None:
        (self.folder / "settings").write_text(json.dumps(values))

    def said(self, part: str, count: int = 1) -> str:
        """Wait for a line that has this in it."""
        with self._changed:
            assert self._changed.wait_for(lambda: sum(part in line for line in self.lines) >= count, LIMIT), self.lines
        return next(line for line in self.lines if part in line)

    def connect(self, unix: bool = False, limit: float = LIMIT) -> "Client":
        if unix:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(LIMIT)
            sock.connect(str(self.folder / "socket"))
        else:
            host, _, port = self.names[0].rpartition(":")
            sock = socket.create_connection((host, int(port)), timeout=limit)
        self.clients.append(Client(sock))
        return self.clients[-1]

    def accepts_nobody(self) -> None:
        """Wait until that is so."""
        until = time.monotonic() + LIMIT
        while time.monotonic() < until:
            try:
                self.connect(limit=LIMIT / 4).sock.close()
            except (ConnectionRefusedError, ConnectionResetError, TimeoutError):  # the last: one who came in between
                return
        raise AssertionError("it still accepts clients")

    def pids(self, count: int) -> set[int]:
        """The pids of this many processes that serve, found by connecting."""
        found: set[int] = set()
        until = time.monotonic() + LIMIT
        while len(found) < count:
            assert time.monotonic() < until
            with self.connect() as client:
                found.add(client.pid)
        return found

    def wait(self) -> int:
        status = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()


class Client:
    """A connection, and what it was told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        try:
            self.told = sock.recv(100).decode()
        except OSError:
            sock.close()
            raise

    @property
    def pid(self) -> int:
        return int(self.told.split()[0])

    @property
    def word(self) -> str:
        return self.told.split()[1]

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def is_cut(self) -> bool:
        """Wait for the end of the connection."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Running] = []

    def begin(workers: int, environ: dict[str, str] | None = None, **arguments: object) -> Running:
        started.append(Running(tmp_path, workers, environ or {}, **arguments))
        return started[-1]

    yield begin
    for each in started:
        for client in each.clients:
            client.sock.close()
        if each.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.process.pid, signal.SIGKILL)
            each.wait()


def ticks(pids: Iterable[int]) -> int:
    """What processes have used of the processor, in clock ticks (proc_pid_stat(5), utime and stime)."""
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(fields[11]) + int(fields[12]) for fields in stats)


def is_gone(pid: int) -> bool:
    """Wait for the end of a process that isn't our child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], LIMIT)[0])
    finally:
        os.close(fd)


@pytest.mark.parametrize("workers", [1, 3])
class TestLife:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("whole_group", [False, True])
    def test_ends_at_once(self, start: Start, workers: int, number: signal.Signals, whole_group: bool) -> None:
        running = start(workers)
        pids = running.pids(workers)
        with running.connect() as client:
            os.killpg(running.process.pid, number) if whole_group else running.process.send_signal(number)
            assert client.is_cut()
        assert running.wait() == 0
        assert all(is_gone(pid) for pid in pids)
        assert running.lines == []
        assert not (running.folder / "socket").exists()

    @pytest.mark.parametrize("whole_group", [False, True])
    def test_drains(self, start: Start, workers: int, whole_group: bool) -> None:
        """Nobody is accepted any more; who is there stays until he goes."""
        running = start(workers, drain=LIMIT)
        clients = [running.connect() for _ in range(6)]
        os.killpg(running.process.pid, signal.SIGTERM) if whole_group else running.process.terminate()
        running.accepts_nobody()
        for client in clients:
            assert not select.select([client.sock], [], [], 0)[0]
        for client in clients:
            client.sock.close()
        assert running.wait() == 0

    def test_drains_no_longer_than_asked(self, start: Start, workers: int) -> None:
        running = start(workers, drain=0.3)
        with running.connect() as client:
            began = time.monotonic()
            assert running.stop() == 0
            assert time.monotonic() - began >= 0.3
            assert client.is_cut()

    def test_a_second_signal_ends_at_once(self, start: Start, workers: int) -> None:
        running = start(workers, drain=3600)
        with running.connect() as client:
            running.process.terminate()
            running.accepts_nobody()
            assert running.stop(signal.SIGINT) == 0
            assert client.is_cut()

    def test_reloads(self, start: Start, workers: int) -> None:
        """New clients find the new settings in every worker; who is there stays."""
        running = start(workers)
        pids = running.pids(workers)
        with running.connect() as before:
            running.write(word="second", total=2)
            running.process.send_signal(signal.SIGHUP)
            running.said("reloaded")
            until = time.monotonic() + LIMIT
            found: set[int] = set()
            while found != pids:
                assert time.monotonic() < until
                with running.connect() as client:
                    if client.told != "total" and client.word == "second":
                        found.add(client.pid)
            one = running.connect()
            while one.told == "total":  # the one before may not have left yet
                assert time.monotonic() < until
                one.sock.close()
                one = running.connect()
            with one:
                assert one.word == "second"
                assert running.connect().told == "total"
            assert not select.select([before.sock], [], [], 0)[0]
        assert running.stop() == 0

    def test_a_broken_file(self, start: Start, workers: int) -> None:
        running = start(workers)
        for count in (1, 2):
            (running.folder / "settings").write_text("{")
            running.process.send_signal(signal.SIGHUP)
            running.said("settings: not JSON", count)
        with running.connect() as client:
            assert client.word == "first"
        (running.folder / "settings").unlink()
        running.process.send_signal(signal.SIGHUP)
        running.said("No such file")
        assert running.stop() == 0
        assert len(running.lines) == 3
        assert running.lines[0].startswith("greeter: not reloaded, all stays as it was: ")

    def test_tells_systemd(self, start: Start, workers: int, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            manager.settimeout(LIMIT)
            running = start(workers, {"NOTIFY_SOCKET": str(tmp_path / "notify")})
            assert manager.recv(100) == b"READY=1"
            for text in ('{"word": "second"}', "{"):
                (running.folder / "settings").write_text(text)
                running.process.send_signal(signal.SIGHUP)
                assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
                assert manager.recv(100) == b"READY=1"
                with running.connect() as client:  # whoever is asked: all have loaded
                    assert client.word == "second"
            assert running.stop() == 0
            assert manager.recv(100) == b"STOPPING=1"

    def test_metrics(self, start: Start, workers: int) -> None:
        import urllib.request

        running = start(workers, metrics=True)
        clients = [running.connect() for _ in range(5)]
        with urllib.request.urlopen(f"http://{running.metrics}/", timeout=LIMIT) as answer:
            assert b"\npysocksify_connections_active 5.0\n" in answer.read()
        assert running.stop() == 0
        assert running.lines == []
        for client in clients:
            client.sock.close()

    def test_waits_without_using_the_processor(self, start: Start, workers: int) -> None:
        running = start(workers)
        pids = running.pids(workers) | {running.process.pid}
        before = ticks(pids)
        with selectors.DefaultSelector() as nothing:
            nothing.select(1.0)
        assert ticks(pids) - before < os.sysconf("SC_CLK_TCK") / 4  # one that spins has used all of the second


class TestWorkers:
    def test_each_serves(self, start: Start) -> None:
        running = start(3)
        assert running.process.pid not in running.pids(3)
        with running.connect(unix=True) as client:
            assert client.word == "first"

    def test_limits_hold_for_all_together(self, start: Start) -> None:
        running = start(3)
        running.write(word="second", total=4)
        running.process.send_signal(signal.SIGHUP)
        running.said("reloaded")
        until = time.monotonic() + LIMIT
        words: set[str] = set()
        while words != {"second"}:  # all three have it when they have said so one after another
            assert time.monotonic() < until
            words = set()
            for _ in range(30):
                with running.connect() as client:
                    words.add(client.told if client.told == "total" else client.word)
        clients = [running.connect() for _ in range(12)]
        assert sum(client.told == "total" for client in clients) >= 8
        for client in clients:
            client.sock.close()

    def test_one_that_dies_is_replaced(self, start: Start) -> None:
        running = start(2)
        pids = running.pids(2)
        with running.connect() as client:
            os.kill(client.pid, signal.SIGKILL)
            assert client.is_cut()
            line = running.said("was killed by SIGKILL")
            assert f"(pid {client.pid})" in line
        # none is refused meanwhile: the master keeps the queue
        again = {running.connect().pid for _ in range(40)}
        assert len(again) == 2
        assert len(again & pids) == 1
        assert running.stop() == 0

    def test_one_with_a_bug_is_replaced(self, start: Start) -> None:
        running = start(2)
        with running.connect() as client:
            client.sock.sendall(b"x")
            assert client.is_cut()
            running.said("ended with status 1; another is started")
            running.said("RuntimeError: a bug that a client met")
        running.pids(2)
        assert running.stop() == 0

    def test_its_connections_count_no_more(self, start: Start) -> None:
        running = start(2)
        running.write(word="second", total=3)
        running.process.send_signal(signal.SIGHUP)
        running.said("reloaded")
        clients: list[Client] = []
        until = time.monotonic() + LIMIT
        while sum(client.told == "total" for client in clients) < 5:
            assert time.monotonic() < until
            clients.append(running.connect())
        inside = [client for client in clients if client.told != "total"]
        os.kill(inside[0].pid, signal.SIGKILL)
        assert inside[0].is_cut()
        running.said("was killed by SIGKILL")
        with running.connect() as client:
            assert client.word == "second"

    def test_the_metrics_process_is_replaced(self, start: Start) -> None:
        import urllib.request

        running = start(2, metrics=True)
        served = running.pids(2)
        children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
        (other,) = {int(pid) for pid in children} - served
        os.kill(other, signal.SIGKILL)
        running.said("the metrics' process")
        with urllib.request.urlopen(f"http://{running.metrics}/", timeout=LIMIT) as answer:
            assert b"pysocksify_workers_died_total 0.0" in answer.read()
        assert running.stop() == 0

    def test_they_end_with_their_master(self, start: Start) -> None:
        running = start(3, metrics=True)
        pids = running.pids(3)
        with running.connect() as client:
            running.process.kill()
            assert client.is_cut()
        assert all(is_gone(pid) for pid in pids)
        assert running.wait() == -signal.SIGKILL

    def test_a_stopped_worker_is_killed_in_the_end(self, start: Start) -> None:
        running = start(2, grace=0.5)
        pids = running.pids(2)
        os.kill(min(pids), signal.SIGSTOP)
        assert running.stop() == 0
        assert all(is_gone(pid) for pid in pids)

    def test_workers_that_die_at_their_start_end_it(self, tmp_path: Path) -> None:
        (tmp_path / "settings").write_text('{"word": "dies"}')
        arguments = json.dumps({"workers": 2, "file": str(tmp_path / "settings")})
        result = subprocess.run(
            (sys.executable, "-m", "tests.server.test_workers", arguments),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
            cwd=ROOT,
        )
        assert result.returncode == 1
        assert result.stdout == ""
        assert "was killed by SIGKILL before it served" in result.stderr.splitlines()[-1]
        assert not (tmp_path / "socket").exists()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
