"""SOCKS5's datagrams: headers written by hand from RFC 1928 section 7, and fragments against a model of its text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.address import Address
from pysocksify.errors import LocalProtocolError, RemoteProtocolError
from pysocksify.protocol.socks5 import UnknownAddressTypeError
from pysocksify.protocol.socks5_udp import DATA_LIMIT, END, REASSEMBLY_SECONDS, Datagram, Reassembly

DNS = Address("192.0.2.1", 53)
WEB = Address("192.0.2.2", 443)
V6 = Address("2001:db8::1", 53)
NAME = Address("a.example", 443)


@pytest.mark.parametrize(
    ("datagram", "data"),
    [
        (Datagram(address=DNS, data=b"hello"), bytes.fromhex("0000 00 01 C0000201 0035") + b"hello"),
        (Datagram(address=V6, data=b""), bytes.fromhex("0000 00 04 20010DB8 00000000 00000000 00000001 0035")),
        (Datagram(address=NAME, data=b"x", frag=1), bytes.fromhex("0000 01 03 09") + b"a.example\x01\xbbx"),
        (Datagram(address=DNS, data=b"\0", frag=0x82), bytes.fromhex("0000 82 01 C0000201 0035 00")),
        (Datagram(address=Address("a" * 255, 1), data=b"d"), b"\0\0\0\x03\xff" + b"a" * 255 + b"\0\x01d"),
    ],
)
def test_headers(datagram: Datagram, data: bytes) -> None:
    assert datagram.encode() == data
    assert Datagram.decode(data) == datagram
    assert Datagram.decode(b"\xff\xff" + data[2:]) == datagram
    for end in range(len(data) - len(datagram.data)):
        with pytest.raises(RemoteProtocolError, match=f"after {end} bytes"):
            Datagram.decode(data[:end])


def test_an_address_in_text_and_one_in_another_guise_are_that_address() -> None:
    assert Datagram.decode(b"\0\0\0\x03\x09192.0.2.1\0\x35x").address == DNS
    assert Datagram.decode(b"\0\0\0\x04" + bytes(10) + b"\xff\xff\xc0\0\x02\x01\0\x35x").address == DNS
    assert Datagram.decode(b"\0\0\0\x03\x0aA.Example.\x01\xbb").address == NAME


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\x03\0\0\x35x", "host name is empty"),
        (b"\0\0\0\x03\x03a b\0\x35x", "not a host name"),
        (b"\0\0\0\x03\x02\xff\xfe\0\x35x", "not text"),
        (b"\0\0\0\x03\x05127.1\0\x35x", "unusual form"),
    ],
)
def test_names_that_are_none(data: bytes, words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=words):
        Datagram.decode(data)


@pytest.mark.parametrize("atyp", [0, 2, 5, 255])
def test_unknown_address_types(atyp: int) -> None:
    with pytest.raises(UnknownAddressTypeError, match=f"address type 0x{atyp:02X}"):
        Datagram.decode(bytes((0, 0, 0, atyp)) + bytes(30))


@pytest.mark.parametrize("host", ["", "a" * 256])
def test_names_that_do_not_fit(host: str) -> None:
    with pytest.raises(LocalProtocolError):
        Datagram(address=Address(host, 1), data=b"").encode()


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    for head in (b"", b"\0\0\0\x01", b"\0\0\0\x03", b"\0\0\0\x04"):
        try:
            datagram = Datagram.decode(head + data)
        except RemoteProtocolError:
            continue
        assert Datagram.decode(datagram.encode()) == datagram


ADDRESSES = st.one_of(
    st.tuples(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), st.integers(0, 65535)).map(
        lambda pair: Address.from_packed(*pair)
    ),
    st.sampled_from([NAME, Address("localhost", 0)]),
)


@given(ADDRESSES, st.binary(max_size=100), st.integers(0, 255))
def test_there_and_back(address: Address, data: bytes, frag: int) -> None:
    datagram = Datagram(address=address, data=data, frag=frag)
    assert Datagram.decode(datagram.encode()) == datagram


# fragments


def feed(*fragments: tuple[int, bytes], at: float = 0.0, queue: Reassembly | None = None) -> list[bytes]:
    """What comes out of these fragments, all to one destination and at one time."""
    queue = queue or Reassembly()
    out = [queue.receive(Datagram(address=DNS, data=data, frag=frag), at) for frag, data in fragments]
    assert all(whole is None or (whole.frag, whole.address) == (0, DNS) for whole in out)
    return [whole.data for whole in out if whole is not None]


@pytest.mark.parametrize(
    ("fragments", "out"),
    [
        ([(0, b"a")], [b"a"]),
        ([(1, b"a"), (2, b"b"), (END | 3, b"c")], [b"abc"]),
        ([(END | 1, b"a")], [b"a"]),
        ([(1, b""), (END | 2, b"")], [b""]),
        ([(1, b"a"), (0, b"alone"), (END | 2, b"b")], [b"alone", b"ab"]),
        ([(1, b"a"), (END | 2, b"b"), (1, b"c"), (END | 2, b"d")], [b"ab", b"cd"]),
        # a gap, and what is lower than the highest one processed
        ([(1, b"a"), (3, b"c"), (END | 4, b"d")], []),
        ([(2, b"b"), (END | 3, b"c")], []),
        ([(2, b"b"), (1, b"a"), (END | 2, b"b")], [b"ab"]),
        ([(1, b"a"), (2, b"b"), (1, b"c"), (END | 2, b"d")], [b"cd"]),
        ([(1, b"a"), (3, b"c"), (2, b"b"), (END | 3, b"c")], []),
        ([(1, b"a"), (2, b"b"), (3, b"c"), (END | 2, b"d")], []),
        ([(1, b"a"), (2, b"b"), (END | 1, b"c"), (END | 3, b"d")], [b"c"]),
        # the same once more
        ([(1, b"a"), (1, b"a"), (END | 2, b"b")], [b"ab"]),
        ([(1, b"lost"), (1, b"a"), (END | 2, b"b")], [b"ab"]),
        ([(1, b"a"), (2, b"b"), (2, b"b"), (END | 3, b"c")], [b"abc"]),
        ([(1, b"a"), (END | 2, b"b"), (END | 2, b"b")], [b"ab"]),
        # no position
        ([(1, b"a"), (END, b"x"), (END | 2, b"b")], [b"ab"]),
    ],
)
def test_sequences(fragments: list[tuple[int, bytes]], out: list[bytes]) -> None:
    queue = Reassembly()
    assert feed(*fragments, queue=queue) == out
    # whatever was before, the next sequence is right
    assert feed((1, b"x"), (END | 2, b"y"), queue=queue) == [b"xy"]
    assert (queue.held, queue.deadline) == (0, None)


def test_127_fragments() -> None:
    assert feed(*((n, bytes((n,))) for n in range(1, 127)), (255, b"\x7f")) == [bytes(range(1, 128))]


def test_the_timer() -> None:
    assert REASSEMBLY_SECONDS >= 5
    for after, out in ((0.0, [b"ab"]), (4.999, [b"ab"]), (5.0, []), (60.0, [])):
        queue = Reassembly()
        feed((1, b"a"), at=100.0, queue=queue)
        assert queue.deadline == 105.0
        assert feed((END | 2, b"b"), at=100.0 + after, queue=queue) == out
    queue = Reassembly()
    feed((1, b"a"), at=100.0, queue=queue)
    feed((2, b"b"), at=104.0, queue=queue)  # the timer isn't begun anew by it
    queue.expire(104.9)
    assert queue.held == 2
    queue.expire(105.0)
    assert (queue.held, queue.deadline) == (0, None)


def test_several_addresses_make_no_datagram() -> None:
    queue = Reassembly()
    for address, frag in ((DNS, 1), (WEB, 2), (DNS, END | 3)):
        assert queue.receive(Datagram(address=address, data=b"x", frag=frag), 0.0) is None
    queue.receive(Datagram(address=DNS, data=b"x", frag=1), 0.0)
    queue.receive(Datagram(address=WEB, data=b"a", frag=1), 0.0)  # the next sequence
    whole = queue.receive(Datagram(address=WEB, data=b"b", frag=END | 2), 0.0)
    assert whole == Datagram(address=WEB, data=b"ab")


def test_what_is_held_is_bounded() -> None:
    queue = Reassembly()
    for position in range(1, 128):
        feed((position, bytes(60000)), queue=queue)
        assert queue.held <= DATA_LIMIT
    assert feed((255, b"x"), queue=queue) == []
    assert feed((1, bytes(DATA_LIMIT - 1)), (END | 2, b"x"), queue=queue) == [bytes(DATA_LIMIT - 1) + b"x"]


class Model:
    """Section 7 in the plainest words: every fragment of the sequence is kept, and looked at when its end comes."""

    def __init__(self) -> None:
        self.queue: list[tuple[int, Address, bytes]] = []
        self.began = 0.0

    def receive(self, frag: int, address: Address, data: bytes, now: float) -> tuple[Address, bytes] | None:
        if frag == 0:
            return address, data
        if self.queue and now - self.began >= 5:
            self.queue = []
        position = frag % 128
        if position == 0:
            return None
        if self.queue and position < self.queue[-1][0]:
            self.queue = []
        if self.queue and position == self.queue[-1][0]:
            self.queue.pop()
        if not self.queue:
            self.began = now
        self.queue.append((position, address, data))
        if frag < 128:
            return None
        queue, self.queue = self.queue, []
        if [entry[0] for entry in queue] != list(range(1, position + 1)) or len({entry[1] for entry in queue}) > 1:
            return None
        return address, b"".join(entry[2] for entry in queue)


FRAGS = st.integers(0, 5) | st.integers(1, 5).map(lambda position: END | position) | st.integers(0, 255)
ARRIVALS = st.lists(
    st.tuples(FRAGS, st.sampled_from([DNS, DNS, DNS, WEB]), st.binary(max_size=3), st.sampled_from([0, 0, 1, 3, 6])),
    max_size=40,
)


@given(ARRIVALS)
def test_like_the_text(arrivals: list[tuple[int, Address, bytes, int]]) -> None:
    model, queue, now = Model(), Reassembly(), 0.0
    for frag, address, data, pause in arrivals:
        now += pause
        whole = queue.receive(Datagram(address=address, data=data, frag=frag), now)
        assert (whole and (whole.address, whole.data)) == model.receive(frag, address, data, now)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=127), ADDRESSES)
def test_cut_and_put_together(pieces: list[bytes], address: Address) -> None:
    queue = Reassembly()
    whole = None
    for number, piece in enumerate(pieces, 1):
        assert whole is None
        frag = number | (END if number == len(pieces) else 0)
        whole = queue.receive(Datagram.decode(Datagram(address=address, data=piece, frag=frag).encode()), 0.0)
    assert whole == Datagram(address=address, data=b"".join(pieces))
