"""`--engine python`: whole runs of Python programs, and of what starts them, through a proxy on loopback."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.engines.python import servers
from tests.engines.python.servers import ECHO
from tests.lab.scripted import ScriptedProxy

TALK = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3]) if sys.argv[3:] else None)
sock.sendall(b"hello")
print(sock.recv(5).decode(), socket.gethostbyaddr(sock.getpeername()[0])[0], flush=True)
"""
TALKED = f"hello {ECHO}\n"
REFUSED_STATUS = 126


class Wrapped:
    """Runs commands under the engine, in a folder with `talk.py`."""

    def __init__(self, url: str, port: int, folder: Path) -> None:
        self.url = url
        self.port = str(port)
        self.folder = folder
        (folder / "talk.py").write_text(TALK, encoding="utf-8")

    def __call__(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "pysocksify", "--engine", "python", "-p", self.url, *words]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=40,
            cwd=self.folder,
            env={**os.environ, **environment},
            check=False,
        )

    def python(self, code: str, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return self(sys.executable, "-c", code, *words, **environment)


@pytest.fixture
def wrapped(url: str, echo: servers.Echo, tmp_path: Path) -> Wrapped:
    """How a command is run."""
    return Wrapped(url, echo.port, tmp_path)


@pytest.mark.parametrize("limit", [[], ["5"]])
def test_a_program(limit: list[str], wrapped: Wrapped, proxy: ScriptedProxy) -> None:
    done = wrapped(sys.executable, "talk.py", ECHO, wrapped.port, *limit)
    assert (done.returncode, done.stdout, done.stderr) == (0, TALKED, "")
    assert [one.host for one in proxy.asked] == [ECHO]


def test_failures_and_what_is_said(wrapped: Wrapped) -> None:
    done = wrapped(sys.executable, "talk.py", servers.UNREACHABLE, wrapped.port)
    assert "OSError: [Errno 113]" in done.stderr
    assert f"pysocksify: {servers.UNREACHABLE}:{wrapped.port}: {wrapped.url}: request: " in done.stderr


def test_a_shell_and_what_it_starts(wrapped: Wrapped) -> None:
    done = wrapped("sh", "-c", f"{sys.executable} talk.py {ECHO} {wrapped.port}")
    assert (done.returncode, done.stdout) == (0, TALKED)
    assert "sh isn't Python itself: only the Python programs that it starts go through the proxy" in done.stderr


def test_every_way_to_start_another_python(wrapped: Wrapped) -> None:
    code = f"""
import os, subprocess, sys
words = [sys.executable, "talk.py", "{ECHO}", "{wrapped.port}"]
line = " ".join(words)
subprocess.run(words)
subprocess.run(words, env={{}})
subprocess.run(words, env={{b"PYTHONPATH": b"/nowhere"}})
subprocess.run(line, shell=True)
os.system(line)
print(os.popen(line).read(), end="", flush=True)
os.waitpid(os.posix_spawn(words[0], words, {{}}), 0)
os.spawnv(os.P_WAIT, words[0], words)
os.environ.clear()
os.system(line)
os.execve(words[0], words, {{}})
"""
    done = wrapped.python(code)
    assert done.stdout == TALKED * 10
    said = "pysocksify: /bin/sh isn't Python itself: only the Python programs that it starts go through the proxy"
    assert done.stderr.splitlines() == [said]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, wrapped: Wrapped) -> None:
    program = wrapped.folder / "parallel.py"
    program.write_text(
        f"""
import multiprocessing, runpy, sys
def work():
    sys.argv = ["talk.py", "{ECHO}", "{wrapped.port}"]
    runpy.run_path("talk.py")
if __name__ == "__main__":
    process = multiprocessing.get_context("{method}").Process(target=work)
    process.start()
    process.join()
    sys.exit(process.exitcode)
""",
        encoding="utf-8",
    )
    done = wrapped(sys.executable, "parallel.py")
    assert (done.returncode, done.stdout) == (0, TALKED), done.stderr


