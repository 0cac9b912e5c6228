"""Putting the stand-ins in the place of the true functions and methods, and back. Loaded into programs.

Replaced are names in the modules `_socket` and `socket`, and attributes of `socket.socket` and of every other class
that is made of `_socket.socket` (gevent has one). `_socket.socket` itself can't be changed, so its name is given to a
class made of it. What somebody kept of the modules' functions before (`from socket import gethostbyname`), and what C
code does by itself, isn't caught.
"""

import _socket
import socket

from pysocksify.engines.python import layers, naming, sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ABSENT = object()
_undo: "list[tuple[Any, str, Any]]" = []


class _Posing(type(sockets.true)):  # type: ignore[misc]  # of another copy of this module, where that came first
    """Has `isinstance(…, _socket.socket)` mean what it did."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, sockets.true)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, sockets.true)


def add(layer: layers.Layer) -> None:
    """Let a layer answer; the first one puts the stand-ins in place."""
    if not _undo:
        _install()
    layers.add(layer)


def remove(layer: layers.Layer) -> None:
    """Let a layer answer no more; after the last one everything is as it was."""
    if layers.remove(layer):
        _uninstall()


def _install() -> None:
    for name, function in naming.FUNCTIONS.items():
        true_one = getattr(_socket, name)
        _replace(_socket, name, function)
        if getattr(socket, name) is true_one:
            _replace(socket, name, function)
    classes: list[type] = sockets.true.__mro__[-2].__subclasses__()
    for cls in classes:
        for name, method in {**sockets.METHODS, "__init__": sockets.initialize}.items():
            # socket.socket's own __init__ calls _socket.socket's
            if cls is not sockets.true and vars(cls).get(name) in (None, vars(sockets.true).get(name)):
                _replace(cls, name, method)
    posing = _Posing("socket", (sockets.true,), {"__doc__": sockets.true.__doc__, "__module__": "_socket"})
    for name, method in sockets.METHODS.items():
        setattr(posing, name, method)
    posing.__init__ = sockets.initialize  # type: ignore[misc]
    _replace(_socket, "socket", posing)
    _replace(_socket, "SocketType", posing)
    _replace(socket, "SocketType", posing)


def _uninstall() -> None:
    while _undo:
        owner, name, before = _undo.pop()
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _replace(owner: "Any", name: str, value: "Any") -> None:
    _undo.append((owner, name, vars(owner).get(name, _ABSENT)))
    setattr(owner, name, value)
