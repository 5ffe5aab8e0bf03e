"""`Task`: one call handed over. The one mutable value here; only its runner changes it."""

from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar
from typing import Any, Generic, Protocol, TypeGuard, TypeVar

import anyio
import structlog
from starlette.background import BackgroundTask

from fastapi_bgx.errors import Cancelled
from fastapi_bgx.loglines import KeepLines, KeptChain
from fastapi_bgx.outcome import Outcome, Progress, Status
from fastapi_bgx.plan import Plan
from fastapi_bgx.progress import not_a_fraction
from fastapi_bgx.reports import TaskRef
from fastapi_bgx.telemetry import carry_span, mark_failed

T = TypeVar("T")


class CurrentTask(Protocol):
    """What `current_task()` gives: the running task, seen from inside."""

    @property
    def id(self) -> str:
        """The id of the task."""
        ...

    @property
    def name(self) -> str:
        """The name of the task."""
        ...

    @property
    def attempt(self) -> int:
        """The number of this call, from 1."""
        ...

    @property
    def timed_out(self) -> bool:
        """True when the timeout has passed: nobody waits for the result any more."""
        ...

    @property
    def cancelled(self) -> bool:
        """True when the task was asked to stop. Only a thread lives long enough to see it."""
        ...

    def remaining(self) -> float | None:
        """Seconds until the timeout, never negative; `None` without a timeout."""
        ...

    def check_cancelled(self) -> None:
        """Do nothing, unless the task was asked to stop.

        Raises:
            Cancelled: it was. Let it pass: it ends the task.
        """
        ...

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Tell how far the task is, and what it does. Others read it as `Task.last_progress`.

        Cheap enough for a loop.

        Args:
            fraction: From 0 to 1.
            note: What it does now; without it, the last note of this attempt holds on.

        Raises:
            ValueError: `fraction` is not from 0 to 1.
        """
        ...

    @property
    def log(self) -> Any:
        """A logger of the application, `structlog.get_logger()`, with the task in each line.

        Its fields are `task`, `task_id` and `attempt`. As with structlog's own function, its
        class is the one that the application has configured.
        """
        ...


current: ContextVar[CurrentTask] = ContextVar("fastapi_bgx_current_task")
"""Where `current_task()` looks; set in the context of each task as it starts."""


def current_task() -> CurrentTask | None:
    """The task that runs here: on the event loop, in a thread or in a worker process.

    `None` outside of a task.
    """
    return current.get(None)


def logger_for(task: CurrentTask) -> Any:
    """A logger of the application with the task in each line.

    It is structlog's own lazy one: it follows the configuration of now, and one that is named
    after the module it is used in is named after that of the application, not after this one.
    """
    return structlog.get_logger(task=task.name, task_id=task.id, attempt=task.attempt)


def _kept_logger_for(task: "Task[Any]") -> Any:
    """The same, and its lines are told to whoever keeps them."""
    chain = KeptChain(lambda: task)
    return structlog.wrap_logger(None, chain, task=task.name, task_id=task.id, attempt=task.attempt)


def _hearing_task() -> "Task[Any] | None":
    """The task that runs here, if somebody hears its lines; in a worker process nobody does."""
    here: Any = current.get(None)
    return here if _is_task(here) and here.runner.hears_lines() else None


def _is_task(here: Any) -> "TypeGuard[Task[Any]]":
    return isinstance(here, Task)


keep_lines: KeepLines = KeepLines(_hearing_task)
"""A processor for the application's structlog: each line that is logged inside of a task is kept in
the record of the task, as the processors before this one have left it.

