"""How a task ended whose process is gone: it could not say so itself. Pure."""

from datetime import timedelta

from sqlalchemy import RowMapping

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import FullRecord
from fastapi_bgx.stores.sql.rows import full_record_of, moment

REASON = "its process ended without a shutdown"
SECOND = timedelta(seconds=1)


def abandoned(row: RowMapping, unseen_since: int) -> FullRecord:
    """The record of a task of a dead process, from its row and when the process was `seen_at`."""
    record = full_record_of(row)
    began = record.started_at
    seen_at = unseen_since if row["seen_at"] is None else row["seen_at"]
    ended_at = max(moment(seen_at), began or record.added_at)
    queued_s = (ended_at - record.added_at) / SECOND
    return record.model_copy(
        update={
            "status": Status.DROPPED if began is None else Status.CANCELLED,
            "reason": REASON,
            "ended_at": ended_at,
            "due_at": None,
            "queued_s": queued_s if record.queued_s is None else record.queued_s,
            "duration_s": None if began is None else (ended_at - began) / SECOND,
            "overrunning": False,
            "retryable": False,
        }
    )
