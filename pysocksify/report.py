"""What the person is told while a target runs: problems once per cause, connections at -v, the rest at -vv.

Nothing here prints: lines go to `write`, which the command line gives (the front's standard error) or a log file's.
"""

import time
from collections.abc import Callable

QUIET, NORMAL, VERBOSE, DEBUG = -1, 0, 1, 2
CAUSES_REMEMBERED = 4096  # a port scan must not fill memory with its refusals, nor hide what comes after it


class Report:
    """A sink of lines. `verbosity`: -1 only what ends the run, 0 problems, 1 connections too, 2 everything."""

    def __init__(
        self,
        write: Callable[[str], None],
        verbosity: int = NORMAL,
        name: str = "pysocksify",
        *,
        dated: bool = False,
    ) -> None:
        """`name` stands before problems; `dated` puts date and time before every line, as a file's reader needs it."""
        self._write = write
        self._dated = dated
        self._name = name
        self.verbosity = verbosity
        self._said: dict[str, None] = {}  # the oldest first

    def problem(self, key: str, text: str) -> None:
        """Say what went wrong, once per `key`, of which the last few thousand are remembered."""
        if self.verbosity < NORMAL or key in self._said:
            return
        if len(self._said) >= CAUSES_REMEMBERED:
            del self._said[next(iter(self._said))]
        self._said[key] = None
        self._warn(text)

    def _warn(self, text: str) -> None:
        self._write(f"{self._time()} {text}" if self._dated else f"{self._name}: {text}")

    def connection(self, text: str) -> None:
        """One line for one connection, with the time of day."""
        if self.verbosity >= VERBOSE:
            self._write(f"{self._time()} {text}")

    def debug(self, text: str) -> None:
        """A detail for whoever looks for a fault."""
        if self.verbosity >= DEBUG:
            self._write(f"{self._time()} {text}")

    def _time(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S" if self._dated else "%H:%M:%S")