Put it before the renderer, which is the last one. The lines of `current_task().log` are kept
without it. Nothing is kept of the lines of a worker process.
"""


class Supervisor(Protocol):
    """What a task needs from its runner."""

    prefix: str
    """What the ids of its tasks begin with."""
    clock: Callable[[], float]
    """Seconds, of the clock by which its tasks are timed."""

    def start(self, task: "Task[Any]") -> Awaitable[None] | None:
        """Run the task, or hand it over, as planned; at most once.

        What has to be awaited for the rest of it; `None` when there is no rest.
        """
        ...

    def start_now(self, task: "Task[Any]") -> bool:
        """Hand a task over without waiting for its request; from any thread.

        False when it may not outlive its request.
        """
        ...

    def drop(self, task: "Task[Any]", reason: str) -> None:
        """End a task that was added and will not be started; on the loop's thread."""
        ...

    def drop_from_any_thread(self, task: "Task[Any]", reason: str) -> None:
        """The same, from any thread."""
        ...

    def outlives(self, task: "Task[Any]") -> bool:
        """True when the request does not wait for the task."""
        ...

    def cancel(self, task: "Task[Any]", reason: str) -> None:
        """Have a live task end soon, because of `reason`."""
        ...

    def stop(self, task: "Task[Any]") -> bool:
        """Have a task end because its owner wants that; from any thread.

        False when it has ended already.
        """
        ...

    def raise_if_told(self, task: "Task[Any]") -> None:
        """Raise the error of a task that failed, where `Settings.on_error` says so."""
        ...

    def progressed(self, task: "Task[Any]") -> bool:
        """Publish how far the task is, if that was not done lately; from any thread.

        False when nobody hears it.
        """
        ...

    def hears_lines(self) -> bool:
        """True when somebody hears what tasks log."""
        ...

    def logged(self, task: "Task[Any]", level: str, text: str) -> None:
        """Publish a line that the task has logged; from any thread."""
        ...

    def overruns(self, task: "Task[Any]") -> bool:
        """True when its function still runs though it is over; from any thread."""
        ...