def test_another_environment_sees_nothing_of_ours(wrapped: Wrapped, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    code = "import sys; print(sys.path, sorted(sys.modules)); import pysocksify"
    done = wrapped(str(folder / "bin" / "python"), "-c", code)
    assert "pysocksify" not in done.stdout
    assert "No module named 'pysocksify'" in done.stderr
    done = wrapped(str(folder / "bin" / "python"), "talk.py", ECHO, wrapped.port)
    assert (done.stdout, done.stderr) == (TALKED, "")


def test_the_programs_own_sitecustomize_and_path(wrapped: Wrapped, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("print('mine', __file__)", encoding="utf-8")
    code = "import sitecustomize, sys; print(sitecustomize.__file__, sys.path[1])"
    done = wrapped.python(code, PYTHONPATH=str(own))
    mine = f"mine {own}/sitecustomize.py\n"
    assert done.stdout == f"{mine}{mine}{own}/sitecustomize.py {own}\n", "once in the wrapper itself"
    (own / "sitecustomize.py").write_text("import no_such_module", encoding="utf-8")
    done = wrapped.python("print('goes on')", PYTHONPATH=str(own))
    assert "no_such_module" in done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["ls"], "it is not a Python program"),
        ([sys.executable, "-I", "talk.py"], "Python with -I leaves out what this engine puts in"),
        (["env", "-i", sys.executable], "env with -i may change what this engine needs"),
    ],
)
def test_programs_that_are_not_run(words: list[str], reason: str, wrapped: Wrapped) -> None:
    done = wrapped(*words)
    assert (done.returncode, done.stdout) == (REFUSED_STATUS, "")
    assert done.stderr.rstrip().endswith(reason)


def test_programs_that_are_not_started(wrapped: Wrapped) -> None:
    code = """
import os, subprocess, sys
def tried(call):
    try:
        call()
        print("started")
    except PermissionError as error:
        print(error.errno, error.filename)
tried(lambda: subprocess.run(["ls"]))
tried(lambda: subprocess.run(["ls"]))
tried(lambda: subprocess.run([sys.executable, "-E"]))
tried(lambda: os.execvp("ls", ["ls"]))
tried(lambda: os.posix_spawnp("ls", ["ls"], os.environ))
"""
    done = wrapped.python(code)
    assert "started" not in done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"13"}
    said = [line for line in done.stderr.splitlines() if "Python with -E" in line]
    assert len(said) == 1
    assert "it is not a Python program" in done.stderr


def test_a_python_that_was_not_given_the_supervisor_does_not_run(wrapped: Wrapped) -> None:
    done = wrapped("sh", "-c", f"unset PYSOCKSIFY_HANDOVER; {sys.executable} talk.py {ECHO} {wrapped.port}")
    assert (done.returncode, done.stdout) == (REFUSED_STATUS, "")
    assert "the environment doesn't say where the supervisor is" in done.stderr


def test_it_stands_aside_for_another_engine(wrapped: Wrapped, proxy: ScriptedProxy) -> None:
    code = f"PYSOCKSIFY_HANDOVER= {sys.executable} talk.py 127.0.0.1 {wrapped.port}"
    done = wrapped("sh", "-c", code)
    assert done.stdout.startswith("hello")
    assert proxy.asked == []


def test_uvloop_is_refused(wrapped: Wrapped) -> None:
    done = wrapped.python("import uvloop")
    assert done.returncode == 1
    assert "ImportError" in done.stderr or "UvloopRefused" in done.stderr
    assert "use asyncio's own event loop" in done.stderr


def test_a_block_inside_goes_through_the_wrappers_chain(wrapped: Wrapped, echo: servers.Echo) -> None:
    with servers.proxy() as outer_only:
        code = f"""
import pysocksify, runpy, sys
sys.argv = ["talk.py", "{ECHO}", "{echo.port}"]
with pysocksify.socksify("socks5://{ECHO}:{outer_only.port}"):
    runpy.run_path("talk.py")
"""
        done = wrapped.python(code)
        assert (done.stdout, done.stderr) == (TALKED, "")
        assert [one.host for one in outer_only.asked] == [ECHO]


def test_pysocksify_inside_is_refused(wrapped: Wrapped) -> None:
    done = wrapped(sys.executable, "-m", "pysocksify", "-p", "socks5://127.0.0.1:1", sys.executable, "talk.py")
    assert done.returncode == REFUSED_STATUS
    assert "pysocksify doesn't work inside its own python engine" in done.stderr


def test_the_program_is_gone_and_its_relays_are_through(wrapped: Wrapped, echo: servers.Echo) -> None:
    """What was written right before the end arrives."""
    code = f"""
import socket
sock = socket.create_connection(("{ECHO}", {echo.port}), timeout=5)
sock.sendall(b"x" * 500_000)
sock.shutdown(socket.SHUT_WR)
size = 0
while data := sock.recv(65536):
    size += len(data)
print(size)
"""
    assert wrapped.python(code).stdout == "500000\n"
