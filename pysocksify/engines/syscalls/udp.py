"""The target's UDP sockets where they can't be enclosed: which calls are about one, and what no engine lets them do."""

import _socket
import errno
import os
import socket
from typing import cast

from pysocksify.address import INET
from pysocksify.engines.syscalls.caught import CaughtCall, Taker, integer
from pysocksify.supervisor.calls import CallRefused
from pysocksify.supervisor.confined import Confined
from pysocksify.supervisor.core import Supervisor


class UdpSockets:
    """The sockets behind the descriptors in calls."""

    def __init__(self, supervisor: Supervisor, descriptors: Taker) -> None:
        self._supervisor = supervisor
        self._descriptors = descriptors

    @property
    def confined(self) -> Confined:
        """What confines them, once there is one."""
        confined = self._supervisor.confined
        assert confined is not None
        return confined

    def take(self, call: CaughtCall) -> socket.socket | None:
        """Our duplicate of the UDP socket in argument 0; None: it's something else, and the kernel serves the call."""
        try:
            fd = self._descriptors.take(call.tid, integer(call.args[0]))
        except OSError as failure:
            if failure.errno != errno.ENOTSOCK:  # as a Taker says that knows sockets only
                raise
            call.proceed()
            return None
        try:
            sock = cast(socket.socket, _socket.socket(fileno=fd))
        except OSError as failure:
            os.close(fd)
            if failure.errno not in (errno.ENOTSOCK, errno.EBADF):  # EBADF: opened with O_PATH
                raise
        else:
            if sock.family in INET and sock.type == socket.SOCK_DGRAM:
                if self._supervisor.confined is None:  # a socket from outside, before the program made any
                    os.close(self._supervisor.make_socket(call, sock.family, socket.SOCK_DGRAM, 0))
                return sock
            sock.close()
        call.proceed()
        return None

    def setsockopt(self, call: CaughtCall) -> None:
        """setsockopt(2), of a device or a multicast group; whatever the descriptor."""
        sock = self.take(call)
        if sock is not None:
            sock.close()
            # an ordinary user may not change the device; and no interface has that group
            raise CallRefused(errno.EPERM if integer(call.args[1]) == socket.SOL_SOCKET else errno.ENODEV)
