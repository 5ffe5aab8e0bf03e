"""The workers: run the tasks that were handed over and hold their slots, which bound their number.

A task waits here in a deque, not in a coroutine of its own: it costs a dictionary entry.
"""

import sys
from collections import deque
from collections.abc import Awaitable
from typing import Any, Protocol

from fastapi_bgx.attempt import Cancellable, Ending
from fastapi_bgx.backends import Backend
from fastapi_bgx.limits import Limiter, give_back_slots
from fastapi_bgx.outcome import Status
from fastapi_bgx.task import Task

TASKS_BETWEEN_YIELDS = 64


class Employer(Protocol):
    """What the workers need from the runner."""

    backend: Backend
    live: dict[Task[Any], Cancellable]

    def begin(self, task: Task[Any], limiters: tuple[Limiter, ...]) -> Awaitable[None] | None:
        """Start a task that holds its slots; what has to be awaited for the rest of it."""
        ...

    def limiters_of(self, task: Task[Any]) -> tuple[Limiter, ...]:
        """The limiters whose slots it holds."""
        ...

    def finish(self, task: Task[Any], ending: Ending) -> None:
        """Make the end of a task final."""
        ...

    def end_with_the_loop(self) -> bool:
        """End what waits, if the loop is about to end; false when it goes on."""
        ...


class Workers:
    """Any number of coroutines, started as they are needed; each runs one task after the other."""

    def __init__(self, runner: Employer) -> None:
        self._runner = runner
        self._ready: deque[Task[Any]] = deque()
        self._starting = False
        self.begins: Task[Any] | None = None
        """The task that was begun last: while it makes its first step, it is nowhere else."""
        self._pausing = 0  # workers that will go on at once, so that no other is needed

    def take(self, task: Task[Any]) -> None:
        """Run a task that holds its slots, soon."""
        self._runner.live[task] = self
        self._ready.append(task)
        self._start_one()

    def cancel(self, task: Task[Any], reason: str) -> None:
        """End a task where it waits."""
        give_back_slots(self._runner.limiters_of(task))
        self._runner.finish(task, Ending(Status.CANCELLED, error=task.error, reason=reason))

    def _start_one(self) -> None:
        if not self._starting:
            self._starting = True
            self._runner.backend.spawn(self._work)

    async def _work(self) -> None:
        self._starting = False
        if self._pausing:  # the one that pauses goes on with what is ready
            return
        try:
            await self._work_off()
        except BaseException:
            if not sys.is_finalizing():  # pragma: no branch - no test sees the interpreter's end
                self._replace()
            raise

    async def _work_off(self) -> None:
        runner, ready, left = self._runner, self._ready, TASKS_BETWEEN_YIELDS
        while ready:
            task = ready.popleft()
            if runner.live.get(task) is not self:  # cancelled while it stood in the queue
                continue
            self.begins = task  # before it leaves its place: others look for it in both
            del runner.live[task]
            if ready:  # for when this task has to wait
                self._start_one()
            rest = runner.begin(task, runner.limiters_of(task))
            if rest is not None:
                await rest
            self.begins = None
            left -= 1
            if not left:
                left = TASKS_BETWEEN_YIELDS
                await self._let_others_run()

    async def _let_others_run(self) -> None:
        self._pausing += 1
        try:
            await self._runner.backend.checkpoint()
        finally:
            self._pausing -= 1

    def _replace(self) -> None:
        """A worker was cancelled: with everything else, as the loop ends, or by its own task."""
        if not self._runner.end_with_the_loop():
            self._start_one()
