"""Where programs hand over: a Unix socket with a name that the kernel gives (unix(7), autobind), and the token to say
there. Made in the front, before anything is forked, so little is imported here."""

import _socket
import os

from pysocksify.engines.handover import wire

BACKLOG = 4096


class Place:
    """The listening socket, and what the program's environment is told of it."""

    def __init__(self) -> None:
        self.token = os.urandom(wire.TOKEN_SIZE)
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_NONBLOCK)
        self.listener.bind("")
        self.listener.listen(BACKLOG)

    def tell(self) -> None:
        """Say in this process's environment where it is."""
        os.environ[wire.VARIABLE] = wire.variable(self.listener.getsockname()[1:], self.token)

    def close(self) -> None:
        """Let go of the socket: it's to end with the supervisor."""
        self.listener.close()
