"""Running the steps of a dial without the reactor: in the calling thread, or in asyncio's running loop.

Each performs what the steps wait for (`Ready`, `Pause`, `InThread`) and has no other part in dialling.
"""

import errno
import selectors
import time
from typing import TYPE_CHECKING, Any, TypeVar

from pysocksify.reactor import READ, InThread, Pause, Ready, Steps

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
# no descriptor of its own, and none above 1023 too high for it, where the system has poll(2)
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class _Expired(Exception):
    """The caller's own time limit. The steps don't hear of it: they would take it for a hop's and try another one."""


def run(steps: Steps[T], deadline: float | None = None) -> T:
    """Perform the steps in this thread; their value is returned and their exception raised.

    TimeoutError: it took until `deadline` (time.monotonic()). The steps are closed however it ends.
    """
    try:
        wait = next(steps)
        while True:
            try:
                value = _perform(wait, deadline)
            except _Expired:
                raise TimeoutError(errno.ETIMEDOUT, "timed out") from None
            except Exception as error:  # the steps' to deal with, whatever it is
                wait = steps.throw(error)
            else:
                wait = steps.send(value)
    except StopIteration as stop:
        outcome: T = stop.value
        return outcome
    finally:
        steps.close()


async def run_in_loop(steps: Steps[T]) -> T:
    """Perform the steps in asyncio's running loop; their value is returned and their exception raised.

    The steps are closed however it ends, by cancellation too.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    try:
        wait = next(steps)
        while True:
            try:
                value: Any = None
                if isinstance(wait, Ready):
                    await _until_ready(loop, wait)
                elif isinstance(wait, Pause):
                    await asyncio.sleep(wait.seconds)
                else:
                    value = await loop.run_in_executor(None, wait.function)
            except Exception as error:  # the steps' to deal with, whatever it is
                wait = steps.throw(error)
            else:
                wait = steps.send(value)
    except StopIteration as stop:
        outcome: T = stop.value
        return outcome
    finally:
        steps.close()


def _perform(wait: Ready | Pause | InThread, deadline: float | None) -> Any:
    if isinstance(wait, InThread):  # this thread is there to be blocked
        return wait.function()
    if isinstance(wait, Pause):
        time.sleep(wait.seconds)
        return None
    limits = [limit for limit in (wait.deadline, deadline) if limit is not None]
    with _Selector() as selector:
        reading = wait.events & READ
        selector.register(wait.fd, selectors.EVENT_READ if reading else selectors.EVENT_WRITE)
        if selector.select(max(0.0, min(limits) - time.monotonic()) if limits else None):
            return wait.events
    if deadline is not None and time.monotonic() >= deadline:
        raise _Expired
    raise TimeoutError


async def _until_ready(loop: "asyncio.AbstractEventLoop", wait: Ready) -> None:
    future: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    def expire() -> None:
        if not future.done():
            future.set_exception(TimeoutError())

    reading = bool(wait.events & READ)
    (loop.add_reader if reading else loop.add_writer)(wait.fd, ready)
    # loop.time() is time.monotonic() in asyncio, not necessarily in other loops
    timer = None if wait.deadline is None else loop.call_later(max(0.0, wait.deadline - time.monotonic()), expire)
    try:
        await future
    finally:
        if timer is not None:
            timer.cancel()
        (loop.remove_reader if reading else loop.remove_writer)(wait.fd)
