"""The loop over hops, as dialogues: what is said to whom, whose failure a failure is, and which path is tried next."""

import errno
import random

import pytest

from pysocksify.address import Address
from pysocksify.dial import hops
from pysocksify.dial.hops import MOST_TIME, dial
from pysocksify.errors import Cause, DialError
from pysocksify.protocol.conversation import Send
from pysocksify.route.chain import Chain, ChainState, Proxy
from tests.dial.dialogues import (
    CONNECT_TIMEOUT,
    REPLY_TIMEOUT,
    Breaks,
    Cut,
    Hears,
    Line,
    Opens,
    Says,
    Silence,
    play,
    refused,
)

# RFC 1928: greeting, choice, request (ver cmd rsv atyp addr port), reply
GREETING, LOGIN_GREETING = b"\5\1\0", b"\5\2\0\2"
NO_LOGIN, LOGIN, NO_METHOD = b"\5\0", b"\5\2", b"\5\xff"
YES = b"\5\0\0\1\0\0\0\0\0\0"
WORK = Address("example.com", 443)
ASKS_WORK = b"\5\1\0\3\x0bexample.com\x01\xbb"
HTTP_ASKS_WORK = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"
HTTP_YES = b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\n"
REFUSED = refused(errno.ECONNREFUSED)


def proxy(scheme: str, last: int, username: bytes | None = None, password: bytes | None = None) -> Proxy:
    return Proxy(scheme=scheme, address=Address(f"192.0.2.{last}", 1080), username=username, password=password)


def asks(last: int) -> bytes:
    """A SOCKS5 request for the hop 192.0.2.last:1080."""
    return b"\5\1\0\1\xc0\0\2" + bytes((last,)) + b"\x04\x38"


A, B, C, D = (proxy("socks5", last) for last in (1, 2, 3, 4))
OPENS_A, OPENS_B, OPENS_C, OPENS_D = (f"192.0.2.{last}:1080" for last in (1, 2, 3, 4))


