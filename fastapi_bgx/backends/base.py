"""What the runner needs from an event loop, and nothing else."""

from collections.abc import Awaitable, Callable
from contextvars import Context
from types import FrameType, TracebackType
from typing import Any, Protocol, cast


class Handle(Protocol):
    """A callback that is due later."""

    def cancel(self) -> None:
        """Do not call it."""
        ...


class Waiter(Protocol):
    """Something that one coroutine waits for and that is set once, on the loop's thread."""

    def set(self) -> None:
        """Wake the coroutine. A second call does nothing."""
        ...

    def wait(self) -> Awaitable[Any]:
        """Wait until it is set."""
        ...


class Interrupt(Protocol):
    """A block of code that can be cancelled from outside, on the loop's thread.

    A cancellation that comes from `fire` ends at the block; one that comes from elsewhere (the
    server, a cancel scope around) passes through.
    """

    obeys: bool
    """True: what runs in the block can be cancelled."""
    caught: BaseException | None
    """After the block: the cancellation that `fire` caused and that ended it."""
    outside: bool
    """After the block: true when somebody else is cancelling the coroutine that entered."""

    def __enter__(self) -> "Interrupt":
        """Enter the block."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Leave the block."""
        ...

    def fire(self) -> None:
        """Cancel what runs in the block."""
        ...

    def abandon(self, message: str, /) -> None:
        """Cancel once more, with an exception that carries `message`; trio has nothing to add."""
        ...


class Observer(Protocol):
    """Sees from another thread what the loop runs."""

    def running(self) -> tuple[Context | None, FrameType | None]:
        """The context, and the outermost frame, of what the loop spawned and runs now."""
        ...

    def end(self) -> None:
        """Observe no more; on the loop's thread."""
        ...


class Backend(Protocol):
    """One running event loop."""

    cancelled: type[BaseException]
    """The exception that a cancellation raises."""
    eager: bool
    """True when a coroutine may be stepped by hand before an `Interrupt` is entered."""
    token: object
    """The same object for every backend of one running loop."""

    def call_soon_threadsafe(self, callback: Callable[[], Any]) -> None:
        """Call `callback` on the loop's thread; from any thread.

        Raises:
            RuntimeError: the loop has ended.
        """
        ...

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Handle:
        """Call `callback` after `delay` seconds, on the loop's thread."""
        ...

    def spawn(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a coroutine function beside everything else, in an empty context."""
        ...

    def waiter(self) -> Waiter:
        """A new waiter."""
        ...

    def interrupt(self) -> Interrupt:
        """A new interrupt for the coroutine that enters it."""
        ...

    def observer(self) -> Observer:
        """A new observer; on the loop's thread."""
        ...

    def when_idle(self, callback: Callable[[], Any]) -> None:
        """Call `callback` once every coroutine waits for something; on the loop's thread."""
        ...

    def ending(self) -> bool:
        """True when everything that runs on the loop is being cancelled, or the loop stops."""
        ...

    def ended(self) -> bool:
        """True when the loop will never run again."""
        ...

    async def checkpoint(self) -> None:
        """Let others run; raises here when the coroutine is being cancelled."""
        ...

    async def raise_cancelled(self) -> None:
        """Raise the cancellation of the coroutine that calls, which somebody swallowed."""
        ...


def frame_of(coroutine: object) -> FrameType | None:
    """The frame of a coroutine that has not ended; `None` for what has none."""
    frame: FrameType | None = getattr(coroutine, "cr_frame", None)
    return frame


def is_cancellation(error: BaseException | None, cancelled: type[BaseException]) -> bool:
    """True for the exception of a cancellation, and for a group with one in it."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        part: object = group.subgroup(cancelled)
        return part is not None
    return isinstance(error, cancelled)
