"""The data about engines: complete, and in line with what can be asked for."""

import pytest

from pysocksify.engines.table import BY_NAME, ENGINES, HOLE, REFUSED, About
from pysocksify.options import ENGINES as WORDS


def test_what_can_be_asked_for_is_auto_and_these_in_its_order() -> None:
    assert ("auto", *(engine.name for engine in ENGINES)) == WORDS
    assert BY_NAME["ptrace"].name == "ptrace"


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_an_engine(engine: About) -> None:
    keys = [gap.key for gap in engine.gaps]
    assert len(keys) == len(set(keys))
    assert all(gap.words and not gap.words.endswith(".") and gap.outcome in (REFUSED, HOLE) for gap in engine.gaps)
    assert all((engine.catches, engine.reaches, engine.needs))
    assert [gap for gap in engine.gaps if gap.outcome == HOLE] == list(engine.holes)


def test_the_engines_that_catch_in_the_kernel_have_no_holes() -> None:
    assert not BY_NAME["seccomp"].holes
    assert not BY_NAME["ptrace"].holes
