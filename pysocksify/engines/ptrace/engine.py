"""The engine itself: what it does in front, target and supervisor (`supervisor.processes.Engine`).

The supervisor seizes the target before its exec: it's the target's parent, so Yama's ptrace_scope=1 lets it. Then the
target installs the filter and says whether it could; without one, it's made to stop at each call from there on.
"""

import _socket
import os
import select

from pysocksify.config import Config
from pysocksify.engines.ptrace import fit, installation, tracer
from pysocksify.engines.syscalls import abi
from pysocksify.errors import PysocksifyError
from pysocksify.kernel import Kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pysocksify.supervisor.processes import Link

GO, REFUSED, INSTALLED, PLAIN = b"g", b"r", b"i", b"p"
SHORT_RUN = 5  # milliseconds; /bin/true takes one


class PtraceEngine:
    """Catches by stopping the threads that make the calls."""

    def __init__(self, config: Config, kernel: Kernel) -> None:
        self._config = config
        self._kernel = kernel
        machine = os.uname().machine
        if machine not in abi.ARCHITECTURES:
            raise PysocksifyError(f"the ptrace engine doesn't know the calls of {machine}")
        self._arch = abi.ARCHITECTURES[machine]

    def before_fork(self) -> None:
        """Make the way by which supervisor and target agree."""
        self._mine, self._targets = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)

    def in_front(self) -> None:
        """Let go of that way."""
        self._mine.close()
        self._targets.close()

    def in_target(self, command: list[str]) -> None:
        """Wait to be traced, install the filter, and say whether there is one."""
        self._mine.close()
        answer = self._targets.recv(256)
        if answer != GO:
            raise OSError(0, answer[1:].decode() or "the supervisor is gone")
        reason = installation.install(self._arch)
        self._targets.send(PLAIN + reason.encode() if reason else INSTALLED)
        if reason and self._targets.recv(1) != GO:
            raise OSError(0, "the supervisor is gone")

    def in_supervisor(self, link: "Link") -> None:
        """Trace the target and serve it until all descendants and its relays are through."""
        self._targets.close()
        try:
            tracer.seize(link.target)
        except OSError as error:
            self._mine.send(REFUSED + f"ptrace(2): {fit.words(error.errno or 0, link.target)}".encode())
            link.await_target()
            return
        self._mine.send(GO)
        said = self._mine.recv(256)
        if not said:  # the target has failed, and has said so
            link.await_target()
            return
        if said[:1] == PLAIN:
            try:
                tracer.interrupt(link.target)  # it stops before it returns from waiting for what follows
                self._mine.send(GO)
            except (ProcessLookupError, BrokenPipeError):  # it was killed
                link.await_target()
                return
        self._mine.close()
        if said == INSTALLED and _ends_at_once(link):
            return
        from pysocksify.engines.ptrace.serving import serve  # here: the target starts while this is imported

        serve(self._config, self._kernel, self._arch, link, said[1:].decode())


def _ends_at_once(link: "Link") -> bool:
    """Whether the target ended before it stopped for anything: then nothing needs to be imported for it."""
    from pysocksify.supervisor.processes import children

    poller = select.poll()
    poller.register(link.child_events, select.POLLIN)
    if not poller.poll(SHORT_RUN):
        return False
    found = os.waitid(os.P_PID, link.target, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None or found.si_code == os.CLD_TRAPPED:
        return False
    if children() != [link.target]:  # what it left stands, since nobody has let it go on
        return False
    link.reap()
    return not link.descendants_left
