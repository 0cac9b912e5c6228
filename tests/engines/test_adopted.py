"""Sockets adopted in a default container, where pidfd_getfd(2) is refused: what programs see of it, and what's kept."""

import errno
import fcntl
import os
import resource
import select
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import addressof, create_string_buffer
from pathlib import Path

import pytest

from pysocksify.kernel import FEATURES, Kernel
from pysocksify.linux import syscall
from tests.engines.confinement import ARCH, CONTAINER, dissolve, each_account, failing, four, run, six
from tests.engines.filtered import NOBODY, PATIENCE, fork
from tests.lab import surroundings

ADOPTING = Kernel(pidfd_getfd=False)
FAR, CLOSED_PORT, SLOW = ("192.0.2.7", 80), ("192.0.2.7", 81), ("192.0.2.7", 82)
SWEPT = 3.0  # seconds within which what is closed must be let go


class OneProxy(socketserver.ThreadingTCPServer):
    """A SOCKS5 proxy (RFC 1928) that refuses port 81, answers late for 82, and is itself every destination: an echo."""

    daemon_threads = True
    request_queue_size = 1000

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Dialogue)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"socks5://127.0.0.1:{self.server_address[1]}"


class Dialogue(socketserver.StreamRequestHandler):
    """One client's: a greeting, a request for an IPv4 or IPv6 address, then what it says is said to it."""

    def handle(self) -> None:
        _, nmethods = self.rfile.read(2)
        self.rfile.read(nmethods)
        self.wfile.write(b"\5\0")
        _, _, _, atyp = self.rfile.read(4)
        self.rfile.read({1: 4, 4: 16}[atyp])
        port = int.from_bytes(self.rfile.read(2), "big")
        if port == SLOW[1]:
            time.sleep(0.3)
        self.wfile.write(bytes((5, 5 if port == CLOSED_PORT[1] else 0, 0, 1, 0, 0, 0, 0, 0, 0)))
        if port != CLOSED_PORT[1]:
            while data := self.request.recv(65536):
                self.request.sendall(data)


@pytest.fixture(scope="module")
def proxy() -> Iterator[str]:
    with OneProxy() as server:
        yield server.url
        server.shutdown()


def talk(sock: socket.socket) -> None:
    """What is sent comes back, after some time."""
    sock.setblocking(True)
    sock.settimeout(PATIENCE)
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"


def wait_for(condition: Callable[[], object]) -> None:
    """Until it holds; for what the supervisor does in its own time."""
    end = time.monotonic() + SWEPT
    while not condition():
        assert time.monotonic() < end, "it doesn't come to pass"
        select.select([], [], [], 0.02)


def kept() -> int:
    """How many sockets the supervisor, our parent here, has."""
    folder = f"/proc/{os.getppid()}/fd"
    links = []
    for name in os.listdir(folder):
        try:
            links.append(os.readlink(f"{folder}/{name}"))
        except FileNotFoundError:
            continue
    return sum(link.startswith("socket:") for link in links)


@contextmanager
def child(act: Callable[[], None]) -> Iterator[None]:
    """A process beside, which must end well."""
    pid = fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    yield
    assert os.waitpid(pid, 0)[1] == 0


each_kernel = pytest.mark.parametrize("kernel", [ADOPTING, CONTAINER], ids=["enclosure", "container"])


class TestMaking:
    @each_account
    def test_as_asked(self, uid: int) -> None:
        def act() -> None:
            for family in (four, six):
                for proto in (0, socket.IPPROTO_TCP):
                    with socket.socket(family, socket.SOCK_STREAM, proto) as sock:
                        assert sock.family == family
                        assert sock.type == socket.SOCK_STREAM
            for kind, blocking, close_on_exec in (
                (0, True, False),
                (socket.SOCK_NONBLOCK, False, False),
                (socket.SOCK_CLOEXEC, True, True),
                (socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, False, True),
            ):
                fd = syscall(ARCH.socket, four, socket.SOCK_STREAM | kind, 0)
                assert os.get_blocking(fd) is blocking
                assert bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC) is close_on_exec
                os.close(fd)

        run(uid, act, kernel=ADOPTING)

    def test_the_lowest_number_and_the_kernels_own_errors(self) -> None:
        def act() -> None:
            null = os.open("/dev/null", os.O_RDONLY)
            os.close(null)
            assert syscall(ARCH.socket, four, socket.SOCK_STREAM, 0) == null
            with failing(errno.EINVAL):
                syscall(ARCH.socket, four, socket.SOCK_STREAM | 0x100, 0)
            with failing(errno.EPROTONOSUPPORT):
                syscall(ARCH.socket, four, socket.SOCK_STREAM, socket.IPPROTO_UDP)

        run(os.geteuid(), act, said="can't be carried", kernel=ADOPTING)

    def test_a_program_that_may_have_no_more(self) -> None:
        def act() -> None:
            highest = max(map(int, os.listdir("/proc/self/fd")))
            while os.dup(0) < highest:  # there may be free numbers between those that other tests' fixtures have
                continue
            least = syscall(ARCH.socket, four, socket.SOCK_STREAM, 0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (least + 3, least + 3))
            for fd in (least + 1, least + 2):
                assert syscall(ARCH.socket, four, socket.SOCK_STREAM, 0) == fd
            with failing(errno.EMFILE):
                syscall(ARCH.socket, four, socket.SOCK_STREAM, 0)

        run(os.geteuid(), act, kernel=ADOPTING)


