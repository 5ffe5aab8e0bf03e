"""The event loops of asyncio (its own, uvloop)."""

import asyncio
import contextvars
import gc
import sys
from asyncio import current_task
from collections.abc import Awaitable, Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any

from fastapi_bgx.backends.base import Handle, frame_of, is_cancellation

IDLE_SECONDS = 0.001
"""How often to look whether a loop is idle: asyncio does not tell."""


class AsyncioWaiter:
    """A future without a result."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[None] = loop.create_future()

    def set(self) -> None:
        """Wake the coroutine."""
        if not self._future.done():
            self._future.set_result(None)

    def wait(self) -> Awaitable[None]:
        """Wait until it is set."""
        return self._future


class AsyncioInterrupt:
    """Cancels the asyncio task that entered it, and takes back what it asked for.

    The same bookkeeping as `asyncio.timeout`: a cancellation is ours when the count of requested
    cancellations is back where it was once we have taken ours back.
    """

    __slots__ = ("_before", "_fired", "_host", "caught", "outside")
    obeys = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        host = current_task(loop)
        assert host is not None, "entered outside of an asyncio task"
        self._host: asyncio.Task[Any] | None = host
        self._before = host.cancelling()
        self._fired = 0
        self.caught: BaseException | None = None
        self.outside = False

    def __enter__(self) -> "AsyncioInterrupt":
        """Enter the block."""
        return self

    def fire(self) -> None:
        """Cancel what runs in the block."""
        if self._host is None:
            return
        if asyncio.current_task() is self._host:
            # The block itself asks. A cancellation delivered to running code would hit whatever
            # awaits next, perhaps after the block: deliver it when the code waits.
            asyncio.get_running_loop().call_soon(self.fire)
            return
        self._fired += 1
        self._host.cancel()

    def abandon(self, message: str, /) -> None:
        """Cancel once more, with an exception that carries `message`."""
        if self._host is not None:
            self._fired += 1
            self._host.cancel(message)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Leave the block; True when the cancellation was ours alone."""
        host, self._host = self._host, None
        assert host is not None, "left twice"
        if error is None and not self._fired:  # what happens nearly always
            return False
        for _ in range(self._fired):
            host.uncancel()
        # Only where a cancellation came out: asyncio delivers one once, and who swallowed it goes
        # on. Code that cancels its own task to time out, and forgets to take that back, does too.
        cancelled = is_cancellation(error, asyncio.CancelledError)
        self.outside = cancelled and host.cancelling() > self._before
        if self._fired and isinstance(error, asyncio.CancelledError) and not self.outside:
            self.caught = error
            return True
        return False


class AsyncioObserver:
    """asyncio tells every thread which task a loop runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def running(self) -> tuple[contextvars.Context | None, FrameType | None]:
        """Context and frame of the current asyncio task; of a mere callback nothing is known."""
        task = current_task(self._loop)
        return (None, None) if task is None else (_context_of(task), frame_of(task.get_coro()))

    def end(self) -> None:
        """There is nothing to end."""


class AsyncioBackend:
    """One asyncio event loop."""

    cancelled: type[BaseException] = asyncio.CancelledError
    eager = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._spawned: set[asyncio.Task[None]] = set()
        self.token: object = loop

    def call_soon_threadsafe(self, callback: Callable[[], Any]) -> None:
        """Call `callback` on the loop's thread."""
        self._loop.call_soon_threadsafe(callback, context=contextvars.Context())

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Handle:
        """Call `callback` after `delay` seconds."""
        return self._loop.call_later(delay, callback, context=contextvars.Context())

    def spawn(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a coroutine function as a task of its own."""
        task = self._loop.create_task(_run(function), context=contextvars.Context())
        self._spawned.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._spawned.discard)

    def waiter(self) -> AsyncioWaiter:
        """A new waiter."""
        return AsyncioWaiter(self._loop)

    def interrupt(self) -> AsyncioInterrupt:
        """A new interrupt."""
        return AsyncioInterrupt(self._loop)

    def observer(self) -> AsyncioObserver:
        """A new observer."""
        return AsyncioObserver(self._loop)

    def when_idle(self, callback: Callable[[], Any]) -> None:
        """Call `callback` once every task waits for a future that is not done."""
        waiting = (getattr(task, "_fut_waiter", None) for task in asyncio.all_tasks(self._loop))
        if all(future is not None and not future.done() for future in waiting):
            callback()
        else:
            self.call_later(IDLE_SECONDS, lambda: self.when_idle(callback))

    def ending(self) -> bool:
        """True when the runner of the loop has cancelled every task."""
        tasks = () if self._loop.is_closed() else asyncio.all_tasks(self._loop)
        return all(task.cancelling() for task in tasks)

    def ended(self) -> bool:
        """True when the loop was closed."""
        return self._loop.is_closed()

    async def checkpoint(self) -> None:
        """Let others run."""
        await asyncio.sleep(0)

    async def raise_cancelled(self) -> None:
        """Raise the cancellation anew: asyncio delivers one only once."""
        await asyncio.sleep(0)  # a cancel scope of anyio delivers it again, and knows only its own
        raise asyncio.CancelledError


def _run(function: Callable[[], Awaitable[None]]) -> Coroutine[Any, Any, None]:
    async def run() -> None:
        await function()

    return run()


if sys.version_info >= (3, 12):  # pragma: no cover - covered where it runs

    def _context_of(task: asyncio.Task[Any]) -> contextvars.Context | None:
        return task.get_context()

else:  # pragma: no cover - covered where it runs

    def _context_of(task: asyncio.Task[Any]) -> contextvars.Context | None:
        # It comes before those of callbacks, among what the task tells the garbage collector.
        found = (each for each in gc.get_referents(task) if isinstance(each, contextvars.Context))
        return next(found, None)
