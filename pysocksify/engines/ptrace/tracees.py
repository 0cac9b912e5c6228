"""The traced threads: their stops, and what lets them go on.

Theory of operation. Every thread of the target is a tracee (seized before the target's exec; what it starts is traced
from its first instruction on). Its stops come as wait statuses, which `supervisor.processes.Link` hands over first:

- A caught call, before the kernel performs it: a seccomp stop where our filter is installed; else (*plain*) each call's
  entry. The thread stands there until its call is answered. No other thread waits for that.
- The exit of a call, where the answer isn't complete at the entry: see `answer`.
- A signal that is to be delivered: passed on as it is. A thread that waits in a call takes none; the supervisor looks
  at what is pending (`Signalled.LOOKED_FOR`), and answers with -ERESTARTSYS.
- A group-stop (Ctrl-Z): the thread is left stopped (PTRACE_LISTEN) until SIGCONT, as it would be without a tracer. A
  process only counts as stopped when each of its threads stands so: the calls of those that wait are let go.
- The start of a thread or process: it goes on.

An answer. With the filter the call's number becomes -1 and its result is set: nothing else stops. In plain mode outer
filters look at the number once more, and may kill for -1, or answer themselves: there getpid() is performed instead,
and the result set at its exit. -ERESTARTSYS is set at the exit in either mode, with the call's own number, by which the
kernel knows that there is something to restart; PTRACE_INTERRUPT then makes sure that it looks.

What can come late: a thread may be killed in any stop; requests then say ESRCH, and its end comes as a status. After
another thread's exec the id of the first thread means that one: a call is known by where its thread stands.
"""

import errno
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pysocksify.engines.ptrace import selection, tracer
from pysocksify.engines.ptrace.tracer import Stop, Tracer
from pysocksify.engines.syscalls import abi
from pysocksify.supervisor.calls import ERESTARTSYS, process_of
from pysocksify.supervisor.processes import Link

CALL = signal.SIGTRAP | 0x80  # PTRACE_O_TRACESYSGOOD
STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
CONTINUED = 0xFFFF  # the wait status, as WIFCONTINUED knows it


@dataclass(slots=True, eq=False)
class TracedCall:
    """A call of the target whose thread stands at its entry."""

    tracees: "Tracees"
    tid: int
    stop: Stop
    nr: int
    args: tuple[int, ...]
    stopping: bool = False
    """The process is about to stop: EINTR for the call means that it's issued again afterwards."""

    def answer(self, error: int, value: int = 0) -> bool:
        """Let the call return `value`, or fail with `error`. False: nobody waits for it any more."""
        if self.stopping and error == errno.EINTR:
            error = ERESTARTSYS
        return self.tracees.answer(self, error, value)

    def proceed(self, then: Callable[[int], int] | None = None) -> bool:
        """Let the kernel perform the call. `then` is given what it returns, and says what the program is told."""
        return self.tracees.proceed(self, then)

    def waits(self) -> bool:
        """Whether the thread stands there still."""
        return self.tracees.stands(self)


@dataclass(frozen=True, slots=True)
class Exit:
    """What is done when a thread leaves a call that was entered at `instruction`."""

    instruction: int
    act: Callable[[Stop], None]


