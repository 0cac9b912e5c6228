"""Programs in confinement: under the filter with a whole supervisor that has no namespaces, as root and as nobody."""

import encodings.idna  # noqa: F401  (nobody can't read root's library: what sockets want late is loaded here)
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import addressof, create_string_buffer

import dnslib  # noqa: F401
import pytest

from pysocksify import config
from pysocksify.engines.seccomp import adopting, numbered, unotify  # noqa: F401
from pysocksify.engines.seccomp.listener import Listener
from pysocksify.engines.seccomp.serving import served_by
from pysocksify.engines.syscalls import abi, datagrams, filter  # noqa: F401
from pysocksify.kernel import Kernel
from pysocksify.linux import PR_SET_NO_NEW_PRIVS, prctl, syscall
from pysocksify.options import parse
from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.supervisor.calls import Signalled
from pysocksify.supervisor.core import Supervisor
from tests.engines.filtered import ACCOUNTS, PATIENCE, Filtered, as_account, machine
from tests.lab import surroundings

PR_SET_DUMPABLE = 4  # linux/prctl.h; a process that has changed its account is closed to others without it
ARCH = machine()
four, six = socket.AF_INET, socket.AF_INET6
SERVER = ("192.0.2.53", 53)
FIRST = "198.18.1.1"  # of the first name asked for
QUERY = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\7example\3com\0" + struct.pack(">HH", 1, 1)
ANSWER_SIZE = len(QUERY) + 16  # a compressed name, type, class, TTL, length and four bytes

each_account = pytest.mark.parametrize("uid", ACCOUNTS)
CONFINING = Kernel(enclosure=False)
CONTAINER = CONFINING.without(("pidfd_getfd",))
NO_PROXY = "socks5://127.0.0.1:1"


@pytest.fixture(params=[CONFINING, CONTAINER], ids=["taken", "adopted"])
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether descriptors can be taken from programs, or sockets are adopted."""
    monkeypatch.setattr(sys.modules[__name__], "CONFINING", request.param)


def serve(act: Callable[[], None], kernel: Kernel, proxy: str = NO_PROXY) -> list[str]:
    """Run `act` in a child under the filter, with a supervisor, until nobody uses the filter; the lines it said."""
    lines: list[str] = []
    given = parse(["-p", proxy, "true"])
    assert given is not None
    reactor = Reactor()

    def too_long() -> None:
        raise TimeoutError("the target didn't end")

    with Filtered(act, adopting=not kernel.pidfd_getfd) as target:
        report = Report(lines.append)
        signalled = Signalled.LOOKED_FOR if kernel.wait_killable else Signalled.UNSEEN
        supervisor = Supervisor(reactor, config.load(given, {}), report, kernel, target.pid, set(), signalled=signalled)
        numbers = filter.Numbers.below(filter.FD_SETSIZE)
        dispatch = served_by(reactor, ARCH, supervisor, report, kernel, numbers)
        timer = reactor.call_at(reactor.now() + PATIENCE, too_long)
        listener = Listener(reactor, os.dup(target.fd), dispatch.received, reactor.stop, send_at_once=kernel.addfd_send)
        target.close_listener()
        reactor.run()
        timer.cancel()
        listener.close()
        target.finish()
    return lines


def run(
    uid: int,
    act: Callable[[], None],
    *,
    said: str = "",
    times: int = 1,
    kernel: Kernel | None = None,
    proxy: str = NO_PROXY,
) -> None:
    """Run `act` in confinement, as an account; `said` is what the person must be told, that often.

    A kernel without pidfd_getfd(2) is one in a default container, where it's refused.
    """
    kernel = kernel or CONFINING

    def all_of_it() -> None:
        prctl(PR_SET_DUMPABLE, 1)
        if not kernel.wait_killable:
            unotify.FILTER_FLAG_WAIT_KILLABLE_RECV = 0
        if not kernel.pidfd_getfd:
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            surroundings.install(surroundings.program("docker", os.uname().machine))
        lines = serve(act, kernel, proxy)
        assert sum(said in line for line in lines) == times if said else not lines, lines

    as_account(uid, all_of_it)


@contextmanager
def failing(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number


def udp(family: int = four, kind: int = 0) -> socket.socket:
    new = socket.socket(family, socket.SOCK_DGRAM | kind)
    assert new.fileno() >= 768
    return new


def dissolve(sock: socket.socket) -> None:
    sockaddr = create_string_buffer(16)
    syscall(ARCH.connect, sock.fileno(), addressof(sockaddr), 16)


def check(answer: bytes) -> None:
    assert answer[:2] == QUERY[:2]
    assert answer[-4:] == socket.inet_aton(FIRST)
