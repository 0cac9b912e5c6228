"""Choosing an engine."""

from pysocksify.config import Config
from pysocksify.kernel import Kernel
from pysocksify.supervisor.processes import Engine


def choose(config: Config, kernel: Kernel, command: list[str]) -> Engine:
    """The engine that the configuration asks for. PysocksifyError: it can't be used."""
    from pysocksify.engines.seccomp.engine import SeccompEngine

    return SeccompEngine(config, kernel)