class Clock:
    """Time that goes on only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def chain(*path: Proxy, mode: str = "strict", length: int = 0) -> ChainState:
    return ChainState(
        Chain(
            name="c",
            mode=mode,
            length=length,
            hops=path,
            connect_timeout=CONNECT_TIMEOUT,
            reply_timeout=REPLY_TIMEOUT,
        ),
        random.Random(7),
    )


def run(state: ChainState, *lines: Line, destination: Address = WORK, clock: Clock | None = None) -> tuple[Proxy, ...]:
    return play(dial(state, destination, clock or Clock()), *lines)


def through(last: int) -> tuple[Line, ...]:
    """A SOCKS5 hop that connects to the next one."""
    return (Says(GREETING), Hears(NO_LOGIN), Says(asks(last)), Hears(YES))


TO_WORK = (Says(GREETING), Hears(NO_LOGIN), Says(ASKS_WORK), Hears(YES))


class TestWhatIsSaid:
    def test_one_socks5_hop(self) -> None:
        assert run(chain(A), Opens(OPENS_A), *TO_WORK) == (A,)

    def test_socks5_with_a_login(self) -> None:
        hop = proxy("socks5", 1, b"alice", b"s cret")
        lines = (Opens(OPENS_A), Says(LOGIN_GREETING), Hears(LOGIN), Says(b"\1\5alice\6s cret"), Hears(b"\1\0"))
        assert run(chain(hop), *lines, Says(ASKS_WORK), Hears(YES)) == (hop,)

    def test_a_login_that_nobody_asks_for_isnt_sent(self) -> None:
        hop = proxy("socks5", 1, b"alice", b"s cret")
        assert run(chain(hop), Opens(OPENS_A), Says(LOGIN_GREETING), Hears(NO_LOGIN), Says(ASKS_WORK), Hears(YES)) == (
            hop,
        )

    def test_socks4a(self) -> None:
        hop = proxy("socks4a", 1, b"me")
        request = b"\4\1\x01\xbb\0\0\0\1me\0example.com\0"
        assert run(chain(hop), Opens(OPENS_A), Says(request), Hears(b"\0\x5a" + bytes(6))) == (hop,)

    def test_socks4(self) -> None:
        hop = proxy("socks4", 1)
        request = b"\4\1\0\x16\xcb\0\x71\x05\0"
        destination = Address("203.0.113.5", 22)
        lines = (Opens(OPENS_A), Says(request), Hears(b"\0\x5a" + bytes(6)))
        assert run(chain(hop), *lines, destination=destination) == (hop,)

    def test_http(self) -> None:
        hop = proxy("http", 1)
        assert run(chain(hop), Opens(OPENS_A), Says(HTTP_ASKS_WORK), Hears(HTTP_YES)) == (hop,)

    def test_each_hop_is_asked_for_the_next_one_and_the_last_for_the_destination(self) -> None:
        path = (proxy("http", 1), proxy("socks4", 2), B, proxy("socks4a", 4))
        assert (
            run(
                chain(*path),
                Opens(OPENS_A),
                Says(b"CONNECT 192.0.2.2:1080 HTTP/1.1\r\nHost: 192.0.2.2:1080\r\n\r\n"),
                Hears(HTTP_YES),
                Says(b"\4\1\x04\x38\xc0\0\2\x02\0"),
                Hears(b"\0\x5a" + bytes(6)),
                *through(4),
                Says(b"\4\1\x01\xbb\0\0\0\1\0example.com\0"),
                Hears(b"\0\x5a" + bytes(6)),
            )
            == path
        )

    def test_a_hop_by_name_is_left_to_the_hop_before_it(self) -> None:
        named = Proxy(scheme="socks5", address=Address("hop.example", 1080))
        request = b"\5\1\0\3\x0bhop.example\x04\x38"
        lines = (Opens(OPENS_A), Says(GREETING), Hears(NO_LOGIN), Says(request), Hears(YES), *TO_WORK)
        assert run(chain(A, named), *lines) == (A, named)

    def test_the_first_hop_by_name(self) -> None:
        named = Proxy(scheme="socks5", address=Address("hop.example", 1080))
        assert run(chain(named), Opens("hop.example:1080"), *TO_WORK) == (named,)

    def test_a_bound_address_of_any_kind(self) -> None:
        for bound in (b"\1\x7f\0\0\1\x04\x38", b"\3\7bnd.tld\0\x50", b"\3\0\0\0", b"\4" + bytes(15) + b"\1\0\x50"):
            assert run(
                chain(A), Opens(OPENS_A), Says(GREETING), Hears(NO_LOGIN), Says(ASKS_WORK), Hears(b"\5\0\0" + bound)
            ) == (A,)


GREETS: tuple[Line, ...] = (Says(GREETING), Hears(NO_LOGIN))
ASKED: tuple[Line, ...] = (*GREETS, Says(ASKS_WORK))
WITH_LOGIN = proxy("socks5", 1, b"alice", b"s cret")
LOGIN_SAID: tuple[Line, ...] = (Says(LOGIN_GREETING), Hears(LOGIN), Says(b"\1\5alice\6s cret"))
HTTP = proxy("http", 1)
SOCKS4A = proxy("socks4a", 1)
SOCKS4A_ASKED = Says(b"\4\1\x01\xbb\0\0\0\1\0example.com\0")

# hop, what is said once it's connected, phase, cause, errno
FAILURES: list[tuple[Proxy, tuple[Line, ...], str, Cause, int]] = [
    (A, (Says(GREETING), Silence()), "greeting", Cause.TIMED_OUT, errno.ETIMEDOUT),
    (A, (Says(GREETING), Cut()), "greeting", Cause.CLOSED, errno.ECONNRESET),
    (A, (Says(GREETING), Cut(b"\5")), "greeting", Cause.CLOSED, errno.ECONNRESET),
    (A, (Says(GREETING), Breaks(refused(errno.ECONNRESET))), "greeting", Cause.CLOSED, errno.ECONNRESET),
    (A, (Says(GREETING, refused(errno.EPIPE)),), "greeting", Cause.CLOSED, errno.ECONNRESET),
    (A, (Says(GREETING), Hears(NO_METHOD)), "greeting", Cause.NOT_ALLOWED, errno.EACCES),
    (A, (Says(GREETING), Hears(b"HT")), "greeting", Cause.NONSENSE, errno.ECONNABORTED),
    (A, (Says(GREETING), Hears(LOGIN)), "greeting", Cause.NONSENSE, errno.ECONNABORTED),
    (A, (Says(GREETING), Hears(b"\5\1")), "greeting", Cause.NONSENSE, errno.ECONNABORTED),
    (WITH_LOGIN, (*LOGIN_SAID, Hears(b"\1\1")), "authentication", Cause.NOT_ALLOWED, errno.EACCES),
    (WITH_LOGIN, (*LOGIN_SAID, Silence()), "authentication", Cause.TIMED_OUT, errno.ETIMEDOUT),
    (WITH_LOGIN, (*LOGIN_SAID, Cut()), "authentication", Cause.CLOSED, errno.ECONNRESET),
    (WITH_LOGIN, (*LOGIN_SAID, Hears(b"\7\0")), "authentication", Cause.NONSENSE, errno.ECONNABORTED),
    (A, (*ASKED, Silence()), "request", Cause.TIMED_OUT, errno.ETIMEDOUT),
    (A, (*ASKED, Cut()), "request", Cause.CLOSED, errno.ECONNRESET),
    (A, (*ASKED, Cut(b"\5\0\0\1\0\0")), "request", Cause.CLOSED, errno.ECONNRESET),
    (A, (*ASKED, Hears(b"\4\0")), "request", Cause.NONSENSE, errno.ECONNABORTED),
    (A, (*ASKED, Hears(b"\5\0\0\x09")), "request", Cause.NONSENSE, errno.ECONNABORTED),
    (A, (*ASKED, Hears(b"\5\1")), "request", Cause.GENERAL_FAILURE, errno.ECONNREFUSED),
    (A, (*ASKED, Hears(b"\5\2")), "request", Cause.NOT_ALLOWED, errno.EACCES),
    (A, (*ASKED, Hears(b"\5\3")), "request", Cause.NETWORK_UNREACHABLE, errno.ENETUNREACH),
    (A, (*ASKED, Hears(b"\5\4")), "request", Cause.HOST_UNREACHABLE, errno.EHOSTUNREACH),
    (A, (*ASKED, Hears(b"\5\5")), "request", Cause.REFUSED, errno.ECONNREFUSED),
    (A, (*ASKED, Hears(b"\5\6")), "request", Cause.TIMED_OUT, errno.ETIMEDOUT),
    (A, (*ASKED, Hears(b"\5\7")), "request", Cause.COMMAND_NOT_SUPPORTED, errno.EOPNOTSUPP),
    (A, (*ASKED, Hears(b"\5\x08")), "request", Cause.ADDRESS_NOT_SUPPORTED, errno.EAFNOSUPPORT),
    (A, (*ASKED, Hears(b"\5\x5b")), "request", Cause.GENERAL_FAILURE, errno.ECONNREFUSED),
    (SOCKS4A, (SOCKS4A_ASKED, Hears(b"\0\x5b")), "request", Cause.GENERAL_FAILURE, errno.ECONNREFUSED),
    (SOCKS4A, (SOCKS4A_ASKED, Hears(b"\0\x5d")), "request", Cause.NOT_ALLOWED, errno.EACCES),
    (SOCKS4A, (SOCKS4A_ASKED, Hears(b"\5\0")), "request", Cause.NONSENSE, errno.ECONNABORTED),
    (HTTP, (Says(HTTP_ASKS_WORK), Hears(b"HTTP/1.1 403 No\r\n")), "request", Cause.NOT_ALLOWED, errno.EACCES),
    (HTTP, (Says(HTTP_ASKS_WORK), Hears(b"HTTP/1.1 407 Who?\r\n")), "authentication", Cause.NOT_ALLOWED, errno.EACCES),
    (HTTP, (Says(HTTP_ASKS_WORK), Hears(b"HTTP/1.1 502 Bad\r\n")), "request", Cause.HOST_UNREACHABLE,
     errno.EHOSTUNREACH),
    (HTTP, (Says(HTTP_ASKS_WORK), Hears(b"HTTP/1.0 504\n")), "request", Cause.TIMED_OUT, errno.ETIMEDOUT),
    (HTTP, (Says(HTTP_ASKS_WORK), Hears(b"SSH-2.0-Open")), "request", Cause.NONSENSE, errno.ECONNABORTED),
    (HTTP, (Says(HTTP_ASKS_WORK), Cut(b"\5\xff")), "request", Cause.NONSENSE, errno.ECONNABORTED),
    (HTTP, (Says(HTTP_ASKS_WORK), Cut(b"HTTP/1.1 200 OK\r\n")), "request", Cause.CLOSED, errno.ECONNRESET),
    (HTTP, (Says(HTTP_ASKS_WORK), Hears(b"HTTP/1.1 200 OK\r\n"), Silence()), "request", Cause.TIMED_OUT,
     errno.ETIMEDOUT),
]  # fmt: skip


@pytest.mark.parametrize(("hop", "lines", "phase", "cause", "number"), FAILURES)
def test_failures_of_one_hop(hop: Proxy, lines: tuple[Line, ...], phase: str, cause: Cause, number: int) -> None:
    with pytest.raises(DialError) as caught:
        run(chain(hop), Opens(OPENS_A), *lines)
    error = caught.value
    assert (error.hop, error.phase, error.cause, error.errno) == (str(hop), phase, cause, number)
    assert error.destination == WORK
    assert "example.com:443" in str(error)
    assert str(hop) in str(error)
    assert "s cret" not in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("failure", "cause", "number"),
    [
        (refused(errno.ECONNREFUSED), Cause.REFUSED, errno.ECONNREFUSED),
        (refused(errno.EHOSTUNREACH), Cause.HOST_UNREACHABLE, errno.EHOSTUNREACH),
        (refused(errno.ENETUNREACH), Cause.NETWORK_UNREACHABLE, errno.ENETUNREACH),
        (refused(errno.EACCES), Cause.NOT_ALLOWED, errno.EACCES),
        (refused(errno.ETIMEDOUT), Cause.TIMED_OUT, errno.ETIMEDOUT),
        (TimeoutError(), Cause.TIMED_OUT, errno.ETIMEDOUT),
        (refused(errno.EADDRNOTAVAIL), Cause.NETWORK_UNREACHABLE, errno.ENETUNREACH),
    ],
)
@pytest.mark.parametrize("mode", ["strict", "dynamic"])
def test_the_first_hop_is_down(failure: OSError, cause: Cause, number: int, mode: str) -> None:
    with pytest.raises(DialError) as caught:
        run(chain(A, mode=mode), Opens(OPENS_A, failure))
    error = caught.value
    assert (error.hop, error.phase, error.cause, error.errno) == (str(A), "connect", cause, number)


@pytest.mark.parametrize(
    ("destination", "scheme"),
    [(Address("example.com", 1), "socks4"), (Address("2001:db8::1", 1), "socks4a")],
)
def test_what_the_last_hop_cant_carry_is_nobodys_failure(destination: Address, scheme: str) -> None:
    last = proxy(scheme, 2)
    state = chain(A, last, mode="dynamic")
    with pytest.raises(DialError) as caught:
        run(state, Opens(OPENS_A), *through(2), destination=destination)
    assert (caught.value.hop, caught.value.errno) == (str(last), errno.EAFNOSUPPORT)
    assert state.selection(1000.0).path() == (A, last)


class TestTwoHops:
    """What a hop says to an earlier request is about the next hop; to the last one, about the destination."""

    @pytest.mark.parametrize("answer", [Hears(b"\5\5"), Hears(b"\5\4"), Silence()])
    def test_the_first_cant_reach_the_second(self, answer: Line) -> None:
        with pytest.raises(DialError) as caught:
            run(chain(A, B), Opens(OPENS_A), *GREETS, Says(asks(2)), answer)
        assert (caught.value.hop, caught.value.phase) == (str(A), f"request for {B}")

    def test_the_first_refuses_the_login(self) -> None:
        state = chain(WITH_LOGIN, B, mode="dynamic")
        lines = (Opens(OPENS_A), *LOGIN_SAID, Hears(b"\1\1"), Opens(OPENS_B), *TO_WORK)
        assert run(state, *lines) == (B,)

    @pytest.mark.parametrize("answer", [Cut(), Hears(b"\4\x5b"), Breaks(refused(errno.ECONNRESET))])
    def test_the_first_goes_wrong_while_it_connects_to_the_second(self, answer: Line) -> None:
        state = chain(A, B, mode="dynamic")
        assert run(state, Opens(OPENS_A), *GREETS, Says(asks(2)), answer, Opens(OPENS_B), *TO_WORK) == (B,)

    @pytest.mark.parametrize("answer", [Silence(), Cut(), Hears(b"\4\0"), Hears(NO_METHOD)])
    def test_the_second_goes_wrong(self, answer: Line) -> None:
        with pytest.raises(DialError) as caught:
            run(chain(A, B), Opens(OPENS_A), *through(2), Says(GREETING), answer)
        assert (caught.value.hop, caught.value.phase) == (str(B), "greeting")

    @pytest.mark.parametrize("answer", [Hears(b"\5\5"), Silence()])
    def test_the_destination_refuses(self, answer: Line) -> None:
        state = chain(A, B, mode="dynamic")
        with pytest.raises(DialError) as caught:
            run(state, Opens(OPENS_A), *through(2), *ASKED, answer)
        assert (caught.value.hop, caught.value.phase) == (str(B), "request")
        assert state.selection(1000.0).path() == (A, B), "no hop is dead because a destination is"


class TestModes:
    def test_strict_never_goes_round_a_hop(self) -> None:
        state = chain(A, B, C)
        for _ in range(2):
            with pytest.raises(DialError) as caught:
                run(state, Opens(OPENS_A, REFUSED))
            assert caught.value.hop == str(A)

    def test_dynamic_goes_round_the_first(self) -> None:
        state = chain(A, B, C, mode="dynamic")
        assert run(state, Opens(OPENS_A, REFUSED), Opens(OPENS_B), *through(3), *TO_WORK) == (B, C)
        assert run(state, Opens(OPENS_B), *through(3), *TO_WORK) == (B, C)

    def test_dynamic_goes_round_one_in_the_middle_from_the_beginning(self) -> None:
        state = chain(A, B, C, mode="dynamic")
        first = (Opens(OPENS_A), *GREETS, Says(asks(2)), Hears(b"\5\5"))
        assert run(state, *first, Opens(OPENS_A), *through(3), *TO_WORK) == (A, C)

    def test_dynamic_with_no_hop_left_says_what_the_last_one_did(self) -> None:
        state = chain(A, B, mode="dynamic")
        with pytest.raises(DialError) as caught:
            run(state, Opens(OPENS_A, REFUSED), Opens(OPENS_B, TimeoutError()))
        assert (caught.value.hop, caught.value.errno) == (str(B), errno.ETIMEDOUT)

    def test_dynamic_never_goes_without_any_hop(self) -> None:
        state = chain(A, mode="dynamic")
        for _ in range(3):
            with pytest.raises(DialError):
                run(state, Opens(OPENS_A, REFUSED))

    def test_a_dead_hop_is_tried_again_later(self) -> None:
        state, clock = chain(A, B, mode="dynamic"), Clock()
        run(state, Opens(OPENS_A, REFUSED), Opens(OPENS_B), *TO_WORK, clock=clock)
        clock.now += 31
        assert run(state, Opens(OPENS_A), *through(2), *TO_WORK, clock=clock) == (A, B)

    def test_round_robin_takes_turns_and_leaves_out_the_dead(self) -> None:
        state = chain(A, B, C, mode="round_robin", length=1)
        assert run(state, Opens(OPENS_A), *TO_WORK) == (A,)
        assert run(state, Opens(OPENS_B, REFUSED), Opens(OPENS_C), *TO_WORK) == (C,)
        assert run(state, Opens(OPENS_A), *TO_WORK) == (A,)
        assert run(state, Opens(OPENS_C), *TO_WORK) == (C,)

    def test_random_draws_another_hop_for_a_dead_one_and_keeps_the_length(self) -> None:
        state = chain(A, B, C, mode="random", length=2)
        by_name = {str(hop.address): hop for hop in (A, B, C)}
        tried: list[Proxy] = []
        steps = dial(state, WORK, Clock())
        step = next(steps)
        assert isinstance(step, hops.Open)
        tried.append(by_name[str(step.address)])
        step = steps.throw(refused(errno.ECONNREFUSED))
        assert isinstance(step, hops.Open)
        first = by_name[str(step.address)]
        assert first not in tried
        (second,) = {A, B, C} - {first, *tried}
        greeting = steps.send(None)
        assert isinstance(greeting, Send)
        steps.close()
        assert set(state.selection(1000.0).path()) == {first, second}

    def test_random_gives_up_when_too_few_are_left(self) -> None:
        state = chain(A, B, mode="random", length=2)
        steps = dial(state, WORK, Clock())
        next(steps)
        with pytest.raises(DialError):
            steps.throw(refused(errno.ECONNREFUSED))

    def test_a_dial_ends_before_a_held_connection_would(self) -> None:
        state, clock = chain(A, B, C, mode="dynamic"), Clock()
        steps = dial(state, WORK, clock)
        next(steps)
        clock.now += MOST_TIME + 1
        with pytest.raises(DialError) as caught:
            steps.throw(TimeoutError())
        assert caught.value.hop == str(A)
