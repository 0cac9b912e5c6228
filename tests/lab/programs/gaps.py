"""gaps.py HOW HOST PORT: connects in a way that an engine may be unable to see; prints `connected` or the errno.

HOW: plain; ctypes (libc's own socket and connect); isolated (another interpreter, started with -I); child (a
program in C); uvloop (an event loop of its own); inherited (the descriptor named by SOCKET, made before all this).
"""

import errno
import os
import socket
import struct
import subprocess
import sys

HOW, HOST, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])


def say(error: int) -> None:
    print(errno.errorcode[error] if error else "connected", flush=True)


def plain() -> None:
    with socket.socket() as sock:
        say(sock.connect_ex((HOST, PORT)))


def by_ctypes() -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", PORT) + socket.inet_aton(HOST) + bytes(8)
    fd = libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    say(ctypes.get_errno() if libc.connect(fd, address, len(address)) else 0)


def isolated() -> None:
    subprocess.run([sys.executable, "-I", __file__, "plain", HOST, str(PORT)], check=True)


def child() -> None:
    subprocess.run([os.path.join(os.path.dirname(__file__), "gaps"), "raw", HOST, str(PORT)], check=True)


def by_uvloop() -> None:
    import asyncio

    import uvloop

    async def connect() -> None:
        await asyncio.open_connection(HOST, PORT)
        say(0)

    uvloop.run(connect())


def inherited() -> None:
    with socket.socket(fileno=int(os.environ["SOCKET"])) as sock:
        say(sock.connect_ex((HOST, PORT)))


{"ctypes": by_ctypes, "uvloop": by_uvloop}.get(HOW, globals().get(HOW, plain))()
