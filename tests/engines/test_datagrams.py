"""UDP where namespaces can't be had: programs under the filter with a whole supervisor, as root and as nobody."""

import encodings.idna  # noqa: F401  (nobody can't read root's library: what sockets want late is loaded here)
import errno
import fcntl
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import CDLL, addressof, c_uint, create_string_buffer
from dataclasses import dataclass, field
from pathlib import Path

import dnslib  # noqa: F401
import pytest

from pysocksify import config
from pysocksify.engines.seccomp import filter
from pysocksify.engines.seccomp.dispatch import Dispatch
from pysocksify.engines.seccomp.listener import Listener
from pysocksify.linux import prctl, syscall
from pysocksify.options import parse
from pysocksify.reactor import Reactor
from pysocksify.report import Report
from pysocksify.supervisor import responder  # noqa: F401
from pysocksify.supervisor.core import Kernel, Supervisor
from tests.engines.filtered import ACCOUNTS, PATIENCE, Filtered, as_account, fork, machine

PR_SET_DUMPABLE = 4  # linux/prctl.h; a process that has changed its account is closed to others without it
ARCH = machine()
four, six = socket.AF_INET, socket.AF_INET6
SERVER = ("192.0.2.53", 53)
FIRST = "198.18.1.1"  # of the first name asked for
QUERY = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\7example\3com\0" + struct.pack(">HH", 1, 1)
ANSWER_SIZE = len(QUERY) + 16  # a compressed name, type, class, TTL, length and four bytes

each_account = pytest.mark.parametrize("uid", ACCOUNTS)
libc = CDLL(None, use_errno=True)


@dataclass(slots=True)
class Served:
    """What a supervisor has said and kept."""

    lines: list[str] = field(default_factory=list)
    waiting: int = 0


def serve(act: Callable[[], None], kernel: Kernel) -> Served:
    """Run `act` in a child under the filter, with a supervisor, until nobody uses the filter any more."""
    served = Served()
    given = parse(["-p", "socks5://127.0.0.1:1", "true"])
    assert given is not None
    reactor = Reactor()

    def too_long() -> None:
        raise TimeoutError("the target didn't end")

    with Filtered(act) as target:
        report = Report(served.lines.append)
        supervisor = Supervisor(reactor, config.load(given, {}), report, kernel, target.pid, set())
        dispatch = Dispatch(reactor, ARCH, supervisor, report, filter.Numbers.below(filter.FD_SETSIZE))
        timer = reactor.call_at(reactor.now() + PATIENCE, too_long)
        listener = Listener(reactor, os.dup(target.fd), dispatch.received, reactor.stop)
        target.close_listener()
        reactor.run()
        timer.cancel()
        listener.close()
        target.finish()
    served.waiting = len(dispatch._datagrams._waiting)
    return served


def run(
    uid: int,
    act: Callable[[], None],
    *,
    said: str = "",
    times: int | None = None,
    kernel: Kernel | None = None,
) -> None:
    """Run `act` in confinement, as an account; `said` must have been told to the person, that often."""

    def all_of_it() -> None:
        prctl(PR_SET_DUMPABLE, 1)
        served = serve(act, kernel or Kernel(enclosure=False))
        assert sum(said in line for line in served.lines) == (bool(said) if times is None else times), served.lines
        assert bool(said) or not served.lines, served.lines
        assert not served.waiting

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


# sending and receiving


def by_name(sock: socket.socket, server: tuple[str, int]) -> None:
    sock.sendto(QUERY, server)
    data, source = sock.recvfrom(512)
    check(data)
    assert source[:2] == server
    with failing(errno.ENOTCONN):
        sock.getpeername()


def connected(sock: socket.socket, server: tuple[str, int]) -> None:
    sock.connect(server)
    assert sock.getpeername()[:2] == server
    sock.send(QUERY)
    check(sock.recv(512))
    sock.send(QUERY)
    data, source = sock.recvfrom(512)
    check(data)
    assert source[:2] == server
    os.write(sock.fileno(), QUERY)
    check(os.read(sock.fileno(), 512))


