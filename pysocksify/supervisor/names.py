"""What names mean: DNS queries of the target to answers, and addresses back to the names they were given out for.

Theory of operation. No name of the target's is looked up anywhere: A and AAAA get fake addresses, and a connection to a
fake address goes to the chain as its name. Names that the rules send `direct` are looked up as this machine does
(`Lookup`, a blocking call that the responder makes in a thread), and the addresses given out are remembered, so that
rules about names match the connections that follow. Nothing here does I/O but `look_up`, and reading resolv.conf at the
first query.

Answers carry RA, because glibc and Go take an empty answer without AA and RA for a lame server's and ask the next one.
They carry no SOA: without it no cache may keep a "no" (RFC 2308 section 5), and none of glibc, musl, Go, c-ares and
Java needs it. NXDOMAIN is kept for names that don't exist in any type: to musl, NXDOMAIN for AAAA alone would be the
end of the name.
"""

import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pysocksify.address import Address
from pysocksify.route.fakeip import FakeAddresses, is_fake
from pysocksify.route.rules import Rules
from pysocksify.supervisor.search import Search

# Seconds, as Tor's DNSPort has it. A cache in the target hides uses of a name from the table, which forgets the name
# that was longest not used; so it must ask again long before 131,000 other names have been asked for.
FAKE_TTL = 60
REAL_TTL = 10  # getaddrinfo doesn't tell the real one, which may be short
EDNS_SIZE = 1232  # what we take by UDP, as DNS flag day 2020 recommends
PLAIN_SIZE = 512  # RFC 1035 section 4.2.1
_REMEMBERED = 4096  # real addresses given out

