"""Calls that `add_task` refused, as records: a name and a reason, since there is no task."""

import itertools
import threading
from collections.abc import Callable
from typing import NamedTuple

from fastapi_bgx.events import Event, TaskRejected
from fastapi_bgx.listeners.recorder.moments import Moments
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import FullRecord
from fastapi_bgx.texts import shortened

MOST_AT_ONCE = 100
"""Refusals that are kept of one look at what has happened: who refuses is overloaded already."""
MOST_NAME = 500


class Refusal(NamedTuple):
    """One call that was refused."""

    at: float
    name: str
    reason: str


class Rejections:
    """A listener that notes what was refused, until the thread of the recorder looks."""

    def __init__(
        self, clock: Callable[[], float], moments: Moments, when_noted: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._moments = moments
        self._when_noted = when_noted
        self._number = itertools.count(1).__next__
        self.begin()

    def begin(self) -> None:
        """Start with nothing; also in a process that was forked, whatever the lock was."""
        self.lost: int = 0
        self._noted: list[Refusal] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Its name in the message when it fails."""
        return "recorder of refusals"

    def __bool__(self) -> bool:
        """True when something was noted."""
        return bool(self._noted)

    def hears(self, event: type[Event]) -> bool:
        """True for a refusal."""
        return event is TaskRejected

    def changed(self) -> bool:
        """False: it always hears the same."""
        return False

    def __call__(self, event: Event) -> None:
        """Note one; from any thread."""
        assert isinstance(event, TaskRejected), "no other event is heard"
        with self._lock:
            if len(self._noted) < MOST_AT_ONCE:
                self._noted.append(Refusal(self._clock(), event.task_name, event.reason))
            else:
                self.lost += 1
        self._when_noted()

    def take(self, process: str) -> list[FullRecord]:
        """Records of what was noted since the last time."""
        with self._lock:
            noted, self._noted = self._noted, []
        return [self._record(process, refusal) for refusal in noted]

    def _record(self, process: str, refusal: Refusal) -> FullRecord:
        at = self._moments.date_of(refusal.at)
        return FullRecord(
            id=f"{process}-r{self._number()}",
            name=shortened(refusal.name, MOST_NAME),
            status=Status.REJECTED,
            function="",
            executor="",
            process=process,
            added_at=at,
            ended_at=at,
            reason=shortened(refusal.reason),
        )
