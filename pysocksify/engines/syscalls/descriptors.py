"""Taking duplicates of a target's descriptors: pidfd_open(2) and pidfd_getfd(2)."""

import errno
import os
from collections import OrderedDict

from pysocksify.engines.syscalls import abi
from pysocksify.linux import syscall
from pysocksify.supervisor.calls import process_of

KEPT = 256  # pidfds kept open; as many threads as are likely to connect at the same time


class Descriptors:
    """Duplicates of the descriptors of threads.

    A pidfd of the thread itself (PIDFD_THREAD, Linux 6.9) stays right when the process's first thread has ended or when
    threads don't share their descriptors. Before 6.9 it's the process's. Kept pidfds can't come to mean another thread:
    they say ESRCH once theirs is gone.
    """

    def __init__(self) -> None:
        self._threads = True
        self._pidfds: OrderedDict[int, int] = OrderedDict()

    def take(self, tid: int, fd: int) -> int:
        """A close-on-exec duplicate of a thread's descriptor. OSError: EBADF, ESRCH, EPERM, EMFILE."""
        try:
            return self._take(tid, fd)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._pidfds:
                raise
        self.close()  # what is kept only saves time
        return self._take(tid, fd)

    def _take(self, tid: int, fd: int) -> int:
        kept = self._pidfds.get(tid)
        if kept is not None:
            try:
                return syscall(abi.PIDFD_GETFD, kept, fd, 0)
            except ProcessLookupError:
                os.close(self._pidfds.pop(tid))
        return syscall(abi.PIDFD_GETFD, self._open(tid), fd, 0)

    def close(self) -> None:
        """Close what is kept."""
        while self._pidfds:
            os.close(self._pidfds.popitem()[1])

    def _open(self, tid: int) -> int:
        if self._threads:
            try:
                pidfd = syscall(abi.PIDFD_OPEN, tid, abi.PIDFD_THREAD)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._threads = False
        if not self._threads:
            pidfd = syscall(abi.PIDFD_OPEN, process_of(tid), 0)
        self._pidfds[tid] = pidfd
        if len(self._pidfds) > KEPT:
            os.close(self._pidfds.popitem(last=False)[1])
        return pidfd
