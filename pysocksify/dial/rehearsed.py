"""A dial that was made before: the same words again, as long as the answers are the same too.

What is said to the hops of a strict chain to reach one destination is always the same, and a proxy mostly answers the
same. So the steps of a dial that succeeded are kept and performed without asking the protocols again, which takes half
of what a dial costs. At the first answer or failure that is another one, the protocols are told all that was said so
far, and go on from there. Nothing here knows what any of the bytes mean.
"""

from collections.abc import Callable

from pysocksify.dial.hops import DialSteps, Open
from pysocksify.dial.transport import DONTWAIT, Spoken, Transport, go_on, perform, send, take
from pysocksify.errors import ConversationError
from pysocksify.protocol.conversation import Exactly, Send
from pysocksify.reactor import Steps
from pysocksify.route.chain import Proxy


class Rehearsed:
    """Dials to one destination. `steps` begins a dial; the steps must depend on nothing but their answers."""

    def __init__(self, steps: Callable[[], DialSteps], now: Callable[[], float]) -> None:
        self._steps = steps
        self._now = now
        self._script: list[Spoken] = []
        self._path: tuple[Proxy, ...] = ()

    def perform(self, transport: Transport) -> Steps[tuple[Proxy, ...]]:
        """Dial; the hops are returned. DialError."""
        script = self._script
        if not script:
            spoken: list[Spoken] = []
            path = yield from perform(self._steps(), transport, self._now, spoken)
            self._script, self._path = spoken, path
            return path
        now = self._now
        for index, (step, expected) in enumerate(script):
            answer: bytes | None = None
            try:
                if isinstance(step, Send):
                    yield from send(transport, step.data)
                elif isinstance(step, Open):
                    yield from transport.open(step.address, now() + step.timeout)
                elif isinstance(step.need, Exactly) and not transport.awaiting:
                    answer = transport.sock.recv(step.need.size, DONTWAIT)
                    if answer != expected:
                        answer = yield from take(transport, step, now, answer)
                else:
                    answer = yield from take(transport, step, now)
            except (OSError, ConversationError) as failure:
                return (yield from self._improvise(transport, index, None, failure))
            if answer != expected:
                return (yield from self._improvise(transport, index, answer, None))
        return self._path

    def _improvise(
        self, transport: Transport, index: int, answer: bytes | None, failure: Exception | None
    ) -> Steps[tuple[Proxy, ...]]:
        """Tell the protocols what was said before step `index`, which came out otherwise, and let them go on."""
        steps = self._steps()
        try:
            next(steps)
            for _, before in self._script[:index]:
                steps.send(before)
            step = steps.send(answer) if failure is None else steps.throw(failure)
            return (yield from go_on(step, steps, transport, self._now))
        except StopIteration as stop:
            path: tuple[Proxy, ...] = stop.value
            return path
        finally:
            steps.close()
