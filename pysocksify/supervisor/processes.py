"""What the supervisor does about processes: it starts the target, reaps, reports to the front, forwards signals.

Theory of operation
-------------------
Actors, all in the process group of the shell's job::

    shell ── front ── supervisor ── target

The *link* is a socketpair (SOCK_SEQPACKET: one message each, in order) between front and supervisor. The target holds
the supervisor's end until its exec, only to say that the exec failed. Messages are one letter and a text, see below.

Signals. All three processes are started with every signal blocked. The target takes the caller's mask again right
before exec; front and supervisor never unblock anything (but see `Front` for stopping and dying), and read signals
from a signalfd, so no system call of theirs is ever interrupted, and no handler runs.

The canary. A signal that reaches the front was sent either to the front alone (`kill PID`), and the target must be
given it, or to the whole group (Ctrl-C, `kill %1`), and the target has it already. The supervisor can tell: it is in
the same group, nobody sends a signal to it alone, so what went to the group is pending there. The kernel signals a
group one process after the other, hence the short wait. A target that left the group never has it.

Reaping. The supervisor is a child subreaper, so every orphaned descendant of the target becomes its child, and "no
child left" means that no descendant is left. Only the supervisor reaps, so the target's pid can't be another
process's as long as `target_ended` is false. Where an engine traces (ptrace(2)), the statuses of all descendants'
threads come here; it's given them first, keeps those of stops, and says itself when the target stops and continues.

What can come late: the front may be stopped or blocked, then lines are dropped and counted, reports wait in `_unsent`.
The front may be gone: normal after the target's end; before it, somebody killed the front, and the target is killed.
The supervisor may be gone: its end of the link closes, and the front ends the target.
"""

import ctypes
import errno
import os
import select
import signal
import sys
import time
from collections.abc import Callable

from pysocksify import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Protocol
else:  # typing costs 4 ms before the target runs
    Protocol = object

# Messages on the link: the first byte says which, the rest is text.
LINE = b"L"  # supervisor → front: a line for the person
DROPPED = b"D"  # supervisor → front: how many lines weren't sent since the last such message
TARGET = b"T"  # supervisor → front: the target's pid
STATUS = b"S"  # supervisor → front: the target's wait status, as waitpid(2) has it (stopped or ended)
FAILED = b"X"  # target → front: not started; exit status, a space, the reason
FORWARD = b"F"  # front → supervisor: the number of a signal that the front got

MESSAGE_LIMIT = 65536  # bytes; longer lines are cut
CANARY_WAIT = 0.005  # seconds; signalling a group takes microseconds, the rest is for a machine that is busy
SAME_SIGNAL = 0.02  # seconds; a second one so soon was merged in the supervisor's pending set (or comes from a hang-up,
# which signals the session's leader and then the group)

SUPERVISOR = "supervisor"
"""The program's name that a supervisor gives itself: to one around it, it is a program like others."""

STOPS = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}  # those that can be caught and blocked

PR_SET_DUMPABLE = 4  # <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36
SFD_NONBLOCK, SFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC  # <sys/signalfd.h>
WALL = 0x40000000  # __WALL, wait(2): threads too; os has it from Python 3.12 on
AT_ONCE = 100  # statuses taken in one turn, so that a traced program's stops don't keep all else waiting
SIGNALFD_SIGINFO = 128  # bytes, signalfd(2): u32 signo, s32 errno, s32 code, u32 pid, …

_libc = ctypes.CDLL(None, use_errno=True)


class Engine(Protocol):
    """What the front needs of an engine: what it does in each of the three processes."""

    def before_fork(self) -> None:
        """In the front, before anything is forked: make what supervisor and target share.

        Descriptors made here must be close-on-exec (Python's are): that is how they are told from the caller's.
        """

    def in_front(self) -> None:
        """In the front, after the fork: let go of what supervisor and target share."""

    def in_target(self, command: list[str]) -> None:
        """In the target, right before exec: install the catching. OSError: it can't be done, the program isn't run.

        The environment is the program's already, and may be changed. Every signal is blocked. The link's calls are
        write(2) only.
        """

    def in_supervisor(self, link: "Link") -> None:
        """In the supervisor, after the target's fork: serve until all is over. Returning ends the supervisor."""


