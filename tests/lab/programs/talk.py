"""talk.py WHAT HOST PORT MODE: one conversation with a service of the target; prints what came.

WHAT: banner, early, half-close, urgent-out, reset-in, reset-out, many. MODE: blocking, or held (connect
without blocking).
"""

import errno
import socket
import struct
import sys

LINGER = struct.pack("ii", 1, 0)


def connect(host: str, port: int, mode: str) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    sock.settimeout(None if mode == "blocking" else 20)
    sock.connect(address)
    sock.settimeout(None)
    return sock


def everything(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def banner(sock: socket.socket) -> None:
    print(sock.recv(100, socket.MSG_WAITALL if len(sys.argv) > 5 else 0).decode().strip())


def early(sock: socket.socket) -> None:
    """The other side ends first; what is sent after that must still arrive."""
    print(everything(sock).decode().strip())
    sock.sendall(b"after your end")
    sock.shutdown(socket.SHUT_WR)


def half_close(sock: socket.socket) -> None:
    """Our end first, then the answer to it."""
    sock.sendall(b"x" * 100_000)
    sock.shutdown(socket.SHUT_WR)
    print(everything(sock).decode().strip())


def urgent_out(sock: socket.socket) -> None:
    sock.sendall(b"ef")
    sock.send(b"?", socket.MSG_OOB)
    sock.sendall(b"gh")
    sock.shutdown(socket.SHUT_WR)
    everything(sock)


def reset_in(sock: socket.socket) -> None:
    sock.sendall(b"now\n")
    try:
        print(everything(sock))
    except OSError as error:
        print(errno.errorcode[error.errno or 0])


def reset_out(sock: socket.socket) -> None:
    sock.sendall(b"hello")
    sock.recv(5) if len(sys.argv) > 5 else None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)


def many(sock: socket.socket) -> None:
    """500 connections, all open, each echoing its own number."""
    sockets = [sock, *(connect(sys.argv[2], int(sys.argv[3]), sys.argv[4]) for _ in range(499))]
    for number, one in enumerate(sockets):
        one.sendall(b"%08d" % number)
    right = sum(one.recv(8, socket.MSG_WAITALL) == b"%08d" % number for number, one in enumerate(sockets))
    for one in sockets:
        one.close()
    print(right)


what = globals()[sys.argv[1].replace("-", "_")]
with connect(sys.argv[2], int(sys.argv[3]), sys.argv[4]) as connection:
    what(connection)
