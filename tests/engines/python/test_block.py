"""`with socksify(…)`: what Python's own socket module does in the block, and that nothing of it is left after it."""

import _socket
import asyncio
import contextlib
import errno
import gc
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import pysocksify
from tests.engines.python import servers
from tests.engines.python.servers import ECHO, FORBIDDEN, LOOPBACK, REFUSED, UNREACHABLE
from tests.lab.scripted import Script, ScriptedProxy

NAMES = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo", "SocketType")
SOON = 10.0  # seconds after which a test has failed


def said(sock: socket.socket, text: bytes = b"hello") -> bytes:
    sock.sendall(text)
    data = b""
    while len(data) < len(text):
        piece = sock.recv(len(text))
        assert piece
        data += piece
    return data


def until(condition: Callable[[], bool]) -> None:
    """Waits for what another thread does."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        select.select([], [], [], 0.005)


def service_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pysocksify"]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread of ours, no descriptor and no replaced name stays."""
    gc.collect()
    names = [(module, name, getattr(module, name)) for module in (socket, _socket) for name in (*NAMES, "socket")]
    attributes = dict(vars(socket.socket))
    before = set(os.listdir("/proc/self/fd"))
    yield
    for module, name, value in names:
        assert getattr(module, name) is value, name
    assert dict(vars(socket.socket)) == attributes
    until(lambda: not service_threads())
    gc.collect()
    until(lambda: set(os.listdir("/proc/self/fd")) <= before)


