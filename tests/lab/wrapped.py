"""Running pysocksify in the lab: command lines, how a program ended, and the names of the fixtures' types."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pytest

from tests.lab.accounts import Account
from tests.lab.children import Child, within
from tests.lab.clients import Place
from tests.lab.proxies import Server
from tests.lab.scripted import ScriptedProxy

CI = bool(os.environ.get("CI"))


def missing(what: str) -> None:
    """Skips the test for want of something; in CI that is a failure."""
    if CI:
        pytest.fail(f"{what}, and CI must have it")
    pytest.skip(what)


def need(tool: str) -> None:
    """Skips the test (fails it in CI) when a program isn't installed."""
    if tool and shutil.which(tool) is None and shutil.which(tool, path="/usr/sbin:/sbin") is None:
        missing(f"{tool} isn't installed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a wrapped program ended: its status (negative: a signal, as subprocess has it) and what it wrote."""

    status: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"status {self.status}\n--- out ---\n{self.out[-3000:]}\n--- err ---\n{self.err[-3000:]}"

    @property
    def values(self) -> dict[str, str]:
        """The `name=value` words of what it wrote."""
        return dict(word.split("=", 1) for word in self.out.split() if "=" in word)


def command(
    account: Account,
    argv: Sequence[str],
    *,
    via: str | Sequence[str] = (),
    options: Sequence[str] = (),
    namespace: str | None = None,
) -> list[str]:
    """The command line of a program wrapped with the proxies `via`, as an account, in a namespace."""
    urls = [via] if isinstance(via, str) else via
    proxy = [word for url in urls for word in ("-p", url)]
    return within(namespace, account.command(*account.pysocksify, *proxy, *options, *argv))


def finish(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    stdin: str = "",
    timeout: float = 40.0,
) -> Done:
    """Runs a command line to its end; kills its process group when it takes too long."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        cwd="/",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin.encode(), timeout)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"not done after {timeout} s: {argv}\n{Done(status=-9, out=text(out), err=text(err))}")
    return Done(status=process.returncode, out=text(out), err=text(err))


def text(data: bytes) -> str:
    """What a program wrote, whatever the bytes."""
    return data.decode(errors="replace")


Servers = Callable[[str], Server]
Scripted = Callable[..., ScriptedProxy]
Wrap = Callable[..., Done]
Background = Callable[..., Child]
PlaceOf = Callable[[Account, str], Place]