class Tracees:
    """The stops of all traced threads."""

    def __init__(self, arch: abi.Architecture, link: Link, plain: bool) -> None:
        self._arch = arch
        self._link = link
        self._plain = plain
        self._tracer = Tracer(arch)
        self._selection = selection.Selection(arch)
        self._calls: dict[int, TracedCall] = {}
        self._exits: dict[int, Exit] = {}
        self._just_stopped: TracedCall | None = None
        self._received: Callable[[TracedCall], None] = _nobody
        self._interrupted: Callable[[TracedCall], None] = _nobody

    def attach(self, received: Callable[[TracedCall], None], interrupted: Callable[[TracedCall], None]) -> None:
        """`received` is given each caught call; `interrupted` those that a stop of their process must end."""
        self._received = received
        self._interrupted = interrupted
        self._link.trace(self.took)

    def took(self, tid: int, status: int) -> bool:
        """Deal with a wait status. False: it isn't about a stop but about an end."""
        if not os.WIFSTOPPED(status):
            self._calls.pop(tid, None)
            self._exits.pop(tid, None)
            return False
        event, number = status >> 16, status >> 8 & 0xFF
        with suppress(ProcessLookupError):  # it was killed
            if event == tracer.EVENT_SECCOMP or number == CALL:
                self._at_call(tid)
            elif event == tracer.EVENT_STOP:
                self._stopped(tid, number)
            else:
                self._resume(tid, 0 if event else number)
        return True

    def answer(self, call: TracedCall, error: int, value: int) -> bool:
        """Let a call return `value`, or fail with `error`."""
        if not self._takes(call):
            return False
        with suppress(ProcessLookupError):  # it was killed
            result = -error if error else value
            if self._plain:
                self._tracer.set_number(call.tid, self._arch.getpid)
            else:
                self._tracer.set_number(call.tid, -1)
                self._tracer.set_value(call.tid, result)
            if self._plain or error == ERESTARTSYS:
                self._at_exit(call, lambda _: self._end(call, result))
            else:
                self._resume(call.tid)
            return True
        return False

    def proceed(self, call: TracedCall, then: Callable[[int], int] | None) -> bool:
        """Let the kernel perform a call, and `then` change what it returns."""
        if not self._takes(call):
            return False

        def act(stop: Stop) -> None:
            assert then is not None
            told = then(stop.value)
            if told != stop.value:
                self._tracer.set_value(call.tid, told)

        with suppress(ProcessLookupError):  # it was killed
            if then is None:
                self._resume(call.tid)
            else:
                self._at_exit(call, act)
            return True
        return False

    def stands(self, call: TracedCall) -> bool:
        """Whether the call's thread stands at its entry still."""
        if self._calls.get(call.tid) is not call:
            return False
        with suppress(ProcessLookupError):  # it was killed
            return self._tracer.stop(call.tid) == call.stop
        return False

    def _takes(self, call: TracedCall) -> bool:
        """Whether a call waits for its answer, which it then gets."""
        if call is not self._just_stopped and not self.stands(call):
            return False
        return self._calls.pop(call.tid, None) is call

    def _resume(self, tid: int, number: int = 0) -> None:
        self._tracer.resume(tid, number, self._plain)

    def _at_exit(self, call: TracedCall, act: Callable[[Stop], None]) -> None:
        self._exits[call.tid] = Exit(call.stop.instruction, act)
        self._tracer.resume(call.tid, 0, True)

    def _end(self, call: TracedCall, result: int) -> None:
        """At the exit of an answered call."""
        if result == -ERESTARTSYS:
            self._tracer.set_number(call.tid, call.nr)
            tracer.interrupt(call.tid)
        self._tracer.set_value(call.tid, result)

    def _at_call(self, tid: int) -> None:
        """A thread enters or leaves a call."""
        stop = self._tracer.stop(tid)
        if stop.op == tracer.EXIT:
            leaving = self._exits.pop(tid, None)
            if leaving is not None and leaving.instruction == stop.instruction:
                leaving.act(stop)
            self._resume(tid)
            return
        if stop.op == tracer.SECCOMP and stop.data == abi.TRACE_MARK:
            verdict = selection.CATCH
        else:
            verdict = self._selection.verdict(stop.audit_arch, stop.nr, stop.args)
            if verdict == selection.PASS and stop.op == tracer.ENTRY:
                self._resume(tid)
                return
        call = TracedCall(self, tid, stop, stop.nr, stop.args)
        self._calls[tid] = self._just_stopped = call
        if verdict == selection.CATCH:
            self._received(call)
        else:
            # a sandbox's own RET_TRACE: ENOSYS, as without a tracer (seccomp(2))
            call.answer(errno.ENOSYS if verdict == selection.PASS else verdict & 0xFFFF)
        self._just_stopped = None

    def _stopped(self, tid: int, number: int) -> None:
        """PTRACE_EVENT_STOP: a group-stop, the end of one, or a thread's start."""
        if number not in STOPS:
            if tid == self._link.target and self._link.target_stopped:
                self._link.target_changed(CONTINUED)
            self._resume(tid)
            return
        self._tracer.listen(tid)
        if tid == self._link.target:
            self._link.target_changed(number << 8 | 0x7F)
        if self._calls:
            process = process_of(tid)
            for call in [call for call in self._calls.values() if process_of(call.tid) == process]:
                call.stopping = True
                self._interrupted(call)


def _nobody(call: TracedCall) -> None:
    raise AssertionError(f"call {call.nr} before anybody serves")
