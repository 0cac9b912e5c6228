"""connects.py HOST:PORT…: non-blocking connects, all started at once by one thread; prints one JSON object.

`started`: seconds each connect() took and its errno; `up`: seconds from the first connect() until each was writable,
and its SO_ERROR; `writable_at`: the same as time.monotonic(). `before`/`after`: what is set on the first socket.
"""

import errno
import fcntl
import json
import os
import select
import socket
import sys
import time


def options(sock: socket.socket) -> dict[str, object]:
    return {
        "cloexec": bool(fcntl.fcntl(sock, fcntl.F_GETFD) & fcntl.FD_CLOEXEC),
        "nonblock": bool(fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK),
        "nodelay": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
        "keepalive": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        "domain": sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN),
        "fd": sock.fileno(),
        "bound": sock.getsockname()[:2],
    }


def main() -> None:
    destinations = [argument.rpartition(":") for argument in sys.argv[1:]]
    sockets = {}
    for host, _, port in destinations:
        host = host.strip("[]")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sockets[sock.fileno()] = (sock, (host, int(port)))
    first = next(iter(sockets.values()))[0]
    if bind := os.environ.get("BIND"):
        first.bind((bind, 0))
    before = options(first)
    started = []
    begin = time.monotonic()
    for sock, destination in sockets.values():
        start = time.monotonic()
        error = sock.connect_ex(destination)
        started.append([time.monotonic() - start, errno.errorcode.get(error, "0")])
    poll = select.epoll()
    for fd in sockets:
        poll.register(fd, select.EPOLLOUT)
    up, at = {}, {}
    while len(up) < len(sockets) and time.monotonic() - begin < 30:
        for fd, _ in poll.poll(30):
            error = sockets[fd][0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            up[fd] = [time.monotonic() - begin, errno.errorcode.get(error, "0")]
            at[fd] = time.monotonic()
            poll.unregister(fd)
    peers = []
    for sock, _ in sockets.values():
        try:
            peers.append(sock.getpeername()[:2])
        except OSError as error:
            peers.append(errno.errorcode[error.errno or 0])
    result = {
        "started": started,
        "up": [up.get(fd) for fd in sockets],
        "writable_at": [at.get(fd) for fd in sockets],
        "before": before,
        "after": options(first),
        "peers": peers,
    }
    print(json.dumps(result))


main()