def in_parts(sock: socket.socket, server: tuple[str, int]) -> None:
    sock.sendmsg([QUERY[:5], b"", QUERY[5:]], [], 0, server)
    parts = [bytearray(10), bytearray(1), bytearray(500)]
    size, ancillary, flags, source = sock.recvmsg_into(parts, 100)
    check(b"".join(parts)[:size])
    assert (ancillary, flags, source[:2]) == ([], 0, server)


def connected_in_parts(sock: socket.socket, server: tuple[str, int]) -> None:
    sock.connect(server)
    sock.sendmsg([QUERY[:5], QUERY[5:]])
    data, _, _, source = sock.recvmsg(512)
    check(data)
    assert source[:2] == server


def with_an_interface_named(sock: socket.socket, server: tuple[str, int]) -> None:
    """The control message isn't passed on: it would take the query out of another interface than `lo`."""
    pktinfo = (socket.IPPROTO_IP, 8, struct.pack("=i8x", 2))
    if sock.family == six:
        pktinfo = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16xi", 2))
    sock.sendmsg([QUERY], [pktinfo], 0, server)
    check(sock.recv(512))


@each_account
@pytest.mark.parametrize("exchange", [by_name, connected, in_parts, connected_in_parts, with_an_interface_named])
def test_queries_are_answered(uid: int, exchange: Callable[[socket.socket, tuple[str, int]], None]) -> None:
    def act() -> None:
        exchange(udp(four), SERVER)
        exchange(udp(six), ("2001:db8::53", 53))
        exchange(udp(six), ("::ffff:192.0.2.53", 53))
        exchange(udp(four), ("127.0.0.53", 53))

    run(uid, act)


class Messages:
    """An array of struct mmsghdr (recvmmsg(2)) with one buffer and one name each: 64 bytes, msg_len at 56."""

    def __init__(self, count: int, size: int, data: bytes = b"", name: bytes = bytes(28)) -> None:
        self.count = count
        self.buffers = [create_string_buffer(data, size) for _ in range(count)]
        self.names = [create_string_buffer(name, max(len(name), 1)) for _ in range(count)]
        self._iovecs = [
            create_string_buffer(struct.pack("=QQ", addressof(buffer), size), 16) for buffer in self.buffers
        ]
        headers = b""
        for iovec, named in zip(self._iovecs, self.names, strict=True):
            where = addressof(named) if name else 0
            headers += struct.pack("=QI4xQQQQi4xI4x", where, len(name), addressof(iovec), 1, 0xDEAD, 0, -1, 99)
        self._headers = create_string_buffer(headers, len(headers))

    def call(self, number: int, sock: socket.socket, flags: int = 0, timeout: float | None = None) -> int:
        seconds = None if timeout is None else struct.pack("=qq", int(timeout), int(timeout % 1 * 1e9))
        held = create_string_buffer(seconds, 16) if seconds else None
        where = addressof(held) if held is not None else 0
        return syscall(number, sock.fileno(), addressof(self._headers), self.count, flags, where)

    def fields(self, index: int) -> tuple[int, int, int, int]:
        """namelen, controllen, flags, msg_len"""
        _, name, _, _, _, control, flags, size = struct.unpack_from("=QI4xQQQQi4xI4x", self._headers, 64 * index)
        return name, control, flags, size


@each_account
def test_many_at_once(uid: int) -> None:
    def act() -> None:
        sock = udp()
        name = struct.pack("=H", four) + struct.pack("!H", 53) + socket.inet_aton(SERVER[0]) + bytes(8)
        questions = Messages(3, len(QUERY), QUERY, name)
        assert questions.call(ARCH.sendmmsg, sock) == 3
        assert [questions.fields(index)[3] for index in range(3)] == [len(QUERY)] * 3
        got = 0
        while got < 3:
            answers = Messages(5, 512)
            count = answers.call(ARCH.recvmmsg, sock)
            assert 1 <= count <= 3 - got
            for index in range(count):
                assert answers.fields(index) == (16, 0, 0, ANSWER_SIZE)
                check(answers.buffers[index].raw[:ANSWER_SIZE])
                assert answers.names[index].raw[:16] == name
            got += count
        with failing(errno.EAGAIN):
            Messages(5, 512).call(ARCH.recvmmsg, sock, timeout=0.05)
        with failing(errno.EAGAIN):
            Messages(5, 512).call(ARCH.recvmmsg, sock, socket.MSG_DONTWAIT)
        assert Messages(0, 1).call(ARCH.recvmmsg, sock) == 0
        # the first one that fails ends it; when it's the very first, that's the outcome
        with failing(errno.EPERM):
            Messages(2, 1, b"x", name[:2] + b"\1\1" + name[4:]).call(ARCH.sendmmsg, sock)

    run(uid, act, said="UDP to 192.0.2.53:257 can't be carried")


