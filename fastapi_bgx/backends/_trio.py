"""trio. The one module that imports it; loaded only when trio runs."""

import contextvars
import math
from collections.abc import Awaitable, Callable
from types import FrameType, TracebackType
from typing import Any

import trio

from fastapi_bgx.backends.base import Handle, frame_of


class TrioWaiter:
    """A trio event."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Wake the coroutine."""
        self._event.set()

    def wait(self) -> Awaitable[None]:
        """Wait until it is set."""
        return self._event.wait()


class TrioInterrupt:
    """A cancel scope that keeps the cancellation it caught."""

    __slots__ = ("_scope", "caught", "outside")
    obeys = True

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self.caught: BaseException | None = None
        self.outside = False

    def __enter__(self) -> "TrioInterrupt":
        """Enter the block."""
        self._scope.__enter__()
        return self

    def fire(self) -> None:
        """Cancel what runs in the block."""
        self._scope.cancel()

    def abandon(self, _message: str, /) -> None:
        """Every checkpoint in the block raises already."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Leave the block; true when the cancellation was ours alone."""
        swallowed = self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            self.caught = error
        self.outside = trio.current_effective_deadline() == -math.inf
        return swallowed


class _Later:
    """A callback that a system task calls after a delay."""

    __slots__ = ("_scope",)

    def __init__(self, delay: float, callback: Callable[[], Any]) -> None:
        self._scope = trio.CancelScope()
        due = trio.current_time() + delay  # the task may begin late, when somebody blocks the loop

        async def wait() -> None:
            with self._scope:
                await trio.sleep_until(due)
                callback()

        trio.lowlevel.spawn_system_task(wait, context=contextvars.Context())

    def cancel(self) -> None:
        """Do not call it."""
        self._scope.cancel()


class TrioObserver(trio.abc.Instrument):
    """Notes each step of each task: another thread cannot ask trio."""

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        trio.lowlevel.add_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A step begins."""
        self._task = task

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - as trio has it
        """A step has ended."""
        self._task = None

    def running(self) -> tuple[contextvars.Context | None, FrameType | None]:
        """Context and frame of the trio task that makes a step."""
        task = self._task
        return (None, None) if task is None else (task.context, frame_of(task.coro))

    def end(self) -> None:
        """Note nothing any more."""
        trio.lowlevel.remove_instrument(self)


class TrioBackend:
    """One run of trio."""

    cancelled: type[BaseException] = trio.Cancelled
    eager = False  # a trio cancel scope has to be entered before the code that it covers

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.token: object = self._token

    def call_soon_threadsafe(self, callback: Callable[[], Any]) -> None:
        """Call `callback` on the loop's thread."""
        self._token.run_sync_soon(callback)

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Handle:
        """Call `callback` after `delay` seconds."""
        return _Later(delay, callback)

    def spawn(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a coroutine function as a system task."""
        trio.lowlevel.spawn_system_task(function, context=contextvars.Context())

    def waiter(self) -> TrioWaiter:
        """A new waiter."""
        return TrioWaiter()

    def interrupt(self) -> TrioInterrupt:
        """A new interrupt."""
        return TrioInterrupt()

    def observer(self) -> TrioObserver:
        """A new observer."""
        return TrioObserver()

    def when_idle(self, callback: Callable[[], Any]) -> None:
        """Call `callback` once every task is blocked."""
        import trio.testing

        async def wait() -> None:
            await trio.testing.wait_all_tasks_blocked()
            callback()

        self.spawn(wait)

    def ending(self) -> bool:
        """True: nothing else cancels a system task."""
        return True

    def ended(self) -> bool:
        """True when the run is over."""
        try:
            self._token.run_sync_soon(_nothing)
        except trio.RunFinishedError:
            return True
        return False

    async def checkpoint(self) -> None:
        """Let others run."""
        await trio.lowlevel.checkpoint()

    async def raise_cancelled(self) -> None:
        """Raise the cancellation: trio does so at every checkpoint."""
        await trio.lowlevel.checkpoint()


def _nothing() -> None:
    """What is called to see whether anything can be."""