class Watcher(Protocol):
    """The part of the reactor that a link needs."""

    def watch(self, fd: int, events: int, callback: Callable[[int], None], /) -> object: ...

    def modify(self, fd: int, events: int, /) -> object: ...

    def unwatch(self, fd: int, /) -> object: ...


class Link:
    """The supervisor's side of everything about processes. For its main thread only.

    Callbacks are plain lists; each is called once. `on_target_end` runs before the front is told, so lines written
    there are still printed before the front exits. `on_no_descendants` runs when the target and all its descendants
    ended. Children of the supervisor's own, which are no descendants of the target, must be put into `own_children`.
    """

    def __init__(self, fd: int, target: int, front: int) -> None:
        self.fd = fd
        self.child_events = signal_descriptor({signal.SIGCHLD})
        self.target = target
        self.target_ended = False
        self.target_stopped = False
        self.front_gone = False
        self.descendants_left = True
        self.own_children: set[int] = set()
        self.lines_dropped = 0
        self.on_target_end: list[Callable[[], object]] = []
        self.on_front_gone: list[Callable[[], object]] = []
        self.on_no_descendants: list[Callable[[], object]] = []
        self._front = front
        self._unsent: list[bytes] = []
        self._watcher: Watcher | None = None
        self._took: Callable[[int, int], bool] | None = None
        self._seen: dict[int, float] = {}
        os.set_blocking(fd, False)

    def attach(self, watcher: Watcher) -> None:
        """Have the reactor call this link when there is something to do, and do what there is already."""
        self._watcher = watcher
        watcher.watch(self.child_events, select.EPOLLIN, lambda _events: self.reap())
        if not self.front_gone:
            watcher.watch(self.fd, self._wanted(), self._ready)
        self.reap()

    def line(self, text: str) -> None:
        """Send a line for the person to the front. Never blocks: dropped and counted when the front doesn't read."""
        if self.front_gone:
            return
        if self._unsent or not self._write(LINE + text.encode("utf-8", "surrogateescape")[: MESSAGE_LIMIT - 1]):
            self.lines_dropped += 1
            self._want_room()

    def trace(self, took: Callable[[int, int], bool]) -> None:
        """Give all statuses to a tracer first, with their thread ids; False from it: they're the end of a process.

        The tracer calls `target_changed` when the target stops or continues. WCONTINUED isn't waited for: it would take
        that status away from the programs inside whose children continue (wait_task_continued() in kernel/exit.c).
        """
        self._took = took

    def await_target(self) -> None:
        """Wait for the target's end and reap it, where nothing is to be served."""
        poller = select.poll()
        poller.register(self.child_events, select.POLLIN)
        self.reap()
        while not self.target_ended:
            poller.poll()
            self.reap()

    def reap(self) -> None:
        """Take the status of every child that has one, and tell the front of the target's."""
        read_signals(self.child_events)
        options = os.WNOHANG | (os.WUNTRACED | os.WCONTINUED if self._took is None else WALL)
        taken = 0
        while self.descendants_left:
            if taken >= AT_ONCE:
                _kill(os.getpid(), signal.SIGCHLD)  # come back once others had their turn
                return
            try:
                pid, status = os.waitpid(-1, options)
            except ChildProcessError:
                break
            taken += 1
            if pid == 0:
                if self.target_ended and self.own_children and set(children()) <= self.own_children:
                    break
                return
            if self._took is not None and self._took(pid, status):
                continue
            if pid == self.target:
                self.target_changed(status)
            elif os.WIFEXITED(status) or os.WIFSIGNALED(status):
                self.own_children.discard(pid)
        if self.descendants_left:
            self.descendants_left = False
            _call(self.on_no_descendants)

    def receive(self) -> None:
        """Take one message of the front's, a signal to forward or its end. One: a flood must not delay `reap`."""
        if self.front_gone:
            return
        try:
            message = os.read(self.fd, MESSAGE_LIMIT)
        except (BlockingIOError, ConnectionResetError):  # reset: the front left messages unread; its end comes next
            return
        if message[:1] == FORWARD:
            self._forward(int(message[1:]))
        elif not message:
            self._front_went()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the front has read every report (or is gone); `timeout` in seconds, None: as long as it takes."""
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT)
        while (self._unsent or self.lines_dropped) and not self.front_gone:
            if not poller.poll(None if timeout is None else timeout * 1000):
                return
            self._send_rest()

    def target_changed(self, status: int) -> None:
        """Act on the target's wait status."""
        if os.WIFSTOPPED(status):
            self.target_stopped = True
            self._report(STATUS + b"%d" % status)
        elif os.WIFCONTINUED(status):
            if self.target_stopped:
                self.target_stopped = False
                # A SIGCONT to the group continued the front as well. Another one would come at a bad time: after a
                # stop that follows at once, it would show the shell a job that runs. A stop that is pending here may
                # also be the last one's, where the front has heard of it from us first and forwarded nothing.
                pending = signal.sigpending()
                stops_again = bool(pending & STOPS) and stopped(self.target)
                if signal.SIGCONT not in pending and not stops_again:
                    _kill(self._front, signal.SIGCONT)
        else:
            self.target_ended = True
            _call(self.on_target_end)
            self._report(STATUS + b"%d" % status)

    def _front_went(self) -> None:
        self.front_gone = True
        self._unsent.clear()
        if self._watcher is not None:
            self._watcher.unwatch(self.fd)
        if not self.target_ended:
            _kill(self.target, signal.SIGKILL)
        _call(self.on_front_gone)

    def _forward(self, number: int) -> None:
        """Give the target a signal that the front got, unless it has got it itself."""
        now = time.monotonic()
        merged = now - self._seen.get(number, -1.0) < SAME_SIGNAL
        to_group = signal.sigtimedwait({number}, 0 if self.target_ended else CANARY_WAIT) is not None
        if to_group:
            self._seen[number] = now
        if self.target_ended:
            # Only the front as process 1 still sends: what a container's stop means is meant for all that is left.
            for pid in set(children()) - self.own_children:
                _kill(pid, number)
        elif not (to_group or merged or _superseded(number)) or os.getpgid(self.target) != os.getpgrp():
            _kill(self.target, number)

    def _report(self, message: bytes) -> None:
        if self.front_gone:
            return
        if self._unsent or not self._write(message):
            self._unsent.append(message)
            self._want_room()

    def _write(self, message: bytes) -> bool:
        """Whether the message needs no second try."""
        try:
            os.write(self.fd, message)
        except OSError as error:
            # Gone (EPIPE, ECONNRESET) is noticed, and acted on, by reading.
            return error.errno not in (errno.EAGAIN, errno.ENOBUFS)
        return True

    def _send_rest(self) -> None:
        while self._unsent and self._write(self._unsent[0]):
            del self._unsent[0]
        if self.lines_dropped and not self._unsent and self._write(DROPPED + b"%d" % self.lines_dropped):
            self.lines_dropped = 0

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._send_rest()
            if not self._unsent and not self.lines_dropped and self._watcher is not None:
                self._watcher.modify(self.fd, self._wanted())
        if events & ~select.EPOLLOUT:
            self.receive()

    def _want_room(self) -> None:
        if self._watcher is not None:
            self._watcher.modify(self.fd, self._wanted())

    def _wanted(self) -> int:
        return select.EPOLLIN | (select.EPOLLOUT if self._unsent or self.lines_dropped else 0)


