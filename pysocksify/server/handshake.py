"""A client's handshake: everything up to its request, its login among it.

Theory of operation. The conversation says what is to be read and what is asked of a login. Where the answer takes its
time (a thread that hashes, the client's identd) nothing is read until it's there, but the client's end is looked for,
and who leaves takes the question along. A reset is leaving. So is a FIN while a login waits to be hashed, unless bytes
came before it that nothing was made of yet: a client may send its login, its request, its data and the end of them at
once. With an identd, whose time is short, a FIN is no more than it is elsewhere in a handshake: the client hears the
answer.

Hashing has threads of its own, or wrong logins would keep everybody's names from being looked up. No more logins wait
for them than there are sessions, and clients take turns.
"""

import select
import socket
from collections.abc import Callable
from functools import partial

from pysocksify.address import Address
from pysocksify.codes import Cd
from pysocksify.errors import ClientRefusedError, ConversationError, PeerClosedError
from pysocksify.protocol.conversation import Conversation
from pysocksify.protocol.serve import Authenticate, Request, serve
from pysocksify.reactor import READ, Reactor
from pysocksify.server.identd import Ident
from pysocksify.server.shared import READ_SIZE, Client, Shared, has_left, say
from pysocksify.server.users import HASHES_AT_ONCE, shown
from pysocksify.threads import Job, Threads

IDENTD_LIMIT = 10.0  # s; SOCKS4's text leaves it open


def prepare(reactor: Reactor) -> None:
    """Load and open at the start what the first of some clients would: once no descriptor is left, neither can be done,
    and the server is to answer all the same. Raises OSError."""
    Address.of("ü", 0)  # a name that isn't ASCII takes codecs of which each loads the next
    reactor.threads().prepare()
    _hashing(reactor).prepare()


def _hashing(reactor: Reactor) -> Threads:
    return reactor.threads("hashing", HASHES_AT_ONCE)


class Handshake:
    """Watches the client's socket until one of these is called, once. Raises OSError from the constructor: it can't be
    watched. Who is asked or told of a failure takes the watch over (`Reactor.rewatch`).

    asked       with the request, the user (None: hasn't logged in) and the payload that came behind the request
    failed      with one of `counting.FAILURES`, the words for the log, and what the client is told before it's closed
    gone        there is nobody left
    """

    __slots__ = ("_asked", "_client", "_connection", "_conversation", "_failed", "_gone", "_ident", "_login", "_shared",
                 "_trust", "_user", "_users")  # fmt: skip

    def __init__(
        self,
        shared: Shared,
        connection: socket.socket,
        client: Client,
        *,
        trust: bool,
        asked: Callable[[Request, str | None, bytes], None],
        failed: Callable[[str, str, bytes], None],
        gone: Callable[[], None],
    ) -> None:
        """`trust`: no login is looked at, since nothing will come of it."""
        settings = shared.settings
        self._shared = shared
        self._users = settings.users
        self._connection = connection
        self._client = client
        self._trust = trust
        self._asked, self._failed, self._gone = asked, failed, gone
        self._user: str | None = None
        self._ident: Ident | None = None
        self._login: Job | None = None
        steps = serve(login_required=bool(settings.users), check_userid=settings.identd)
        self._conversation: Conversation[Request] | None = Conversation(steps)
        shared.reactor.watch(connection.fileno(), READ, self._receive)

    def cancel(self) -> None:
        """Give up; nothing is called any more."""
        self._conversation = None
        self._shared.reactor.unwatch(self._connection.fileno())
        if self._ident is not None:
            self._ident.cancel()
        if self._login is not None:
            self._login.cancel()

    def _receive(self, events: int) -> None:
        conversation = self._conversation
        assert conversation is not None
        try:
            data = self._connection.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        try:
            if data:
                conversation.receive(data)
            else:
                conversation.receive_eof()
        except ConversationError as error:
            self._refuse(conversation, error)
        else:
            self._go_on(conversation)

    def _go_on(self, conversation: Conversation[Request]) -> None:
        """Answer what the conversation asks; then say what it says."""
        try:
            while isinstance(conversation.event, Authenticate):
                allowed = self._may_enter(conversation.event)
                if allowed is None:
                    return
                conversation.answer(allowed)
        except ConversationError as error:
            self._refuse(conversation, error)
            return
        if not say(self._connection, conversation.outgoing()):
            self._end()
        elif conversation.done:
            self._conversation = None
            self._asked(conversation.result, self._user, conversation.trailing)

    def _may_enter(self, login: Authenticate) -> bool | None:
        """Whether this login is right; None: somebody is asked, and the conversation goes on then."""
        shared, users = self._shared, self._users
        name, password = login.username, login.password
        if self._trust:
            return True
        if password is None:
            if users:  # a user id proves nothing, and an identd is the client's own
                return False
            self._look_for_end(0)  # EPOLLERR and EPOLLHUP come always
            peer, local = self._client.peer, self._client.local
            self._ident = Ident(shared.reactor, peer, local, IDENTD_LIMIT, self._identified)
            return None
        if not users:
            return True
        right = users.quick(name, password)
        if right is None:
            self._look_for_end(select.EPOLLRDHUP)
            verify, source = partial(users.verify, name, password), self._client.source
            self._login = _hashing(shared.reactor).run(verify, self._verified, source)
        elif right:
            self._user = shown(name)
        return right

    def _look_for_end(self, events: int) -> None:
        """Until the answer is there; without READ, which would spin when the client has sent more already."""
        self._shared.reactor.rewatch(self._connection.fileno(), events, self._on_client_end)

    def _on_client_end(self, events: int) -> None:
        assert self._conversation is not None
        if has_left(self._connection, events, self._conversation.has_more):
            self._end()
        else:
            self._shared.reactor.modify(self._connection.fileno(), 0)

    def _identified(self, said: str | None) -> None:
        """What the client's identd says of the user (None: it can't be asked)."""
        self._ident = None
        assert self._conversation is not None
        login = self._conversation.event
        assert isinstance(login, Authenticate)
        right = said is not None and said.encode("utf-8", "surrogateescape") == login.username
        if right:
            self._user = shown(login.username)
        self._answer(self._conversation, Cd.NO_IDENTD if said is None else right)

    def _verified(self, right: bool | None, error: BaseException | None) -> None:
        self._login = None
        conversation = self._conversation
        assert conversation is not None
        if error is not None:
            if not isinstance(error, OSError):
                raise error
            self._shared.report.problem("hash", f"a login can't be looked at: {error}")
        assert isinstance(conversation.event, Authenticate)
        if right:
            self._user = shown(conversation.event.username)
        self._answer(conversation, bool(right))

    def _answer(self, conversation: Conversation[Request], allowed: bool | Cd) -> None:
        """Go on with the conversation that waited for this."""
        self._shared.reactor.rewatch(self._connection.fileno(), READ, self._receive)
        try:
            conversation.answer(allowed)
        except ConversationError as failure:
            self._refuse(conversation, failure)
        else:
            self._go_on(conversation)

    def _refuse(self, conversation: Conversation[Request], error: ConversationError) -> None:
        host, report = self._client.peer.host, self._shared.report
        failure = "closed"
        if isinstance(error, ClientRefusedError):
            failure = "login"
            report.problem(f"refused {host}", f"client {host} refused: {error}")
        elif not isinstance(error, PeerClosedError):
            failure = "protocol"
            report.problem(f"nonsense {host}", f"client {host}: {error}")
        self._conversation = None
        self._failed(failure, f"{conversation.phase or 'greeting'}: {error}", conversation.outgoing())

    def _end(self) -> None:
        self.cancel()
        self._gone()
