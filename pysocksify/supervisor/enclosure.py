"""UDP sockets that can't send anything out: made in a network namespace where every address is local.

Theory of operation. A socket keeps the network namespace it was made in, whatever becomes of its descriptor. The
*maker*, a forked child, makes a user namespace and a network namespace of its own (no privileges needed where user
namespaces are allowed), and makes sockets there on request; they come over a socketpair by SCM_RIGHTS. The namespace
has one interface, `lo`, and two routes of its own in the table `local`, `local 0.0.0.0/0 dev lo` and
`local ::/0 dev lo` ("AnyIP"), so that each address of the world is an address of this machine there:

- A datagram to any address, port 53, reaches the wildcard responder sockets bound in the namespace, which learn the
  address that was asked from IP_PKTINFO and answer from that very address. connect(), send(), sendto(), getpeername()
  and checks of an answer's source need no rewriting.
- A datagram to any other port gets ICMP "port unreachable": ECONNREFUSED on a connected socket. What went nowhere is
  seen through a packet socket on `lo` with a filter (`refusals`), and `owner` tells whose it was.
- SO_BINDTODEVICE, IP_PKTINFO and scope ids name interfaces that don't exist there; multicast goes nowhere.

Who owns what: the supervisor owns one end of the socketpair; its end of file ends the maker, so a killed supervisor
leaves nothing behind. The namespace lives as long as the maker or any of its sockets. The maker is a child of the
supervisor, whose wait loop must know `pid`.
"""

import errno
import os
import signal
import socket as sockets
import struct
from contextlib import suppress
from dataclasses import dataclass

from pysocksify.errors import PysocksifyError

OWN_ADDRESS = "198.18.0.1"  # on `lo`: what getsockname() says of an IPv4 socket there; never a fake address
DNS_PORT = 53
IP_PKTINFO = 8  # linux/in.h; not in Python's socket module before 3.14
IPV6_FREEBIND = 78  # linux/in6.h

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
_REQUEST = struct.Struct("=iii")  # family, type, protocol
_ANSWER = struct.Struct("=i")  # errno; 0 comes with a descriptor
_PATIENCE = 5  # seconds; the maker answers in 0.1 ms. A stopped maker must not stop the supervisor


class EnclosureUnavailable(PysocksifyError):
    """This machine doesn't let us make such a namespace; str() says which step was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A datagram that went nowhere: the sending socket's port and family of the packet, and where it was meant for."""

    family: int
    source_port: int
    host: str
    port: int

    @property
    def is_multicast(self) -> bool:
        """Whether it was meant for a multicast group or for everyone (RFC 5771, RFC 4291 section 2.7, RFC 919)."""
        if self.family == sockets.AF_INET6:
            return self.host.startswith("ff")
        return 224 <= int(self.host.partition(".")[0]) <= 239 or self.host == "255.255.255.255"