@each_account
def test_what_recv_can_be_told(uid: int) -> None:
    def act() -> None:
        sock = udp()
        sock.sendto(QUERY, SERVER)
        whole, source = sock.recvfrom(512, socket.MSG_PEEK)
        assert source == SERVER
        size, _, flags, _ = sock.recvmsg_into([bytearray(4), bytearray(6)], 0, socket.MSG_PEEK)
        assert (size, flags) == (10, socket.MSG_TRUNC)
        size, _, flags, _ = sock.recvmsg_into([bytearray(4)], 0, socket.MSG_PEEK | socket.MSG_TRUNC)
        assert (size, flags) == (ANSWER_SIZE, socket.MSG_TRUNC)
        short = bytearray(6)
        assert sock.recvfrom_into(short) == (6, SERVER)
        assert short == whole[:6]
        for flag in (socket.MSG_DONTWAIT, socket.MSG_ERRQUEUE):
            with failing(errno.EAGAIN):
                sock.recvfrom(512, flag)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 0, 60_000))
        began = time.monotonic()
        with failing(errno.EAGAIN):
            sock.recvfrom(512)
        assert 0.05 < time.monotonic() - began < 5
        os.set_blocking(sock.fileno(), False)
        with failing(errno.EAGAIN):
            sock.recvmsg(512)
        assert udp(kind=socket.SOCK_NONBLOCK).gettimeout() == 0

    run(uid, act)


def test_lengths_of_names() -> None:
    def act() -> None:
        sock = udp()
        buffer, name = create_string_buffer(512), create_string_buffer(b"-" * 32, 32)
        for room in (0, 3, 16, 32):
            sock.sendto(QUERY, SERVER)
            length, name.raw = c_uint(room), b"-" * 32
            where = (addressof(buffer), 512, 0, addressof(name), addressof(length))
            assert syscall(ARCH.recvfrom, sock.fileno(), *where) == ANSWER_SIZE
            assert length.value == 16
            assert name.raw[min(room, 16) :] == b"-" * (32 - min(room, 16))
        length = c_uint(0xFFFFFFFF)
        with failing(errno.EINVAL):
            syscall(ARCH.recvfrom, sock.fileno(), addressof(buffer), 512, 0, addressof(name), addressof(length))
        for bad in ((addressof(buffer), 512, 0, addressof(name), 8), (8, 512, 0, addressof(name), addressof(c_uint(16)))):
            sock.sendto(QUERY, SERVER)
            with failing(errno.EFAULT):
                syscall(ARCH.recvfrom, sock.fileno(), *bad)
        with failing(errno.EMSGSIZE):
            sock.sendto(b"x" * 65508, SERVER)
        with failing(errno.EFAULT):
            syscall(ARCH.sendto, sock.fileno(), 8, 10, 0, addressof(name), 16)
        with failing(errno.EINVAL):
            syscall(ARCH.sendto, sock.fileno(), addressof(buffer), 10, 0, addressof(name), 200)

    run(ACCOUNTS[0], act)


# waiting


def until_it_waits(number: int, tid: int) -> None:
    """Until a thread is in that system call (proc_pid_syscall(5))."""
    while Path(f"/proc/{tid}/syscall").read_text().split()[0] != str(number):
        os.sched_yield()


def until_taken(tid: int) -> None:
    """Until no signal of its own is pending for a thread."""
    while "SigPnd:\t0000000000000000" not in Path(f"/proc/{tid}/status").read_text():
        os.sched_yield()


@each_account
def test_a_signal_ends_a_wait(uid: int) -> None:
    def act() -> None:
        class Rang(Exception):
            pass

        def ring(number: int, frame: object) -> None:
            raise Rang

        def kill() -> None:
            until_it_waits(ARCH.recvfrom, os.getpid())
            os.kill(os.getpid(), signal.SIGUSR1)

        signal.signal(signal.SIGUSR1, ring)
        sock = udp()
        for limit in (0, 10):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", limit, 0))
            ringer = threading.Thread(target=kill)
            with pytest.raises(Rang):
                ringer.start()
                sock.recvfrom(512)
            ringer.join()
        sock.sendto(QUERY, SERVER)
        check(sock.recvfrom(512)[0])

    run(uid, act)


