"""Events: immutable facts about tasks and the runner, and how they reach their listeners.

A new event is a class here; its `name` is what the log and the settings call it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from fastapi_bgx.notices import notice
from fastapi_bgx.outcome import Outcome
from fastapi_bgx.reports import DrainReport
from fastapi_bgx.settings import EventName
from fastapi_bgx.task import Task

Level = str


@dataclass(frozen=True, slots=True)
class Event:
    """The base of every event."""

    name: ClassVar[EventName]
    """The name of the event in the log and in `Settings.log_events`."""
    level: ClassVar[Level] = "info"
    """The level at which it is logged."""


@dataclass(frozen=True, slots=True)
class TaskEvent(Event):
    """Something that happened to a task."""

    task: Task[Any]
    """The task. Its status may have moved on when a listener looks at it later."""


@dataclass(frozen=True, slots=True)
class TaskQueued(TaskEvent):
    """`add_task` accepted the task."""

    name: ClassVar[EventName] = "task.queued"
    level = "debug"


@dataclass(frozen=True, slots=True)
class TaskStarted(TaskEvent):
    """The task has its slots and its function is called."""

    name: ClassVar[EventName] = "task.started"
    level = "debug"
    attempt: int
    """The number of the call, from 1."""
    queued_s: float
    """Seconds since `add_task`."""


@dataclass(frozen=True, slots=True)
class TaskDelayed(TaskEvent):
    """The task is not to start yet: it was given a `delay` or a `run_at`."""

    name: ClassVar[EventName] = "task.delayed"
    delay_s: float
    """Seconds until it may start."""
    holds_request: bool
    """True when the task is inline: its request does not end before the task does."""


@dataclass(frozen=True, slots=True)
class TaskRetrying(TaskEvent):
    """An attempt failed and is going to be followed by another one."""

    name: ClassVar[EventName] = "task.retrying"
    level = "warning"
    attempt: int
    """The number of the attempt that failed, from 1."""
    error: BaseException
    """What it raised; a `TimeoutError` when it timed out."""
    delay_s: float
    """Seconds until the next attempt may begin."""
    holds_request: bool
    """True when the task is inline: its request does not end before the task does."""


@dataclass(frozen=True, slots=True)
class TaskProgressed(TaskEvent):
    """The task told of its progress; at most once in a second for each task."""

    name: ClassVar[EventName] = "task.progressed"
    level = "debug"
    fraction: float
    """From 0 to 1."""
    note: str
    """What it does; empty when it did not say."""


@dataclass(frozen=True, slots=True)
class TaskJoined(TaskEvent):
    """`add_task` gave back an unfinished task of the same `unique` key, and added none."""

    name: ClassVar[EventName] = "task.joined"
    key: str
    """The key."""


@dataclass(frozen=True, slots=True)
class TaskBlockedLoop(TaskEvent):
    """The task keeps the event loop from everything else, or did so."""

    name: ClassVar[EventName] = "task.blocked_loop"
    level = "warning"
    blocked_s: float
    """Seconds for which it has done so."""
    stack: str
    """Where the task was when that was noticed, innermost frame last."""
    ended: bool
    """False while it still blocks; such an event is followed by one that says True."""


@dataclass(frozen=True, slots=True)
class TaskEnded(TaskEvent):
    """The base of the events that end a task: exactly one for each task."""

    @property
    def outcome(self) -> Outcome[Any]:
        """How it ended; made when a listener asks."""
        outcome = self.task.outcome
        assert outcome is not None, "the task has ended"
        return outcome


@dataclass(frozen=True, slots=True)
class TaskSucceeded(TaskEnded):
    """The function returned."""

    name: ClassVar[EventName] = "task.succeeded"


@dataclass(frozen=True, slots=True)
class TaskFailed(TaskEnded):
    """The function raised."""

    name: ClassVar[EventName] = "task.failed"
    level = "error"


@dataclass(frozen=True, slots=True)
class TaskTimedOut(TaskEnded):
    """The function ran longer than its timeout."""

    name: ClassVar[EventName] = "task.timed_out"
    level = "error"


@dataclass(frozen=True, slots=True)
class TaskCancelled(TaskEnded):
    """The task was stopped from outside."""

    name: ClassVar[EventName] = "task.cancelled"
    level = "warning"
    reason: str
    """By what."""


@dataclass(frozen=True, slots=True)
class TaskExpired(TaskEnded):
    """The task waited longer than its `queue_timeout` or `expires`, and was not started."""

    name: ClassVar[EventName] = "task.expired"
    level = "warning"
    reason: str
    """Which of them."""


@dataclass(frozen=True, slots=True)
class TaskDropped(TaskEnded):
    """The task was added, but not started."""

    name: ClassVar[EventName] = "task.dropped"
    level = "warning"
    reason: str
    """Why not."""


@dataclass(frozen=True, slots=True)
class TaskRejected(Event):
    """`add_task` refused a task, and raised."""

    name: ClassVar[EventName] = "task.rejected"
    level = "warning"
    task_name: str
    """The name of the task that did not come to be."""
    reason: str
    """Why."""


@dataclass(frozen=True, slots=True)
class TaskOverran(TaskEvent):
    """A function outlived its task: after a timeout or a shutdown it ran on."""

    name: ClassVar[EventName] = "task.overran"
    level = "warning"
    overran_s: float
    """Seconds since its task ended or should have."""
    ended: bool
    """False while it still runs; such an event is followed by one that says True."""


@dataclass(frozen=True, slots=True)
class TaskSlow(TaskEvent):
    """The task has been running for `slow_after` seconds."""

    name: ClassVar[EventName] = "task.slow"
    level = "warning"
    running_s: float
    """Seconds since its start."""


@dataclass(frozen=True, slots=True)
class TaskLogged(TaskEvent):
    """The task logged a line. Told to listeners alone: it is in the log already."""

    name: ClassVar[EventName] = "task.logged"
    line_level: str
    """The level of the line: `debug`, `info`, `warning`, `error` or `critical`."""
    text: str
    """What it says, with its fields; at most 2,000 characters."""


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The runner of an application started with its lifespan."""

    name: ClassVar[EventName] = "bgx.started"
    mode: str
    """`Settings.mode`."""