class Enclosure:
    """The namespace, seen from the supervisor. Make it with `open`, and close it."""

    def __init__(
        self,
        pid: int,
        channel: sockets.socket,
        responders: list[sockets.socket],
        refusals: sockets.socket | None,
    ) -> None:
        self.pid = pid  # the maker's
        self.refusals = refusals  # readable when a datagram was refused; None where packet sockets can't be had
        self._channel = channel
        self._responders = responders

    @classmethod
    def open(cls, *, ipv6: bool) -> "Enclosure":
        """Make the namespace. With `ipv6` false, IPv6 addresses other than ::1 are ENETUNREACH there.

        Raises EnclosureUnavailable. The maker has no descriptor but its own, no terminal, and every signal blocked.
        """
        ours, theirs = sockets.socketpair(sockets.AF_UNIX, sockets.SOCK_SEQPACKET)
        # Blocked before fork(): a handler run in the child would write to the wake-up descriptor that both have.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _maker(theirs, ipv6)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        ours.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVTIMEO, struct.pack("@ll", _PATIENCE, 0))
        try:
            made = _receive(ours, 3)
        except OSError as error:
            ours.close()
            _reap(pid)
            raise EnclosureUnavailable(f"no network namespace for UDP sockets: {error.strerror}") from error
        given = [sockets.socket(fileno=descriptor) for descriptor in made]
        refusals = given.pop() if given[-1].family == sockets.AF_PACKET else None
        return cls(pid, ours, given, refusals)

    def socket(self, family: int, type: int, proto: int) -> int:
        """Make a socket in the namespace; the descriptor, close-on-exec, is the caller's.

        Blocks for one round trip, about 0.08 ms. `type` may hold SOCK_NONBLOCK. Raises OSError: the kernel's own answer
        to socket(2), or ENETDOWN when the maker is gone.
        """
        try:
            self._channel.send(_REQUEST.pack(family, type, proto))
        except OSError as error:
            raise OSError(errno.ENETDOWN, "the maker of UDP sockets is gone") from error
        return _receive(self._channel, 1)[0]

    def responder_sockets(self) -> list[sockets.socket]:
        """The wildcard UDP sockets of port 53, IPv4 and perhaps IPv6: non-blocking, telling the address asked."""
        return self._responders

    def refused(self) -> list[Refusal]:
        """Take what was refused since the last call, each (port, destination) once. Never blocks.

        The packet socket sees every datagram. One to a port that a socket here has was not refused: two programs of the
        target are talking to each other.
        """
        seen: dict[Refusal, None] = {}
        if self.refusals is not None:
            for _ in range(_REFUSALS_AT_ONCE):
                try:
                    refusal = _refusal(self.refusals.recv(_SNAP))
                except BlockingIOError:
                    break
                if refusal:
                    seen[refusal] = None
        return [each for each in seen if each.is_multicast or self.owner(each.port, each.family) is None]

    def owner(self, port: int, family: int) -> int | None:
        """The inode of a UDP socket of the namespace with that local port (as /proc/PID/fd shows it), or None.

        Reads /proc, about 0.2 ms. IPv4 packets may come from an AF_INET6 socket (IPv4-mapped destinations), so for
        AF_INET both tables are looked through.
        """
        for table in ("udp", "udp6") if family == sockets.AF_INET else ("udp6",):
            try:
                with open(f"/proc/{self.pid}/net/{table}", "rb") as lines:
                    next(lines, b"")
                    for line in lines:
                        fields = line.split()
                        if int(fields[1].rpartition(b":")[2], 16) == port:
                            return int(fields[9])
            except OSError:
                continue
        return None

    def close(self) -> None:
        """End the maker, wait for its end and close our own sockets; a supervisor that ends need not call this.

        Sockets given out stay, and still can't send anything out.
        """
        self._channel.close()
        for each in (*self._responders, self.refusals):
            if each is not None:
                each.close()
        _reap(self.pid)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # the supervisor's own wait loop was first
        os.waitpid(pid, 0)


def _receive(channel: sockets.socket, most: int) -> list[int]:
    """The descriptors in one answer of the maker. Raises OSError: the maker's errno, or ENETDOWN without a maker."""
    room = sockets.CMSG_SPACE(most * 4)
    try:
        data, ancillary, flags, _ = channel.recvmsg(512, room, sockets.MSG_CMSG_CLOEXEC)
    except BlockingIOError as error:
        channel.close()  # a late answer would be taken for the next one's
        raise OSError(errno.ENETDOWN, "the maker of UDP sockets doesn't answer") from error
    except OSError as error:
        raise OSError(errno.ENETDOWN, "the maker of UDP sockets is gone") from error
    descriptors: list[int] = []
    for _, _, payload in ancillary:
        descriptors += struct.unpack(f"={len(payload) // 4}i", payload)
    if flags & sockets.MSG_CTRUNC:  # as unix(7) has it, when there's no descriptor left for what was sent
        for descriptor in descriptors:
            os.close(descriptor)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    if descriptors:
        return descriptors
    if len(data) < _ANSWER.size:
        raise OSError(errno.ENETDOWN, "the maker of UDP sockets is gone")
    number = _ANSWER.unpack_from(data)[0]
    raise OSError(number, data[_ANSWER.size :].decode() or os.strerror(number))


# --- the maker ---


