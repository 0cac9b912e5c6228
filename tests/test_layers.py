"""Imports go one way: this reads every import of the package and fails on one that points up."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pysocksify"

# Lower layers first. What shares a line shares a layer and may import each other; exceptions stand in FORBIDDEN.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("codes", "record", "linux", "program"),
    ("address",),
    ("errors",),
    ("kernel",),
    ("protocol",),
    ("route",),
    ("config", "options"),
    ("pacing", "polling", "reactor", "report", "threads", "dial", "flow", "relay"),
    ("server", "supervisor"),
    ("engines",),
    ("front", "cli", "library"),
    ("__init__", "__main__"),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# What a layer must not know although it is no layer above it.
FORBIDDEN = {("server", "supervisor"), ("supervisor", "server")}

# The state machines of the wire formats do no I/O and ask no clock; the routes get clock and dice passed in.
PURE = {
    "protocol": {"asyncio", "os", "select", "selectors", "socket", "ssl", "threading", "time", "random"},
    "route": {"asyncio", "os", "select", "selectors", "socket", "ssl", "threading", "time"},
}

ENGINES = PACKAGE / "engines"
SHARED = {"syscalls", "handover"}  # folders there that are no engines, but what two of them share


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> tuple[str, ...]:
    """A file's module name below `pysocksify`, as parts."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """The absolute names, as parts, that a module imports anywhere in its text."""
    package = ("pysocksify", *dotted(path))
    if path.name != "__init__.py":
        package = package[:-1]
    elif path.parent == PACKAGE:
        package = ("pysocksify",)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield (*stem, alias.name)


def own(path: Path) -> Iterator[str]:
    """The layers' names that a module imports."""
    for name in imports(path):
        if name[0] == "pysocksify" and len(name) > 1:
            yield name[1] if name[1] in RANK or (PACKAGE / f"{name[1]}.py").exists() else "__init__"


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_layers(path: Path) -> None:
    layer = dotted(path)[0]
    assert layer in RANK, f"{relative(path)}: say in LAYERS where {layer} belongs"
    for name in set(own(path)) - {layer, "__init__"}:
        assert name in RANK, f"{relative(path)} imports {name}: say in LAYERS where it belongs"
        assert RANK[name] <= RANK[layer], f"{relative(path)} imports {name}, which is above it"
        assert (layer, name) not in FORBIDDEN, f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", [path for path in modules() if dotted(path)[0] in PURE], ids=relative)
def test_pure_modules_do_no_io(path: Path) -> None:
    assert not {name[0] for name in imports(path)} & PURE[dotted(path)[0]]


def test_engines_do_not_know_each_other() -> None:
    engines = {path.name for path in ENGINES.iterdir() if path.is_dir()} - {"__pycache__", *SHARED}
    for path in ENGINES.rglob("*.py"):
        mine = path.relative_to(ENGINES).parts[0]
        if mine in engines:
            others = {name[2] for name in imports(path) if name[:2] == ("pysocksify", "engines") and len(name) > 2}
            assert not (others & engines) - {mine}, relative(path)


def test_only_the_command_line_prints() -> None:
    for path in modules():
        if path.name == "cli.py":
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], relative(path)
