"""SOCKS5's UDP: the header of each datagram between client and server, and fragments of datagrams (RFC 1928 section 7).

A datagram that doesn't decode is dropped, as section 7 has the server do with all that it can't or won't relay: there
is nobody to tell.
"""

from dataclasses import dataclass, field

from pysocksify.address import Address
from pysocksify.codes import Atyp
from pysocksify.errors import RemoteProtocolError
from pysocksify.protocol.socks5 import UnknownAddressTypeError, encode_address

END = 0x80  # the high-order bit of FRAG: the last one of its sequence
REASSEMBLY_SECONDS = 5.0  # section 7: the timer "MUST be no less than 5 seconds"
# What one UDP datagram can carry over IPv6: 16 bits of length, less UDP's own header (RFC 768).
DATA_LIMIT = 65527

_FIXED = 4  # RSV, FRAG, ATYP
_WHAT = "the SOCKS5 datagram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Datagram:
    """A datagram with its header; `address` is where it goes, or, from the server, where it comes from.

    ```
    rsv=0  frag  atyp  dst_addr  dst_port  data
    2      1     1     variable  2         variable
    ```
    frag 0: a datagram of its own; 1 to 127: the position in a sequence; with END: the last of the sequence.
    """

    address: Address
    data: bytes = field(repr=False)
    frag: int = 0

    def encode(self) -> bytes:
        """The bytes of it. Raises LocalProtocolError for a name of a wrong length."""
        return bytes((0, 0, self.frag)) + encode_address(self.address) + self.data

    @classmethod
    def decode(cls, datagram: bytes) -> "Datagram":
        """Read one. RSV isn't looked at. Raises RemoteProtocolError, UnknownAddressTypeError among them."""
        if len(datagram) <= _FIXED:
            raise _too_short(datagram)
        frag, atyp = datagram[2], datagram[3]
        if atyp == Atyp.IPV4:
            begin, end = _FIXED, _FIXED + 4
        elif atyp == Atyp.IPV6:
            begin, end = _FIXED, _FIXED + 16
        elif atyp == Atyp.DOMAINNAME:
            begin = _FIXED + 1
            end = begin + datagram[_FIXED]
        else:
            raise UnknownAddressTypeError(_WHAT, atyp)
        if len(datagram) < end + 2:
            raise _too_short(datagram)
        host, port = datagram[begin:end], int.from_bytes(datagram[end : end + 2], "big")
        try:
            address = Address.from_wire_name(host, port) if begin > _FIXED else Address.from_packed(host, port)
        except ValueError as error:
            raise RemoteProtocolError(f"{_WHAT}'s address: {error}") from None
        return cls(address=address, data=datagram[end + 2 :], frag=frag)


class Reassembly:
    """The queue and the timer of section 7, for the datagrams of one sender. Times are passed in, in seconds.

    The queue is reinitialised, and its fragments are abandoned, when the timer expires, which begins with the first
    fragment, and when a fragment's position is lower than the highest one so far. A datagram of its own passes by it:
    section 7 counts it to no sequence. Beyond what section 7 says:

    - The position is what the low seven bits say; a sequence without a gap from 1 to the one with END is complete.
    - A position that comes once more takes the place of the one before: a copy of the same, or the first fragment of
      the next sequence, when all the others of this one were lost.
    - What can't be completed any more holds no data: a position was left out, the fragments name several addresses, or
      hold more than DATA_LIMIT bytes together.
    """

    def __init__(self, seconds: float = REASSEMBLY_SECONDS) -> None:
        self._seconds = seconds
        self._pieces: list[bytes] = []
        self._size = 0
        self._highest = 0
        self._address: Address | None = None
        self._deadline: float | None = None

    @property
    def deadline(self) -> float | None:
        """When the timer expires; None while the queue is empty."""
        return self._deadline

    @property
    def held(self) -> int:
        """The bytes in the queue."""
        return self._size

    def receive(self, datagram: Datagram, now: float) -> Datagram | None:
        """Take the next datagram. The one that is whole now, with frag 0, or None."""
        if not datagram.frag:
            return datagram
        self.expire(now)
        position = datagram.frag & ~END
        if not position:  # END alone: section 7 gives positions from 1 on
            return None
        if position < self._highest:
            self._abandon()
        if not self._highest or position == self._highest == 1:
            self._deadline = now + self._seconds
            self._address = datagram.address
        self._add(position, datagram)
        self._highest = position
        if not datagram.frag & END:
            return None
        whole = None
        if len(self._pieces) == position:
            whole = Datagram(address=datagram.address, data=b"".join(self._pieces))
        self._abandon()
        return whole

    def expire(self, now: float) -> None:
        """Abandon the queue if its time is over."""
        if self._deadline is not None and now >= self._deadline:
            self._abandon()

    def _add(self, position: int, datagram: Datagram) -> None:
        """Put the fragment in its place. A queue that can't be completed loses its pieces, and gets none any more."""
        if len(self._pieces) == position:
            self._size -= len(self._pieces.pop())
        fits = datagram.address == self._address and self._size + len(datagram.data) <= DATA_LIMIT
        if fits and len(self._pieces) == position - 1:
            self._pieces.append(datagram.data)
            self._size += len(datagram.data)
        else:
            self._pieces = []
            self._size = 0

    def _abandon(self) -> None:
        self._pieces = []
        self._size = 0
        self._highest = 0
        self._address = None
        self._deadline = None


def _too_short(datagram: bytes) -> RemoteProtocolError:
    return RemoteProtocolError(f"{_WHAT} ends in its header, after {len(datagram)} bytes")
