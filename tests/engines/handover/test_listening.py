"""The supervisor's end of the handover, asked over real sockets by a caller written from `wire`'s text by hand."""

import array
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysocksify import config
from pysocksify.engines.handover import listening as module
from pysocksify.engines.handover import wire
from pysocksify.engines.handover.listening import HandoverCall, Listening
from pysocksify.kernel import Kernel
from pysocksify.options import Options
from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.supervisor.calls import CallRefused, Signalled
from pysocksify.supervisor.core import Supervisor
from tests.supervisor.holds import HOLDS

TOKEN = bytes(range(16))
PATIENCE = 10.0
QUERY = b"\x12\x34\1\0\0\1\0\0\0\0\0\0\4name\7example\0\0\1\0\1"


def sockaddr(host: str, port: int) -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


class Lab:
    """A supervisor whose one hop accepts and keeps silent, and callers of it."""

    def __init__(self, *, executed: module.Executed | None = None, dns: str = "fake") -> None:
        self.lines: list[str] = []
        self.reactor = Reactor()
        self.hop = socket.create_server(("127.0.0.1", 0))
        url = f"socks5://127.0.0.1:{self.hop.getsockname()[1]}"
        settings = config.load(Options(proxies=(url,), dns=dns, command=("true",)), {})
        self.report = Report(self.lines.append)
        self.supervisor = Supervisor(
            self.reactor, settings, self.report, Kernel(), os.getpid(), set(), signalled=Signalled.TOLD,
            programs=lambda: [os.getpid()],
        )  # fmt: skip
        self.supervisor._connections._beside._holds = HOLDS
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.listener.bind("")
        self.listener.listen()
        self.listening = Listening(self.reactor, self.supervisor, self.report, self.listener, TOKEN, executed=executed)
        self.callers: list[socket.socket] = []

    def call(self) -> socket.socket:
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        caller.connect(self.listener.getsockname())
        self.callers.append(caller)
        return caller

    def send(self, op: int, payload: bytes = b"", *, fd: int | None = None, token: bytes = TOKEN) -> socket.socket:
        caller = self.call()
        packet = struct.pack("=IIiI", 0x70736B31, op, 4242, len(payload)) + token + payload
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        caller.sendmsg([packet], rights)
        return caller

    def run_until(self, done: Callable[[], object]) -> None:
        end = self.reactor.now() + PATIENCE
        while not done():
            assert self.reactor.now() < end
            self.reactor.call_at(self.reactor.now() + 0.01, lambda: None)
            self.reactor.run_once()

    def heard(self, caller: socket.socket) -> tuple[int, int, bytes, list[int]] | None:
        """Error, verdict, payload and descriptors of the reply; None when the connection just ended."""
        self.run_until(lambda: select.select([caller], [], [], 0)[0])
        packet, ancillary, _, _ = caller.recvmsg(65536, socket.CMSG_SPACE(8))
        if not packet:
            return None
        error, verdict, length = struct.unpack_from("=iII", packet)
        assert length == len(packet) - 12
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        return error, verdict, packet[12:], list(fds)

    def ask(self, op: int, payload: bytes = b"", *, fd: int | None = None) -> tuple[int, int, bytes, list[int]]:
        reply = self.heard(self.send(op, payload, fd=fd))
        assert reply is not None
        return reply

    def close(self) -> None:
        """A supervisor ends with its process; here it's taken apart."""
        supervisor = self.supervisor
        for connection in list(supervisor._connections._pending):
            supervisor._connections.forget(connection)
        if supervisor._responder is not None:
            supervisor._responder.close()
        if supervisor._enclosure is not None:
            supervisor._enclosure.close()
        if supervisor._confined is not None:
            supervisor._confined.close()
        self.listening.close()
        for each in (*self.callers, self.listener, self.hop):
            each.close()
        self.reactor.close()


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    made = Lab(**getattr(request, "param", {}))
    yield made
    made.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestStrangers:
    """Who hasn't the token gets no word, and nothing of theirs stays."""

    @pytest.mark.parametrize(
        "packet",
        [
            struct.pack("=IIiI", 0x70736B31, wire.NAME, 1, 4) + bytes(16) + bytes(4),
            struct.pack("=IIiI", 0x70736B31, wire.NAME, 1, 9) + TOKEN + bytes(4),
            b"GET / HTTP/1.0\r\n\r\n",
            bytes(40000),
        ],
        ids=["token", "length", "text", "large"],
    )
    def test_what_they_say(self, lab: Lab, packet: bytes) -> None:
        before = open_files()
        caller = lab.call()
        with socket.socket() as sock:
            caller.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()] * 3))])
        assert lab.heard(caller) is None
        assert open_files() == before + 1

    def test_the_end_without_a_word(self, lab: Lab) -> None:
        before = open_files()
        caller = lab.call()
        lab.run_until(lambda: open_files() == before + 2)
        caller.close()
        lab.run_until(lambda: open_files() == before)

    def test_too_many(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "STRANGERS", 3)
        callers = [lab.call() for _ in range(4)]
        assert lab.heard(callers[0]) is None
        callers[3].send(struct.pack("=IIiI", 0x70736B31, 99, 1, 0) + TOKEN)
        assert lab.heard(callers[3]) == (errno.ENOSYS, wire.ANSWER, b"", [])


