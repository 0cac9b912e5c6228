"""The engine itself: what it does in front, target and supervisor (`supervisor.processes.Engine`).

The target's environment names the shim and the supervisor's socket. The socket listens before the target is forked, so
its first call finds it, however busy the supervisor still is with its imports.
"""

import _socket
import errno
import os
import select

from pysocksify import program
from pysocksify.config import Config
from pysocksify.engines.handover import wire
from pysocksify.engines.handover.place import Place
from pysocksify.engines.preload import fit
from pysocksify.kernel import Kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pysocksify.supervisor.processes import Link

SHORT_RUN = 5  # milliseconds; /bin/true takes one


class PreloadEngine:
    """Catches by LD_PRELOAD."""

    def __init__(self, config: Config, kernel: Kernel) -> None:
        self._config = config
        self._kernel = kernel

    def before_fork(self) -> None:
        """Make the place where the shim hands over."""
        self._place = Place()

    def in_front(self) -> None:
        """Let go of the socket: it's to end with the supervisor."""
        self._place.close()

    def in_target(self, command: list[str]) -> None:
        """Say in the environment where the shim is and whom it asks. OSError: it can't be loaded here."""
        path = program.find_program(command[0])
        own = fit.object_for(program.kind(path).loader if path else "")
        if not os.access(own, os.R_OK):
            raise OSError(errno.EACCES, f"the shim {own} can't be read by this user")
        others = [entry for entry in os.environ.get(wire.PRELOAD, "").replace(" ", ":").split(":") if entry]
        os.environ[wire.PRELOAD] = ":".join([own, *(entry for entry in others if wire.SHIM not in entry)])
        self._place.tell()
        self._place.close()

    def in_supervisor(self, link: "Link") -> None:
        """Serve until no descendant of the target is left and all relays are through."""
        if _ends_at_once(self._place.listener, link):
            return
        from pysocksify.engines.preload.serving import serve  # here: the target starts while this is imported

        serve(self._config, self._kernel, self._place.listener, self._place.token, link)


def _ends_at_once(listener: _socket.socket, link: "Link") -> bool:
    """Whether all ended before the first request: then nothing needs to be imported for it."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    poller.register(link.child_events, select.POLLIN)
    for fd, _events in poller.poll(SHORT_RUN):
        if fd == listener.fileno():
            return False
    link.reap()
    return link.target_ended and not link.descendants_left
