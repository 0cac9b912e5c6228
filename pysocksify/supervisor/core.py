"""The supervisor's decisions: what becomes of each call of the target that an engine catches.

An engine turns a system call into one of the methods here, with a duplicate of the target's own socket, and gets the
answer through the Call. Nothing here knows how the call was caught; nothing of SOCKS, chains, rules or DNS is known
to an engine.
"""

import errno
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from pysocksify.address import Address
from pysocksify.config import Config
from pysocksify.dial.hops import MOST_TIME, dial
from pysocksify.dial.transport import Transport, perform
from pysocksify.errors import DialError
from pysocksify.flow import PipePool
from pysocksify.kernel import Kernel
from pysocksify.linux import connect
from pysocksify.reactor import Reactor, Steps
from pysocksify.relay import Relay
from pysocksify.report import VERBOSE, Report
from pysocksify.route.chain import ChainState
from pysocksify.route.fakeip import FakeAddresses, is_fake
from pysocksify.route.rules import Route
from pysocksify.supervisor.calls import Call, CallRefused, Signalled, program_of
from pysocksify.supervisor.connection import Connection, Dial, State, Then, Way, cookie_of, is_connected
from pysocksify.supervisor.connections import Connections
from pysocksify.supervisor.direct import TargetSocket, stays_here
from pysocksify.supervisor.enclosure import Enclosure, EnclosureUnavailable, Refusal
from pysocksify.supervisor.lookups import Hosts, Lookups
from pysocksify.supervisor.names import Names
from pysocksify.supervisor.openfiles import descendants
from pysocksify.supervisor.processes import SUPERVISOR
from pysocksify.supervisor.responder import Responder
from pysocksify.supervisor.search import Search

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pysocksify.supervisor.confined import Confined

DNS_PORT = 53
UNKNOWN = "unknown fake address"
SO_NETNS_COOKIE = 71  # Linux 5.14
IPPROTO_MPTCP = 262
NAME_SERVICES = (b"/nscd/socket", b"/systemd/resolve/io.systemd.Resolve", b"/avahi-daemon/socket")
"""Ends of the paths of Unix sockets that would look names up outside: nscd, systemd-resolved, avahi."""


PLANS_KEPT = 1024  # a program connects to few places; a port scan must not fill memory


@dataclass(slots=True, eq=False)
class Plan:
    """What becomes of connections to one destination. `dial` is None where it's denied."""

    destination: Address
    route: Route
    dial: Dial | None
    local: bool
    """The kernel may be given the program's own address: direct, and no fake one."""


