"""The only loop over hops: whom to connect to, what to say there, and whose failure a failure is. No I/O.

`dial` is a generator of steps. Whoever performs them sends back what a Take waited for, and throws in what went
wrong: OSError (TimeoutError among them), PeerClosedError with the bytes that had come, or RemoteProtocolError for too
many of them.

Whose failure: what a hop answers to the *last* request, silence included, is about the destination, and that is what
the program is told. What it answers to an earlier request is about the next hop. Everything else (no connection,
silence before the request, nonsense, a login refused) is about the hop itself. A hop that failed is dead, and the
chain's mode says whether there's another path to try.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from pysocksify.address import Address
from pysocksify.errors import (
    Cause,
    ConversationError,
    DialError,
    LocalProtocolError,
    ReplyError,
    cause_of_errno,
)
from pysocksify.protocol import http_connect, socks4, socks5
from pysocksify.protocol.conversation import Accepted, Exactly, Need, Phase, Send, Steps, Until
from pysocksify.route.chain import Chain, ChainState, Proxy

MOST_TIME = 120.0
"""Seconds that one dial may take in all: a held connection's SYN is retried for 127 s (tcp_syn_retries, tcp(7))."""


@dataclass(slots=True)
class Open:
    """Connect to `address` anew, giving up what was connected before; TimeoutError after `timeout` seconds."""

    address: Address
    timeout: float


@dataclass(slots=True)
class Take:
    """Read the bytes that `need` names and none after them; TimeoutError after `timeout` seconds."""

    need: Need
    timeout: float


DialSteps = Generator[Open | Take | Send, Any, tuple[Proxy, ...]]


class _HopFailure(Exception):
    """A hop, and what to tell when there's no path around it."""

    def __init__(self, proxy: Proxy, error: DialError) -> None:
        super().__init__(str(error))
        self.proxy = proxy
        self.error = error


def client(proxy: Proxy, destination: Address) -> Steps[Accepted]:
    """What is said to `proxy` to be connected to `destination`."""
    if proxy.scheme == "socks5":
        return socks5.connect(destination, username=proxy.username, password=proxy.password)
    if proxy.scheme == "http":
        return http_connect.connect(destination, username=proxy.username, password=proxy.password)
    return socks4.connect(destination, userid=proxy.username or b"", remote_dns=proxy.scheme == "socks4a")


def dial(state: ChainState, destination: Address, clock: Callable[[], float]) -> DialSteps:
    """Connect to `destination` through the chain; the hops that were used are returned. DialError: it can't be."""
    selection = state.selection(clock())
    end = clock() + MOST_TIME
    while True:
        path = selection.path()
        try:
            yield from _through(path, destination, state.chain)
        except _HopFailure as failure:
            if not selection.dead(failure.proxy, clock()) or clock() > end:
                raise failure.error from None
        else:
            return path


def _through(path: tuple[Proxy, ...], destination: Address, chain: Chain) -> DialSteps:
    first = path[0]
    try:
        yield Open(first.address, chain.connect_timeout)
    except OSError as error:
        raise _HopFailure(first, _about(first, "connect", destination, error)) from error
    for index, proxy in enumerate(path):
        following = path[index + 1] if index + 1 < len(path) else None
        yield from _ask(proxy, following, destination, chain.reply_timeout)
    return path


def _ask(proxy: Proxy, following: Proxy | None, destination: Address, timeout: float) -> DialSteps:
    """Let `proxy` connect to the next hop, or to the destination when there is none."""
    steps = client(proxy, destination if following is None else following.address)
    phase = "request"
    try:
        step = next(steps)
        while True:
            if isinstance(step, (Exactly, Until)):
                try:
                    data = yield Take(step, timeout)
                except ConversationError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(data)
            elif isinstance(step, Send):
                yield step
                step = next(steps)
            else:
                assert isinstance(step, Phase), "a client asks its caller nothing"
                phase = step.name
                step = next(steps)
    except StopIteration:
        return ()
    except LocalProtocolError as error:
        raise _about(proxy, phase, destination, error) from error
    except (ReplyError, TimeoutError) as error:
        if phase != "request":
            raise _HopFailure(proxy, _about(proxy, phase, destination, error)) from error
        if following is None:
            raise _about(proxy, phase, destination, error) from error
        failure = _about(proxy, f"request for {following}", destination, error)
        raise _HopFailure(following, failure) from error
    except (ConversationError, OSError) as error:
        raise _HopFailure(proxy, _about(proxy, phase, destination, error)) from error


def _about(proxy: Proxy, phase: str, destination: Address, error: Exception) -> DialError:
    if isinstance(error, ConversationError):
        return DialError(str(proxy), phase, destination, error.cause, str(error))
    if isinstance(error, TimeoutError):
        words = "no connection in time" if phase == "connect" else "no reply in time"
        return DialError(str(proxy), phase, destination, Cause.TIMED_OUT, words)
    assert isinstance(error, OSError)
    cause = cause_of_errno(error.errno or 0)
    return DialError(str(proxy), phase, destination, cause, error.strerror or str(error))
