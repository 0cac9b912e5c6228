"""The service's end: every engine's supervisor goes when the last program has gone, however early that is."""

from collections.abc import Callable
from typing import cast

from pysocksify import config
from pysocksify.engines.service import Service
from pysocksify.kernel import Kernel
from pysocksify.options import Options
from pysocksify.reactor import Reactor
from pysocksify.supervisor.calls import Signalled
from pysocksify.supervisor.processes import Link


class EndedLink:
    """Stands for a link whose target, and all its descendants, ended before the loop began."""

    target = 1
    target_ended = True
    front_gone = False

    def __init__(self) -> None:
        self.own_children: set[int] = set()
        self.on_no_descendants: list[Callable[[], object]] = []

    def line(self, text: str) -> None:
        raise AssertionError(text)

    def attach(self, reactor: Reactor) -> None:
        for callback in self.on_no_descendants:
            callback()


def test_a_target_that_ended_before_the_loop_began() -> None:
    link = EndedLink()
    settings = config.load(Options(proxies=("socks5://127.0.0.1:1080",), command=("true",)), {})
    service = Service(settings, Kernel(), cast(Link, link), Signalled.TOLD)
    link.on_no_descendants.append(service.ended)
    service.run()
    service.reactor.close()
