"""Signals as calls in the loop, and what SIGHUP means."""

import os
import signal
import socket
from collections.abc import Callable

from pysocksify.reactor import READ, Reactor

STOPS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Signals as calls in the loop. Python restarts epoll_wait after a signal, so each comes as a byte, its number."""

    def __init__(self, reactor: Reactor, calls: dict[signal.Signals, Callable[[], None]]) -> None:
        self._reactor = reactor
        self._calls = {int(number): call for number, call in calls.items()}
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        reactor.watch(self._wake.fileno(), READ, self._hear)
        for number in calls:
            # as a shell does for what it starts in the background; nohup(1) wants to be spared the hangup, not a reload
            if number not in STOPS or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)

    def close(self) -> None:
        """Hear no more; what comes now ends in nothing."""
        self._reactor.unwatch(self._wake.fileno())
        self.leave()

    def leave(self) -> None:
        """Close this process's share, in a child."""
        signal.set_wakeup_fd(-1)
        self._wake.close()
        self._woken.close()

    def _hear(self, events: int) -> None:
        try:
            numbers = self._wake.recv(64)
        except BlockingIOError:
            return
        for number in numbers:
            call = self._calls.get(number)
            if call is not None:
                call()


class Hangup:
    """SIGHUP: a reload; for who had a terminal and has it no more, the terminal's end, unless nohup(1) is around."""

    def __init__(self, reload: Callable[[], None], stop: Callable[[], None]) -> None:
        self._reload = reload
        self._stop = stop
        self._had_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    def __call__(self) -> None:
        if self._had_terminal and not _has_terminal():
            self._stop()
        else:
            self._reload()


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal: only then can /dev/tty be opened (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
