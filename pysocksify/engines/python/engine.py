"""The engine itself: what it does in front, target and supervisor (`supervisor.processes.Engine`).

The target's environment names the folder of our `sitecustomize` (PYTHONPATH) and the supervisor's socket, which
listens before the target is forked.
"""

import _socket
import os

from pysocksify.config import Config
from pysocksify.engines.handover import wire
from pysocksify.engines.python import fit
from pysocksify.kernel import Kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pysocksify.supervisor.processes import Link

BACKLOG = 4096
SEARCH_PATH = "PYTHONPATH"


class PythonEngine:
    """Catches inside Python."""

    def __init__(self, config: Config, kernel: Kernel) -> None:
        self._config = config
        self._kernel = kernel

    def before_fork(self) -> None:
        """Listen, on a name that the kernel gives (unix(7), autobind), and roll the token."""
        self._token = os.urandom(wire.TOKEN_SIZE)
        self._listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_NONBLOCK)
        self._listener.bind("")
        self._listener.listen(BACKLOG)
        self._notice, self._notice_to = os.pipe()

    def in_front(self) -> None:
        """Let go of the socket: it's to end with the supervisor."""
        self._listener.close()
        os.close(self._notice)
        os.close(self._notice_to)

    def in_target(self, command: list[str]) -> None:
        """Say in the environment where our `sitecustomize` is and whom it asks."""
        os.write(self._notice_to, fit.notice(command).encode("utf-8", "surrogateescape"))
        name = self._listener.getsockname()
        entries = [entry for entry in os.environ.get(SEARCH_PATH, "").split(os.pathsep) if entry]
        os.environ[SEARCH_PATH] = os.pathsep.join([fit.FOLDER, *(entry for entry in entries if entry != fit.FOLDER)])
        os.environ[wire.VARIABLE] = wire.variable(name[1:], self._token)

    def in_supervisor(self, link: "Link") -> None:
        """Serve until no descendant of the target is left and all relays are through."""
        from pysocksify.engines.python.serving import serve  # here: the target starts while this is imported

        os.close(self._notice_to)
        serve(self._config, self._kernel, self._listener, self._token, link, self._notice)