def _maker(channel: sockets.socket, ipv6: bool) -> None:
    """The child's whole life; never returns."""
    try:
        try:
            os.setsid()
            os.chdir("/")
            _close_all_but(channel.fileno())
            made = _furnish(ipv6)
        except OSError as error:
            channel.send(_ANSWER.pack(error.errno or errno.EIO) + (error.strerror or "").encode())
            return
        sockets.send_fds(channel, [_ANSWER.pack(0)], [each.fileno() for each in made])
        for each in made:
            each.close()
        while request := channel.recv(_REQUEST.size):
            try:
                with _target_socket(*_REQUEST.unpack(request)) as new:
                    sockets.send_fds(channel, [_ANSWER.pack(0)], [new.fileno()])
            except OSError as error:
                channel.send(_ANSWER.pack(error.errno or errno.EIO))
    finally:
        os._exit(0)


def _target_socket(family: int, type: int, proto: int) -> sockets.socket:
    new = sockets.socket(family, type, proto)
    if family == sockets.AF_INET6:  # for programs that bind to an address of the machine: IPv6 doesn't ask the routes
        new.setsockopt(sockets.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    return new


def _close_all_but(kept: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) != kept:
            with suppress(OSError):  # listdir's own
                os.close(int(name))


def _furnish(ipv6: bool) -> list[sockets.socket]:
    """Make the namespace and what the supervisor needs in it. Raises OSError whose strerror names the step."""
    _unshare()
    with sockets.socket(sockets.AF_NETLINK, sockets.SOCK_RAW, sockets.NETLINK_ROUTE) as netlink:
        lo = sockets.if_nametoindex("lo")
        steps: list[tuple[str, bytes]] = [
            ("lo up", link_up(lo)),
            ("address on lo", address(lo, OWN_ADDRESS)),
            ("IPv4 route", anyip_route(lo, sockets.AF_INET, OWN_ADDRESS)),
        ]
        if ipv6:
            steps.append(("IPv6 route", anyip_route(lo, sockets.AF_INET6, "::1")))
        for step, message in steps:
            _apply(netlink, step, message)
    made = [_responder(sockets.AF_INET)]
    if ipv6:
        made.append(_responder(sockets.AF_INET6))
    with suppress(OSError):  # a kernel without packet sockets: refusals go unseen, nothing else changes
        made.append(_packet_tap(lo))
    return made


def _unshare() -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        return
    number = ctypes.get_errno()
    if os.geteuid() == 0 and libc.unshare(_CLONE_NEWNET) == 0:
        return
    raise OSError(number, f"user namespaces are refused here ({os.strerror(number)})")


def _responder(family: int) -> sockets.socket:
    """Without SO_REUSEADDR and SO_REUSEPORT: a socket of the target's must not share the port and take its queries."""
    new = sockets.socket(family, sockets.SOCK_DGRAM | sockets.SOCK_NONBLOCK)
    if family == sockets.AF_INET:
        new.setsockopt(sockets.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        new.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY, 1)
        new.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_RECVPKTINFO, 1)
        new.setsockopt(sockets.IPPROTO_IPV6, IPV6_FREEBIND, 1)  # else IPV6_PKTINFO takes addresses on an interface only
    new.bind(("0.0.0.0" if family == sockets.AF_INET else "::", DNS_PORT))
    return new


# --- rtnetlink(7) ---

_RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 20, 24  # linux/rtnetlink.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 1, 4, 0x200, 0x400
_IFF_UP = 1
_IFA_LOCAL = 2
_RTA_OIF, _RTA_PREFSRC = 4, 7
_RT_TABLE_LOCAL, _RTPROT_STATIC, _RTN_LOCAL = 255, 4, 2
_RT_SCOPE_HOST = 254


def _message(kind: int, flags: int, body: bytes, *attributes: tuple[int, bytes]) -> bytes:
    """nlmsghdr (len, type, flags, seq, pid), body, and attributes (len, type, data, padded to 4)."""
    for number, data in attributes:
        body += struct.pack("=HH", 4 + len(data), number) + data + bytes(-len(data) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, 1, 0) + body


def link_up(index: int) -> bytes:
    """ifinfomsg: family, pad, type, index, flags, change."""
    return _message(_RTM_NEWLINK, 0, struct.pack("=BxHiII", sockets.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP))


