"""Running pysocksify in the lab: command lines, how a program ended, and the names of the fixtures' types."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest

from tests.lab import surroundings
from tests.lab.accounts import Account
from tests.lab.children import Child, within
from tests.lab.clients import Place
from tests.lab.done import Done
from tests.lab.proxies import Server
from tests.lab.scripted import ScriptedProxy
from tests.lab.ways import NESTED, Way

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


def command(
    way: Way,
    argv: Sequence[str],
    *,
    via: str | Sequence[str] = (),
    options: Sequence[str] = (),
    namespace: str | None = None,
    starter: Sequence[str] = (),
) -> list[str]:
    """The command line of a program wrapped with the proxies `via`, in one of the ways, in a namespace.

    `starter` are words of a program that becomes pysocksify.
    """
    urls = [via] if isinstance(via, str) else via
    proxy = [word for url in urls if url for word in ("-p", url)]
    pysocksify = way.account.pysocksify
    wrapper = [*pysocksify, *way.options, *proxy, *options]
    if way.around == NESTED:
        wrapper = [*pysocksify, "-p", way.outer, *wrapper]
    words = way.account.command(*starter, *wrapper, *argv)
    if way.around in surroundings.NAMES:
        words = [sys.executable, surroundings.__file__, way.around, *words]
    return within(namespace, words)


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


class Run:
    """Runs programs in one way, from the closed client by default: `run(argv, via=url)`."""

    def __init__(self, way: Way, wrap: "Wrap", place: "PlaceOf") -> None:
        self.way = way
        self._wrap = wrap
        self._place = place

    def __call__(self, argv: Sequence[str], **how: Any) -> Done:
        """Wraps a program, as the fixture `wrap` does."""
        return self._wrap(self.way, argv, **how)

    def at(self, host: str) -> Place:
        """Where a client goes."""
        return self._place(self.way.account, host)

    def before(self, starter: Sequence[str], way: Way, argv: Sequence[str], **how: Any) -> Done:
        """Wraps a program in another way, by a pysocksify that a program of the lab's becomes."""
        return self._wrap(way, argv, starter=starter, **how)

    def python(self, program: str, *words: object, **how: Any) -> Done:
        """Wraps one of the lab's Python programs."""
        return self(self.at("").python(program, *map(str, words)), **how)

    def connects(self, *destinations: str, **how: Any) -> dict[str, Any]:
        """What connects.py saw of non-blocking connects to HOST:PORT, all at once."""
        done = self.python("connects.py", *destinations, **how)
        assert done.status == 0, done
        result: dict[str, Any] = json.loads(done.out)
        return result


Servers = Callable[[str], Server]
Scripted = Callable[..., ScriptedProxy]
Wrap = Callable[..., Done]
Background = Callable[..., Child]
Behaviour = Callable[..., Done]
PlaceOf = Callable[[Account, str], Place]
