"""The listener: notifications from the kernel, and the answers to them (seccomp_unotify(2))."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from pysocksify.engines.seccomp import unotify
from pysocksify.reactor import READ, Reactor

_GONE = (errno.ENOENT, errno.EINPROGRESS)  # the caller ended, or was answered already


@dataclass(slots=True)
class Notification:
    """A call of the target that waits (struct seccomp_notif)."""

    listener: "Listener"
    id: int
    tid: int
    nr: int
    args: tuple[int, ...]

    def answer(self, error: int, value: int = 0) -> bool:
        """Let the call return `value`, or fail with `error`."""
        return self.listener.send(self.id, value, -error, 0)

    def proceed(self) -> bool:
        """Let the kernel perform the call as it stands."""
        return self.listener.send(self.id, 0, 0, unotify.USER_NOTIF_FLAG_CONTINUE)

    def waits(self) -> bool:
        """Whether the caller is still there; if so, what was read from its memory was its own."""
        try:
            fcntl.ioctl(self.listener.fd, unotify.IOCTL_NOTIF_ID_VALID, self.id.to_bytes(8, "little"))
        except OSError:
            return False
        return True

    def answer_descriptor(self, fd: int, close_on_exec: bool) -> int | None:
        """Install a duplicate of our `fd` as the target's lowest free descriptor and let the call return its number.

        Returned is that number; None: the caller is gone. OSError: EMFILE, when the target may have no more.
        """
        return self.listener.send_descriptor(self.id, fd, os.O_CLOEXEC if close_on_exec else 0)


class Listener:
    """Receives notifications in the reactor's loop. `ended` is called when no process uses the filter any more."""

    def __init__(
        self,
        reactor: Reactor,
        fd: int,
        received: Callable[[Notification], None],
        ended: Callable[[], None],
        *,
        send_at_once: bool = True,
        early: Iterable[bytearray] = (),
    ) -> None:
        """`send_at_once`: ADDFD_FLAG_SEND may be tried. `early`: what was received before (`reception`)."""
        self.fd = fd
        self._reactor = reactor
        self._received = received
        self._ended = ended
        self._send_at_once = send_at_once
        reactor.watch(fd, READ, self._ready)
        for notification in early:
            reactor.call_soon(partial(self._pass_on, notification))

    def send(self, id: int, value: int, error: int, flags: int) -> bool:
        """Answer a notification. False: its caller is gone."""
        response = unotify.RESPONSE.pack(id, value, error, flags)
        while True:
            try:
                fcntl.ioctl(self.fd, unotify.IOCTL_NOTIF_SEND, response)
            except InterruptedError:  # stopped and continued, while it waited for the filter's lock
                continue
            except OSError as failure:
                if failure.errno not in _GONE:
                    raise
                return False
            return True

    def send_descriptor(self, id: int, fd: int, fd_flags: int, flags: int = 0, number: int = 0) -> int | None:
        """Install a descriptor in the target and answer with its number, which is returned. None: the caller is gone.

        `flags` ADDFD_FLAG_SETFD: it gets this `number`. OSError: EMFILE, when the target may have no more; EBADF, for
        the number.
        """
        try:
            if self._send_at_once:
                try:
                    request = unotify.ADDFD.pack(id, flags | unotify.ADDFD_FLAG_SEND, fd, number, fd_flags)
                    return int(fcntl.ioctl(self.fd, unotify.IOCTL_NOTIF_ADDFD, bytearray(request)))
                except OSError as failure:
                    if failure.errno != errno.EINVAL:
                        raise
                    self._send_at_once = False  # before Linux 5.14
            request = unotify.ADDFD.pack(id, flags, fd, number, fd_flags)
            number = fcntl.ioctl(self.fd, unotify.IOCTL_NOTIF_ADDFD, bytearray(request))
        except OSError as failure:
            if failure.errno not in _GONE:
                raise
            return None
        return number if self.send(id, number, 0, 0) else None

    def close(self) -> None:
        """Receive no more. Calls that wait, and all later ones, get ENOSYS."""
        self._reactor.unwatch(self.fd)
        os.close(self.fd)

    def _ready(self, events: int) -> None:
        if not events & READ:  # EPOLLHUP: the last user of the filter is gone
            self._reactor.unwatch(self.fd)
            self._ended()
            return
        # one at a time: epoll says at once when there are more, and each is safe from signals once it's received
        notification = unotify.receive(self.fd)
        if notification is not None:
            self._pass_on(notification)

    def _pass_on(self, notification: bytearray) -> None:
        id, tid, _, nr, _, _, *args = unotify.NOTIFICATION.unpack(notification)
        self._received(Notification(self, id, tid, nr, tuple(args)))
