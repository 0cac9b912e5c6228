"""What answers for a block where there's no Linux: it dials in the calling thread, and relays in a thread of its own.

Theory of operation. The same requests (`handover.wire`) are answered without a Unix socket: by a call. A blocking
connect(), or one with a time limit, dials the chain in the calling thread, so its outcome is true; then the program's
socket is connected to a listener on loopback, and what that accepts is relayed to the chain's socket. A non-blocking
connect() goes to the listener at once: it succeeds early, and a dial that fails resets it. Destinations that the rules
send `direct` are left to the kernel. There's no UDP but to loopback.

Connections are told apart at the listener by the program's own address, which connect() has chosen: what is accepted
waits until it's known whose it is, and whose it is may be known before it is accepted.
"""

import errno
import logging
import random
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pysocksify.address import Address
from pysocksify.config import Config
from pysocksify.dial.hops import dial
from pysocksify.dial.runners import run
from pysocksify.dial.transport import OwnSocket, perform
from pysocksify.engines.handover import wire
from pysocksify.engines.python import layers
from pysocksify.engines.python.addresses import INET, Numeric, getaddrinfo
from pysocksify.engines.python.asking import Reply
from pysocksify.engines.python.sockets import DGRAM, KINDS, true
from pysocksify.errors import DialError
from pysocksify.flow import PipePool
from pysocksify.pacing import unpaced
from pysocksify.polling import Waker
from pysocksify.reactor import READ, Reactor, Steps
from pysocksify.relay import Relay, reset
from pysocksify.route.chain import ChainState
from pysocksify.route.fakeip import FakeAddresses, is_fake
from pysocksify.route.rules import Route
from pysocksify.supervisor.lookups import HOSTS, Hosts, Lookups
from pysocksify.supervisor.names import Names
from pysocksify.supervisor.search import Search

UNCLAIMED = 10.0  # seconds that somebody else's connection to the listener is kept
REMEMBERED = 4096  # names of peers

logger = logging.getLogger("pysocksify")
Name = tuple[str, int]


