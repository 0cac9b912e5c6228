"""CONNECT: a socket for one destination, made here or through a chain of proxies, as the rules say."""

import random
import socket
import time
from collections.abc import Callable, Mapping

from pysocksify.address import Address
from pysocksify.config import Config
from pysocksify.dial.hops import dial
from pysocksify.dial.transport import OwnSocket, perform
from pysocksify.errors import Cause, DialError, cause_of_errno
from pysocksify.reactor import Reactor, Task
from pysocksify.route.chain import ChainState, Proxy
from pysocksify.route.rules import DENY, DIRECT, Route
from pysocksify.server.happy_eyeballs import ConnectRace

DIRECT_ROUTE = Route(kind=DIRECT, rule="default")
UNKNOWN = Address("", 0)  # fits no rule but those for every host
Done = Callable[[socket.socket | None, Cause | None, str], None]


class Upstream:
    """The chains, with what is known of their hops, and the rules that choose one."""

    def __init__(self, config: Config | None) -> None:
        self._rules = None if config is None else config.rules
        rng = random.Random()
        chains = () if config is None else config.chains
        self._chains = {chain.name: ChainState(chain, rng) for chain in chains}

    def route(self, destination: Address) -> Route:
        """What becomes of a destination."""
        return DIRECT_ROUTE if self._rules is None else self._rules.route(destination)

    def route_unknown(self) -> Route:
        """What becomes of destinations that aren't known yet: direct, if some may be."""
        if self._rules is None or any(rule.to == DIRECT for rule in self._rules.rules):
            return DIRECT_ROUTE
        return self._rules.route(UNKNOWN)

    def chain(self, route: Route) -> ChainState:
        """The chain that a route of kind "chain" names."""
        return self._chains[str(route.chain)]


class Connect:
    """One CONNECT. `done(socket, None, "")` or `done(None, cause, words)` is called once, never from the constructor.

    `hosts` gives addresses for names that are reached from here, `may_reach` is asked about each address before it is
    connected to, `seconds` is the time for all of it. `source` is on whose behalf names are looked
    up, as the reactor's threads take it. `through` is the way, for the log.
    """

    def __init__(
        self,
        reactor: Reactor,
        upstream: Upstream,
        destination: Address,
        hosts: Mapping[str, tuple[str, ...]],
        may_reach: Callable[[Address], bool],
        seconds: float,
        done: Done,
        source: str | None = None,
    ) -> None:
        self.through = "direct"
        self._reactor = reactor
        self._done: Done | None = done
        self._race: ConnectRace | None = None
        self._task: Task[tuple[Proxy, ...]] | None = None
        route = upstream.route(destination)
        if route.kind == DENY:
            reactor.call_soon(lambda: self._end(None, Cause.NOT_ALLOWED, f"denied by rule {route.rule}"))
        elif route.kind == "chain":
            self._dial(upstream.chain(route), destination, seconds)
        else:
            self._race = ConnectRace(reactor, destination, hosts, seconds, self._end, may_reach, source)

    def cancel(self) -> None:
        """Give up; `done` is not called."""
        self._done = None
        if self._race is not None:
            self._race.cancel()
        if self._task is not None:
            self._timer.cancel()
            self._task.cancel()
            self._transport.close()

    def _dial(self, state: ChainState, destination: Address, seconds: float) -> None:
        self.through = state.chain.name
        self._transport = OwnSocket()
        steps = perform(dial(state, destination, time.monotonic), self._transport, time.monotonic)
        self._task = Task(self._reactor, steps, self._dialled)
        self._timer = self._reactor.call_at(self._reactor.now() + seconds, self._time_out)
        self._reactor.call_soon(self._task.start)

    def _dialled(self, path: tuple[Proxy, ...] | None, error: BaseException | None) -> None:
        self._task = None
        self._timer.cancel()
        if path is not None:
            self.through = " ".join(str(hop) for hop in path)
            self._end(self._transport.sock, None, "")
            return
        self._transport.close()
        if isinstance(error, DialError):
            # else it says nothing of the destination; nor does a hop that has no CONNECT
            of_destination = error.hop is None or error.phase == "request"
            known = of_destination and error.cause is not Cause.COMMAND_NOT_SUPPORTED
            self._end(None, error.cause if known else Cause.HOP_FAILED, str(error))
        elif isinstance(error, OSError):
            self._end(None, cause_of_errno(error.errno or 0), error.strerror or str(error))
        else:
            assert error is not None
            raise error

    def _time_out(self) -> None:
        done = self._done
        self.cancel()
        if done is not None:
            done(None, Cause.TIMED_OUT, "no answer in time")

    def _end(self, sock: socket.socket | None, cause: Cause | None, words: str) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(sock, cause, words)
        elif sock is not None:
            sock.close()