class TestConnect:
    @pytest.mark.parametrize("limit", [None, 5.0])
    def test_a_name_goes_to_the_proxy(
        self, limit: float | None, url: str, echo: servers.Echo, proxy: ScriptedProxy
    ) -> None:
        with pysocksify.socksify(url), socket.create_connection((ECHO, echo.port), timeout=limit) as sock:
            assert said(sock) == b"hello"
            assert sock.gettimeout() == limit
            assert sock.getpeername() == (socket.gethostbyname(ECHO), echo.port)
        assert [(one.host, one.port) for one in proxy.asked] == [(ECHO, echo.port)]

    @pytest.mark.parametrize("limit", [None, 5.0])
    @pytest.mark.parametrize(
        ("name", "wanted", "number"),
        [
            (REFUSED, ConnectionRefusedError, errno.ECONNREFUSED),
            (UNREACHABLE, OSError, errno.EHOSTUNREACH),
            (FORBIDDEN, PermissionError, errno.EACCES),
        ],
    )
    def test_failures(self, name: str, wanted: type[OSError], number: int, limit: float | None, url: str) -> None:
        with pysocksify.socksify(url), socket.socket() as sock:
            sock.settimeout(limit)
            with pytest.raises(wanted) as caught:
                sock.connect((name, 80))
            assert caught.value.errno == number
            assert sock.connect_ex((name, 80)) == number

    def test_a_time_limit(self, echo: servers.Echo) -> None:
        with servers.proxy(Script(silent=True)) as proxy, pysocksify.socksify(servers.url(proxy)):
            with socket.socket() as sock:
                sock.settimeout(0.2)
                with pytest.raises(TimeoutError, match="timed out"):
                    sock.connect((ECHO, echo.port))
            with socket.socket() as sock:
                sock.settimeout(0.2)
                assert sock.connect_ex((ECHO, echo.port)) == errno.EAGAIN

    def test_non_blocking_is_held_until_the_chain_stands(self, echo: servers.Echo) -> None:
        with servers.proxy(Script(delay=0.5)) as proxy, pysocksify.socksify(servers.url(proxy)):
            sock = socket.socket()
            sock.setblocking(False)
            with sock, select.epoll() as poller:
                poller.register(sock, select.EPOLLOUT)
                began = time.monotonic()
                assert sock.connect_ex((ECHO, echo.port)) == errno.EINPROGRESS
                assert sock.connect_ex((ECHO, echo.port)) == errno.EALREADY
                assert time.monotonic() - began < 0.9, "twice the delay, for two replies"
                (event,) = poller.poll(SOON)
                assert event == (sock.fileno(), select.EPOLLOUT)
                assert proxy.asked[0].answered is not None
                assert time.monotonic() >= proxy.asked[0].answered
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                assert sock.connect_ex((ECHO, echo.port)) in (0, errno.EISCONN)
                sock.setblocking(True)
                assert said(sock) == b"hello"

    def test_non_blocking_failure_is_in_so_error(self, url: str) -> None:
        with pysocksify.socksify(url), socket.socket() as sock:
            sock.setblocking(False)
            assert sock.connect_ex((UNREACHABLE, 80)) == errno.EINPROGRESS
            _, writable, _ = select.select([], [sock], [], SOON)
            assert writable
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            with pytest.raises(OSError) as caught:
                sock.getpeername()
            assert caught.value.errno == errno.ENOTCONN

    def test_a_handler_that_raises_ends_the_wait(self, echo: servers.Echo) -> None:
        class Rung(Exception):
            pass

        def ring(number: int, frame: object) -> None:
            raise Rung

        before = signal.signal(signal.SIGALRM, ring)
        try:
            with (
                servers.proxy(Script(delay=0.4)) as proxy,
                pysocksify.socksify(servers.url(proxy)),
                socket.socket() as sock,
            ):
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                with pytest.raises(Rung):
                    sock.connect((ECHO, echo.port))
                assert select.select([], [sock], [], SOON)[1], "the attempt goes on, as the kernel's does"
                assert said(sock) == b"hello"
        finally:
            signal.signal(signal.SIGALRM, before)

    def test_a_closed_socket_is_not_dialled_for(self, echo: servers.Echo) -> None:
        """It's found in this process that only the supervisor has it open still."""
        with servers.proxy(Script(delay=20.0)) as proxy, pysocksify.socksify(servers.url(proxy)):
            sock = socket.socket()
            sock.setblocking(False)
            assert sock.connect_ex((ECHO, echo.port)) == errno.EINPROGRESS
            assert pending()
            sock.close()
            until(lambda: not pending())
            assert proxy.asked == []

    def test_ipv6(self, url: str, proxy: ScriptedProxy, echo: servers.Echo) -> None:
        with pysocksify.socksify(url), socket.socket(socket.AF_INET6) as sock:
            sock.connect((ECHO, echo.port))
            assert said(sock) == b"hello"
            assert sock.getpeername()[0] == socket.getaddrinfo(ECHO, None, socket.AF_INET6)[0][4][0]
        assert proxy.asked[0].host == ECHO

    def test_every_kind_of_socket(self, url: str, proxy: ScriptedProxy, echo: servers.Echo) -> None:
        class Mine(socket.socket):
            pass

        with pysocksify.socksify(url):
            with Mine() as mine:
                mine.connect((ECHO, echo.port))
                assert said(mine) == b"hello"
            raw = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
            assert isinstance(raw, _socket.socket)
            assert isinstance(mine, _socket.socket)
            assert issubclass(socket.socket, _socket.socket)
            raw.connect((ECHO, echo.port))
            raw.sendall(b"raw")
            assert raw.recv(3) == b"raw"
            raw.close()
            sock = socket.socket()
            with sock.dup() as twin, socket.fromfd(sock.fileno(), socket.AF_INET, socket.SOCK_STREAM) as third:
                twin.connect((ECHO, echo.port))
                assert said(third) == b"hello"
                with socket.socket(fileno=sock.detach()) as fourth:
                    assert fourth.getpeername()[1] == echo.port
                    with fourth.makefile("rwb") as file:
                        file.write(b"line\n")
                        file.flush()
                        assert file.readline() == b"line\n"
        assert {one.host for one in proxy.asked} == {ECHO}

    def test_wrong_arguments_are_said_as_ever(self, url: str) -> None:
        with pysocksify.socksify(url), socket.socket() as sock:
            for address, wanted in (
                ("example.com", TypeError),
                (("example.com",), TypeError),
                (("example.com", "80"), TypeError),
                ((None, 80), TypeError),
                (("example.com", 65536), OverflowError),
                (("::1", 80), socket.gaierror),
            ):
                with pytest.raises(wanted):
                    sock.connect(address)
            sock.close()
            with pytest.raises(OSError) as caught:
                sock.connect((ECHO, 80))
            assert caught.value.errno == errno.EBADF

    def test_fast_open_sends_what_comes_with_it(self, url: str, echo: servers.Echo) -> None:
        with pysocksify.socksify(url):
            with socket.socket() as sock:
                assert sock.sendto(b"fast", socket.MSG_FASTOPEN, (ECHO, echo.port)) == 4
                assert sock.recv(4) == b"fast"
            with socket.socket() as sock:
                assert sock.sendmsg([b"fa", b"st"], [], socket.MSG_FASTOPEN, (ECHO, echo.port)) == 4
                assert sock.recv(4) == b"fast"

    def test_half_close_and_much_data(self, url: str, echo: servers.Echo) -> None:
        with pysocksify.socksify(url), socket.create_connection((ECHO, echo.port), timeout=SOON) as sock:
            sent = os.urandom(1 << 20)

            def send() -> None:
                sock.sendall(sent)
                sock.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            received = b""
            while data := sock.recv(1 << 16):
                received += data
            sender.join()
            assert received == sent


