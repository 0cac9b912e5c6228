"""What only a tracer can get wrong: threads that stop, exec, fork and die in their calls. Programs in every state.

In *plain* surroundings seccomp(2) is refused, so that every call stops.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.accounts import Account
from tests.lab.done import Done
from tests.lab.processes import comes_true
from tests.lab.ways import Way
from tests.lab.wrapped import command, finish

DESTINATION = "192.0.2.77"  # of TEST-NET-1 (RFC 5737): reached through the hop, or not at all
PATIENCE = 20.0
SECCOMP = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]

# what all programs begin with
PRELUDE = f"""
import ctypes, os, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.argtypes = [ctypes.c_long] * 7
def call(number, *args):
    result = libc.syscall(number, *args, *[0] * (6 - len(args)))
    return result if result >= 0 else -ctypes.get_errno()
def dial(port=80):
    s = socket.socket()
    s.connect(({DESTINATION!r}, port))
    return s
"""


@pytest.fixture(params=["user", pytest.param("root", marks=pytest.mark.root)])
def account(request: pytest.FixtureRequest) -> Account:
    """Whose programs they are."""
    found: Account = request.getfixturevalue(f"{request.param}_account")
    return found


@pytest.fixture(
    params=["user", pytest.param("user-plain", marks=pytest.mark.root), pytest.param("root", marks=pytest.mark.root)]
)
def way(request: pytest.FixtureRequest) -> Way:
    """Under the ptrace engine, with the filter and without one."""
    account, _, plain = request.param.partition("-")
    if plain:
        request.getfixturevalue("root_only")
    around = "no-seccomp" if plain else ""
    return Way(account=request.getfixturevalue(f"{account}_account"), engine="ptrace", around=around)


class Hop:
    """A SOCKS5 proxy that a test plays by hand (RFC 1928)."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self._connections: list[socket.socket] = []
        self.url = f"socks5://127.0.0.1:{self._listener.getsockname()[1]}"

    def asked(self) -> tuple[socket.socket, int]:
        """The next connection, up to its request, and the port that it asks for."""
        conn, _ = self._listener.accept()
        self._connections.append(conn)
        conn.settimeout(PATIENCE)
        assert conn.recv(3, socket.MSG_WAITALL) == b"\5\1\0"
        conn.sendall(b"\5\0")
        request = conn.recv(10, socket.MSG_WAITALL)
        assert request[:8] == b"\5\1\0\1" + socket.inet_aton(DESTINATION)
        return conn, int.from_bytes(request[8:], "big")

    def grant(self) -> tuple[socket.socket, int]:
        """The next connection, which is made."""
        conn, port = self.asked()
        conn.sendall(b"\5\0\0\1" + bytes(6))
        return conn, port

    def close(self) -> None:
        """Listen no more, and let all connections go."""
        for each in (self._listener, *self._connections):
            each.close()


@pytest.fixture
def hop() -> Iterator[Hop]:
    """A proxy."""
    hop = Hop()
    yield hop
    hop.close()


def words(way: Way, script: str, via: str = "socks5://127.0.0.1:9") -> list[str]:
    """The command line of a script."""
    return command(way, [str(way.account.python), "-c", PRELUDE + script], via=via)


def ended(way: Way, script: str) -> Done:
    """Runs a script to its end; nothing may have been said."""
    done = finish(words(way, script), environment=way.environment)
    assert not done.err, done
    return done