# RFC 1035 section 4.1.1, RFC 6891 section 9
_NOERROR, _FORMERR, _SERVFAIL, _NXDOMAIN, _NOTIMP, _REFUSED, _BADVERS = 0, 1, 2, 3, 4, 5, 16
_A, _PTR, _AAAA, _OPT, _ANY = 1, 12, 28, 41, 255
_IN = 1
# Java's naming service asks for ANY whenever it wants more than one type.
_FAMILIES = {_A: socket.AF_INET, _AAAA: socket.AF_INET6, _ANY: socket.AF_UNSPEC}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question, with what its answer must repeat: id, flags, the name as written (draft-vixie-dnsext-dns0x20)."""

    head: bytes  # the header's twelve bytes
    question: Any  # dnslib's
    name: str | None  # lower case, no dot at the end, "" for the root; None when no host can have that name
    kind: int
    edns: bool
    dnssec_ok: bool
    limit: int  # bytes the answer may have


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """A name to be looked up as this machine does: pass it to Names.look_up in a thread, then to Names.complete."""

    name: str
    family: int
    query: Query


def real_addresses(name: str) -> Sequence[str]:
    """The addresses of a name by getaddrinfo(3), both families. Blocks; raises OSError (socket.gaierror).

    The target's libc has gone through its search list already, so a name with dots is asked as it is.
    """
    found = socket.getaddrinfo(name + "." if "." in name else name, None, 0, socket.SOCK_STREAM)
    return [str(sockaddr[0]).partition("%")[0] for _, _, _, _, sockaddr in found]


class Names:
    """The meaning of names for one target."""

    def __init__(
        self,
        fake: FakeAddresses,
        rules: Rules,
        search: Search,
        *,
        ipv6: bool,
        resolve: Callable[[str], Sequence[str]] = real_addresses,
    ) -> None:
        """`ipv6` says whether ::1 is there; `resolve` blocks and raises OSError."""
        self._fake = fake
        self._rules = rules
        self._search = search
        self._ipv6 = ipv6
        self._resolve = resolve
        self.changes = 0
        """Counts the times that `destination` of a real address came to mean something else."""
        self._given: dict[str, str] = {}  # real address: the name it was last given out for; oldest first

    def answer(self, message: bytes, *, stream: bool = False) -> bytes | Lookup | None:
        """The answer to a DNS message, or a Lookup to be made first; None for what isn't a query at all.

        `stream` says that the message came by TCP, where answers may have any size.
        """
        query = _read(message, stream)
        if not isinstance(query, Query):
            return query
        if query.question.qclass != _IN:
            return _reply(query, _REFUSED)
        name = query.name
        if name is None:
            return _reply(query, _NXDOMAIN)
        if query.kind == _PTR:
            return self._pointer(query, name)
        try:
            address = Address.of(name, 0) if name else None
        except ValueError:
            return _reply(query, _NXDOMAIN)
        if address is None:
            return _reply(query, _NOERROR)
        if not address.is_name:
            return _reply(query, _NXDOMAIN)  # "192.0.2.1" as a name: no such top-level domain
        direct = self._rules.is_direct_name(name)
        if not direct and self._search.is_step(name):
            return _reply(query, _NXDOMAIN)
        family = _FAMILIES.get(query.kind)
        if family is None:
            return _reply(query, _NOERROR)
        addresses = self._stands_for(address, direct)
        if addresses is None:
            return Lookup(name=address.host, family=family, query=query)
        return _reply(query, _NOERROR, of_family(addresses, family), FAKE_TTL)

    def addresses(self, name: str) -> Sequence[str] | None:
        """The addresses of both families that a name is given; None: it's to be looked up as this machine does.

        ValueError: no host has that name.
        """
        address = Address.of(name, 0)
        if not address.is_name:
            raise ValueError(f"{name!a} is an address")
        return self._stands_for(address, self._rules.is_direct_name(address.host))

    def _stands_for(self, address: Address, direct: bool) -> Sequence[str] | None:
        if direct and address.is_loopback:  # RFC 6761 section 6.3
            return ("127.0.0.1", "::1") if self._ipv6 else ("127.0.0.1",)
        return None if direct else self._fake.of(address.host)

    def look_up(self, lookup: Lookup) -> Sequence[str]:
        """The name's real addresses of both families. Blocks, changes nothing here: for a thread. Raises OSError."""
        return self._resolve(lookup.name)

    def complete(self, lookup: Lookup, addresses: Sequence[str] | None, error: BaseException | None) -> bytes:
        """The answer, once look_up has returned or failed."""
        if addresses is None:
            number = error.errno if isinstance(error, socket.gaierror) else None
            rcode = {socket.EAI_NONAME: _NXDOMAIN, socket.EAI_NODATA: _NOERROR}.get(number or 0, _SERVFAIL)
            return _reply(lookup.query, rcode)
        wanted = of_family(addresses, lookup.family)
        self.give(lookup.name, wanted)
        return _reply(lookup.query, _NOERROR, wanted, REAL_TTL)

    def give(self, name: str, addresses: Sequence[str]) -> None:
        """Remember that these real addresses were given out for a name."""
        for address in addresses:
            if self._given.pop(address, None) != name:
                self.changes += 1
            self._given[address] = name
            if len(self._given) > _REMEMBERED:
                del self._given[next(iter(self._given))]
                self.changes += 1

    def destination(self, address: Address) -> Address:
        """What an address of the target's means, for rules and chain.

        A fake one is its name, one that was given out for a `direct` name is that name (the last one, when there are
        several), any other is itself. A caller that finds the route `direct` connects to the address it had, if that
        wasn't a fake one.
        """
        name = self._fake.name(address.host) or self._given.get(address.host)
        return address if name is None else Address.of(name, address.port)

    def unknown_fake(self, address: Address) -> bool:
        """Whether this is an address of our own ranges that stands for no name (any more): always unreachable."""
        return is_fake(address.host) and self._fake.name(address.host) is None

    def _pointer(self, query: Query, name: str) -> bytes:
        host = _reversed_address(name)
        meaning = None if host is None else self.pointer(host)
        if meaning is None:
            return _reply(query, _NXDOMAIN)
        return _reply(query, _NOERROR, [meaning], FAKE_TTL)

    def pointer(self, host: str) -> str | None:
        """The name of an address, as PTR asks for it: of a fake one or a loopback one."""
        return "localhost" if Address.of(host, 0).is_loopback else self._fake.name(host)


def failure(message: bytes) -> bytes:
    """SERVFAIL for a message, as far as its header goes."""
    return _bare(message, _SERVFAIL)


