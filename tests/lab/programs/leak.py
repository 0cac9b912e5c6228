"""leak.py IPV4 IPV6 PORT: tries every way out that isn't a TCP connect; prints the errno of each, or `sent`."""

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

IPV4, IPV6, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
LIBC = ctypes.CDLL(None, use_errno=True)
IO_URING_SETUP = 425  # the same number everywhere
IPPROTO_MPTCP = 262
MSG = b"leak"


def udp(family: int, host: str, port: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(MSG, (host, port))


def udp_connected(family: int, host: str, port: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((host, port))
        sock.send(MSG)


def udp_message(family: int, host: str, port: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendmsg([MSG], [], 0, (host, port))


def udp_pktinfo() -> None:
    """An interface named in a control message gets around SO_BINDTODEVICE."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        index = max((number for number, name in socket.if_nameindex() if name != "lo"), default=1)
        info = struct.pack("iII", index, 0, 0)
        sock.sendmsg([MSG], [(socket.IPPROTO_IP, 8, info)], 0, (IPV4, PORT))


def raw(family: int, protocol: int, host: str) -> None:
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        sock.sendto(b"\x08\x00\xf7\xff\x00\x00\x00\x00", (host, 0))


def ping(family: int, protocol: int, host: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.sendto(b"\x08\x00\xf7\xff\x00\x00\x00\x00", (host, 0))


def packet() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as sock:
        names = [name for _, name in socket.if_nameindex() if name != "lo"]
        sock.sendto(b"\xff" * 60, (names[0], 0))


def io_uring() -> None:
    parameters = ctypes.create_string_buffer(120)
    if LIBC.syscall(IO_URING_SETUP, 8, parameters) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")


def stream(protocol: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as sock:
        sock.settimeout(2)
        sock.connect((IPV4, PORT))


ATTEMPTS: dict[str, Callable[[], Any]] = {
    "udp": lambda: udp(socket.AF_INET, IPV4, PORT),
    "udp6": lambda: udp(socket.AF_INET6, IPV6, PORT),
    "udp connected": lambda: udp_connected(socket.AF_INET, IPV4, PORT),
    "udp6 connected": lambda: udp_connected(socket.AF_INET6, IPV6, PORT),
    "udp sendmsg": lambda: udp_message(socket.AF_INET, IPV4, PORT),
    "udp pktinfo": udp_pktinfo,
    "quic": lambda: udp(socket.AF_INET, IPV4, 443),
    "mapped": lambda: udp(socket.AF_INET6, f"::ffff:{IPV4}", PORT),
    "broadcast": lambda: udp(socket.AF_INET, "255.255.255.255", PORT),
    "multicast": lambda: udp(socket.AF_INET, "224.0.0.251", 5353),
    "raw icmp": lambda: raw(socket.AF_INET, socket.IPPROTO_ICMP, IPV4),
    "raw icmp6": lambda: raw(socket.AF_INET6, socket.IPPROTO_ICMPV6, IPV6),
    "ping": lambda: ping(socket.AF_INET, socket.IPPROTO_ICMP, IPV4),
    "ping6": lambda: ping(socket.AF_INET6, socket.IPPROTO_ICMPV6, IPV6),
    "packet": packet,
    "io_uring": io_uring,
    "sctp": lambda: stream(socket.IPPROTO_SCTP),
    "mptcp": lambda: stream(IPPROTO_MPTCP),
}

for name, attempt in ATTEMPTS.items():
    try:
        attempt()
        print(f"{name}: sent", flush=True)
    except OSError as failure:
        print(f"{name}: {errno.errorcode.get(failure.errno or 0, failure)}", flush=True)
