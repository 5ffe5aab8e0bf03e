"""The places where a task that was started may still have to wait.

Each is what the runner keeps of the task as long as it stands there, and knows how to end it.
"""

from collections.abc import Callable
from typing import Any, Protocol

from fastapi_bgx.attempt import Ending
from fastapi_bgx.backends import Handle
from fastapi_bgx.limits import Admission, Limiter, nothing
from fastapi_bgx.outcome import Status
from fastapi_bgx.task import Task
from fastapi_bgx.timers import Timer, Timers


class Finisher(Protocol):
    """What a place needs from the runner."""

    timers: Timers
    clock: Callable[[], float]

    def finish(self, task: Task[Any], ending: Ending) -> None:
        """Make the end of a task final."""
        ...


class Followers:
    """The place of the detached tasks whose sibling before them has not ended."""

    def __init__(self, runner: Finisher) -> None:
        self._runner = runner

    def cancel(self, task: Task[Any], reason: str) -> None:
        """End a task where it stands."""
        self._runner.finish(task, Ending(Status.CANCELLED, reason=reason))


class Waiting(Admission):
    """The place of a task that waits for slots.

    Before its first attempt, for `queue_timeout` seconds and until it `expires`, at most.
    """

    __slots__ = ("_ended", "_runner", "_task", "_then", "_timer", "_why_expired")

    def __init__(
        self,
        runner: Finisher,
        task: Task[Any],
        limiters: tuple[Limiter, ...],
        then: Callable[[Task[Any]], None],
        ended: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(limiters, nothing, task.plan.priority)
        self._runner = runner
        self._task: Task[Any] | None = task
        self._then = then
        self._ended = ended
        self._timer: Timer | Handle | None = None
        self._why_expired = "queue_timeout"
        seconds = task.plan.queue_timeout
        if task.attempt == 0 and (seconds is not None or task.plan.expires is not None):
            self._start_timer(task, seconds)
        self.start()

    def cancel(self, task: Task[Any], reason: str) -> None:
        """End the task where it stands."""
        self._end(Ending(Status.CANCELLED, error=task.error, reason=reason))

    def admitted(self) -> None:
        """All slots are held."""
        self._stop_timer()
        assert self._task is not None, "admitted after its end"
        self._then(self._task)

    def _start_timer(self, task: Task[Any], seconds: float | None) -> None:
        expires = task.plan.expires
        if expires is not None:
            left = max(0.0, task.added_at + expires - self._runner.clock())
            if seconds is None or left < seconds:
                self._why_expired = "expires"
                # Its own timer: no other task has just as long, and lanes go only when they ring.
                self._timer = self._runner.timers.call_later(left, self._expire)
                return
        assert seconds is not None, "one of them is set"
        self._timer = self._runner.timers.start(seconds, self._expire)

    def _expire(self) -> None:
        self._end(Ending(Status.EXPIRED, reason=self._why_expired))

    def _end(self, ending: Ending) -> None:
        self._stop_timer()
        self.abandon()
        task, self._task = self._task, None  # what is left in a queue keeps no task alive
        if task is not None and not task.done:
            self._runner.finish(task, ending)
        if self._ended is not None:
            self._ended()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # it leads back here: a cycle for the garbage collector
