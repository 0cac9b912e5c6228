"""What one client may have of what it asked for, by the rules of access and by the chains."""

from pysocksify.address import Address
from pysocksify.codes import Command
from pysocksify.errors import Cause
from pysocksify.protocol.serve import Request
from pysocksify.route.rules import DENY, DIRECT
from pysocksify.server.connect import Upstream
from pysocksify.server.settings import ServerSettings

Refusal = tuple[Cause, str]


class Permission:
    """Of one request: of whom, for what. `user` is as `users.shown` writes it; None: hasn't logged in."""

    __slots__ = ("_request", "_settings", "_source", "_upstream", "_user")

    def __init__(
        self, settings: ServerSettings, upstream: Upstream, source: Address, user: str | None, request: Request
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self._source = source
        self._user = user
        self._request = request

    def refusal(self) -> Refusal | None:
        """Why the request is refused at once; None: it may be tried."""
        command, destination = self._request.command, self._destination
        if not self._request.is_known:
            return Cause.COMMAND_NOT_SUPPORTED, f"{command.name} is not supported"
        direct = destination is not None and self._upstream.route(destination).kind == DIRECT
        decision = self._settings.access.decide(
            user=self._user, source=self._source, command=command, destination=destination, resolved_here=direct
        )
        if not decision.allowed:
            return Cause.NOT_ALLOWED, decision.rule
        return None if command == Command.CONNECT else self._chain_in_the_way(destination)

    @property
    def _destination(self) -> Address | None:
        """None: not known yet, as for UDP ASSOCIATE, and a BIND that anybody may connect to."""
        command, destination = self._request.command, self._request.destination
        if command == Command.UDP_ASSOCIATE:
            return None
        anybody = command == Command.BIND and not destination.is_name and not any(destination.packed)
        return None if anybody else destination

    def _chain_in_the_way(self, destination: Address | None) -> Refusal | None:
        """Why BIND and UDP can't be had: there's a chain for this destination, or a rule denies it."""
        route = self._upstream.route_unknown() if destination is None else self._upstream.route(destination)
        if route.kind == DIRECT:
            return None
        if route.kind == DENY:
            return Cause.NOT_ALLOWED, f"denied by rule {route.rule}"
        return Cause.COMMAND_NOT_SUPPORTED, "only CONNECT goes through a chain"

    def may_reach(self, address: Address) -> bool:
        """Whether this address may be reached for the request's destination, or may connect to what BIND opened."""
        return self.may_reach_for(self._request.destination, address)

    def may_reach_for(self, destination: Address, address: Address) -> bool:
        """Whether this address may be reached for that destination, whose name was looked up."""
        decision = self._settings.access.may_reach(
            user=self._user,
            source=self._source,
            command=self._request.command,
            destination=destination,
            address=address,
        )
        return decision.allowed

    def allows_datagram(self, destination: Address) -> bool:
        """Whether a datagram may go there, as far as that is known before its name is looked up."""
        if self._upstream.route(destination).kind != DIRECT:
            return False
        decision = self._settings.access.decide(
            user=self._user,
            source=self._source,
            command=Command.UDP_ASSOCIATE,
            destination=destination,
            resolved_here=True,
        )
        return decision.allowed