@dataclass(frozen=True, slots=True)
class Drained(Event):
    """A drain is over."""

    name: ClassVar[EventName] = "bgx.drained"
    report: DrainReport
    """What it waited for, and what it left."""


class Listener(Protocol):
    """Receives events, on any thread. What it raises is logged and hurts no task."""

    def hears(self, event: type[Event]) -> bool:
        """False when it would do nothing with such an event, so that none has to be made."""
        ...

    def changed(self) -> bool:
        """True when `hears` may answer differently than before."""
        ...

    def __call__(self, event: Event) -> None:
        """Receive one event."""
        ...


class Publisher:
    """Hands events to listeners."""

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._listeners = tuple(listeners)
        self.heard: dict[type[Event], tuple[Listener, ...]] = self._ask()
        """The events that any listener wants. Those that none wants need not even be made."""

    def add(self, listener: Listener) -> None:
        """Tell one more, after the others."""
        self._listeners = (*self._listeners, listener)
        self.heard = self._ask()

    def replace(self, by: Callable[[Listener], Listener]) -> None:
        """Put `by(listener)` in the place of each listener that there is now."""
        self._listeners = tuple(by(listener) for listener in self._listeners)
        self.heard = self._ask()

    def refresh(self) -> None:
        """Ask the listeners again what they hear, if that may have changed.

        Asked once for each request: to ask for each event costs more than to run a short task.
        """
        changed = False
        for listener in self._listeners:  # every one is asked
            changed |= listener.changed()
        if changed:
            self.heard = self._ask()

    def publish(self, event: Event) -> None:
        """Hand one event to every listener that wants it; never raises."""
        for listener in self.heard.get(type(event), ()):
            try:
                listener(event)
            except Exception:
                notice(
                    "exception",
                    "bgx.listener_failed",
                    listener=repr(listener),
                    about=event.name,
                )

    def remove(self, listener: Listener) -> None:
        """Tell one of them no more."""
        self._listeners = tuple(each for each in self._listeners if each is not listener)
        self.heard = self._ask()

    def _ask(self) -> dict[type[Event], tuple[Listener, ...]]:
        heard = {
            kind: tuple(each for each in self._listeners if each.hears(kind)) for kind in ALL_EVENTS
        }
        return {kind: listeners for kind, listeners in heard.items() if listeners}


ALL_EVENTS: tuple[type[Event], ...] = (
    TaskQueued,
    TaskJoined,
    TaskDelayed,
    TaskStarted,
    TaskProgressed,
    TaskRetrying,
    TaskSucceeded,
    TaskFailed,
    TaskTimedOut,
    TaskCancelled,
    TaskExpired,
    TaskDropped,
    TaskRejected,
    TaskOverran,
    TaskSlow,
    TaskBlockedLoop,
    TaskLogged,
    Started,
    Drained,
)
"""Every event that is published."""