@pytest.mark.parametrize(("restart", "limit"), [(True, 0), (True, 10), (False, 0), (False, 10)])
def test_errors_of_interrupted_calls(restart: bool, limit: int) -> None:
    """signal(7): SA_RESTART has a recvfrom() without a time limit issued again; all others are EINTR."""
    issued_again = restart and not limit

    def act() -> None:
        sock = udp()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", limit, 0))
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        signal.siginterrupt(signal.SIGUSR1, not restart)
        buffer, name, length = create_string_buffer(512), create_string_buffer(32), c_uint(32)
        main = threading.main_thread()

        def disturb() -> None:
            until_it_waits(ARCH.recvfrom, os.getpid())
            signal.pthread_kill(main.ident or 0, signal.SIGUSR1)
            until_taken(os.getpid())
            if issued_again:
                sock.sendto(QUERY, SERVER)

        thread = threading.Thread(target=disturb)
        thread.start()
        # Python's own recvfrom() would call once more after EINTR
        where = (addressof(buffer), 512, 0, addressof(name), addressof(length))
        if issued_again:
            assert syscall(ARCH.recvfrom, sock.fileno(), *where) == ANSWER_SIZE
        else:
            with failing(errno.EINTR):
                syscall(ARCH.recvfrom, sock.fileno(), *where)
        thread.join()

    run(ACCOUNTS[0], act)


def test_a_program_that_dies_waiting() -> None:
    def act() -> None:
        sock = udp()
        child = fork()
        if child == 0:
            sock.recvfrom(512)
            os._exit(1)
        until_it_waits(ARCH.recvfrom, child)
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        sock.sendto(QUERY, SERVER)
        check(sock.recvfrom(512)[0])  # the dead one's wait took nothing

    run(ACCOUNTS[0], act)


def test_threads_wait_at_the_same_time() -> None:
    def act() -> None:
        answers = []

        def ask(sock: socket.socket) -> None:
            answers.append(sock.recvfrom(512)[0])

        socks = [udp() for _ in range(20)]
        threads = [threading.Thread(target=ask, args=(sock,)) for sock in socks]
        for thread in threads:
            thread.start()
        for thread in threads:
            until_it_waits(ARCH.recvfrom, thread.native_id or 0)
        for sock in socks:
            sock.sendto(QUERY, SERVER)
        for thread in threads:
            thread.join()
        assert len(answers) == 20
        for answer in answers:
            check(answer)

    run(ACCOUNTS[0], act)


# numbers


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
            while True:
                socks.append(udp())
        assert [sock.fileno() for sock in socks] == [*range(1023, 767, -1), *range(1024, limit)][: max(0, limit - 768)]

    run(ACCOUNTS[0], act, said="no descriptor from 768 to 2047", times=1)


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

    run(uid, act, said="UDP to 192.0.2.1:443 can't be carried and was refused", times=1)


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


# programs


