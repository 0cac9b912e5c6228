"""Held connections, on the real kernel: SYN_SENT until let go or failed, whatever the program set on its socket."""

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from pysocksify.linux import dissolve
from pysocksify.supervisor import hold as holding
from pysocksify.supervisor.hold import CannotHold, Hold, HoldAddress, Holds
from tests.engines.filtered import ACCOUNTS, as_account
from tests.supervisor.holds import HOLDS, has_ipv6, need_ipv6, needs_ipv6

PATIENCE = 10.0
IPV4, IPV6 = socket.AF_INET, socket.AF_INET6
SYN_SENT, ESTABLISHED, CLOSE = 2, 1, 7
TCP_SYNCNT, TCP_USER_TIMEOUT, TCP_FASTOPEN_CONNECT, TCP_INFO = 7, 18, 30, 11
IP_MINTTL, IPV6_MINHOPCOUNT, SO_BINDTODEVICE = 21, 73, 25
UNAWAITED = select.POLLIN | select.POLLOUT | select.POLLRDHUP

FAMILIES = [pytest.param(IPV4, id="IPv4"), pytest.param(IPV6, id="IPv6", marks=needs_ipv6)]


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def sock(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.socket(getattr(request, "param", IPV4)) as sock:
        sock.setblocking(False)
        yield sock


both_families = pytest.mark.parametrize("sock", FAMILIES, indirect=True)


def state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 1)[0]


