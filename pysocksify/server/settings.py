"""What a server does: plain values, which a reload replaces as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pysocksify.config import Config
from pysocksify.server.access import Access
from pysocksify.server.users import Users


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many connections there may be at once, over all workers, and how long each thing may take (seconds).

    None: without limit. dante's timeout.negotiate and timeout.connect are 30, too; the time of a BIND is 2 minutes at
    most by the SOCKS4 protocol's text.
    """

    total: int | None = None
    per_user: int | None = None
    per_source: int | None = None
    handshake: float = 30.0
    dial: float = 30.0
    bind: float = 120.0
    idle: float | None = None
    udp_idle: float = 300.0  # RFC 4787 REQ-5 recommends 5 minutes for a NAT's mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """`users`: with any, nobody gets in without one; SOCKS4, which has no password, never.

    hosts       addresses for names, looked up before any resolver is asked
    open        listen for others although there are no users
    access      who may reach what
    identd      a SOCKS4 client's user id is checked with its identd (RFC 1413), and is a user's name for `access` then
    upstream    the chains, and the rules that choose one; None: everything is direct
    """

    users: Users = field(default_factory=Users, repr=False)
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    open: bool = False
    access: Access = field(default_factory=Access)
    identd: bool = False
    upstream: Config | None = None
    limits: Limits = field(default_factory=Limits)