class TestConnect:
    """CONNECT and what is asked of a socket after it."""

    def test_to_this_machine(self, lab: Lab) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as sock:
            port = server.getsockname()[1]
            assert lab.ask(wire.CONNECT, sockaddr("127.0.0.1", port), fd=sock.fileno())[0] == 0
            assert sock.getpeername() == ("127.0.0.1", port)
            name = lab.ask(wire.PEER, fd=sock.fileno())
            assert name[:3] == (0, wire.ANSWER, sockaddr("127.0.0.1", port))
            assert lab.ask(wire.ERROR, fd=sock.fileno())[:2] == (0, wire.PROCEED)
            assert lab.ask(wire.CONNECT, sockaddr("127.0.0.1", port), fd=sock.fileno())[0] == errno.EISCONN

    def test_refused(self, lab: Lab) -> None:
        with socket.socket() as closed, socket.socket() as sock:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
            assert lab.ask(wire.CONNECT, sockaddr("127.0.0.1", port), fd=sock.fileno())[0] == errno.ECONNREFUSED

    @pytest.mark.parametrize(
        ("payload", "error"),
        [(b"", errno.EINVAL), (bytes(200), errno.EINVAL), (struct.pack("=H", 99) + bytes(26), errno.EAFNOSUPPORT)],
    )
    def test_no_address(self, lab: Lab, payload: bytes, error: int) -> None:
        with socket.socket() as sock:
            assert lab.ask(wire.CONNECT, payload, fd=sock.fileno())[0] == error

    def test_a_signal_ends_the_wait(self, lab: Lab) -> None:
        with socket.socket() as sock:
            caller = lab.send(wire.CONNECT, sockaddr("198.51.100.7", 80), fd=sock.fileno())
            lab.run_until(lambda: select.select([lab.hop], [], [], 0)[0])
            assert not select.select([caller], [], [], 0)[0]
            caller.send(struct.pack("=IIiI", 0x70736B31, wire.INTERRUPTED, 4242, 0) + TOKEN)
            assert lab.heard(caller) == (errno.EINTR, wire.ANSWER, b"", [])
            sock.setblocking(False)
            assert lab.ask(wire.CONNECT, sockaddr("198.51.100.7", 80), fd=sock.fileno())[0] == errno.EALREADY

    def test_a_caller_that_goes(self, lab: Lab) -> None:
        calls: list[HandoverCall] = []
        begin = lab.supervisor.connect

        def connect(call: HandoverCall, sock: socket.socket, payload: bytes) -> None:
            calls.append(call)
            begin(call, sock, payload)

        lab.supervisor.connect = connect  # type: ignore[method-assign, assignment]
        with socket.socket() as sock:
            caller = lab.send(wire.CONNECT, sockaddr("198.51.100.7", 80), fd=sock.fileno())
            lab.run_until(lambda: calls)
            assert calls[0].waits()
            assert calls[0].tid == os.getpid()
            caller.close()
            assert not calls[0].waits()
            lab.run_until(lambda: calls[0]._connection is None)
            assert not calls[0].answer(0)

    def test_held(self, lab: Lab) -> None:
        with socket.socket() as sock:
            sock.setblocking(False)
            assert lab.ask(wire.CONNECT, sockaddr("198.51.100.7", 80), fd=sock.fileno())[0] == errno.EINPROGRESS
            lab.run_until(lambda: select.select([lab.hop], [], [], 0)[0])
            hop, _ = lab.hop.accept()
            lab.run_until(lambda: select.select([hop], [], [], 0)[0])
            hop.recv(3)
            hop.send(b"\5\0")
            lab.run_until(lambda: select.select([hop], [], [], 0)[0])
            hop.recv(10)
            hop.send(b"\5\4\0\1" + bytes(6))  # host unreachable
            lab.run_until(lambda: select.select([], [sock], [], 0)[1])
            reply = lab.ask(wire.ERROR, fd=sock.fileno())
            assert reply[:3] == (0, wire.ANSWER, struct.pack("=i", errno.EHOSTUNREACH))
            hop.close()

    def test_other_descriptors(self, lab: Lab) -> None:
        with socket.socket(socket.AF_UNIX) as unix, open(os.devnull, encoding="ascii") as file:
            for op in (wire.CONNECT, wire.PEER, wire.ERROR, wire.SEND, wire.SOURCE):
                assert lab.ask(op, b"\1\0/x", fd=unix.fileno())[:2] == (0, wire.PROCEED)
                assert lab.ask(op, fd=file.fileno())[0] == errno.ENOTSOCK
                assert lab.ask(op)[0] == errno.ENOSYS  # nothing came along


