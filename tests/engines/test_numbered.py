"""The numbers of confined UDP sockets: where they are, that they stay there, and what is refused with them."""

import errno
import fcntl
import os
import resource
import socket

import pytest

from pysocksify.engines.seccomp import unotify
from pysocksify.engines.syscalls import filter
from pysocksify.kernel import Kernel
from pysocksify.linux import prctl, syscall
from pysocksify.supervisor import confined
from tests.engines.confinement import (
    ARCH,
    PR_SET_DUMPABLE,
    QUERY,
    SERVER,
    check,
    dissolve,
    each_account,
    each_kernel,  # noqa: F401
    failing,
    four,
    run,
    six,
    udp,
)
from tests.engines.filtered import ACCOUNTS

pytestmark = pytest.mark.usefixtures("each_kernel")


@each_account
def test_numbers(uid: int) -> None:
    def act() -> None:
        os.dup2(0, 1022)
        first, second = udp(), udp(six, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        assert (first.fileno(), second.fileno()) == (1023, 1021), "what is there is never replaced"
        os.close(os.dup2(0, 1022))
        assert udp().fileno() == 1022
        raw = syscall(ARCH.socket, four, socket.SOCK_DGRAM, 0)
        assert os.get_inheritable(raw)
        assert not os.get_inheritable(second.fileno())
        # duplicates
        plain = os.dup(first.fileno())  # Python's: F_DUPFD_CLOEXEC
        assert plain >= 768
        assert not os.get_inheritable(plain)
        kernels = syscall(ARCH.dup, first.fileno())
        assert kernels >= 768
        assert os.get_inheritable(kernels)
        assert fcntl.fcntl(first.fileno(), fcntl.F_DUPFD, 900) >= 900
        with failing(errno.EMFILE):
            fcntl.fcntl(first.fileno(), fcntl.F_DUPFD, 5000)
        assert os.dup2(first.fileno(), 800) == 800
        duplicate = socket.socket(fileno=800)
        duplicate.sendto(QUERY, SERVER)
        check(first.recvfrom(512)[0])

    run(uid, act, said="no descriptor from 768 to 2047")


def test_before_linux_5_14_a_descriptor_is_installed_and_then_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unotify, "ADDFD_FLAG_SEND", 1 << 10)  # EINVAL

    def act() -> None:
        sock = udp()
        assert sock.fileno() == 1023
        sock.sendto(QUERY, SERVER)
        check(sock.recvfrom(512)[0])

    run(os.geteuid(), act)


