"""The engine itself: what it does in front, target and supervisor (`supervisor.processes.Engine`).

The filter is installed in the target before exec. Its listener goes to the supervisor by SCM_RIGHTS, which works
everywhere, and the target waits for the go-ahead: a caught call would otherwise wait for a supervisor that isn't
listening yet.
"""

import _socket
import errno
import os
import select

from pysocksify.config import Config
from pysocksify.engines.seccomp import installation
from pysocksify.engines.seccomp.reception import Reception
from pysocksify.engines.syscalls import abi, filter
from pysocksify.errors import PysocksifyError
from pysocksify.kernel import Kernel
from pysocksify.linux import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pysocksify.supervisor.processes import Link

KILLABLE, PLAIN = b"k", b"p"
SHORT_RUN = 5  # milliseconds; /bin/true takes one


class SeccompEngine:
    """Catches by SECCOMP_RET_USER_NOTIF."""

    def __init__(self, config: Config, kernel: Kernel) -> None:
        self._config = config
        self._kernel = kernel
        machine = os.uname().machine
        if machine not in abi.ARCHITECTURES:
            raise PysocksifyError(f"the seccomp engine doesn't know the calls of {machine}")
        self._arch = abi.ARCHITECTURES[machine]

    def before_fork(self) -> None:
        """Make the way by which the listener comes to the supervisor."""
        self._mine, self._targets = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self._numbers = filter.Numbers.below(os.sysconf("SC_OPEN_MAX"))
        if self._kernel.pidfd_getfd and not _descriptors_can_be_taken():
            self._kernel = self._kernel.without(("pidfd_getfd",))
        self._program = filter.program(self._arch, self._numbers, adopting=not self._kernel.pidfd_getfd)

    def in_front(self) -> None:
        """Let go of that way: the supervisor sees its end when the target's is closed everywhere."""
        self._mine.close()
        self._targets.close()

    def in_target(self, command: list[str]) -> None:
        """Install the filter, hand the listener over and wait for the go-ahead."""
        self._mine.close()
        try:
            listener, killable = installation.install(self._arch, self._program, self._kernel.wait_killable)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise OSError(error.errno, "another pysocksify, or this container, catches calls already") from None
            raise
        rights = listener.to_bytes(4, "little")
        self._targets.sendmsg([KILLABLE if killable else PLAIN], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        os.close(listener)
        if self._targets.recv(1) != b"g":
            raise OSError(0, "the supervisor is gone")

    def in_supervisor(self, link: "Link") -> None:
        """Serve the target until it and all its relays are through."""
        self._targets.close()
        data, ancillary, _, _ = self._mine.recvmsg(1, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
        if not data:  # the target couldn't install the filter, and has said so
            link.await_target()
            return
        listener = int.from_bytes(ancillary[0][2][:4], "little")
        self._mine.send(b"g")
        self._mine.close()
        if _ends_at_once(listener, link):
            return
        reception = Reception(listener)
        from pysocksify.engines.seccomp.serving import serve  # here: the target starts while this is imported

        killable = data == KILLABLE
        serve(self._config, self._kernel, self._arch, listener, killable, link, self._numbers, reception)


def _descriptors_can_be_taken() -> bool:
    """Whether pidfd_getfd(2) works, by taking one of our own: a container's filter refuses that as well."""
    pidfd = -1
    try:
        pidfd = syscall(abi.PIDFD_OPEN, os.getpid(), 0)
        os.close(syscall(abi.PIDFD_GETFD, pidfd, pidfd, 0))
    except OSError:
        return False
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return True


def _ends_at_once(listener: int, link: "Link") -> bool:
    """Whether the target ended before it called for anything: then nothing needs to be imported for it."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    events = poller.poll(SHORT_RUN)
    if not events or events[0][1] & select.POLLIN:
        return False
    link.await_target()
    return True