class TestNames:
    def test_fake_addresses(self, url: str, proxy: ScriptedProxy) -> None:
        with pysocksify.socksify(url):
            host = socket.gethostbyname("Some.Example.")
            assert host.startswith("198.18.")
            assert socket.gethostbyname_ex("some.example") == ("some.example", [], [host])
            assert socket.gethostbyaddr(host) == ("some.example", [], [host])
            assert socket.getnameinfo((host, 80), 0) == ("some.example", "http")
            assert socket.getnameinfo((host, 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV) == (host, "80")
            found = socket.getaddrinfo("some.example", "http", type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
            assert [each[0] for each in found] == [socket.AF_INET, socket.AF_INET6]
            assert found[0] == (socket.AF_INET, socket.SOCK_STREAM, 6, "some.example", (host, 80))
            assert {each[1] for each in socket.getaddrinfo(b"some.example", 80, socket.AF_INET)} >= {1, 2}
            assert socket.getfqdn(host) == "some.example"
        assert proxy.asked == []

    def test_what_needs_no_looking_up(self, url: str) -> None:
        with pysocksify.socksify(url):
            assert socket.gethostbyname("127.1") == LOOPBACK
            assert socket.gethostbyname("localhost") == LOOPBACK
            assert socket.gethostbyname("") == "0.0.0.0"
            assert socket.getaddrinfo("::1", 80, type=socket.SOCK_STREAM)[0][4][:2] == ("::1", 80)
            assert socket.getaddrinfo(None, 80, flags=socket.AI_PASSIVE)
            with socket.create_server(("localhost", 0)) as server:
                assert server.getsockname()[0] == LOOPBACK

    def test_failures(self, url: str) -> None:
        with pysocksify.socksify(url):
            with pytest.raises(socket.gaierror) as caught:
                socket.getaddrinfo("some.example", 80, flags=socket.AI_NUMERICHOST)
            assert caught.value.errno == socket.EAI_NONAME
            with pytest.raises(socket.gaierror):
                socket.getaddrinfo("some.example", "no-such-service")
            with pytest.raises(socket.gaierror):
                socket.gethostbyname("a b")
            with pytest.raises(socket.herror):
                socket.gethostbyaddr("192.0.2.77")
            with pytest.raises(socket.gaierror):
                socket.getnameinfo(("192.0.2.77", 80), socket.NI_NAMEREQD)
            assert socket.getnameinfo(("192.0.2.77", 80), 0) == ("192.0.2.77", "http")
            with pytest.raises(TypeError):
                socket.getaddrinfo(80, 80)  # type: ignore[arg-type]


class TestRefused:
    def test_udp(self, url: str) -> None:
        with pysocksify.socksify(url), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for send in (
                lambda: sock.sendto(b"x", ("198.51.100.1", 9)),
                lambda: sock.sendmsg([b"x"], [], 0, ("198.51.100.1", 9)),
                lambda: sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"\0"),
            ):
                with pytest.raises(PermissionError):
                    send()
            sock.connect(("198.51.100.1", 9))  # goes nowhere, as many programs want to know their own address
            assert sock.getpeername() == ("198.51.100.1", 9)
            assert sock.getsockname()[0] == LOOPBACK

    def test_dns_by_udp_is_answered_here(self, url: str) -> None:
        query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\4some\7example\0" + struct.pack(">2H", 1, 1)
        with pysocksify.socksify(url), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(SOON)
            sock.sendto(query, ("192.0.2.53", 53))
            answer, source = sock.recvfrom(512)
            assert source == ("192.0.2.53", 53)
            assert answer[-4:] == socket.inet_aton(socket.gethostbyname("some.example"))

    def test_raw_and_strange_sockets(self, url: str) -> None:
        with pysocksify.socksify(url):
            for arguments, number in (
                ((socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP), errno.EPERM),
                ((socket.AF_PACKET, socket.SOCK_RAW), errno.EPERM),
                ((socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP), errno.EACCES),
                ((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP), errno.EPROTONOSUPPORT),
                ((socket.AF_VSOCK, socket.SOCK_STREAM), errno.EAFNOSUPPORT),
            ):
                with pytest.raises(OSError) as caught:
                    socket.socket(*arguments)
                assert caught.value.errno == number, arguments
            left, right = socket.socketpair()
            left.close()
            right.close()

    def test_denied_and_direct(self, url: str, proxy: ScriptedProxy, echo: servers.Echo) -> None:
        rules = [{"match": ["*.denied.test"], "to": "deny"}]
        with pysocksify.socksify(url, rules=rules):
            with pytest.raises(PermissionError):
                socket.create_connection(("www.denied.test", 80))
            with socket.create_connection((LOOPBACK, echo.port)) as sock:
                assert said(sock) == b"hello"
                assert sock.getpeername() == (LOOPBACK, echo.port)
        assert proxy.asked == []


class TestThreads:
    def test_many_at_once(self, url: str, proxy: ScriptedProxy, echo: servers.Echo) -> None:
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(5):
                    with socket.create_connection((ECHO, echo.port), timeout=SOON) as sock:
                        assert said(sock) == b"hello"
            except BaseException as failure:
                failures.append(failure)

        with pysocksify.socksify(url):
            threads = [threading.Thread(target=work) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert failures == []
        assert len(proxy.asked) == 100

    def test_connections_live_on_after_the_block(self, url: str, echo: servers.Echo) -> None:
        with pysocksify.socksify(url):
            blocking = socket.create_connection((ECHO, echo.port))
            relayed = socket.create_connection((ECHO, echo.port), timeout=SOON)
        with blocking, relayed:
            assert said(blocking) == b"hello"
            assert said(relayed) == b"hello"
            assert service_threads(), "the relayed one's thread is there as long as it is"

    def test_a_block_again_and_not_twice(self, url: str, echo: servers.Echo) -> None:
        block = pysocksify.socksify(url)
        for _ in range(2):
            with block:
                with pytest.raises(RuntimeError, match="entered already"):
                    block.__enter__()
                with socket.create_connection((ECHO, echo.port)) as sock:
                    assert said(sock) == b"hello"


class TestNested:
    @pytest.mark.parametrize("limit", [None, 5.0])
    def test_the_inner_chain_goes_through_the_outer_one(self, limit: float | None, proxy: ScriptedProxy) -> None:
        """The proxies are of a name that only the outer one's proxy knows."""
        script = Script(answers=servers.ANSWERS)
        outer = ScriptedProxy(None, LOOPBACK, script, {"inner.test": LOOPBACK})
        inner_url = f"socks5://inner.test:{proxy.port}"
        try:
            with pysocksify.socksify(servers.url(outer)), servers.echo_server() as echo:
                with (
                    pysocksify.socksify(inner_url),
                    socket.create_connection((ECHO, echo.port), timeout=limit) as sock,
                ):
                    assert said(sock) == b"hello"
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((REFUSED, echo.port), timeout=limit)
            assert {one.host for one in outer.asked} == {"inner.test", REFUSED}
            assert [one.host for one in proxy.asked] == [ECHO]
        finally:
            outer.close()

    def test_the_outer_one_may_end_first(self, url: str, proxy: ScriptedProxy, echo: servers.Echo) -> None:
        with servers.proxy() as other:
            first, second = pysocksify.socksify(url), pysocksify.socksify(servers.url(other))
            first.__enter__()
            second.__enter__()
            first.__exit__(None, None, None)
            with socket.create_connection((ECHO, echo.port)) as sock:
                assert said(sock) == b"hello"
            second.__exit__(None, None, None)
            assert (len(proxy.asked), len(other.asked)) == (0, 1)

    def test_a_single_connection_goes_through_the_block(self, proxy: ScriptedProxy, echo: servers.Echo) -> None:
        outer = ScriptedProxy(None, LOOPBACK, Script(), {"inner.test": LOOPBACK})
        try:
            with (
                pysocksify.socksify(servers.url(outer)),
                pysocksify.create_connection(
                    (ECHO, echo.port), timeout=SOON, chain=[f"socks5://inner.test:{proxy.port}"]
                ) as sock,
            ):
                assert said(sock) == b"hello"
            assert [one.host for one in outer.asked] == ["inner.test"]
        finally:
            outer.close()


class TestFork:
    def child(self, work: Callable[[], None]) -> int:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work()
                status = 0
            finally:
                os._exit(status)
        return os.waitpid(pid, 0)[1]

    def test_children_go_through_the_chain_too(self, url: str, proxy: ScriptedProxy, echo: servers.Echo) -> None:
        with pysocksify.socksify(url):
            fake = socket.gethostbyname(ECHO)
            with socket.create_connection((ECHO, echo.port), timeout=SOON) as kept:

                def work() -> None:
                    kept.close()
                    for destination in (ECHO, fake):
                        with socket.create_connection((destination, echo.port), timeout=SOON) as sock:
                            assert said(sock) == b"hello"

                assert self.child(work) == 0
                assert self.child(lambda: None) == 0
                assert said(kept) == b"hello", "the parent's relay goes on"
        assert {one.host for one in proxy.asked} == {ECHO}
        assert len(proxy.asked) == 3

    def test_a_child_holds_nothing_of_its_parents_relays(self, url: str, echo: servers.Echo) -> None:
        with pysocksify.socksify(url):
            sock = socket.create_connection((ECHO, echo.port), timeout=SOON)
            assert said(sock) == b"hello"
            mine, childs = socket.socketpair()

            def work() -> None:
                sock.close()
                mine.close()
                childs.recv(1)  # lives until the parent has seen the end

            waiting = threading.Thread(target=lambda: statuses.append(self.child(work)))
            statuses: list[int] = []
            waiting.start()
            with mine, childs:
                until(lambda: bool(children()))
                sock.close()
                assert echo.ends.acquire(timeout=SOON), "the end comes through while the child lives"
                mine.send(b"x")
                waiting.join()
            assert statuses == [0]


def children() -> list[str]:
    mine: list[str] = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{thread}/children") as file:  # it has ended
            mine += file.read().split()
    return mine


class TestAsyncio:
    def test_two_hundred_at_once(self, proxy: ScriptedProxy, url: str, echo: servers.Echo) -> None:
        async def one() -> bytes:
            reader, writer = await asyncio.open_connection(ECHO, echo.port)
            writer.write(b"hello")
            data = await reader.readexactly(5)
            writer.close()
            await writer.wait_closed()
            return data

        async def main() -> list[bytes]:
            return await asyncio.gather(*(one() for _ in range(200)))

        with pysocksify.socksify(url):
            assert asyncio.run(main()) == [b"hello"] * 200
        assert len(proxy.asked) == 200

    def test_failures_and_time_limits(self, url: str, echo: servers.Echo) -> None:
        async def open_one(name: str, limit: float) -> None:
            await asyncio.wait_for(asyncio.open_connection(name, echo.port), limit)

        with pysocksify.socksify(url), pytest.raises(OSError, match="111"):
            asyncio.run(open_one(REFUSED, SOON))
        with servers.proxy(Script(delay=5.0)) as slow, pysocksify.socksify(servers.url(slow)):
            with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                asyncio.run(open_one(ECHO, 0.2))
            until(lambda: not pending())


def pending() -> list[socket.socket]:
    """Sockets of this process that wait for a chain."""
    return [
        each
        for each in gc.get_objects()
        if isinstance(each, socket.socket) and each.fileno() >= 0 and each.family == socket.AF_INET and syn_sent(each)
    ]


def syn_sent(sock: socket.socket) -> bool:
    state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] if sock.type == socket.SOCK_STREAM else 0
    return state == 2


def test_problems_are_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pysocksify.socksify(url), pytest.raises(ConnectionRefusedError):
        socket.create_connection((REFUSED, 80))
    (record,) = [each for each in caplog.records if each.name == "pysocksify"]
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"{REFUSED}:80: {url}: request: the proxy answered 0x05")


def test_what_cannot_be_used_is_said_before_anything_is_replaced() -> None:
    for arguments, options in (
        (("ftp://a:1",), {}),
        (("socks5://a:1",), {"mode": "sideways"}),
        (("socks5://a:1",), {"rules": [{"to": "elsewhere", "match": ["*"]}]}),
        (("socks5://a:1",), {"direct": "localhost"}),
        (("socks5://a:1",), {"config": pysocksify.configuration("socks5://b:1")}),
    ):
        with pytest.raises(pysocksify.ConfigError):
            pysocksify.socksify(*arguments, **options)
