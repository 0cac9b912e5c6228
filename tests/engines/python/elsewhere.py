"""elsewhere.py CASE URL PORT…: uses the library as on a system that isn't Linux: what only Linux has is taken away."""

import _socket
import os
import select
import sys
from typing import Any


def take_away(module: Any, *names: str) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


# before `socket` is imported, and with it `selectors`, which looks for these
take_away(select, "epoll", "EPOLLIN", "EPOLLOUT", "EPOLLPRI", "EPOLLERR", "EPOLLHUP")
take_away(os, "splice", "SPLICE_F_MOVE", "eventfd", "EFD_CLOEXEC", "pipe2", "sched_getaffinity", "pidfd_open")
take_away(_socket, "SOCK_NONBLOCK", "SOCK_CLOEXEC", "SOCK_SEQPACKET", "MSG_DONTWAIT", "MSG_NOSIGNAL", "MSG_FASTOPEN")
take_away(
    _socket, "MSG_CMSG_CLOEXEC", "AF_NETLINK", "AF_ALG", "AF_PACKET", "SO_BINDTODEVICE", "SO_PEERCRED", "TCP_INFO"
)
take_away(_socket, "EAI_ADDRFAMILY", "EAI_NODATA")
if hasattr(os, "process_cpu_count"):
    os.process_cpu_count = os.cpu_count  # it asks for what was taken away
for name in ("ctypes", "_ctypes", "fcntl", "pwd", "resource"):
    sys.modules[name] = None  # type: ignore[assignment]  # an import of it fails

import asyncio  # noqa: E402
import builtins  # noqa: E402
import errno  # noqa: E402
import logging  # noqa: E402
import socket  # noqa: E402

_open = builtins.open


def _open_no_proc(file: Any, *arguments: Any, **named: Any) -> Any:
    if str(file).startswith("/proc"):
        raise FileNotFoundError(errno.ENOENT, "no /proc here", file)
    return _open(file, *arguments, **named)


builtins.open = _open_no_proc
logging.disable()

import pysocksify  # noqa: E402

CASE, URL, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])


def said(sock: socket.socket) -> str:
    sock.sendall(b"hello")
    return sock.recv(100).decode()


async def said_by_streams(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> str:
    reader, writer = streams
    writer.write(b"hello")
    text = (await reader.readexactly(5)).decode()
    writer.close()
    await writer.wait_closed()
    return text


def create_connection() -> None:
    with pysocksify.create_connection(("echo.test", PORT), timeout=5, chain=[URL]) as sock:
        print(said(sock))


def open_connection() -> None:
    async def main() -> None:
        print(await said_by_streams(await pysocksify.open_connection("echo.test", PORT, chain=[URL])))

    asyncio.run(main())


def blocking() -> None:
    limit = None if sys.argv[4] == "none" else float(sys.argv[4])
    with pysocksify.socksify(URL):
        with socket.create_connection(("echo.test", PORT), timeout=limit) as sock:
            print(said(sock))
            print(socket.gethostbyaddr(sock.getpeername()[0])[0])
        for name in ("refused", "unreachable", "forbidden"):
            try:
                with socket.socket() as sock:
                    sock.settimeout(limit)
                    sock.connect((f"{name}.test", PORT))
            except OSError as error:
                plain = type(error) is OSError
                print(type(error).__name__ + (f" {errno.errorcode[error.errno or 0]}" if plain else ""))


def with_asyncio() -> None:
    async def one() -> str:
        return await said_by_streams(await asyncio.open_connection("echo.test", PORT))

    async def main() -> None:
        print(*(await asyncio.gather(one(), one(), one())))

    with pysocksify.socksify(URL):
        asyncio.run(main())


def early() -> None:
    async def main() -> None:
        reader, writer = await asyncio.open_connection("refused.test", PORT)
        try:
            await reader.read()
        except ConnectionResetError:
            print("reset")
        writer.close()

    with pysocksify.socksify(URL):
        asyncio.run(main())


def half_close() -> None:
    true = socket.getaddrinfo, socket.gethostbyname, socket.SocketType, sorted(vars(socket.socket))
    with pysocksify.socksify(URL):
        sock = socket.create_connection(("echo.test", PORT))
        size = 0
        for _ in range(300):
            sock.sendall(b"x" * 10_000)
            size += len(sock.recv(1 << 20))
        sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(1 << 20):
            size += len(data)
        print("all", size)
        sock.close()
        kept = socket.create_connection(("echo.test", PORT))
    now = socket.getaddrinfo, socket.gethostbyname, socket.SocketType, sorted(vars(socket.socket))
    print("as before" if now == true else "changed")
    print("lives on" if said(kept) == "hello" else "dead")
    kept.close()


def refused() -> None:
    words = []
    with pysocksify.socksify(URL), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for call in (lambda: sock.sendto(b"x", ("198.51.100.1", 9)), lambda: sock.connect(("198.51.100.1", 9))):
            try:
                call()
                words.append("sent")
            except OSError as error:
                words.append(errno.errorcode[error.errno or 0])
        sock.bind(("127.0.0.1", 0))
        sock.sendto(b"x", sock.getsockname())
        words.append("sent" if sock.recvfrom(10) == (b"x", sock.getsockname()) else "lost")
    print(*words)


def rules() -> None:
    deny = [{"match": ["denied.test"], "to": "deny"}]
    with pysocksify.socksify(URL, direct=["localhost"], rules=deny):
        with socket.create_connection(("localhost", PORT)) as sock:
            said(sock)
        try:
            socket.create_connection(("denied.test", PORT))
        except OSError as error:
            print("direct", errno.errorcode[error.errno or 0])


globals()[CASE]()
