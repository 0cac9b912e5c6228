"""Conversation: runs one side of a handshake from whatever pieces its bytes come in.

Theory of operation. A protocol is a generator that reads like straight code: it yields *steps* and is sent back what it
waited for.

Steps are plain dataclasses, not frozen ones: several are made for each message, and those take three times as long to
make.

- `Exactly` and `Until` are needs. They are sent back bytes, and these bytes belong to the conversation for sure.
- `Send` is one write, `Phase` says what errors from here on are about. Nothing is sent back.
- an `Event` is a question to the caller (a server's: may this user in?). Its answer is sent back.

The Conversation owns the bytes that have come and not been asked for yet. It runs the generator as far as they go and
stops at a need that they don't meet, at an event, at the end or at an error. What is left at the end is `trailing`: it
belongs to whoever uses the connection next.

An end of file is thrown into the generator as PeerClosedError where a need can't be met any more, so a protocol may
make something of a message that was cut. A limit that is passed comes as RemoteProtocolError, so a server can still
answer.

Who reads from a socket that isn't its own must not take a byte of `trailing`. Two ways to be sure:
- serve the needs one by one: recv(size) for `Exactly`; for `Until` peek, then take up to the delimiter's end; or
- peek at all there is, give it to `receive`, and take as many bytes less len(trailing): a need that isn't met yet owns
  all the bytes that have come.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from pysocksify.address import Address
from pysocksify.errors import ConversationError, PeerClosedError, RemoteProtocolError

T = TypeVar("T")


@dataclass(slots=True)
class Exactly:
    """The next `size` bytes belong to this message. Sent back: these bytes."""

    size: int


@dataclass(slots=True)
class Until:
    """The bytes up to and including `delimiter`, `limit` bytes at most, belong to this message. Sent back: these bytes.

    `what` names them in the RemoteProtocolError that is thrown when the first `limit` bytes don't hold the delimiter.
    """

    delimiter: bytes
    limit: int
    what: str = "message"


@dataclass(slots=True)
class Send:
    """One write."""

    data: bytes


@dataclass(slots=True)
class Phase:
    """Errors from here on belong to this phase: "greeting", "authentication" or "request"."""

    name: str


class Event:
    """A question to the caller; subclasses say what is asked and what is sent back."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """The proxy is through to the destination; `bound` is what it says of its own end, if it says anything usable."""

    bound: Address | None


Need: TypeAlias = Exactly | Until
Steps = Generator[Exactly | Until | Send | Phase | Event, Any, T]


class Conversation(Generic[T]):
    """One side of one handshake. See the module's text.

    `receive`, `receive_eof`, `answer` and the constructor raise the ConversationError that ends the conversation; what
    had been said until then is still in `outgoing()`.
    """

    def __init__(self, steps: Steps[T]) -> None:
        self.phase = ""
        self.need: Need | None = None
        self.event: Event | None = None
        self.done = False
        self.failure: ConversationError | None = None
        self._steps = steps
        self._outgoing: list[bytes] = []
        self._received = bytearray()
        self._searched = 0
        self._eof = False
        self._taken = 0
        self._result: list[T] = []
        self._resume(None)
        self._continue()

    @property
    def result(self) -> T:
        """What the steps returned. Only once `done`."""
        if not self._result:
            raise RuntimeError("the conversation is not over")
        return self._result[0]

    @property
    def trailing(self) -> bytes:
        """The bytes that came after the conversation's end; empty before it."""
        return bytes(self._received) if self.done else b""

    @property
    def has_more(self) -> bool:
        """Whether bytes have come that nothing was made of yet."""
        return bool(self._received)

    def outgoing(self) -> bytes:
        """What is to be written, since the last call of this."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: bytes) -> None:
        """Take bytes from the other side, in whatever pieces they come."""
        if self.failure is not None:
            raise self.failure
        self._received += data
        self._continue()

    def receive_eof(self) -> None:
        """The other side sends no more."""
        if self.failure is not None:
            raise self.failure
        self._eof = True
        self._continue()

    def answer(self, value: object) -> None:
        """Answer `event`."""
        if self.event is None:
            raise RuntimeError("no event waits for an answer")
        self.event = None
        self._resume(value)
        self._continue()

    def _continue(self) -> None:
        while self.need is not None:
            try:
                data = self._take(self.need)
            except ConversationError as error:
                self._resume(error)
                continue
            if data is None:
                return
            self._resume(data)

    def _take(self, need: Need) -> bytes | None:
        """The bytes of a need, None when they aren't there yet."""
        if isinstance(need, Exactly):
            end = need.size if len(self._received) >= need.size else -1
        else:
            end = self._end_of(need)
        if end < 0:
            if self._eof:
                raise self._closed()
            return None
        data = bytes(self._received[:end])
        del self._received[:end]
        self._taken += end
        return data

    def _end_of(self, need: Until) -> int:
        found = self._received.find(need.delimiter, self._searched, need.limit)
        if found >= 0:
            return found + len(need.delimiter)
        if len(self._received) >= need.limit:
            raise RemoteProtocolError(f"{need.what} of {need.limit} bytes or more")
        self._searched = max(0, len(self._received) - len(need.delimiter) + 1)
        return -1

    def _closed(self) -> PeerClosedError:
        count = self._taken + len(self._received)
        if count == 0:
            return PeerClosedError("the connection was closed before anything came")
        bytes_ = "1 byte" if count == 1 else f"{count} bytes"
        return PeerClosedError(f"the connection was closed {bytes_} into the conversation", bytes(self._received))

    def _resume(self, value: object) -> None:
        """Run the steps up to their next need or event, or to their end; an error is thrown into them."""
        self.need = None
        self._searched = 0
        try:
            step = self._steps.throw(value) if isinstance(value, ConversationError) else self._steps.send(value)
            while True:
                if isinstance(step, Send):
                    self._outgoing.append(step.data)
                elif isinstance(step, Phase):
                    self.phase = step.name
                elif isinstance(step, Event):
                    self.event = step
                    return
                else:
                    self.need = step
                    return
                step = self._steps.send(None)
        except StopIteration as stop:
            self._result.append(stop.value)
            self.done = True
        except ConversationError as error:
            self.failure = error
            raise
