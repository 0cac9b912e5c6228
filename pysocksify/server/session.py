"""One client of the server: its handshake, its login, what it asked for, and the end.

Theory of operation. A session owns the client's socket and goes through these states, each with its own watch on it:

- handshake: readable. What comes goes to the conversation; what it says goes out. HANDSHAKE time limit.
- asking: not watched. Somebody has to be asked about the login (a thread that hashes, an identd); the limit runs on.
- at work: a CONNECT, a BIND or a UDP ASSOCIATE. Early payload waits in the kernel, but the client's end is looked for.
  Its FIN counts as "gone" unless payload came before it: a client may send its data and close its sending side before
  it has a reply.
- relaying: both sockets belong to the relay.
- parting, after a refusal: shut down for writing, and read until the client's end, so that no RST overtakes the reply.

A client that is over a limit goes through the handshake like others, and is refused in the reply: so it hears why.
Whatever ends a session calls `ended` once. close() gives it up in any state.
"""

import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from pysocksify.address import Address
from pysocksify.codes import Cd, Command
from pysocksify.errors import Cause, ClientRefusedError, ConversationError, PeerClosedError
from pysocksify.protocol.conversation import Conversation
from pysocksify.protocol.serve import Authenticate, Request, reply, serve
from pysocksify.reactor import READ, Reactor, Timer
from pysocksify.relay import PipePool, Relay, RelayOutcome
from pysocksify.report import DEBUG, Report
from pysocksify.server.associate import Association
from pysocksify.server.bind import Bind
from pysocksify.server.connect import Connect, Upstream
from pysocksify.server.counting import Counter
from pysocksify.server.happy_eyeballs import told
from pysocksify.server.identd import Ident
from pysocksify.server.journal import Entry, Journal
from pysocksify.server.settings import ServerSettings
from pysocksify.server.users import shown

PARTING_LIMIT = 10.0  # s; RFC 1928 section 6: closed no more than 10 seconds after the failure
OVER_LIMIT_HANDSHAKE = 5.0  # s for those who are only to be told that there are too many
IDENTD_LIMIT = 10.0  # s; SOCKS4's text leaves it open
READ_SIZE = 65536
IDLE_LOOKS = 4  # in the time of the idle limit
GONE = ("client_gone", "client went away")


@dataclass(slots=True)
class Shared:
    """What all sessions of one server have in common; a reload replaces `settings` and `upstream`."""

    reactor: Reactor
    report: Report
    journal: Journal | None
    counter: Counter
    pool: PipePool
    settings: ServerSettings
    upstream: Upstream


@dataclass(frozen=True, slots=True)
class Client:
    """Who came: `name` for the log; `local` is our end, `local_name` its host, as getsockname() says it."""

    name: str
    peer: Address
    local: Address
    local_name: str