class TestConnecting:
    @each_account
    @each_kernel
    def test_blocking(self, uid: int, kernel: Kernel, proxy: str) -> None:
        def act() -> None:
            with socket.socket() as sock:
                sock.connect(FAR)
                assert sock.getpeername() == FAR
                with failing(errno.EISCONN):
                    sock.connect(FAR)
                talk(sock)

        run(uid, act, kernel=kernel, proxy=proxy)

    @each_account
    def test_a_failure_and_once_more(self, uid: int, proxy: str) -> None:
        def act() -> None:
            with socket.socket() as sock:
                for _ in range(2):
                    with failing(errno.ECONNREFUSED):
                        sock.connect(CLOSED_PORT)
                    with failing(errno.ENOTCONN):
                        sock.getpeername()
                sock.connect(FAR)
                talk(sock)

        run(uid, act, said="refused", kernel=ADOPTING, proxy=proxy)

    @each_account
    @pytest.mark.parametrize("edge", [0, select.EPOLLET])
    def test_non_blocking(self, uid: int, proxy: str, edge: int) -> None:
        def act() -> None:
            poller = select.epoll()
            with socket.socket() as sock:
                sock.setblocking(False)
                poller.register(sock, select.EPOLLIN | select.EPOLLOUT | edge)
                poller.poll(0)
                assert sock.connect_ex(SLOW) == errno.EINPROGRESS
                assert sock.connect_ex(SLOW) == errno.EALREADY
                with failing(errno.ENOTCONN):
                    sock.getpeername()
                (event,) = poller.poll(PATIENCE)
                assert event == (sock.fileno(), select.EPOLLOUT)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                assert sock.getpeername() == SLOW
                assert sock.connect_ex(SLOW) == 0
                assert sock.connect_ex(SLOW) == errno.EISCONN
                talk(sock)
                assert sock.getpeername() == SLOW

        run(uid, act, kernel=ADOPTING, proxy=proxy)

    @each_account
    @each_kernel
    def test_no_other_peer_is_seen_on_the_way(self, uid: int, kernel: Kernel, proxy: str) -> None:
        def act() -> None:
            for _ in range(100):
                with socket.socket() as sock:
                    sock.setblocking(False)
                    assert sock.connect_ex(FAR) == errno.EINPROGRESS
                    seen = None
                    while seen is None:
                        with suppress(OSError):
                            seen = sock.getpeername()
                    assert seen == FAR

        run(uid, act, kernel=kernel, proxy=proxy)

    def test_a_non_blocking_failure(self, proxy: str) -> None:
        def act() -> None:
            with socket.socket(six) as sock:
                sock.setblocking(False)
                assert sock.connect_ex(("2001:db8::1", CLOSED_PORT[1])) == errno.EINPROGRESS
                poller = select.poll()
                poller.register(sock, select.POLLOUT)
                assert poller.poll(1000 * PATIENCE)[0][1] & (select.POLLERR | select.POLLHUP)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
                sock.setblocking(True)
                sock.connect(("2001:db8::1", 80))
                talk(sock)

        run(os.geteuid(), act, said="refused", kernel=ADOPTING, proxy=proxy)

    @each_account
    def test_directly_without_waiting(self, uid: int, proxy: str) -> None:
        """What is direct and doesn't block is the kernel's: it's let go when it stands."""

        def act() -> None:
            server = socket.create_server(("127.0.0.1", 0))
            with socket.socket() as sock:
                sock.setblocking(False)
                assert sock.connect_ex(server.getsockname()) == errno.EINPROGRESS
                end, _ = server.accept()
                assert sock.connect_ex(server.getsockname()) == 0
                assert sock.connect_ex(server.getsockname()) == errno.EISCONN
                assert sock.getpeername() == server.getsockname()
                assert end.getpeername() == sock.getsockname()
            end.settimeout(PATIENCE)
            assert end.recv(1) == b""

        run(uid, act, kernel=ADOPTING, proxy=proxy)

    def test_the_programs_close_closes(self, proxy: str) -> None:
        def act() -> None:
            server = socket.create_server(("127.0.0.1", 0))
            server.settimeout(PATIENCE)
            with socket.create_connection(server.getsockname()):
                end, _ = server.accept()
                end.settimeout(PATIENCE)
            assert end.recv(1) == b""

        run(os.geteuid(), act, kernel=ADOPTING, proxy=proxy)

    def test_a_send_that_connects(self, proxy: str) -> None:
        def act() -> None:
            with socket.socket() as sock:
                assert sock.sendto(b"first", socket.MSG_FASTOPEN, FAR) == 5
                assert sock.recv(5) == b"first"
                assert sock.getpeername() == FAR
                with failing(errno.EISCONN):
                    sock.sendto(b"second", socket.MSG_FASTOPEN, FAR)
                talk(sock)

        run(os.geteuid(), act, kernel=ADOPTING, proxy=proxy)

    def test_a_signal_while_it_waits(self, proxy: str) -> None:
        def act() -> None:
            heard: list[int] = []
            signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with socket.socket() as sock:  # Python polls after EINTR
                sock.connect(SLOW)
                assert heard
                assert sock.getpeername() == SLOW
                talk(sock)

        run(os.geteuid(), act, kernel=ADOPTING, proxy=proxy)

    @each_account
    @pytest.mark.parametrize("feature", FEATURES)
    def test_with_less_of_the_kernel(self, uid: int, feature: str, proxy: str) -> None:
        def act() -> None:
            for blocking in (True, False):
                with socket.socket() as sock:
                    sock.setblocking(blocking)
                    sock.connect_ex(FAR)
                    select.select([], [sock], [], PATIENCE)
                    assert sock.getpeername() == FAR
                    talk(sock)

        run(uid, act, kernel=ADOPTING.without([feature]), proxy=proxy)