def so_error(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def poll(sock: socket.socket, timeout: float = 0) -> int:
    poller = select.poll()
    poller.register(sock, UNAWAITED)
    return dict(poller.poll(timeout * 1000)).get(sock.fileno(), 0)


def let_go(sock: socket.socket, hold: Hold) -> socket.socket:
    """Release, and wait until both ends stand."""
    other = holding.release(sock, hold)
    assert poll(sock, PATIENCE) == select.POLLOUT
    assert poll(other, PATIENCE) == select.POLLOUT
    assert so_error(other) == 0
    holding.put_back(sock, hold)
    return other


def talk(one: socket.socket, other: socket.socket) -> None:
    for a, b in ((one, other), (other, one)):
        b.setblocking(True)
        b.settimeout(PATIENCE)
        a.send(b"through")
        assert b.recv(100) == b"through"


@both_families
def test_held_is_as_on_the_way_to_a_far_host(sock: socket.socket) -> None:
    hold = HOLDS.hold(sock)
    assert state(sock) == SYN_SENT
    assert poll(sock) == 0
    assert so_error(sock) == 0
    assert not sock.getblocking()
    with pytest.raises(OSError) as caught:
        sock.getpeername()
    assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    with pytest.raises(BlockingIOError):
        sock.send(b"x")
    assert holding.finish(sock, hold) == errno.EALREADY


@both_families
def test_release(sock: socket.socket) -> None:
    hold = HOLDS.hold(sock)
    with let_go(sock, hold) as other:
        assert state(sock) == ESTABLISHED
        assert so_error(sock) == 0
        assert [holding.finish(sock, hold) for _ in range(3)] == [0, errno.EISCONN, errno.EISCONN]
        assert sock.getpeername() == other.getsockname()
        talk(sock, other)


@both_families
@pytest.mark.parametrize("edge", [0, select.EPOLLET, select.EPOLLONESHOT], ids=["level", "edge", "oneshot"])
@pytest.mark.parametrize("when", ["before connect", "while held"])
@pytest.mark.parametrize("fails", [0, errno.ECONNREFUSED, errno.ETIMEDOUT])
def test_epoll_hears_of_the_outcome_once(sock: socket.socket, edge: int, when: str, fails: int) -> None:
    wanted = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | edge
    with select.epoll() as epoll:
        if when == "before connect":
            epoll.register(sock, wanted)
            assert epoll.poll(0) == [(sock.fileno(), select.EPOLLOUT | select.EPOLLHUP)]
            if edge == select.EPOLLONESHOT:
                epoll.modify(sock, wanted)
                epoll.poll(0)
        hold = HOLDS.hold(sock)
        if when == "while held":
            epoll.register(sock, wanted)
        elif edge == select.EPOLLONESHOT:
            epoll.modify(sock, wanted)
        assert epoll.poll(0) == []
        if fails:
            holding.fail(sock, hold, fails)
            ((fd, events),) = epoll.poll(PATIENCE)
            assert fd == sock.fileno()
            assert events & select.EPOLLHUP
            assert events & select.EPOLLOUT
        else:
            with let_go(sock, hold):
                assert epoll.poll(PATIENCE) == [(sock.fileno(), select.EPOLLOUT)]
                if edge:
                    assert epoll.poll(0) == []


def test_a_dup_and_a_child_poll_the_same_file(sock: socket.socket) -> None:
    with socket.socket(fileno=os.dup(sock.fileno())) as duplicate:
        hold = HOLDS.hold(duplicate)
        assert poll(sock) == 0
        with let_go(duplicate, hold) as other:
            assert poll(sock) == select.POLLOUT
            talk(sock, other)


def test_many_at_once() -> None:
    many = 200
    socks = [socket.socket(IPV4) for _ in range(many)]
    for sock in socks:
        sock.setblocking(False)
    holds = [HOLDS.hold(sock) for sock in socks]
    assert {state(sock) for sock in socks} == {SYN_SENT}
    others = [holding.release(sock, hold) for sock, hold in zip(socks, holds, strict=True)]
    for sock, other in zip(socks, others, strict=True):
        assert poll(sock, PATIENCE) == select.POLLOUT
        assert sock.getpeername() == other.getsockname()
        assert other.getpeername() == sock.getsockname()
    for number, sock in enumerate(socks):
        sock.send(str(number).encode())
    for number, other in enumerate(others):
        other.settimeout(PATIENCE)
        assert other.recv(10) == str(number).encode()
    for sock in (*socks, *others):
        sock.close()


def test_one_after_the_other_whoever_closes_first() -> None:
    for turn in range(200):
        with socket.socket(IPV4) as sock:
            sock.setblocking(False)
            hold = HOLDS.hold(sock)
            with let_go(sock, hold) as other:
                (sock, other)[turn % 2].close()


class TestFailure:
    @both_families
    def test_refused_is_said_by_the_kernel_itself(self, sock: socket.socket) -> None:
        hold = HOLDS.hold(sock)
        assert holding.fail(sock, hold, errno.ECONNREFUSED)
        assert poll(sock, PATIENCE) & select.POLLERR
        assert so_error(sock) == errno.ECONNREFUSED
        assert so_error(sock) == 0
        assert not sock.getblocking()

    @pytest.mark.parametrize(
        "call",
        [
            lambda sock: sock.connect(("127.0.0.1", 9)),
            lambda sock: sock.send(b"x"),
            lambda sock: sock.recv(1),
        ],
        ids=["connect", "send", "recv"],
    )
    def test_refused_is_said_by_whichever_call_is_first(
        self, sock: socket.socket, call: Callable[[socket.socket], object]
    ) -> None:
        holding.fail(sock, HOLDS.hold(sock), errno.ECONNREFUSED)
        with pytest.raises(ConnectionRefusedError):
            call(sock)

    @both_families
    @pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EACCES])
    def test_what_else_there_is_is_told_by_us(self, sock: socket.socket, number: int) -> None:
        hold = HOLDS.hold(sock)
        assert not holding.fail(sock, hold, number)
        assert poll(sock) & select.POLLHUP
        assert state(sock) == CLOSE

    @both_families
    @pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ETIMEDOUT])
    def test_the_socket_can_be_used_again(self, sock: socket.socket, number: int) -> None:
        holding.fail(sock, HOLDS.hold(sock), number)
        dissolve(sock.fileno())
        with let_go(sock, HOLDS.hold(sock)) as other:
            talk(sock, other)

    @pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ETIMEDOUT])
    def test_a_blocking_socket_stays_blocking(self, number: int) -> None:
        with socket.socket() as sock:
            hold = HOLDS.hold(sock)
            assert os.get_blocking(sock.fileno())
            holding.fail(sock, hold, number)
            assert os.get_blocking(sock.fileno())


# level, option, value that defeats a hold, family
DEFEATING = [
    (socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 1, IPV4),
    (socket.IPPROTO_TCP, TCP_SYNCNT, 1, IPV4),
    (socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1, IPV4),
    (socket.IPPROTO_IP, IP_MINTTL, 255, IPV4),
    pytest.param(socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT, 255, IPV6, marks=needs_ipv6),
]


