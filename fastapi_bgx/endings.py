"""What follows the end of an attempt, and of a task: half of the runner.

An attempt may be followed by another one. Else the task is over: its status is final, who waits for
that is told, and nothing of it is kept but what became of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from fastapi_bgx.attempt import Cancellable, Ending, Lingering
from fastapi_bgx.backends import Backend
from fastapi_bgx.driving import drive
from fastapi_bgx.entrance import Common, Entrance
from fastapi_bgx.events import (
    Event,
    Publisher,
    TaskCancelled,
    TaskDropped,
    TaskExpired,
    TaskFailed,
    TaskLogged,
    TaskOverran,
    TaskProgressed,
    TaskQueued,
    TaskSlow,
    TaskStarted,
    TaskSucceeded,
    TaskTimedOut,
)
from fastapi_bgx.limits import Limiter, release_slots
from fastapi_bgx.listeners.hooks import FailureHooks
from fastapi_bgx.options import ExecutorName
from fastapi_bgx.outcome import Status
from fastapi_bgx.pauses import Pauses
from fastapi_bgx.settings import Settings
from fastapi_bgx.task import Task

RUNNING, DONE = Status.RUNNING, Status.SUCCEEDED  # on Python 3.11, to look one up costs 0.1 µs
PROGRESS_SECONDS = 1.0
"""Progress is published no more often, for each task."""


class Endings(ABC):
    """Ends the tasks of one event loop, and tells of it."""

    clock: Callable[[], float]
    entrance: Entrance
    pauses: Pauses
    """The tasks that wait for time to pass."""
    closed: bool
    """True when nothing is started any more."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        publisher: Publisher,
        hooks: FailureHooks,
        common: Common,
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.live: dict[Task[Any], Cancellable] = {}
        self.overrunning: dict[Task[Any], ExecutorName] = {}
        self.when_finished: Callable[[Task[Any]], None] | None = None
        """Told of every task that ends, while somebody drains."""
        self.telling: int = 0
        """Tasks that have ended and whose failure hooks still run."""
        self.when_told: Callable[[], None] | None = None
        """Told when hooks have run, while somebody drains."""
        self._publisher = publisher
        self._hooks = hooks
        self._history = common.history
        self._keeps_all = settings.history > 0 and settings.history_of == "all"
        self._totals = dict.fromkeys((s for s in Status if s.final), 0)
        self._succeeded = 0  # apart from the others: to hash a Status costs 0.2 µs

    @abstractmethod
    def _start_follower(self, task: Task[Any]) -> None:
        """Start the detached task that waits for this one."""

    # Ending.

    async def _complete(
        self, task: Task[Any], limiters: tuple[Limiter, ...], ending: Ending
    ) -> None:
        """Everything that follows the end of an attempt."""
        if ending.lingering is None:
            release_slots(limiters)
        else:
            self._leave_behind(task, limiters, ending.lingering)
        if task.plan.retry is not None and self.pauses.retry(task, ending):
            self.entrance.left -= 1  # it waits again
            self._start_follower(task)  # which does not wait for the next attempt
            return
        self.finish(task, ending)
        if self._hooks and ending.status in (Status.FAILED, Status.TIMED_OUT):
            await self._call_hooks(task)
        if ending.lingering is None:
            self._let_go(task)
        if ending.reraise is not None:
            raise ending.reraise
        if ending.outside:
            await self.backend.raise_cancelled()
        if task.error is not None and not task.spawned:
            self.raise_if_told(task)

    def finish(self, task: Task[Any], ending: Ending) -> None:
        """Make the end of a task final, and tell everybody."""
        waited = task.status is not RUNNING
        if waited:
            self.entrance.left += 1
        task.value, task.error = ending.value, ending.error
        if self._keeps_all or ending.status is not DONE:
            self._history.add(task)  # before its end: whoever looks for it meanwhile finds it
        task.end(ending.status, self.clock())
        self._totals[ending.status] += 1
        self.live.pop(task, None)
        self._publish_end(task, ending)
        if waited and task not in self.overrunning:
            self._let_go(task)
        self._follow_up(task)

    def _let_go(self, task: Task[Any]) -> None:
        task.context = None  # it leads back to the task: a cycle for the garbage collector
        self._history.forget_arguments(task)

    def _succeed(self, task: Task[Any], limiters: tuple[Limiter, ...]) -> None:
        """What `_complete` comes down to for a task that just succeeded: 1 µs less."""
        release_slots(limiters)
        if self._keeps_all:
            self._keep_success(task)
        task.status = DONE
        task.ended_at = ended = self.clock()
        self._succeeded += 1
        if ended - task.added_at > task.plan.notable_after:
            self._report_blocking(task)
        if self._tells_success:
            self._publisher.publish(TaskSucceeded(task))
        task.context = None  # it leads back to the task: a cycle for the garbage collector
        if task.at_end is not None or self.when_finished is not None:
            self._follow_up(task)

    def _keep_success(self, task: Task[Any]) -> None:
        self._history.add(task)
        if self._tells_success:  # perhaps with its arguments
            task.when_ended(self._history.forget_arguments)
        else:
            self._history.forget_arguments(task)

    def _report_blocking(self, task: Task[Any]) -> None:
        """A first step kept the loop from timers that were not even set: tell what is due."""
        assert task.started_at is not None
        assert task.ended_at is not None
        plan, ran = task.plan, task.ended_at - task.started_at
        if plan.timeout is not None and ran > plan.timeout:
            self.publish(TaskOverran(task, ran - plan.timeout, ended=True))
        if plan.slow_after is not None and ran > plan.slow_after:
            self.publish(TaskSlow(task, ran))

    def _follow_up(self, task: Task[Any]) -> None:
        """Tell those who wait for the end: the next detached task, whoever asked, a drain."""
        self._start_follower(task)
        if task.at_end is not None:
            task.tell_end()
        if self.when_finished is not None:
            self.when_finished(task)

    def raise_if_told(self, task: Task[Any]) -> None:
        """Raise the error of a task that failed, where `Settings.on_error` says so."""
        failed = task.status in (Status.FAILED, Status.TIMED_OUT)
        if failed and task.error is not None and self.settings.on_error == "raise":
            raise task.error

    def _leave_behind(
        self, task: Task[Any], limiters: tuple[Limiter, ...], lingering: Lingering
    ) -> None:
        """A thread still runs: its slots stay taken until it really ends."""
        self.overrunning[task] = task.plan.executor
        left_at = self.clock()

        def ended() -> None:
            del self.overrunning[task]
            release_slots(limiters)
            self.publish(TaskOverran(task, self.clock() - left_at, ended=True))
            if task.done:
                self._let_go(task)
            else:
                self.pauses.thread_ended(task)

        lingering.when_ended(ended)

    async def _call_hooks(self, task: Task[Any]) -> None:
        assert task.outcome is not None
        assert task.context is not None
        self.telling += 1
        try:
            await drive(self._hooks.run(task, task.outcome), task.context.copy())
        finally:
            self.telling -= 1
            if self.when_told is not None:
                self.when_told()

    # Telling.

    def refresh(self) -> None:
        """Ask the listeners anew what they hear; once for each request."""
        self._publisher.refresh()
        if self._publisher.heard is not self._heard:
            self._learn()

    def _learn(self) -> None:
        """Keep what is asked for each task: a look into a dictionary costs 0.05 µs."""
        heard = self._heard = self._publisher.heard
        self.entrance.tells = TaskQueued in heard
        self._tells_start = TaskStarted in heard
        self._tells_success = TaskSucceeded in heard

    def publish(self, event: Event) -> None:
        """Hand an event to the listeners; never raises."""
        self._publisher.publish(event)

    def progressed(self, task: Task[Any]) -> bool:
        """Publish how far the task is, if that was not done lately; from any thread."""
        if TaskProgressed not in self._publisher.heard:
            return False
        now, told_at = self.clock(), task.progress_told_at
        if (told_at is None or now - told_at >= PROGRESS_SECONDS) and not task.done:
            last = task.last_progress
            if last is not None:
                task.progress_told_at = now
                self.publish(TaskProgressed(task, last.fraction, last.note))
        return True

    def hears_lines(self) -> bool:
        """True when somebody hears what tasks log."""
        return TaskLogged in self._publisher.heard

    def logged(self, task: Task[Any], level: str, text: str) -> None:
        """Publish a line that the task has logged; from any thread."""
        self.publish(TaskLogged(task, level, text))

    def overruns(self, task: Task[Any]) -> bool:
        """True when its function still runs though it is over; from any thread."""
        return task in self.overrunning

    def _publish_end(self, task: Task[Any], ending: Ending) -> None:
        kind = EVENT_OF[ending.status]
        if kind in self._publisher.heard:
            reason = () if kind not in WITH_REASON else (ending.reason,)
            self.publish(kind(task, *reason))


EVENT_OF: dict[Status, Any] = {
    Status.SUCCEEDED: TaskSucceeded,
    Status.FAILED: TaskFailed,
    Status.TIMED_OUT: TaskTimedOut,
    Status.CANCELLED: TaskCancelled,
    Status.EXPIRED: TaskExpired,
    Status.DROPPED: TaskDropped,
}
WITH_REASON = (TaskCancelled, TaskDropped, TaskExpired)
