"""TLS on a listener: a tunnel between a client that speaks it and a session that doesn't.

Theory of operation. The session has one end of a socket pair, the tunnel the other end (`plain`) and the client's
connection (`outer`). ssl.SSLObject turns records into bytes and back in memory. Each way has one buffer, and nothing is
read for it while it has something: that is the back-pressure, so a slow reader holds no more than READ_SIZE here.

Ends. A close_notify of the client's is passed on as the plain end's shutdown; the plain end's end of file becomes
close_notify and the shutdown of the connection's sending side. A connection that ends without close_notify was perhaps
cut off (RFC 8446 section 6.1): the session gets a reset, as it does for a real one.

A socket pair knows no reset, so the session's end is told (`over`): what it said is still handed over, then the client
hears close_notify, or is reset when the session was cut off. After that only the client's end is waited for. That takes
as long as it takes, but a client that takes nothing for a while is given up: nobody else has it in sight.
"""

import contextlib
import fcntl
import socket
import ssl
import sys
import termios
from collections.abc import Callable

from pysocksify.errors import ConfigError
from pysocksify.reactor import READ, WRITE, Reactor, Timer
from pysocksify.relay import DELIVER_LOOK, RESET_ON_CLOSE, unsent

READ_SIZE = 65536
OVER_LIMIT = 10.0  # s for a client to take some of what is left, and to end; as parting.PARTING_LIMIT


