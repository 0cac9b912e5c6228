"""pysocksify as a command: its arguments and what it says of wrong ones. Needs no network and no root."""

from collections.abc import Sequence

import pytest

from pysocksify import __version__
from tests.lab.done import Done
from tests.lab.ways import Way
from tests.lab.wrapped import command, finish

VIA = "socks5://127.0.0.1:9"  # nothing connects in these tests


def run(user: Way, argv: Sequence[str], *, via: str = VIA) -> Done:
    return finish(command(user, argv, via=via), environment=user.environment)


def test_arguments_after_the_program_are_its_own(user: Way) -> None:
    done = run(user, ["echo", "-p", "--help", "-c", "x", "--", "-v"])
    assert done.out == "-p --help -c x -- -v\n"


def test_without_a_proxy_nothing_runs(user: Way) -> None:
    done = run(user, ["echo", "ran"], via="")
    assert done.status == 125, done
    assert done.out == ""
    assert "-p" in done.err


@pytest.mark.parametrize(
    "url", ["socks5://host:notaport", "gopher://h:1", "socks4://user:s3cret@h", "socks5://u:" + "s3cret" * 50 + "@h"]
)
def test_a_bad_url_is_one_line(url: str, user: Way) -> None:
    done = run(user, ["echo", "ran"], via=url)
    assert (done.status, done.out) == (125, "")
    assert len(done.err.splitlines()) == 1, done
    assert "s3cret" not in done.err


def test_version_and_help(user: Way) -> None:
    version = run(user, ["--version"])
    assert version.status == 0
    assert __version__ in version.out
    shown = run(user, ["--help"])
    assert shown.status == 0
    for option in ("--proxy", "--config", "--embedded", "--direct", "--dns", "--timeout", "--log-file", "--version"):
        assert option in shown.out