class TestOptions:
    @pytest.mark.parametrize(("level", "option", "value", "family"), DEFEATING)
    def test_what_would_defeat_a_hold_doesnt(self, level: int, option: int, value: int, family: int) -> None:
        with socket.socket(family) as sock:
            sock.setblocking(False)
            sock.setsockopt(level, option, value)
            hold = HOLDS.hold(sock)
            assert poll(sock, 0.05) == 0
            # the first SYN is sent again after a second: these would end the hold there
            assert sock.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == 0
            assert sock.getsockopt(socket.IPPROTO_TCP, TCP_SYNCNT) >= 6
            with let_go(sock, hold) as other:
                talk(sock, other)
                if option != TCP_FASTOPEN_CONNECT:  # means nothing on a connection that stands
                    assert sock.getsockopt(level, option) == value

    @pytest.mark.parametrize(("level", "option", "value", "family"), DEFEATING)
    @pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ETIMEDOUT])
    def test_they_are_there_again_after_a_failure(
        self, level: int, option: int, value: int, family: int, number: int
    ) -> None:
        with socket.socket(family) as sock:
            sock.setblocking(False)
            sock.setsockopt(level, option, value)
            by_kernel = holding.fail(sock, HOLDS.hold(sock), number)
            assert sock.getsockopt(level, option) == value
            assert poll(sock, PATIENCE) & select.POLLHUP
            if by_kernel:
                assert so_error(sock) == number

    def test_larger_values_stay_while_held(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_SYNCNT, 20)
        hold = HOLDS.hold(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, TCP_SYNCNT) == 20
        assert hold.aside == []

    def test_the_kernels_defaults_are_left_alone(self, sock: socket.socket) -> None:
        before = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in (TCP_SYNCNT, TCP_USER_TIMEOUT)]
        hold = HOLDS.hold(sock)
        with let_go(sock, hold):
            after = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in (TCP_SYNCNT, TCP_USER_TIMEOUT)]
        assert before == after

    def test_put_back_once(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 1)
        hold = HOLDS.hold(sock)
        holding.put_back(sock, hold)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 2)
        holding.put_back(sock, hold)
        assert sock.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == 2

    def test_options_the_program_sets_while_held_are_kept(self, sock: socket.socket) -> None:
        hold = HOLDS.hold(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30000)
        with let_go(sock, hold):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 60000

    def test_the_wish_for_keepalive_is_known(self, sock: socket.socket) -> None:
        values = {
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 77,
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 7,
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 3,
        }
        assert not holding.keepalive(sock)
        for (level, option), value in values.items():
            sock.setsockopt(level, option, value)
        assert {(level, option): value for level, option, value in holding.keepalive(sock)} == values


def own_addresses() -> list[str]:
    """This machine's addresses but for loopback's."""
    with socket.socket(IPV4, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]


# family, address to bind, IPV6_V6ONLY
BOUND: list[tuple[int, str, int | None]] = [
    (IPV4, "0.0.0.0", None),
    (IPV4, "127.0.0.1", None),
    (IPV4, "127.0.0.5", None),
    (IPV6, "::", 0),
    (IPV6, "::", 1),
    (IPV6, "::1", None),
    (IPV6, "::1", 1),
    (IPV6, "::ffff:127.0.0.1", 0),
    *((IPV4, host, None) for host in own_addresses()),
    *((IPV6, f"::ffff:{host}", 0) for host in own_addresses()),
]


@pytest.mark.parametrize(("family", "host", "only_ipv6"), BOUND)
def test_bound_addresses(family: int, host: str, only_ipv6: int | None) -> None:
    if family == IPV6:
        need_ipv6()
    with socket.socket(family) as sock:
        sock.setblocking(False)
        if only_ipv6 is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        sock.bind((host, 0))
        port = sock.getsockname()[1]
        hold = HOLDS.hold(sock)
        assert state(sock) == SYN_SENT
        with let_go(sock, hold) as other:
            assert sock.getsockname()[1] == port
            if host not in ("0.0.0.0", "::"):
                assert sock.getsockname()[0] == host
            talk(sock, other)


def test_a_bound_port_is_kept_through_a_failure(sock: socket.socket) -> None:
    sock.bind(("127.0.0.1", 0))
    name = sock.getsockname()
    holding.fail(sock, HOLDS.hold(sock), errno.ETIMEDOUT)
    assert sock.getsockname() == name


