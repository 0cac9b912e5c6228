"""The options: the quick parser, and that click reads the same from the same table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify import cli
from pysocksify.options import OPTIONS, Options, parse

CASES: list[tuple[str, dict[str, object]]] = [
    ("ls", {}),
    ("-p a ls", {"proxies": ("a",)}),
    ("-pa ls", {"proxies": ("a",)}),
    ("--proxy a ls", {"proxies": ("a",)}),
    ("--proxy=a ls", {"proxies": ("a",)}),
    ("--proxy=a=b ls", {"proxies": ("a=b",)}),
    ("--proxy= ls", {"proxies": ("",)}),
    ("-p a -p b --proxy c ls", {"proxies": ("a", "b", "c")}),
    ("-p -v ls", {"proxies": ("-v",)}),
    ("-c f ls", {"config": "f"}),
    ("-f f ls", {"config": "f"}),
    ("--config=f ls", {"config": "f"}),
    ("-c f -c g ls", {"config": "g"}),
    ("--embedded ls", {"embedded": True}),
    ("--mode round_robin --length 2 ls", {"mode": "round_robin", "length": 2}),
    ("--engine seccomp --dns system ls", {"engine": "seccomp", "dns": "system"}),
    ("--engine=preload ls", {"engine": "preload"}),
    ("--engines ls", {"engines": True}),
    ("--direct 10.0.0.0/8 --direct=*.example ls", {"direct": ("10.0.0.0/8", "*.example")}),
    ("--timeout 2.5 ls", {"timeout": 2.5}),
    ("--timeout=3 ls", {"timeout": 3.0}),
    ("-v ls", {"verbose": 1}),
    ("-vv ls", {"verbose": 2}),
    ("-v --verbose -v ls", {"verbose": 3}),
    ("-q ls", {"quiet": True}),
    ("-qvpa ls", {"quiet": True, "verbose": 1, "proxies": ("a",)}),
    ("-vp a ls", {"verbose": 1, "proxies": ("a",)}),
    ("--log-file f ls", {"log_file": "f"}),
    ("-v -- ls", {"verbose": 1}),
]


def both(words: list[str]) -> Options | None:
    """What the quick parser makes of it, which must be what click makes of it."""
    quick = parse(words)
    assert cli._ask_click(words) == (quick if quick is not None else 125)
    return quick


@pytest.mark.parametrize(("line", "fields"), CASES)
def test_options(line: str, fields: dict[str, object]) -> None:
    assert both(line.split()) == Options(command=("ls",), **fields)  # type: ignore[arg-type]


COMMANDS = [
    (["ls", "-la", "-p", "x"], ("ls", "-la", "-p", "x")),
    (["ls", "--help"], ("ls", "--help")),
    (["ls", "--"], ("ls", "--")),
    (["ls", "--", "-v"], ("ls", "--", "-v")),
    (["--", "ls", "--version"], ("ls", "--version")),
    (["--", "-v"], ("-v",)),
    (["--", "--", "x"], ("--", "x")),
    (["-v", "sh", "-c", "exit 7", ""], ("sh", "-c", "exit 7", "")),
    (["-", "x"], ("-", "x")),
    ([""], ("",)),
    (["ls", "\udcff"], ("ls", "\udcff")),
]


@pytest.mark.parametrize(("words", "command"), COMMANDS)
def test_everything_after_the_program_is_its_own(words: list[str], command: tuple[str, ...]) -> None:
    options = both(words)
    assert options is not None
    assert options.command == command


MISTAKES = [
    "", "--", "-v", "-p", "--proxy", "--proxy=a", "-p a", "--bogus ls", "-x ls", "-vx ls", "--embedded=1 ls",
    "--mode all ls", "--engine netns ls", "--timeout soon ls", "--timeout ls", "--length 1.5 ls", "--prox a ls",
    "-v=1 ls",
]  # fmt: skip


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_left_to_click(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert both(line.split()) is None
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("pysocksify: ")
    assert said.err.count("\n") == 1
    assert "--help" in said.err


WORDS = [name for option in OPTIONS for name in option.names] + [
    "--", "-", "ls", "a", "2", "0.5", "strict", "fake", "auto", "-vq", "-pa", "-vpx", "--timeout=4", "--mode=random",
    "--quiet=1", "--nothing", "",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=7))
def test_any_line_is_read_as_click_does(words: list[str]) -> None:
    both(words)


def test_engines_needs_no_program() -> None:
    for words in (["--engines"], ["--engines", "--"]):
        assert both(words) == Options(command=(), engines=True)


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--version"], ["-v", "--help", "ls"], ["-p", "x", "--version"]])
def test_help_is_left_to_click(words: list[str]) -> None:
    assert parse(words) is None


def test_the_table_fits_options() -> None:
    names = [name for option in OPTIONS for name in option.names]
    assert len(names) == len(set(names))
    assert {option.field for option in OPTIONS} | {"command"} == set(Options.__slots__)
    assert all(option.help.endswith((".", ")")) for option in OPTIONS)
