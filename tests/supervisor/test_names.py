"""Names: DNS messages written by hand from RFC 1035 and RFC 6891, and what the addresses mean afterwards."""

import socket
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysocksify.address import Address
from pysocksify.route.fakeip import FakeAddresses
from pysocksify.route.rules import Pattern, Rule, Rules
from pysocksify.supervisor.names import Lookup, Names
from pysocksify.supervisor.search import Search

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, SVCB, HTTPS, ANY = 1, 2, 5, 6, 12, 15, 16, 28, 33, 64, 65, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
REAL = ("192.0.2.7", "2001:db8::7")

RULES = Rules(
    (
        Rule(match=(Pattern.parse("*.direct.example"), Pattern.parse("intranet")), to="direct"),
        Rule(match=(Pattern.parse("*.denied.example"),), to="deny"),
    )
)


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in name.encode().split(b".") if label) + b"\0"


def query(name: str, kind: int, *, extra: bytes = b"", number: int = 0xBEEF, qclass: int = 1) -> bytes:
    head = struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 1 if extra else 0)
    return head + wire(name) + struct.pack(">HH", kind, qclass) + extra


def opt(size: int = 1232, version: int = 0, flags: int = 0, options: bytes = b"") -> bytes:
    return b"\0" + struct.pack(">HHBBHH", 41, size, 0, version, flags, len(options)) + options


def rcode(answer: bytes) -> int:
    return answer[3] & 15


def counts(answer: bytes) -> tuple[int, ...]:
    return struct.unpack_from(">HHHH", answer, 4)


def make(
    rules: Rules = RULES,
    resolv_conf: str = "",
    ipv6: bool = True,
    fake: FakeAddresses | None = None,
    found: Sequence[str] | OSError = REAL,
) -> Names:
    def resolve(name: str) -> Sequence[str]:
        if isinstance(found, OSError):
            raise found
        return found

    table = FakeAddresses() if fake is None else fake  # an empty table is false
    return Names(table, rules, Search(lambda: resolv_conf), ipv6=ipv6, resolve=resolve)


def ask(names: Names, message: bytes, *, stream: bool = False) -> bytes:
    """The answer, with a look-up made on the spot when there's one to make."""
    answer = names.answer(message, stream=stream)
    if isinstance(answer, Lookup):
        try:
            return names.complete(answer, names.look_up(answer), None)
        except OSError as error:
            return names.complete(answer, None, error)
    assert answer is not None
    return answer


def test_a_whole_message() -> None:
    message = bytes.fromhex("1234 0100 0001 0000 0000 0000") + b"\x03wWw\x07eXample\x03cOm\x00" + b"\0\x01\0\x01"
    answer = bytes.fromhex("1234 8180 0001 0001 0000 0000") + b"\x03wWw\x07eXample\x03cOm\x00" + b"\0\x01\0\x01"
    answer += bytes.fromhex("c00c 0001 0001 0000003c 0004") + socket.inet_aton("198.18.1.1")
    assert make().answer(message) == answer


def test_both_families_stand_for_the_name() -> None:
    fake = FakeAddresses()
    names = make(fake=fake)
    four, six = ask(names, query("www.example", A)), ask(names, query("WWW.EXAMPLE", AAAA))
    ipv4, ipv6 = fake.of("www.example")
    assert four.endswith(struct.pack(">H", 4) + socket.inet_pton(socket.AF_INET, ipv4))
    assert six.endswith(struct.pack(">H", 16) + socket.inet_pton(socket.AF_INET6, ipv6))
    for host in (ipv4, ipv6):
        assert names.destination(Address.of(host, 443)) == Address("www.example", 443)
        assert not names.unknown_fake(Address.of(host, 443))


def test_any_gets_both() -> None:
    answer = ask(make(), query("www.example", ANY))
    assert rcode(answer) == NOERROR
    assert counts(answer) == (1, 2, 0, 0)
    assert answer.count(struct.pack(">HHIH", A, 1, 60, 4)) == 1
    assert answer.count(struct.pack(">HHIH", AAAA, 1, 60, 16)) == 1