class Task(BackgroundTask, Generic[T]):
    """One call that was handed over to run in the background.

    It is returned by `add_task`, and is a Starlette `BackgroundTask`.
    """

    status: Status = Status.QUEUED
    """Where the task is in its life."""
    attempt: int = 0
    """The number of the current call, from 1; 0 before the first."""
    cancelled: bool = False
    """True when the task was asked to stop."""
    retry_of: str | None = None
    """The id of the ended task that somebody had run again as this one."""

    # Class attributes are the values that most tasks never change: no cost for each instance.
    value: Any = None
    error: BaseException | None = None
    started_at: float | None = None
    ended_at: float | None = None
    deadline: float | None = None
    spawned = False  # true once it runs in a worker: nobody is there to raise to
    claimed = False  # true once it was called: it must not run twice
    follows: "Task[Any] | None" = None
    followed_by: "Task[Any] | None" = None
    key: Any = None
    payload: bytes = b""
    at_end: "list[Callable[[Task[Any]], object]] | None" = None
    due: float | None = None  # before which it does not start
    errors: tuple[BaseException, ...] = ()  # of the attempts that were followed by another one
    failed_as = Status.FAILED  # how the attempt ended that is followed by another one
    first_started_at: float | None = None  # set once there is a second attempt
    untouched: Context | None = None  # the context as no attempt has changed it
    unique: Any = None
    listed = False  # true once it is in a list, of a unique task
    sharers = 1  # how many calls of `add_task` gave it, less those taken back
    progress_told_at: float | None = None  # when an event told of it last
    progress_elsewhere: Callable[[], Progress | None] | None = None  # of its worker process
    trail: Any = None  # what the recorder has noted of it, which lives as long as the task does
    _progress: tuple[int, float, str] | None = None  # with its attempt
    _log: tuple[int, bool, Any] | None = None  # with its attempt, and whether its lines are heard
    _outcome: Outcome[T] | None = None

    def __init__(
        self,
        runner: Supervisor,
        plan: Plan,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Context,
        number: int,
        added_at: float,
    ) -> None:
        # Not through BackgroundTask.__init__: it would work out again what the plan knows.
        self.runner = runner
        self.plan = plan
        self.func = func
        self.args = args  # type: ignore[assignment]  # Starlette types both by a ParamSpec
        self.named_args: dict[str, Any] | None = kwargs or None
        self.context: Context | None = context
        self.number = number
        self.added_at = added_at

    @property
    def kwargs(self) -> dict[str, Any]:  # type: ignore[override]  # an attribute there
        """The keyword arguments."""
        if self.named_args is None:  # most have none: an empty dictionary is 64 bytes
            self.named_args = {}
        return self.named_args

    @property
    def is_async(self) -> bool:  # type: ignore[override]  # an attribute there
        """True when the function is an async one."""
        return self.plan.shape.is_async

    @property
    def id(self) -> str:
        """Unique among all tasks of all processes."""
        return f"{self.runner.prefix}{self.number}"

    @property
    def name(self) -> str:
        """The name of the task: its function's, unless an option says otherwise."""
        return self.plan.name

    @property
    def ref(self) -> TaskRef:
        """Name and id."""
        return TaskRef(self.name, self.id)

    @property
    def done(self) -> bool:
        """True when the task has ended, in whichever way."""
        return self.ended_at is not None

    @property
    def timed_out(self) -> bool:
        """True when the timeout has passed."""
        return self.deadline is not None and self.runner.clock() >= self.deadline

    def remaining(self) -> float | None:
        """Seconds until the timeout, never negative; `None` without one, or before the start."""
        return None if self.deadline is None else max(0.0, self.deadline - self.runner.clock())

    def check_cancelled(self) -> None:
        """Do nothing, unless the task was asked to stop.

        Raises:
            Cancelled: it was.
        """
        if self.cancelled:
            raise Cancelled(self.name)

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Tell how far the task is, and what it does; from inside of it.

        Args:
            fraction: From 0 to 1.
            note: What it does now; without it, the last note of this attempt holds on.

        Raises:
            ValueError: `fraction` is not from 0 to 1.
        """
        if not 0 <= fraction <= 1:  # which is false for NaN, too
            raise not_a_fraction(fraction)
        if note is None:
            last = self._progress
            note = "" if last is None or last[0] != self.attempt else last[2]
        self._progress = self.attempt, float(fraction), note
        self.runner.progressed(self)

    @property
    def last_progress(self) -> Progress | None:
        """What the current attempt told last of its progress, or the last one, after the end.

        From any thread. `None` when it told nothing.
        """
        elsewhere = self.progress_elsewhere
        if elsewhere is not None:
            return elsewhere()
        last = self._progress
        return None if last is None or last[0] != self.attempt else Progress(last[1], last[2])

    def keep_progress(self, last: Progress | None) -> None:
        """Have `last` be the last progress of its worker process, which has ended."""
        if last is not None:
            self._progress = self.attempt, last.fraction, last.note
        self.progress_elsewhere = None

    @property
    def log(self) -> Any:
        """A logger of the application, `structlog.get_logger()`, with the task in each line.

        Its fields are `task`, `task_id` and `attempt`.
        """
        heard = self.runner.hears_lines()
        if self._log is None or self._log[:2] != (self.attempt, heard):
            made = _kept_logger_for(self) if heard else logger_for(self)
            self._log = self.attempt, heard, made
        return self._log[2]

    def keep_line(self, level: str, text: str) -> None:
        """Tell of a line that it has logged. For its logger."""
        self.runner.logged(self, level, text)

    @property
    def begun_at(self) -> float | None:
        """When the first attempt started, by the runner's clock; `None` before."""
        return self.first_started_at or self.started_at

    @property
    def queued_s(self) -> float:
        """Seconds from `add_task` to the first call; without one to the end, or until now."""
        begun = self.begun_at
        until = self.ended_at if begun is None else begun
        return (self.runner.clock() if until is None else until) - self.added_at

    @property
    def duration_s(self) -> float:
        """Seconds from the first call to the end, or until now; 0 before the first call."""
        begun = self.begun_at
        if begun is None:
            return 0.0
        return (self.runner.clock() if self.ended_at is None else self.ended_at) - begun

    @property
    def outcome(self) -> Outcome[T] | None:
        """How the task ended; `None` as long as it has not."""
        if self._outcome is None and self.ended_at is not None:
            self._outcome = Outcome(
                status=self.status,
                returned=self.value,
                error=self.error,
                errors=self._all_errors(),
                attempts=self.attempt,
                queued_s=self.queued_s,
                duration_s=self.duration_s,
            )
        return self._outcome

    def _all_errors(self) -> tuple[BaseException, ...]:
        failed = self.status in (Status.FAILED, Status.TIMED_OUT) and self.error is not None
        return (*self.errors, self.error) if failed and self.error is not None else self.errors

    async def wait(self, timeout: float | None = None) -> Outcome[T]:
        """Wait until the task has ended, and give its outcome; for `timeout` seconds at most.

        An inline task is started after the response is sent: a route that waits for its own
        inline task waits for ever.

        On the event loop that runs the task; from the thread of a sync route that is
        `anyio.from_thread.run(task.wait, timeout)`.

        Raises:
            TimeoutError: it has not ended by then. The task is not touched.
        """
        if self.ended_at is None:
            ended = anyio.Event()
            callback = self.when_ended(lambda _: ended.set())
            try:
                with anyio.move_on_after(timeout):
                    await ended.wait()
            finally:
                if self.at_end is not None:
                    self.at_end.remove(callback)
        if self.outcome is None:
            raise TimeoutError(f"after {timeout:g} s {self.name} is {self.status}")
        return self.outcome

    def cancel(self) -> bool:
        """Ask the task to stop; from any thread. False when it has ended already.

        True promises only that it was asked: how it ended, its status says. What waits never
        runs. An async function is cancelled, a worker process is killed. A thread cannot be
        stopped: its function can ask `current_task().cancelled`, and the status is that of how it
        really ended.
        """
        return self.runner.stop(self)

    def when_ended(
        self, callback: "Callable[[Task[Any]], object]"
    ) -> "Callable[[Task[Any]], object]":
        """Have `callback(task)` called when it has ended. For the runner."""
        if self.at_end is None:
            self.at_end = []
        self.at_end.append(callback)
        return callback

    def end(self, status: Status, at: float) -> None:
        """Make `status` final. For the runner."""
        self.status = status
        self.ended_at = at

    def tell_end(self) -> None:
        """Call those who asked to be told of the end. For the runner."""
        told, self.at_end = self.at_end, None
        for callback in told or ():
            callback(self)

    async def __call__(self) -> None:
        """Run inline or hand over, as planned. A second call does nothing."""
        if instrumented():
            await _through_instrumentation(self)
        else:
            await self.go()

    async def go(self) -> None:
        """What a call comes down to, without the instrumentation around it."""
        if self.context is not None:
            carry_span(self.context)
        rest = self.runner.start(self)
        if rest is not None:
            await rest
        if self.error is not None and self.ended_at is not None:
            mark_failed(self.error)

    def __repr__(self) -> str:
        """Name, id and status; never the arguments."""
        return f"<Task {self.name} {self.id} {self.status}>"


def instrumented() -> bool:
    """True when somebody replaced `BackgroundTask.__call__`, as opentelemetry-contrib does."""
    return BackgroundTask.__call__.__module__ != "starlette.background"


async def _through_instrumentation(task: Task[Any]) -> None:
    """Call a task through the replaced `BackgroundTask.__call__`, which sees its name."""

    async def go() -> None:
        await task.go()

    go.__name__ = getattr(task.func, "__name__", type(task.func).__name__)
    await BackgroundTask.__call__(BackgroundTask(go))
