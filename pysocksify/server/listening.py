"""Where a server listens: the sockets that it opens or was started with, one set for all its processes.

With several workers each has a TCP socket of its own (SO_REUSEPORT: the kernel spreads the clients), all on the port
that the first of them came to have. The process that opened them keeps them open too: when a worker dies, those who
wait in its queue are served by the next one. A Unix socket, or an inherited one, is one for all workers.

A TLS context belongs to its files; they are read anew at a reload, so that a renewed certificate needs no restart.
"""

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pysocksify.address import Address
from pysocksify.errors import ConfigError
from pysocksify.server import ports
from pysocksify.server.files import UNIX, Listen
from pysocksify.server.ports import OPTION
from pysocksify.server.settings import ServerSettings
from pysocksify.server.systemd import Inherited

if TYPE_CHECKING:
    import ssl

TLS = "tls:"
UNIX_MODE = 0o600
PROBE_LIMIT = 1.0  # s, for a connection to a Unix socket that may be a dead server's


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Open sockets: one for each worker, or one for all. `path` is a Unix socket's file that was made here."""

    name: str
    address: Address | None
    sockets: tuple[socket.socket, ...]
    tls: "ssl.SSLContext | None" = None
    path: str = ""
    inode: int = 0


class Listeners:
    """All listeners of one server. Closing them closes the sockets, and removes the Unix sockets' files.

    `context` makes a TLS context of a certificate's file and its key's; it raises ConfigError.
    """

    def __init__(self, workers: int, context: "Callable[[str, str], ssl.SSLContext]") -> None:
        self._workers = workers
        self._context = context
        self._contexts: dict[tuple[str, str], ssl.SSLContext] = {}
        self._all: list[Listener] = []

    @property
    def names(self) -> list[str]:
        """What listens, in order: ADDRESS:PORT or unix:PATH, with tls: before it where that is spoken."""
        return [f"{TLS if listener.tls else ''}{listener.name}" for listener in self._all]

    def open(self, listen: Listen, unix_mode: int = UNIX_MODE) -> None:
        """Listen there. Raises ConfigError."""
        tls = self._tls(listen.certificate, listen.key)
        if listen.address is None:
            self._all.append(_unix(listen.path, unix_mode, tls))
        else:
            self._all.append(_internet(listen.address, self._workers, tls))

    def take(self, given: Inherited, certificate: str, key: str) -> None:
        """Listen on a socket that was inherited; one whose name begins with "tls" speaks that. Raises ConfigError."""
        sock, tls = given.sock, None
        if given.name.startswith("tls"):
            if not certificate:
                raise ConfigError("LISTEN_FDNAMES", given.name, "needs --tls-cert and --tls-key")
            tls = self._tls(certificate, key)
        name = sock.getsockname()
        if sock.family == socket.AF_UNIX:
            path = os.fsdecode(name).replace("\0", "@", 1)
            self._all.append(Listener(name=f"{UNIX}{path}", address=None, sockets=(sock,), tls=tls))
        else:
            address = Address.of(*name[:2])
            self._all.append(Listener(name=str(address), address=address, sockets=(sock,), tls=tls))

    def check(self, settings: ServerSettings) -> None:
        """Raise ConfigError when others could use the server who aren't meant to."""
        for listener in self._all:
            if listener.address is not None:
                ports.check(listener.address, settings)

    def reload(self) -> None:
        """Read the certificates anew. Raises ConfigError, and then all are as before."""
        for certificate, key in self._contexts:
            self._context(certificate, key)
        for (certificate, key), context in self._contexts.items():
            context.load_cert_chain(certificate, key)

    def of(self, worker: int) -> "list[tuple[socket.socket, ssl.SSLContext | None]]":
        """The sockets of one worker, and what those that speak TLS do it with."""
        return [(each.sockets[worker % len(each.sockets)], each.tls) for each in self._all]

    def keep(self, worker: int) -> None:
        """Close what is other workers', in the process of this one; -1 closes all, and leaves the files."""
        mine = {id(sock) for sock, _ in self.of(worker)} if worker >= 0 else set()
        for listener in self._all:
            for sock in listener.sockets:
                if id(sock) not in mine:
                    sock.close()

    def close(self) -> None:
        """Listen no more."""
        for listener in self._all:
            for sock in listener.sockets:
                sock.close()
            if listener.path and _inode(listener.path) == listener.inode:
                os.unlink(listener.path)
        self._all.clear()

    def _tls(self, certificate: str, key: str) -> "ssl.SSLContext | None":
        if not certificate:
            return None
        files = (os.path.abspath(certificate), os.path.abspath(key))
        if files not in self._contexts:
            self._contexts[files] = self._context(*files)
        return self._contexts[files]


def parse(text: str, certificate: str, key: str) -> Listen:
    """What `--listen` means: ADDRESS:PORT, tls:ADDRESS:PORT with these files, or unix:PATH. Raises ConfigError."""
    tls = text.startswith(TLS)
    if tls and not certificate:
        raise ConfigError(OPTION, text, "needs --tls-cert and --tls-key")
    try:
        listen = Listen.parse(text.removeprefix(TLS))
    except ValueError as error:
        raise ConfigError(OPTION, "", str(error)) from None
    if tls:
        return Listen(address=listen.address, path=listen.path, certificate=certificate, key=key)
    return listen


def _internet(address: Address, workers: int, tls: "ssl.SSLContext | None") -> Listener:
    """IPv6 sockets take IPv6 only: `0.0.0.0` and `::` are both to be named to have both."""
    sockets = ports.listening(ports.numeric(address), workers)
    bound = Address.of(*sockets[0].getsockname()[:2])
    return Listener(name=str(bound), address=bound, sockets=sockets, tls=tls)


def _unix(path: str, mode: int, tls: "ssl.SSLContext | None") -> Listener:
    """Nobody can connect before listen(), and by then the file has its mode."""
    _make_room(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.bind(path)
        os.chmod(path, mode)
        sock.listen(socket.SOMAXCONN)
    except OSError as error:
        sock.close()
        raise ConfigError(OPTION, f"{UNIX}{path}", error.strerror or str(error)) from None
    return Listener(name=f"{UNIX}{path}", address=None, sockets=(sock,), tls=tls, path=path, inode=_inode(path))


def _make_room(path: str) -> None:
    """Remove a dead server's socket. Raises ConfigError when something else is there."""
    name = f"{UNIX}{path}"
    try:
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            raise ConfigError(OPTION, name, "is there already, and is no socket")
    except OSError:  # nothing there, or bind() says what is wrong
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(PROBE_LIMIT)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            _remove(path, name)
            return
        except OSError as error:  # EACCES, EAGAIN of a full queue, EPROTOTYPE: another one's, or alive
            raise ConfigError(OPTION, name, f"is somebody's socket: {error.strerror or error}") from None
    raise ConfigError(OPTION, name, "somebody listens there already")


def _remove(path: str, name: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        raise ConfigError(OPTION, name, f"a dead server's socket: {error.strerror}") from None


def _inode(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_ino
    except OSError:
        return 0