@pytest.mark.parametrize("kind", [NS, CNAME, SOA, MX, TXT, SRV, SVCB, HTTPS, 999])
@pytest.mark.parametrize("name", ["www.example", "_http._tcp.www.example", "x.direct.example", "localhost", ""])
def test_other_types_have_no_data(name: str, kind: int) -> None:
    answer = ask(make(), query(name, kind))
    assert rcode(answer) == NOERROR
    assert counts(answer) == (1, 0, 0, 0)
    assert answer[3] & 0x80, "RA, or glibc and Go take it for a lame server's"


def test_the_root_has_no_address() -> None:
    answer = ask(make(), query("", A))
    assert (rcode(answer), counts(answer)) == (NOERROR, (1, 0, 0, 0))


@pytest.mark.parametrize(
    "name", ["192.0.2.1", "127.1", "with space.example", "a/b", "caf\u00e9.example", "%41.example"]
)
def test_names_that_no_host_has(name: str) -> None:
    for kind in (A, AAAA, HTTPS):
        assert rcode(ask(make(), query(name, kind))) == NXDOMAIN


def test_a_label_with_a_dot_in_it() -> None:
    message = query("www.example", A).replace(b"\x03www\x07example", b"\x0bwww.example")
    assert rcode(ask(make(), message)) == NXDOMAIN


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "app.localhost"])
def test_localhost_is_loopback(name: str) -> None:
    assert ask(make(), query(name, A)).endswith(b"\0\x04\x7f\0\0\x01")
    assert ask(make(), query(name, AAAA)).endswith(b"\0\x10" + bytes(15) + b"\x01")
    assert counts(ask(make(ipv6=False), query(name, AAAA))) == (1, 0, 0, 0)


def test_localhost_through_a_chain_when_a_rule_says_so() -> None:
    rules = Rules((Rule(match=(Pattern.parse("localhost"),), to="office"),))
    assert ask(make(rules), query("localhost", A)).endswith(socket.inet_aton("198.18.1.1"))


def test_a_denied_name_has_a_fake_address() -> None:
    """So that connect() can say EACCES; "no such name" would be a lie."""
    names = make()
    assert ask(names, query("x.denied.example", A)).endswith(socket.inet_aton("198.18.1.1"))
    assert names.destination(Address("198.18.1.1", 80)) == Address("x.denied.example", 80)


def test_a_direct_name_has_its_real_addresses() -> None:
    names = make()
    answer = names.answer(query("X.Direct.Example", A))
    assert isinstance(answer, Lookup)
    assert (answer.name, answer.family) == ("x.direct.example", socket.AF_INET)
    packed = names.complete(answer, names.look_up(answer), None)
    assert b"\x01X\x06Direct\x07Example\0" in packed
    assert packed.endswith(struct.pack(">HHIH", A, 1, 10, 4) + socket.inet_aton("192.0.2.7"))
    assert ask(names, query("x.direct.example", AAAA)).endswith(socket.inet_pton(socket.AF_INET6, "2001:db8::7"))
    assert names.destination(Address("192.0.2.7", 80)) == Address("x.direct.example", 80)
    assert names.destination(Address("2001:db8::7", 80)) == Address("x.direct.example", 80)
    assert names.destination(Address("192.0.2.8", 80)) == Address("192.0.2.8", 80)


def test_a_direct_name_of_one_family_exists_in_the_other() -> None:
    answer = ask(make(found=["192.0.2.7"]), query("x.direct.example", AAAA))
    assert (rcode(answer), counts(answer)) == (NOERROR, (1, 0, 0, 0))


FAILURES = [
    (socket.gaierror(socket.EAI_NONAME, "unknown"), NXDOMAIN),
    (socket.gaierror(socket.EAI_NODATA, "no address"), NOERROR),
    (socket.gaierror(socket.EAI_AGAIN, "try again"), SERVFAIL),
    (OSError(24, "too many files"), SERVFAIL),
]


