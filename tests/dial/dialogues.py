"""Plays a dial's steps as a dialogue: what is opened and sent, and what the hops answer or fail to."""

from dataclasses import dataclass

from pysocksify.dial.hops import DialSteps, Open, Take
from pysocksify.errors import PeerClosedError, RemoteProtocolError
from pysocksify.protocol.conversation import Exactly, Send
from pysocksify.route.chain import Proxy

CONNECT_TIMEOUT, REPLY_TIMEOUT = 3.0, 5.0


@dataclass(frozen=True)
class Opens:
    """A connection to `address` is asked for; it stands, or fails with `error`."""

    address: str
    error: OSError | None = None


@dataclass(frozen=True)
class Says:
    """These bytes are written, in one write; `error` is what the write ends with."""

    data: bytes
    error: OSError | None = None


@dataclass(frozen=True)
class Hears:
    """These bytes come: all of them are taken, and none is left over."""

    data: bytes


@dataclass(frozen=True)
class Silence:
    """Nothing comes in time."""


@dataclass(frozen=True)
class Cut:
    """The connection ends, with these bytes before."""

    data: bytes = b""


@dataclass(frozen=True)
class Breaks:
    """Reading fails with this error."""

    error: OSError


Line = Opens | Says | Hears | Silence | Cut | Breaks


def refused(number: int, words: str = "as the kernel says") -> OSError:
    """What connect(2), send(2) or recv(2) raises."""
    return OSError(number, words)


def play(steps: DialSteps, *lines: Line) -> tuple[Proxy, ...]:
    """Play all lines; the path is returned, and the dial's own error raised, at the last line and not before."""
    left = list(lines)
    step: Open | Take | Send = next(steps)
    try:
        while left:
            step = _play(steps, step, left.pop(0))
    except StopIteration as stop:
        assert not left, f"the dial ended before {left[0]}"
        path: tuple[Proxy, ...] = stop.value
        return path
    except Exception:
        assert not left, f"the dial failed before {left[0]}"
        raise
    raise AssertionError(f"the dial goes on with {step}")


def _play(steps: DialSteps, step: Open | Take | Send, line: Line) -> Open | Take | Send:
    if isinstance(line, Opens):
        assert isinstance(step, Open), step
        assert (str(step.address), step.timeout) == (line.address, CONNECT_TIMEOUT)
        return steps.send(None) if line.error is None else steps.throw(line.error)
    if isinstance(line, Says):
        assert isinstance(step, Send), step
        assert step.data == line.data
        return steps.send(None) if line.error is None else steps.throw(line.error)
    assert isinstance(step, Take), step
    assert step.timeout == REPLY_TIMEOUT
    if isinstance(line, Silence):
        return steps.throw(TimeoutError())
    if isinstance(line, Breaks):
        return steps.throw(line.error)
    if isinstance(line, Cut):
        return _feed(steps, step, line.data, cut=True)
    return _feed(steps, step, line.data, cut=False)


def _feed(steps: DialSteps, step: Open | Take | Send, data: bytes, *, cut: bool) -> Open | Take | Send:
    """Serve needs from `data` until it's used up; then the connection ends, if it's `cut`."""
    while data:
        assert isinstance(step, Take), f"{data!r} is left over at {step}"
        need = step.need
        if isinstance(need, Exactly):
            size = need.size
        else:
            found = data.find(need.delimiter)
            size = found + len(need.delimiter) if found >= 0 else len(data) + 1
            if found < 0 and len(data) >= need.limit:
                return steps.throw(RemoteProtocolError(f"{need.what} of more than {need.limit} bytes"))
        if size > len(data):
            assert cut, f"more than {data!r} is waited for: {need}"
            return steps.throw(PeerClosedError("the connection was closed in the handshake", data))
        taken, data = data[:size], data[size:]
        try:
            step = steps.send(taken)
        except (StopIteration, Exception):
            assert not data, f"{data!r} is left over at the end"
            raise
    if cut:
        assert isinstance(step, Take), step
        return steps.throw(PeerClosedError("the connection was closed in the handshake"))
    return step
