"""The data about engines: complete, and in line with what can be asked for."""

from pathlib import Path

import pytest

from pysocksify.engines.table import BY_NAME, ENGINES, HOLE, REFUSED, SHOWS, WHERE, About
from pysocksify.options import ENGINES as WORDS


def test_what_can_be_asked_for_is_auto_and_these_in_its_order() -> None:
    assert ("auto", *(engine.name for engine in ENGINES)) == WORDS
    assert BY_NAME["ptrace"].name == "ptrace"


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_an_engine(engine: About) -> None:
    keys = [gap.key for gap in engine.gaps]
    assert len(keys) == len(set(keys))
    assert all(gap.words and not gap.words.endswith(".") for gap in engine.gaps)
    assert {gap.outcome for gap in engine.gaps} <= {REFUSED, SHOWS, HOLE}
    assert {gap for where in ("", *WHERE) for gap in engine.in_place(where)} == set(engine.gaps)
    assert all((engine.catches, engine.reaches, engine.needs))
    assert [gap for gap in engine.gaps if gap.outcome == HOLE] == list(engine.holes)


def test_the_engines_that_catch_in_the_kernel_have_no_holes_where_namespaces_can_be_made() -> None:
    assert not BY_NAME["ptrace"].holes
    assert {(gap.key, gap.where) for gap in BY_NAME["seccomp"].holes} == {("udp-passed", "enclosure")}


def test_the_readme_says_all_of_it() -> None:
    readme = Path(__file__).parents[2] / "README.md"
    told = " ".join(readme.read_text(encoding="utf-8").split())
    for engine in ENGINES:
        assert f"| `{engine.name}` | {engine.catches} | {engine.reaches} | {engine.needs} |" in told
        assert [gap.key for gap in engine.gaps if gap.words not in told] == []
    assert [place for place in WHERE.values() if place.lower() not in told.lower()] == []
