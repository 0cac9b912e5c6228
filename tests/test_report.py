"""What the person is told: which lines at which verbosity, problems once."""

import re
import time

import pytest

from pysocksify import report as module
from pysocksify.report import DEBUG, NORMAL, QUIET, VERBOSE, Report


def lines(verbosity: int) -> list[str]:
    """All kinds of lines, said twice."""
    said: list[str] = []
    report = Report(said.append, verbosity)
    for _ in range(2):
        report.problem("key", "something is wrong")
        report.connection("a connection")
        report.debug("a detail")
    return [re.sub(r"^\d\d:\d\d:\d\d ", "TIME ", line) for line in said]


PROBLEM, CONNECTION, DETAIL = "pysocksify: something is wrong", "TIME a connection", "TIME a detail"


@pytest.mark.parametrize(
    ("verbosity", "said"),
    [
        (QUIET, []),
        (NORMAL, [PROBLEM]),
        (VERBOSE, [PROBLEM, CONNECTION, CONNECTION]),
        (DEBUG, [PROBLEM, CONNECTION, DETAIL, CONNECTION, DETAIL]),
    ],
)
def test_what_is_said(verbosity: int, said: list[str]) -> None:
    assert lines(verbosity) == said


def test_whose_problem_it_is() -> None:
    said: list[str] = []
    Report(said.append, name="pysocksify-server").problem("key", "something is wrong")
    assert said == ["pysocksify-server: something is wrong"]


def test_a_problem_is_said_once_for_each_key() -> None:
    said: list[str] = []
    report = Report(said.append)
    report.problem("a", "first")
    report.problem("b", "first")
    report.problem("a", "second")
    assert said == ["pysocksify: first", "pysocksify: first"]


def test_the_oldest_cause_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there were, what goes wrong now is said."""
    monkeypatch.setattr(module, "CAUSES_REMEMBERED", 3)
    said: list[str] = []
    report = Report(said.append)
    for number in (0, 1, 2, 3, 1, 2, 3, 0):
        report.problem(str(number), str(number))
    assert said == [f"pysocksify: {number}" for number in (0, 1, 2, 3, 0)]


def test_a_file_s_lines_have_the_date() -> None:
    said: list[str] = []
    report = Report(said.append, VERBOSE, dated=True)
    report.problem("key", "it went wrong")
    report.connection("it went well")
    for line, text in zip(said, ("it went wrong", "it went well"), strict=True):
        day, clock, rest = line.split(" ", 2)
        time.strptime(f"{day} {clock}", "%Y-%m-%d %H:%M:%S")
        assert rest == text