class TestSharing:
    """A socket is known by its inode, whatever its number and its process."""

    @each_account
    def test_dup_and_fork(self, uid: int, proxy: str) -> None:
        def act() -> None:
            sock = socket.socket()
            other = sock.dup()
            sock.close()
            with child(lambda: other.connect(FAR)):
                pass
            assert other.getpeername() == FAR
            talk(other)

        run(uid, act, kernel=ADOPTING, proxy=proxy)

    @each_account
    def test_sent_to_another_program(self, uid: int, proxy: str) -> None:
        def act() -> None:
            ours, theirs = socket.socketpair()

            def receive() -> None:
                _, (fd,), _, _ = socket.recv_fds(theirs, 1, 1)
                with socket.socket(fileno=fd) as sock:
                    sock.connect(FAR)
                    talk(sock)

            sock = socket.socket()
            socket.send_fds(ours, [b"x"], [sock.fileno()])
            sock.close()
            for _ in range(70):  # it's swept while the socket is on its way
                socket.socket().close()
            with child(receive):
                pass

        run(uid, act, kernel=ADOPTING, proxy=proxy)

    def test_threads(self, proxy: str) -> None:
        def act() -> None:
            failures: list[BaseException] = []

            def several() -> None:
                try:
                    for _ in range(20):
                        with socket.create_connection(FAR, PATIENCE) as sock:
                            talk(sock)
                except BaseException as failure:
                    failures.append(failure)

            threads = [threading.Thread(target=several) for _ in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failures

        run(os.geteuid(), act, kernel=ADOPTING, proxy=proxy)

    def test_exec(self, proxy: str) -> None:
        code = f"import socket; s = socket.socket(fileno=9); s.connect({FAR}); print(s.getpeername()); s.close()"

        def act() -> None:
            with socket.socket() as sock:
                os.dup2(sock.fileno(), 9)
            os.execv("/usr/bin/python3", ["python3", "-c", code])

        run(os.geteuid(), act, kernel=ADOPTING, proxy=proxy)

    def test_after_the_first_thread_has_ended(self, proxy: str) -> None:
        def act() -> None:
            ended = threading.Event()

            def rest() -> None:
                main = f"/proc/{os.getpid()}/status"
                while "State:\tZ" not in open(main, encoding="utf-8").read():  # noqa: SIM115
                    time.sleep(0.001)
                try:
                    unused = [socket.socket() for _ in range(70)]
                    sock = unused[3]
                    sock.connect(FAR)
                    talk(sock)
                    time.sleep(1.2)  # a sweep on time
                    unused[5].connect(FAR)
                    talk(unused[5])
                    os._exit(0)
                finally:
                    os._exit(1)

            threading.Thread(target=rest).start()
            ended.set()
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            syscall(60 if os.uname().machine == "x86_64" else 93)  # exit(2): this thread's end

        run(os.geteuid(), act, kernel=ADOPTING, proxy=proxy)


WRAPPED = ["-m", "pysocksify", "--engine", "seccomp", "-p"]
IN_A_CONTAINER = [sys.executable, surroundings.__file__, "docker", sys.executable, *WRAPPED]
SWITCH = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
AS_PROCESS_1 = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
TALK = f"""
import socket, time
unused = socket.socket()
for blocking in True, False:
    with socket.socket() as sock:
        sock.setblocking(blocking)
        sock.connect_ex({FAR})
        sock.setblocking(True)
        time.sleep(1.2 * blocking)
        while True:
            try:
                print(*sock.getpeername())
                break
            except OSError:
                time.sleep(0.01)
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
unused.connect({FAR})
print(*unused.getpeername())
unused.close()
print(socket.getaddrinfo("example.com", 80)[0][4][0])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which gives its privileges up")
class TestRootInAContainer:
    """Without CAP_SYS_PTRACE it may look only into what is its own; programs change their users there all the time."""

    @pytest.mark.parametrize("before", [[], AS_PROCESS_1], ids=["", "process 1"])
    @pytest.mark.parametrize("switch", [[], SWITCH], ids=["root", "another user"])
    def test_whole_programs(self, before: list[str], switch: list[str], proxy: str) -> None:
        command = [*before, *IN_A_CONTAINER, proxy, *switch, "/usr/bin/python3", "-c", TALK]
        folder = Path(surroundings.__file__).parents[2]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=folder, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("\n")[:3] == [f"{FAR[0]} {FAR[1]}"] * 3
        assert done.stdout.split()[-1].startswith("198.18.")

    def test_one_that_closes_itself_is_refused(self, proxy: str) -> None:
        code = f"import os, socket; os.setgid({NOBODY}); os.setuid({NOBODY}); socket.socket().connect({FAR})"
        command = [*IN_A_CONTAINER, proxy, "/usr/bin/python3", "-c", code]
        folder = Path(surroundings.__file__).parents[2]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=folder, check=False)
        assert "PermissionError: [Errno 13]" in done.stderr
        assert "has made itself unreadable" in done.stderr


class TestServing:
    @each_account
    def test_who_listens_and_who_is_accepted(self, uid: int, proxy: str) -> None:
        def act() -> None:
            for backlog in (5, -1):
                with socket.socket() as listener:
                    listener.bind(("127.0.0.1", 0))
                    syscall(ARCH.listen, listener.fileno(), backlog & 0xFFFFFFFF)
                    listener.listen(7)
                    with failing(errno.EISCONN):
                        listener.connect(FAR)
                    with failing(errno.ENOTCONN):
                        listener.getpeername()
                    with socket.create_connection(listener.getsockname()) as sock:
                        end, name = listener.accept()
                        assert end.getpeername() == sock.getsockname() == name
                        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                        end.close()
                        assert sock.recv(1) == b""

        run(uid, act, kernel=ADOPTING, proxy=proxy)

    def test_the_kernels_own_errors(self) -> None:
        def act() -> None:
            with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as sock:
                with failing(errno.EADDRINUSE):
                    sock.bind(server.getsockname())
                sock.bind(("127.0.0.1", 0))
                with failing(errno.EINVAL):
                    sock.bind(("127.0.0.1", 0))
            for call in (ARCH.bind, ARCH.listen, ARCH.connect, ARCH.getpeername):
                for fd, number in ((99, errno.EBADF), (-1, errno.EBADF), (os.open("/dev/null", 0), errno.ENOTSOCK)):
                    with failing(number):
                        syscall(call, fd, 0, 0)

        run(os.geteuid(), act, kernel=ADOPTING)

    def test_unix_sockets_are_the_kernels(self) -> None:
        def act() -> None:
            with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as sock:
                server.bind("\0test of adopted sockets")
                server.listen()
                sock.connect(server.getsockname())
                assert sock.getpeername() == server.getsockname()
                with failing(errno.ECONNREFUSED), socket.socket(socket.AF_UNIX) as nscd:
                    nscd.connect("/run/nscd/socket")
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
                netlink.bind((0, 0))
                netlink.connect((0, 0))

        run(os.geteuid(), act, kernel=ADOPTING)


class TestFromElsewhere:
    """Sockets that weren't made by the supervisor, and those that it has let go."""

    @each_account
    def test_one_from_the_start(self, uid: int, proxy: str) -> None:
        inherited, datagram = socket.socket(), socket.socket(four, socket.SOCK_DGRAM)

        def act() -> None:
            for sock in (inherited, datagram):
                for sockaddr in (FAR, ("127.0.0.1", 1)):
                    with failing(errno.EPERM):
                        sock.connect(sockaddr)
            with failing(errno.EPERM):
                inherited.sendto(b"x", socket.MSG_FASTOPEN, FAR)

        with inherited, datagram:
            run(uid, act, said="made elsewhere", kernel=CONTAINER, proxy=proxy)

    def test_an_accepted_one(self, proxy: str) -> None:
        def act() -> None:
            with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
                end, _ = server.accept()
                with failing(errno.EPERM):
                    dissolve(end)
                with failing(errno.EPERM):
                    end.connect(FAR)
                end.close()

        run(os.geteuid(), act, said="made elsewhere", kernel=ADOPTING, proxy=proxy)

    def test_one_that_stands_isnt_dissolved(self, proxy: str) -> None:
        def act() -> None:
            with socket.create_connection(FAR) as sock:
                with failing(errno.EOPNOTSUPP):
                    dissolve(sock)
                talk(sock)

        run(os.geteuid(), act, said="can't be dissolved", kernel=ADOPTING, proxy=proxy)

    def test_one_that_doesnt_yet_is(self, proxy: str) -> None:
        def act() -> None:
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.connect_ex(SLOW)
                dissolve(sock)
                assert sock.connect_ex(FAR) == errno.EINPROGRESS
                select.select([], [sock], [], PATIENCE)
                assert sock.getpeername() == FAR
                talk(sock)

        run(os.geteuid(), act, kernel=ADOPTING, proxy=proxy)


class TestKeeping:
    """What the supervisor has of them: no more than it must."""

    @each_kernel
    def test_three_thousand_closed_ones(self, kernel: Kernel) -> None:
        def act() -> None:
            before = kept()
            for _ in range(3000):
                socket.socket().close()
            assert kept() < before + 64 + 256 + 2
            wait_for(lambda: kept() <= before)

        run(os.geteuid(), act, kernel=kernel)

    def test_those_in_use_stay(self, proxy: str) -> None:
        def act() -> None:
            before = kept()
            socks = [socket.socket() for _ in range(200)]
            assert 190 < kept() - before <= 200
            for _ in range(300):
                socket.socket().close()
            wait_for(lambda: kept() <= before + 200)
            socks[0].connect(FAR)
            socks[199].connect(FAR)
            wait_for(lambda: kept() <= before + 198)

        run(os.geteuid(), act, kernel=ADOPTING, proxy=proxy)

    def test_those_that_stand_or_failed_are_let_go(self, proxy: str) -> None:
        def act() -> None:
            before = kept()
            for address in (FAR, CLOSED_PORT) * 20:
                sock = socket.socket()
                sock.connect_ex(address)
                sock.close()
            wait_for(lambda: kept() <= before)

        run(os.geteuid(), act, said="refused", kernel=ADOPTING, proxy=proxy)

    @each_account
    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    @each_kernel
    def test_no_port_stays_taken(self, uid: int, kind: int, kernel: Kernel) -> None:
        def act() -> None:
            name = ("127.0.0.1", 0)
            for _ in range(20):
                with socket.socket(four, kind) as sock:
                    sock.bind(name)
                    name = sock.getsockname()

            def bind() -> None:
                with socket.socket(four, kind) as sock:
                    sock.bind(name)

            for _ in range(3):
                with child(bind):
                    pass

        run(uid, act, kernel=kernel)

    def test_a_process_that_ended_leaves_nothing(self) -> None:
        def act() -> None:
            before = kept()

            def leave() -> None:
                for _ in range(10):
                    fd = syscall(ARCH.socket, four, socket.SOCK_STREAM, 0)
                    sockaddr = create_string_buffer(struct.pack("=H", four) + bytes(14))
                    syscall(ARCH.bind, fd, addressof(sockaddr), 16)

            with child(leave):
                pass
            wait_for(lambda: kept() <= before)

        run(os.geteuid(), act, kernel=ADOPTING)
