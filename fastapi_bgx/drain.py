"""Shutting a runner down: wait for what is live, then cancel it, then say what became of it.

Nobody carries a drain out: it goes from event to event (a task ends, a timer rings), on the event
loop's thread. So whoever waits for the report may be cancelled without harm to anybody else.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from fastapi_bgx.attempt import UNWIND_SECONDS, Watch
from fastapi_bgx.backends import Waiter
from fastapi_bgx.events import Drained
from fastapi_bgx.outcome import Status
from fastapi_bgx.reports import DrainReport, TaskRef
from fastapi_bgx.runner import Runner
from fastapi_bgx.task import CurrentTask, Task, current_task
from fastapi_bgx.timers import Timer

SHUTDOWN = "shutdown"


class Drain:
    """The one drain of a runner, whoever asks for it and how often.

    A signal announces it (`announce`): the grace period begins, for the tasks of requests too, and
    requests that are under way may still add tasks. The lifespan's end completes it (`complete`).
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._began = 0.0
        self._deadline: float | None = None
        self._timer: Timer | None = None
        self._looking = False
        self._callers: set[CurrentTask | None] = set()
        self._waiting: list[Waiter] = []
        self._finished: list[TaskRef] = []
        self._cancelled: list[TaskRef] = []
        self._stuck: list[TaskRef] = []
        self._told: dict[object, Callable[[], None]] = {}
        self.report: DrainReport | None = None
        """The report, once there is one."""

    def when_announced(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back, on this event loop, when it is announced; at once if it was already.

        Whoever would keep the server from ending listens here. Gives what undoes it.
        """
        if self._deadline is not None:
            callback()
            return _nothing
        key = object()
        self._told[key] = callback

        def forget() -> None:
            self._told.pop(key, None)

        return forget

    def announce(self, grace: float) -> None:
        """Begin the grace period, or shorten it. At its end everything live is cancelled."""
        now = self._runner.clock()
        if self._deadline is None:
            self._began = now
            self._runner.when_finished = self._note
            self._runner.when_told = self._look_soon
            self._tell()
        elif self._runner.closed or now + grace >= self._deadline:
            return
        self._deadline = now + grace
        self._runner.pauses.announce_end(self._deadline)
        self._set_timer(grace, self._close)

    async def complete(self, grace: float) -> DrainReport:
        """Refuse new tasks, wait for the live ones, cancel what is left, and report."""
        self._callers.add(current_task())  # a task that asks does not wait for itself
        self.announce(grace)
        self._runner.entrance.refuse()
        self._look()
        if self.report is None:
            waiter = self._runner.backend.waiter()
            self._waiting.append(waiter)
            await waiter.wait()
        assert self.report is not None
        return self.report

    def _tell(self) -> None:
        while self._told:
            _, callback = self._told.popitem()
            callback()

    def _note(self, task: Task[Any]) -> None:
        """A task has ended while we drain."""
        if task.status is Status.CANCELLED:
            self._cancelled.append(task.ref)
        elif task.started_at is not None:
            self._finished.append(task.ref)
        self._look_soon()

    def _look_soon(self) -> None:
        # Not at once: a request whose task has just ended goes on to its next one.
        if not self._looking:
            self._looking = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the drain with it
                self._runner.backend.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        """Take the next step, if nothing is live any more."""
        self._looking = False
        runner = self._runner
        if runner.telling or any(task not in self._callers for task in runner.live):
            return
        if not runner.closed:
            if runner.entrance.refusing:
                self._close()
        elif self._callers or not runner.entrance.waiting:
            # Before anybody asks, requests are under way that may still call what they added.
            self._finish()

    def _close(self) -> None:
        """Start nothing any more, cancel what is live, and give it a moment to end."""
        self._runner.closed = True
        self._runner.entrance.refuse()
        for task in list(self._runner.live):
            entry = self._runner.live.get(task)
            if entry is not None and task not in self._callers:  # an earlier one may have ended it
                entry.cancel(task, SHUTDOWN)
        self._set_timer(UNWIND_SECONDS, self._give_up)
        self._look()

    def _give_up(self) -> None:
        """Leave what did not end where it stands: it must not keep the process from ending."""
        for task, entry in list(self._runner.live.items()):
            if task not in self._callers and isinstance(entry, Watch):
                self._stuck.append(task.ref)
                entry.give_up()
        self._runner.backend.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        """Make the report and hand it to everybody; once."""
        if self.report is not None:
            return
        runner = self._runner
        self._stop_timer()
        if runner.when_drained is not None:
            runner.when_drained()
        self.report = DrainReport(
            finished=tuple(self._finished),
            cancelled=tuple(self._cancelled),
            in_thread=tuple(task.ref for task in runner.overrunning if task not in runner.live),
            stuck=tuple(self._stuck),
            duration_s=runner.clock() - self._began,
        )
        runner.publish(Drained(self.report))
        for waiter in self._waiting:
            waiter.set()

    def _set_timer(self, delay: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self._runner.timers.start(delay, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _nothing() -> None:
    """What there is to undo when it was announced before."""
