"""Where there is no Linux: the library works with all that is Linux's taken away, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.python import servers
from tests.lab.scripted import ScriptedProxy

ELSEWHERE = Path(__file__).with_name("elsewhere.py")


def elsewhere(case: str, *words: object) -> str:
    """Runs one case of `elsewhere.py`, and returns what it wrote."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", str(ELSEWHERE), case, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_connection_of_its_own(echo: servers.Echo, url: str) -> None:
    assert elsewhere("create_connection", url, echo.port) == "hello\n"


def test_streams(echo: servers.Echo, url: str) -> None:
    assert elsewhere("open_connection", url, echo.port) == "hello\n"


@pytest.mark.parametrize("limit", ["none", "5"])
def test_a_blocking_connection_is_true(limit: str, echo: servers.Echo, url: str, proxy: ScriptedProxy) -> None:
    seen = elsewhere("blocking", url, echo.port, limit).splitlines()
    assert seen == ["hello", servers.ECHO, "ConnectionRefusedError", "OSError EHOSTUNREACH", "PermissionError"]
    assert proxy.asked[0].host == servers.ECHO


def test_asyncio(echo: servers.Echo, url: str) -> None:
    assert elsewhere("with_asyncio", url, echo.port) == "hello hello hello\n"


def test_a_failed_dial_resets_a_non_blocking_connection(echo: servers.Echo, url: str) -> None:
    assert elsewhere("early", url, echo.port) == "reset\n"


def test_half_close_and_undo(echo: servers.Echo, url: str) -> None:
    assert elsewhere("half_close", url, echo.port) == "all 3000000\nas before\nlives on\n"


def test_what_is_refused(echo: servers.Echo, url: str) -> None:
    assert elsewhere("refused", url, echo.port) == "EPERM EPERM sent\n"


def test_direct_and_denied(echo: servers.Echo, url: str, proxy: ScriptedProxy) -> None:
    assert elsewhere("rules", url, echo.port) == "direct EACCES\n"
    assert proxy.asked == []
