"""Where an attempt's function runs: on the event loop, in a thread, in a worker process.

One coroutine for each; `run_attempt` picks. On asyncio, async functions take a shorter way, by
`first_step` and `go_on`.
"""

import inspect
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from typing import Any

from fastapi_bgx.attempt import (
    OUTSIDE,
    TIMEOUT,
    Ending,
    Watch,
    Workplace,
    judge,
    timed_out,
)
from fastapi_bgx.backends import Waiter
from fastapi_bgx.driving import awaiting, discard, drive, resume
from fastapi_bgx.outcome import Status
from fastapi_bgx.processes import run_in_worker, warm_worker
from fastapi_bgx.task import Task, current

Steps = Generator[Any, Any, None]
"""What `__await__` of a coroutine gives: the coroutine, as something to iterate over."""
ENDED = object()
"""What `first_step` gives when there is no second one."""


async def call_async(task: Task[Any]) -> None:
    """Call an async function as the current task; what it returns is left in the task.

    Nothing is returned: Python would raise StopIteration to hand it over, which costs 0.14 µs.
    """
    current.set(task)
    func: Any = task.func
    if task.named_args:
        task.value = await func(*task.args, **task.named_args)
    else:  # 0.05 µs less
        task.value = await func(*task.args)


def first_step(context: Context, steps: Steps) -> object:
    """What a coroutine yields at its first step; `ENDED` when it has returned already.

    A coroutine function that never waits ends here: it needs no timer, no interrupt and no
    coroutine of ours around it. Measured: 0.3 µs, against 2.5 µs with them.
    """
    return context.run(next, steps, ENDED)


def go_on(
    task: Task[Any], place: Workplace, steps: Steps, yielded: object
) -> Awaitable[Ending | None]:
    """The attempt that `first_step` began, from there to its end."""
    assert task.context is not None, "a task that has ended runs on"
    return watched(task, place, resume(steps, task.context, yielded))


def run_attempt(task: Task[Any], place: Workplace) -> Awaitable[Ending | None]:
    """Call the task's function once, and say how that ended.

    `None` when it just succeeded: what it returned is in the task.
    """
    executor = task.plan.executor
    if executor == "async":
        return on_loop(task, place)
    if executor == "thread":
        return in_thread(task, place)
    return in_process(task, place)


async def on_loop(task: Task[Any], place: Workplace) -> Ending | None:
    """Call a function on the event loop."""
    context = task.context
    assert context is not None, "a task that has ended runs again"
    try:
        result = context.run(call_function, task)
    except BaseException as error:
        return judge(task, None, error)
    if not inspect.isawaitable(result):  # a sync function that was told to run here
        task.value = result
        return None
    return await watched(task, place, drive(awaiting(result), context))


async def watched(task: Task[Any], place: Workplace, rest: Awaitable[Any]) -> Ending | None:
    """Await `rest`, which may be stopped at any moment. `None` when it just succeeded.

    What it returns is left in the task, if it is not there already.
    """
    interrupt = place.backend.interrupt()
    watch = Watch(place, task, interrupt)
    error = ending = None
    watch.start()
    try:
        with interrupt:
            value = await rest
            if value is not None:
                task.value = value
    except BaseException as caught:
        error = caught
    if error is not None or watch.why or watch.told_slow or interrupt.outside:
        ending = watch.judge(task.value, error, interrupt)
    watch.end()
    return ending


async def in_thread(task: Task[Any], place: Workplace) -> Ending | None:
    """Call a function in a thread of ours; go on without it when it does not end in time."""
    call, outside = ThreadCall(task, place), None
    watch = Watch(place, task, call)
    watch.start()
    try:
        try:
            place.threads.submit(call.work, call.report)
        except RuntimeError as error:  # the system has no more threads
            return Ending(Status.FAILED, error=error)
        try:
            await call.waiter.wait()
        except BaseException as error:  # nothing of the task's own runs here
            outside = error
        if not call.ended:
            return call.leave(watch.why, outside)
    finally:
        watch.end()
    if call.error is None and inspect.isawaitable(call.value):
        # A lambda, or a sync wrapper of an async function: the work is in what it returned.
        if outside is None and task.context is not None:
            return await watched(task, place, drive(awaiting(call.value), task.context))
        call.discard()
        return Ending(Status.CANCELLED, error=outside, reason=OUTSIDE, reraise=outside)
    if call.error is None:
        task.value = call.value
        if outside is not None:
            return Ending(Status.SUCCEEDED, call.value, reraise=outside)
        return None
    # Neither Ctrl-C nor the end of the loop strikes in this thread: it raised that itself.
    return judge(task, None, call.error)._replace(reraise=outside)


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

    obeys = False

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
        del self, context  # this frame lives on in the traceback of an error: a cycle

    def report(self) -> None:
        """What the thread does last."""
        self._place.mailbox.post(self._end)

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

    def fire(self) -> None:
        """Do not wait for it any longer."""
        self.waiter.set()

    def abandon(self, message: str, /) -> None:
        """Nobody waits for it: there is nothing to leave."""

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
    watch = Watch(place, task, interrupt)
    value, raised, error = None, None, None
    watch.start()
    try:
        with interrupt:
            if task.plan.timeout is not None:
                watch.stop_clock()  # a new worker may take longer to start than the function
                await warm_worker(task)
                watch.restart_clock()
            value, raised = await run_in_worker(task, place.timers)
    except BaseException as caught:
        error = caught
    ending = watch.judge(value, error, interrupt)
    watch.end()
    if raised is not None and ending.status is Status.SUCCEEDED:
        return ending._replace(status=Status.FAILED, error=raised)
    return ending


def call_function(task: Task[Any]) -> Any:
    """Call the function, as the current task; runs inside the task's context."""
    current.set(task)
    func, args, kwargs = task.func, task.args, task.kwargs
    del task  # this frame lives on in the traceback of an error: a cycle
    return func(*args, **kwargs)
