"""Names that a program asks for by getaddrinfo(3) and its like, when an engine catches those calls themselves.

The order is libc's: /etc/hosts first, then what stands in for DNS (`names`). With `--dns system`, and for names that
the rules send `direct`, this machine looks them up, in a thread.
"""

import errno
import os
import socket
from collections.abc import Callable, Sequence

from pysocksify.address import Address
from pysocksify.reactor import Reactor
from pysocksify.supervisor.names import Lookup, Names, of_family

HOSTS = "/etc/hosts"
HOSTS_MOST = 1 << 26  # bytes; lists of advertisers' hosts have a few MiB

Found = Callable[[int, Sequence[str], str], None]
"""Is told an errno (0; ENOENT, ENODATA, EAGAIN, EIO), addresses, and the canonical name."""

_ERRNOS = {
    getattr(socket, "EAI_NODATA", socket.EAI_NONAME): errno.ENODATA,  # not every system has these
    getattr(socket, "EAI_ADDRFAMILY", socket.EAI_NONAME): errno.ENODATA,
    socket.EAI_NONAME: errno.ENOENT,
    socket.EAI_AGAIN: errno.EAGAIN,
}


class Hosts:
    """A hosts file, as hosts(5) has it; read again when it has changed."""

    def __init__(self, paths: Sequence[str]) -> None:
        """The first of `paths` that can be read counts."""
        self._paths = paths
        self._read_at: tuple[int, int, int] | None = None
        self._addresses: dict[str, list[tuple[str, str]]] = {}
        self._names: dict[str, str] = {}

    @classmethod
    def of_process(cls, pid: int) -> "Hosts":
        """The hosts file that this process sees, also in a mount namespace or root directory of its own."""
        return cls((f"/proc/{pid}/root{HOSTS}", HOSTS))

    def addresses(self, name: str) -> list[tuple[str, str]]:
        """Addresses and canonical name of each line that has this name or alias (lower case)."""
        self._refresh()
        return self._addresses.get(name, [])

    def name(self, host: str) -> str | None:
        """The canonical name of an address."""
        self._refresh()
        return self._names.get(host)

    def _refresh(self) -> None:
        for path in self._paths:
            try:
                with open(path, "rb") as file:
                    status = os.fstat(file.fileno())
                    version = status.st_ino, status.st_size, status.st_mtime_ns
                    if version != self._read_at:
                        self._read_at = version
                        self._parse(file.read(HOSTS_MOST).decode("utf-8", "surrogateescape"))
                return
            except OSError:
                continue
        self._read_at = None
        self._parse("")

    def _parse(self, text: str) -> None:
        self._addresses = {}
        self._names = {}
        for line in text.splitlines():
            host, *names = line.partition("#")[0].split() or ("",)
            try:
                address = Address.of(host.partition("%")[0], 0)
            except ValueError:
                continue
            if address.is_name or not names:
                continue
            self._names.setdefault(address.host, names[0])
            for name in dict.fromkeys(each.lower().removesuffix(".") for each in names):
                self._addresses.setdefault(name, []).append((address.host, names[0]))


class Lookups:
    """What names and addresses mean to one target, asked without DNS messages."""

    def __init__(self, reactor: Reactor, names: Names, hosts: Hosts, *, system: bool, ipv6: bool) -> None:
        """`system`: everything is looked up as this machine does; `ipv6`: ::1 is there."""
        self._reactor = reactor
        self._names = names
        self._hosts = hosts
        self._system = system
        self._ipv6 = ipv6

    def by_name(self, name: bytes, family: int, found: Found) -> None:
        """The addresses of a name: of one family, or of both, best first (RFC 6724). `found` is called now or later."""
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError:
            found(errno.ENOENT, (), "")
            return
        plain = text.lower().removesuffix(".")
        entries = self._hosts.addresses(plain)
        if entries:
            self._tell(found, family, [host for host, _ in entries], entries[0][1], errno.ENOENT)
            return
        try:
            addresses = None if self._system else self._names.addresses(text)
        except ValueError:
            found(errno.ENOENT, (), "")
            return
        if addresses is not None:
            self._tell(found, family, addresses, plain)
            return

        def done(real: Sequence[str] | None, error: BaseException | None) -> None:
            if real is None:
                number = error.errno if isinstance(error, socket.gaierror) else None
                found(_ERRNOS.get(number or 0, errno.EIO), (), "")
                return
            if not self._system:
                self._names.give(plain, real)
            self._tell(found, family, real, plain)

        self._reactor.in_thread(lambda: addresses_here(text), done)

    def by_address(self, address: Address, found: Callable[[str | None], None]) -> None:
        """The name of an address, or None. `found` is called now or later."""
        name = self._hosts.name(address.host)
        if name is None and not self._system:
            name = self._names.pointer(address.host)
        if name is not None or not self._system:
            found(name)
            return
        self._reactor.in_thread(lambda: name_here(address.host), lambda name, _error: found(name))

    def message(self, message: bytes, reply: Callable[[bytes | None], None]) -> None:
        """Answer a DNS message of any size; None: it's no query, or the name servers are to be asked."""
        if self._system or not answer(self._reactor, self._names, message, True, reply):
            reply(None)

    def _tell(
        self, found: Found, family: int, addresses: Sequence[str], canonical: str, none: int = errno.ENODATA
    ) -> None:
        wanted = of_family(addresses, family)
        # ::1 comes before all, a name that is in /etc/hosts has IPv4 first as fake addresses have
        wanted.sort(key=lambda host: 0 if host == "::1" and self._ipv6 else 1 if host == "127.0.0.1" else 2)
        found(0 if wanted else none, wanted, canonical)


def answer(reactor: Reactor, names: Names, message: bytes, stream: bool, reply: Callable[[bytes], None]) -> bool:
    """Answer a DNS message now or later; False when no answer will ever come."""
    given = names.answer(message, stream=stream)
    if given is None:
        return False
    if not isinstance(given, Lookup):
        reply(given)
        return True
    lookup = given

    def found(addresses: list[str] | None, error: BaseException | None) -> None:
        reply(names.complete(lookup, addresses, error))

    reactor.in_thread(lambda: list(names.look_up(lookup)), found)
    return True


def addresses_here(name: str) -> list[str]:
    """The addresses of a name as this machine has them, with its search list. Blocks; OSError (socket.gaierror)."""
    found = socket.getaddrinfo(name, None, 0, socket.SOCK_STREAM)
    return [str(sockaddr[0]).partition("%")[0] for _, _, _, _, sockaddr in found]


def name_here(host: str) -> str:
    """The name of an address as this machine has it. Blocks; OSError (socket.gaierror)."""
    return socket.getnameinfo((host, 0), socket.NI_NAMEREQD)[0]
