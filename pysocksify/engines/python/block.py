"""`with pysocksify.socksify(…)`: this program's own connections through a chain, while the block lasts.

Everything that goes through Python's `socket` module is caught, in all threads: socket, ssl, urllib, requests, httpx,
aiohttp, asyncio, trio. Names are not looked up but given to the last proxy. Not caught are C libraries with sockets of
their own (libpq, libcurl, gRPC, Qt), ctypes, functions of the `socket` module that were imported by name before
(`from socket import gethostbyname`), and other programs that are started; children by fork(2) are. UDP is refused where
it would leave this machine, raw sockets always.
"""

import os
import select
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pysocksify.config import Config
from pysocksify.config.arguments import configuration
from pysocksify.engines.python import patching, uvloops

if TYPE_CHECKING:
    from pysocksify.engines.python.portable import Portable
    from pysocksify.engines.python.service import Service

_lock = threading.RLock()
_open: list["socksify"] = []


class socksify:
    """Send this program's connections through a chain of proxies while the block lasts.

    The arguments are those of `configuration()`: proxies' URLs in order, or `config`; `mode`, `length`, `direct`,
    `rules`, `dns`, `timeout`. Entering raises ConfigError for what can't be used, and UvloopRefused (an ImportError) in
    a running uvloop.

    Connections succeed and fail as they would without a proxy, with the errno that says why; the reasons are logged by
    the logger "pysocksify" (warnings), each connection too (info). Blocks may be nested: the proxies of the inner one
    are reached through the outer one's. When a block ends every replaced name is the original object again; connections
    that were made in it live on. A block can be entered again, but not twice at once.

    On Linux a thread with the supervisor's loop is started by the first use and ends after the block. Elsewhere
    blocking connections are dialled in the calling thread, and non-blocking ones succeed early: a dial that fails
    resets them.
    """

    def __init__(
        self,
        *hops: str,
        config: "Config | str | os.PathLike[str] | None" = None,
        mode: str | None = None,
        length: int | None = None,
        direct: Sequence[str] = (),
        rules: Sequence[Mapping[str, Any]] = (),
        dns: str | None = None,
        timeout: float | None = None,
    ) -> None:
        self._config = configuration(
            *hops, config=config, mode=mode, length=length, direct=direct, rules=rules, dns=dns, timeout=timeout
        )
        self._answering: Service | Portable | None = None

    def __enter__(self) -> "socksify":
        with _lock:
            if self._answering is not None:
                raise RuntimeError("this block is entered already; make another one")
            if not _open:
                uvloops.refuse()
            answering = _answering(self._config)
            patching.add(answering.layer)
            self._answering = answering
            _open.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            answering, self._answering = self._answering, None
            assert answering is not None
            _open.remove(self)
            patching.remove(answering.layer)
            if not _open:
                uvloops.allow()
        answering.end()


def _answering(config: Config) -> "Service | Portable":
    if held_connections_work():
        from pysocksify.engines.python.service import started

        return started(config)
    from pysocksify.engines.python.portable import Portable

    return Portable(config)


def held_connections_work() -> bool:
    """Whether this is a Linux on which the supervisor runs: it shows by what is there."""
    there = hasattr(select, "epoll") and hasattr(os, "splice") and hasattr(os, "eventfd")
    if not there or sys.platform != "linux" or not hasattr(socket, "SOCK_SEQPACKET"):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.bind(b"")
    except OSError:
        return False
    return os.path.isdir("/proc/self/fd")
