"""Chains: proxies in order, and which of them the next connection goes through."""

from pysocksify.address import Address
from pysocksify.record import record

TYPE_CHECKING = False  # typing costs a fifth of a bare interpreter's start
if TYPE_CHECKING:
    from random import Random

SCHEMES = ("socks4", "socks4a", "socks5", "http")
MODES = ("strict", "dynamic", "random", "round_robin")

# Long enough that a dead hop's time limit isn't paid by every connection of a page, short enough that a proxy that was
# restarted is soon used again (HAProxy's and nginx's failure marks last 10-30 s too).
DEAD_SECONDS = 30.0


@record(frozen=True, slots=True, kw_only=True, repr=False)
class Proxy:
    """One server of a chain.

    scheme    one of SCHEMES; with socks4 and socks4a `username` is the user id
    address   where it listens, perhaps by name
    username, password   None: nothing is offered; an empty one is offered as empty

    Its text is a URL without the credentials; nothing shows the password.
    """

    scheme: str
    address: Address
    username: bytes | None = None
    password: bytes | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"

    def __repr__(self) -> str:
        return f"<Proxy {self}>"


@record(frozen=True, slots=True, kw_only=True)
class Chain:
    """Proxies, and how a connection uses them.

    mode      strict: all, in order; dynamic: all that answer, in order; random: `length` of them, drawn anew for each
              connection; round_robin: the next `length` in turn
    length    for random and round_robin: how many hops a connection goes through, never fewer
    connect_timeout, reply_timeout   seconds, for each hop and for each reply of it
    """

    name: str
    mode: str
    length: int
    hops: tuple[Proxy, ...]
    connect_timeout: float
    reply_timeout: float


class ChainState:
    """What is remembered between the connections of one chain: whose turn it is, and which hops didn't answer.

    One of these serves all processes of a target. `rng` is used for random chains only.
    """

    def __init__(self, chain: Chain, rng: "Random") -> None:
        self.chain = chain
        self._rng = rng
        self._turn = 0
        self._dead_until: dict[Proxy, float] = {}

    def selection(self, now: float) -> "Selection":
        """The hops for one more connection. `now` is a clock's time in seconds; any clock that only goes forward."""
        return Selection(self, now)

    def _usable(self, dead: set[Proxy], now: float) -> list[Proxy]:
        """The hops to choose from, in order: those that answered, or, where they are too few, also those that lately
        didn't (a memory that leaves no path is worth nothing), but none of `dead`; [] when these are too few too."""
        chain = self.chain
        least = 1 if chain.mode == "dynamic" else chain.length
        hops = [hop for hop in chain.hops if hop not in dead]
        answering = [hop for hop in hops if self._dead_until.get(hop, now) <= now]
        if len(answering) >= least:
            return answering
        return hops if len(hops) >= least else []

    def _draw(self, dead: set[Proxy], now: float) -> tuple[Proxy, ...]:
        """A path for a new connection, or () when too few hops are left."""
        chain = self.chain
        if chain.mode == "strict":
            return chain.hops
        usable = self._usable(dead, now)
        if not usable or chain.mode == "dynamic":
            return tuple(usable)
        if chain.mode == "random":
            return tuple(self._rng.sample(usable, chain.length))
        return self._take_turns(usable)

    def _take_turns(self, usable: list[Proxy]) -> tuple[Proxy, ...]:
        """The next `length` usable hops; whoever comes next begins after the last of them."""
        hops = self.chain.hops
        left = list(usable)
        path: list[Proxy] = []
        while len(path) < self.chain.length:
            hop = hops[self._turn % len(hops)]
            self._turn = (self._turn + 1) % len(hops)
            if hop in left:
                left.remove(hop)
                path.append(hop)
        return tuple(path)

    def _remember(self, hop: Proxy, now: float) -> None:
        self._dead_until[hop] = now + DEAD_SECONDS


class Selection:
    """The hops of one connection, from its first try to its last."""

    def __init__(self, state: ChainState, now: float) -> None:
        self._state = state
        self._now = now
        self._dead: set[Proxy] = set()
        self._path = state._draw(self._dead, now)

    def path(self) -> tuple[Proxy, ...]:
        """The hops to go through now, in order; the same until one of them is dead.

        Never empty, so that "no hop left" can't be taken for "no hop needed": LookupError then.
        """
        if not self._path:
            raise LookupError(f"no hop of chain {self._state.chain.name} is left to try")
        return self._path

    def dead(self, hop: Proxy, now: float | None = None) -> bool:
        """This hop didn't answer: is there another path to try?

        False means give up: the chain is strict, or too few hops are left. `now` defaults to the selection's beginning.
        """
        state = self._state
        if state.chain.mode == "strict":
            return False
        at = self._now if now is None else now
        state._remember(hop, at)
        self._dead.add(hop)
        self._path = state._draw(self._dead, at)
        return bool(self._path)
