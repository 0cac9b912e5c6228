"""uvloop is refused while somebody answers: its connections pass by Python's `socket` module. Loaded into programs."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REASON = (
    "uvloop makes its connections past Python's socket module, where pysocksify can't send them through the proxy; "
    "use asyncio's own event loop"
)
_PARTS = ("Loop", "new_event_loop", "install", "run", "EventLoopPolicy")


class UvloopRefused(ImportError):
    """Importing or using uvloop would be a way around the proxy."""


class _Finder:
    """First in sys.meta_path: no uvloop is found."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "uvloop":
            raise UvloopRefused(REASON, name=name)


_undo: "list[tuple[Any, str, Any]]" = []


def refuse() -> None:
    """Refuse uvloop from now on, imported already or not. UvloopRefused: the running loop is one."""
    asyncio = sys.modules.get("asyncio")
    loop = asyncio._get_running_loop() if asyncio is not None else None
    if loop is not None and type(loop).__module__.partition(".")[0] == "uvloop":
        raise UvloopRefused(REASON)
    sys.meta_path.insert(0, _Finder)
    for name in ("uvloop", "uvloop.loop"):
        module = sys.modules.get(name)
        for part in _PARTS:
            if module is not None and hasattr(module, part):
                _undo.append((module, part, getattr(module, part)))
                setattr(module, part, _refused)


def allow() -> None:
    """Let uvloop be as it was."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _Finder]
    while _undo:
        module, part, before = _undo.pop()
        setattr(module, part, before)


def _refused(*arguments: object, **named: object) -> None:
    raise UvloopRefused(REASON)
