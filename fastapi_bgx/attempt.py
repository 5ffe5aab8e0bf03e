"""What happens around one call of a function: it is watched, and what it did is judged.

Whatever the function does, however bad, ends up in an `Ending`. Only what is not its own doing
(the cancellation of the request around it, Ctrl-C) is marked to be raised again.
"""

from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple, Protocol

from fastapi_bgx.backends import Backend, Interrupt, is_cancellation
from fastapi_bgx.driving import ABANDON
from fastapi_bgx.errors import Cancelled
from fastapi_bgx.events import Event, TaskOverran, TaskSlow
from fastapi_bgx.options import ExecutorName
from fastapi_bgx.outcome import Status
from fastapi_bgx.task import Task
from fastapi_bgx.threads import Mailbox, Threads
from fastapi_bgx.timers import Lane, Timer, Timers

UNWIND_SECONDS = 1.0
"""How long a cancelled function may take to end before it is reported as overrunning."""
IMPRECISION = 0.001
"""Seconds that a timeout may be late: so that most of one length share one timer of the loop."""
TIMEOUT = "timeout"
OUTSIDE = "the request around it was cancelled"
CALLERS = {"fastapi_bgx.executors", "fastapi_bgx.driving", "fastapi_bgx.runner"}
LOOP_ENDED = "the event loop ended"
ASKED = "cancel() was called"


class Cancellable(Protocol):
    """Where a live task is: it waits somewhere, perhaps with others, or its function runs."""

    def cancel(self, task: Task[Any], reason: str) -> None:
        """Have the task end soon, because of `reason`."""
        ...


class Lingering(Protocol):
    """A function that still runs though nobody waits for it any more."""

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the loop's thread when it ends."""
        ...


class Ending(NamedTuple):
    """How an attempt ended."""

    status: Status
    value: Any = None
    error: BaseException | None = None
    reason: str = ""
    """Why it was cancelled."""
    reraise: BaseException | None = None
    """Not the function's own doing: to be raised again once the task is finished."""
    lingering: Lingering | None = None
    """Set when the function still runs: its slots stay taken."""
    outside: bool = False
    """True when the request around it is being cancelled: nothing more may run in it."""


class Workplace(Protocol):
    """What the runner provides to the attempts of its tasks."""

    backend: Backend
    timers: Timers
    threads: Threads
    mailbox: Mailbox
    clock: Callable[[], float]
    live: dict[Task[Any], Cancellable]
    overrunning: dict[Task[Any], ExecutorName]

    def publish(self, event: Event) -> None:
        """Hand an event to the listeners."""
        ...


class Stoppable(Protocol):
    """What a watch can do about a function that runs too long: the block that it runs in."""

    obeys: bool
    """False when it can only be left: the function itself runs on."""

    def fire(self) -> None:
        """Stop it, or stop waiting for it."""
        ...

    def abandon(self, message: str, /) -> None:
        """It goes on though it was stopped: leave it where it stands, if that is possible."""
        ...


