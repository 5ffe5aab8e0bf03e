"""One runner for each event loop, all with the same settings, hooks and threads.

A server has one loop for its life; a `TestClient` without `with` has a new one for each request.
"""

import contextlib
import os
import weakref
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextvars import ContextVar, copy_context
from functools import cache
from operator import attrgetter
from typing import Any, Protocol

from fastapi import BackgroundTasks as StockBackgroundTasks
from starlette.background import BackgroundTask

from fastapi_bgx.attempt import ASKED
from fastapi_bgx.backends import current_backend, current_token
from fastapi_bgx.calls import check_call
from fastapi_bgx.drain import Drain
from fastapi_bgx.entrance import Common
from fastapi_bgx.errors import WrongCall
from fastapi_bgx.events import (
    Event,
    Listener,
    Publisher,
    Started,
    TaskCancelled,
    TaskDropped,
    TaskQueued,
)
from fastapi_bgx.listeners.hooks import FailureHooks
from fastapi_bgx.listeners.log import LogListener
from fastapi_bgx.options import Particulars, TaskOptions
from fastapi_bgx.outcome import Status
from fastapi_bgx.plan import Planner
from fastapi_bgx.runner import Runner
from fastapi_bgx.settings import Settings
from fastapi_bgx.task import Task
from fastapi_bgx.threads import Threads
from fastapi_bgx.timers import Clock, SystemClock
from fastapi_bgx.watchdog import Watchdog

everyone: "weakref.WeakSet[Runners]" = weakref.WeakSet()
"""Those of every `Bgx` of this process: tests reach each of them without being told where it is."""
when_made: "list[Callable[[Runners], None]]" = []
"""Told of each that is made from now on."""

MOST_DIGITS = 20
"""Nobody has had so many tasks; to read a number of thousands of digits is an error in Python."""


class Runners:
    """The runners of one `Bgx`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock: Clock = SystemClock()
        self.threads: Threads = Threads()
        self.hooks: FailureHooks = FailureHooks(self.threads)
        self.publisher: Publisher = Publisher([LogListener(settings)])
        self._common = Common(settings.history)
        self._unbound_planner = Planner(settings, eager=False)
        self._by_loop: dict[object, tuple[Runner, Drain]] = {}
        self._latest: tuple[object, Runner] | None = None
        everyone.add(self)
        for arrived in when_made:
            arrived(self)

    def current(self) -> Runner:
        """The runner of the event loop that runs in this thread; made when there is none.

        Raises:
            RuntimeError: no event loop runs here.
        """
        try:  # asked for each request; to ask here saves a call
            token: object = get_running_loop()
        except RuntimeError:
            token = current_token()
        latest = self._latest
        if latest is not None and latest[0] is token:
            return latest[1]
        known = self._by_loop.get(token)
        runner = self._make() if known is None else known[0]
        self._latest = token, runner
        return runner

    def here(self) -> Runner | None:
        """The runner of this thread's event loop; `None` in a thread without one."""
        try:
            return self.current()
        except RuntimeError:
            return None

    def latest(self) -> Runner | None:
        """The runner that was used last: the one that a thread without a loop means."""
        return None if self._latest is None else self._latest[1]

    def each(self) -> list[Runner]:
        """The runners whose event loop has not ended."""
        runners = [runner for runner, _ in list(self._by_loop.values())]
        return [runner for runner in runners if not runner.backend.ended()]

    @property
    def process(self) -> str:
        """The id of this process: what the ids of its tasks begin with, before the dash."""
        return self._mine().prefix.removesuffix("-")

    def live(self) -> Iterator[Task[Any]]:
        """Every task that has not ended; some twice. From any thread."""
        for runner, _ in list(self._by_loop.values()):
            for task in runner.unfinished():
                if task.ended_at is None:
                    yield task

    def tell_time_by(self, clock: Clock) -> None:
        """Use another clock from now on; for tests."""
        self.clock = clock
        for runner in self.each():
            runner.tell_time_by(clock)

    def join(self, listener: Listener) -> None:
        """Tell one more listener of the events of every runner, from now on."""
        self.publisher.add(listener)
        self._refresh()

    def leave(self, listener: Listener) -> None:
        """Tell a listener no more."""
        self.publisher.remove(listener)
        self._refresh()

    def _refresh(self) -> None:
        for runner in self.each():
            runner.refresh()

    def drain(self) -> Drain:
        """The drain of this loop's runner."""
        self.current()
        return self._by_loop[current_token()][1]

    def start(self) -> bool:
        """Let tasks outlive their requests, from now to the drain; false when that is so already.

        A runner that was drained is replaced: an application may be started again.
        """
        runner = self.current()
        if runner.detaching and not runner.refusing:
            return False
        if runner.refusing:
            runner = self._make()
        runner.detaching = True
        runner.refresh()  # the application may have configured structlog as it started
        runner.publish(Started(self.settings.mode))
        if self.settings.loop_block_after is not None:
            watchdog = Watchdog(runner, self.settings.loop_block_after)
            runner.when_drained = watchdog.stop
            watchdog.start()
        return True

    def accept(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions | None,
        call: Particulars | None = None,
    ) -> Task[Any]:
        """Make a task outside of every event loop; it finds its runner when it is called."""
        plan = self._unbound_planner.plan(func, options)
        if self.settings.check_calls:
            check_call(plan.shape, args, kwargs)
        unbound = _Unbound(self, self._common.prefix, options, call)
        number, context = self._common.number(), copy_context()
        now = self.clock.now()
        task: Task[Any] = Task(unbound, plan, func, args, kwargs, context, number, now)
        if TaskQueued in self.publisher.heard:
            self.publisher.publish(TaskQueued(task))
        return task

    def supervise(self, stock: BackgroundTask) -> Task[Any]:
        """Make a task of a plain `BackgroundTask`; of a subclass, of what calling it does."""
        if type(stock) is BackgroundTask:
            with contextlib.suppress(WrongCall):  # too late to refuse: let stock do what it does
                return self.accept(stock.func, stock.args, dict(stock.kwargs), None)
        return self.accept(stock.__call__, (), {}, None)

    def find(
        self, status: Collection[Status] | None, name: str | None, since: float | None
    ) -> list[Task[Any]]:
        """The tasks of every loop that are known and fit, the newest first; from any thread."""
        fitting = [
            task
            for task in dict.fromkeys(self._known())
            if (status is None or task.status in status)
            and (name is None or task.name == name)
            and (since is None or task.added_at >= since)
        ]
        return sorted(fitting, key=attrgetter("number"), reverse=True)

    def get(self, task_id: str) -> Task[Any] | None:
        """The task with that id, if it is known; from any thread."""
        number = self.number_of(task_id)
        if number is None:
            return None
        found = (task for task in self._known() if task.number == number)
        return next((task for task in found if task.id == task_id), None)

    def number_of(self, task_id: str) -> int | None:
        """The number of the task that has this id, if this process has given it."""
        digits = task_id.removeprefix(self._common.prefix)
        if digits == task_id or not (digits.isdecimal() and len(digits) < MOST_DIGITS):
            return None
        return int(digits)

    def _known(self) -> Iterator[Task[Any]]:
        """Every task that lives or is in the history; some twice.

        The history comes last: a task that ends meanwhile is in it by then, if it is kept.
        """
        yield from self.live()
        yield from self._common.history

    def publish(self, event: Event) -> None:
        """Hand an event to the listeners; never raises."""
        self.publisher.publish(event)

    def _mine(self) -> Common:
        if self._common.process != os.getpid():  # forked since: the other counts on with its prefix
            self._common = Common(  # pragma: no cover - a forked worker reports no coverage
                self.settings.history
            )
        return self._common

    def _make(self) -> Runner:
        for token, (old, _) in list(self._by_loop.items()):
            if old.backend.ended():
                del self._by_loop[token]
        common = self._mine()
        backend = current_backend()
        runner = Runner(
            self.settings,
            backend,
            self.publisher,
            self.hooks,
            self.threads,
            common,
            self.clock,
        )
        self._by_loop[backend.token] = runner, Drain(runner)
        self._latest = backend.token, runner
        return runner


