"""When: the seconds of the tasks' clock as dates. One moment is the same date each time it is told.

Records are listed by when their task was added: a date that moved by a microsecond with each write
would move them in the list.
"""

from datetime import UTC, datetime, timedelta
from typing import Protocol

from fastapi_bgx.timers import Clock

DRIFT_SECONDS = 0.5
"""The clock of the machine may be off by so much before the dates of new tasks follow it."""
MOST_ANCHORS = 100


class HasClock(Protocol):
    """What tells the time; tests replace it on the way."""

    clock: Clock


class Moments:
    """Makes dates of the seconds of one clock; from any thread."""

    def __init__(self, place: HasClock) -> None:
        self._place = place
        self._clock: Clock | None = None
        self._anchors: list[tuple[float, datetime]] = []

    def look(self) -> None:
        """Follow the clock of the machine, if somebody has set it; now and then."""
        clock = self._place.clock
        now, date = clock.now(), clock.wall().astimezone(UTC)
        if clock is not self._clock:
            self._clock, self._anchors = clock, [(now, date)]
            return
        drift = abs((self.date_of(now) - date).total_seconds())
        if drift > DRIFT_SECONDS:
            self._anchors = [*self._anchors[-MOST_ANCHORS + 1 :], (now, date)]

    def date_of(self, at: float) -> datetime:
        """The date of a moment. What comes before the first look is counted back from there."""
        if not self._anchors:
            self.look()
        anchors = self._anchors
        since, date = next((anchor for anchor in reversed(anchors) if anchor[0] <= at), anchors[0])
        return date + timedelta(seconds=at - since)