def test_before_linux_5_7_there_is_no_udp(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(sock: socket.socket) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(confined, "bind_to_lo", refuse)

    def act() -> None:
        for _ in range(2):
            with failing(errno.EPERM):
                socket.socket(four, socket.SOCK_DGRAM)

    run(os.geteuid(), act, said="it can't be bound to lo) can't be carried and was refused")


def test_an_unreadable_program_is_refused() -> None:
    """One that has made itself so; root's supervisor reads it all the same."""

    def act() -> None:
        prctl(PR_SET_DUMPABLE, 0)
        with failing(errno.EACCES):
            socket.socket(four, socket.SOCK_DGRAM)

    run(ACCOUNTS[-1], act, said="has made itself unreadable")


@each_account
def test_out_of_the_numbers(uid: int) -> None:
    def act() -> None:
        sock = udp()
        with failing(errno.EPERM):
            os.dup2(sock.fileno(), 50)
        sock.connect(SERVER)
        assert os.dup2(sock.fileno(), 50) == 50
        assert os.get_inheritable(50)
        assert os.dup2(sock.fileno(), 51, inheritable=False) == 51
        assert not os.get_inheritable(51)
        os.write(50, QUERY)
        check(os.read(51, 512))
        with failing(errno.EPERM):  # it would be off `lo` for a moment
            dissolve(sock)
        with failing(errno.EBADF):
            os.dup2(sock.fileno(), 1 << 20)

    run(uid, act, said="isn't connected can't be made descriptor 50")


@each_account
def test_other_files_with_such_numbers(uid: int) -> None:
    def act() -> None:
        udp().close()
        read, write = os.pipe()
        os.dup2(read, 900)
        os.close(os.dup(900))
        assert os.dup2(900, 40) == 40
        assert fcntl.fcntl(900, fcntl.F_DUPFD, 45) >= 45
        os.write(write, b"x")
        assert os.read(40, 1) == b"x"
        with failing(errno.ENOTSOCK):
            syscall(ARCH.recvmsg, 900, 8, 0)
        with failing(errno.EBADF):
            syscall(ARCH.recvmsg, 901, 8, 0)
        ours, theirs = socket.socketpair()
        ours = socket.socket(fileno=os.dup2(ours.fileno(), 902))
        socket.send_fds(ours, [b"x"], [read])
        assert len(socket.recv_fds(theirs, 1, 1)[1]) == 1
        theirs.send(b"y")
        assert ours.recvmsg(1)[0] == b"y"
        tcp = socket.socket()
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")

    run(uid, act)


@pytest.mark.parametrize("limit", [512, 1024, 1500])
def test_when_all_numbers_are_taken(limit: int) -> None:
    def act() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        socks = []
        with failing(errno.EMFILE):
            for _ in range(limit):
                socks.append(udp())
        assert [sock.fileno() for sock in socks] == [*range(1023, 767, -1), *range(1024, limit)][: max(0, limit - 768)]

    run(os.geteuid(), act, said="no descriptor from 768 to 2047")


# what isn't carried


@each_account
def test_other_udp_is_refused(uid: int) -> None:
    def act() -> None:
        loose, tied = udp(), udp()
        for host, port in (("192.0.2.1", 443), ("127.0.0.1", 443), ("224.0.0.251", 5353)):
            with failing(errno.EPERM):
                loose.sendto(b"x", (host, port))
        tied.connect(("192.0.2.1", 443))
        assert tied.getpeername() == ("192.0.2.1", 443)
        tied.send(b"x")
        with failing(errno.ECONNREFUSED):
            tied.recv(1)
        with failing(errno.EOPNOTSUPP):
            loose.sendto(b"x", filter.MSG_FASTOPEN, SERVER)
        dissolve(tied)
        assert tied.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b"lo\0"
        with failing(errno.ENOTCONN):
            tied.getpeername()

    run(uid, act, said="UDP to 192.0.2.1:443 can't be carried and was refused")


JOINS = [
    # struct ip_mreqn, ip_mreq_source, group_req; ipv6_mreq: linux/in.h, linux/in6.h
    (four, socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.2.3") + bytes(8)),
    (four, socket.IPPROTO_IP, 39, socket.inet_aton("239.1.2.3") + bytes(8)),
    (four, socket.IPPROTO_IP, 42, bytes(136)),
    (six, socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(six, "ff02::fb") + bytes(4)),
    (six, socket.IPPROTO_IPV6, 27, bytes(20)),
]


@each_account
def test_devices_and_groups_are_refused(uid: int) -> None:
    def act() -> None:
        sock = udp()
        for value in (b"lo\0", b"eth0\0", b""):
            with failing(errno.EPERM):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, value)
        with failing(errno.EPERM):
            sock.setsockopt(socket.SOL_SOCKET, filter.SO_BINDTOIFINDEX, 2)
        sock.connect(SERVER)
        os.dup2(sock.fileno(), 50)
        with failing(errno.EPERM):
            socket.socket(fileno=50).setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
        for family, level, option, value in JOINS:
            with failing(errno.ENODEV):
                udp(family).setsockopt(level, option, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 3)

    run(uid, act)


@each_account
def test_with_namespaces_the_numbers_are_nobodys(uid: int) -> None:
    def act() -> None:
        sock = socket.socket(four, socket.SOCK_DGRAM)
        assert sock.fileno() < 768
        high = socket.socket(fileno=os.dup2(sock.fileno(), 900))
        assert os.dup(900) < 768
        high.sendto(QUERY, SERVER)
        data, source = high.recvfrom(512)
        check(data)
        assert source == SERVER
        high.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")

    run(uid, act, kernel=Kernel())
