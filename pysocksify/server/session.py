"""One client of the server: its handshake, the dial for it, the reply, and then the relay.

Theory of operation. A session owns the client's socket and goes through these states, each with its own watch on it:

- handshake: readable. What comes goes to the conversation; what it says goes out. HANDSHAKE time limit.
- dialling: not readable (early payload waits in the kernel), but the client's end is looked for. Its FIN counts as
  "gone" unless payload came before it: a client may send its data and close its sending side before it has a reply.
- relaying: both sockets belong to the relay.
- parting, after a refusal: shut down for writing, and read until the client's end, so that no RST overtakes the reply.

Whatever ends a session calls `ended` once. close() gives it up in any state.
"""

import hmac
import select
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pysocksify.address import Address
from pysocksify.codes import Command
from pysocksify.errors import Cause, ClientRefusedError, ConversationError, PeerClosedError
from pysocksify.protocol.conversation import Conversation
from pysocksify.protocol.serve import Authenticate, Request, reply, serve
from pysocksify.reactor import READ, Reactor, Timer
from pysocksify.relay import PipePool, Relay, RelayOutcome
from pysocksify.report import Report
from pysocksify.server.happy_eyeballs import ConnectRace

PARTING_LIMIT = 10.0  # s; RFC 1928 section 6: closed no more than 10 seconds after the failure
READ_SIZE = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What a server does. With `users` (name to password) nobody gets in without; SOCKS4, which has no password, never.

    `hosts` are addresses for names, looked up before any resolver is asked. Times are in seconds; dante's
    timeout.negotiate and timeout.connect are 30, too.
    """

    users: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    open: bool = False
    handshake_timeout: float = 30.0
    dial_timeout: float = 30.0


class Session:
    """A client that was accepted. `ended(session)` is called when all is closed."""

    def __init__(
        self,
        reactor: Reactor,
        settings: ServerSettings,
        report: Report,
        pool: PipePool,
        client: socket.socket,
        peer: Address,
        ended: Callable[["Session"], None],
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._report = report
        self._pool = pool
        self._client = client
        self._peer = peer
        self._ended: Callable[[Session], None] | None = ended
        self._conversation: Conversation[Request] = Conversation(serve(login_required=bool(settings.users)))
        self._race: ConnectRace | None = None
        self._relay: Relay | None = None
        self._began = reactor.now()
        self._timer: Timer = reactor.call_at(self._began + settings.handshake_timeout, self._slow_handshake)
        reactor.watch(client.fileno(), READ, self._on_handshake)

    def close(self) -> None:
        """Give up, whatever the state."""
        self._timer.cancel()
        if self._race is not None:
            self._race.cancel()
        if self._relay is not None:
            self._relay.close()
        elif self._client.fileno() >= 0:
            self._reactor.unwatch(self._client.fileno())
            self._client.close()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)

    # handshake

    def _on_handshake(self, events: int) -> None:
        try:
            data = self._client.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        conversation = self._conversation
        try:
            if data:
                conversation.receive(data)
            else:
                conversation.receive_eof()
            while isinstance(conversation.event, Authenticate):
                conversation.answer(self._may_enter(conversation.event))
        except ConversationError as error:
            self._refuse_handshake(error)
            return
        if not self._say(conversation.outgoing()):
            self.close()
        elif conversation.done:
            self._timer.cancel()
            self._dial(conversation.result)

    def _may_enter(self, login: Authenticate) -> bool:
        users = self._settings.users
        if not users:
            return True
        if login.password is None:  # a SOCKS4 user id proves nothing
            return False
        expected = users.get(login.username)
        right = hmac.compare_digest(login.password, b"" if expected is None else expected)
        return right and expected is not None

    def _refuse_handshake(self, error: ConversationError) -> None:
        if isinstance(error, ClientRefusedError):
            self._report.problem(f"refused {self._peer.host}", f"client {self._peer.host} refused: {error}")
        elif not isinstance(error, PeerClosedError):
            self._report.problem(f"nonsense {self._peer.host}", f"client {self._peer.host}: {error}")
        self._report.connection(f"{self._peer} {self._conversation.phase or 'greeting'}: {error}")
        self._part(self._conversation.outgoing())

    def _slow_handshake(self) -> None:
        self._report.connection(f"{self._peer} handshake not done in {self._settings.handshake_timeout:g} s")
        self.close()

    def _say(self, data: bytes) -> bool:
        """Write some bytes of a handshake. False: a client that is gone, or doesn't read even these."""
        if not data:
            return True
        try:
            return self._client.send(data) == len(data)
        except OSError:
            return False

    # dialling

    def _dial(self, request: Request) -> None:
        self._began = self._reactor.now()
        fd = self._client.fileno()
        self._reactor.unwatch(fd)
        if request.command != Command.CONNECT:
            self._refuse(request, Cause.COMMAND_NOT_SUPPORTED, f"{request.command.name} is not supported")
            return
        self._reactor.watch(fd, select.EPOLLRDHUP, lambda events: self._on_client_end(request, events))
        self._race = ConnectRace(
            self._reactor,
            request.destination,
            self._settings.hosts,
            self._settings.dial_timeout,
            lambda sock, cause, words: self._dialled(request, sock, cause, words),
        )

    def _on_client_end(self, request: Request, events: int) -> None:
        if not events & (select.EPOLLERR | select.EPOLLHUP) and self._has_payload():
            self._reactor.modify(self._client.fileno(), 0)
            return
        self._log(request, "client went away during the dial")
        self.close()

    def _has_payload(self) -> bool:
        if self._conversation.trailing:
            return True
        try:
            return bool(self._client.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _dialled(self, request: Request, sock: socket.socket | None, cause: Cause | None, words: str) -> None:
        self._race = None
        self._reactor.unwatch(self._client.fileno())
        if sock is None:
            if cause is Cause.GENERAL_FAILURE:  # our own trouble, such as EMFILE
                self._report.problem(f"dial {words.rpartition(': ')[2]}", f"{request.destination}: {words}")
            self._refuse(request, cause or Cause.GENERAL_FAILURE, words)
            return
        try:
            bound = Address.of(*sock.getsockname()[:2])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # else a peer that lost power stays for ever
        except OSError as error:
            sock.close()
            self._refuse(request, Cause.GENERAL_FAILURE, str(error))
            return
        if not self._say(reply(request, None, bound)):
            sock.close()
            self._log(request, "client went away during the dial")
            self.close()
            return
        self._log(request, "connected")
        self._relay = Relay(
            self._reactor,
            self._client,
            sock,
            self._pool,
            lambda outcome: self._relayed(request, outcome),
            to_b=self._conversation.trailing,
        )

    def _relayed(self, request: Request, outcome: RelayOutcome) -> None:
        cut = {None: "", "a": ", reset by the client", "b": ", reset by the destination"}[outcome.cut]
        self._report.debug(
            f"{self._peer} -> {request.destination}: ended, {outcome.a_to_b} bytes up, {outcome.b_to_a} down{cut}"
        )
        self.close()

    def _log(self, request: Request, outcome: str) -> None:
        user = "" if request.username is None else f" {request.username.decode('utf-8', 'backslashreplace')!r}"
        milliseconds = (self._reactor.now() - self._began) * 1000
        self._report.connection(
            f"{self._peer}{user} {request.version} -> {request.destination}: {outcome}, {milliseconds:.0f} ms"
        )

    # refusing

    def _refuse(self, request: Request, cause: Cause, words: str) -> None:
        self._log(request, f"{cause.words} ({words})")
        self._part(reply(request, cause))

    def _part(self, last_words: bytes) -> None:
        fd = self._client.fileno()
        self._timer.cancel()
        self._reactor.unwatch(fd)
        if not self._say(last_words):
            self.close()
            return
        try:
            self._client.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._timer = self._reactor.call_at(self._reactor.now() + PARTING_LIMIT, self.close)
        self._reactor.watch(fd, READ, self._on_parting)

    def _on_parting(self, events: int) -> None:
        try:
            if self._client.recv(READ_SIZE):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()