class TestSockets:
    """SOCKET, and what is sent on what it gave."""

    def test_udp(self, lab: Lab) -> None:
        arguments = struct.pack("=iii", socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        error, verdict, _, (fd,) = lab.ask(wire.SOCKET, arguments)
        assert (error, verdict) == (0, wire.ANSWER)
        with socket.socket(fileno=fd) as sock:
            assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_DGRAM)
            assert not os.get_blocking(fd)
            if lab.supervisor.confined is None:
                assert lab.ask(wire.SEND, sockaddr("203.0.113.1", 53), fd=fd)[:2] == (0, wire.PROCEED)
                assert lab.ask(wire.SOURCE, sockaddr("127.0.0.1", 53), fd=fd)[:2] == (0, wire.PROCEED)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ((socket.AF_INET, socket.SOCK_RAW, 1), errno.EPERM),
            ((socket.AF_PACKET, socket.SOCK_RAW, 0), errno.EPERM),
            ((socket.AF_INET, socket.SOCK_STREAM, 262), errno.EPROTONOSUPPORT),
            ((socket.AF_VSOCK, socket.SOCK_STREAM, 0), errno.EAFNOSUPPORT),
        ],
    )
    def test_refused(self, lab: Lab, arguments: tuple[int, int, int], error: int) -> None:
        assert lab.ask(wire.SOCKET, struct.pack("=iii", *arguments)) == (error, wire.ANSWER, b"", [])
        assert lab.ask(wire.SOCKET, b"\0")[0] == errno.EINVAL

    def test_made_before(self, lab: Lab) -> None:
        """One from outside may talk on this machine and nowhere else."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            here = sockaddr("127.0.0.1", 5353)
            assert lab.ask(wire.SEND, here, fd=sock.fileno())[:3] == (0, wire.REDIRECT, here)
            assert lab.ask(wire.SEND, sockaddr("203.0.113.1", 53), fd=sock.fileno())[0] == errno.EPERM
            assert lab.ask(wire.SEND, fd=sock.fileno())[0] == errno.EPERM  # control messages alone
            assert lab.ask(wire.CONNECT, sockaddr("203.0.113.1", 53), fd=sock.fileno())[0] == errno.EPERM
            assert lab.ask(wire.CONNECT, here, fd=sock.fileno())[0] == 0


class TestNames:
    """NAME, POINTER and DNS."""

    def test_name(self, lab: Lab) -> None:
        error, verdict, payload, _ = lab.ask(wire.NAME, struct.pack("=i", 0) + b"Name.Example.")
        assert (error, verdict) == (0, wire.ANSWER)
        assert payload[:4] == struct.pack("=I", 2)
        four, six, rest = payload[4:24], payload[24:44], payload[44:]
        assert four[:6] == struct.pack("=I", socket.AF_INET) + b"\xc6\x12"
        assert six[:5] == struct.pack("=I", socket.AF_INET6) + b"\xfd"
        assert rest == b"name.example"
        host = socket.inet_ntoa(four[4:8])
        assert lab.ask(wire.POINTER, sockaddr(host, 0))[:3] == (0, wire.ANSWER, b"name.example")

    def test_one_family(self, lab: Lab) -> None:
        _, _, payload, _ = lab.ask(wire.NAME, struct.pack("=i", socket.AF_INET6) + b"name.example")
        assert payload[:8] == struct.pack("=II", 1, socket.AF_INET6)

    @pytest.mark.parametrize("name", [b"", b"192.0.2.1", b"::1", b"a b", b"\xff\xfe", b"x" * 300])
    def test_what_is_no_name(self, lab: Lab, name: bytes) -> None:
        assert lab.ask(wire.NAME, struct.pack("=i", 0) + name)[0] == errno.ENOENT

    def test_what_is_no_question(self, lab: Lab) -> None:
        assert lab.ask(wire.NAME, b"ab")[0] == errno.EINVAL
        assert lab.ask(wire.POINTER, b"ab")[0] == errno.EAFNOSUPPORT
        assert lab.ask(wire.POINTER, sockaddr("192.0.2.1", 0))[0] == errno.ENOENT

    def test_message(self, lab: Lab) -> None:
        error, verdict, answer, _ = lab.ask(wire.DNS, QUERY)
        assert (error, verdict) == (0, wire.ANSWER)
        assert answer[:2] == QUERY[:2]
        assert answer[7] == 1
        assert lab.ask(wire.DNS, b"nonsense")[:2] == (0, wire.PROCEED)

    @pytest.mark.parametrize("lab", [{"dns": "system"}], indirect=True)
    def test_system(self, lab: Lab) -> None:
        assert lab.ask(wire.DNS, QUERY)[:2] == (0, wire.PROCEED)
        error, _, payload, _ = lab.ask(wire.NAME, struct.pack("=i", socket.AF_INET) + b"localhost")
        assert error == 0
        assert payload[8:12] == b"\x7f\0\0\1"


class TestOthers:
    """PATH, REFUSED and EXEC."""

    def test_path(self, lab: Lab) -> None:
        assert lab.ask(wire.PATH, b"/run/nscd/socket\0\0")[0] == errno.ECONNREFUSED
        assert lab.ask(wire.PATH, b"/run/other")[:2] == (0, wire.PROCEED)

    def test_refused(self, lab: Lab) -> None:
        assert lab.ask(wire.REFUSED, b"io_uring")[0] == errno.ENOSYS
        assert lab.lines == []
        assert lab.ask(wire.REFUSED, b"a strange thing")[0] == errno.EPERM
        assert "a strange thing can't be carried and was refused" in lab.lines[0]

    def test_anything_may_be_executed(self, lab: Lab) -> None:
        with open(os.devnull, encoding="ascii") as file:
            assert lab.ask(wire.EXEC, b"/dev/null", fd=file.fileno()) == (0, wire.ANSWER, b"", [])

    def test_an_engine_decides_what_is_executed(self, tmp_path: Path) -> None:
        program = tmp_path / "program"
        program.write_text("x")

        def executed(call: HandoverCall, fd: int, path: bytes) -> None:
            assert (call.uid, call.gid) == (os.getuid(), os.getgid())
            if path == b"bad":
                raise CallRefused(errno.EACCES)
            call.reply(0, payload=os.fsencode(os.readlink(f"/proc/self/fd/{fd}")))

        lab = Lab(executed=executed)
        before = open_files()
        fd = os.open(program, os.O_PATH)
        assert lab.ask(wire.EXEC, b"good", fd=fd)[:3] == (0, wire.ANSWER, os.fsencode(program))
        assert lab.ask(wire.EXEC, b"bad", fd=fd)[0] == errno.EACCES
        assert lab.ask(wire.EXEC, b"bad")[0] == errno.ENOSYS
        os.close(fd)
        assert open_files() == before + 3  # the callers
        lab.close()