class _Unbound:
    """Stands in for the runner of a task that was added outside of every event loop."""

    def __init__(
        self,
        runners: Runners,
        prefix: str,
        options: TaskOptions | None,
        call: Particulars | None,
    ) -> None:
        self.prefix = prefix
        self.clock: Callable[[], float] = runners.clock.now
        self._runners = runners
        self._options = options
        self._call = call

    def start(self, task: Task[Any]) -> Awaitable[None] | None:
        """Now there is a loop: hand the task to its runner, and start it there."""
        return self._runners.current().adopt(task, self._options, self._call)

    def start_now(self, task: Task[Any]) -> bool:  # noqa: ARG002 - as the protocol has it
        """False: no loop is here."""
        return False

    def drop(self, task: Task[Any], reason: str) -> None:
        """End the task without a runner."""
        self._end(task, Status.DROPPED, TaskDropped(task, reason))

    drop_from_any_thread = drop

    def stop(self, task: Task[Any]) -> bool:
        """It never runs."""
        if task.done:
            return False
        self._end(task, Status.CANCELLED, TaskCancelled(task, ASKED))
        return True

    def _end(self, task: Task[Any], status: Status, event: Event) -> None:
        task.claimed = True
        task.end(status, self.clock())
        self._runners.publish(event)
        task.tell_end()

    # Once it has started, the task has its runner, and none of these is asked any more.

    def outlives(self, task: Task[Any]) -> bool:  # noqa: ARG002 - as the protocol has it
        """False: nothing of it runs."""
        return False

    def cancel(self, task: Task[Any], reason: str) -> None:
        """Nothing of it runs."""

    def raise_if_told(self, task: Task[Any]) -> None:
        """Nothing of it failed."""

    def progressed(self, task: Task[Any]) -> bool:  # noqa: ARG002 - as the protocol has it
        """False: nothing of it runs."""
        return False

    def hears_lines(self) -> bool:
        """False: nothing of it runs."""
        return False

    def logged(self, task: Task[Any], level: str, text: str) -> None:
        """Nothing of it runs."""

    def overruns(self, task: Task[Any]) -> bool:  # noqa: ARG002 - as the protocol has it
        """False: nothing of it runs."""
        return False


class Serving(Protocol):
    """What is known everywhere in a request that an installed `Bgx` serves."""

    bgx: object
    runner: Runner
    """That of the event loop, also for the threads of sync routes."""

    @property
    def runners(self) -> Runners:
        """Those of the `Bgx`."""
        ...

    def supervise(self, stock: StockBackgroundTasks, runner: Runner) -> object:
        """Make ours of the list that FastAPI made for the request, and see to its end."""
        ...


serving: ContextVar[Serving] = ContextVar("fastapi_bgx_serving")
"""The current request, also in the threads of sync routes; set by the middleware."""


def nearest_runners() -> Runners:
    """The runners for a list of tasks that was made by hand.

    Those of the `Bgx` that serves the current request; without one, a set of this process, with
    the settings of the environment.
    """
    visit = serving.get(None)
    return _of_environment() if visit is None else visit.runners


@cache
def _of_environment() -> Runners:
    return Runners(Settings())
