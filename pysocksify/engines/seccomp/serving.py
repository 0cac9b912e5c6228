"""Serving a target: the listener and its dispatch in a service's loop. Imported while the target starts."""

import fcntl
import os
from contextlib import suppress

from pysocksify.config import Config
from pysocksify.engines.seccomp import unotify
from pysocksify.engines.seccomp.listener import Listener
from pysocksify.engines.seccomp.notified import NotifiedCalls
from pysocksify.engines.seccomp.reception import Reception
from pysocksify.engines.service import Service
from pysocksify.engines.syscalls import abi
from pysocksify.engines.syscalls.descriptors import Descriptors
from pysocksify.engines.syscalls.filter import Numbers
from pysocksify.kernel import Kernel
from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.supervisor.calls import Signalled
from pysocksify.supervisor.core import Supervisor
from pysocksify.supervisor.openfiles import descendants
from pysocksify.supervisor.processes import Link


def serve(
    config: Config,
    kernel: Kernel,
    arch: abi.Architecture,
    fd: int,
    killable: bool,
    link: Link,
    numbers: Numbers,
    reception: Reception,
) -> None:
    """Serve until no program uses the filter any more and what they wrote is delivered: what `reception` has first."""
    if kernel.sync_wake_up:
        with suppress(OSError):  # before Linux 6.6 each notification takes 50 microseconds more
            fcntl.ioctl(fd, unotify.IOCTL_NOTIF_SET_FLAGS, unotify.USER_NOTIF_FD_SYNC_WAKE_UP)
    service = Service(config, kernel, link, Signalled.LOOKED_FOR if killable else Signalled.UNSEEN)
    calls = served_by(service.reactor, arch, service.supervisor, service.report, kernel, numbers)
    send_at_once, early = kernel.addfd_send, reception.stop()
    listener = Listener(service.reactor, fd, calls.received, service.ended, send_at_once=send_at_once, early=early)
    service.run()
    listener.close()


def served_by(
    reactor: Reactor, arch: abi.Architecture, supervisor: Supervisor, report: Report, kernel: Kernel, numbers: Numbers
) -> NotifiedCalls:
    """What serves the calls, by whether descriptors can be taken from programs; the filter must be made for it."""
    if kernel.pidfd_getfd:
        return NotifiedCalls(reactor, arch, supervisor, report, Descriptors(), numbers)
    from pysocksify.engines.seccomp.adopted import Adopted  # here: containers need it
    from pysocksify.engines.seccomp.adopting import AdoptingCalls

    adopted = Adopted(reactor, supervisor.peer, lambda: descendants(os.getpid()))
    return AdoptingCalls(reactor, arch, supervisor, report, adopted, numbers)
