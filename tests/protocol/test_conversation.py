"""Conversation: needs, events, limits, the end of the input and what comes after the end."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.errors import PeerClosedError, RemoteProtocolError, ReplyError
from pysocksify.protocol.conversation import Conversation, Event, Exactly, Need, Phase, Send, Steps, Until
from tests.protocol.driving import check_good, cut


class Question(Event):
    """Asked in the middle."""


def netstring() -> Steps[bytes]:
    """A length in decimal digits, a colon, that many bytes (D. J. Bernstein's netstrings, less the comma)."""
    yield Phase("length")
    length: bytes = yield Until(b":", 4)
    yield Phase("text")
    data: bytes = yield Exactly(int(length[:-1]))
    yield Send(b"got ")
    yield Send(data)
    return data


def asking() -> Steps[tuple[bytes, object]]:
    first: bytes = yield Exactly(1)
    answer: object = yield Question()
    second: bytes = yield Exactly(1)
    return first + second, answer


def tolerant() -> Steps[bytes]:
    try:
        data: bytes = yield Until(b"\r\n", 8)
    except PeerClosedError as error:
        return b"closed " + error.partial
    except RemoteProtocolError as error:
        yield Send(b"too long")
        raise ReplyError("refused", error.cause, 7) from error
    return data


def two_ends() -> Steps[list[bytes]]:
    one: bytes = yield Until(b"ab", 9)
    two: bytes = yield Until(b"ba", 9)
    return [one, two]


def state(conversation: Conversation[Any]) -> tuple[Need | None, str, bool]:
    return conversation.need, conversation.phase, conversation.done


def asked(conversation: Conversation[Any]) -> Event | None:
    return conversation.event


@pytest.mark.parametrize(("data", "result"), [(b"0:", b""), (b"3:a:b", b"a:b"), (b"11:hello world", b"hello world")])
def test_any_pieces(data: bytes, result: bytes) -> None:
    check_good(netstring, data, result)


@given(st.binary(max_size=99), st.lists(st.integers(0, 200)))
def test_any_cuts(data: bytes, places: list[int]) -> None:
    conversation = Conversation(netstring())
    for piece in cut(b"%d:%b" % (len(data), data) + b"tail", places):
        conversation.receive(piece)
    assert conversation.result == data
    assert conversation.trailing == b"tail"


def test_one_need_after_the_other() -> None:
    conversation = Conversation(netstring())
    assert state(conversation) == (Until(b":", 4), "length", False)
    conversation.receive(b"2")
    assert state(conversation) == (Until(b":", 4), "length", False)
    conversation.receive(b":")
    assert state(conversation) == (Exactly(2), "text", False)
    assert conversation.outgoing() == b""
    with pytest.raises(RuntimeError):
        _ = conversation.result
    conversation.receive(b"xyz")
    assert state(conversation) == (None, "text", True)
    assert (conversation.result, conversation.trailing) == (b"xy", b"z")
    assert conversation.outgoing() == b"got xy"
    assert conversation.outgoing() == b""
    conversation.receive(b"more")
    conversation.receive_eof()
    assert conversation.trailing == b"zmore"


def test_a_delimiter_in_two_pieces() -> None:
    conversation = Conversation(two_ends())
    for piece in (b"..a", b"b.", b"ab", b"a."):
        conversation.receive(piece)
    assert conversation.result == [b"..ab", b".aba"]
    assert conversation.trailing == b"."


def test_bytes_wait_for_an_answer() -> None:
    conversation = Conversation(asking())
    with pytest.raises(RuntimeError):
        conversation.answer(True)
    conversation.receive(b"abc")
    assert isinstance(asked(conversation), Question)
    assert state(conversation) == (None, "", False)
    assert conversation.trailing == b""
    conversation.receive(b"d")
    conversation.answer("yes")
    assert asked(conversation) is None
    assert conversation.result == (b"ab", "yes")
    assert conversation.trailing == b"cd"


def test_an_end_of_file_waits_for_an_answer() -> None:
    conversation = Conversation(asking())
    conversation.receive(b"a")
    conversation.receive_eof()
    assert conversation.event is not None
    with pytest.raises(PeerClosedError):
        conversation.answer(True)


def test_a_limit_counts_the_delimiter() -> None:
    fits = Conversation(tolerant())
    fits.receive(b"123456\r\n")
    assert fits.result == b"123456\r\n"


@pytest.mark.parametrize(
    "pieces", [[b"1234567\r\n"], [b"1234567\r"], [b"12345678"], [b"1", b"2", b"345", b"67\r", b"\n"]]
)
def test_a_limit_is_thrown_into_the_steps(pieces: list[bytes]) -> None:
    conversation = Conversation(tolerant())

    def feed() -> None:
        for piece in pieces:
            conversation.receive(piece)

    with pytest.raises(ReplyError, match="refused") as caught:
        feed()
    assert conversation.outgoing() == b"too long"
    assert conversation.failure is caught.value
    assert conversation.need is None
    with pytest.raises(ReplyError):
        conversation.receive(b"x")
    with pytest.raises(ReplyError):
        conversation.receive_eof()


def test_the_steps_may_make_something_of_a_message_cut_short() -> None:
    conversation = Conversation(tolerant())
    conversation.receive(b"123")
    conversation.receive_eof()
    assert conversation.result == b"closed 123"


def test_an_end_of_file_says_how_far_it_came() -> None:
    nothing = Conversation(netstring())
    with pytest.raises(PeerClosedError, match="before anything came"):
        nothing.receive_eof()
    some = Conversation(netstring())
    some.receive(b"5:abc")
    with pytest.raises(PeerClosedError, match="5 bytes into") as caught:
        some.receive_eof()
    assert caught.value.partial == b"abc"


def many_lines() -> Steps[int]:
    count = 0
    while True:
        line: bytes = yield Until(b"\n", 10)
        count += 1
        if line == b"\n":
            return count


def test_thousands_of_needs_in_one_piece() -> None:
    conversation = Conversation(many_lines())
    conversation.receive(b"x\n" * 30_000 + b"\n")
    assert conversation.result == 30_001
