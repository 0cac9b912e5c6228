"""The command `pysocksify-server` as a process, used by other people's clients."""

import contextlib
import errno
import hashlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.lab.wrapped import need
from tests.server.running import need_ipv6
from tests.supervisor.holds import has_ipv6

LIMIT = 20
COMMAND = (sys.executable, "-m", "pysocksify.server.cli")
ROOT = Path(__file__).parents[2]
BODY = hashlib.sha256(b"a body").digest() * 10_000


class Running:
    """The command, from its line `listening on` to its end."""

    def __init__(self, *arguments: str, descriptors: int | None = None, listeners: int = 1) -> None:
        def limit() -> None:
            assert descriptors is not None
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

        self.process = subprocess.Popen(
            (*COMMAND, *arguments),
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            preexec_fn=limit if descriptors else None,
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        self.addresses: list[str] = []
        try:
            for _ in range(listeners):
                line = self.process.stderr.readline()
                assert line.startswith("listening on "), line
                self.addresses.append(line.removeprefix("listening on ").strip())
        except BaseException:
            self.process.kill()
            self.process.wait()
            self.process.stderr.close()
            raise
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    @property
    def port(self) -> int:
        return int(self.addresses[0].rpartition(":")[2])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT)

    def processor_time(self) -> float:
        """Seconds that it has used (proc(5), utime and stime)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status; its whole log is in `lines` then."""
        self.process.send_signal(number)
        status = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@contextlib.contextmanager
def running(*arguments: str, descriptors: int | None = None, listeners: int = 1) -> Iterator[Running]:
    server = Running(*arguments, descriptors=descriptors, listeners=listeners)
    try:
        yield server
    finally:
        if server.process.returncode is None:
            try:
                server.stop()
            except subprocess.TimeoutExpired:
                server.stop(signal.SIGKILL)
                raise


def on_one_port() -> list[socket.socket]:
    """Listening sockets on 127.0.0.1 and, if it's there, ::1; the port that one gave may be taken on the other."""
    while True:
        first = socket.create_server(("127.0.0.1", 0))
        if not has_ipv6():
            return [first]
        try:
            return [first, socket.create_server(("::1", first.getsockname()[1]), family=socket.AF_INET6)]
        except OSError as error:
            first.close()
            if error.errno != errno.EADDRINUSE:
                raise


@pytest.fixture
def web() -> Iterator[int]:
    """An HTTP/1.0 server for BODY, on IPv4 and IPv6, without any library's help."""
    listeners = on_one_port()
    number: int = listeners[0].getsockname()[1]

    def answer(client: socket.socket) -> None:
        with client, contextlib.suppress(ConnectionError):  # some tests hang up
            data = b""
            while b"\r\n\r\n" not in data and (piece := client.recv(65536)):
                data += piece
            client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threads = [threading.Thread(target=serve, args=(listener,)) for listener in listeners]
    for thread in threads:
        thread.start()
    yield number
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(LIMIT)