@pytest.mark.parametrize(("error", "code"), FAILURES)
def test_a_direct_name_that_is_not_found(error: OSError, code: int) -> None:
    answer = ask(make(found=error), query("x.direct.example", A))
    assert (rcode(answer), counts(answer)) == (code, (1, 0, 0, 0))


def test_the_memory_of_real_addresses_has_a_limit() -> None:
    found: list[str] = []
    names = make(found=found)
    for number in range(5000):
        found[:] = [f"10.0.{number >> 8}.{number & 255}"]
        ask(names, query(f"n{number}.direct.example", A))
    assert names.destination(Address("10.0.0.0", 1)).is_name is False
    assert names.destination(Address("10.0.19.135", 1)) == Address("n4999.direct.example", 1)


def test_pointers() -> None:
    fake = FakeAddresses()
    names = make(fake=fake)
    _, ipv6 = fake.of("www.example")
    nibbles = ".".join(reversed(socket.inet_pton(socket.AF_INET6, ipv6).hex()))
    for name in ("1.1.18.198.in-addr.arpa", "1.1.18.198.IN-ADDR.arpa", f"{nibbles}.ip6.arpa"):
        answer = ask(names, query(name, PTR))
        assert (rcode(answer), counts(answer)) == (NOERROR, (1, 1, 0, 0))
        assert answer.endswith(struct.pack(">HHIH", PTR, 1, 60, 13) + b"\x03www\x07example\0")
    assert b"\x09localhost\0" in ask(names, query("1.0.0.127.in-addr.arpa", PTR))


@pytest.mark.parametrize(
    "name",
    [
        "2.1.18.198.in-addr.arpa",
        "8.8.8.8.in-addr.arpa",
        "8.8.8.in-addr.arpa",
        "in-addr.arpa",
        "256.8.8.8.in-addr.arpa",
        "a.b.c.d.in-addr.arpa",
        "1.ip6.arpa",
        ".".join("z" * 32) + ".ip6.arpa",
        ".".join(["10"] * 32) + ".ip6.arpa",
        "www.example",
        "",
    ],
)
def test_pointers_to_nothing(name: str) -> None:
    assert rcode(ask(make(), query(name, PTR))) == NXDOMAIN


def test_unknown_fakes() -> None:
    names = make()
    for host in ("198.18.0.1", "198.18.1.1", "198.19.255.254", "fd73:6f63:6b73::1", "fd73:6f63:6b73::c612:101"):
        assert names.unknown_fake(Address.of(host, 80)), host
        assert names.destination(Address.of(host, 80)) == Address.of(host, 80)
    for host in ("192.0.2.1", "198.20.0.1", "fd00::1", "www.example"):
        assert not names.unknown_fake(Address.of(host, 80)), host


KUBERNETES = "search default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"


def test_a_search_ends_at_the_name_that_is_meant() -> None:
    names = make(resolv_conf=KUBERNETES)
    for domain in ("default.svc.cluster.local", "svc.cluster.local", "cluster.local"):
        for kind in (A, AAAA, HTTPS):
            assert rcode(ask(names, query(f"Example.com.{domain}", kind))) == NXDOMAIN
    assert ask(names, query("Example.com", A)).endswith(socket.inet_aton("198.18.1.1"))
    assert names.destination(Address("198.18.1.1", 443)) == Address("example.com", 443)
    assert rcode(ask(names, query("redis.default.svc.cluster.local", A))) == NOERROR


def test_direct_names_are_asked_before_any_search() -> None:
    rules = Rules((Rule(match=(Pattern.parse("*.cluster.local"),), to="direct"),))
    names = make(rules, KUBERNETES, found=socket.gaierror(socket.EAI_NONAME, "unknown"))
    message = query("example.com.default.svc.cluster.local", A)
    assert isinstance(names.answer(message), Lookup)
    assert rcode(ask(names, message)) == NXDOMAIN


