"""What of epoll the reactor needs, on `selectors`, for where there is no epoll: kqueue, poll(2) or select(2).

Events are told apart as far as select(2) can: readable and writable; an error or a hang-up shows as either.
"""

import selectors
import socket

READ, WRITE = 1, 4  # EPOLLIN, EPOLLOUT (sys/epoll.h)


class Poller:
    """select.epoll's methods. What can't be told here (EPOLLPRI) never comes."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._silent: set[int] = set()  # registered for nothing, which selectors doesn't know

    def register(self, fd: int, events: int) -> None:
        """Wait for events of `fd`. FileExistsError: it's registered already."""
        if fd in self._silent:
            raise FileExistsError
        wanted = _wanted(events)
        if not wanted:
            self._silent.add(fd)
            return
        try:
            self._selector.register(fd, wanted)
        except KeyError:
            raise FileExistsError from None

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of `fd`."""
        self.unregister(fd)
        self.register(fd, events)

    def unregister(self, fd: int) -> None:
        """Wait no more. A descriptor that isn't registered is no error."""
        self._silent.discard(fd)
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def poll(self, timeout: float = -1) -> list[tuple[int, int]]:
        """The events that there are, after at most `timeout` seconds; -1 is for ever."""
        found = []
        for key, ready in self._selector.select(None if timeout < 0 else timeout):
            events = READ * bool(ready & selectors.EVENT_READ) | WRITE * bool(ready & selectors.EVENT_WRITE)
            found.append((key.fd, events))
        return found

    def close(self) -> None:
        """Give all up."""
        self._selector.close()


class Waker:
    """What wakes a Poller from another thread: a pair of sockets, which any select(2) takes."""

    def __init__(self) -> None:
        self._mine, self._theirs = socket.socketpair()
        self._mine.setblocking(False)
        self._theirs.setblocking(False)

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._mine.fileno()

    def wake(self) -> None:
        """Make it readable. Any thread may call this."""
        try:
            self._theirs.send(b"w")
        except BlockingIOError:  # it is readable then
            return

    def clear(self) -> None:
        """Make it unreadable again."""
        try:
            while self._mine.recv(4096):
                continue
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close both ends."""
        self._mine.close()
        self._theirs.close()


def _wanted(events: int) -> int:
    return selectors.EVENT_READ * bool(events & READ) | selectors.EVENT_WRITE * bool(events & WRITE)