def run(*argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    need(argv[0])
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(argv, input=stdin, capture_output=True, timeout=LIMIT, check=False, env=environment)


CURL = [
    (("--socks4",), "127.0.0.1"),
    (("--socks4a",), "web.test"),
    (("--socks5",), "127.0.0.1"),
    (("--socks5",), "[::1]"),
    (("--socks5-hostname",), "web.test"),
    (("--socks5-hostname",), "six.test"),
    (("--proxytunnel", "--proxy"), "127.0.0.1"),
    (("--proxytunnel", "--proxy"), "web.test"),
    (("--proxytunnel", "--proxy"), "[::1]"),
]
RESOLVE = ("--resolve", "web.test=127.0.0.1", "--resolve", "Six.Test=::1")
SIX = {"six.test": "::1"}
LISTEN = ("--listen", "127.0.0.1:0")


class TestCurl:
    @pytest.mark.parametrize(("options", "host"), CURL)
    def test_gets_it(self, web: int, options: tuple[str, ...], host: str) -> None:
        need_ipv6(SIX.get(host, host))
        with running(*LISTEN, *RESOLVE) as server:
            result = run("curl", "-gsS", *options, f"127.0.0.1:{server.port}", f"http://{host}:{web}/")
        assert result.stdout == BODY, result.stderr

    @pytest.mark.parametrize(("options", "host"), CURL)
    def test_with_a_login(self, web: int, options: tuple[str, ...], host: str) -> None:
        need_ipv6(SIX.get(host, host))
        with running(*LISTEN, *RESOLVE, "--user", "alice:s:cret w") as server:
            argv = ("curl", "-gsS", *options, f"127.0.0.1:{server.port}", f"http://{host}:{web}/", "--proxy-user")
            right, wrong = run(*argv, "alice:s:cret w"), run(*argv, "alice:wrong")
            server.stop()
        if "--socks4" in options[0]:
            assert right.returncode == 97
        else:
            assert right.stdout == BODY, right.stderr
        assert wrong.returncode
        assert wrong.stdout == b""
        assert "cret" not in "".join(server.lines)

    def test_refused_is_told(self) -> None:
        with running(*LISTEN) as server:
            proxy = f"127.0.0.1:{server.port}"
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                url = f"http://127.0.0.1:{sock.getsockname()[1]}/"
                assert b"(5)" in run("curl", "-sS", "--socks5", proxy, url).stderr
                assert b"503" in run("curl", "-sS", "--proxytunnel", "--proxy", proxy, url).stderr


def ask(web: int) -> bytes:
    return b"GET / HTTP/1.0\r\n\r\n"


class TestOthers:
    @pytest.mark.parametrize(
        ("kind", "host"),
        [
            ("socks4", "127.0.0.1"),
            ("socks5", "127.0.0.1"),
            ("socks5", "web.test"),
            ("http", "web.test"),
            ("http", "::1"),
        ],
    )
    @pytest.mark.parametrize("user", [None, "alice:secret"])
    def test_ncat(self, web: int, kind: str, host: str, user: str | None) -> None:
        need_ipv6(host)
        login = ("--user", user) if user else ()
        with running(*LISTEN, *RESOLVE, *login) as server:
            options = ["--proxy", f"127.0.0.1:{server.port}", "--proxy-type", kind, "--proxy-dns", "remote"]
            if user:
                options += ["--proxy-auth", user]
            result = run("ncat", "-w", "5", *options, host, str(web), stdin=ask(web))
        if user and kind == "socks4":
            assert result.stdout == b""
        else:
            assert result.stdout.endswith(BODY), result.stderr

    @pytest.mark.parametrize(
        "address",
        [
            "SOCKS4:127.0.0.1:127.0.0.1:{web},socksport={proxy},socksuser=fred",
            "SOCKS4A:127.0.0.1:web.test:{web},socksport={proxy}",
            "PROXY:127.0.0.1:web.test:{web},proxyport={proxy}",
            "PROXY:127.0.0.1:[::1]:{web},proxyport={proxy}",
        ],
    )
    def test_socat(self, web: int, address: str) -> None:
        need_ipv6("::1" if "[" in address else "")
        with running(*LISTEN, *RESOLVE) as server:
            result = run("socat", "-t", "5", "-", address.format(web=web, proxy=server.port), stdin=ask(web))
        assert result.stdout.endswith(BODY), result.stderr

    def test_socat_with_a_login(self, web: int) -> None:
        with running(*LISTEN, *RESOLVE, "--user", "alice:secret") as server:
            address = f"PROXY:127.0.0.1:web.test:{web},proxyport={server.port},proxyauth=alice:"
            right = run("socat", "-t", "5", "-", address + "secret", stdin=ask(web))
            wrong = run("socat", "-t", "5", "-", address + "wrong", stdin=ask(web))
        assert right.stdout.endswith(BODY), right.stderr
        assert wrong.stdout == b""

    def test_50_curls_at_once(self, web: int) -> None:
        with running(*LISTEN, *RESOLVE) as server:
            url = f"http://web.test:{web}/"
            argv = ["-sS", "--parallel", "--parallel-immediate", "--socks5-hostname", f"127.0.0.1:{server.port}"]
            result = run("curl", *argv, *[url] * 50)
        assert len(result.stdout) == 50 * len(BODY), result.stderr


class TestLife:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_stops_cleanly(self, web: int, number: signal.Signals) -> None:
        with running(*LISTEN, "-vv") as server, server.connect() as client:
            client.sendall(b"\x04\x01" + web.to_bytes(2, "big") + b"\x7f\0\0\1" + b"\0")
            assert client.recv(8)[1] == 90
            assert server.stop(number) == 0
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert "Traceback" not in "".join(server.lines)
        with pytest.raises(ConnectionRefusedError):
            server.connect()

    def test_listens_where_it_is_told(self) -> None:
        with running("--listen", "127.0.0.1:0", "--listen", "[::1]:0", listeners=2) as server:
            assert server.addresses[0].startswith("127.0.0.1:")
            assert server.addresses[1].startswith("[::1]:")

    @pytest.mark.parametrize(("option", "count"), [("-q", 0), ("-v", 1), ("-vv", 2)])
    def test_says_as_much_as_it_is_told(self, web: int, option: str, count: int) -> None:
        with running(*LISTEN, *RESOLVE, option) as server:
            run("curl", "-sS", "--socks5-hostname", f"127.0.0.1:{server.port}", f"http://web.test:{web}/")
            server.stop()
        assert len(server.lines) == count
        assert all(f"-> web.test:{web}: " in line for line in server.lines)

    def test_log_file(self, web: int, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text("before\n")
        with running(*LISTEN, "-v", "--log-file", str(log)) as server:
            run("curl", "-sS", "--socks5", f"127.0.0.1:{server.port}", f"http://127.0.0.1:{web}/")
            server.stop()
        assert server.lines == []
        before, line = log.read_text().splitlines()
        assert before == "before"
        assert f"-> 127.0.0.1:{web}: ok" in line

    def test_more_clients_than_descriptors(self, web: int) -> None:
        request = b"\x04\x01" + web.to_bytes(2, "big") + b"\x7f\0\0\1" + b"\0"
        with running(*LISTEN, descriptors=40) as server:
            clients = [server.connect() for _ in range(100)]
            for client in clients:
                client.close()
            with server.connect() as client:
                client.sendall(request)
                assert client.recv(8)[1] == 90
            server.stop()
        assert len([line for line in server.lines if "no room for more clients" in line]) == 1
        assert "Traceback" not in "".join(server.lines)

    def test_waits_without_spinning_for_descriptors(self) -> None:
        with running(*LISTEN, descriptors=20) as server:
            clients = [server.connect() for _ in range(40)]
            before = server.processor_time()
            clients[-1].settimeout(0.5)
            with pytest.raises(TimeoutError):
                clients[-1].recv(1)
            assert server.processor_time() - before < 0.1
            for client in clients:
                client.close()


def refused(*arguments: str) -> str:
    """The one line that says why it doesn't start."""
    result = subprocess.run(
        (*COMMAND, *arguments), capture_output=True, text=True, timeout=LIMIT, check=False, cwd=ROOT
    )
    assert result.returncode == 125
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("pysocksify-server: ")
    return line


REFUSED: Sequence[tuple[tuple[str, ...], str]] = [
    (("--listen", "0.0.0.0:0"), "--open"),
    (("--listen", "[::]:0"), "--open"),
    (("--listen", "127.0.0.1"), "--listen: '127.0.0.1' has no port number"),
    (("--listen", "::1:1080"), "brackets"),
    (("--listen", "example.com:1080"), "not a name"),
    (("--listen", "203.0.113.9:0", "--open"), "--listen: 203.0.113.9:0: "),
    (("--user", "alice"), "--user: NAME:PASSWORD"),
    (("--user", "alice:" + "x" * 256), "--user: name and password have 255"),
    (("--resolve", "web.test"), "--resolve: web.test: NAME=ADDRESS"),
    (("--resolve", "web.test=other.test"), "--resolve: web.test=other.test: other.test is not an address"),
    (("--resolve", "127.0.0.1=127.0.0.2"), "an address already"),
    (("--timeout", "x"), "--timeout"),
    (("--timeout", "0"), "--timeout"),
    (("--log-file", "/nonexistent/log"), "--log-file: /nonexistent/log: No such file"),
    (("--nonsense",), "--nonsense"),
    (("--listen",), "--listen"),
    (("--user", "alice", "secret"), "no arguments"),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED)
def test_bad_input(arguments: tuple[str, ...], reason: str) -> None:
    line = refused(*arguments)
    assert reason in line
    assert "secret" not in line
    assert "xxx" not in line


def test_help_and_version() -> None:
    for option, expected in (("--help", "--resolve NAME=ADDRESS"), ("--version", "pysocksify-server 0.")):
        result = subprocess.run((*COMMAND, option), capture_output=True, text=True, timeout=LIMIT, check=True, cwd=ROOT)
        assert expected in result.stdout
        assert result.stderr == ""