def supervise(fd: int, front: int, engine: Engine, become_target: "Callable[[], NoReturn]") -> None:
    """Be the supervisor: fork the target and serve it. Every signal must be blocked already.

    `fd` is this process's end of the link, `front` the front's pid. Returns when all is over.
    """
    become_subreaper()
    _forget_pending_signals()
    target = os.fork()
    if target == 0:
        become_target()
    let_go_of_callers_descriptors(standard=(0, 1, 2))
    link = Link(fd, target, front)
    link._report(TARGET + b"%d" % target)
    rename_process(f"{SUPERVISOR} of {target}")
    raise_descriptor_limit()
    try:
        engine.in_supervisor(link)
    except Exception:
        # The boundary of this process: nobody above is left to tell, and the front prints it before it ends the target.
        import traceback

        link.line(traceback.format_exc())
        raise
    finally:
        if link.target_ended:
            link.flush()


def become_subreaper() -> None:
    """Have orphaned descendants become children of this process: prctl(2), PR_SET_CHILD_SUBREAPER."""
    linux.prctl(PR_SET_CHILD_SUBREAPER, 1)


def never_dump_core() -> None:
    """No core file of this process, nor a call of the program that core_pattern names (which RLIMIT_CORE allows)."""
    linux.prctl(PR_SET_DUMPABLE, 0)


