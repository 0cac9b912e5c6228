"""What systemd, or anything that speaks its two small protocols, tells a service and wants to be told.

sd_notify(3): datagrams of `KEY=VALUE` lines to the Unix socket that NOTIFY_SOCKET names. sd_listen_fds(3): LISTEN_FDS
listening sockets from descriptor 3 on, for the process LISTEN_PID alone, with names in LISTEN_FDNAMES. The variables
are taken out of the environment, so that no process started from here takes them for its own.
"""

import os
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass

from pysocksify.errors import ConfigError

FIRST_FD = 3  # SD_LISTEN_FDS_START


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """A listening socket that was open when this process began, and its name (FileDescriptorName= of the unit)."""

    sock: socket.socket
    name: str


class Notifier:
    """Tells the service manager what state this service is in; without one, nobody. What can't be sent is lost: a
    service doesn't end because its manager doesn't listen."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        path = environ.pop("NOTIFY_SOCKET", "")
        # "@" stands for the null byte of an abstract name; vsock and what else there may be is for others
        self._path = "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else ""

    def ready(self) -> None:
        """All listeners are there: after the start, and after a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has begun; the time is asked for by Type=notify-reload (systemd 253)."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Nobody is accepted any more."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._path:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.sendto(state.encode(), self._path)
        except OSError:
            return


def inherited(environ: MutableMapping[str, str]) -> list[Inherited]:
    """The listening sockets that this process was started with, in their order.

    Raises ConfigError for what isn't a listening stream socket of IPv4, IPv6 or Unix.
    """
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    listed = names.split(":") if names else []
    found = []
    for index in range(int(count)):
        name = listed[index] if index < len(listed) else "unknown"  # as sd_listen_fds_with_names() has it
        found.append(Inherited(sock=_listening(FIRST_FD + index), name=name))
    return found


def _listening(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError("LISTEN_FDS", f"descriptor {fd}", error.strerror or str(error)) from None
    if sock.type != socket.SOCK_STREAM or not listens:
        raise ConfigError("LISTEN_FDS", f"descriptor {fd}", "is no listening stream socket (ListenStream=)")
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise ConfigError("LISTEN_FDS", f"descriptor {fd}", f"has address family {int(sock.family)}")
    sock.setblocking(False)
    return sock
