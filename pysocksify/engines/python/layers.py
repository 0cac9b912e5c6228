"""Who answers for the sockets of this process now: layers, the innermost last. Loaded into programs.

A layer is one block of `socksify(…)`, or the wrapper around the whole program. It answers the requests of all threads
but its own ones (`serve_here`): these ask the layer below, or none, so an inner block's proxies are reached through the
outer block's. A layer that is taken away while it still serves (`remove`) keeps what is below it.
"""

from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from pysocksify.engines.python.asking import Reply

    class Answering(Protocol):
        """What answers requests as `handover.wire` has them."""

        def ask(self, op: int, payload: bytes = b"", sock: Any = None) -> Reply: ...


class Layer:
    """One who answers, and the layer below."""

    __slots__ = ("answering", "below", "made_here")

    def __init__(self, answering: "Answering", made_here: "Callable[[Any], None] | None" = None) -> None:
        """`made_here` is told of every socket that a serving thread makes for itself."""
        self.answering = answering
        self.made_here = made_here
        self.below: Layer | None = None


_stack: "list[Layer]" = []
_serving: "dict[int, Layer]" = {}


def here() -> "Answering | None":
    """Who answers for the calling thread; None: the kernel."""
    serving = _serving.get(get_ident())
    if serving is not None:
        return serving.below.answering if serving.below is not None else None
    return _stack[-1].answering if _stack else None


def served_here() -> "Layer | None":
    """The layer that the calling thread serves."""
    return _serving.get(get_ident())


def add(layer: Layer) -> None:
    """Let `layer` answer from now on."""
    layer.below = _stack[-1] if _stack else None
    _stack.append(layer)


def remove(layer: Layer) -> bool:
    """Let `layer` answer no more. True: none is left."""
    _stack.remove(layer)
    for other in {*_stack, *_serving.values()}:
        if other.below is layer:
            other.below = layer.below
    return not _stack


def serve_here(layer: "Layer | None") -> None:
    """The calling thread serves `layer` from now on, or none any more."""
    if layer is None:
        _serving.pop(get_ident(), None)
    else:
        _serving[get_ident()] = layer


def forget_threads() -> None:
    """After fork(2): the other threads are gone."""
    _serving.clear()