@contextmanager
def going(way: Way, script: str, hop: Hop) -> "Iterator[subprocess.Popen[str]]":
    """A script that goes on, and is killed at the end."""
    process = subprocess.Popen(
        words(way, script, hop.url), stdout=subprocess.PIPE, text=True, env=way.environment, cwd="/"
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def said(process: "subprocess.Popen[str]") -> str:
    """Its next line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def states(pid: int) -> set[str]:
    """The states of a process's threads (proc_pid_stat(5))."""
    found = set()
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/stat", encoding="utf-8") as file:
            found.add(file.read().rpartition(")")[2].split()[0])
    return found


def test_a_thread_waits_and_the_others_go_on(way: Way, hop: Hop) -> None:
    script = """
threading.Thread(target=dial, args=(1,), daemon=True).start()
print(sys.stdin.readline().strip() or "start", flush=True)
dial(2); print("second", flush=True)
os._exit(0)
"""
    with going(way, script, hop) as process:
        ports = {}
        for _ in range(2):
            conn, port = hop.asked()
            ports[port] = conn
        ports[2].sendall(b"\5\0\0\1" + bytes(6))
        assert said(process) == "start"
        assert said(process) == "second"
        assert process.wait(PATIENCE) == 0


def test_exec_while_the_first_thread_waits(way: Way, hop: Hop) -> None:
    """The new program has the first thread's id, which an answer must not reach."""
    script = """
def later():
    sys.stdin.readline()
    os.execv(sys.executable, [sys.executable, "-c", "import sys; print('new', flush=True); print(sys.stdin.read())"])
threading.Thread(target=later).start()
dial()
"""
    process = subprocess.Popen(
        words(way, script, hop.url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=way.environment,
        cwd="/",
    )
    try:
        conn, _ = hop.asked()
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert said(process) == "new"
        conn.sendall(b"\5\0\0\1" + bytes(6))
        out, _ = process.communicate("unharmed", PATIENCE)
        assert (out, process.returncode) == ("unharmed\n", 0)
    finally:
        process.kill()
        process.wait()


def test_exec_by_another_thread_and_connects_after_it(way: Way, hop: Hop) -> None:
    script = f"""
program = '''{PRELUDE}
s = dial(7); print("connected")'''
threading.Thread(target=os.execv, args=(sys.executable, [sys.executable, "-c", program])).start()
time.sleep(60)
"""
    with going(way, script, hop) as process:
        assert hop.grant()[1] == 7
        assert said(process) == "connected"
        assert process.wait(PATIENCE) == 0


def test_killed_in_its_call(way: Way, hop: Hop) -> None:
    script = "print(os.getpid(), flush=True); dial()"
    with going(way, script, hop) as process:
        pid = int(said(process))
        conn, _ = hop.asked()
        os.kill(pid, signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL
        assert conn.recv(1) == b""


def test_a_stop_of_all_threads_while_one_waits(way: Way, hop: Hop) -> None:
    script = """
print(os.getpid(), flush=True)
threading.Thread(target=lambda: (dial(), print("connected", flush=True), os._exit(0))).start()
while True: time.sleep(0.01)
"""
    with going(way, script, hop) as process:
        pid = int(said(process))
        hop.asked()
        os.kill(pid, signal.SIGSTOP)
        assert comes_true(lambda: states(process.pid) == {"T"})
        assert comes_true(lambda: states(pid) == {"t"})
        os.kill(pid, signal.SIGCONT)
        assert comes_true(lambda: "T" not in states(process.pid))
        hop.grant()  # the dial began again on a socket of the supervisor's
        assert said(process) == "connected"
        assert process.wait(PATIENCE) == 0


def test_a_stop_of_all_threads_while_one_receives(way: Way, hop: Hop) -> None:
    script = """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 0))
threading.Thread(target=lambda: (s.recvfrom(10), os._exit(1))).start()
print(os.getpid(), flush=True)
while True: time.sleep(0.01)
"""
    with going(way, script, hop) as process:
        pid = int(said(process))
        for _ in range(2):
            os.kill(pid, signal.SIGSTOP)
            assert comes_true(lambda: states(process.pid) == {"T"} and states(pid) == {"t"})
            os.kill(pid, signal.SIGCONT)
            assert comes_true(lambda: "T" not in states(process.pid))
        assert process.poll() is None


@pytest.mark.parametrize("flags", ["0", "signal.SA_RESTART"], ids=["interrupted", "restarted"])
def test_signals_keep_what_they_tell(way: Way, hop: Hop, flags: str) -> None:
    """si_code and si_value of a queued signal, whose handler ends a wait in connect() or lets it go on."""
    script = f"""
SA_SIGINFO, SA_RESTART = 4, 0x10000000
signal.SA_RESTART = SA_RESTART
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
class Action(ctypes.Structure):
    _fields_ = [("handler", HANDLER), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int), ("_", ctypes.c_void_p)]
def got(number, info, context):
    code = ctypes.c_int.from_address(info + 8).value
    value = ctypes.c_int.from_address(info + 24).value
    os.write(1, b"signal %d %d %d\\n" % (number, code, value))
action = Action(HANDLER(got), flags=SA_SIGINFO | {flags})
assert libc.sigaction(signal.SIGUSR1, ctypes.byref(action), None) == 0
libc.connect.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
s = socket.socket()
print(os.getpid(), flush=True)
name = struct.pack("=H", socket.AF_INET) + struct.pack("!H", 80) + socket.inet_aton({DESTINATION!r}) + bytes(8)
result = libc.connect(s.fileno(), name, 16)
print("result", ctypes.get_errno() if result else 0, flush=True)
"""
    with going(way, script, hop) as process:
        pid = int(said(process))
        hop.asked()
        subprocess.run(["/bin/kill", "-q", "4711", "-USR1", str(pid)], check=True)
        assert said(process) == "signal 10 -1 4711"  # SI_QUEUE
        if flags == "0":
            assert said(process) == "result 4"
        else:
            hop.grant()
            assert said(process) == "result 0"
        assert process.wait(PATIENCE) == 0


def test_a_daemon_stays_traced(way: Way, hop: Hop) -> None:
    script = """
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.read(0, 1)
dial(9).recv(1)
"""
    process = subprocess.Popen(words(way, script, hop.url), stdin=subprocess.PIPE, env=way.environment, cwd="/")
    assert process.wait(PATIENCE) == 0
    assert process.stdin is not None
    process.stdin.close()
    conn, port = hop.grant()
    assert port == 9
    conn.close()


def test_udp_is_confined(way: Way) -> None:
    script = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
print(s.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16), s.getblocking())
def attempt(act, *args):
    try: print(act(*args))
    except OSError as error: print(error.errno)
control = [(socket.IPPROTO_IP, 8, struct.pack("=i4s4s", 2, bytes(4), bytes(4)))]
attempt(s.sendto, b"x", ("{DESTINATION}", 9))
attempt(s.sendmsg, [b"x"], control, 0, ("{DESTINATION}", 9))
attempt(s.setsockopt, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"\\0")
attempt(s.setsockopt, socket.IPPROTO_IP, 35, bytes(12))
moved = os.dup2(s.fileno(), 70); t = socket.socket(fileno=moved)
attempt(t.sendto, b"x", ("{DESTINATION}", 9))
"""
    done = finish(words(way, script), environment=way.environment)
    assert done.out.splitlines() == ["b'lo\\x00' False", "1", "1", "1", "19", "1"], done


def test_messages_that_are_not_datagrams_pass(way: Way) -> None:
    script = """
a, b = socket.socketpair()
socket.send_fds(a, [b"x"], [0]); data, fds, _, _ = socket.recv_fds(b, 1, 1)
print(data, len(fds))
l = socket.create_server(("127.0.0.1", 0)); c = socket.create_connection(l.getsockname()); d, _ = l.accept()
c.sendmsg([b"tcp"]); print(d.recvmsg(10)[0])
"""
    assert ended(way, script).out.splitlines() == ["b'x' 1", "b'tcp'"]


def test_what_would_outrank_or_leave_the_tracer_is_refused(way: Way) -> None:
    script = f"""
print(call({SECCOMP}, 1, 8, 0), call(435, 0, 0), libc.ptrace(0, 0, 0, 0), call(425, 1, 0))
print(call({CLONE}, 0x00800000 | 17, 0) if "plain" in sys.argv else -22)
"""
    plain = bool(way.around)
    argv = [str(way.account.python), "-c", PRELUDE + script, *(["plain"] if plain else [])]
    done = finish(command(way, argv, via="socks5://127.0.0.1:9"), environment=way.environment)
    # EBUSY; clone3() without arguments: EINVAL, where it isn't refused; ptrace(PTRACE_TRACEME); io_uring_setup()
    assert done.out.splitlines() == [f"-16 {-38 if plain else -22} -1 -38", "-22"], done


def test_an_untraced_child_gets_nowhere(account: Account) -> None:
    """clone() with CLONE_UNTRACED: the filter stays on the child, and what stops for a tracer is ENOSYS for it."""
    way = Way(account=account, engine="ptrace")
    script = f"""
child = call({CLONE}, 0x00800000 | 17, 0)
if child == 0:
    try: dial()
    except OSError as error: os._exit(error.errno)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert ended(way, script).out == "38\n"
