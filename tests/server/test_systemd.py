"""systemd's protocols, spoken with sockets made here as systemd makes them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from pysocksify.server.systemd import Notifier, inherited
from tests.lab.wrapped import need

LIMIT = 20
ROOT = Path(__file__).parents[2]


class TestNotify:
    @pytest.mark.parametrize("abstract", [False, True])
    def test_states(self, tmp_path: Path, abstract: bool) -> None:
        name = f"@{tmp_path.name}-{os.getpid()}" if abstract else str(tmp_path / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(name.replace("@", "\0", 1))
            manager.settimeout(LIMIT)
            environ = {"NOTIFY_SOCKET": name, "HOME": "/"}
            notifier = Notifier(environ)
            assert environ == {"HOME": "/"}
            notifier.ready()
            assert manager.recv(100) == b"READY=1"
            before = time.monotonic()
            notifier.reloading()
            first, second = manager.recv(100).decode().split("\n")
            assert first == "RELOADING=1"
            key, _, value = second.partition("=")
            assert key == "MONOTONIC_USEC"
            assert before - 0.001 <= int(value) / 1e6 <= time.monotonic()
            notifier.stopping()
            assert manager.recv(100) == b"STOPPING=1"

    @pytest.mark.parametrize("path", ["", "/nonexistent/notify", "@nobody is there", "vsock:2:1", "relative"])
    def test_nobody_listens(self, path: str) -> None:
        Notifier({"NOTIFY_SOCKET": path}).ready()
        Notifier({}).stopping()


# Becomes, with the socket at descriptor 3, what systemd starts; says what it was given.
STARTED = """
import os, sys
from pysocksify.errors import ConfigError
from pysocksify.server.systemd import inherited
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
os.environ["LISTEN_FDS"] = sys.argv[2]
try:
    for each in inherited(os.environ):
        print(each.name, each.sock.getsockname(), os.get_inheritable(each.sock.fileno()), each.sock.getblocking())
except ConfigError as error:
    print(error)
print([name for name in os.environ if name.startswith("LISTEN")])
"""


def started(*socks: socket.socket | int, pid_off: int = 0, names: str | None = None) -> list[str]:
    """The lines that STARTED says with these at descriptor 3 and on."""
    fds = [sock if isinstance(sock, int) else sock.fileno() for sock in socks]
    shell = " ".join(f"{3 + index}<&{fd}" for index, fd in enumerate(fds))
    environ = {"PATH": os.environ["PATH"]} | ({} if names is None else {"LISTEN_FDNAMES": names})
    argv = ["bash", "-c", f'exec "$@" {shell}', "bash", sys.executable, "-c", STARTED, str(pid_off), str(len(fds))]
    result = subprocess.run(argv, pass_fds=fds, env=environ, capture_output=True, text=True, timeout=LIMIT, cwd=ROOT)
    assert result.stderr == ""
    return result.stdout.splitlines()


def above(file: socket.socket | BinaryIO) -> int:
    """A duplicate of a file's descriptor that is no number which the shell puts another at."""
    import fcntl

    return fcntl.fcntl(file.fileno(), fcntl.F_DUPFD, 20)


class TestActivation:
    def test_sockets(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as first, socket.socket(socket.AF_UNIX) as second:
            second.bind(str(tmp_path / "s"))
            second.listen()
            fds = [above(first), above(second)]
            lines = started(*fds, names="tcp:unix")
            assert lines == [
                f"tcp {first.getsockname()} False False",
                f"unix {tmp_path / 's'} False False",
                "[]",
            ]
            assert started(*fds, names="tcp")[1].startswith("unknown ")
            assert started(*fds)[0].startswith("unknown ")
            assert started(*fds, pid_off=1) == ["[]"]
            for fd in fds:
                os.close(fd)

    def test_none(self) -> None:
        for environ in ({}, {"LISTEN_PID": str(os.getpid())}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"}):
            assert inherited(environ) == []
            assert environ == {}

    def test_other_files(self) -> None:
        with socket.socket() as idle, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            for sock in (idle, datagrams):
                fd = above(sock)
                reason = "LISTEN_FDS: descriptor 3: is no listening stream socket (ListenStream=)"
                assert started(fd) == [reason, "[]"]
                os.close(fd)
        with open(os.devnull, "rb") as null:
            high = above(null)
            assert "descriptor 3: Socket operation on non-socket" in started(high)[0]
            os.close(high)


def test_units(tmp_path: Path) -> None:
    """systemd finds nothing to complain about, and not much that the service could do."""
    need("systemd-analyze")
    names = ["pysocksify-server.service", "pysocksify-server.socket"]
    for name in names:
        (tmp_path / name).write_text((ROOT / "conf" / name).read_text())
    verify = ("systemd-analyze", "verify", "--man=no", *(f"./{name}" for name in names))
    result = subprocess.run(verify, capture_output=True, text=True, timeout=LIMIT, cwd=tmp_path, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    security = ("systemd-analyze", "security", "--offline=true", "--threshold=20", f"./{names[0]}")
    assert subprocess.run(security, capture_output=True, timeout=LIMIT, cwd=tmp_path, check=False).returncode == 0
