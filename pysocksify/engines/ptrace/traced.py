"""What only this engine does with calls: UDP sockets are made by the program itself, and are confined at once.

A tracer can't put a descriptor into the target. So the kernel performs socket(2), and at its exit the program's own
socket is bound to `lo` (`supervisor.confined`). All datagram calls stop, whatever the descriptor: a socket that isn't
on `lo`, since it came from outside, gets no datagram anywhere.
"""

import _socket
import errno
import os
import socket
from collections.abc import Callable
from typing import cast

from pysocksify.engines.ptrace.tracees import TracedCall
from pysocksify.engines.syscalls import abi
from pysocksify.engines.syscalls.caught import CaughtCall, Taker, closing, integer
from pysocksify.engines.syscalls.datagrams import Datagrams
from pysocksify.engines.syscalls.dispatch import Dispatch
from pysocksify.engines.syscalls.udp import UdpSockets
from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.supervisor.calls import CallRefused
from pysocksify.supervisor.core import Supervisor


class TracedCalls(Dispatch):
    """Serves the calls of one target's threads."""

    def __init__(
        self, reactor: Reactor, arch: abi.Architecture, supervisor: Supervisor, report: Report, descriptors: Taker
    ) -> None:
        super().__init__(reactor, arch, supervisor, report, descriptors)
        self._udp = UdpSockets(supervisor, descriptors)
        self._datagrams = Datagrams(reactor, arch, supervisor, self._memory, self._udp)
        served: dict[int, Callable[[CaughtCall], None]] = {
            **self._datagrams.calls,
            arch.setsockopt: self._udp.setsockopt,
        }
        self._by_number = served

    def interrupted(self, call: TracedCall) -> None:
        """The call's process is about to stop: let the call go, to be issued again."""
        self._supervisor.interrupted(call)
        self._datagrams.interrupted(call)

    def _socket(self, call: CaughtCall) -> None:
        family, kind, proto = (integer(value) for value in call.args[:3])
        # refuses what can't be carried, and shows that the program's own one can be confined
        os.close(self._supervisor.make_socket(call, family, kind, proto))

        def confine(fd: int) -> int:
            if fd < 0:
                return fd
            try:
                sock = cast(socket.socket, _socket.socket(fileno=self._descriptors.take(call.tid, fd)))
                with closing(sock):
                    self._udp.confined.adopt(sock)
            except OSError as failure:  # the program has a socket that it doesn't know of, and that can't send
                return -self._refusal(call, failure)
            return fd

        cast(TracedCall, call).proceed(confine)

    def _by_descriptor(self, call: CaughtCall) -> None:
        serve = self._by_number.get(call.nr)
        if serve is None:
            raise CallRefused(errno.ENOSYS)
        serve(call)