def test_edns() -> None:
    answer = ask(make(), query("www.example", A, extra=opt(flags=0x8000)))
    assert counts(answer) == (1, 1, 0, 1)
    assert answer.endswith(b"\0" + struct.pack(">HHBBHH", 41, 1232, 0, 0, 0x8000, 0))
    cookie = struct.pack(">HH", 10, 8) + b"8 octets"
    assert ask(make(), query("www.example", A, extra=opt(options=cookie))).endswith(
        b"\0" + struct.pack(">HHBBHH", 41, 1232, 0, 0, 0, 0)
    )
    assert counts(ask(make(), query("www.example", A))) == (1, 1, 0, 0)


def test_edns_of_another_version() -> None:
    answer = ask(make(), query("www.example", A, extra=opt(version=1)))
    assert rcode(answer) == 0
    assert answer.endswith(b"\0" + struct.pack(">HHBBHH", 41, 1232, 1, 0, 0, 0))  # 1 << 4: BADVERS


def test_an_answer_that_is_too_large() -> None:
    names = make(found=[f"192.0.2.{number}" for number in range(100)])
    plain = ask(names, query("x.direct.example", A))
    assert plain[2] & 2, "TC"
    assert len(plain) <= 512
    for message, stream in (
        (query("x.direct.example", A, extra=opt(4096)), False),
        (query("x.direct.example", A), True),
    ):
        whole = ask(names, message, stream=stream)
        assert not whole[2] & 2
        assert counts(whole)[1] == 100


BAD = [
    (query("www.example", A, qclass=3), REFUSED),
    (query("www.example", A, qclass=255), REFUSED),
    (query("www.example", A)[:-1], FORMERR),
    (query("www.example", A)[:12], FORMERR),
    (query("www.example", A, extra=opt() + opt()), NOERROR),  # the count says one
    (query("www.example", A, extra=opt()[:-1]), FORMERR),
    (query("a", A)[:4] + b"\0\2" + bytes(6) + wire("a") + b"\0\1\0\1" + wire("b") + b"\0\1\0\1", FORMERR),
    (query("a", A)[:4] + bytes(8), FORMERR),
    (query("a", A)[:10] + b"\0\2" + wire("a") + b"\0\1\0\1" + opt() + opt(), FORMERR),
    (query("a", A)[:12] + b"\xc0\x0c\0\1\0\1", FORMERR),  # a name that points at itself
    (query("a", A)[:12] + b"\xc0\xff\0\1\0\1", FORMERR),
    (query("a", A)[:12] + b"\x40a\0\0\1\0\1", FORMERR),
    (b"\xbe\xef\x21\0" + query("a", A)[4:], NOTIMP),  # NOTIFY
]


@pytest.mark.parametrize(("message", "code"), BAD)
def test_what_is_not_answered_as_asked(message: bytes, code: int) -> None:
    answer = ask(make(), message)
    assert answer[:2] == b"\xbe\xef"
    assert answer[2] & 0xF9 == 0x80 | message[2] & 0x79, "QR, the opcode and RD"
    assert rcode(answer) == code


@pytest.mark.parametrize("message", [b"", b"\0" * 11, b"\xbe\xef\x81\x80" + query("a", A)[4:]])
def test_what_is_no_query_gets_no_answer(message: bytes) -> None:
    assert make().answer(message) is None


@given(st.binary(max_size=80), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_bytes(data: bytes, with_head: bool) -> None:
    message = query("a", A)[:12] + data if with_head else data
    answer = make(Rules()).answer(message)
    assert not isinstance(answer, Lookup)
    if answer is not None:
        assert answer[:2] == message[:2]
        assert answer[2] & 0x80


@given(st.integers(0, 200), st.integers(0, 255))
@settings(max_examples=400, deadline=None)
def test_a_byte_changed(place: int, value: int) -> None:
    message = bytearray(query("www.example.com", A, extra=opt(options=struct.pack(">HH", 10, 8) + b"8 octets")))
    message[place % len(message)] = value
    answer = make(Rules()).answer(bytes(message))
    assert answer is None or (isinstance(answer, bytes) and len(answer) >= 12)