class Supervisor:
    """Answers the calls of one target."""

    def __init__(
        self,
        reactor: Reactor,
        config: Config,
        report: Report,
        kernel: Kernel,
        target: int,
        children: set[int],
        *,
        signalled: Signalled = Signalled.LOOKED_FOR,
        programs: Callable[[], list[int]] | None = None,
        same_process: bool = False,
    ) -> None:
        """`target` is the first program's pid; children of the supervisor's own are added to `children`.

        `programs` says which processes may have the target's sockets open; by default all descendants of this one, and
        with `same_process` this one, which is the target then.
        """
        self._reactor = reactor
        self._config = config
        self._report = report
        self.signalled = signalled
        self._children = children
        rng = random.Random()
        self._chains = {chain.name: ChainState(chain, rng) for chain in config.chains}
        self._pool = PipePool()
        self._relays: set[Relay] = set()
        self._connections = Connections(
            reactor,
            signalled=signalled,
            joined=self._relay,
            told=self._tell,
            programs=programs or (lambda: [os.getpid()] * same_process + descendants(os.getpid())),
            same_process=same_process,
            kernel=kernel,
        )
        self._ipv6 = kernel.ipv6 and _has_ipv6()
        self._fake = FakeAddresses()
        self._names = Names(self._fake, config.rules, Search.of_process(target), ipv6=self._ipv6)
        system = config.dns == "system"
        self.lookups = Lookups(reactor, self._names, Hosts.of_process(target), system=system, ipv6=self._ipv6)
        self._enclosure: Enclosure | None = None
        self._enclosure_refusal = "" if kernel.enclosure else "namespaces aren't to be had"
        self._confined: Confined | None = None
        self._responder: Responder | None = None
        self._udp_programs: dict[int, str] = {}
        self._plans: dict[bytes, Plan] = {}
        self._planned_at = 0

    @property
    def busy(self) -> bool:
        """Whether relays still have something to deliver."""
        return bool(self._relays) or self._connections.delivering

    # connect(2)

    def connect(
        self,
        call: Call,
        sock: socket.socket,
        sockaddr: bytes,
        then: Then | None = None,
    ) -> None:
        """connect() of an inet socket, which is taken over. `then` answers with the connected socket in place of 0."""
        family = int.from_bytes(sockaddr[:2], sys.byteorder) if len(sockaddr) >= 2 else -1
        if sock.type != socket.SOCK_STREAM:
            self._connect_datagram(call, sock, sockaddr)
            return
        cookie = cookie_of(sock)
        connection = self._connections.get(cookie)
        if family == socket.AF_UNSPEC:
            if connection is not None:
                self._connections.forget(connection)
            _answer_kernel(call, sock, sockaddr)
            return
        if connection is not None and self._connections.again(connection, call, sock, then):
            return
        if self._planned_at != self._names.changes:
            self._planned_at = self._names.changes
            self._plans.clear()
        plan = self._plans.get(sockaddr) or self._plan(sockaddr)
        if plan is not None and plan.dial and not plan.local and stays_here(sock, plan.destination):
            route = Route(kind="direct", rule="bound to loopback")
            plan = Plan(plan.destination, route, self._directly(sockaddr, route), True)
        if plan is None or family != sock.family:
            least = 16 if sock.family == socket.AF_INET else 24  # sizeof(struct sockaddr_in); SIN6_LEN_RFC2133
            sock.close()
            call.answer(errno.EAFNOSUPPORT if len(sockaddr) >= least else errno.EINVAL)
        elif is_connected(sock):
            _answer_kernel(call, sock, sockaddr)  # 0 once for the kernel's own, else EISCONN; goes nowhere
        elif plan.dial is None:
            sock.close()
            call.answer(self._denied(plan))
        elif plan.local and not os.get_blocking(sock.fileno()):
            self._report.connection(f"{plan.destination} via direct ({plan.route.rule}): left to the kernel")
            _answer_kernel(call, sock, sockaddr)
        elif plan.destination.port == DNS_PORT and self._config.dns == "fake":
            self._connect_to_responder(call, sock, cookie, plan, then)
        else:
            self._connections.begin(call, sock, cookie, sockaddr, plan.destination, plan.dial, then)

    def _plan(self, sockaddr: bytes) -> Plan | None:
        """The plan for an address of a program's; None for what isn't an inet address."""
        address = Address.from_sockaddr(sockaddr)
        if address is None:
            return None
        fake = is_fake(address.host)
        destination = self._names.destination(address)
        plan: Plan
        if address.port == DNS_PORT:  # DNS over TCP: to the responder, in system mode to the server that was asked for
            route = Route(kind="direct", rule="DNS")
            plan = Plan(address, route, self._directly(sockaddr, route), self._config.dns == "system")
        elif self._names.unknown_fake(address):
            route = Route(kind="deny", rule=UNKNOWN)
            plan = Plan(address, route, None, False)
        else:
            route = self._config.rules.route(destination)
            plan = Plan(destination, route, self._dial_for(sockaddr, destination, route, fake), False)
            plan.local = route.kind == "direct" and not fake
        # what an address stands for may change, if it stands for a name
        if not fake and not destination.is_name:
            if len(self._plans) >= PLANS_KEPT:
                self._plans.clear()
            self._plans[sockaddr] = plan
        return plan

    def _dial_for(self, sockaddr: bytes, destination: Address, route: Route, fake: bool) -> Dial | None:
        if route.kind == "chain":
            return self._through(self._chains[str(route.chain)], destination)
        if route.kind == "deny":
            return None
        return self._direct_name(destination, route) if fake else self._directly(sockaddr, route)

    def _denied(self, plan: Plan) -> int:
        """Say why there's no connection; the errno for the program."""
        destination = plan.destination
        if plan.route.rule == UNKNOWN:
            text = f"{destination.host} stands for no name here; was it looked up in another run?"
            self._report.problem(f"unknown {destination.host}", text)
            return errno.EHOSTUNREACH
        self._report.problem(f"deny {destination}", f"{destination}: denied by rule {plan.route.rule}")
        return errno.EACCES

    def _connect_to_responder(
        self, call: Call, sock: socket.socket, cookie: bytes, plan: Plan, then: Then | None
    ) -> None:
        takes_ipv4 = sock.family == socket.AF_INET or plan.destination.family == socket.AF_INET
        name = self._responding().tcp_address(socket.AF_INET if takes_ipv4 else socket.AF_INET6)
        if name is None:
            sock.close()
            call.answer(errno.ENETUNREACH)
            return
        sockaddr = Address(*name).to_sockaddr(sock.family)
        if os.get_blocking(sock.fileno()):
            dial = self._directly(sockaddr, plan.route)
            self._connections.begin(call, sock, cookie, sockaddr, plan.destination, dial, then)
        else:
            _answer_kernel(call, sock, sockaddr)

    def _through(self, state: ChainState, destination: Address) -> Dial:
        return lambda transport: perform(dial(state, destination, time.monotonic), transport, time.monotonic)

    def _direct_name(self, destination: Address, route: Route) -> Dial:
        """A name that is direct only on some ports was answered with a fake address: look it up now."""

        def run(transport: Transport) -> Steps[Way]:
            yield from transport.open(destination, time.monotonic() + MOST_TIME)
            return (f"direct ({route.rule})",)

        return run

    def _directly(self, sockaddr: bytes, route: Route) -> Dial:
        def run(transport: Transport) -> Steps[Way]:
            if isinstance(transport, TargetSocket):
                yield from transport.connect(sockaddr, None)
            else:
                address = Address.from_sockaddr(sockaddr)
                assert address is not None
                yield from transport.open(address, time.monotonic() + MOST_TIME)
            return (f"direct ({route.rule})",)

        return run

    def interrupted(self, call: Call) -> None:
        """A signal has ended the wait of a connect() (Signalled.TOLD): it gets EINTR, the dial goes on."""
        self._connections.interrupted(call)

    # what else is asked of a socket

    def so_error(self, sock: socket.socket) -> int | None:
        """getsockopt(SO_ERROR): the errno of a dial that failed, once; None: let the kernel say."""
        return self._connections.error(sock)

    @property
    def failures_kept(self) -> bool:
        """Whether any SO_ERROR is ours to say."""
        return self._connections.failures_kept

    def peer(self, sock: socket.socket) -> bytes | None:
        """getpeername(2) of an inet socket: the sockaddr that the program asked for; None: let the kernel say.

        CallRefused: it has none yet. The kernel would say so later, when the connection to us may stand.
        """
        if sock.type == socket.SOCK_DGRAM:
            return self._confined.peer(sock) if self._confined is not None else None
        connection = self._connections.find(sock)
        if connection is None:
            return None
        if not is_connected(sock):
            raise CallRefused(errno.ENOTCONN)
        return None if connection.state is State.DIALLING else connection.sockaddr

    # sockets that aren't TCP

    @property
    def confined(self) -> "Confined | None":
        """Where namespaces can't be had: the target's UDP sockets, whose calls the engine must catch."""
        return self._confined

    def make_socket(self, call: Call, family: int, kind: int, proto: int) -> int:
        """socket(2) for what isn't plain TCP: a descriptor for the program to get. CallRefused."""
        inet = family in (socket.AF_INET, socket.AF_INET6)
        if not inet:
            packet = family == socket.AF_PACKET
            self._refuse(call, f"a socket of address family {family}", packet)
            raise CallRefused(errno.EPERM if packet else errno.EAFNOSUPPORT)
        base = kind & 0xF
        if base == socket.SOCK_RAW:
            self._refuse(call, "a raw socket", True)
            raise CallRefused(errno.EPERM)
        if base != socket.SOCK_DGRAM:
            self._refuse(call, f"a socket of type {base}, protocol {proto}", proto != IPPROTO_MPTCP)
            raise CallRefused(errno.EPROTONOSUPPORT)
        if proto not in (0, socket.IPPROTO_UDP):
            icmp = proto in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)
            self._refuse(call, "an ICMP socket" if icmp else f"a datagram socket of protocol {proto}", True)
            raise CallRefused(errno.EACCES if icmp else errno.EPROTONOSUPPORT)
        enclosure = self._enclosed()
        self._responding()
        if enclosure is None:
            return self._make_confined(call, family, proto)
        fd = enclosure.socket(family, kind, proto)
        self._udp_programs[os.fstat(fd).st_ino] = program_of(call.tid)
        if len(self._udp_programs) > 4096:
            del self._udp_programs[next(iter(self._udp_programs))]
        return fd

    def _make_confined(self, call: Call, family: int, proto: int) -> int:
        if self._confined is None:
            from pysocksify.supervisor.confined import Confined  # here: few machines need it

            self._reactor.call_soon(_import_dns)
            self._confined = Confined(self._reactor, self._responding().query, self._datagram_refused, ipv6=self._ipv6)
        try:
            return self._confined.make(family, proto)
        except OSError as failure:
            if failure.errno != errno.EPERM:
                raise
            self._refuse(call, f"a UDP socket ({self._enclosure_refusal}, and it can't be bound to lo)", True)
            raise CallRefused(errno.EPERM) from failure

    def redirect(self, call: Call, sock: socket.socket, sockaddr: bytes) -> bytes | None:
        """Where a UDP send with a name is to go instead, without control messages; None: as it stands. CallRefused.

        For engines that let the kernel perform it. `sockaddr` is b"" for the socket's peer.
        """
        if sock.type != socket.SOCK_DGRAM:
            return None
        if self._confined is not None and self._confined.holds(sock):
            return self._confined.way(call.tid, sock, sockaddr) if sockaddr else b""
        if self._is_enclosed(sock):
            return None
        address = Address.from_sockaddr(sockaddr)
        if address is None or not address.is_loopback:
            self._refuse(call, f"UDP to {address} on a socket made before", True)
            raise CallRefused(errno.EPERM)
        return sockaddr

    def source(self, sock: socket.socket, sockaddr: bytes) -> bytes | None:
        """The sockaddr to show for the one that a UDP receive gave; None: as it stands."""
        if self._confined is None or sock.type != socket.SOCK_DGRAM:
            return None
        return self._confined.source(sock.family, sockaddr)

    def refuse(self, call: Call, what: str, problem: bool) -> None:
        """Say that the engine itself refuses this to a program; once, when it's a `problem`."""
        self._refuse(call, what, problem)

    def refuse_io_uring(self, call: Call) -> None:
        """io_uring_setup(2): its operations pass no filter, so there's none of it; programs fall back."""
        self._refuse(call, "io_uring", False)
        call.answer(errno.ENOSYS)

    def refuses_path(self, path: bytes) -> bool:
        """Whether a Unix socket is a name service's, which would look names up outside."""
        return self._config.dns == "fake" and path.rstrip(b"\0").endswith(NAME_SERVICES)

    def _connect_datagram(self, call: Call, sock: socket.socket, sockaddr: bytes) -> None:
        """connect() of a UDP socket: of the enclosure's it can't lead out; another one came from outside."""
        family = int.from_bytes(sockaddr[:2], sys.byteorder) if len(sockaddr) >= 2 else -1
        address = Address.from_sockaddr(sockaddr)
        if self._confined is not None and self._confined.holds(sock):
            try:
                error = self._confined.connect(sock, sockaddr)
            finally:
                sock.close()
            call.answer(error)
            return
        local = family == socket.AF_UNSPEC or (address is not None and address.is_loopback)
        if not local and not self._is_enclosed(sock):
            self._refuse(call, f"UDP to {address} on a socket made before", True)
            sock.close()
            call.answer(errno.EPERM)
            return
        _answer_kernel(call, sock, sockaddr)

    def _is_enclosed(self, sock: socket.socket) -> bool:
        if self._enclosure is None:
            return False
        try:
            mine = self._enclosure.responder_sockets()[0].getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
            return sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8) == mine
        except OSError:  # Linux before 5.14
            return os.fstat(sock.fileno()).st_ino in self._udp_programs

    def _enclosed(self) -> Enclosure | None:
        if self._enclosure is None and not self._enclosure_refusal:
            try:
                self._enclosure = Enclosure.open(ipv6=self._ipv6)
            except EnclosureUnavailable as refusal:
                self._enclosure_refusal = str(refusal)
            else:
                self._children.add(self._enclosure.pid)
                self._reactor.call_soon(_import_dns)
        return self._enclosure

    def _responding(self) -> Responder:
        if self._responder is None:
            self._responder = Responder(
                self._reactor, self._names, self._enclosed(), self._config.dns, refused=self._udp_refused
            )
        return self._responder

    def _udp_refused(self, refusal: Refusal) -> None:
        """A datagram went nowhere: say so, once for a program."""
        assert self._enclosure is not None
        inode = self._enclosure.owner(refusal.source_port, refusal.family)
        program, to = self._udp_programs.get(inode or 0, "a program"), Address(refusal.host, refusal.port)
        if program == SUPERVISOR and to.is_loopback:
            self._report.debug(f"{program}: nobody waits at {to} any more for its answer")
        else:
            self._say_udp_refused(program, to)

    def _datagram_refused(self, tid: int, to: Address) -> None:
        self._say_udp_refused(program_of(tid), to)

    def _say_udp_refused(self, program: str, to: Address) -> None:
        self._report.problem(f"udp {program}", f"{program}: UDP to {to} can't be carried and was refused")

    # telling

    def _refuse(self, call: Call, what: str, problem: bool) -> None:
        program = program_of(call.tid)
        text = f"{program}: {what} can't be carried and was refused"
        if problem:
            self._report.problem(f"{what} {program}", text)
        else:
            self._report.debug(text)

    def _tell(self, connection: Connection, way: Way, failure: OSError | DialError | None) -> None:
        """Say what became of a connection."""
        report = self._report
        if report.verbosity >= VERBOSE:
            milliseconds = round(1000 * (self._reactor.now() - connection.started))
            if failure is None:
                through = " ".join(str(hop) for hop in way)
                report.connection(f"{connection.destination} via {through}: connected in {milliseconds} ms")
            elif isinstance(failure, DialError):
                report.connection(f"{failure} ({milliseconds} ms)")
            else:
                report.connection(f"{connection.destination}: direct: {failure.strerror} ({milliseconds} ms)")
        elif isinstance(failure, DialError):
            # one line for what a hop says of destinations of one kind, not one for each port of a scan
            report.problem(f"{failure.hop} {failure.phase} {failure.cause}", str(failure))

    def _relay(self, other: socket.socket, chain: socket.socket) -> None:
        def done(outcome: object) -> None:
            self._relays.discard(relay)

        relay = Relay(self._reactor, other, chain, self._pool, done)
        self._relays.add(relay)


def _answer_kernel(call: Call, sock: socket.socket, sockaddr: bytes) -> None:
    """Perform connect(2) here, on the duplicate and with our own copy of the address, and pass the outcome on."""
    error = connect(sock.fileno(), sockaddr)
    sock.close()
    call.answer(error)


def _import_dns() -> None:
    """Who makes a UDP socket asks for a name next: the message library takes a while to import."""
    import dnslib  # noqa: F401


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
