"""A SOCKS5 proxy that does what a test tells it: slow, refusing, cut short, talkative, silent.

It is written from RFC 1928 by hand and shares nothing with the package, so that a mistake in the package's tables
shows. It runs in one thread with an event loop of its own, inside a network namespace, and connects to where
its names say.
"""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from tests.lab import town

RESET = struct.pack("ii", 1, 0)
ROUNDS_OF_ACCEPT = 5  # of the loop, from accept(2) to where a connection's task has begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What to do differently from a good server.

    `delay`: seconds before each reply. `answers`: REP by destination host. `banner`: bytes sent in the same segment as
    the reply, nothing is connected to then. `cut`: only so many bytes of the last reply, then the end. `reset`: RST in
    place of the last reply. `silent`: the last reply never comes. `garbage`: these bytes in place of the first reply.
    """

    delay: float = 0.0
    answers: Mapping[str, int] = field(default_factory=dict)
    banner: bytes = b""
    cut: int | None = None
    reset: bool = False
    silent: bool = False
    garbage: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as it came in: destination, who asked, and when the reply was written (time.monotonic()), if it was."""

    host: str
    port: int
    peer: str
    answered: float | None


class ScriptedProxy:
    """The proxy, from construction to `close()`; `port` is where it listens, `asked` what it was asked."""

    def __init__(
        self, namespace: str | None, address: str, script: Script, names: Mapping[str, str] | None = None
    ) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self._names = dict(names or {})
        self._namespace = namespace
        self._socket = town.listener(namespace, address)
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="scripted proxy", daemon=True)
        self._thread.start()

    def url(self, host: str = town.PROXY) -> str:
        """How a client names it."""
        return f"socks5://{host}:{self.port}"

    def _run(self) -> None:
        if self._namespace is not None:
            with town.inside(self._namespace):
                self._loop.run_until_complete(self._serve())
        else:
            self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._accepted, sock=self._socket, backlog=1024)
        await self._stop.wait()
        # asyncio lets a connection leak that it accepts and then finds the server closed
        self._loop.remove_reader(self._socket.fileno())
        for _ in range(ROUNDS_OF_ACCEPT):
            await asyncio.sleep(0)
        server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            await closed(writer)
            self._tasks.discard(task)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, nmethods = await reader.readexactly(2)
        await reader.readexactly(nmethods)
        await asyncio.sleep(self.script.delay)
        if self.script.garbage:
            writer.write(self.script.garbage)
            await writer.drain()
            return
        writer.write(b"\x05\x00")
        host, port = await self._request(reader)
        peer: str = writer.get_extra_info("peername")[0]
        await asyncio.sleep(self.script.delay)
        rep = self.script.answers.get(host, 0)
        reply = b"\x05" + bytes([rep]) + b"\x00\x01\xc6\x33\x64\x01\x04\x38"  # from 198.51.100.1:1080
        if self.script.silent:
            self.asked.append(Asked(host=host, port=port, peer=peer, answered=None))
            await reader.read()
            return
        if self.script.reset:
            self.asked.append(Asked(host=host, port=port, peer=peer, answered=None))
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        upstream = None
        if not rep and self.script.cut is None and not self.script.banner:
            upstream = await asyncio.open_connection(self._names.get(host, host), port)
        self.asked.append(Asked(host=host, port=port, peer=peer, answered=time.monotonic()))
        writer.write(reply[: self.script.cut] + self.script.banner)
        await writer.drain()
        if upstream:
            try:
                await asyncio.gather(pump(reader, upstream[1]), pump(upstream[0], writer))
            finally:
                await closed(upstream[1])
        elif self.script.banner and not rep:
            await pump(reader, writer)

    async def _request(self, reader: asyncio.StreamReader) -> tuple[str, int]:
        _, _, _, atyp = await reader.readexactly(4)
        if atyp == 3:
            (length,) = await reader.readexactly(1)
            host = (await reader.readexactly(length)).decode("ascii")
        else:
            family, size = (socket.AF_INET, 4) if atyp == 1 else (socket.AF_INET6, 16)
            host = socket.inet_ntop(family, await reader.readexactly(size))
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        return host, port

    def close(self) -> None:
        """Ends every connection and the thread."""
        self._loop.call_soon_threadsafe(lambda: self._stop.set())
        self._thread.join(10)


async def closed(writer: asyncio.StreamWriter) -> None:
    """Closes a stream and waits until it is."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies to the end of file and passes that on."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()
