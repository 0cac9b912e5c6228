"""The conversation alone (pysocksify/protocol/serve.py), given cases: whole and in pieces, as fast as it goes.

What must be so of every case: nothing is raised but a ConversationError; the pieces come to the same as the whole;
after the client's end it's over; nobody comes to a request without the login that is asked for; any reply to it can be
said; what is left over is the end of what was sent; and all in time.
"""

import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pysocksify.address import Address
from pysocksify.codes import Cd
from pysocksify.errors import Cause, ClientRefusedError, ConversationError, PeerClosedError
from pysocksify.protocol.conversation import Conversation
from pysocksify.protocol.serve import Authenticate, Request, reply, serve
from scripts.fuzz_cases import Cases, Ports, Wrong, watched

PORTS = Ports(80, 443, 65535)
HANG = 5.0  # s that a block may stand still; a case takes less than a millisecond
BLOCK = 500
CAUSES = (None, *Cause)
BOUND = (None, Address("192.0.2.1", 1), Address("2001:db8::1", 65535))
Judge = Callable[[Authenticate], bool | Cd]
# whether a login is asked for, and whether an identd is
SETTINGS = ((False, False), (True, False), (False, True))


@dataclass(slots=True)
class Outcome:
    """What a conversation came to. `rest` is what it left; `asked`, the logins that were asked about."""

    said: bytes
    request: Request | None
    failure: str
    kind: str
    rest: bytes
    asked: list[tuple[bytes, bytes | None, bool]]


def run(numbers: range) -> Counter[str]:
    """Look at all these cases; what they came to, by kind. Raises Wrong, with the case's number in it."""
    cases, kinds, now = Cases(PORTS), Counter[str](), numbers.start
    try:
        with watched() as within:
            for now in numbers:
                if now % BLOCK == 0:
                    within(HANG)
                kinds[look(cases, now)] += 1
    except Exception as error:
        raise Wrong(f"case {now}: {cases.data(now)!r}: {type(error).__name__}: {error}") from error
    return kinds


def look(cases: Cases, number: int) -> str:
    """Look at one case, whole and in pieces; what it came to."""
    data = cases.data(number)
    login, userid = SETTINGS[number % len(SETTINGS)]
    whole = play([data] if data else [], login, userid)
    pieces = cases.cuts(data)
    if play(pieces, login, userid) != whole:
        raise Wrong(f"as {pieces} it is {play(pieces, login, userid)}, not {whole}")
    if whole.request is not None:
        if not data.endswith(whole.rest):
            raise Wrong(f"it leaves {whole.rest!r}")
        if login and not any(right for _, _, right in whole.asked):
            raise Wrong("a request without a login")
        _look_at_replies(whole.request, number)
    return whole.kind


def by_dice(login: Authenticate) -> bool | Cd:
    """Some are let in, and always the same ones."""
    dice = zlib.crc32(login.username) % 4
    return Cd.NO_IDENTD if not dice and login.password is None else dice > 0


def play(pieces: list[bytes], login: bool, userid: bool, judge: Judge = by_dice) -> Outcome:
    """Run a conversation on these pieces, and the end behind them; `judge` answers its question."""
    said: list[bytes] = []
    asked: list[tuple[bytes, bytes | None, bool]] = []
    conversation = Conversation(serve(login_required=login, check_userid=userid))
    try:
        for at, piece in enumerate(pieces):
            conversation.receive(piece)
            _answer(conversation, asked, judge)
            said.append(conversation.outgoing())
            if conversation.done:
                rest = conversation.trailing + b"".join(pieces[at + 1 :])
                return Outcome(b"".join(said), conversation.result, "", conversation.result.version, rest, asked)
        conversation.receive_eof()
        _answer(conversation, asked, judge)
    except ConversationError as error:
        said.append(conversation.outgoing())
        kind = "refused" if isinstance(error, ClientRefusedError) else "cut" if _is_cut(error) else "nonsense"
        return Outcome(b"".join(said), None, f"{conversation.phase}: {error}", kind, b"", asked)
    raise Wrong("it isn't over at the client's end")


def _is_cut(error: ConversationError) -> bool:
    return isinstance(error, PeerClosedError)


def _answer(conversation: Conversation[Request], asked: list[tuple[bytes, bytes | None, bool]], judge: Judge) -> None:
    while isinstance(conversation.event, Authenticate):
        login = conversation.event
        if asked:
            raise Wrong("it asks about a second login")
        answer = judge(login)
        asked.append((login.username, login.password, answer is True))
        conversation.answer(answer)


def _look_at_replies(request: Request, number: int) -> None:
    destination = request.destination
    if Address.of(destination.host, destination.port) != destination:
        raise Wrong(f"the destination {destination!r} isn't canonical")
    cause = CAUSES[number % len(CAUSES)]
    if not reply(request, cause, BOUND[number % len(BOUND)]):
        raise Wrong(f"no reply for {cause}")


def measured(numbers: range) -> tuple[Counter[str], float]:
    """As `run`, with the seconds that it took."""
    start = time.perf_counter()
    kinds = run(numbers)
    return kinds, time.perf_counter() - start
