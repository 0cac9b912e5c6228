"""In a program that the engine wraps: the supervisor answers for all of it, from the interpreter's start to its end."""

from pysocksify.engines.handover import wire
from pysocksify.engines.python import layers, patching, spawning, uvloops
from pysocksify.engines.python.asking import Supervised


def start(given: str, folder: str) -> None:
    """Have the supervisor answer. `given` is the value of `wire.VARIABLE`, `folder` what PYTHONPATH must name.

    Whatever is raised means that the program must not run.
    """
    asked = Supervised(*wire.parse_variable(given))
    patching.add(layers.Layer(asked))
    uvloops.refuse()
    spawning.guard(asked, folder)
