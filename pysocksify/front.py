"""The front: the process that the shell sees. It starts supervisor and target, and behaves as the target does.

Theory of operation (`supervisor.processes` has the rest)
----------------------------------------------------------
`run` blocks every signal, forks the supervisor, which forks the target, and then waits for two things: signals, which
it passes to the supervisor to forward, and messages from the supervisor.

- The target stopped: the front stops itself by the same signal, so that the shell sees a stopped job. The target's
  continuing (`fg`: SIGCONT to the group) may cross with that. So the front first makes the stop signal pending
  (blocked), then looks whether the target is stopped still, and only then unblocks the signal: a SIGCONT before the
  look shows there, and one after it takes the pending signal away or continues the front. What continues the target
  alone is passed on by the supervisor, which sends the front SIGCONT.
- The target ended: the front returns the same exit status, or dies by the same signal. The supervisor lives on while
  descendants do; it holds nothing of the caller's. As process 1 of a container the front waits for it.
- The supervisor ended before the target: without it nothing would answer the target's calls. The front, a subreaper
  too, has become its children's parent, and kills them.

Lines for the person are written only when the descriptor takes them: a front that is blocked in write(2), behind a
pager that was stopped with the job, couldn't stop itself, and the shell would wait for ever.
"""

import _socket
import os
import select
import signal
from collections import deque
from collections.abc import Callable, Collection

from pysocksify.engines.handover.wire import stand_aside
from pysocksify.program import OWN_FAILURE, NotStartedError, check_program, coerced_locale, execute
from pysocksify.supervisor import processes
from pysocksify.supervisor.processes import DROPPED, FAILED, FORWARD, LINE, MESSAGE_LIMIT, STATUS, TARGET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

LINES_WAITING = 1000  # lines kept while they can't be written; the supervisor's are then dropped


def run(
    argv: list[str],
    engine: processes.Engine,
    *,
    write_line: Callable[[str], object],
    write_fd: int = 2,
    say: Callable[[str], object] | None = None,
    unset: Collection[str] = (),
) -> int:
    """Run a program under an engine and return its exit status, to be given to exit(3) at once.

    Doesn't return when the program was killed by a signal: this process then dies by the same. Afterwards all signals
    are blocked, and standard input and output are /dev/null.

    `write_line` gets each line for the person, when `write_fd` (where it writes to) takes it. `say` writes to standard
    error, and gets the reason why the program isn't run, or not any more (None: `write_line` gets it). `unset` are
    environment variables that the program isn't to see. Raises what `engine.before_fork` raises; nothing runs then.
    """
    say = say or write_line
    try:
        check_program(argv[0])
    except NotStartedError as error:
        say(f"{argv[0]}: {error}")
        return error.exit_status
    _fill_standard_descriptors()
    processes.become_subreaper()
    engine.before_fork()
    mine, supervisors = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    mine_fd, supervisors_fd = mine.detach(), supervisors.detach()
    program = _Program(argv, unset, supervisors_fd)
    me = os.getpid()
    supervisor = os.fork()
    if supervisor == 0:
        exit_status = 1
        try:
            os.close(mine_fd)
            processes.supervise(supervisors_fd, me, engine, lambda: program.become(engine))
            exit_status = 0
        finally:
            os._exit(exit_status)  # nothing of the caller's stack may run twice
    os.close(supervisors_fd)
    engine.in_front()
    processes.let_go_of_callers_descriptors(standard=(0, 1), keep=write_fd)
    return _Front(argv[0], mine_fd, supervisor, write_line, write_fd, say).wait()