def address(index: int, host: str) -> bytes:
    """ifaddrmsg: family, prefixlen, flags, scope, index. An IPv4 host address of global scope."""
    body = struct.pack("=BBBBI", sockets.AF_INET, 32, 0, 0, index)
    return _message(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_EXCL, body, (_IFA_LOCAL, sockets.inet_aton(host)))


def anyip_route(index: int, family: int, source: str) -> bytes:
    """`local default dev lo src SOURCE`. rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.

    In the table `local`, because the IPv4 check of a source address (IP_PKTINFO, bind) looks in that table alone.
    """
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _RT_TABLE_LOCAL, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    attributes = (_RTA_OIF, struct.pack("=I", index)), (_RTA_PREFSRC, sockets.inet_pton(family, source))
    return _message(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_EXCL, body, *attributes)


def _apply(netlink: sockets.socket, step: str, message: bytes) -> None:
    netlink.send(message)
    number = -struct.unpack_from("=i", netlink.recv(4096), 16)[0]  # nlmsgerr after nlmsghdr
    if number:
        raise OSError(number, f"{step} is refused ({os.strerror(number)})")


# --- what was refused ---

_SNAP = 64  # bytes of a packet kept: IPv4 header with options, or IPv6's, and ports
_REFUSALS_AT_ONCE = 64
_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_PACKET_OUTGOING = 4  # linux/if_packet.h: each packet on lo is seen twice, going out and coming in
_SKF_AD_PKTTYPE = 0xFFFFF000 + 4  # linux/filter.h

# Classic BPF, from the network header: accept outgoing UDP, not a later fragment, neither from nor to port 53.
# Rows are (code, jump if true, jump if false, value); the last row but one accepts, the last one drops.
_FILTER = (
    (0x20, 0, 0, _SKF_AD_PKTTYPE),  # ld pkttype
    (0x15, 0, 20, _PACKET_OUTGOING),
    (0x30, 0, 0, 0),  # ldb version
    (0x54, 0, 0, 0xF0),
    (0x15, 0, 9, 0x40),
    (0x30, 0, 0, 9),  # ldb IPv4 protocol
    (0x15, 0, 15, sockets.IPPROTO_UDP),
    (0x28, 0, 0, 6),  # ldh fragment offset
    (0x45, 13, 0, 0x1FFF),
    (0xB1, 0, 0, 0),  # ldxb 4*(IHL)
    (0x48, 0, 0, 0),  # ldh source port
    (0x15, 10, 0, DNS_PORT),
    (0x48, 0, 0, 2),  # ldh destination port
    (0x15, 8, 7, DNS_PORT),
    (0x15, 0, 7, 0x60),
    (0x30, 0, 0, 6),  # ldb IPv6 next header
    (0x15, 0, 5, sockets.IPPROTO_UDP),
    (0x28, 0, 0, 40),
    (0x15, 3, 0, DNS_PORT),
    (0x28, 0, 0, 42),
    (0x15, 1, 0, DNS_PORT),
    (0x06, 0, 0, _SNAP),
    (0x06, 0, 0, 0),
)


def _packet_tap(index: int) -> sockets.socket:
    import ctypes

    program = b"".join(struct.pack("=HBBI", *row) for row in _FILTER)
    held = ctypes.create_string_buffer(program)
    new = sockets.socket(sockets.AF_PACKET, sockets.SOCK_DGRAM | sockets.SOCK_NONBLOCK, 0)
    new.setsockopt(sockets.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(_FILTER), ctypes.addressof(held)))
    new.bind(("lo", _ETH_P_ALL))  # receives only from here on, with the filter in place
    return new


def _refusal(packet: bytes) -> Refusal | None:
    if packet[0] >> 4 == 4:
        start = (packet[0] & 15) * 4
        family, host = sockets.AF_INET, sockets.inet_ntop(sockets.AF_INET, packet[16:20])
    else:
        start, family, host = 40, sockets.AF_INET6, sockets.inet_ntop(sockets.AF_INET6, packet[24:40])
    if len(packet) < start + 4:
        return None
    source_port, port = struct.unpack_from(">HH", packet, start)
    return Refusal(family=int(family), source_port=source_port, host=host, port=port)
