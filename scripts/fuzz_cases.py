"""What `scripts/fuzz` sends: handshakes of every version, written by hand from the specifications, and changed by dice.

A case is made of its number alone: whoever has the number has the bytes, the cuts and everything else again.
"""

import base64
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

USERS = {b"alice": b"s:cret \xff", b"b": b"", b"bob": b"b"}
NAME = b"target.test"
LOOPBACK = b"\x7f\x00\x00\x01"
PAYLOAD = b"payload \x00\x04\x05\r\n\r\n"
UNTOUCHED, NOISE = 0.15, 0.25  # the shares of cases below these: a valid handshake as it stands, random bytes
CHANGES = 4  # one handshake is changed so many times at the most
NOISE_SIZE = 48
LONG = 70000  # more than any message may have
LONG_SHARE = 0.002
TELLING = b"\x00\x01\x02\x03\x04\x05\x08\x09\x0a\x0d\x20\x3a\x5b\x7f\x80\xfe\xff"


class Wrong(Exception):
    """A case that doesn't come out as it must."""


@contextmanager
def watched() -> Iterator[Callable[[float], None]]:
    """Gives a call that sets the seconds after which Wrong is raised, wherever the process hangs; again and again."""

    def hang(signum: int, frame: FrameType | None) -> None:
        raise Wrong("it hangs")

    before = signal.signal(signal.SIGALRM, hang)
    timer = signal.setitimer(signal.ITIMER_REAL, 0)  # pytest's, perhaps

    def again(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    try:
        yield again
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the handshakes ask to be connected to."""

    target: int
    closed: int
    silent: int


def valid(ports: Ports) -> tuple[tuple[bytes, ...], ...]:
    """Handshakes that are right, by version, each a client's side as a whole: nothing waits for an answer."""
    socks4: list[bytes] = []
    socks5 = [_socks5_greeting((0,)), b"\x05\x00", b"\x05\xff" + bytes(range(255))]
    http = [b"GET http://target.test/ HTTP/1.1\r\nHost: target.test\r\n\r\n"]
    for number in (ports.target, ports.target, ports.closed, ports.silent):
        port = number.to_bytes(2, "big")
        socks4 += _socks4(port)
        socks5 += _socks5(port)
        http += _http(number)
    return tuple(socks4), tuple(socks5), tuple(http)


def _socks4(port: bytes) -> list[bytes]:
    return [
        b"\x04" + bytes((cd,)) + port + host
        for cd in (1, 2)
        for host in (
            LOOPBACK + b"alice\0",
            LOOPBACK + b"\0",
            b"\0\0\0\1bob\0" + NAME + b"\0",
            b"\0\0\0\xff\0127.0.0.1\0",
        )
    ]


def _socks5(port: bytes) -> list[bytes]:
    greetings = [_socks5_greeting((0,)), _socks5_greeting((2, 0, 1)), _socks5_greeting((2,))]
    greetings += [_socks5_greeting((2,)) + _login(name, password) for name, password in USERS.items()]
    greetings.append(_socks5_greeting((0, 2)) + _login(b"alice", b"wrong"))
    hosts = (
        b"\x01" + LOOPBACK,
        b"\x03" + bytes((len(NAME),)) + NAME,
        b"\x03\x09127.0.0.1",
        b"\x04" + bytes(10) + b"\xff\xff" + LOOPBACK,
        b"\x01\0\0\0\0",
        b"\x04" + bytes(15) + b"\x01",
    )
    return [
        greeting + b"\x05" + bytes((cmd, 0)) + host + (bytes(2) if cmd == 3 else port)
        for greeting in greetings
        for cmd in (1, 1, 2, 3)
        for host in hosts
    ]


def _socks5_greeting(methods: Sequence[int]) -> bytes:
    return bytes((5, len(methods), *methods))


def _login(name: bytes, password: bytes) -> bytes:
    return bytes((1, len(name))) + name + bytes((len(password),)) + password


def _http(port: int) -> list[bytes]:
    logins = [b"", b"Proxy-Authorization: Basic !!\r\n"]
    for name, password in USERS.items():
        logins.append(b"Proxy-Authorization: basic " + base64.b64encode(name + b":" + password) + b"\r\n")
    found = []
    for host in (NAME, b"127.0.0.1", b"[::1]"):
        authority = host + b":%d" % port
        for login in logins:
            head = b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n"
            found.append(head + login + b"\r\n")
            found.append(head + b"\r\n" + head + login + b"\r\n")  # again, when a login is asked for
            found.append((b"\r\n" + head + b"X-A: b\r\n" + login + b"\r\n").replace(b"\r\n", b"\n"))
            found.append(head + login + b"Content-Length: 0\r\n\r\n")
    return found


class Cases:
    """Makes cases of numbers. `touched` says whether the last one was changed."""

    def __init__(self, ports: Ports) -> None:
        self._valid = valid(ports)
        self.rng = Random()
        self.touched = False

    def data(self, number: int) -> bytes:
        """The bytes of a case. What else it is made of comes from `rng`, right after this."""
        rng = self.rng
        rng.seed(number)
        dice = rng.random()
        self.touched = dice >= UNTOUCHED
        if UNTOUCHED <= dice < NOISE:
            first = self._any(TELLING) if dice < (UNTOUCHED + NOISE) / 2 else int(rng.random() * 256)
            return bytes((first,)) + rng.randbytes(int(rng.random() * NOISE_SIZE))
        data = bytearray(self._any(self._any(self._valid)))
        if self.touched:
            for _ in range(1 + int(rng.random() * CHANGES)):
                self._any(CHANGE)(self, data)
        if rng.random() < 0.5:
            data += PAYLOAD
        return bytes(data)

    def cuts(self, data: bytes) -> list[bytes]:
        """The bytes in pieces, of which none is empty."""
        rng, size = self.rng, len(data)
        if size > 1 and rng.random() < 0.1 and size < 2 * NOISE_SIZE:
            return [data[at : at + 1] for at in range(size)]
        ends = sorted({int(rng.random() * size) for _ in range(1 + int(rng.random() * 4))} - {0}) if size else []
        return [data[start:end] for start, end in zip([0, *ends], [*ends, size], strict=True) if end > start]

    def _any(self, choices: Sequence[T]) -> T:
        return choices[int(self.rng.random() * len(choices))]

    def _at(self, data: bytearray) -> int:
        return int(self.rng.random() * len(data))

    # changes

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] ^= 1 << int(self.rng.random() * 8)

    def _put(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] = self._any(TELLING)

    def _step(self, data: bytearray) -> None:
        """A length that is one too many, or one too few."""
        if data:
            at = self._at(data)
            data[at] = (data[at] + (1 if self.rng.random() < 0.5 else 255)) % 256

    def _insert(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self.rng.randbytes(1 + int(self.rng.random() * 8))

    def _delete(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + 1 + int(self.rng.random() * 8)]

    def _repeat(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = data[at : at + 1 + int(self.rng.random() * 16)]

    def _cut(self, data: bytearray) -> None:
        del data[self._at(data) :]

    def _cross(self, data: bytearray) -> None:
        """Go on as another handshake does from somewhere."""
        other = self._any(self._any(self._valid))
        data[self._at(data) :] = other[int(self.rng.random() * len(other)) :]

    def _lengthen(self, data: bytearray) -> None:
        if self.rng.random() < LONG_SHARE * len(CHANGE):
            at = self._at(data)
            data[at:at] = bytes((self._any(b"\x00\x01aA\r\n\xff"),)) * int(self.rng.random() * LONG)


CHANGE: tuple[Callable[[Cases, bytearray], None], ...] = (
    Cases._flip,
    Cases._put,
    Cases._step,
    Cases._insert,
    Cases._delete,
    Cases._repeat,
    Cases._cut,
    Cases._cross,
    Cases._lengthen,
)