MUSL = r"""
#include <netdb.h>
#include <stdio.h>
int main(int count, char **words) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(words[1], "443", &hints, &found);
    if (error) return puts(gai_strerror(error)), 1;
    for (; found; found = found->ai_next) {
        char host[64];
        getnameinfo(found->ai_addr, found->ai_addrlen, host, sizeof host, 0, 0, NI_NUMERICHOST);
        puts(host);
    }
}
"""
GO = """
package main

import ("fmt"; "net"; "os"; "sync")

func main() {
	found, err := net.LookupHost(os.Args[1])
	if err != nil { panic(err) }
	fmt.Println(found[0])
	var all sync.WaitGroup
	for i := 0; i < 300; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			if _, err := net.LookupHost(fmt.Sprintf("n%d.example.com", i)); err != nil { panic(err) }
		}()
	}
	all.Wait()
}
"""
JAVA = """
public class Names {
    public static void main(String[] words) throws Exception {
        System.out.println(java.net.InetAddress.getAllByName(words[0])[0].getHostAddress());
    }
}
"""
NODE = """
const dns = require("dns"), name = process.argv[1]
dns.resolve4(name, (error, found) => { console.log(error || found[0]); dns.lookup(name, (e, a) => console.log(e || a)) })
"""
PYTHON = """
import socket, sys
print(socket.getaddrinfo(sys.argv[1], 443, type=socket.SOCK_STREAM)[0][4][0])
"""


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """A folder for everyone, with the sources, and programs where their compilers are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file, text in (("musl.c", MUSL), ("names.go", GO), ("Names.java", JAVA)):
            (folder / file).write_text(text)
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
        for command in (
            ["musl-gcc", "-static", "-o", "musl", "musl.c"],
            ["go", "build", "-o", "names", "names.go"],
            ["javac", "Names.java"],
        ):
            if shutil.which(command[0]):
                subprocess.run(command, cwd=folder, env=environment, check=True, timeout=50)
        yield folder


PROGRAMS = {
    "dig": ["dig", "+short", "+tries=1", "+time=5", "example.com"],
    "dig, unconnected": ["dig", "+short", "+tries=1", "+time=5", "@2001:db8::53", "example.com"],
    "nslookup": ["nslookup", "-type=a", "example.com"],
    "busybox": ["busybox", "nslookup", "example.com"],
    "glibc": ["getent", "ahosts", "example.com"],
    "musl": ["./musl", "example.com"],
    "go": ["./names", "example.com"],
    "node": ["node", "-e", NODE, "example.com"],
    "java": ["java", "-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", ".", "Names", "example.com"],
    "python": ["/usr/bin/python3", "-c", PYTHON, "example.com"],
}


@each_account
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, uid: int, built: Path) -> None:
    command = PROGRAMS[name]
    if not (shutil.which(command[0]) or (built / command[0]).exists()):
        pytest.skip(f"{command[0]} isn't here")
    read, write = os.pipe()

    def act() -> None:
        os.dup2(write, 1)
        os.chdir(built)
        os.execvp(command[0], command)

    # IPv4 first: glibc sorts by what connect() and getsockname() say, and a UDP socket is connected for each address
    run(uid, act)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        words = pipe.read().split()
    found = [word for word in words if word.startswith(("198.18.", "fd"))]
    assert found, words
    assert found[0] == FIRST


ENGINE = """
import sys
from pysocksify import config, front
from pysocksify.engines.seccomp.engine import SeccompEngine
from pysocksify.options import parse

