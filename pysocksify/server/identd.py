"""Asking a client's identd whose connection it is (RFC 1413), as SOCKS4 does for its user ids."""

import os
import socket
from collections.abc import Callable

from pysocksify.address import Address
from pysocksify.reactor import READ, WRITE, Pause, Reactor, Ready, Steps

PORT = 113  # RFC 1413 section 2
LINE_LIMIT = 1000  # octets of a reply, less its end: RFC 1413 section 4


class Ident:
    """One question: who, on the client's machine, has the connection from `client` to `server`, its end here?

    `done` is called once, never from the constructor: with the user id, as UTF-8 with surrogate escapes; with "" when
    the answer is an error (nobody, or a user who stays hidden); with None when identd can't be reached, takes more than
    `seconds` or says what isn't RFC 1413.
    """

    def __init__(
        self,
        reactor: Reactor,
        client: Address,
        server: Address,
        seconds: float,
        done: Callable[[str | None], None],
        *,
        port: int = PORT,
    ) -> None:
        steps = _ask(client, server, reactor.now() + seconds, port)
        self._task = reactor.spawn(steps, lambda answer, error: done(_answer(answer, error)))

    def cancel(self) -> None:
        """Give up; `done` is not called."""
        self._task.cancel()


def _answer(answer: str | None, error: BaseException | None) -> str | None:
    if error is not None and not isinstance(error, (OSError, ValueError)):  # TimeoutError is an OSError
        raise error
    return answer


def _ask(client: Address, server: Address, deadline: float, port: int) -> Steps[str]:
    """The user id that identd says. Raises OSError and ValueError."""
    yield Pause(0)  # nobody is called back before the constructor has returned
    with socket.socket(client.family or socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        # identd knows the connection by both ends' addresses, of which it takes ours from who asks (section 3)
        sock.bind((server.host, 0))
        failed = sock.connect_ex((client.host, port))
        if failed:
            yield Ready(sock.fileno(), WRITE, deadline)
            failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
        sock.sendall(b"%d, %d\r\n" % (client.port, server.port))
        received = b""
        while b"\n" not in received and len(received) <= LINE_LIMIT + 1:
            yield Ready(sock.fileno(), READ, deadline)
            data = sock.recv(LINE_LIMIT + 2 - len(received))
            if not data:  # some leave the end of the line out
                break
            received += data
    return parse(received, client.port, server.port)


def parse(received: bytes, client_port: int, server_port: int) -> str:
    """The user id of a reply, "" when it's an error. Raises ValueError for what is no reply to this question.

    RFC 1413 section 6: `port, port : USERID : system[, charset] : user id`, or `port, port : ERROR : what`. White space
    between the parts doesn't count. A user id may hold colons and spaces; the latter not at its ends.
    """
    line = received.partition(b"\n")[0].removesuffix(b"\r")
    if len(line) > LINE_LIMIT:
        raise ValueError(f"the reply has more than {LINE_LIMIT} octets")
    ports, kind, rest = (part.strip(b" \t") for part in [*line.split(b":", 2), b"", b""][:3])
    if kind.upper() == b"ERROR" and rest:
        return ""
    pair = [port.strip(b" \t") for port in ports.split(b",")]
    if pair != [b"%d" % client_port, b"%d" % server_port]:
        raise ValueError("the reply is about another connection")
    _, colon, userid = rest.partition(b":")
    userid = userid.strip(b" \t")
    if kind.upper() != b"USERID" or not colon or not userid or b"\0" in userid or b"\r" in userid:
        raise ValueError("neither a user id nor an error")
    return userid.decode("utf-8", "surrogateescape")
