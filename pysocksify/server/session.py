"""One client of the server: its handshake, what it asked for, and the end.

Theory of operation. A session owns the client's socket and goes through these states. The socket is watched in each,
which takes that over from the one before.

- handshake (`handshake`): everything up to the request, with a time limit.
- at work: a CONNECT, a BIND or a UDP ASSOCIATE. Early payload waits in the kernel, but the client's end is looked for.
  Its FIN counts as "gone" unless payload came before it: a client may send its data and close its sending side before
  it has a reply.
- relaying (`relaying`): both sockets belong to the relay.
- parting (`parting`), after a refusal: nothing may overtake the reply.

A client that is over a limit goes through the handshake like others, and is refused in the reply: so it hears why.
Whatever ends a session calls `ended` once. close() gives it up in any state. It stays counted until leave(), since what
it said may still be on its way through a tunnel.
"""

import select
import socket
import time
from collections.abc import Callable

from pysocksify.address import Address
from pysocksify.codes import Command
from pysocksify.errors import Cause
from pysocksify.protocol.serve import Request, reply
from pysocksify.reactor import READ, Timer
from pysocksify.report import DEBUG
from pysocksify.server.associate import Association
from pysocksify.server.bind import Bind
from pysocksify.server.connect import Connect
from pysocksify.server.handshake import Handshake
from pysocksify.server.happy_eyeballs import told
from pysocksify.server.journal import Entry
from pysocksify.server.parting import Parting
from pysocksify.server.permission import Permission
from pysocksify.server.relaying import Outcome, Relaying
from pysocksify.server.shared import Client, Shared, has_ended, has_left, say
from pysocksify.server.users import shown

OVER_LIMIT_HANDSHAKE = 5.0  # s for those who are only to be told that there are too many
GONE = ("client_gone", "client went away")
SERVER_ENDED = ("other", "server ended")