def signal_descriptor(signals: "set[signal.Signals] | set[int]") -> int:
    """A signalfd(2), non-blocking, close-on-exec, for signals that are blocked. Raises OSError."""
    mask = ctypes.create_string_buffer(128)  # sigset_t, 1024 bits in glibc and musl
    _libc.sigemptyset(mask)
    for number in signals:
        _libc.sigaddset(mask, int(number))
    fd: int = _libc.signalfd(-1, mask, SFD_NONBLOCK | SFD_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd: " + os.strerror(ctypes.get_errno()))
    return fd


def read_signals(fd: int) -> list[tuple[int, int]]:
    """Signals taken from a signalfd, as (number, pid of the sender); empty when none is pending."""
    try:
        data = os.read(fd, 16 * SIGNALFD_SIGINFO)
    except BlockingIOError:
        return []
    word = [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4)]
    return [(word[at], word[at + 3]) for at in range(0, len(word), SIGNALFD_SIGINFO // 4)]


def let_go_of_callers_descriptors(standard: tuple[int, ...], keep: int = 2) -> None:
    """Close what the caller passed on (to the target, not to us), or its pipes would never end.

    Those are the inheritable ones: all of our own are close-on-exec. `standard` ones become /dev/null.
    Standard error, if not among them, and `keep` stay.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for fd in standard:
        os.dup2(null, fd, inheritable=False)
    os.close(null)
    try:
        candidates = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # no /proc
        candidates = list(range(3, min(os.sysconf("SC_OPEN_MAX"), 4096)))
    for fd in candidates:
        try:
            if fd > 2 and fd != keep and os.get_inheritable(fd):
                os.close(fd)
        except OSError:  # the descriptor of the listing itself, or none
            continue


def children() -> list[int]:
    """The pids of this process's children, zombies included. Empty without /proc."""
    me = str(os.getpid())
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    return [pid for pid in pids if _stat(pid)[1:2] == [me]]


def stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or (as under strace) by its tracer."""
    return _stat(pid)[:1] in (["T"], ["t"])


def rename_process(title: str) -> None:
    """Show another name and command line, so that `pkill -f pysocksify` finds the front alone.

    The canary relies on it: a signal sent to both would look like one sent to the group, and miss the target.
    """
    try:
        with open("/proc/self/comm", "w", encoding="utf-8") as file:
            file.write(title.split(" ", 1)[0])
    except OSError:
        return
    start, end = map(int, _stat(os.getpid())[45:47])  # arg_start and arg_end
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, title.encode()[: end - start - 1], min(len(title.encode()), end - start - 1))


def raise_descriptor_limit() -> None:
    """Have as many descriptors as the hard limit allows: the target's connections are ours as well."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the third, the state, on; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # pid (comm) state ppid …; comm may hold anything, blanks and brackets too
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _forget_pending_signals() -> None:
    """What went to the group before the target exists hasn't reached it: let the canary not claim so."""
    for number in signal.sigpending():
        signal.sigtimedwait({number}, 0)


def _superseded(number: int) -> bool:
    """Whether a stop or SIGCONT was taken away from the canary by its opposite, sent to the group since, signal(7)."""
    if number == signal.SIGCONT:
        return bool(signal.sigpending() & STOPS)
    return number in STOPS and signal.SIGCONT in signal.sigpending()


def _call(callbacks: list[Callable[[], object]]) -> None:
    while callbacks:
        callbacks.pop(0)()


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # ended by itself; or it is another user's by now
        return
