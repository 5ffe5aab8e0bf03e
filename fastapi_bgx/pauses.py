"""Pauses: tasks that wait for time to pass, before they start or between two attempts.

Such a task holds no slot, no thread and no coroutine, and no sibling waits for it. What decides
whether there is another attempt is pure, in `retry.py`.
"""

from collections.abc import Callable
from typing import Any, Protocol

from fastapi_bgx.attempt import Cancellable, Ending
from fastapi_bgx.events import Event, TaskDelayed, TaskRetrying
from fastapi_bgx.notices import notice
from fastapi_bgx.options import ExecutorName
from fastapi_bgx.outcome import Status
from fastapi_bgx.retry import next_delay
from fastapi_bgx.task import Task
from fastapi_bgx.timers import Timers

FAILURES = (Status.FAILED, Status.TIMED_OUT)
SHUTDOWN = "shutdown"


class Resumer(Protocol):
    """What the pauses need from the runner."""

    timers: Timers
    clock: Callable[[], float]
    live: dict[Task[Any], Cancellable]
    overrunning: dict[Task[Any], ExecutorName]
    closed: bool

    def admit(self, task: Task[Any]) -> None:
        """Have a task run in a worker, once it has its slots."""
        ...

    def finish(self, task: Task[Any], ending: Ending) -> None:
        """Make the end of a task final."""
        ...

    def outlives(self, task: Task[Any]) -> bool:
        """True when its request does not wait for it."""
        ...

    def publish(self, event: Event) -> None:
        """Hand an event to the listeners."""
        ...


class Pauses:
    """Every pause of one runner."""

    def __init__(self, runner: Resumer) -> None:
        self._runner = runner
        self._ends_at: float | None = None

    def delay(self, task: Task[Any]) -> bool:
        """Have a task wait until it is due; false when it is due already."""
        runner, due = self._runner, task.due
        left = 0.0 if due is None else due - runner.clock()
        if due is None or left <= 0:
            return False
        runner.publish(TaskDelayed(task, left, not runner.outlives(task)))
        if task.plan.expires is not None:  # it is not kept for longer: it is never due
            due = min(due, task.added_at + task.plan.expires)
        pause = self._begin(task, due)
        if self._ends_at is not None and due > self._ends_at:
            pause.cancel(task, SHUTDOWN)
        return True

    def retry(self, task: Task[Any], ending: Ending) -> bool:
        """Have a task wait for its next attempt; false when there is none."""
        runner, error = self._runner, ending.error
        delay = None if error is None else self._delay_after(task, ending, error)
        if delay is None or error is None:
            return False
        due = runner.clock() + delay
        if self._ends_at is not None and due > self._ends_at:
            return False
        task.errors += (error,)
        task.error, task.failed_as = error, ending.status
        task.status = Status.RETRYING
        task.first_started_at = task.begun_at
        holds_request = not runner.outlives(task)
        runner.publish(TaskRetrying(task, task.attempt, error, delay, holds_request))
        task.spawned = True  # the coroutine that ran this attempt goes on to the siblings
        self._begin(task, due)
        return True

    def too_late(self, task: Task[Any], now: float) -> Ending | None:
        """How a task ends whose next attempt would begin after its `total_timeout`.

        It waited for a slot, or for the thread of the attempt before.
        """
        policy, begun, error = task.plan.retry, task.begun_at, task.error
        if policy is None or begun is None or not policy.is_over(now - begun):
            return None
        task.errors = task.errors[:-1]  # it is not followed by another one after all
        return Ending(task.failed_as, error=error)

    def announce_end(self, at: float) -> None:
        """Everything is cancelled at that time: what would wait for longer ends now."""
        self._ends_at = at
        for task, place in list(self._runner.live.items()):
            if isinstance(place, Pause) and place.due > at:
                place.cancel(task, SHUTDOWN)

    def thread_ended(self, task: Task[Any]) -> None:
        """A thread that its attempt had to leave has ended: the next one need not wait for it."""
        place = self._runner.live[task]
        assert isinstance(place, Pause), "it waits for this"
        place.thread_ended()

    def _begin(self, task: Task[Any], due: float) -> "Pause":
        pause = Pause(self._runner, task, due)
        self._runner.live[task] = pause
        pause.start()
        return pause

    def _delay_after(self, task: Task[Any], ending: Ending, error: BaseException) -> float | None:
        """Seconds until the next attempt; `None` when the task is finished."""
        policy, begun = task.plan.retry, task.begun_at
        own = not (task.cancelled or ending.outside or ending.reraise is not None)
        failed = own and ending.status in FAILURES
        if policy is None or begun is None or not failed or self._runner.closed:
            return None
        try:
            return next_delay(
                policy,
                attempt=task.attempt,
                error=error,
                timed_out=ending.status is Status.TIMED_OUT,
                elapsed=self._runner.clock() - begun,
            )
        except Exception as raised:
            notice(
                "error",
                "bgx.retry_undecided",
                task=task.name,
                task_id=task.id,
                effect="the task is not tried again",
                exc_info=raised,
            )
            return None


class Pause:
    """The place of one task that waits for time to pass."""

    __slots__ = ("_handle", "_over", "_runner", "_task", "due")

    def __init__(self, runner: Resumer, task: Task[Any], due: float) -> None:
        self._runner = runner
        self._task = task
        self._handle: Any = None
        self._over = False
        self.due: float = due
        """When it is over, by the runner's clock."""

    def start(self) -> None:
        """Be over once it is due: event loops may call a moment too early."""
        left = self.due - self._runner.clock()
        self._handle = None  # it leads back here: a cycle for the garbage collector
        if left > 0:
            self._handle = self._runner.timers.call_later(left, self.start)
        else:
            self._over = True
            self._go_on()

    def thread_ended(self) -> None:
        """Nothing of an earlier attempt runs any more."""
        if self._over:
            self._go_on()

    def cancel(self, task: Task[Any], reason: str) -> None:
        """End the task where it stands."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        ending = Ending(Status.CANCELLED, error=task.error, reason=reason)
        self._runner.finish(task, ending)

    def _go_on(self) -> None:
        task = self._task
        # Never two attempts of one task at once: the thread of the last one may still run.
        if task not in self._runner.overrunning:
            del self._runner.live[task]
            self._runner.admit(task)
