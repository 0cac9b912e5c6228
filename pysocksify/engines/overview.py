"""What --engines shows: which engines work here and for a program, what each can't promise, what the kernel has."""

import os
import textwrap

from pysocksify.engines import choice, features
from pysocksify.engines.table import ENGINES, HOLE, REFUSED, SHOWS, WHERE, About
from pysocksify.errors import PysocksifyError
from pysocksify.kernel import FEATURES, VARIABLE, Kernel
from pysocksify.program import find_program

WIDTH = 100
LABELS = {REFUSED: "refused", SHOWS: "shows", HOLE: "unseen"}


def overview(kernel: Kernel, command: list[str]) -> str:
    """All of it, as lines. `command` is the program with its arguments, or empty."""
    system = os.uname()
    missing = bool(command) and find_program(command[0]) is None
    who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    parts = [
        f"{system.sysname} {system.release}, {system.machine}, {who}",
        _engines(kernel, [] if missing else command),
    ]
    if missing:
        parts.append(f"There is no program {command[0]}.")
    parts += [_about(engine) for engine in ENGINES]
    parts.append(_features(kernel))
    return "\n\n".join(parts)


def _engines(kernel: Kernel, command: list[str]) -> str:
    """The table of engines, with the one that `auto` takes and the reasons against others."""
    rows = [("engine", "here", command[0] if command else "", "")]
    for name in choice.NAMES:
        absent = choice.availability(name, kernel)
        refused = choice.refusal(name, command) if command and not absent else ""
        covers = "" if not command else "-" if absent else _yes(refused)
        rows.append(
            (name, _yes(absent), covers, absent or refused or (choice.reservation(name, command) if command else ""))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for row in rows:
        start = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False) if width)
        lines += _wrapped(f"{start}  {row[3]}", len(start) + 2)
    return "\n".join([*lines, "", _auto(kernel, command)])


def _auto(kernel: Kernel, command: list[str]) -> str:
    """The line about what `auto` takes."""
    try:
        if command:
            return f"auto takes {choice.decide(choice.AUTO, kernel, command)[0]} for {command[0]}."
        works = [name for name in choice.NAMES if not choice.availability(name, kernel)]
        return f"auto takes the first that works for the program: {', '.join(works) or 'none does'}."
    except PysocksifyError as error:
        return str(error)


def _about(about: About) -> str:
    """What an engine is and what it can't promise."""
    lines = [f"{about.name}: {about.catches}"]
    for label, words in (("reaches", about.reaches), ("needs", about.needs)):
        lines += _wrapped(f"  {label + ':':9} {words}", 12)
    for where in ("", *WHERE):
        gaps = about.in_place(where)
        if where and gaps:
            lines.append(f"  {WHERE[where]}:")
        start = "    " if where else "  "
        for gap in gaps:
            lines += _wrapped(f"{start}{LABELS[gap.outcome] + ':':9} {gap.words}", len(start) + 10)
    return "\n".join(lines)


def _features(kernel: Kernel) -> str:
    """Which of the kernel's features are there."""
    lines = ["What this kernel has (nothing of it is needed):"]
    missing = features.probe()
    for name in FEATURES:
        why = missing[name] if getattr(kernel, name) else VARIABLE
        lines += _wrapped(f"  {name:18} {_yes(why):4} {features.WORDS[name]}{f' [{why}]' if why else ''}", 26)
    return "\n".join(lines)


def _yes(why_not: str) -> str:
    return "no" if why_not else "yes"


def _wrapped(text: str, indentation: int) -> list[str]:
    return textwrap.wrap(text.rstrip(), WIDTH, subsequent_indent=" " * indentation, break_on_hyphens=False)