class Session:
    """A client that was accepted. `ended(session)` is called when all is closed."""

    __slots__ = (
        "_began", "_bytes", "_client", "_connection", "_conversation", "_early", "_ended", "_failure", "_job",
        "_milliseconds", "_moved", "_outcome", "_over", "_relay", "_request", "_settings", "_shared", "_started",
        "_through", "_timer", "_user",
    )  # fmt: skip

    def __init__(
        self,
        shared: Shared,
        connection: socket.socket,
        client: Client,
        ended: Callable[["Session"], None],
        over: str = "",
    ) -> None:
        """`over`: the limit that this client is over, "" for none."""
        self._shared = shared
        self._settings = settings = shared.settings
        self._connection = connection
        self._client = client
        self._ended: Callable[[Session], None] | None = ended
        self._over = over
        steps = serve(login_required=bool(settings.users), check_userid=settings.identd)
        self._conversation: Conversation[Request] | None = Conversation(steps)
        self._request: Request | None = None
        self._user: str | None = None
        self._early = b""
        self._job: Connect | Bind | Association | Ident | None = None
        self._relay: Relay | None = None
        self._bytes = (0, 0)
        self._moved = 0
        self._failure = "closed"
        self._outcome = GONE
        self._through = ""
        self._milliseconds: float | None = None
        self._started = self._began = shared.reactor.now()
        limit = OVER_LIMIT_HANDSHAKE if over else settings.limits.handshake
        self._timer: Timer = shared.reactor.call_at(self._began + limit, self._slow_handshake)
        shared.reactor.watch(connection.fileno(), READ, self._on_handshake)

    @property
    def is_cut(self) -> bool:
        """Whether it was relaying, and not to both ends."""
        return self._relay is not None and self._outcome[0] != "ok"

    def close(self) -> None:
        """Give up, whatever the state."""
        self._timer.cancel()
        job, self._job = self._job, None
        if isinstance(job, Association):
            self._bytes = job.bytes_up, job.bytes_down
            job.close()
        elif job is not None:
            job.cancel()
        if self._relay is not None:
            if not self._relay.closed:
                self._bytes = self._relay.a_to_b.count, self._relay.b_to_a.count
            self._relay.close()
        elif self._connection.fileno() >= 0:
            self._shared.reactor.unwatch(self._connection.fileno())
            self._connection.close()
        ended, self._ended = self._ended, None
        if ended is not None:
            self._account()
            ended(self)

    def _account(self) -> None:
        """Count and write down what it came to."""
        shared, request = self._shared, self._request
        if not self._over:  # a user is counted when there's a request, not at the login
            shared.counter.leave(self._client.peer.host, None if request is None else self._user)
        up, down = self._bytes
        if request is None:
            shared.counter.handshake_failed(self._failure)
        else:
            shared.counter.ended(request.command, self._outcome[0], up, down)
        if shared.journal is None:
            return
        entry = Entry(
            when=time.time(),
            client=self._client.name,
            outcome=self._outcome[1],
            seconds=shared.reactor.now() - self._started,
            user=None if request is None or request.username is None else shown(request.username),
            version=None if request is None else request.version,
            command=None if request is None else request.command.name.lower(),
            destination=None if request is None else str(request.destination),
            through=self._through or None,
            up=up,
            down=down,
            milliseconds=self._milliseconds,
        )
        shared.journal.connection(entry)

    # handshake

    def _on_handshake(self, events: int) -> None:
        try:
            data = self._connection.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        conversation = self._conversation
        assert conversation is not None
        try:
            if data:
                conversation.receive(data)
            else:
                conversation.receive_eof()
        except ConversationError as error:
            self._refuse_handshake(conversation, error)
        else:
            self._converse(conversation)

    def _converse(self, conversation: Conversation[Request]) -> None:
        """Answer what the conversation asks; then say what it says."""
        try:
            while isinstance(conversation.event, Authenticate):
                allowed = self._may_enter(conversation.event)
                if allowed is None:
                    return
                conversation.answer(allowed)
        except ConversationError as error:
            self._refuse_handshake(conversation, error)
            return
        if not self._say(conversation.outgoing()):
            self.close()
        elif conversation.done:
            self._asked(conversation.result, conversation.trailing)

    def _may_enter(self, login: Authenticate) -> bool | None:
        """Whether this login is right; None: somebody is asked, and the conversation goes on then."""
        shared, users = self._shared, self._settings.users
        name, password = login.username, login.password
        if self._over:  # nothing comes of it
            return True
        if password is None:
            if users:  # a user id proves nothing, and an identd is the client's own
                return False
            shared.reactor.unwatch(self._connection.fileno())
            peer, local = self._client.peer, self._client.local
            self._job = Ident(shared.reactor, peer, local, IDENTD_LIMIT, self._identified)
            return None
        if not users:
            return True
        right = users.quick(name, password)
        if right is None:
            shared.reactor.unwatch(self._connection.fileno())
            shared.reactor.in_thread(lambda: users.verify(name, password), self._verified)
        elif right:
            self._user = shown(name)
        return right

    def _identified(self, said: str | None) -> None:
        """What the client's identd says of the user (None: it can't be asked)."""
        self._job = None
        assert self._conversation is not None
        event = self._conversation.event
        assert isinstance(event, Authenticate)
        name = event.username
        right = said is not None and said.encode("utf-8", "surrogateescape") == name
        if right:
            self._user = shown(name)
        self._answer(Cd.NO_IDENTD if said is None else right)

    def _verified(self, right: bool | None, error: BaseException | None) -> None:
        conversation = self._conversation
        if self._ended is None or conversation is None:
            return
        if error is not None:
            if not isinstance(error, OSError):
                raise error
            self._shared.report.problem("hash", f"a login can't be looked at: {error}")
        assert isinstance(conversation.event, Authenticate)
        if right:
            self._user = shown(conversation.event.username)
        self._answer(bool(right))

    def _answer(self, allowed: bool | Cd) -> None:
        """Go on with the conversation that waited for this."""
        conversation = self._conversation
        assert conversation is not None
        self._shared.reactor.watch(self._connection.fileno(), READ, self._on_handshake)
        try:
            conversation.answer(allowed)
        except ConversationError as failure:
            self._refuse_handshake(conversation, failure)
        else:
            self._converse(conversation)

    def _refuse_handshake(self, conversation: Conversation[Request], error: ConversationError) -> None:
        host, report = self._client.peer.host, self._shared.report
        if isinstance(error, ClientRefusedError):
            self._failure = "login"
            report.problem(f"refused {host}", f"client {host} refused: {error}")
        elif not isinstance(error, PeerClosedError):
            self._failure = "protocol"
            report.problem(f"nonsense {host}", f"client {host}: {error}")
        self._outcome = "other", f"{conversation.phase or 'greeting'}: {error}"
        self._user = None
        self._part(conversation.outgoing())

    def _slow_handshake(self) -> None:
        self._failure = "timeout"
        self._outcome = "timed_out", f"handshake not done in {self._settings.limits.handshake:g} s"
        self.close()

    def _say(self, data: bytes) -> bool:
        """Write some bytes of a handshake. False: a client that is gone, or doesn't read even these."""
        if not data:
            return True
        try:
            return self._connection.send(data) == len(data)
        except OSError:
            return False

    # what it asked for

    def _asked(self, request: Request, early: bytes) -> None:
        shared = self._shared
        self._conversation = None
        self._request, self._early = request, early
        self._began = shared.reactor.now()
        shared.reactor.unwatch(self._connection.fileno())
        if self._over:
            self._refuse_over(self._over)
        else:
            self._admit(request)

    def _admit(self, request: Request) -> None:
        """Begin what was asked for, if the limits and the rules have nothing against it."""
        shared, settings, client = self._shared, self._settings, self._client
        self._timer.cancel()
        if self._user is not None:
            over = shared.counter.enter_user(self._user)
            if over:
                self._user = None
                self._refuse_over(over)
                return
        command = request.command
        if not request.is_known:
            self._refuse(Cause.COMMAND_NOT_SUPPORTED, f"{command.name} is not supported")
            return
        destination = None if command == Command.UDP_ASSOCIATE else request.destination
        direct = destination is not None and shared.upstream.route(destination).kind == "direct"
        decision = settings.access.decide(
            user=self._user, source=client.peer, command=command, destination=destination, resolved_here=direct
        )
        if not decision.allowed:
            self._refuse(Cause.NOT_ALLOWED, decision.rule)
        else:
            {Command.CONNECT: self._connect, Command.BIND: self._bind, Command.UDP_ASSOCIATE: self._associate}[command](
                request
            )

    def _may_reach(self, address: Address) -> bool:
        request = self._request
        assert request is not None
        return self._may_reach_for(request.destination, address)

    def _may_reach_for(self, destination: Address, address: Address) -> bool:
        request = self._request
        assert request is not None
        decision = self._settings.access.may_reach(
            user=self._user,
            source=self._client.peer,
            command=request.command,
            destination=destination,
            address=address,
        )
        return decision.allowed

    def _only_direct(self, destination: Address | None) -> bool:
        """Whether there is no chain for this (None: not known yet); if there is, or a rule denies it, it has been
        refused."""
        upstream = self._shared.upstream
        route = upstream.route_unknown() if destination is None else upstream.route(destination)
        if route.kind == "direct":
            return True
        if route.kind == "deny":
            self._refuse(Cause.NOT_ALLOWED, f"denied by rule {route.rule}")
        else:
            self._refuse(Cause.COMMAND_NOT_SUPPORTED, "only CONNECT goes through a chain")
        return False

    def _connect(self, request: Request) -> None:
        shared, settings = self._shared, self._settings
        self._watch_end()
        self._job = Connect(
            shared.reactor,
            shared.upstream,
            request.destination,
            settings.hosts,
            self._may_reach,
            settings.limits.dial,
            self._dialled,
        )

    def _bind(self, request: Request) -> None:
        destination = request.destination
        known = destination.is_name or any(destination.packed)
        if not self._only_direct(destination if known else None):
            return
        self._watch_end()
        self._job = Bind(
            self._shared.reactor,
            local=self._client.local_name,
            expected=destination,
            hosts=self._settings.hosts,
            may_reach=self._may_reach,
            seconds=self._settings.limits.bind,
            listening=lambda bound: self._say_listening(request, bound),
            accepted=self._bound,
            failed=self._failed,
        )

    def _say_listening(self, request: Request, bound: Address) -> None:
        if not self._say(reply(request, None, bound)):
            self.close()

    def _associate(self, request: Request) -> None:
        if not self._only_direct(None):
            return
        shared, client = self._shared, self._client
        try:
            association = Association(
                shared.reactor,
                client=client.peer,
                local=client.local_name,
                expected=request.destination,
                hosts=self._settings.hosts,
                allows=self._allows_datagram,
                may_reach=self._may_reach_for,
                idle=self._settings.limits.udp_idle,
                ended=self._association_ended,
            )
        except OSError as error:
            self._refuse(Cause.GENERAL_FAILURE, error.strerror or str(error))
            return
        self._job = association
        self._through = "direct"
        if self._say(reply(request, None, association.bound)):
            shared.reactor.watch(self._connection.fileno(), READ, self._on_control)
        else:
            self.close()

    def _allows_datagram(self, destination: Address) -> bool:
        if self._shared.upstream.route(destination).kind != "direct":
            return False
        decision = self._settings.access.decide(
            user=self._user,
            source=self._client.peer,
            command=Command.UDP_ASSOCIATE,
            destination=destination,
            resolved_here=True,
        )
        return decision.allowed

    def _association_ended(self, words: str) -> None:
        self._outcome = "ok", words
        self.close()

    def _on_control(self, events: int) -> None:
        """RFC 1928 section 7: an association ends with the connection that its request came by."""
        try:
            if self._connection.recv(READ_SIZE):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._outcome = "ok", "ok"
        self.close()

    def _watch_end(self) -> None:
        self._shared.reactor.watch(self._connection.fileno(), select.EPOLLRDHUP, self._on_client_end)

    def _on_client_end(self, events: int) -> None:
        if not events & (select.EPOLLERR | select.EPOLLHUP) and self._has_payload():
            self._shared.reactor.modify(self._connection.fileno(), 0)
            return
        self.close()

    def _has_payload(self) -> bool:
        if self._early:
            return True
        try:
            return bool(self._connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    # its outcome

    def _dialled(self, sock: socket.socket | None, cause: Cause | None, words: str) -> None:
        assert isinstance(self._job, Connect)
        self._through = self._job.through
        if sock is None:
            self._failed(cause or Cause.GENERAL_FAILURE, words)
            return
        try:
            bound = told(sock.getsockname())
        except OSError as error:
            sock.close()
            self._failed(Cause.GENERAL_FAILURE, str(error))
            return
        self._relay_to(sock, bound)

    def _bound(self, sock: socket.socket, peer: Address) -> None:
        self._through = "direct"
        self._relay_to(sock, peer)

    def _failed(self, cause: Cause, words: str) -> None:
        self._job = None
        self._shared.reactor.unwatch(self._connection.fileno())
        if cause is Cause.GENERAL_FAILURE:  # our own trouble, such as EMFILE
            request = self._request
            assert request is not None
            self._shared.report.problem(f"dial {words.rpartition(': ')[2]}", f"{request.destination}: {words}")
        self._refuse(cause, words)

    def _relay_to(self, sock: socket.socket, told: Address) -> None:
        """Tell the client that it has its connection, whose socket this is, and relay."""
        shared, request = self._shared, self._request
        assert request is not None
        self._job = None
        shared.reactor.unwatch(self._connection.fileno())
        self._milliseconds = (shared.reactor.now() - self._began) * 1000
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # else a peer that lost power stays for ever
        except OSError as error:
            sock.close()
            self._refuse(Cause.GENERAL_FAILURE, str(error))
            return
        if not self._say(reply(request, None, told)):
            sock.close()
            self.close()
            return
        if shared.report.verbosity >= DEBUG:
            shared.report.debug(f"{self._client.name} -> {request.destination}: connected, {self._milliseconds:.0f} ms")
        early, self._early = self._early, b""
        self._relay = Relay(shared.reactor, self._connection, sock, shared.pool, self._relayed, to_b=early)
        if self._settings.limits.idle is not None:
            self._look_for_idleness(self._settings.limits.idle, shared.reactor.now())

    def _look_for_idleness(self, limit: float, since: float) -> None:
        """Give the relay up when nothing was delivered either way for so many seconds."""
        relay, now = self._relay, self._shared.reactor.now()
        assert relay is not None
        moved = relay.a_to_b.count + relay.b_to_a.count
        if moved != self._moved:
            self._moved, since = moved, now
        if now - since >= limit:
            self._outcome = "timed_out", f"idle for {limit:g} s"
            self.close()
            return
        look = min(now + limit / IDLE_LOOKS, since + limit)
        self._timer = self._shared.reactor.call_at(look, lambda: self._look_for_idleness(limit, since))

    def _relayed(self, outcome: RelayOutcome) -> None:
        self._bytes = outcome.a_to_b, outcome.b_to_a
        if outcome.cut is None:
            self._outcome = "ok", "ok"
        else:
            self._outcome = "reset", f"reset by the {'client' if outcome.cut == 'a' else 'destination'}"
        self.close()

    # refusing

    def _refuse_over(self, limit: str) -> None:
        self._shared.report.problem(f"limit {limit}", f"too many connections: the limit {limit!r} is reached")
        self._refuse(Cause.OVER_LIMIT, limit)

    def _refuse(self, cause: Cause, words: str) -> None:
        request = self._request
        assert request is not None
        if self._milliseconds is None:
            self._milliseconds = (self._shared.reactor.now() - self._began) * 1000
        self._outcome = cause.name.lower(), f"{cause.words} ({words})"
        self._part(reply(request, cause))

    def _part(self, last_words: bytes) -> None:
        reactor, fd = self._shared.reactor, self._connection.fileno()
        self._timer.cancel()
        reactor.unwatch(fd)
        self._conversation = None
        if not self._say(last_words):
            self.close()
            return
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._timer = reactor.call_at(reactor.now() + PARTING_LIMIT, self.close)
        reactor.watch(fd, READ, self._on_parting)

    def _on_parting(self, events: int) -> None:
        try:
            if self._connection.recv(READ_SIZE):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()
