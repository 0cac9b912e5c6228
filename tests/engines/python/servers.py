"""What the python engine's tests talk to, all on loopback: an echo server, names for it, and proxies that log."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from tests.lab.scripted import Script, ScriptedProxy

LOOPBACK = "127.0.0.1"
ECHO = "echo.test"  # what the proxy knows the echo server by
REFUSED, UNREACHABLE, FORBIDDEN = "refused.test", "unreachable.test", "forbidden.test"
ANSWERS = {REFUSED: 5, UNREACHABLE: 4, FORBIDDEN: 2}


@dataclass(slots=True)
class Echo:
    """A server that sends back what it gets, and what it saw."""

    port: int
    ends: threading.Semaphore
    """Released at each connection's end of file."""


@contextlib.contextmanager
def echo_server() -> Iterator[Echo]:
    """The echo server, until the block ends."""
    listener = socket.create_server((LOOPBACK, 0), backlog=512)
    echo = Echo(listener.getsockname()[1], threading.Semaphore(0))

    def talk(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(65536):
                sock.sendall(data)
            echo.ends.release()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=talk, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield echo
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@contextlib.contextmanager
def proxy(script: Script | None = None) -> Iterator[ScriptedProxy]:
    """A SOCKS5 proxy that knows ECHO and refuses the other names as ANSWERS says."""
    made = ScriptedProxy(None, LOOPBACK, script or Script(answers=ANSWERS), {ECHO: LOOPBACK})
    try:
        yield made
    finally:
        made.close()


def url(server: ScriptedProxy) -> str:
    """How a program names it."""
    return server.url(LOOPBACK)
