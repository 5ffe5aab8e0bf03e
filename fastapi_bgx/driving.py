"""Running a coroutine inside a context that is not its caller's.

A coroutine does nothing between its steps, so it is enough to make each step inside the context:
no task of its own is needed. Measured on asyncio: 0.24 µs for a first step, against 4.5 µs for a
task with a copied context.
"""

import contextlib
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, TypeVar

ABANDON = "fastapi_bgx: the function swallowed its cancellation and is abandoned"
"""A cancellation with this message ends the driving, and not only what the coroutine waits for."""

T = TypeVar("T")


@types.coroutine
def resume(
    coroutine: Coroutine[Any, Any, T] | Generator[Any, Any, T], context: Context, yielded: Any
) -> Generator[Any, Any, T]:
    """Go on with a coroutine that yielded at its first step; to be awaited."""
    step: Callable[[Any], Any]
    value: Any
    while True:
        try:
            sent = yield yielded
        except GeneratorExit:
            context.run(coroutine.close)
            raise
        except BaseException as error:
            if error.args == (ABANDON,):
                with contextlib.suppress(Exception):  # it may go on instead: not with us
                    context.run(coroutine.close)
                raise
            # Its traceback has this frame so far, which would come last: as if it were the place.
            step, value = coroutine.throw, error.with_traceback(None)
        else:
            step, value = coroutine.send, sent
        try:
            yielded = context.run(step, value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # a StopIteration is not generic


async def drive(coroutine: Coroutine[Any, Any, T], context: Context) -> T:
    """Run a whole coroutine inside `context`."""
    try:
        first = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    return await resume(coroutine, context, first)


async def awaiting(awaitable: Awaitable[T]) -> T:
    """A coroutine for any awaitable."""
    return await awaitable


def discard(value: object) -> None:
    """Close a coroutine that nobody will await, so that Python does not warn of it."""
    if inspect.iscoroutine(value):
        value.close()