class Session:
    """A client that was accepted. `ended(session)` is called when all is closed.

    Raises OSError from the constructor: the connection is still the caller's.
    """

    __slots__ = (
        "_began", "_bytes", "_client", "_connection", "_early", "_ended", "_failure", "_granted", "_job",
        "_milliseconds", "_name", "_outcome", "_over", "_request", "_settings", "_shared",
        "_started", "_through", "_timer", "_user",
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
        self._request: Request | None = None
        self._user: str | None = None  # as whom it's counted
        self._name: str | None = None  # for the journal
        self._early = b""
        self._granted = False  # it was told that it's connected
        self._bytes = (0, 0)
        self._failure = "closed"
        self._outcome = GONE
        self._through = ""
        self._milliseconds: float | None = None
        self._started = self._began = shared.reactor.now()
        self._job: Handshake | Connect | Bind | Association | Relaying | Parting | None = Handshake(
            shared,
            connection,
            client,
            trust=bool(over),
            asked=self._asked,
            failed=self._handshake_failed,
            gone=self.close,
        )
        limit = OVER_LIMIT_HANDSHAKE if over else settings.limits.handshake
        # last: a session that there is no room for leaves nothing behind
        self._timer: Timer = shared.reactor.call_at(self._began + limit, lambda: self._slow_handshake(limit))

    def cut(self, words: str = "") -> None:
        """The client was cut off, which is seen only before its bytes come here; or it came to nothing there, and this
        is why."""
        if isinstance(self._job, Relaying):
            self._job.cut_client()
            return
        if words:
            self._failure = "protocol"
            self._outcome = "other", words
        self.close()

    def end(self) -> None:
        """Give up because the server ends."""
        if self._outcome is GONE:
            self._failure, self._outcome = "other", SERVER_ENDED
        self.close()

    def leave(self) -> None:
        """Count the client no more: nothing of it is left."""
        if not self._over:
            self._shared.counter.leave(self._client.source, self._user)

    @property
    def closed(self) -> bool:
        """It has ended."""
        return self._ended is None

    @property
    def is_cut(self) -> bool:
        """Whether it was relaying, and not to both ends."""
        return self._granted and self._outcome[0] != "ok"

    def close(self) -> None:
        """Give up, whatever the state."""
        self._timer.cancel()
        job, self._job = self._job, None
        if job is not None:
            job.cancel()
        if isinstance(job, (Association, Relaying)):
            self._bytes = job.bytes_up, job.bytes_down
        if self._connection.fileno() >= 0:
            self._shared.reactor.unwatch(self._connection.fileno())
            self._connection.close()
        ended, self._ended = self._ended, None
        if ended is not None:
            self._account()
            ended(self)

    def _account(self) -> None:
        """Count and write down what it came to."""
        shared, request = self._shared, self._request
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
            user=self._name,
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

    def _handshake_failed(self, failure: str, words: str, last_words: bytes) -> None:
        self._job = None
        self._failure = failure
        self._outcome = "other", words
        self._part(last_words)

    def _slow_handshake(self, limit: float) -> None:
        self._failure = "timeout"
        self._outcome = "timed_out", f"handshake not done in {limit:g} s"
        self.close()

    # what it asked for

    def _asked(self, request: Request, user: str | None, early: bytes) -> None:
        """Begin what was asked for, if the limits and the rules have nothing against it."""
        shared, settings = self._shared, self._settings
        self._job = None
        self._timer.cancel()
        self._request, self._early = request, early
        self._began = shared.reactor.now()
        self._name = user
        if not settings.users and not settings.identd and request.username is not None:  # nobody has to prove his name
            self._name = shown(request.username)
        over = self._over or ("" if user is None else shared.counter.enter_user(user))
        if over:
            shared.report.problem(f"limit {over}", f"too many connections: the limit {over!r} is reached")
            self._refuse(Cause.OVER_LIMIT, over)
            return
        self._user = user
        permission = Permission(settings, shared.upstream, self._client.peer, user, request)
        refusal = permission.refusal()
        if refusal is not None:
            self._refuse(*refusal)
            return
        try:
            if request.command == Command.CONNECT:
                self._connect(request, permission)
            elif request.command == Command.BIND:
                self._bind(request, permission)
            else:
                self._associate(request, permission)
        except OSError as error:  # no port is to be had, or no watch
            self._failed(Cause.GENERAL_FAILURE, error.strerror or str(error))

    def _connect(self, request: Request, permission: Permission) -> None:
        shared, settings = self._shared, self._settings
        self._watch_end()
        self._job = Connect(
            shared.reactor,
            shared.upstream,
            request.destination,
            settings.hosts,
            permission.may_reach,
            settings.limits.dial,
            self._dialled,
            self._client.source,
        )

    def _bind(self, request: Request, permission: Permission) -> None:
        self._watch_end()
        self._job = Bind(
            self._shared.reactor,
            local=self._client.local_name,
            expected=request.destination,
            hosts=self._settings.hosts,
            may_reach=permission.may_reach,
            seconds=self._settings.limits.bind,
            source=self._client.source,
            listening=lambda bound: self._say_listening(request, bound),
            accepted=self._bound,
            failed=self._failed,
        )

    def _say_listening(self, request: Request, bound: Address) -> None:
        if not say(self._connection, reply(request, None, bound)):
            self.close()

    def _associate(self, request: Request, permission: Permission) -> None:
        shared, client = self._shared, self._client
        self._watch(READ, self._on_control)
        self._job = association = Association(
            shared.reactor,
            client=client.peer,
            local=client.local_name,
            expected=request.destination,
            hosts=self._settings.hosts,
            allows=permission.allows_datagram,
            may_reach=permission.may_reach_for,
            idle=self._settings.limits.udp_idle,
            source=client.source,
            ended=self._association_ended,
        )
        self._through = "direct"
        if not say(self._connection, reply(request, None, association.bound)):
            self.close()

    def _association_ended(self, words: str) -> None:
        self._outcome = "ok", words
        self.close()

    def _on_control(self, events: int) -> None:
        """RFC 1928 section 7: an association ends with the connection that its request came by."""
        if has_ended(self._connection):
            self._outcome = "ok", "ok"
            self.close()

    def _watch_end(self) -> None:
        self._watch(select.EPOLLRDHUP, self._on_client_end)

    def _watch(self, events: int, callback: Callable[[int], None]) -> None:
        """The socket is watched from the handshake on; what waits for something else takes that over."""
        self._shared.reactor.rewatch(self._connection.fileno(), events, callback)

    def _on_client_end(self, events: int) -> None:
        if has_left(self._connection, events, bool(self._early)):
            self.close()
        else:
            self._shared.reactor.modify(self._connection.fileno(), 0)

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
        if cause is Cause.GENERAL_FAILURE:  # our own trouble, such as EMFILE
            request = self._request
            assert request is not None
            self._shared.report.problem(f"dial {words.rpartition(': ')[2]}", f"{request.destination}: {words}")
        self._refuse(cause, words)

    def _relay_to(self, sock: socket.socket, end: Address) -> None:
        """Tell the client that it has its connection, whose socket this is, and relay. `end` is for the reply."""
        shared, request, connection = self._shared, self._request, self._connection
        assert request is not None
        self._job = None
        self._milliseconds = (shared.reactor.now() - self._began) * 1000
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # else a peer that lost power stays for ever
        except OSError as error:
            sock.close()
            self._refuse(Cause.GENERAL_FAILURE, str(error))
            return
        if not say(connection, reply(request, None, end)):
            sock.close()
            self.close()
            return
        if shared.report.verbosity >= DEBUG:
            shared.report.debug(f"{self._client.name} -> {request.destination}: connected, {self._milliseconds:.0f} ms")
        self._granted = True
        early, self._early = self._early, b""
        shared.reactor.unwatch(connection.fileno())
        try:
            self._job = Relaying(shared, connection, sock, early, self._settings.limits.idle, self._relayed)
        except OSError as error:
            words = error.strerror or str(error)
            shared.report.problem(f"relay {words}", f"no room for a relay: {words}")
            self._outcome = "general_failure", words
            self.close()

    def _relayed(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self.close()

    # refusing

    def _refuse(self, cause: Cause, words: str) -> None:
        request = self._request
        assert request is not None
        if self._milliseconds is None:
            self._milliseconds = (self._shared.reactor.now() - self._began) * 1000
        self._outcome = cause.name.lower(), f"{cause.words} ({words})"
        self._part(reply(request, cause))

    def _part(self, last_words: bytes) -> None:
        self._timer.cancel()
        self._job = Parting(self._shared, self._connection, last_words, self.close)