given = parse(["-p", "socks5://127.0.0.1:1", *sys.argv[1:]])
engine = SeccompEngine(config.load(given, {}), without=("enclosure",))
sys.exit(front.run(list(given.command), engine, write_line=lambda line: print(line, file=sys.stderr)))
"""
OWN_NUMBERS = """
import socket
print([socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach() for _ in range(2)])
"""


@pytest.mark.parametrize(("limit", "numbers"), [(1024, [1023, 1022]), (400, [399, 398])])
def test_the_command_does_without_namespaces(limit: int, numbers: list[int]) -> None:
    """The numbers lie below the limit that the command is started with."""
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, sys.executable, "-c", OWN_NUMBERS],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.stdout, done.stderr) == (f"{numbers}\n", "")


# no way out


class World:
    """A network namespace whose default route leads to a wire that is watched. Needs root; for a forked child."""

    def __init__(self) -> None:
        assert libc.unshare(0x40000000) == 0  # CLONE_NEWNET
        for words in (
            "link set lo up",
            "link add wire type veth peer name far",
            "link set wire up",
            "link set far up",
            "address add 192.0.2.2/24 dev wire",
            "address add 2001:db8::2/64 dev wire nodad",
            "route add default via 192.0.2.1",
            "route add default via 2001:db8::1",
            "neighbour add 192.0.2.1 lladdr 02:00:00:00:00:01 dev wire",
            "neighbour add 2001:db8::1 lladdr 02:00:00:00:00:01 dev wire",
        ):
            subprocess.run(["ip", *words.split()], check=True, timeout=10)
        self.wire = socket.if_nametoindex("wire")
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._tap.bind(("far", 3))  # ETH_P_ALL

    def seen(self) -> list[bytes]:
        """The packets that came out, but ARP and those of ICMPv6 that the kernel sends for itself."""
        packets = []
        while select.select([self._tap], [], [], 0.1)[0]:
            packet, (_, kind, *_) = self._tap.recvfrom(2048)
            own = kind == 0x0806 or (kind == 0x86DD and (packet[6] == socket.IPPROTO_ICMPV6 or packet[6] == 0))
            if not own:
                packets.append(packet)
        return packets


def ways_out(wire: int) -> list[Callable[[], object]]:
    """What gets a packet past a socket's binding to `lo`, or would send one if there were none."""
    ipv4, ipv6 = ("192.0.2.1", 99), ("2001:db8::1", 99)

    def bound_to_link_local(name: tuple[str, int]) -> None:
        with open("/proc/net/if_inet6", encoding="ascii") as table:
            rows = [line.split() for line in table if line.startswith("fe80") and int(line.split()[1], 16) == wire]
        sock = socket.socket(six, socket.SOCK_DGRAM)
        sock.bind((socket.inet_ntop(six, bytes.fromhex(rows[0][0])), 0, 0, wire))
        sock.sendto(b"out", name)

    def dissolved() -> None:
        sock = socket.socket(four, socket.SOCK_DGRAM)
        sock.connect(ipv4)
        dissolve(sock)
        sock.sendto(b"out", ipv4)

    def device(option: int, value: bytes | int) -> None:
        sock = socket.socket(four, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, option, value)
        sock.sendto(b"out", ipv4)

    def duplicated(name: tuple[str, int]) -> None:
        sock = socket.socket(four, socket.SOCK_DGRAM)
        os.dup2(sock.fileno(), 60)
        socket.socket(fileno=60).sendmsg([b"out"], [(socket.IPPROTO_IP, 8, struct.pack("=i8x", wire))], 0, name)

    def message(family: int, level: int, kind: int, data: bytes, name: tuple[str, int]) -> None:
        socket.socket(family, socket.SOCK_DGRAM).sendmsg([b"out"], [(level, kind, data)], 0, name)

    in4, in6 = struct.pack("=i8x", wire), struct.pack("=16xi", wire)
    group = socket.inet_aton("239.1.2.3") + struct.pack("=4si", bytes(4), wire)
    return [
        lambda: socket.socket(four, socket.SOCK_DGRAM).sendto(b"out", ("192.0.2.1", 53)),
        lambda: socket.socket(four, socket.SOCK_DGRAM).sendto(b"out", ipv4),
        lambda: socket.socket(six, socket.SOCK_DGRAM).sendto(b"out", ("2001:db8::1", 53)),
        lambda: socket.socket(six, socket.SOCK_DGRAM).sendto(b"out", ipv6),
        lambda: message(four, socket.IPPROTO_IP, 8, in4, ipv4),
        lambda: message(four, socket.IPPROTO_IP, 8, in4, ("192.0.2.1", 53)),
        lambda: message(six, socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, in6, ipv6),
        lambda: bound_to_link_local(("2001:db8::1", 53)),
        lambda: bound_to_link_local(ipv6),
        dissolved,
        lambda: duplicated(ipv4),
        lambda: device(socket.SO_BINDTODEVICE, b"wire\0"),
        lambda: device(filter.SO_BINDTOIFINDEX, wire),
        lambda: socket.socket(four, socket.SOCK_DGRAM).setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group),
        lambda: socket.socket(four, socket.SOCK_DGRAM).sendto(b"out", ("255.255.255.255", 99)),
        lambda: socket.socket(four, socket.SOCK_DGRAM).sendto(b"out", ("239.1.2.3", 99)),
    ]


def try_ways_out(wire: int) -> None:
    for way in ways_out(wire):
        with suppress(OSError):
            way()
    for host in ("192.0.2.1", "2001:db8::1"):
        with suppress(OSError), socket.socket(six if ":" in host else four, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 99))
            sock.send(b"out")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces")
@each_account
def test_nothing_leaves(uid: int) -> None:
    def act() -> None:
        world = World()
        try_ways_out(world.wire)
        assert len(world.seen()) > 10, "without the filter these are ways out"
        run(uid, lambda: try_ways_out(world.wire), said="can't", times=2)
        assert world.seen() == []

    as_account(0, act)