@pytest.mark.skipif(len(ACCOUNTS) < 2, reason="needs root to become somebody else")
def test_an_ordinary_user_may_do_all_this() -> None:
    def act() -> None:
        holds = Holds()
        for family in (IPV4, IPV6) if has_ipv6() else (IPV4,):
            with socket.socket(family) as sock:
                sock.setblocking(False)
                holding.fail(sock, holds.hold(sock), errno.ETIMEDOUT)
                holding.fail(sock, holds.hold(sock), errno.ECONNREFUSED)
                assert poll(sock, PATIENCE) & select.POLLERR
                assert so_error(sock) == errno.ECONNREFUSED
                dissolve(sock.fileno())
                with let_go(sock, holds.hold(sock)) as other:
                    talk(sock, other)

    as_account(ACCOUNTS[-1], act)


class TestWithoutIpv6:
    """A machine where ::1 isn't there: IPv6 sockets are held at ::ffff:127.0.0.1, if they take that."""

    @pytest.fixture(autouse=True)
    def _without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        need_ipv6()  # for sockets to try it with
        monkeypatch.setattr(HOLDS._places, "ipv6", None)

    def test_an_ipv6_socket_is_held_by_its_mapped_address(self) -> None:
        with socket.socket(IPV6) as sock:
            sock.setblocking(False)
            hold = HOLDS.hold(sock)
            assert state(sock) == SYN_SENT
            with let_go(sock, hold) as other:
                assert other.family == IPV4
                talk(sock, other)

    def test_refused_is_said_by_the_kernel_there_too(self) -> None:
        with socket.socket(IPV6) as sock:
            sock.setblocking(False)
            holding.fail(sock, HOLDS.hold(sock), errno.ECONNREFUSED)
            assert so_error(sock) == errno.ECONNREFUSED

    def test_one_that_takes_only_ipv6_cant_be_held(self) -> None:
        with socket.socket(IPV6) as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            with pytest.raises(CannotHold) as caught:
                HOLDS.hold(sock)
            assert caught.value.errno == errno.ENETUNREACH


class TestCannotHold:
    @pytest.mark.skipif(os.geteuid() != 0, reason="SO_BINDTODEVICE needs root on old kernels")
    def test_a_socket_bound_to_a_device(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"lo\0")
        with pytest.raises(CannotHold) as caught:
            HOLDS.hold(sock)
        assert caught.value.errno == errno.ENETUNREACH
        assert state(sock) == CLOSE

    def test_a_socket_that_is_connected(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 12345)
        with socket.create_server(("127.0.0.1", 0)) as server:
            sock.setblocking(True)
            sock.connect(server.getsockname())
            with pytest.raises(CannotHold) as caught:
                HOLDS.hold(sock)
            assert caught.value.errno == errno.EISCONN
            assert sock.getpeername() == server.getsockname()
            assert sock.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == 12345
            assert os.get_blocking(sock.fileno())

    def test_a_socket_that_listens(self, sock: socket.socket) -> None:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with pytest.raises(CannotHold) as caught:
            HOLDS.hold(sock)
        assert caught.value.errno == errno.EISCONN


def test_a_program_that_dissolves_its_held_socket(sock: socket.socket) -> None:
    hold = HOLDS.hold(sock)
    name = sock.getsockname()
    with socket.socket(fileno=os.dup(sock.fileno())) as program:
        dissolve(program.fileno())
    assert state(sock) == CLOSE
    assert name != ("0.0.0.0", 0)
    try:
        with holding.release(sock, hold) as other:
            poll(other, PATIENCE)
            assert so_error(other) == errno.ECONNREFUSED
    except ConnectionRefusedError:
        pass


@pytest.mark.parametrize(
    ("family", "place", "host"),
    [(IPV4, IPV4, "127.0.0.1"), (IPV6, IPV4, "::ffff:127.0.0.1"), pytest.param(IPV6, IPV6, "::1", marks=needs_ipv6)],
)
def test_struct_sockaddr(family: int, place: int, host: str) -> None:
    address = HOLDS._places.ipv4 if place == IPV4 else HOLDS._places.ipv6
    assert isinstance(address, HoldAddress)
    packed = address.sockaddr(family)
    assert struct.unpack_from("=H", packed) == (family,)
    assert struct.unpack_from("!H", packed, 2) == (address.name[1],)
    assert socket.inet_ntop(family, packed[4:8] if family == IPV4 else packed[8:24]) == host
    assert len(packed) == (16 if family == IPV4 else 28)
