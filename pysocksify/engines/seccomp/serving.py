"""Serving a target: the listener and its dispatch in a service's loop. Imported while the target starts."""

import fcntl
from contextlib import suppress

from pysocksify.config import Config
from pysocksify.engines.seccomp import abi
from pysocksify.engines.seccomp.dispatch import Dispatch
from pysocksify.engines.seccomp.filter import Numbers
from pysocksify.engines.seccomp.listener import Listener
from pysocksify.engines.service import Service
from pysocksify.supervisor.core import Kernel
from pysocksify.supervisor.processes import Link


def serve(
    config: Config,
    arch: abi.Architecture,
    fd: int,
    killable: bool,
    link: Link,
    numbers: Numbers,
    without: tuple[str, ...] = (),
) -> None:
    """Serve until no program uses the filter any more and what they wrote is delivered."""
    with suppress(OSError):  # before Linux 6.6 each notification takes 50 microseconds more
        fcntl.ioctl(fd, abi.IOCTL_NOTIF_SET_FLAGS, abi.USER_NOTIF_FD_SYNC_WAKE_UP)
    kernel = Kernel(**{"wait_killable": killable} | dict.fromkeys(without, False))
    service = Service(config, kernel, link)
    dispatch = Dispatch(service.reactor, arch, service.supervisor, service.report, numbers)
    listener = Listener(service.reactor, fd, dispatch.received, service.ended)
    service.run()
    listener.close()
