"""The command's options as a process: its file, chains, sockets, TLS, users, limits, workers, reloads and logs."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.lab.wrapped import missing, need
from tests.server.test_cli import (  # the fixture among them is pytest's to find
    BODY,
    COMMAND,
    LIMIT,
    LISTEN,
    ROOT,
    Running,
    refused,
    run,
    running,
    web,
)

__all__ = ["web"]
WORKERS = pytest.mark.parametrize("workers", [("--workers", "1"), ("--workers", "2")], ids=["1 worker", "2 workers"])


def until(seen: Callable[[], bool]) -> None:
    """Wait until something is so that nobody tells of."""
    end = time.monotonic() + LIMIT
    while not seen():
        assert time.monotonic() < end
        select.select([], [], [], 0.01)


def fetch(server: Running, web: int, user: str = "") -> "subprocess.CompletedProcess[bytes]":
    login = ("--proxy-user", user) if user else ()
    return run("curl", "-sS", "--socks5", f"127.0.0.1:{server.port}", *login, f"http://127.0.0.1:{web}/")


def connected(server: Running, web: int) -> tuple[socket.socket, int]:
    """A SOCKS4 client that has asked for the web server, and the reply's code."""
    client = server.connect()
    client.sendall(b"\x04\x01" + web.to_bytes(2, "big") + b"\x7f\0\0\1" + b"\0")
    return client, client.recv(8)[1]


