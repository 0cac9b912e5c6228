"""The library: connections through a chain, one by one, without a thread or a service. `pysocksify` shows it.

Both dial by the one core in `dial`; what differs is only who waits: the calling thread, or asyncio's running loop.
Names go to the last hop. For trio and anyio, dial in one of their threads and wrap the socket::

    sock = await trio.to_thread.run_sync(partial(create_connection, (host, port), chain=chain))
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
"""

import errno
import random
import socket
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pysocksify.address import Address
from pysocksify.config import Config
from pysocksify.config.arguments import configuration
from pysocksify.dial.failures import ProxyError, failure, failure_of
from pysocksify.dial.hops import MOST_TIME, dial
from pysocksify.dial.runners import run, run_in_loop
from pysocksify.dial.transport import OwnSocket, perform
from pysocksify.errors import Cause, ConfigError, DialError
from pysocksify.reactor import Steps
from pysocksify.route.chain import Chain, ChainState

if TYPE_CHECKING:
    import asyncio
    import ssl as tls

_GLOBAL_TIMEOUT: Any = getattr(socket, "_GLOBAL_DEFAULT_TIMEOUT", object())  # as socket.create_connection() has it


def create_connection(
    address: tuple[str, int],
    timeout: float | None = _GLOBAL_TIMEOUT,
    source_address: tuple[str, int] | None = None,
    *,
    chain: "Sequence[str] | Config | None" = None,
) -> socket.socket:
    """Connect to (host, port) through a chain of proxies, and return the socket: an ordinary one.

    `chain` are proxies' URLs in order, or a Config (`configuration()`), whose rules then count; None: what the command
    line would find in the environment and in files. `timeout` limits the whole and stays the socket's, as with
    socket.create_connection(); `source_address` is this machine's address and port to connect to the first hop from.

    Raises ProxyError, an OSError: `errno` is the destination's, or says what failed on the way. ConfigError for a
    chain that can't be used.
    """
    limit = socket.getdefaulttimeout() if timeout is _GLOBAL_TIMEOUT else timeout
    if limit is not None and limit <= 0:
        raise ValueError("a dial takes time: timeout must be more than 0, or None")
    destination = _destination(*address)
    transport = OwnSocket(source_address or ("", 0))
    try:
        try:
            run(_steps(destination, chain, transport), None if limit is None else time.monotonic() + limit)
        except (DialError, OSError) as error:
            raise _failure(error, destination) from error
    except BaseException:
        transport.close()
        raise
    transport.sock.settimeout(limit)
    return transport.sock


async def open_connection(
    host: str,
    port: int,
    *,
    chain: "Sequence[str] | Config | None" = None,
    ssl: "tls.SSLContext | bool | None" = None,
    server_hostname: str | None = None,
    **options: Any,
) -> "tuple[asyncio.StreamReader, asyncio.StreamWriter]":
    """asyncio.open_connection() through a chain: the stream's reader and writer, once the destination answers.

    `chain` as in create_connection(). With `ssl` the destination's certificate is checked for `host`, or for
    `server_hostname`. Other options go to asyncio.open_connection(). Cancelling gives the dial up. Works in any loop
    that has add_reader(), uvloop's too; elsewhere (Windows' default loop) the dial takes a thread.
    """
    import asyncio

    destination = _destination(host, port)
    transport = OwnSocket()
    try:
        try:
            steps = _steps(destination, chain, transport)
            if hasattr(asyncio.get_running_loop(), "_proactor"):  # it has no add_reader()
                await asyncio.to_thread(run, steps)
            else:
                await run_in_loop(steps)
        except (DialError, OSError) as error:
            raise _failure(error, destination) from error
        name = server_hostname or (host if ssl else None)
        return await asyncio.open_connection(sock=transport.sock, ssl=ssl, server_hostname=name, **options)
    except BaseException:
        transport.close()
        raise


def _destination(host: str, port: int) -> Address:
    """OSError: this can be neither an address nor a name."""
    try:
        return Address.of(host, port)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None


def _steps(destination: Address, chain: "Sequence[str] | Config | None", transport: OwnSocket) -> Steps[object]:
    """How to connect `transport` to `destination`. DialError when a rule denies it."""
    if isinstance(chain, str):
        raise ConfigError("chain", "", "must be a list of proxies' URLs, not one string")
    if chain is None or isinstance(chain, Config):
        config = configuration(config=chain)
        route = config.rules.route(destination)
        if route.kind == "deny":
            raise DialError(None, "connect", destination, Cause.NOT_ALLOWED, f"denied by rule {route.rule}")
        if route.kind == "direct":
            return transport.open(destination, time.monotonic() + MOST_TIME)
        named = {each.name: each for each in config.chains}
        return _through(named[str(route.chain)], destination, transport)
    if not chain:
        raise ConfigError("chain", "", "a chain needs at least one proxy")
    return _through(configuration(*chain).chains[0], destination, transport)


def _through(chain: Chain, destination: Address, transport: OwnSocket) -> Steps[object]:
    return perform(dial(_state(chain), destination, time.monotonic), transport, time.monotonic)


@lru_cache(64)
def _state(chain: Chain) -> ChainState:
    """What is remembered of a chain: whose turn it is, and which hops didn't answer."""
    return ChainState(chain, random.Random())


def _failure(error: "DialError | OSError", destination: Address) -> ProxyError:
    if isinstance(error, DialError):
        return failure_of(error)
    if isinstance(error, TimeoutError):
        text = f"{destination}: no connection in time"
        return failure(errno.ETIMEDOUT, text, None, "connect", str(destination))
    text = f"{destination}: direct: {error.strerror or error}"
    return failure(error.errno or errno.ECONNREFUSED, text, None, "connect", str(destination))
