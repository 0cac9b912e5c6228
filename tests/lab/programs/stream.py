"""stream.py get|put HOST PORT SIZE: so many bytes from the source or into the sink; prints size and sha256."""

import hashlib
import socket
import sys

PIECE = 1 << 20


def get(sock: socket.socket, size: int) -> None:
    sock.sendall(f"{size}\n".encode())
    digest, total = hashlib.sha256(), 0
    buffer = bytearray(PIECE)
    while count := sock.recv_into(buffer):
        digest.update(memoryview(buffer)[:count])
        total += count
    print(total, digest.hexdigest())


def put(sock: socket.socket, size: int) -> None:
    digest = hashlib.sha256()
    piece = bytes(range(256)) * (PIECE // 256)
    left = size
    while left:
        part = memoryview(piece)[: min(left, PIECE)]
        sock.sendall(part)
        digest.update(part)
        left -= len(part)
    sock.shutdown(socket.SHUT_WR)
    print(size, digest.hexdigest())
    print(sock.makefile().readline().strip())


host, port, amount = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
with socket.socket(addresses[0][0], socket.SOCK_STREAM) as connection:
    if len(sys.argv) > 5:  # any further word: connect without blocking
        connection.settimeout(30)
    connection.connect(addresses[0][4])
    connection.settimeout(None)
    {"get": get, "put": put}[sys.argv[1]](connection, amount)