class Portable:
    """Answers for one block (`layers.Answering`)."""

    def __init__(self, config: Config) -> None:
        self.layer = layers.Layer(self)
        self._rules = config.rules
        self._chains = {chain.name: ChainState(chain, random.Random()) for chain in config.chains}
        self._fake = FakeAddresses()
        self._names = Names(self._fake, config.rules, Search(_no_search), ipv6=True)
        system = config.dns == "system"
        self._lookups = Lookups(_AtOnce(), self._names, Hosts((HOSTS,)), system=system, ipv6=True)  # type: ignore[arg-type]
        self._peers: OrderedDict[Name, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._meeting: _Meeting | None = None
        self._answers: dict[int, Callable[[bytes, Any], Reply]] = {
            wire.CONNECT: self._connect,
            wire.PEER: self._peer,
            wire.SOCKET: self._socket,
            wire.SEND: self._send,
            wire.NAME: self._name,
            wire.POINTER: self._pointer,
        }

    def ask(self, op: int, payload: bytes = b"", sock: Any = None) -> Reply:
        """Serve one request, in the calling thread, which serves this layer meanwhile."""
        answer = self._answers.get(op)
        if answer is None:
            return Reply(0, wire.PROCEED)
        before = layers.served_here()
        layers.serve_here(self.layer)
        try:
            return answer(payload, sock)
        finally:
            layers.serve_here(before)

    def end(self) -> None:
        """The block is over: what is relayed goes on, nothing new comes."""
        if self._meeting is not None:
            self._meeting.end()

    def _connect(self, payload: bytes, sock: Any) -> Reply:
        address = Address.from_sockaddr(payload)
        if address is None:
            return Reply(errno.EAFNOSUPPORT)
        if true.type.__get__(sock) & KINDS == DGRAM:
            return self._send(payload, sock)
        destination = self._names.destination(address)
        if self._names.unknown_fake(address):
            return Reply(errno.EHOSTUNREACH)
        route = self._rules.route(destination)
        if route.kind == "deny":
            logger.warning("%s: denied by rule %s", destination, route.rule)
            return Reply(errno.EACCES)
        if route.kind == "direct":
            return self._direct(destination, address, true.family.__get__(sock))
        limit = true.gettimeout(sock)
        if limit == 0:
            return self._early(sock, payload, destination, route)
        return self._truly(sock, payload, destination, route, limit)

    def _direct(self, destination: Address, address: Address, family: int) -> Reply:
        """The kernel connects; a name that was shown as a fake address is looked up now."""
        if not is_fake(address.host):
            return Reply(0, wire.PROCEED)
        try:
            found = getaddrinfo(destination.host, destination.port, family, socket.SOCK_STREAM)
        except OSError:
            return Reply(errno.EHOSTUNREACH)
        return Reply(0, wire.REDIRECT, Numeric(family, str(found[0][4][0]), destination.port).sockaddr)

    def _truly(self, sock: Any, payload: bytes, destination: Address, route: Route, limit: float | None) -> Reply:
        """Dial in this thread, then have the socket relayed."""
        transport = OwnSocket()
        try:
            run(self._steps(destination, route, transport), None if limit is None else time.monotonic() + limit)
            name, error = self._meet(sock)
            if error:
                raise OSError(error, "the socket can't be connected on loopback")
        except BaseException as failure:
            transport.close()
            if not isinstance(failure, (DialError, OSError)):
                raise
            logger.warning("%s", failure)
            return Reply(failure.errno or errno.ECONNREFUSED)
        self._remember(name, payload)
        self._met().claim(name, transport.sock)
        return Reply(0)

    def _early(self, sock: Any, payload: bytes, destination: Address, route: Route) -> Reply:
        """Connect the socket at once, and dial beside it."""
        name, error = self._meet(sock)
        if error not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            return Reply(error)
        self._remember(name, payload)
        transport = OwnSocket()
        self._met().dial(name, transport, self._steps(destination, route, transport))
        return Reply(error)

    def _steps(self, destination: Address, route: Route, transport: OwnSocket) -> Steps[Any]:
        return perform(dial(self._chains[str(route.chain)], destination, time.monotonic), transport, time.monotonic)

    def _meet(self, sock: Any) -> tuple[Name, int]:
        """Connect the program's socket to the listener: its own address then, and the errno."""
        error = true.connect_ex(sock, self._met().address(sock))
        return (_name(sock) if error in (0, errno.EINPROGRESS, errno.EWOULDBLOCK) else ("", 0)), error

    def _met(self) -> "_Meeting":
        with self._lock:
            if self._meeting is None or not self._meeting.alive:
                self._meeting = _Meeting(self.layer)
            return self._meeting

    def _remember(self, name: Name, payload: bytes) -> None:
        with self._lock:
            self._peers[name] = payload
            self._peers.move_to_end(name)
            if len(self._peers) > REMEMBERED:
                self._peers.popitem(last=False)

    def _peer(self, payload: bytes, sock: Any) -> Reply:
        meeting = self._meeting
        if meeting is None or true.getpeername(sock)[1] not in meeting.ports:
            return Reply(0, wire.PROCEED)
        peer = self._peers.get(_name(sock))
        return Reply(0, wire.PROCEED) if peer is None else Reply(0, wire.ANSWER, peer)

    def _socket(self, payload: bytes, sock: Any) -> Reply:
        family, kind, proto = wire.SOCKET_ARGUMENTS.unpack(payload)
        if family not in INET:
            return Reply(errno.EAFNOSUPPORT)
        if kind & KINDS == DGRAM and proto in (0, socket.IPPROTO_UDP):
            return Reply(0, wire.ANSWER, b"", true(family, DGRAM, proto).detach())
        logger.warning("a socket of type %d, protocol %d can't be carried and was refused", kind & KINDS, proto)
        return Reply(errno.EPERM if kind & KINDS == getattr(socket, "SOCK_RAW", 3) else errno.EPROTONOSUPPORT)

    def _send(self, payload: bytes, sock: Any) -> Reply:
        """UDP: only to this machine."""
        address = Address.from_sockaddr(payload)
        if address is None or address.is_loopback:
            return Reply(0, wire.PROCEED)
        logger.warning("UDP to %s can't be carried and was refused", address)
        return Reply(errno.EPERM)

    def _name(self, payload: bytes, sock: Any) -> Reply:
        family, name = wire.unpack_name(payload)
        replies = []

        def found(error: int, addresses: Any, canonical: str) -> None:
            packed = [(Address(host, 0).family or 0, Address(host, 0).packed) for host in addresses]
            replies.append(Reply(error, wire.ANSWER, wire.pack_addresses(packed, canonical.encode())))

        with self._lock:
            self._lookups.by_name(name, family, found)
        return replies[0]

    def _pointer(self, payload: bytes, sock: Any) -> Reply:
        address = Address.from_sockaddr(payload)
        names: list[str | None] = []
        if address is not None:
            self._lookups.by_address(address, names.append)
        name = names[0] if names else None
        return Reply(errno.ENOENT) if name is None else Reply(0, wire.ANSWER, name.encode())


class _Meeting:
    """The listener, and the thread in which what it accepts meets the chains' sockets and is relayed."""

    def __init__(self, layer: layers.Layer) -> None:
        self._layer = layer
        self._reactor = Reactor()
        self._pool = PipePool()
        self._relays: set[Relay] = set()
        self._accepted: dict[Name, socket.socket] = {}
        self._chains: dict[Name, socket.socket | None] = {}  # None: the dial failed
        self._dials: set[Name] = set()
        self._listeners: dict[int, socket.socket] = {}
        self._ending = False
        self.alive = True
        for family, host in ((int(socket.AF_INET), "127.0.0.1"), (int(socket.AF_INET6), "::1")):
            try:
                self._listen(family, host)
            except OSError:
                if family == socket.AF_INET:
                    raise
        self.ports = {listener.getsockname()[1] for listener in self._listeners.values()}
        self._waker = Waker()
        self._waking = threading.Lock()
        self._reactor.watch(self._waker.fileno(), READ, lambda events: self._waker.clear())
        threading.Thread(target=self._serve, name="pysocksify", daemon=True).start()

    def address(self, sock: Any) -> tuple[Any, ...]:
        """Where a socket reaches the listener. OSError: nowhere."""
        family = true.family.__get__(sock)
        listener = self._listeners.get(family)
        if listener is not None:
            return tuple(listener.getsockname())
        return "::ffff:127.0.0.1", self._listeners[int(socket.AF_INET)].getsockname()[1]

    def claim(self, name: Name, chain: socket.socket) -> None:
        """Relay between the connection that comes from `name` and `chain`, which is taken over."""
        self._do(lambda: self._settled(name, chain))

    def dial(self, name: Name, transport: OwnSocket, steps: Steps[Any]) -> None:
        """Dial for the connection that comes from `name`; when that fails it's reset."""

        def done(value: Any, error: BaseException | None) -> None:
            self._dials.discard(name)
            if error is None:
                self._settled(name, transport.sock)
                return
            transport.close()
            logger.warning("%s", error)
            self._settled(name, None)

        self._dials.add(name)
        self._do(lambda: self._reactor.spawn(steps, done))

    def end(self) -> None:
        """Stop once nothing is under way."""
        self._ending = True
        self._do(self._end_if_idle)

    def _listen(self, family: int, host: str) -> None:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            unpaced(listener)
            listener.bind((host, 0))
            listener.listen(128)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        self._listeners[family] = listener
        self._reactor.watch(listener.fileno(), READ, lambda events: self._accept(listener))

    def _do(self, call: Callable[[], object]) -> None:
        with self._waking:  # or the descriptor might be another file's by now
            if self.alive:
                self._reactor.call_soon(lambda: (call(), None)[1])
                self._waker.wake()

    def _serve(self) -> None:
        layers.serve_here(self._layer)
        try:
            self._reactor.run()
        finally:
            with self._waking:
                self.alive = False
                self._waker.close()
            layers.serve_here(None)
            for listener in self._listeners.values():
                listener.close()
            self._reactor.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        peer = sock.getpeername()[:2]
        name = (str(peer[0]).removeprefix("::ffff:"), int(peer[1]))
        self._accepted[name] = sock
        self._match(name)
        self._reactor.call_at(self._reactor.now() + UNCLAIMED, lambda: self._drop_stranger(name, sock))

    def _drop_stranger(self, name: Name, sock: socket.socket) -> None:
        if self._accepted.get(name) is sock and name not in self._dials:
            del self._accepted[name]
            sock.close()

    def _settled(self, name: Name, chain: socket.socket | None) -> None:
        self._chains[name] = chain
        self._match(name)

    def _match(self, name: Name) -> None:
        """Join the two ends of a connection when both are there."""
        if name not in self._accepted or name not in self._chains:
            return
        sock, chain = self._accepted.pop(name), self._chains.pop(name)
        if chain is None:
            reset(sock)
            return

        def done(outcome: object) -> None:
            self._relays.discard(relay)
            self._end_if_idle()

        relay = Relay(self._reactor, sock, chain, self._pool, done)
        self._relays.add(relay)

    def _end_if_idle(self) -> None:
        if self._ending and not (self._relays or self._dials or self._chains):
            self._reactor.stop()


class _AtOnce:
    """What Lookups needs of a reactor: blocking calls, made here and now."""

    def in_thread(self, function: Callable[[], Any], callback: Callable[[Any, BaseException | None], None]) -> None:
        """Call `function()` and hand its outcome on."""
        try:
            value = function()
        except OSError as error:
            callback(None, error)
        else:
            callback(value, None)


def _no_search() -> str:
    raise OSError(errno.ENOENT, "search lists are libc's here")


def _name(sock: Any) -> Name:
    host, port = true.getsockname(sock)[:2]
    return str(host).removeprefix("::ffff:"), int(port)
