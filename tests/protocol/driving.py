"""Drives conversations in tests: whole, byte by byte, cut anywhere, cut short, and as dialogues."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pysocksify.codes import Cd
from pysocksify.errors import (
    ClientRefusedError,
    ConversationError,
    PeerClosedError,
    RemoteProtocolError,
    ReplyError,
)
from pysocksify.protocol.conversation import Conversation, Event, Exactly, Steps, Until

T = TypeVar("T")
Start = Callable[[], Steps[Any]]

# No parser may want more than this for one need: the head of an HTTP message is the largest thing there is.
MOST = 65536
TRAILING = b"\x05\x00220 banner\r\n\r\n\0"


@dataclass
class Ending:
    """What became of a conversation, comparable."""

    sent: bytes
    result: object
    error: tuple[type[ConversationError], str] | None
    events: list[Event]
    trailing: bytes
    phase: str
    waits: bool


def play(start: Start, pieces: Iterable[bytes], *, eof: bool = False, answers: Sequence[bool | Cd] = ()) -> Ending:
    """Give a conversation these pieces; its events are answered in turn, with True when `answers` has no more."""
    conversation = Conversation(start())
    events: list[Event] = []
    error: ConversationError | None = None
    left = list(answers)
    taken = list(pieces)
    try:
        for piece in (*taken, None):
            if piece is not None:
                conversation.receive(piece)
            elif eof:
                conversation.receive_eof()
            while conversation.event is not None:
                events.append(conversation.event)
                conversation.answer(left.pop(0) if left else True)
            need = conversation.need
            if isinstance(need, Exactly):
                assert need.size <= MOST
            elif isinstance(need, Until):
                assert need.limit <= MOST
    except ConversationError as caught:
        error = caught
        text = str(caught)
        assert text
        assert text.isascii()
        assert "\n" not in text
    return Ending(
        sent=conversation.outgoing(),
        result=conversation.result if conversation.done else None,
        error=(type(error), str(error)) if error else None,
        events=events,
        trailing=conversation.trailing,
        phase=conversation.phase,
        waits=conversation.need is not None,
    )


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The data in pieces, cut at these places."""
    ends = [*sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def bytewise(data: bytes) -> list[bytes]:
    """The data one byte at a time."""
    return [data[i : i + 1] for i in range(len(data))]


def read(steps: Steps[T], data: bytes) -> T:
    """What these steps make of exactly this data."""
    conversation = Conversation(steps)
    conversation.receive(data)
    assert conversation.trailing == b""
    return conversation.result


def check_good(start: Start, data: bytes, result: object) -> None:
    """The data gives the result, however it is cut and whatever follows; less of it waits, or is a PeerClosedError."""
    whole = play(start, [data])
    assert whole.error is None
    assert whole.result == result
    assert whole.trailing == b""
    assert play(start, bytewise(data)) == whole
    trailed = play(start, [data + TRAILING])
    assert trailed.result == result
    assert trailed.trailing == TRAILING
    slow = play(start, bytewise(data + TRAILING))
    assert (slow.result, slow.trailing) == (result, TRAILING)
    for end in range(len(data)):
        assert play(start, [data[:end]]).waits
        short = play(start, [data[:end]], eof=True)
        assert short.error is not None
        assert short.error[0] is PeerClosedError


def check_bad(start: Start, data: bytes, kind: type[ConversationError], *words: str) -> Ending:
    """The data gives an error of that kind with these words in it, however it is cut."""
    whole = play(start, [data])
    assert whole.error is not None, whole
    assert issubclass(whole.error[0], kind), whole.error
    for word in words:
        assert word in whole.error[1]
    slow = play(start, bytewise(data))
    assert (slow.error, slow.sent) == (whole.error, whole.sent)
    return whole


def check_any(start: Start, data: bytes, places: list[int], *, eof: bool) -> None:
    """Any bytes give a result, "need more", or an error that is the other side's; where they are cut doesn't matter."""
    whole = play(start, [data], eof=eof)
    if whole.error:
        assert issubclass(whole.error[0], RemoteProtocolError | ReplyError | ClientRefusedError | PeerClosedError)
    else:
        assert whole.waits != (whole.result is not None)
        assert not (eof and whole.waits)
    assert play(start, cut(data, places), eof=eof) == whole


def dialogue(start: Start, *lines: tuple[str, bytes], trailing: bytes = b"") -> Any:
    """Play lines of ("we", bytes that must be sent now) and ("they", bytes that come); returns the result."""
    conversation = Conversation(start())
    for who, data in lines:
        if who == "we":
            assert conversation.outgoing() == data
        else:
            assert conversation.outgoing() == b""
            conversation.receive(data)
    assert conversation.outgoing() == b""
    assert conversation.trailing == trailing
    return conversation.result