def context(certificate: str, key: str) -> ssl.SSLContext:
    """A server's context with the certificate chain and the key of these files (PEM). Raises ConfigError."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # Python 3.10 to 3.10.11 and 3.11 to 3.11.3 set it: an end that anybody may have cut would be taken for the client's
    made.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    for path in (certificate, key):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ConfigError(path, "", error.strerror or str(error)) from None
    try:
        made.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigError(certificate, "", f"isn't a certificate with the key of {key}: {reason}") from None
    return made


def _no_password() -> bytes:
    """Asked for when a key is encrypted: nobody is there who could be asked."""
    raise ValueError("the key has a password")


class TlsTunnel:
    """Owns both sockets. `ended(tunnel)` is called when they are closed, `on_cut(words)` if the client's end was cut
    off; the words say why TLS came to nothing, if it did."""

    def __init__(
        self,
        reactor: Reactor,
        outer: socket.socket,
        plain: socket.socket,
        context: ssl.SSLContext,
        ended: Callable[["TlsTunnel"], None],
    ) -> None:
        """OSError, ssl.SSLError: the sockets are still the caller's."""
        plain.setblocking(False)
        self.on_cut: Callable[[str], None] | None = None
        self._reactor = reactor
        self._outer, self._plain = outer, plain
        self._ended: Callable[[TlsTunnel], None] | None = ended
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._shaken = False
        self._to_plain = b""
        self._to_outer = b""
        self._client_ended = False  # close_notify has come
        self._client_passed = False  # and was passed on
        self._session_ended = False  # the plain end has no more
        self._notified = False  # our close_notify is among what goes out
        self._session_passed = False
        self._sent = 0  # bytes
        self._taken = 0  # of these, when that was looked at last
        self._over: Timer | None = None
        self._look: Timer | None = None  # at whether all is sent
        self._reset = False  # what is said last is a reset
        self._wanted: dict[socket.socket, int | None] = {outer: None, plain: None}
        self._want(outer, READ)

    @property
    def closed(self) -> bool:
        """Both sockets are closed."""
        return self._outer.fileno() < 0

    def over(self, *, cut: bool) -> None:
        """The session has ended both ways. `cut`: it was cut off, and so is its client, once it has what was said."""
        if self.closed:
            return
        if not self._shaken:
            self.close()
            return
        self._taken = self._sent - _unacknowledged(self._outer)
        self._over = self._reactor.call_at(self._reactor.now() + OVER_LIMIT, self._look_at_progress)
        self._reset = cut
        self._reactor.call_soon(lambda: self._on_outer(WRITE))

    def _look_at_progress(self) -> None:
        """Give up a client that has taken nothing since the last look; its kernel's word counts, ours takes much at
        once."""
        taken = self._sent - _unacknowledged(self._outer)
        if taken != self._taken:
            self._taken = taken
            self._over = self._reactor.call_at(self._reactor.now() + OVER_LIMIT, self._look_at_progress)
        elif self._session_passed:  # the kernel has all, and goes on by itself
            self._close()
        else:
            self.close()

    def close(self) -> None:
        """Give up: the client's connection is reset."""
        if not self.closed:
            self._outer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self._close()

    def _close(self) -> None:
        for timer in (self._over, self._look):
            if timer is not None:
                timer.cancel()
        for sock in (self._outer, self._plain):
            self._want(sock, None)
            sock.close()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)

    def _on_outer(self, events: int) -> None:
        if self.closed:
            return
        try:
            if events & ~WRITE and not self._to_plain:
                self._receive()
            self._flush()
        except (OSError, ssl.SSLError) as error:  # SSLError is an OSError; named for who reads
            if self._shaken:
                self._cut()
            else:
                self._fail(error)

    def _on_plain(self, events: int) -> None:
        try:
            if events & ~WRITE and self._shaken and not self._to_outer and not self._session_ended:
                data = self._plain.recv(READ_SIZE)
                if data:
                    self._tls.write(data)
                else:
                    self._session_ended = True
            self._flush()
        except (BlockingIOError, ConnectionResetError):  # of a session that left something unread: what it said follows
            return
        except (OSError, ssl.SSLError):
            self.close()

    def _receive(self) -> None:
        try:
            data = self._outer.recv(READ_SIZE)
        except BlockingIOError:
            return
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        self._decrypt()

    def _decrypt(self) -> None:
        """Take out of the records what there is. SSLError, also for an end without close_notify."""
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
            while len(self._to_plain) < READ_SIZE and not self._client_ended:
                data = self._tls.read(READ_SIZE)
                self._to_plain += data
                self._client_ended = not data
        except ssl.SSLWantReadError:
            return
        except ssl.SSLZeroReturnError:
            self._client_ended = True

    def _flush(self) -> None:
        """Hand over what is held, as far as it's taken, and the ends behind it; then watch for what is needed."""
        if self._over is not None:
            self._to_plain = b""
        while self._to_plain:
            sent = _send(self._plain, self._to_plain)
            self._to_plain = self._to_plain[sent:]
            if not self._to_plain and not self._client_ended:
                self._decrypt()
            if not sent:
                break
        if self._session_ended and not self._notified and not self._reset and not self._incoming.pending:
            self._notified = True
            with contextlib.suppress(ssl.SSLWantReadError):  # for the client's own, which may come much later
                self._tls.unwrap()
        self._to_outer += self._outgoing.read()
        sent = _send(self._outer, self._to_outer)
        self._sent += sent
        self._to_outer = self._to_outer[sent:]
        if self._client_ended and not self._to_plain and not self._client_passed:
            self._client_passed = True
            if self._over is None:
                self._plain.shutdown(socket.SHUT_WR)
        if self._notified and not self._to_outer and not self._session_passed:
            self._session_passed = True
            self._outer.shutdown(socket.SHUT_WR)
        if self._client_passed and self._session_passed:
            self._close()
        else:
            self._want_what_is_needed()
            if self._reset and self._session_ended and not self._to_outer:
                self._reset_when_sent()

    def _reset_when_sent(self) -> None:
        """SO_LINGER 0 throws away what isn't sent yet."""
        if self.closed:
            return
        if unsent(self._outer):
            if self._look is not None:
                self._look.cancel()
            self._look = self._reactor.call_at(self._reactor.now() + DELIVER_LOOK, self._reset_when_sent)
        else:
            self.close()

    def _want_what_is_needed(self) -> None:
        read_outer = READ if not self._to_plain and not self._client_ended else 0
        read_plain = READ if self._shaken and not self._to_outer and not self._session_ended else 0
        self._want(self._outer, read_outer | (WRITE if self._to_outer else 0))
        self._want(self._plain, read_plain | (WRITE if self._to_plain else 0))

    def _want(self, sock: socket.socket, events: int | None) -> None:
        """Watch for these events. A Unix socket whose peer is gone says so for ever, so none is no watch."""
        before, self._wanted[sock] = self._wanted[sock], events or None
        if before == self._wanted[sock]:
            return
        if not events:
            self._reactor.unwatch(sock.fileno())
        elif before is None:
            self._reactor.watch(sock.fileno(), events, self._on_outer if sock is self._outer else self._on_plain)
        else:
            self._reactor.modify(sock.fileno(), events)

    def _cut(self) -> None:
        if self._over is not None and self._session_passed:  # it has all; few say close_notify then
            self._close()
            return
        on_cut, self.on_cut = self.on_cut, None
        if on_cut is not None:
            on_cut("")
        self.close()

    def _fail(self, error: OSError) -> None:
        """There will be no TLS. An alert says so to the client (RFC 8446 section 6.2), unless a reset overtakes it."""
        words = ""
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):  # else it is gone
            words = f"TLS handshake failed: {error.reason or error}"
        with contextlib.suppress(OSError):
            _send(self._outer, self._to_outer + self._outgoing.read())
        on_cut, self.on_cut = self.on_cut, None
        self._close()
        if on_cut is not None:
            on_cut(words)


def _send(sock: socket.socket, data: bytes) -> int:
    """How many bytes the socket takes now."""
    if not data:
        return 0
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


def _unacknowledged(sock: socket.socket) -> int:
    """How many bytes were sent that the peer's kernel hasn't taken; 0 where that can't be told."""
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)  # SIOCOUTQ, tcp(7)
    except OSError:
        return 0
