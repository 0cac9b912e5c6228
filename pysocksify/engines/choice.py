"""Choosing an engine: which can be used here, which for this program, and which one `auto` takes.

Loaded before the target runs, and so are the engines' `fit` modules: of the first engine that `auto` looks at, and of
others where that one can't be used.
"""

from importlib import import_module

from pysocksify.config import Config
from pysocksify.errors import PysocksifyError
from pysocksify.kernel import Kernel
from pysocksify.options import ENGINES
from pysocksify.program import CANNOT_RUN
from pysocksify.supervisor.processes import Engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

AUTO, *NAMES = ENGINES  # auto looks at them in this order


class ProgramRefusedError(PysocksifyError):
    """An engine can be used here, but not for this program, which isn't run."""

    exit_status = CANNOT_RUN


def availability(name: str, kernel: Kernel) -> str:
    """Why an engine can't be used here; "" when it can."""
    words: str = _module(name, "fit").availability(kernel)
    return words


def refusal(name: str, command: list[str]) -> str:
    """Why an engine can't be used for a program; "" when it can, and for a program that isn't there."""
    words: str = _module(name, "fit").refusal(command)
    return words


def reservation(name: str, command: list[str]) -> str:
    """What keeps `auto` from an engine that may be asked for: the python engine for a shell reaches only what is Python
    of the programs that the shell starts. "" for nothing."""
    words: str = _module(name, "fit").notice(command) if name == "python" else ""
    return words


def decide(wanted: str, kernel: Kernel, command: list[str]) -> tuple[str, str]:
    """The name of the engine that is wanted, or with "auto" of the first that works; and a line that says why this one.

    PysocksifyError, ProgramRefusedError: there's none.
    """
    names = NAMES if wanted == AUTO else [wanted]
    against: list[str] = []
    refused: list[str] = []
    for name in names:
        if why := availability(name, kernel):
            against.append(f"{name} can't be used here: {why}")
        elif why := refusal(name, command) or (reservation(name, command) if wanted == AUTO else ""):
            refused.append(name)
            against.append(f"{name} can't be used for {command[0]}: {why}")
        else:
            return name, f"engine {name}" + (f": {'; '.join(against)}" if against else "")
    error = ProgramRefusedError if refused else PysocksifyError
    if len(names) == 1 or names[0] in refused:  # what the one that reaches most can't run, none can
        raise error(f"engine {against[0]}")
    raise error(f"no engine is left: {'; '.join(against)}")


def engine(name: str, config: Config, kernel: Kernel) -> Engine:
    """The engine of that name."""
    made: Engine = getattr(_module(name, "engine"), f"{name.capitalize()}Engine")(config, kernel)
    return made


def _module(name: str, part: str) -> "Any":
    return import_module(f"pysocksify.engines.{name}.{part}")