class Watch:
    """A function that runs: its timers, the way to stop it, and why it was stopped.

    An async function that ends at its first step never has one. It is itself the alarm that rings
    after `slow_after` seconds, and what the runner keeps of a task that can be cancelled: one
    object where three would be clearer costs 0.6 µs less for each task that waits for something.
    """

    __slots__ = (
        "_block",
        "_place",
        "_reported",
        "_slow",
        "_stopped_at",
        "_task",
        "_timeout",
        "due",
        "told_slow",
        "why",
    )

    def __init__(self, place: Workplace, task: Task[Any], block: Stoppable) -> None:
        self._place = place
        self._task = task
        self._block = block
        self._timeout: Timer | None = None
        self._slow: Lane | None = None
        self._reported = False
        self.due: float = 0.0
        """When it is slow, by the clock."""
        self.why: str = ""
        """Why it was stopped; empty as long as it was not."""
        self.told_slow: bool = False
        """True once it has run for `slow_after` seconds."""

    def start(self) -> None:
        """Make the task one that can be cancelled, and start its timers."""
        self._place.live[self._task] = self
        assert self._task.started_at is not None
        self._start_clock(self._task.started_at)
        if self._task.cancelled:  # by itself, at its first step
            self.ask()

    def end(self) -> None:
        """Stop the timers."""
        self.stop_clock()
        if self._reported:
            del self._place.overrunning[self._task]
        del self._task  # on trio, the traceback of a cancellation leads here: a cycle

    def restart_clock(self) -> None:
        """Give the function its whole timeout from now on."""
        self.stop_clock()
        self._start_clock(self._place.clock())

    def _start_clock(self, started: float) -> None:
        plan = self._task.plan
        if plan.timeout is not None:
            self._task.deadline = started + plan.timeout
            spent = self._place.clock() - started  # by the first step, which nothing can interrupt
            left = plan.timeout if spent < IMPRECISION else max(0.0, plan.timeout - spent)
            self._timeout = self._place.timers.start(left, self._time_out)
        if plan.slow_after is not None:
            self._slow = self._place.timers.add(plan.slow_after, self)

    def cancel(self, task: Task[Any], reason: str) -> None:
        """Stop the function because of `reason`; the first reason is the one that counts."""
        task.cancelled = True
        self._end_early(self.why or reason)

    def ask(self) -> None:
        """Stop the function if that is possible; else it may look at what it is asked."""
        self._task.cancelled = True
        # Once, so that it can clean up in peace; again, when it has swallowed that.
        if self._block.obeys and (not self.why or self._reported):
            self.cancel(self._task, ASKED)

    def give_up(self) -> None:
        """It was cancelled and goes on: leave it where it stands."""
        self._block.abandon(ABANDON)

    def judge(self, value: Any, error: BaseException | None, interrupt: Interrupt) -> Ending:
        """The ending of an async function, stopped or not."""
        caught, interrupt.caught = interrupt.caught, None  # whose traceback may lead back to it
        if self.why and (self._reported or caught is None):
            self._publish_overran(ended=True)
        elif not self.why:
            self._report_blocking()
        if interrupt.outside and is_cancellation(error, self._place.backend.cancelled):
            # Who cancels the request would not know an exception again that we caused.
            reraise = None if self.why else error
            ending = Ending(Status.CANCELLED, error=error, reason=OUTSIDE, reraise=reraise)
        elif caught is not None:
            without_our_frames(caught)
            ending = Ending(Status.CANCELLED, error=caught, reason=self.why)
        else:
            ending = judge(self._task, value, error, self.why)
        if self.why == TIMEOUT:
            ending = timed_out(self._task, ending)
        return ending._replace(outside=True) if interrupt.outside else ending

    def _time_out(self) -> None:
        self._end_early(TIMEOUT)

    def _end_early(self, why: str) -> None:
        self.why = why
        self._stopped_at = self._place.clock()
        self.stop_clock()
        self._timeout = self._place.timers.start(UNWIND_SECONDS, self._report_overrun)
        self._block.fire()

    def _report_overrun(self) -> None:
        self._reported = True
        self._place.overrunning[self._task] = self._task.plan.executor
        self._publish_overran(ended=False)

    def _publish_overran(self, *, ended: bool) -> None:
        overran = self._place.clock() - self._stopped_at
        self._place.publish(TaskOverran(self._task, overran, ended))

    def _report_blocking(self) -> None:
        """It may have kept the loop from its timers: tell what is due."""
        if self._task.timed_out:
            self._stopped_at = self._task.deadline or 0.0
            self._publish_overran(ended=True)
        if self._slow is not None and not self.told_slow and self.due <= self._place.clock():
            self.ring()

    def ring(self) -> None:
        """It is slow."""
        self.told_slow = True
        assert self._task.started_at is not None
        self._place.publish(TaskSlow(self._task, self._place.clock() - self._task.started_at))

    def stop_clock(self) -> None:
        """Let time pass without a timeout and without being slow, until `restart_clock`."""
        if self._timeout is not None:
            self._timeout.cancel()
        if self._slow is not None:
            self._slow.cancel(self)
        self._timeout = self._slow = None


def timed_out(task: Task[Any], ending: Ending) -> Ending:
    """The ending of a function that ran too long; its cause shows where the function was."""
    error = TimeoutError(f"{task.name} ran longer than its timeout of {task.plan.timeout:g} s")
    error.__cause__ = ending.error
    return ending._replace(status=Status.TIMED_OUT, value=None, error=error)


def judge(task: Task[Any], value: Any, error: BaseException | None, why: str = "") -> Ending:
    """The ending of a function that returned `value` or raised `error` by itself.

    It may have been asked to stop, because of `why`: then `Cancelled` says that it did. A
    cancellation that nobody asked for is a failure like any other: it leaked from the function.
    """
    if error is None:
        return Ending(Status.SUCCEEDED, value)
    without_our_frames(error)
    if isinstance(error, Cancelled) and task.cancelled:
        return Ending(Status.CANCELLED, error=error, reason=why or ASKED)
    if isinstance(error, KeyboardInterrupt):
        return Ending(Status.FAILED, error=error, reraise=error)
    return Ending(Status.FAILED, error=error)


def without_our_frames(error: BaseException) -> None:
    """Have the traceback begin where the function does: what called it is the same each time."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None and _ours(traceback.tb_frame):
        traceback = traceback.tb_next
    error.__traceback__ = traceback


def _ours(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") in CALLERS
