"""What every engine does in the supervisor process: the loop with the supervisor in it, until the last byte.

Imported while the target starts.
"""

import gc
import os

from pysocksify.address import Address
from pysocksify.config import Config
from pysocksify.kernel import Kernel
from pysocksify.reactor import Reactor
from pysocksify.report import QUIET, Report
from pysocksify.supervisor.calls import Signalled
from pysocksify.supervisor.core import Supervisor
from pysocksify.supervisor.processes import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pysocksify.server import Server

DRAIN_LIMIT = 60.0
"""Seconds that relays may go on after the last program ended; an orphaned connection gets as much (tcp(7))."""
DRAIN_LOOK = 0.05


class Service:
    """A supervisor at work for one target. An engine adds watches to `reactor` and calls `ended` when it's time."""

    def __init__(self, config: Config, kernel: Kernel, link: Link, signalled: Signalled) -> None:
        gc.freeze()  # what is imported stays; looking through it again and again costs a tenth of a dial
        gc.set_threshold(20_000, 20, 20)
        self.reactor = Reactor()
        self.report = Report(link.line, config.verbosity, dated=config.log_file is not None)
        self._link = link
        self._server: Server | None = None
        config = self._with_server(config)
        self.supervisor = Supervisor(
            self.reactor, config, self.report, kernel, link.target, link.own_children, signalled=signalled
        )
        self._end = 0.0

    def run(self) -> None:
        """Serve until `ended` was called and what the programs wrote is delivered."""
        self._link.attach(self.reactor)
        self.reactor.run()

    def ended(self) -> None:
        """No program is left that the engine could catch."""
        self._end = self.reactor.now() + DRAIN_LIMIT
        self.reactor.call_soon(self._drain)  # from within attach(), a stop would come before the run

    def _drain(self) -> None:
        link = self._link
        busy = self.supervisor.busy or (self._server is not None and self._server.session_count > 0)
        if (busy and self.reactor.now() < self._end) or not (link.target_ended or link.front_gone):
            self.reactor.call_at(self.reactor.now() + DRAIN_LOOK, self._drain)
        else:
            self.reactor.stop()

    def _with_server(self, config: Config) -> Config:
        """`--embedded`: start the bundled server in this loop, on a free loopback port."""
        if not config.embedded:
            return config
        from pysocksify.server import Server, ServerSettings, Users

        # nobody else on this machine is to go out through it
        username, password = (os.urandom(16).hex().encode() for _ in range(2))
        settings = ServerSettings(users=Users.plain({username: password}))
        self._server = Server(self.reactor, settings, Report(_drop, QUIET))
        return config.with_embedded(self._server.listen(Address("127.0.0.1", 0)), username, password)


def _drop(line: str) -> None:
    """The embedded server's own lines: what it refuses, the supervisor says."""
