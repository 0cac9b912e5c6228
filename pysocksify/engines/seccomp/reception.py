"""Receiving notifications while the supervisor still imports what serves them.

A signal ends a connect() that nobody has received, and the program believes then that it's being connected; one that
was received waits on (WAIT_KILLABLE_RECV). So nothing is left lying for the 20 to 45 ms that the imports take.
"""

import _thread
import os
import select
import sys

from pysocksify.engines.seccomp.unotify import receive

SWITCH_INTERVAL = 0.0002  # seconds until an import lets the receiving thread go on


class Reception:
    """Receives from when it's made until `stop`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._received: list[bytearray] = []
        self._poller = select.poll()
        self._poller.register(fd, select.POLLIN)
        if self._called(0):
            self._receive()
        self._stop, self._stopper = os.pipe()
        self._poller.register(self._stop, 0)
        self._stopped = _thread.allocate_lock()
        self._stopped.acquire()
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        _thread.start_new_thread(self._run, ())

    def stop(self) -> list[bytearray]:
        """What was received (struct seccomp_notif), for a Listener."""
        os.close(self._stopper)
        self._stopped.acquire()
        os.close(self._stop)
        sys.setswitchinterval(self._interval)
        return self._received

    def _run(self) -> None:
        try:
            while self._called(None):
                self._receive()
        finally:
            self._stopped.release()

    def _called(self, milliseconds: int | None) -> bool:
        """Whether there's a notification, and nothing else: the stop, or nobody left who uses the filter."""
        events = self._poller.poll(milliseconds)
        return bool(events) and all(event == select.POLLIN for _, event in events)

    def _receive(self) -> None:
        notification = receive(self._fd)
        if notification is not None:
            self._received.append(notification)