class _Program:
    """What the target is to be, and how this process was before Python and `run` changed it."""

    def __init__(self, argv: list[str], unset: Collection[str], link: int) -> None:
        self.argv = argv
        self.unset = unset
        self.link = link
        # Python ignores SIGPIPE and SIGXFSZ, and there is no way to see what they were; it takes SIGINT unless ignored.
        self.defaults = [signal.SIGPIPE, signal.SIGXFSZ]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self.defaults.append(signal.SIGINT)
        self.children_ignored = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take away the statuses of children
        self.mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())

    def become(self, engine: processes.Engine) -> "NoReturn":
        """Install the catching and execute the program. In the target only."""
        try:
            for name in (*self.unset, *coerced_locale()):
                os.environ.pop(name, None)
            stand_aside(os.environ)
            try:
                engine.in_target(self.argv)
            except OSError as error:
                raise NotStartedError(f"can't be caught: {error.strerror or error}", OWN_FAILURE) from error
            for number in self.defaults:
                signal.signal(number, signal.SIG_DFL)
            if self.children_ignored:
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
            execute(self.argv)
        except NotStartedError as error:
            os.write(self.link, FAILED + f"{error.exit_status} {error}".encode("utf-8", "surrogateescape"))
            os._exit(error.exit_status)
        except Exception as error:  # the boundary of this process: a bug must not look like the program's own end
            os.write(self.link, FAILED + f"{OWN_FAILURE} internal error: {error!r}".encode("utf-8", "backslashreplace"))
        finally:
            os._exit(OWN_FAILURE)


