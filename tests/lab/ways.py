"""The ways in which a program can be wrapped: by which engine, as whom, in which surroundings, with which kernel.

A promise holds in every way that it is tested in. `ways` says which those are: all engines always, and what differs by
account, surroundings or kernel where a promise's test is marked for it, as far as it can make a difference to that
promise. The full product is for `--every-pair`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pysocksify import options
from pysocksify.kernel import FEATURES
from tests.lab import surroundings
from tests.lab.accounts import Account

PACKAGE = Path(options.__file__).parent
ENGINES = tuple(name for name in options.ENGINES if (PACKAGE / "engines" / name / "engine.py").exists())
ACCOUNTS = ("user", "root")
PLAIN, NESTED = "", "nested"
AROUND = (*surroundings.NAMES, NESTED)
NEEDS_A_LISTENER, TAKES_SOCKETS = {"seccomp"}, {"ptrace"}
CAN_WORK = {
    "docker": tuple(name for name in ENGINES if name not in TAKES_SOCKETS),
    "no-seccomp": tuple(name for name in ENGINES if name not in NEEDS_A_LISTENER),
    NESTED: tuple(name for name in ENGINES if name not in NEEDS_A_LISTENER),
}
"""The engines that can work in these surroundings; the others refuse to start there (test_refusals)."""


REFUSES = {"preload": {"static"}, "python": {"static", "dynamic"}}
"""The kinds of programs that an engine can't reach and refuses to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A way by names, before the lab has made its accounts: an id of pytest's."""

    engine: str = "auto"
    account: str = "user"
    around: str = PLAIN
    without: str = ""

    @property
    def needs_root(self) -> bool:
        """Whether only root can make it so."""
        return self.account == "root" or bool(self.around)

    def __str__(self) -> str:
        words = [self.engine, self.account, self.around, f"no_{self.without}" if self.without else ""]
        return "-".join(word for word in words if word)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a program is wrapped. `around`: surroundings, "" for none; `without`: a feature taken away from the kernel.

    `outer` is the proxy's URL of the outer pysocksify in nested surroundings.
    """

    account: Account
    engine: str = "auto"
    around: str = PLAIN
    without: str = ""
    outer: str = ""

    @property
    def options(self) -> list[str]:
        """The options that choose the engine."""
        return [] if self.engine == "auto" else ["--engine", self.engine]

    def refuses(self, kind: str) -> bool:
        """Whether the engine refuses programs of this kind."""
        return kind in REFUSES.get(self.engine, ())

    @property
    def environment(self) -> dict[str, str]:
        """The account's environment, with the feature taken away."""
        return {**self.account.environment, **({"PYSOCKSIFY_WITHOUT": self.without} if self.without else {})}


ANSWERING = ("wait_killable", "addfd_send", "sync_wake_up")
"""The features that concern how any call is answered; the others concern sockets."""


def even_auto(way: Named) -> bool:
    """All that there is, with `auto` in all surroundings."""
    return True


def usual(way: Named) -> bool:
    """What `auto` takes in which surroundings is a promise of its own; only in a container, as root, it does more."""
    return way.engine != "auto" or way.account == "root"


def about_sockets(way: Named) -> bool:
    """For what doesn't depend on how calls are answered."""
    return usual(way) and way.without not in ANSWERING


def same_kernel(way: Named) -> bool:
    """For programs that don't connect."""
    return usual(way) and not way.without


def adopts(way: Named) -> bool:
    """Where the supervisor has made the program's sockets itself."""
    return way.without == "pidfd_getfd" or (way.around == "docker" and way.engine in ("auto", "seccomp"))


def ways(*, kind: str, everywhere: Callable[[Named], bool] | None, every_pair: bool) -> list[Named]:
    """The ways to test a promise in, with every engine that can reach programs of a kind.

    `everywhere`: not only as an ordinary user on an ordinary kernel, but also wherever this says so.
    """
    engines = [name for name in ENGINES if kind not in REFUSES.get(name, ())]
    if every_pair:
        return [
            *(Named(engine=engine, account=account) for engine in engines for account in ACCOUNTS),
            *around(engines, ACCOUNTS),
            *(Named(engine="seccomp", account=account, without=name) for name in FEATURES for account in ACCOUNTS),
        ]
    found = [Named(engine=engine) for engine in engines]
    if everywhere is not None:
        found += filter(everywhere, elsewhere(engines))
    return found


def elsewhere(engines: list[str]) -> list[Named]:
    """What isn't an ordinary user on an ordinary kernel."""
    return [
        *(Named(engine=engine, account="root") for engine in engines),
        *around(engines, ("user",)),
        *(Named(engine="seccomp", without=name) for name in FEATURES),
    ]


def around(engines: list[str], accounts: tuple[str, ...]) -> list[Named]:
    """The surroundings, with `auto` and each engine that can work there; `auto` in a container is tried as root."""
    found = (
        Named(engine=engine, account="root" if (engine, name) == ("auto", "docker") else account, around=name)
        for name in AROUND
        for engine in ("auto", *(one for one in CAN_WORK[name] if one in engines))
        for account in accounts
    )
    return list(dict.fromkeys(found))
