"""Which other processes are gone: those that have not renewed what they say of themselves.

Not by comparing clocks: after an outage of the store, or when a machine was asleep, everybody's
last word is old, and clocks of two machines may differ.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from fastapi_bgx.records import ProcessReading

UNSEEN_SECONDS = 30.0
"""A process that was not heard of for so long has ended without a word."""
MOST_GAP_SECONDS = UNSEEN_SECONDS / 2
"""Who has not looked for longer has not watched: perhaps nobody could be heard."""


class Watch:
    """What one process has heard of all others, for as long as it has listened without a break."""

    def __init__(self) -> None:
        self._looked_at: float | None = None
        self._heard: dict[str, tuple[datetime, float]] = {}

    def begin_anew(self) -> None:
        """Nobody could be heard for a while."""
        self._heard = {}

    def gone_before(
        self, processes: Iterable[ProcessReading], now: float, wall: datetime
    ) -> datetime:
        """The moment after which nobody is gone, as the processes tell the time themselves.

        It is no later than the last word of any process that was heard of in `UNSEEN_SECONDS`, or
        was not watched for as long. So one whose clock is late may have the dead wait; never the
        living be taken for dead. `now` is in seconds of a clock that only goes forward.
        """
        if self._looked_at is None or now - self._looked_at > MOST_GAP_SECONDS:
            self.begin_anew()
        self._looked_at = now
        self._heard = {each.id: self._word(each, now) for each in processes}
        living = [said for said, at in self._heard.values() if now - at < UNSEEN_SECONDS]
        return min([wall - timedelta(seconds=UNSEEN_SECONDS), *living])

    def _word(self, process: ProcessReading, now: float) -> tuple[datetime, float]:
        """What it said last, and when that was new here."""
        before = self._heard.get(process.id)
        if before is not None and before[0] == process.seen_at:
            return before
        return process.seen_at, now