class _Front:
    """The waiting front."""

    def __init__(
        self,
        name: str,
        link: int,
        supervisor: int,
        write_line: Callable[[str], object],
        write_fd: int,
        say: Callable[[str], object],
    ) -> None:
        self.name = name
        self.link = link
        self.supervisor = supervisor
        self.supervisor_status: int | None = None
        self.target = 0
        self.target_status: int | None = None
        self.failure: tuple[int, str] | None = None
        self.stop_signal = 0
        self.over = False
        self.last = os.getpid() == 1  # of a container: nobody else waits for descendants
        self.link_open = True
        self.write_line = write_line
        self.write_fd = write_fd
        self.say = say
        self.lines: deque[str] = deque()
        self.lines_dropped = 0
        self.signals = processes.signal_descriptor(signal.valid_signals())
        os.set_blocking(link, False)

    def wait(self) -> int:
        """Until the target (as process 1: the supervisor) ended. Returns the exit status or dies by the signal."""
        poller = select.poll()
        poller.register(self.signals, select.POLLIN)
        poller.register(self.link, select.POLLIN)
        while self.link_open and (self.last or self.target_status is None):
            self.serve(poller)
        self.over = True
        poller.unregister(self.link)
        if not self.link_open and self.supervisor_status is None:
            self.supervisor_status = os.waitpid(self.supervisor, 0)[1]
        reason = ""
        if self.target_status is None:
            reason = self.end_without_supervisor()
        elif self.failure is not None:
            reason = f"{self.name}: {self.failure[1]}"
        self.tell_dropped()
        while self.lines:
            self.serve(poller)
        if reason:
            self.write_line, self.write_fd = self.say, 2
            self.lines.append(reason)
        while self.lines:
            self.serve(poller)
        if self.target_status is None:
            return OWN_FAILURE
        return self.failure[0] if self.failure is not None else end_as(self.target_status)

    def serve(self, poller: select.poll) -> None:
        """Wait for something to do, and do it."""
        if self.lines:
            poller.register(self.write_fd, select.POLLOUT)
        for fd, _events in poller.poll():
            if fd == self.link:
                self.receive()
            elif fd == self.signals:
                self.take_signals()
            else:
                self.write_next()
                if not self.lines:
                    poller.unregister(fd)
        self.stop()

    def receive(self) -> None:
        """Take the supervisor's messages, as many as there are."""
        while self.link_open:
            try:
                message = os.read(self.link, MESSAGE_LIMIT)
            except BlockingIOError:
                return
            except ConnectionResetError:  # said once, before what is queued, when the other end left messages unread
                continue
            kind, text = message[:1], message[1:].decode("utf-8", "surrogateescape")
            if kind == LINE:
                if len(self.lines) < LINES_WAITING:
                    self.lines.append(text)
                else:
                    self.lines_dropped += 1
            elif kind == DROPPED:
                self.lines_dropped += int(text)
            elif kind == STATUS:
                self.take_status(int(text))
            elif kind == TARGET:
                self.target = int(text)
            elif kind == FAILED:
                code, _, reason = text.partition(" ")
                self.failure = int(code), reason
            else:
                self.link_open = False

    def take_status(self, status: int) -> None:
        """Note what became of the target."""
        if os.WIFSTOPPED(status):
            self.stop_signal = os.WSTOPSIG(status)
        else:
            self.stop_signal = 0
            self.target_status = status

    def take_signals(self) -> None:
        """Pass signals on to the supervisor, but those that mean ourselves."""
        for number, sender in processes.read_signals(self.signals):
            if number == signal.SIGCHLD:
                self.reap()
            elif sender == os.getpid():  # SIGPIPE and SIGXFSZ of our own writing
                continue
            elif self.over:  # only lines are left to be written
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.obey(number)
            elif number != signal.SIGCONT or sender != self.supervisor:  # whose SIGCONT was to wake us alone
                try:
                    os.write(self.link, FORWARD + b"%d" % number)
                except OSError:  # it is dead or hangs: the first shows on reading, the second can't be helped
                    continue

    def reap(self) -> None:
        """Take the statuses of children: the supervisor, and as process 1 whatever is given to us."""
        while self.supervisor_status is None or os.getpid() == 1:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.supervisor:
                self.supervisor_status = status

    def stop(self) -> None:
        """Stop as the target did, unless it goes on already."""
        number, self.stop_signal = self.stop_signal, 0
        if number in processes.STOPS:
            self.obey(number, lambda: processes.stopped(self.target))
        elif number and processes.stopped(self.target):  # SIGSTOP can't be made pending: a small gap is left
            os.kill(os.getpid(), number)

    def obey(self, number: int, still: Callable[[], bool] = lambda: True) -> None:
        """Do what a signal does by default, if `still` says so once the signal is pending."""
        before = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        if not still():
            signal.sigtimedwait({number}, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})  # a stop lasts from here to SIGCONT
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        signal.signal(number, before)

    def end_without_supervisor(self) -> str:
        """Kill what the supervisor left behind, which could make no connection any more; the words for it."""
        status = self.supervisor_status or 0
        if os.WIFSIGNALED(status):
            how = f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        else:
            how = f"ended with status {os.WEXITSTATUS(status)}"
        reason = f"the supervisor {how}: ending {self.name}, which could make no connection any more"
        left = processes.children()
        while left:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except PermissionError:  # another user's by now: it can't be ended, nor waited for
                    return reason
            for pid in left:
                os.waitpid(pid, 0)
            left = processes.children()
        return reason

    def tell_dropped(self) -> None:
        """Once nothing else waits, say how many lines were dropped, here or by the supervisor."""
        if self.lines_dropped and not self.lines:
            self.lines.append(f"{self.lines_dropped} lines lost: they came faster than they could be written")
            self.lines_dropped = 0

    def write_next(self) -> None:
        """Write the line that waits longest, and after the last one how many were dropped."""
        line = self.lines.popleft()
        self.tell_dropped()
        try:
            self.write_line(line)
        except OSError:  # the terminal or the pipe is gone; the program's end is not ours to decide
            return


def end_as(status: int) -> int:
    """The exit status for a wait status; when that is a death by signal, die by it."""
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    processes.never_dump_core()
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    return 128 + number  # process 1 of a PID namespace doesn't die by its own signals, pid_namespaces(7)


def _fill_standard_descriptors() -> None:
    """Open what is closed of 0, 1 and 2, close-on-exec, so that none of ours takes their numbers."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        fd = os.dup(fd)
    os.close(fd)