def of_family(addresses: Sequence[str], family: int) -> list[str]:
    """The addresses of one family, or for AF_UNSPEC all, each once."""
    if family == socket.AF_UNSPEC:
        return list(dict.fromkeys(addresses))
    return [each for each in dict.fromkeys(addresses) if (":" in each) == (family == socket.AF_INET6)]


def _reversed_address(name: str) -> str | None:
    """The address in a name of in-addr.arpa (RFC 1035 section 3.5) or ip6.arpa (RFC 3596 section 2.5)."""
    labels = name.split(".")[::-1]
    try:
        if labels[:2] == ["arpa", "in-addr"] and len(labels) == 6:
            return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, ".".join(labels[2:])))
        if labels[:2] == ["arpa", "ip6"] and len(labels) == 34 and all(len(label) == 1 for label in labels[2:]):
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex("".join(labels[2:])))
    except (OSError, ValueError):
        pass
    return None


def _bare(message: bytes, rcode: int) -> bytes:
    """A header and nothing else: id, opcode and RD of the message, QR, RA and the code."""
    return message[:2] + bytes((0x80 | message[2] & 0x79, 0x80 | rcode)) + bytes(8)


def _read(message: bytes, stream: bool) -> Query | bytes | None:
    """A query, or the answer to what isn't one that we serve; None for what must not be answered."""
    if len(message) < 12 or message[2] & 0x80:  # answering an answer could go on for ever
        return None
    if message[2] >> 3 & 15:  # opcode
        return _bare(message, _NOTIMP)
    if struct.unpack_from(">H", message, 4)[0] != 1:  # RFC 9619: one question
        return _bare(message, _FORMERR)
    from dnslib import DNSError, DNSRecord
    from dnslib.label import DNSLabelError

    try:
        record = DNSRecord.parse(message)
        options = [extra for extra in record.ar if extra.rtype == _OPT]
        if len(options) > 1:  # RFC 6891 section 6.1.1
            return _bare(message, _FORMERR)
    except (DNSError, DNSLabelError):
        return _bare(message, _FORMERR)
    query = Query(
        head=message[:12],
        question=record.q,
        name=_host(record.q.qname.label),
        kind=record.q.qtype,
        edns=bool(options),
        dnssec_ok=bool(options) and bool(options[0].edns_do),
        limit=65535 if stream else max(PLAIN_SIZE, options[0].edns_len) if options else PLAIN_SIZE,
    )
    if options and options[0].edns_ver:
        return _reply(query, _BADVERS)
    return query


def _host(labels: Sequence[bytes]) -> str | None:
    if any(b"." in label or not label.isascii() for label in labels):
        return None
    return b".".join(labels).decode("ascii").lower()


def _reply(query: Query, rcode: int, values: Sequence[str] = (), ttl: int = 0) -> bytes:
    """An answer with `values` (addresses, or the name for PTR). What exceeds the limit is left out, and TC says so."""
    from dnslib import AAAA, EDNS0, PTR, RR, A, DNSHeader, DNSLabel, DNSRecord

    (number,) = struct.unpack_from(">H", query.head)
    header = DNSHeader(id=number, qr=1, aa=0, rd=query.head[2] & 1, ra=1, cd=query.head[3] >> 4 & 1, rcode=rcode & 15)
    record = DNSRecord(header, q=query.question)
    for value in values:
        if query.kind == _PTR:
            kind, data = _PTR, PTR(DNSLabel(value.encode("ascii").split(b".")))
        elif ":" in value:
            kind, data = _AAAA, AAAA(value)
        else:
            kind, data = _A, A(value)
        record.add_answer(RR(query.question.qname, kind, rdata=data, ttl=ttl))
    if query.edns:
        record.add_ar(EDNS0(flags="do" if query.dnssec_ok else "", ext_rcode=rcode >> 4, udp_len=EDNS_SIZE))
    packed = bytes(record.pack())
    if len(packed) > query.limit:
        record.rr.clear()
        header.tc = 1
        packed = bytes(record.pack())
    return packed
