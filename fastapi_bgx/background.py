"""`BackgroundTasks`: the drop-in subclass, and the view that `using` gives on it."""

import sys
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, ParamSpec, TypeGuard, TypeVar, Unpack, overload
from weakref import ref

from fastapi import BackgroundTasks as StockBackgroundTasks
from starlette.background import BackgroundTask

from fastapi_bgx.attempt import OUTSIDE
from fastapi_bgx.entrance import Entrance
from fastapi_bgx.options import (
    CallOptions,
    Options,
    Particulars,
    TaskOptions,
    parse_options,
    particulars_of,
)
from fastapi_bgx.outcome import Status
from fastapi_bgx.runner import Runner
from fastapi_bgx.runners import Runners, nearest_runners
from fastapi_bgx.task import Task, current_task, instrumented
from fastapi_bgx.telemetry import tracing

P = ParamSpec("P")
T = TypeVar("T")
BY_KEYWORD = object()


class BackgroundTasks(StockBackgroundTasks):
    """FastAPI's `BackgroundTasks`, with every task supervised.

    Injected with `Depends(bgx)` or as `Tasks`, it is the object that FastAPI itself made for the
    request. Made by hand, it belongs to the `Bgx` that serves the request.
    """

    tasks: list[BackgroundTask]
    """What was added and not forgotten yet: each a `Task`, but for what got in past `add_task`."""

    # Class attributes: an instance that FastAPI made is turned into one of ours, without __init__.
    _entrance: Entrance | None = None
    _at_once = False
    _last_detached: Task[Any] | None = None
    _any_beside = False
    _listed_at: Entrance | None = None
    _seen = 0  # tasks from the first one that were certainly called
    _over = False

    @overload  # type: ignore[override]  # stock returns None: every caller of it keeps working
    def add_task(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Task[T]: ...
    @overload
    def add_task(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...
    def add_task(  # pyright: ignore[reportIncompatibleMethodOverride]  # the same
        self, func: Any = BY_KEYWORD, /, *args: Any, **kwargs: Any
    ) -> Task[Any]:
        """Add a call, to be made after the response is sent. Every argument is the function's.

        Returns:
            The task, with its `id`, `status` and `outcome`.

        Raises:
            TypeError: the call could not be made: no function, or arguments that do not fit.
            BacklogFull: `Settings.max_backlog` tasks wait already; answered 503.
            Draining: the process is shutting down; answered 503.
        """
        if func is BY_KEYWORD:  # stock allows `add_task(func=send)`; `func` is no reserved keyword
            func = kwargs.pop("func", None)
        return self.add(func, args, kwargs, None)

    def using(self, **options: Unpack[CallOptions]) -> "TasksView":
        """The same list of tasks, with options for those that are added through it.

        Raises:
            TypeError: an option that does not exist.
            ValueError: a value that is out of range.
        """
        return TasksView(self, dict(options))

    async def __call__(self) -> None:
        """Run what was added and not run yet, in the order added."""
        if not self.tasks:
            self._over = True  # what runs already, beside a WebSocket, may still add to it
            return
        first = self.tasks[0]
        if type(first) is Task and first.done:  # a list of an earlier call is called again
            self.tasks = [task for task in self.tasks if not (type(task) is Task and task.done)]
        self._over = False
        try:
            if tracing() or instrumented():
                self._supervise_stock()
                await super().__call__()
            else:  # what that does where no span can be open: 0.9 µs less for each task
                added: list[Any] = self.tasks  # which may grow meanwhile
                for task in added:
                    ours: Task[Any] = task if task.__class__ is Task else self._adopt(task)
                    rest = ours.runner.start(ours)
                    if rest is not None:
                        await rest
            if self._any_beside:
                await self._join_beside()
            self._seen = len(self.tasks)
        except BaseException as error:
            await self._stop(cancelled=not self._is_of_a_task(error))
            raise
        finally:
            self._over = True

    def _is_of_a_task(self, error: BaseException) -> bool:
        """True for what a task raised; false for what came from outside."""
        if isinstance(error, KeyboardInterrupt):
            return False
        return any(
            task.error is error and task.status is not Status.CANCELLED
            for task in self._supervised()
        )

    async def _stop(self, *, cancelled: bool) -> None:
        """Start nothing more; those that run beside end with the request, or are waited for."""
        self.drop(OUTSIDE if cancelled else "an earlier task failed, and on_error='raise'")
        for task in self._beside():
            if not cancelled:
                await task.wait()
            elif task.sharers == 1:
                task.runner.cancel(task, OUTSIDE)

    def left(self) -> list[Task[Any]]:
        """The tasks that nobody has called."""
        self._supervise_stock()
        return [task for task in self._supervised() if not task.claimed]

    def drop(self, reason: str) -> None:
        """End the tasks that nobody has called, because of `reason`."""
        for task in self.left():
            task.runner.drop(task, reason)
            if not task.claimed:  # another request shares it; this one gives it up only once
                self.tasks.remove(task)

    def __del__(self) -> None:
        """Report what was added and never called. Without the middleware only this notices."""
        if self._listed_at is not None:
            self._listed_at.lists.pop(id(self), None)
        added: list[BackgroundTask] = getattr(self, "tasks", [])
        if len(added) > self._seen and not sys.is_finalizing():
            for task in added[self._seen :]:
                if _is_ours(task) and not task.claimed:
                    task.runner.drop_from_any_thread(task, "it was never called")

    def add(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions | None,
        call: Particulars | None = None,
    ) -> Task[Any]:
        """What `add_task` does, here and in a view; apart, so that no keyword is reserved."""
        entrance = self._entrance or self._nearest_entrance()
        task = entrance.accept(func, args, kwargs, options, call)
        if (task.plan.special and self._is_elsewhere(task)) or (self._over and _late(task)):
            return task
        self.tasks.append(task)
        return task

    def _nearest_entrance(self) -> Entrance | Runners:
        """For a list made by hand: the runner of this loop; outside of every loop, a stand-in."""
        runners = nearest_runners()
        runner = runners.here()
        if runner is None:
            return runners
        runner.refresh()
        self.be_listed(runner.entrance)
        return runner.entrance

    def be_listed(self, entrance: Entrance) -> None:
        """Have tasks that nobody called yet be found by their id."""
        before = self._listed_at
        if before is entrance:
            return
        if before is not None:
            before.lists.pop(id(self), None)
        entrance.lists[id(self)] = ref(self)
        self._listed_at = entrance

    def _is_elsewhere(self, task: Task[Any]) -> bool:
        """Note what a special task needs; true when it is not for this list to call."""
        plan = task.plan
        if task.unique is not None and self._shares(task):
            self._any_beside = True
            return task.claimed or task in self.tasks
        behind = plan.detached and not plan.concurrent and plan.delay is None
        if not behind or plan.retry is not None:
            self._any_beside = True
        if behind:
            task.follows, self._last_detached = self._last_detached, task
        return self._at_once and plan.detached and task.runner.start_now(task)

    def _shares(self, task: Task[Any]) -> bool:
        """False for a unique task that is in no list yet."""
        assert self._listed_at is not None, "only an entrance gives a task its key"
        uniques = self._listed_at.uniques
        if uniques.is_new(task):
            return False
        if task in self.tasks:  # which gives it up only once
            uniques.leave(task)
        return True

    def _adopt(self, stock: BackgroundTask) -> Task[Any]:
        """In the list, too: whoever looks for what was not called must not find it there."""
        task = self._supervised_one(stock)
        self.tasks[self.tasks.index(stock)] = task
        return task

    def _supervise_stock(self) -> None:
        """Make tasks of plain `BackgroundTask`s that got into the list past `add_task`."""
        self.tasks = [
            task if isinstance(task, Task) else self._supervised_one(task) for task in self.tasks
        ]

    def _supervised_one(self, stock: BackgroundTask) -> Task[Any]:
        task = nearest_runners().supervise(stock)
        if task.plan.special:  # perhaps not run by the coroutine that starts it
            self._any_beside = True
        return task

    async def _join_beside(self) -> None:
        """Wait for those that run beside: they are inline, too, and may add tasks."""
        known = 0
        while known < len(self.tasks):
            known = len(self.tasks)
            for task in self.left():
                await task()
            for task in self._beside():
                await task.wait()
        for task in self._beside():
            task.runner.raise_if_told(task)

    def _beside(self) -> list[Task[Any]]:
        return [
            task
            for task in self._supervised()
            if task.claimed and task.spawned and not task.runner.outlives(task)
        ]

    def _supervised(self) -> list[Task[Any]]:
        return [task for task in self.tasks if _is_ours(task)]


def _is_ours(task: BackgroundTask) -> TypeGuard[Task[Any]]:
    return type(task) is Task


def _late(task: Task[Any]) -> bool:
    """True when a task that outlives its request has added this one, and it was started."""
    return current_task() is not None and task.runner.start_now(task)


class TasksView:
    """A list of background tasks, with options for what is added through this view."""

    __slots__ = ("_call", "_given", "_options", "_tasks")

    def __init__(self, tasks: BackgroundTasks, given: dict[str, Any]) -> None:
        self._tasks = tasks
        self._given = given
        for_plan = dict(given)
        self._call = particulars_of(for_plan)
        self._options: TaskOptions = _parsed(for_plan)

    @overload
    def add_task(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Task[T]: ...
    @overload
    def add_task(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...
    def add_task(self, func: Any = BY_KEYWORD, /, *args: Any, **kwargs: Any) -> Task[Any]:
        """Add a call to the list, as `BackgroundTasks.add_task` does, with the options."""
        if func is BY_KEYWORD:
            func = kwargs.pop("func", None)
        return self._tasks.add(func, args, kwargs, self._options, self._call)

    def using(self, **options: Unpack[CallOptions]) -> "TasksView":
        """The same list, with these options over those of this view."""
        return TasksView(self._tasks, {**self._given, **options})


def upgrade(stock: StockBackgroundTasks, runner: Runner, *, at_once: bool) -> BackgroundTasks:
    """Turn the instance that FastAPI made, and attached to the response, into one of ours.

    Everybody who holds it sees the change: the route, its sub-dependencies, the response. With
    `at_once`, detached tasks do not wait for the end of the request (a WebSocket may never end).
    """
    ours: Any = stock
    if not isinstance(stock, BackgroundTasks):  # nor are those that others put in its place
        ours.__class__ = BackgroundTasks
    ours._entrance, ours._at_once = runner.entrance, at_once
    runner.refresh()
    tasks: BackgroundTasks = ours
    tasks.be_listed(runner.entrance)
    return tasks


def _parsed(options: dict[str, Any]) -> TaskOptions:
    """The same object for the same options, so that plans are found again."""
    try:
        items: Any = ((name, type(value), value) for name, value in options.items())
        return _parse_once(tuple(items))
    except TypeError:  # a value that cannot be hashed is wrong: let the message say so
        return parse_options("using", Options(**options))  # type: ignore[typeddict-item]  # checked inside


@lru_cache(maxsize=1024)
def _parse_once(items: tuple[tuple[str, type, Any], ...]) -> TaskOptions:
    """The types are in the key: `True` equals 1, but is no timeout."""
    options: dict[str, Any] = {name: value for name, _, value in items}
    return parse_options("using", Options(**options))  # type: ignore[typeddict-item]  # checked inside
