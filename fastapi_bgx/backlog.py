"""The places where a task that was started may still have to wait.

Each is what the runner keeps of the task as long as it stands there, and knows how to end it.
"""

from collections.abc import Callable
from typing import Any, Protocol

from fastapi_bgx.attempt import Ending
from fastapi_bgx.limits import Admission, Limiter, release_slots
from fastapi_bgx.outcome import Status
from fastapi_bgx.task import Task
from fastapi_bgx.timers import Timer, Timers


class Finisher(Protocol):
    """What a place needs from the runner."""

    timers: Timers

    def finish(self, task: Task[Any], ending: Ending) -> None:
        """Make the end of a task final."""
        ...


class Following:
    """The place of a detached task whose sibling before it has not ended."""

    __slots__ = ("_runner", "_task")

    def __init__(self, runner: Finisher, task: Task[Any]) -> None:
        self._runner = runner
        self._task = task

    def cancel(self, reason: str) -> None:
        """End the task where it stands."""
        self._runner.finish(self._task, Ending(Status.CANCELLED, reason=reason))


class Ready:
    """The place of a task that holds its slots, and waits for a worker."""

    __slots__ = ("_runner", "_task", "limiters")

    def __init__(self, runner: Finisher, task: Task[Any], limiters: tuple[Limiter, ...]) -> None:
        self._runner = runner
        self._task = task
        self.limiters: tuple[Limiter, ...] = limiters

    def cancel(self, reason: str) -> None:
        """End the task where it stands."""
        release_slots(self.limiters)
        self._runner.finish(self._task, Ending(Status.CANCELLED, reason=reason))


class Waiting:
    """The place of a task that waits for slots, for `queue_timeout` seconds at most."""

    __slots__ = ("_admission", "_ended", "_ready", "_runner", "_task", "_timer")

    def __init__(
        self,
        runner: Finisher,
        task: Task[Any],
        limiters: tuple[Limiter, ...],
        ready: Callable[[], None],
        ended: Callable[[], None] | None = None,
    ) -> None:
        self._runner = runner
        self._task = task
        self._ready = ready
        self._ended = ended
        self._timer: Timer | None = None
        if task.plan.queue_timeout is not None:
            self._timer = runner.timers.start(task.plan.queue_timeout, self._expire)
        self._admission = Admission(limiters, self._admitted)
        self._admission.start()

    def cancel(self, reason: str) -> None:
        """End the task where it stands."""
        self._end(Ending(Status.CANCELLED, reason=reason))

    def _admitted(self) -> None:
        self._stop_timer()
        self._ready()

    def _expire(self) -> None:
        self._end(Ending(Status.EXPIRED))

    def _end(self, ending: Ending) -> None:
        self._stop_timer()
        self._admission.abandon()
        if not self._task.done:
            self._runner.finish(self._task, ending)
        if self._ended is not None:
            self._ended()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # it leads back here: a cycle for the garbage collector
