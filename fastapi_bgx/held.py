"""What is held to run a task again by hand: the calls of the newest tasks that did not succeed.

A call is the function, its arguments and the options of `using`. What the task's request had in its
context variables is not held: it may be somebody's session, or a large part of the application.
"""

import threading
import weakref
from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple

from fastapi_bgx.errors import NotRetryable
from fastapi_bgx.events import Event, TaskEnded, TaskSucceeded
from fastapi_bgx.history import is_small
from fastapi_bgx.options import TaskOptions
from fastapi_bgx.outcome import Status
from fastapi_bgx.runner import Runner
from fastapi_bgx.runners import Runners, Serving, serving
from fastapi_bgx.task import Supervisor, Task
from fastapi_bgx.uniqueness import Key

MOST_HELD = 100
"""Calls that are held once there are records, unless the settings say otherwise."""
AT_ONCE = TaskOptions(detached=True, delay=None)
"""Whoever runs a task again wants it now, and has no response that it could follow."""


class Call(NamedTuple):
    """What it takes to run a task again. Made in a third of the time of a frozen dataclass."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
    options: TaskOptions
    key: Key | None
    runner: "weakref.ref[Supervisor]"
    """Who ran it: its arguments may belong to that event loop."""
    visit: Serving | None
    """The request that it was of; it leads to the `Bgx`, and to nothing else once it is over."""


class Held:
    """The listener that holds calls, and runs them again. From any thread."""

    def __init__(self, runners: Runners) -> None:
        self._runners = runners
        self._most = runners.settings.retryable or 0
        self._lock = threading.Lock()
        self._calls: dict[str, Call] = {}  # the oldest first
        self._again: dict[str, weakref.ref[Task[Any]]] = {}  # as what each was run last
        self._beginning: set[str] = set()

    def begin(self) -> None:
        """Hold calls from now on, unless the settings say how many, or none."""
        if self._runners.settings.retryable is None:
            self._most = MOST_HELD
            self._runners.join(self)

    def __repr__(self) -> str:
        """Its name in the message when it fails."""
        return "held calls"

    def hears(self, event: type[Event]) -> bool:
        """True for the end of a task that did not succeed."""
        return self._most > 0 and issubclass(event, TaskEnded) and event is not TaskSucceeded

    def changed(self) -> bool:
        """False: it always hears the same."""
        return False

    def __call__(self, event: Event) -> None:
        """Hold the call of a task that has ended, as long as its arguments are there."""
        assert isinstance(event, TaskEnded)
        task = event.task
        if (task.args or task.named_args) and not is_small((task.args, task.named_args)):
            return
        task_id, call = task.id, _call_of(task)
        with self._lock:
            self._calls[task_id] = call
            if len(self._calls) > self._most:
                oldest = next(iter(self._calls))
                del self._calls[oldest]
                self._again.pop(oldest, None)

    def is_held(self, task_id: str) -> bool:
        """True when the call of that task is held."""
        return task_id in self._calls

    def retry(self, task_id: str) -> Task[Any]:
        """Run the call of a task that has ended again, as a new task, detached.

        Raises:
            NotRetryable: it cannot be run again, or not now.
            BacklogFull: too many tasks wait.
            Draining: the process is shutting down.
        """
        call = self._begin(task_id)
        try:
            task = self._accept(task_id, call)
            with self._lock:
                self._again[task_id] = weakref.ref(task)
        finally:
            self._beginning.discard(task_id)
        task.runner.start_now(task)
        return task

    def _begin(self, task_id: str) -> Call:
        """The call, for one caller at a time: an impatient click must not run it twice."""
        with self._lock:
            call = self._calls.get(task_id)
            if call is None:
                raise NotRetryable(task_id, self._why_not_held(task_id))
            why_not = self._why_not_now(task_id)
            if why_not:
                raise NotRetryable(task_id, why_not)
            self._beginning.add(task_id)
            return call

    def _why_not_held(self, task_id: str) -> str:
        if not self._most:
            none = self._runners.settings.retryable is None
            return "nothing is recorded" if none else "Settings.retryable is 0"
        task = self._runners.get(task_id)
        if task is None:
            return f"it is none of the newest {self._most} of this process that did not succeed"
        if not task.done:
            return f"it has not ended yet: {task.status}"
        if task.status is Status.SUCCEEDED:
            return "it succeeded"
        return (
            f"its arguments are not held: those of the newest {self._most} are (Settings.retryable)"
            f", unless they are large"
        )

    def _why_not_now(self, task_id: str) -> str:
        if task_id in self._beginning:
            return "somebody is about to"
        last = self._again.get(task_id)
        task = None if last is None else last()
        if task is not None and not task.done:
            return f"it runs again already, as {task.id}"
        overrunning = (t for runner in self._runners.each() for t in list(runner.overrunning))
        if any(t.id == task_id for t in overrunning):
            return "its function still runs, in a thread that cannot be stopped"
        return ""

    def _accept(self, task_id: str, call: Call) -> Task[Any]:
        entrance = self._runner_for(task_id, call).entrance
        context = Context()  # neither that of the first request, nor that of who asks
        if call.visit is not None:
            context.run(serving.set, call.visit)

        def add() -> Task[Any]:
            return context.run(
                entrance.accept,
                call.func,
                call.args,
                dict(call.kwargs or {}),
                call.options,
                None,
                call.key,
            )

        task, known = (
            (add(), False) if call.key is None else entrance.uniques.find_or_add(call.key, add)
        )
        if known:
            raise NotRetryable(task_id, f"{task.id} is unfinished and has the same unique key")
        task.retry_of = task_id
        return task

    def _runner_for(self, task_id: str, call: Call) -> Runner:
        """The runner of the task, or the newest one if the application was started anew."""
        runners = [runner for runner in self._runners.each() if runner.detaching]
        if not runners:
            raise NotRetryable(
                task_id,
                "nothing would run it outside of a lifespan: bgx.install(app), with a server "
                "(or TestClient as a context manager)",
            )
        before = call.runner()
        return next((runner for runner in runners if runner is before), runners[-1])


def _call_of(task: Task[Any]) -> Call:
    return Call(
        func=task.func,
        args=task.args,
        kwargs=task.named_args,
        options=_at_once(task.plan.using),
        key=task.unique,
        runner=weakref.ref(task.runner),
        visit=None if task.context is None else task.context.get(serving),
    )


def _at_once(using: TaskOptions | None) -> TaskOptions:
    """The options of a call for the next time.

    The same object where nothing changes, so that the plan of the call is found again.
    """
    if using is None:
        return AT_ONCE
    if using.detached and using.delay is None and "delay" in using.model_fields_set:
        return using
    return using.model_copy(update={"detached": True, "delay": None})
