"""The search list of resolv.conf: which names a libc asks for on the way to the one that its program meant.

With `ndots:5` (every Kubernetes pod) a program that wants `example.com` first asks for
`example.com.default.svc.cluster.local`. A resolver that gives an address to every name must know those from what is
meant, or they go to the proxy.
"""

from collections.abc import Callable
from dataclasses import dataclass

NDOTS_DEFAULT, NDOTS_LIMIT = 1, 15  # resolv.conf(5)
_REMEMBERED = 4096  # names being searched for; as many as a busy target asks within a search, many times over


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchList:
    """`search` and `ndots` as resolv.conf(5) has them; domains in lower case, without a dot at their end."""

    domains: tuple[str, ...] = ()
    ndots: int = NDOTS_DEFAULT

    @classmethod
    def parse(cls, text: str) -> "SearchList":
        """Read a resolv.conf as libc does: the last of `domain` and `search` counts, unknown words are passed over."""
        domains: tuple[str, ...] = ()
        ndots = NDOTS_DEFAULT
        for line in text.splitlines():
            match line.split():
                case ["search", *names]:
                    domains = tuple(name.lower().strip(".") for name in names)
                case ["domain", name, *_]:
                    domains = (name.lower().strip("."),)
                case ["options", *options]:
                    for option in options:
                        key, _, value = option.partition(":")
                        if key == "ndots" and value.isascii() and value.isdigit():
                            ndots = min(int(value), NDOTS_LIMIT)
        return cls(domains=tuple(domain for domain in domains if domain), ndots=ndots)

    def meant(self, name: str) -> str | None:
        """X, when `name` (lower case) is X with a search domain behind it, and X has a dot but fewer than `ndots`.

        The longest domain that fits counts. None for all other names: a libc asks those because they are meant.
        """
        fitting = [domain for domain in self.domains if name.endswith("." + domain)]
        if not fitting:
            return None
        rest = name[: -1 - max(map(len, fitting))]
        return rest if 1 <= rest.count(".") < self.ndots else None


class Search:
    """A search list read at first use, and the names that are being searched for."""

    def __init__(self, read: Callable[[], str]) -> None:
        """`read` gives the text of the resolv.conf; where it raises OSError, nothing is ever searched."""
        self._read = read
        self._list: SearchList | None = None
        self._wanted: dict[str, None] = {}

    @classmethod
    def of_process(cls, pid: int) -> "Search":
        """The search list that this process sees, also in a mount namespace or root directory of its own."""

        def read() -> str:
            with open(f"/proc/{pid}/root/etc/resolv.conf", "rb") as file:
                return file.read(65536).decode("latin-1")

        return cls(read)

    def is_step(self, name: str) -> bool:
        """Whether `name` (lower case) is only a step on the way to another one; that one is then remembered as meant.

        A name that is remembered is never a step: `a.b.svc.cluster.local` could be one, unless it was itself searched
        for.
        """
        if self._list is None:
            try:
                self._list = SearchList.parse(self._read())
            except OSError:
                self._list = SearchList()
        if name in self._wanted:
            return False
        meant = self._list.meant(name)
        if meant is None:
            return False
        self._wanted.pop(meant, None)
        self._wanted[meant] = None
        if len(self._wanted) > _REMEMBERED:
            del self._wanted[next(iter(self._wanted))]
        return True
