"""Where an attempt's function runs: on the event loop, in a thread, in a worker process.

One coroutine for each; `run_attempt` picks. On asyncio, async functions take a shorter way, by
`first_step` and `go_on`.
"""

import inspect
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType
from typing import Any, NamedTuple, cast

from fastapi_bgx.attempt import (
    OUTSIDE,
    TIMEOUT,
    Ending,
    Watch,
    Workplace,
    judge,
    timed_out,
    without_our_frames,
)
from fastapi_bgx.backends import Waiter
from fastapi_bgx.driving import awaiting, discard, drive, resume
from fastapi_bgx.outcome import Status
from fastapi_bgx.processes import run_in_worker, warm_worker
from fastapi_bgx.task import Task, current


class Steps(NamedTuple):
    """A coroutine, and what it yielded at its first step."""

    coroutine: Coroutine[Any, Any, Any]
    yielded: object


def first_step(task: Task[Any]) -> Steps | None:
    """Call an async function and make its first step; runs inside the task's context.

    Gives what is left of it; `None` when it has returned already, with its value in the task.
    A coroutine function that never waits ends here: it needs no timer, no interrupt and no
    coroutine of ours around it. Measured: 0.4 µs, against 4 µs with them.
    """
    current.set(task)
    coroutine: Any = task.func(*task.args, **task.kwargs)
    if not isinstance(coroutine, CoroutineType):
        return Steps(awaiting(coroutine), NOT_STEPPED)
    steps = cast("Coroutine[Any, Any, Any]", coroutine)
    try:
        return Steps(steps, steps.send(None))
    except StopIteration as stop:
        task.value = stop.value
        return None


NOT_STEPPED = object()


def go_on(task: Task[Any], place: Workplace, steps: Steps) -> Awaitable[Ending]:
    """The attempt that `first_step` began, from there to its end."""
    context = task.context
    assert context is not None, "a task that has ended runs on"
    if steps.yielded is NOT_STEPPED:
        return watched(task, place, drive(steps.coroutine, context))
    return watched(task, place, resume(steps.coroutine, context, steps.yielded))


async def run_attempt(task: Task[Any], place: Workplace) -> Ending:
    """Call the task's function once, and say how that ended."""
    executor = task.plan.executor
    if executor == "async":
        return await on_loop(task, place)
    if executor == "thread":
        return await in_thread(task, place)
    return await in_process(task, place)


async def on_loop(task: Task[Any], place: Workplace) -> Ending:
    """Call a function on the event loop."""
    context = task.context
    assert context is not None, "a task that has ended runs again"
    try:
        result = context.run(call_function, task)
    except BaseException as error:
        return judge(None, error)
    if not inspect.isawaitable(result):  # a sync function that was told to run here
        return Ending(Status.SUCCEEDED, result)
    return await watched(task, place, drive(awaiting(result), context))


async def watched(task: Task[Any], place: Workplace, rest: Any) -> Ending:
    """Await `rest`, which may be stopped at any moment."""
    interrupt = place.backend.interrupt()
    value, error = None, None
    with Watch(place, task, interrupt.fire, interrupt.abandon) as watch:
        try:
            with interrupt:
                value = await rest
        except BaseException as caught:
            error = caught
        return watch.judge(value, error, interrupt)


async def in_thread(task: Task[Any], place: Workplace) -> Ending:
    """Call a function in a thread of ours; go on without it when it does not end in time."""
    call, outside = ThreadCall(task, place), None
    with Watch(place, task, call.waiter.set) as watch:
        try:
            place.threads.submit(call.work)
        except RuntimeError as error:  # the system has no more threads
            return Ending(Status.FAILED, error=error)
        try:
            await call.waiter.wait()
        except BaseException as error:  # nothing of the task's own runs here
            outside = error
        if not call.ended:
            return call.leave(watch.why, outside)
    if call.error is None and inspect.isawaitable(call.value):
        # A lambda, or a sync wrapper of an async function: the work is in what it returned.
        if outside is None and task.context is not None:
            return await watched(task, place, drive(awaiting(call.value), task.context))
        call.discard()
        return Ending(Status.CANCELLED, error=outside, reason=OUTSIDE, reraise=outside)
    # Not `judge`: neither Ctrl-C nor the end of the loop strikes in this thread.
    if call.error is None:
        return Ending(Status.SUCCEEDED, call.value, reraise=outside)
    without_our_frames(call.error)
    return Ending(Status.FAILED, error=call.error, reraise=outside)


