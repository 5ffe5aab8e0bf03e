"""The entrance: a call becomes a task here, or is refused; in the route, on whatever thread.

Counts what waits. Everything else of a task's life happens on the event loop's thread.
"""

import itertools
import os
import sys
import threading
import uuid
import weakref
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, NoReturn, Protocol

from starlette.background import BackgroundTask

from fastapi_bgx.calls import arguments_by_name, check_call
from fastapi_bgx.errors import BacklogFull, Draining
from fastapi_bgx.events import Publisher, TaskJoined, TaskQueued, TaskRejected
from fastapi_bgx.history import History
from fastapi_bgx.options import Particulars, TaskOptions
from fastapi_bgx.plan import Plan, Planner
from fastapi_bgx.processes import pack_call
from fastapi_bgx.settings import Settings
from fastapi_bgx.task import Supervisor, Task, current_task
from fastapi_bgx.timers import Clock
from fastapi_bgx.uniqueness import Key, Uniques, key_of

RETRY_AFTER_SECONDS = 5.0


class Common:
    """What all runners of a `Bgx` share: the makings of unique ids, the history, one warning."""

    def __init__(self, history: int) -> None:
        self.history: History = History(history)
        self.prefix: str = f"{uuid.uuid4().hex[:12]}-"
        self.process: int = os.getpid()
        self.number: Callable[[], int] = itertools.count(1).__next__
        self.warned_of_lifespan = False


class House(Supervisor, Protocol):
    """What the entrance leads to."""

    closed: bool
    """True when nobody may enter any more."""


class HasTasks(Protocol):
    """A list of background tasks."""

    tasks: list[BackgroundTask]


class Entrance:
    """Lets calls in as tasks of one runner."""

    def __init__(
        self,
        house: House,
        settings: Settings,
        planner: Planner,
        publisher: Publisher,
        common: Common,
        clock: Clock,
    ) -> None:
        self._house = house
        self._planner = planner
        self._publisher = publisher
        self._number = common.number
        self._clock = clock
        self._now = clock.now
        self._check_calls = settings.check_calls
        self._most = sys.maxsize if settings.max_backlog is None else settings.max_backlog
        self._room = self._most  # none when refusing, so that one comparison tells both
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._entered_here = 0  # by the loop's thread, which needs no lock: 0.15 µs less
        self._entered_elsewhere = 0  # under the lock: sync routes run in many threads
        self.uniques: Uniques = Uniques()
        """The unfinished tasks that have a key."""
        self.lists: dict[int, weakref.ref[HasTasks]] = {}
        """The lists of the requests that go on, by their `id`: tasks that nobody called are there
        and nowhere else. Each list sees to its own entry."""
        self.tells: bool = True
        """True when somebody listens to what is queued."""
        self.left = 0
        """Tasks that started, or ended without; counted by the runner, on the loop's thread."""
        self.rejected: int = 0
        """Tasks that were refused, because of the backlog or a shutdown."""

    @property
    def waiting(self) -> int:
        """Tasks that entered and have not left."""
        return self._entered_here + self._entered_elsewhere - self.left

    @property
    def refusing(self) -> bool:
        """True when only running tasks may add tasks."""
        return self._room < self._most

    def tell_time_by(self, clock: Clock) -> None:
        """Use another clock from now on; for tests."""
        self._clock, self._now = clock, clock.now

    def refuse(self) -> None:
        """From now on only running tasks may add tasks."""
        self._room = -1

    def accept(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions | None,
        call: Particulars | None = None,
        key: Key | None = None,
    ) -> Task[Any]:
        """Make a task of a call, or refuse it.

        Raises:
            WrongCall: the call could not be made later.
            BacklogFull: too many tasks wait.
            Draining: the process is shutting down.
        """
        plan = self._planner.plan(func, options)
        shape = plan.shape
        if self._check_calls and (kwargs or not shape.least <= len(args) <= shape.most):
            check_call(shape, args, kwargs)
        if plan.unique is not None and key is None:
            return self._join_or_accept(plan, func, args, kwargs, options, call)
        if (
            threading.get_ident() == self._thread
            and self._entered_here + self._entered_elsewhere - self.left < self._room
        ):
            self._entered_here += 1
        else:
            self._enter_or_refuse(plan.name)
        task: Task[Any] = Task(
            self._house, plan, func, args, kwargs, copy_context(), self._number(), self._now()
        )
        if plan.prepared:
            self._prepare(task, call)
        if self.tells:
            self._publisher.publish(TaskQueued(task))
        return task

    def adopt(self, task: Task[Any], options: TaskOptions | None, call: Particulars | None) -> None:
        """Take over a task that was made elsewhere, and is refused no more.

        Raises:
            Exception: its key cannot be worked out, or its call not be pickled.
        """
        task.plan = self._planner.plan(task.func, options)
        task.runner = self._house
        with self._lock:
            self._entered_elsewhere += 1
        self._work_out(task, call)

    def _join_or_accept(
        self,
        plan: Plan,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions | None,
        call: Particulars | None,
    ) -> Task[Any]:
        """The unfinished task with the same key; without one, a new task."""
        key = key_of(plan, args, kwargs, call)
        task, joined = self.uniques.join_or_add(
            key, lambda: self.accept(func, args, kwargs, options, call, key)
        )
        if joined:
            self._publisher.publish(TaskJoined(task, str(key[1])))
        return task

    def _enter_or_refuse(self, name: str) -> None:
        """Count a task in that comes from another thread, or finds no room."""
        with self._lock:
            if self.waiting < self._room:
                self._entered_elsewhere += 1
                return
        # A task may have left meanwhile: it was full, unless there is the other reason.
        full = not self.refusing or self.waiting >= self._most
        if full or self._house.closed or current_task() is None:
            self._refuse(name, full=full)
        with self._lock:  # a running task may add to what it does, to the end
            self._entered_elsewhere += 1

    def _refuse(self, name: str, *, full: bool) -> NoReturn:
        with self._lock:
            self.rejected += 1
        reason = "the backlog is full" if full else "shutting down"
        self._publisher.publish(TaskRejected(name, reason))
        if full:
            raise BacklogFull(self._most, RETRY_AFTER_SECONDS)
        raise Draining(RETRY_AFTER_SECONDS)

    def _prepare(self, task: Task[Any], call: Particulars | None) -> None:
        try:
            self._work_out(task, call)
        except BaseException:
            with self._lock:
                self._entered_elsewhere -= 1
            raise

    def _delay_of(self, delay: float, call: Particulars | None) -> float:
        if call is None or call.run_at is None:
            return delay
        return (call.run_at - self._clock.wall()).total_seconds()

    def _work_out(self, task: Task[Any], call: Particulars | None) -> None:
        """What comes from the arguments: in the route, where a mistake in them is."""
        plan = task.plan
        if plan.delay is not None:
            task.due = task.added_at + self._delay_of(plan.delay, call)
        if plan.keyed is not None:
            arguments = arguments_by_name(plan.shape, task.args, task.kwargs)
            task.key = plan.keyed.key_of(arguments)
        if plan.executor == "process":
            task.payload = pack_call(plan.name, task.func, task.args, task.kwargs)
