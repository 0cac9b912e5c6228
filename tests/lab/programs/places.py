"""places.py HOW HOST PORT: does what an engine can't promise in some places, and prints what comes of each step.

HOW: dissolve (a connection that stands); setuid (to nobody, then connect); listener (of its own, for seccomp);
early (a non-blocking connect); limit (a blocking one with a time limit of MILLISECONDS); interrupted (by a signal);
number (another one for a UDP socket); groups (a multicast group, a device for one); multicast (a group on an interface
that isn't lo); passed (a UDP socket by SCM_RIGHTS, then a datagram that names an interface).
"""

import ctypes
import errno
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

HOW, HOST, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
NOBODY = 65534
PATIENCE = 20.0  # seconds
LIBC = ctypes.CDLL(None, use_errno=True)
SECCOMP = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
SET_MODE_FILTER, NEW_LISTENER, ALLOW = 1, 1 << 3, 0x7FFF0000
NO_NEW_PRIVS = 38  # linux/prctl.h
IP_PKTINFO = 8
GROUP = "239.1.2.3"


def outcome(act: Callable[[], Any]) -> str:
    """What the kernel says to a call: 0 or the errno's name."""
    try:
        act()
    except OSError as failure:
        return errno.errorcode.get(failure.errno or 0, str(failure))
    return "0"


def tcp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def said(what: str, value: object) -> None:
    print(f"{what}={value}", flush=True)


def dissolve() -> None:
    sock = tcp()
    said("connect", outcome(lambda: sock.connect((HOST, PORT))))
    unspecified = bytes(16)
    error = 0 if LIBC.connect(sock.fileno(), unspecified, len(unspecified)) == 0 else ctypes.get_errno()
    said("dissolve", errno.errorcode.get(error, error))
    if error:
        sock.settimeout(PATIENCE)
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        said("answered", int(bool(sock.recv(1))))
    else:
        said("again", outcome(lambda: sock.connect((HOST, PORT))))


def setuid() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    said("connect", outcome(lambda: tcp().connect((HOST, PORT))))


def listener() -> None:
    code = struct.pack("=HBBI", 6, 0, 0, ALLOW)
    buffer = ctypes.create_string_buffer(code, len(code))
    described = ctypes.create_string_buffer(struct.pack("=H6xQ", 1, ctypes.addressof(buffer)))
    LIBC.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    got = LIBC.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER, described)
    said("listener", errno.errorcode[ctypes.get_errno()] if got < 0 else 0)


def stands(sock: socket.socket) -> None:
    """Whether the socket is writable at once, without an error; and what is read from it."""
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    said("writable", int(bool(poller.poll(0))))
    poller.poll(PATIENCE * 1000)
    said("error", errno.errorcode.get(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0))
    sock.settimeout(PATIENCE)
    said("read", outcome(lambda: sock.recv(1)))


def early() -> None:
    sock = tcp()
    sock.setblocking(False)
    said("connect", errno.errorcode.get(sock.connect_ex((HOST, PORT)), 0))
    stands(sock)


def limit() -> None:
    sock = tcp()
    milliseconds = int(os.environ["MILLISECONDS"])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, milliseconds * 1000))
    said("connect", outcome(lambda: sock.connect((HOST, PORT))))
    stands(sock)


def interrupted() -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, int(os.environ["MILLISECONDS"]) / 1000)
    sock = tcp()
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", PORT) + socket.inet_aton(HOST) + bytes(8)
    error = 0 if LIBC.connect(sock.fileno(), address, len(address)) == 0 else ctypes.get_errno()
    said("connect", errno.errorcode.get(error, 0))
    stands(sock)


def number() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    said("dup2", outcome(lambda: os.dup2(sock.fileno(), 50)))


def groups() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    group = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
    said("join", outcome(lambda: sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)))
    said("device", outcome(lambda: sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")))


def multicast() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    group = struct.pack("=4s4si", socket.inet_aton(GROUP), bytes(4), other_interface())  # struct ip_mreqn
    said("join", outcome(lambda: sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)))
    with open("/proc/net/igmp", encoding="ascii") as file:
        said("heard", file.read().count(f"{socket.inet_aton(GROUP)[::-1].hex().upper()} "))


def other_interface() -> int:
    return max(number for number, name in socket.if_nameindex() if name != "lo")


def passed() -> None:
    here, there = socket.socketpair()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        socket.send_fds(here, [b"x"], [sock.fileno()])
    other = socket.socket(fileno=socket.recv_fds(there, 1, 1)[1][0])
    info = struct.pack("iII", other_interface(), 0, 0)
    control = [(socket.IPPROTO_IP, IP_PKTINFO, info)]
    said("named", outcome(lambda: other.sendto(b"named", (HOST, PORT))))
    said("interface", outcome(lambda: other.sendmsg([b"out"], control, 0, (HOST, PORT))))


globals()[HOW]()
