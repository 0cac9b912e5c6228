"""Sending and receiving on confined UDP sockets: every call, its errors, and waits that signals end."""

import errno
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from ctypes import addressof, c_uint, create_string_buffer
from pathlib import Path

import pytest

from pysocksify.kernel import Kernel
from pysocksify.linux import syscall
from tests.engines.confinement import (
    ANSWER_SIZE,
    ARCH,
    QUERY,
    SERVER,
    check,
    each_account,
    each_kernel,  # noqa: F401
    failing,
    four,
    run,
    six,
    udp,
)
from tests.engines.filtered import fork

pytestmark = pytest.mark.usefixtures("each_kernel")


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
        sixteen = c_uint(16)
        named = (addressof(name), addressof(sixteen))
        for where in ((addressof(buffer), 512, 0, named[0], 8), (8, 512, 0, *named)):
            sock.sendto(QUERY, SERVER)
            with failing(errno.EFAULT):
                syscall(ARCH.recvfrom, sock.fileno(), *where)
        with failing(errno.EMSGSIZE):
            sock.sendto(b"x" * 65508, SERVER)
        with failing(errno.EFAULT):
            syscall(ARCH.sendto, sock.fileno(), 8, 10, 0, addressof(name), 16)
        with failing(errno.EINVAL):
            syscall(ARCH.sendto, sock.fileno(), addressof(buffer), 10, 0, addressof(name), 200)

    run(os.geteuid(), act)


# waiting


def until_it_waits(number: int, tid: int) -> None:
    """Until a thread is in that system call (proc_pid_syscall(5))."""
    while Path(f"/proc/{tid}/syscall").read_text().split()[0] != str(number):
        os.sched_yield()


def until_taken(tid: int) -> None:
    """Until no signal of its own is pending for a thread."""
    while "SigPnd:\t0000000000000000" not in Path(f"/proc/{tid}/status").read_text():
        os.sched_yield()


@pytest.mark.parametrize("killable", [True, False])
@each_account
def test_a_signal_ends_a_wait(uid: int, killable: bool) -> None:
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
            ringer.start()
            with pytest.raises(Rang):
                sock.recvfrom(512)
            ringer.join()
        sock.sendto(QUERY, SERVER)
        check(sock.recvfrom(512)[0])

    run(uid, act, kernel=Kernel(enclosure=False, wait_killable=killable))


@pytest.mark.parametrize(
    ("killable", "restart", "limit"),
    # without WAIT_KILLABLE_RECV the kernel issues the third kind again, too
    [(True, True, 0), (True, False, 0), (True, True, 10), (True, False, 10), (False, True, 0), (False, False, 0)],
)
def test_errors_of_interrupted_calls(killable: bool, restart: bool, limit: int) -> None:
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
            with failing(errno.ENOTCONN):
                sock.getpeername()  # calls are served in their order: the supervisor has the other one by now
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

    run(os.geteuid(), act, kernel=Kernel(enclosure=False, wait_killable=killable))


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

    run(os.geteuid(), act)


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

    run(os.geteuid(), act)