class StillRunning(Exception):
    """Where a thread was when its task ended without it."""


class ThreadCall:
    """One call in a thread. Everything but `work` happens on the event loop's thread."""

    __slots__ = (
        "_late",
        "_left",
        "_place",
        "_task",
        "_thread",
        "ended",
        "error",
        "value",
        "waiter",
    )

    def __init__(self, task: Task[Any], place: Workplace) -> None:
        self._task = task
        self._place = place
        self._thread = 0
        self._left = False
        self._late: Callable[[], None] | None = None
        self.waiter: Waiter = place.backend.waiter()
        self.ended: bool = False
        self.value: Any = None
        self.error: BaseException | None = None

    def work(self) -> None:
        """What the thread does."""
        self._thread = threading.get_ident()
        context = self._task.context
        assert context is not None, "a task that has ended runs again"
        try:
            self.value = context.run(call_function, self._task)
        except BaseException as error:
            self.error = error
        self._place.mailbox.post(self._end)
        del self, context  # this frame lives on in the traceback of an error: a cycle

    def leave(self, why: str, outside: BaseException | None) -> Ending:
        """The ending of a task that does not wait for its thread any more."""
        self._left = True
        if outside is not None:
            ending = Ending(Status.CANCELLED, error=outside, reason=OUTSIDE, reraise=outside)
        elif why == TIMEOUT:
            ending = timed_out(self._task, Ending(Status.TIMED_OUT, error=self._where()))
        else:
            ending = Ending(Status.CANCELLED, error=self._where(), reason=why)
        return ending._replace(lingering=self)

    def discard(self) -> None:
        """Nobody awaits what the function returned."""
        discard(self.value)
        self.value = None

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the thread ends after all."""
        self._late = callback

    def _end(self) -> None:
        self.ended = True
        if not self._left:
            self.waiter.set()
            return
        self.discard()
        if self._late is not None:  # pragma: no branch - else its coroutine was closed, unheard
            self._late()

    def _where(self) -> StillRunning:
        # Not in a variable: this frame is among them, a cycle. The function is documented.
        frame = sys._current_frames().get(self._thread)  # pyright: ignore[reportPrivateUsage]
        if frame is None:
            return StillRunning("its thread has not begun to run")
        stack = traceback.extract_stack(frame)
        ours = [each.name == call_function.__name__ for each in stack]
        first = ours.index(True) + 1 if any(ours) else 0
        where = "".join(traceback.format_list(stack[first:]))
        return StillRunning(f"the thread still runs; it is here:\n{where}")


async def in_process(task: Task[Any], place: Workplace) -> Ending:
    """Call a function in a worker process, which a timeout kills."""
    interrupt = place.backend.interrupt()
    value, raised, error = None, None, None
    with Watch(place, task, interrupt.fire) as watch:
        try:
            with interrupt:
                if task.plan.timeout is not None:
                    watch.stop_clock()  # a new worker may take longer to start than the function
                    await warm_worker(task)
                    watch.restart_clock()
                value, raised = await run_in_worker(task)
        except BaseException as caught:
            error = caught
        ending = watch.judge(value, error, interrupt)
    if raised is not None and ending.status is Status.SUCCEEDED:
        return ending._replace(status=Status.FAILED, error=raised)
    return ending


def call_function(task: Task[Any]) -> Any:
    """Call the function, as the current task; runs inside the task's context."""
    current.set(task)
    func, args, kwargs = task.func, task.args, task.kwargs
    del task  # this frame lives on in the traceback of an error: a cycle
    return func(*args, **kwargs)
