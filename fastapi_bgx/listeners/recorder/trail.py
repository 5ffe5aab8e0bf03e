"""The trail of a task: the few things that happen to it and cannot be read from it later.

Noted where an event happens, on the task's own path: nothing here may take time. Most tasks leave
no trail at all. It hangs on its task and ends with it, so nothing has to be tidied up.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastapi_bgx.events import (
    Event,
    TaskBlockedLoop,
    TaskCancelled,
    TaskDelayed,
    TaskDropped,
    TaskExpired,
    TaskLogged,
    TaskOverran,
    TaskQueued,
    TaskRetrying,
    TaskSlow,
    TaskStarted,
)
from fastapi_bgx.records import MOST_STEPS, StepKind
from fastapi_bgx.task import Task

HALF = MOST_STEPS // 2 - 1  # its first start and its failure are steps, too


class Noted(NamedTuple):
    """One thing that happened, as it was noted."""

    at: float
    """When, by the clock of the tasks."""
    kind: StepKind
    attempt: int
    level: str = "info"
    text: str = ""
    seconds: float | None = None
    error: BaseException | None = None
    """Of an attempt that is followed by another one: the task keeps it, too."""


class Trail:
    """What was noted of one task; any thread may add to it."""

    __slots__ = ("arguments", "call", "count", "due", "first", "newest", "reason")

    def __init__(self) -> None:
        self.first: list[Noted] = []
        self.newest: deque[Noted] = deque(maxlen=HALF)
        self.count: int = 0
        """How many were noted, also of those that were not kept."""
        self.due: float | None = None
        """When the next attempt may begin, by the clock of the tasks."""
        self.reason: str = ""
        self.call: tuple[tuple[Any, ...], dict[str, Any] | None] | None = None
        """Its arguments, until they are described: the task itself lets go of them."""
        self.arguments: Mapping[str, str] | None = None
        """Its arguments, described."""

    def add(self, noted: Noted) -> None:
        """Note one thing; of many, the first half and the newest are kept."""
        self.count += 1
        if len(self.first) < HALF:
            self.first.append(noted)
        else:
            self.newest.append(noted)

    def kept(self) -> list[Noted]:
        """What was noted and is still known, oldest first; from any thread."""
        return [*self.first, *self.newest.copy()]


def trail_of(task: Task[Any]) -> Trail:
    """The trail of a task, which begins here if it has none."""
    trail: Trail | None = task.trail
    if trail is None:
        trail = task.trail = Trail()
    return trail


Note = Callable[[Any, float], None]
"""Called with an event and the time; most events need none."""


def _note_call(event: TaskQueued, _: float) -> None:
    # References: to describe them here would be on the path of the request. What somebody changes
    # in the next tenth of a second is described as it is then.
    task = event.task
    trail_of(task).call = task.args, task.named_args


def _note_start(event: TaskStarted, at: float) -> None:
    if event.attempt > 1:  # the first one is known by its time
        trail_of(event.task).add(Noted(at, "started", event.attempt))


def _note_delay(event: TaskDelayed, at: float) -> None:
    text = f"not to start for another {event.delay_s:.3g} s"
    trail_of(event.task).add(Noted(at, "delayed", 0, text=text, seconds=event.delay_s))


def _note_retry(event: TaskRetrying, at: float) -> None:
    trail, attempt = trail_of(event.task), event.attempt
    trail.due = at + event.delay_s
    trail.add(Noted(at, "failed", attempt, "error", error=event.error))
    text = f"attempt {attempt + 1} begins in {event.delay_s:.3g} s at the earliest"
    trail.add(Noted(at, "retrying", attempt, "warning", text, event.delay_s))


def _note_slow(event: TaskSlow, at: float) -> None:
    text = f"it has been running for {event.running_s:.3g} s"
    noted = Noted(at, "slow", event.task.attempt, "warning", text, event.running_s)
    trail_of(event.task).add(noted)


def _note_block(event: TaskBlockedLoop, at: float) -> None:
    verb = "kept" if event.ended else "keeps"
    text = f"it {verb} the event loop busy for {event.blocked_s:.3g} s, here:\n{event.stack}"
    noted = Noted(at, "blocked_loop", event.task.attempt, "warning", text, event.blocked_s)
    trail_of(event.task).add(noted)


def _note_overrun(event: TaskOverran, at: float) -> None:
    what = "its function has ended" if event.ended else "its function still runs"
    text = f"{what}, {event.overran_s:.3g} s after it should have"
    noted = Noted(at, "overran", event.task.attempt, "warning", text, event.overran_s)
    trail_of(event.task).add(noted)


def _note_line(event: TaskLogged, at: float) -> None:
    noted = Noted(at, "log", event.task.attempt, event.line_level, event.text)
    trail_of(event.task).add(noted)


def _note_reason(event: TaskCancelled | TaskDropped | TaskExpired, _: float) -> None:
    trail_of(event.task).reason = event.reason


NOTES: dict[type[Event], Note] = {
    TaskStarted: _note_start,
    TaskDelayed: _note_delay,
    TaskRetrying: _note_retry,
    TaskSlow: _note_slow,
    TaskBlockedLoop: _note_block,
    TaskOverran: _note_overrun,
    TaskLogged: _note_line,
    TaskCancelled: _note_reason,
    TaskDropped: _note_reason,
    TaskExpired: _note_reason,
}
"""What has to be noted of which event."""
NOTES_WITH_ARGUMENTS: dict[type[Event], Note] = {**NOTES, TaskQueued: _note_call}
"""The same, where arguments are kept."""
