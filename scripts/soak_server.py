"""The server that `scripts/soak` measures; it answers each line `measure` or `trace` on its input with one of JSON."""

import collections
import gc
import json
import os
import resource
import sys
import tracemalloc
from collections.abc import Iterator

from pysocksify.address import Address
from pysocksify.reactor import READ, Reactor
from pysocksify.report import QUIET, Report
from pysocksify.server import Server, ServerSettings

COUNTED = ("Session", "Relay", "Flow", "Connect", "ConnectRace", "Bind", "Association", "Task", "Conversation")
TRACED = 25  # places


def measure(server: Server, reactor: Reactor) -> dict[str, object]:
    """What the process holds: bytes of memory, descriptors by kind, and objects that belong to clients."""
    gc.collect()
    kinds = collections.Counter(_descriptors())
    objects = collections.Counter(type(thing).__name__ for thing in gc.get_objects())
    live = sum(timer.callback is not None for _, _, timer in reactor._timers)
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return {
        "rss": pages * resource.getpagesize(),
        "sessions": server.session_count,
        "descriptors": sum(kinds.values()),
        "sockets": kinds["socket"],
        "pipes": kinds["pipe"],
        "timers": live,
        "timers_cancelled": len(reactor._timers) - live,
        **{name: objects[name] for name in COUNTED},
    }


def _descriptors() -> Iterator[str]:
    """What each of them is: socket, pipe, anon_inode, or a path."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{fd}").partition(":")[0]
        except FileNotFoundError:  # the directory's own
            continue


def traced() -> dict[str, object]:
    """The bytes and blocks of the places that have allocated the most, since the last line `trace` began it."""
    if not tracemalloc.is_tracing():
        tracemalloc.start(1)
        return {}
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)])
    found = snapshot.statistics("lineno")
    return {
        "total": sum(each.size for each in found),
        "places": [
            (os.path.relpath(each.traceback[0].filename), each.traceback[0].lineno, each.size, each.count)
            for each in found[:TRACED]
        ],
    }


def main() -> None:
    """Serve until standard input ends."""
    reactor = Reactor()
    server = Server(reactor, ServerSettings(), Report(lambda line: print(line, file=sys.stderr), QUIET))

    def answer(events: int) -> None:
        line = os.read(0, 100).decode("ascii").strip()
        if not line:
            reactor.stop()
            return
        print(json.dumps(traced() if line == "trace" else measure(server, reactor)), flush=True)

    reactor.watch(0, READ, answer)
    print(server.listen(Address("127.0.0.1", 0)).port, flush=True)
    reactor.run()
    server.close()


if __name__ == "__main__":
    main()