class TestWays:
    @WORKERS
    def test_a_chain(self, web: int, workers: tuple[str, ...]) -> None:
        """Two servers one behind the other; the first says what it went through, without the password."""
        far_options = (*LISTEN, "--user", "alice:secret", "--resolve", "web.test=127.0.0.1")
        with running(*far_options) as far, running(*LISTEN) as near:
            hops = ("-p", f"http://127.0.0.1:{near.port}", "-p", f"socks5://alice:secret@127.0.0.1:{far.port}")
            with running(*LISTEN, *hops, *workers, "-v") as server:
                proxy = f"127.0.0.1:{server.port}"
                result = run("curl", "-sS", "--socks5-hostname", proxy, f"http://web.test:{web}/")
                assert result.stdout == BODY, result.stderr
                server.stop()
        (line,) = server.lines
        assert f"-> web.test:{web} through " in line
        assert str(far.port) in line
        assert "secret" not in line

    @WORKERS
    def test_a_file(self, web: int, tmp_path: Path, workers: tuple[str, ...]) -> None:
        """What is said on the command line comes before it."""
        file = tmp_path / "server.toml"
        file.write_text(
            'listen = ["127.0.0.1:0", "unix:socket"]\nverbosity = 1\nworkers = 3\n[hosts]\n"web.test" = "127.0.0.1"\n'
            '[[access]]\naction = "deny"\nmatch = ["blocked.test"]\n'
        )
        with running("-c", str(file), *workers, listeners=2) as server:
            assert server.addresses[1] == f"unix:{tmp_path}/socket"
            proxy = f"127.0.0.1:{server.port}"
            got = run("curl", "-sS", "--socks5-hostname", proxy, f"http://web.test:{web}/")
            assert got.stdout == BODY, got.stderr
            assert b"(2)" in run("curl", "-sS", "--socks5-hostname", proxy, "http://blocked.test/").stderr
            children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
            assert len(children) == (2 if workers[1] == "2" else 0)
            server.stop()
        assert len(server.lines) == 2

    @WORKERS
    def test_a_unix_socket(self, web: int, tmp_path: Path, workers: tuple[str, ...]) -> None:
        path = tmp_path / "s"
        with running("--listen", f"unix:{path}", "--unix-mode", "660", *workers) as server:
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            result = run("curl", "-sS", "--proxy", f"socks5h://localhost{path}", f"http://127.0.0.1:{web}/")
            assert result.stdout == BODY, result.stderr
            assert server.stop() == 0
        assert not path.exists()

    @WORKERS
    def test_tls(self, web: int, tmp_path: Path, workers: tuple[str, ...]) -> None:
        """A client that checks the certificate; after a reload it sees the renewed one."""
        need("openssl")
        cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        new = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]
        new += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        new += ["-out", str(cert), "-keyout", str(key)]
        subprocess.run(new, check=True, capture_output=True)
        tls = ("--listen", "tls:127.0.0.1:0", "--tls-cert", str(cert), "--tls-key", str(key))
        with running(*tls, *LISTEN, *workers, "-v", listeners=2) as server:
            assert server.addresses[0].startswith("tls:127.0.0.1:")
            curl = ("curl", "-sS", "--proxytunnel", "--proxy", f"https://127.0.0.1:{server.port}")
            ask = (*curl, "--proxy-cacert", str(cert), f"http://127.0.0.1:{web}/")
            result = run(*ask)
            assert result.stdout == BODY, result.stderr
            subprocess.run(new, check=True, capture_output=True)
            assert run(*ask).returncode == 60
            server.process.send_signal(signal.SIGHUP)
            until(lambda: run(*ask).stdout == BODY)

    @WORKERS
    def test_a_socket_of_systemds(self, web: int, workers: tuple[str, ...]) -> None:
        """Given, it is listened on, and the default isn't."""
        with socket.create_server(("127.0.0.1", 0)) as sock:
            start = f'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&{sock.fileno()}'
            process = subprocess.Popen(
                ("bash", "-c", start, "bash", *COMMAND, *workers),
                pass_fds=[sock.fileno()],
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            host, port = sock.getsockname()
            assert process.stderr is not None
            assert process.stderr.readline() == f"listening on {host}:{port}\n"
        try:
            assert run("curl", "-sS", "--socks5", f"{host}:{port}", f"http://127.0.0.1:{web}/").stdout == BODY
        finally:
            process.terminate()
            assert process.wait(LIMIT) == 0
            process.stderr.close()


class TestLimits:
    @WORKERS
    @pytest.mark.parametrize("option", ["--max-connections", "--max-per-source"])
    def test_over_it(self, web: int, workers: tuple[str, ...], option: str) -> None:
        with running(*LISTEN, option, "3", *workers) as server:
            answers = [connected(server, web) for _ in range(8)]
            assert [code for _, code in answers] == [90] * 3 + [91] * 5
            answers[0][0].close()
            until(lambda: next_code(server, web) == 90)
            for client, _ in answers:
                client.close()

    @WORKERS
    def test_users(self, web: int, workers: tuple[str, ...]) -> None:
        limits = ("--user", "alice:a", "--user", "bob:b", "--max-per-user", "1")
        with running(*LISTEN, *limits, *workers) as server, server.connect() as client:
            client.sendall(b"\5\1\2" + b"\1\5alice\1a" + b"\5\1\0\1\x7f\0\0\1" + web.to_bytes(2, "big"))
            reply = b""
            while len(reply) < 14:
                reply += client.recv(14 - len(reply))
            assert reply[4:6] == b"\5\0"
            assert b"(1)" in fetch(server, web, "alice:a").stderr
            assert fetch(server, web, "bob:b").stdout == BODY

    def test_idle(self, web: int) -> None:
        with running(*LISTEN, "--idle", "0.2", "-v") as server:
            client, code = connected(server, web)
            assert code == 90
            with client, contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
            server.stop()
        assert "idle for 0.2 s" in server.lines[0]


def next_code(server: Running, web: int) -> int:
    client, code = connected(server, web)
    client.close()
    return code


class TestReload:
    @WORKERS
    def test_users(self, web: int, tmp_path: Path, workers: tuple[str, ...]) -> None:
        """The file of users as the command writes it: one is added and one removed, and connections stay."""
        if find_spec("argon2") is None:
            missing("argon2-cffi isn't installed")
        file = tmp_path / "users"

        def change(action: str, name: str) -> None:
            argv = (*COMMAND, "user", action, name, "--file", str(file))
            subprocess.run(argv, input=b"pw\n", check=True, capture_output=True, cwd=ROOT, timeout=LIMIT)

        change("add", "alice")
        with running(*LISTEN, "--users", str(file), *workers) as server, server.connect() as client:
            client.sendall(b"\5\1\2" + b"\1\5alice\2pw" + b"\5\1\0\1\x7f\0\0\1" + web.to_bytes(2, "big"))
            reply = b""
            while len(reply) < 14:
                reply += client.recv(14 - len(reply))
            assert b"rejected" in fetch(server, web, "bob:pw").stderr
            change("add", "bob")
            change("remove", "alice")
            server.process.send_signal(signal.SIGHUP)
            until(lambda: fetch(server, web, "bob:pw").stdout == BODY)
            until(lambda: fetch(server, web, "alice:pw").stdout == b"")
            file.write_text("nonsense")
            server.process.send_signal(signal.SIGHUP)
            until(lambda: any("not reloaded" in line for line in server.lines))
            assert fetch(server, web, "bob:pw").stdout == BODY
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.0 200 OK")
            server.stop()
        assert len([line for line in server.lines if "not reloaded" in line]) == 1

    @WORKERS
    def test_it_never_opens_a_server_to_others(self, tmp_path: Path, workers: tuple[str, ...]) -> None:
        file = tmp_path / "server.toml"
        file.write_text('listen = "0.0.0.0:0"\nopen = true\n')
        with running("-c", str(file), *workers) as server:
            file.write_text("")
            server.process.send_signal(signal.SIGHUP)
            until(lambda: any("not reloaded" in line and "--open" in line for line in server.lines))

    @WORKERS
    def test_the_log_file_is_opened_again(self, web: int, tmp_path: Path, workers: tuple[str, ...]) -> None:
        log, old = tmp_path / "log", tmp_path / "log.1"
        with running(*LISTEN, "-v", "--log-file", str(log), *workers) as server:
            fetch(server, web)
            until(lambda: log.read_text().count("\n") == 1)
            log.rename(old)
            server.process.send_signal(signal.SIGHUP)
            until(lambda: log.exists() and "reloaded" in log.read_text())

            def in_the_new_one() -> bool:
                fetch(server, web)
                return f"-> 127.0.0.1:{web}" in log.read_text()

            until(in_the_new_one)


class TestLog:
    @WORKERS
    def test_json(self, web: int, workers: tuple[str, ...]) -> None:
        """Each line but the listeners' is JSON, whatever clients call themselves."""
        with running(*LISTEN, "-vv", "--log-format", "json", *workers) as server:
            with server.connect() as client:
                name = b'"\n\x1b[31m\xff'
                client.sendall(b"\x04\x01" + web.to_bytes(2, "big") + b"\x7f\0\0\1" + name + b"\0")
                assert client.recv(8)[1] == 90
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                while client.recv(65536):
                    continue
            with server.connect() as client:
                client.sendall(b"\xff nonsense \x1b")
                assert client.recv(100) == b""
            until(lambda: sum('"outcome"' in line for line in server.lines) == 2)
            server.stop()
        lines = [json.loads(line) for line in server.lines]
        (good,) = [line for line in lines if line.get("outcome") == "ok"]
        assert good["destination"] == f"127.0.0.1:{web}"
        assert (good["version"], good["command"], good["through"]) == ("socks4", "connect", "direct")
        assert good["bytes_up"] == 18
        assert good["bytes_down"] > len(BODY)
        assert good["dial_ms"] >= 0
        (bad,) = [line for line in lines if "outcome" in line and line is not good]
        assert bad["destination"] is None
        assert all("message" in line for line in lines if "outcome" not in line)

    @WORKERS
    def test_text_is_harmless(self, web: int, workers: tuple[str, ...]) -> None:
        with running(*LISTEN, "-vv", *workers) as server:
            with server.connect() as client:
                client.sendall(b"\x04\x01" + web.to_bytes(2, "big") + b"\x7f\0\0\1" + b"a\nb\x1b[2J\xff\0")
                assert client.recv(8)[1] == 90
            until(lambda: bool(server.lines))
            server.stop()
        assert all(line.removesuffix("\n").isprintable() for line in server.lines)

    @WORKERS
    def test_metrics(self, web: int, workers: tuple[str, ...]) -> None:
        if find_spec("prometheus_client") is None:
            missing("prometheus-client isn't installed")
        with running(*LISTEN, "-v", "--metrics", "127.0.0.1:0", *workers) as server:
            until(lambda: bool(server.lines))
            found = re.search(r"http://127.0.0.1:\d+/metrics", server.lines[0])
            assert found
            for _ in range(5):
                fetch(server, web)
            with server.connect() as client:
                client.sendall(b"\xff")
                assert client.recv(1) == b""

            def text() -> str:
                with urllib.request.urlopen(found[0], timeout=LIMIT) as answer:
                    return str(answer.read(), "utf-8")

            until(lambda: "\npysocksify_connections_active 0.0" in text())
            assert '\npysocksify_connections_total{command="connect",outcome="ok"} 5.0\n' in text()
            assert '\npysocksify_handshake_failures_total{reason="protocol"} 1.0\n' in text()
            assert server.stop() == 0


class TestEnd:
    @WORKERS
    def test_drains(self, web: int, workers: tuple[str, ...]) -> None:
        with running(*LISTEN, "--drain", str(LIMIT), *workers) as server:
            client, code = connected(server, web)
            assert code == 90
            server.process.terminate()

            def nobody_is_accepted() -> bool:
                try:
                    server.connect().close()
                except OSError:
                    return True
                return False

            until(nobody_is_accepted)
            with client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                data = b""
                while piece := client.recv(65536):
                    data += piece
            assert data.endswith(BODY)
            assert server.process.wait(LIMIT) == 0
            server.stop()

    @WORKERS
    def test_ends_with_its_terminal(self, workers: tuple[str, ...]) -> None:
        """A terminal's end sends SIGHUP, too; who began on it doesn't take that for a reload."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(ROOT)
            os.execv(sys.executable, (*COMMAND, *LISTEN, *workers))
        said = b""
        while b"\n" not in said:
            said += os.read(terminal, 1000)
        port = int(said.strip().rpartition(b":")[2])
        os.close(terminal)
        end = os.pidfd_open(pid)
        try:
            assert select.select([end], [], [], LIMIT)[0]
        finally:
            os.close(end)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


REFUSED: Sequence[tuple[tuple[str, ...], str]] = [
    (("-c", "/nonexistent/server.toml"), "/nonexistent/server.toml: No such file"),
    (("-p", "ftp://127.0.0.1"), "-p: ftp://127.0.0.1: "),
    (("-p", "socks5://a:secret@127.0.0.1:x"), "-p: "),
    (("--users", "/nonexistent/users"), "/nonexistent/users: "),
    (("--listen", "tls:127.0.0.1:0"), "--listen: tls:127.0.0.1:0: needs --tls-cert and --tls-key"),
    (("--listen", "unix:"), "--listen: "),
    (("--listen", "unix:/nonexistent/socket"), "--listen: unix:/nonexistent/socket: No such file"),
    (("--listen", "unix:/etc/passwd"), "--listen: unix:/etc/passwd: is there already, and is no socket"),
    (("--tls-cert", "/etc/passwd"), "--tls-cert: --tls-cert and --tls-key belong together"),
    (("--tls-key", "/etc/passwd"), "--tls-key: --tls-cert and --tls-key belong together"),
    (("--listen", "tls:127.0.0.1:0", "--tls-cert", "/etc/passwd", "--tls-key", "/etc/passwd"), "/etc/passwd"),
    (("--unix-mode", "9"), "--unix-mode: '9' is no mode"),
    (("--metrics", "0.0.0.0:0"), "--metrics: 0.0.0.0:0: must be an address on loopback"),
    (("--metrics", "example.com:0"), "--metrics: example.com:0: must be an address on loopback"),
    (("--metrics", "x"), "--metrics: 'x' has no port"),
    (("--workers", "0"), "--workers"),
    (("--workers", "two"), "--workers"),
    (("--max-connections", "0"), "--max-connections"),
    (("--max-per-user", "-1"), "--max-per-user"),
    (("--max-per-source", "x"), "--max-per-source"),
    (("--idle", "0"), "--idle"),
    (("--drain", "-1"), "--drain"),
    (("--drain", "nan"), "--drain"),
    (("--timeout", "nan"), "--timeout"),
    (("--log-format", "xml"), "--log-format"),
    (("user", "add"), "NAME"),
    (("user", "nonsense"), "nonsense"),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED)
def test_bad_input(arguments: tuple[str, ...], reason: str) -> None:
    line = refused(*arguments) if arguments[0] == "user" else refused(*LISTEN, *arguments)
    assert reason in line
    assert "secret" not in line


@WORKERS
def test_the_first_clients_need_no_more_descriptors(workers: tuple[str, ...]) -> None:
    """For their names and their logins' hashes: there may be none left by then."""
    with running(*LISTEN, *workers) as server:
        pid = server.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in children or [str(pid)]:
            files = [os.readlink(path) for path in Path(f"/proc/{each}/fd").iterdir()]
            assert files.count("anon_inode:[eventfd]") == 2


def test_the_example_file_is_read() -> None:
    """It names a directory that isn't there; all before that was good."""
    line = refused("-c", str(ROOT / "conf" / "server.toml"))
    assert "users" in line or "unix:/run/pysocksify/server.sock" in line
