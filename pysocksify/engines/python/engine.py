"""The engine itself: what it does in front, target and supervisor (`supervisor.processes.Engine`).

The target's environment names the folder of our `sitecustomize` (PYTHONPATH) and the supervisor's socket, which
listens before the target is forked.
"""

import os

from pysocksify.config import Config
from pysocksify.engines.handover.place import Place
from pysocksify.engines.python import fit
from pysocksify.kernel import Kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pysocksify.supervisor.processes import Link

SEARCH_PATH = "PYTHONPATH"


class PythonEngine:
    """Catches inside Python."""

    def __init__(self, config: Config, kernel: Kernel) -> None:
        self._config = config
        self._kernel = kernel

    def before_fork(self) -> None:
        """Make the place where patched Pythons hand over, and a way for what the person is to be told."""
        self._place = Place()
        self._notice, self._notice_to = os.pipe()

    def in_front(self) -> None:
        """Let go of the socket: it's to end with the supervisor."""
        self._place.close()
        os.close(self._notice)
        os.close(self._notice_to)

    def in_target(self, command: list[str]) -> None:
        """Say in the environment where our `sitecustomize` is and whom it asks."""
        os.write(self._notice_to, fit.notice(command).encode("utf-8", "surrogateescape"))
        entries = [entry for entry in os.environ.get(SEARCH_PATH, "").split(os.pathsep) if entry]
        os.environ[SEARCH_PATH] = os.pathsep.join([fit.FOLDER, *(entry for entry in entries if entry != fit.FOLDER)])
        self._place.tell()

    def in_supervisor(self, link: "Link") -> None:
        """Serve until no descendant of the target is left and all relays are through."""
        from pysocksify.engines.python.serving import serve  # here: the target starts while this is imported

        os.close(self._notice_to)
        serve(self._config, self._kernel, self._place.listener, self._place.token, link, self._notice)
