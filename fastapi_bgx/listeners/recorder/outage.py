"""Whether the store answers, and what the log says when it does not: first, sometimes, last.

And what it says when records are lost though the store answers: it is too slow for them.
"""

import threading
import time

from fastapi_bgx.errors import StoreUnavailable
from fastapi_bgx.notices import notice

NOTICE_SECONDS = 60.0
"""While it lasts, something is said no more often."""
STUCK_SECONDS = 10.0
"""A store that takes longer for one question does not answer."""


class Outage:
    """Whether the store answers; any thread may tell and ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None
        self._told_at = 0.0
        self._asked_at: float | None = None
        self._told_lost = 0
        self._told_lost_at = -NOTICE_SECONDS

    @property
    def on(self) -> bool:
        """True while the store does not answer."""
        return self._since is not None

    def asking(self) -> None:
        """The store is asked something now."""
        self._asked_at = time.monotonic()

    def answered(self, lost: int) -> bool:
        """It has answered; true when it had not before."""
        with self._lock:
            self._asked_at = None
            since, self._since = self._since, None
            if since is None:
                return False
            self._told_lost = lost
        lasted = round(time.monotonic() - since, 1)
        notice("warning", "bgx.store_back", lasted_s=lasted, lost=lost)
        return True

    def failed(self, error: Exception, lost: int) -> None:
        """It has answered with an error."""
        self._asked_at = None
        self._begin(_reason(error), lost)

    def look(self, lost: int) -> None:
        """Notice when a question has been waiting for too long, or records are lost without."""
        asked_at = self._asked_at
        if asked_at is not None and time.monotonic() - asked_at > STUCK_SECONDS:
            self._begin(f"it did not answer within {STUCK_SECONDS:g} s", lost)
        elif not self.on:
            self._tell_lost(lost)

    def end(self, lost: int) -> None:
        """The process ends: so many are lost in all, those included that still wait."""
        self._tell_lost(lost, at_least=0.0)

    def _tell_lost(self, lost: int, at_least: float = NOTICE_SECONDS) -> None:
        now = time.monotonic()
        with self._lock:
            if lost == self._told_lost or now - self._told_lost_at < at_least:
                return
            self._told_lost, self._told_lost_at = lost, now
        notice("warning", "bgx.records_lost", lost=lost, effect="tasks go on without these records")

    def _begin(self, reason: str, lost: int) -> None:
        now = time.monotonic()
        with self._lock:
            if self._since is None:
                self._since = now
            elif now - self._told_at < NOTICE_SECONDS:
                return
            self._told_at = now
        notice(
            "error",
            "bgx.store_unavailable",
            reason=reason,
            lost=lost,
            effect="tasks go on; the newest records wait in memory, the others are lost",
        )


def _reason(error: Exception) -> str:
    # Of other errors only the class: their messages may quote what was to be written.
    return error.why if isinstance(error, StoreUnavailable) else type(error).__qualname__
