"""Records to begin with: light, as processes of the tests import it, too."""

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import FullRecord

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
NEVER_STARTED = {Status.QUEUED, Status.DROPPED, Status.REJECTED, Status.EXPIRED}

_numbers = count()


def a_task(status: Status = Status.SUCCEEDED, **fields: Any) -> FullRecord:
    """A record with what its status implies; each was added a second after the one before."""
    number = next(_numbers)
    added_at = fields.setdefault("added_at", NOW + number * SECOND)
    if status not in NEVER_STARTED:
        fields = {"started_at": added_at, "queued_s": 0.0, **fields}
    if status.final:
        fields = {"ended_at": added_at, **fields}
    known = {
        "id": f"p-{number:06}",
        "name": "send",
        "status": status,
        "function": "app:send",
        "executor": "async",
        "process": "p",
    }
    return FullRecord(**{**known, **fields})
