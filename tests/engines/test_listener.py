"""The listener: a real filtered child's calls received in the reactor's loop, and every kind of answer."""

import errno
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from pysocksify.engines.seccomp.listener import Listener, Notification
from pysocksify.engines.seccomp.reception import Reception
from pysocksify.linux import syscall
from pysocksify.reactor import Reactor
from tests.engines.filtered import ACCOUNTS, PATIENCE, Filtered, fork, machine

ARCH = machine()
each_account = pytest.mark.parametrize("uid", ACCOUNTS)

UNIX_NOWHERE = (1).to_bytes(2, "little") + b"/nonexistent/socket\0"


def connect_errno(number: int = ARCH.connect, *arguments: int) -> int:
    try:
        syscall(number, *(arguments or (1000, 0, 0)))
    except OSError as error:
        return error.errno or -1
    return 0


def serve(act: Callable[[], None], received: Callable[[Notification], None], uid: int | None = None) -> int:
    """Run `act` under the filter with a Listener until it ended; how often `ended` was called."""
    reactor = Reactor()
    ended = 0

    def note_end() -> None:
        nonlocal ended
        ended += 1
        reactor.stop()

    def too_long() -> None:
        raise TimeoutError("the target didn't end")

    with Filtered(act, uid=uid) as target:
        timer = reactor.call_at(reactor.now() + PATIENCE, too_long)
        listener = Listener(reactor, os.dup(target.fd), received, note_end)
        target.close_listener()
        try:
            reactor.run()
        finally:
            timer.cancel()
            listener.close()
            reactor.close()
        target.finish()
    return ended


@each_account
def test_answers(uid: int) -> None:
    def act() -> None:
        assert connect_errno() == errno.ENOTNAM
        assert connect_errno() == 0
        assert syscall(ARCH.getpeername, 1000, 0, 0) == 7
        assert connect_errno() == errno.EBADF, "the kernel's own word after CONTINUE"

    calls: list[Notification] = []

    def received(notification: Notification) -> None:
        calls.append(notification)
        assert notification.waits()
        answered = [
            lambda: notification.answer(errno.ENOTNAM),
            lambda: notification.answer(0),
            lambda: notification.answer(0, 7),
            notification.proceed,
        ][len(calls) - 1]()
        assert answered
        assert not notification.waits()
        assert not notification.answer(0), "there's one answer to a call"

    assert serve(act, received, uid) == 1
    assert [call.nr for call in calls] == [ARCH.connect, ARCH.connect, ARCH.getpeername, ARCH.connect]
    assert calls[0].args[:3] == (1000, 0, 0)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("close_on_exec", [True, False])
def test_a_descriptor_is_the_lowest_free_one(at_once: bool, close_on_exec: bool) -> None:
    ours, theirs = socket.socketpair()

    def act() -> None:
        free = os.dup(0)
        os.close(free)
        fd = syscall(ARCH.socket, socket.AF_INET, socket.SOCK_DGRAM, 0)
        assert fd == free
        assert os.get_inheritable(fd) is not close_on_exec
        os.write(fd, b"through")

    def received(notification: Notification) -> None:
        notification.listener._send_at_once = at_once  # False: Linux before 5.14
        assert notification.answer_descriptor(theirs.fileno(), close_on_exec)
        assert not notification.answer_descriptor(theirs.fileno(), close_on_exec)

    with ours, theirs:
        assert serve(act, received) == 1
        ours.settimeout(PATIENCE)
        assert ours.recv(100) == b"through"


def test_a_target_that_may_have_no_more_descriptors_is_emfile() -> None:
    def act() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        assert connect_errno(ARCH.socket, socket.AF_INET, socket.SOCK_DGRAM, 0) == errno.EMFILE

    refused: list[int | None] = []

    def received(notification: Notification) -> None:
        try:
            notification.answer_descriptor(0, True)
        except OSError as error:
            refused.append(error.errno)
            notification.answer(errno.EMFILE)

    assert serve(act, received) == 1
    assert refused == [errno.EMFILE]


@each_account
def test_what_is_received_before_the_loop_waits_on_in_spite_of_signals(uid: int) -> None:
    def act() -> None:
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        answers: list[int] = []
        caller = threading.Thread(target=lambda: answers.append(connect_errno()))
        caller.start()
        assert os.read(heard, 1) == b"r"
        signal.pthread_kill(caller.ident or 0, signal.SIGUSR1)
        assert connect_errno(ARCH.connect, 2000, 0, 0) == errno.ENOTNAM
        caller.join()
        assert answers == [errno.ENOTNAM]

    heard, receives = os.pipe()
    calls: list[tuple[int, ...]] = []
    reactor = Reactor()

    def received(notification: Notification) -> None:
        calls.append(notification.args[:1])
        assert notification.answer(errno.ENOTNAM)

    with Filtered(act, uid=uid) as target:
        fd = os.dup(target.fd)
        reception = Reception(fd)
        target.close_listener()
        time_limit = reactor.now() + PATIENCE
        while not reception._received:
            assert reactor.now() < time_limit
        os.write(receives, b"r")
        while len(reception._received) < 2:
            assert reactor.now() < time_limit
        listener = Listener(reactor, fd, received, reactor.stop, early=reception.stop())
        reactor.run()
        listener.close()
        reactor.close()
        target.finish()
    assert sorted(calls) == [(1000,), (2000,)]
    os.close(heard)
    os.close(receives)


def test_a_reception_stops_when_nobody_calls() -> None:
    with Filtered(lambda: None) as target:
        fd = os.dup(target.fd)
        reception = Reception(fd)
        target.close_listener()
        target.finish()
        assert reception.stop() == []
        os.close(fd)


def test_a_caller_that_died_is_no_error() -> None:
    def act() -> None:
        child = fork()
        if child == 0:
            connect_errno()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert connect_errno() == 0

    calls: list[Notification] = []

    def received(notification: Notification) -> None:
        calls.append(notification)
        if len(calls) == 1:
            os.kill(notification.tid, signal.SIGKILL)
            return
        late = calls[0]
        assert not late.waits()
        assert not late.answer(0)
        assert not late.proceed()
        assert not late.answer_descriptor(0, True)
        notification.answer(0)

    assert serve(act, received) == 1


def test_many_callers_at_once() -> None:
    many = 50

    def act() -> None:
        children = []
        for _ in range(many):
            child = fork()
            if child == 0:
                os._exit(connect_errno())
            children.append(child)
        for child in children:
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == child % 100 + 1

    waiting: list[Notification] = []

    def received(notification: Notification) -> None:
        waiting.append(notification)
        if len(waiting) == many:
            for late in reversed(waiting):
                late.answer(late.tid % 100 + 1)

    assert serve(act, received) == 1


def test_a_closed_listener_lets_calls_fail() -> None:
    def act() -> None:
        assert connect_errno() == errno.ENOSYS
        assert connect_errno() == errno.ENOSYS

    reactor = Reactor()
    with Filtered(act) as target:
        listener = Listener(reactor, os.dup(target.fd), lambda notification: reactor.stop(), lambda: None)
        target.close_listener()
        reactor.run()
        listener.close()
        target.finish()
    reactor.close()
