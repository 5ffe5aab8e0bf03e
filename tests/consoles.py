"""What the tests of the status API share: records, a store full of them, a stand-in control."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import Depends, FastAPI

from fastapi_bgx.console import Console
from fastapi_bgx.dashboard import make_router
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Answer, FullRecord, ProcessReading, Step
from fastapi_bgx.stores import MemoryStore

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
BAD = {Status.FAILED, Status.TIMED_OUT}


def record(number: int, status: Status = Status.SUCCEEDED, **fields: Any) -> FullRecord:
    """The record of a task that was added `number` seconds after `BEGAN`."""
    added_at = BEGAN + timedelta(seconds=number)
    begun = status not in {Status.QUEUED, Status.DROPPED, Status.EXPIRED}
    known: dict[str, Any] = {
        "id": f"p-{number}",
        "name": "send_welcome",
        "status": status,
        "function": "app.mail.send_welcome",
        "executor": "async",
        "process": "p-",
        "added_at": added_at,
        "attempt": 1 if begun else 0,
        "started_at": added_at + timedelta(seconds=1) if begun else None,
        "ended_at": added_at + timedelta(seconds=2) if status.final else None,
        "queued_s": 1.0 if begun else None,
        "duration_s": 1.0 if begun and status.final else None,
    }
    if status in BAD:
        known |= {
            "error_type": "ConnectionError",
            "error_message": "the mail server is away",
            "error_place": "app/mail.py:31 in send",
            "fingerprint": "abc",
            "traceback": "Traceback: ...",
            "arguments": {"email": "'ada@example.org'"},
            "steps": (Step(at=added_at, kind="started", attempt=1),),
        }
    return FullRecord(**known | fields)


PROCESS = ProcessReading(id="p-", host="web-1", pid=7, started_at=BEGAN, seen_at=BEGAN)


class StandIn:
    """A control that knows no live task and does what it was told to answer."""

    process = "p-"

    def __init__(self, **answers: Answer | Exception) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []

    def flush(self) -> None: ...

    def live(self, task_id: str) -> FullRecord | None:
        return None

    def is_held(self, task_id: str) -> bool:
        return False

    def cancel(self, task_id: str) -> Answer | None:
        return self._answer("cancel", task_id)

    def retry(self, task_id: str) -> Answer | None:
        return self._answer("retry", task_id)

    def _answer(self, action: str, task_id: str) -> Answer | None:
        self.asked.append((action, task_id))
        answer = self.answers.get(task_id.replace("-", "_"))
        if isinstance(answer, Exception):
            raise answer
        return answer


def store_with(*records: FullRecord) -> MemoryStore:
    store = MemoryStore()
    store.write(records)
    store.beat(PROCESS)
    return store


def every_status() -> list[FullRecord]:
    """A record in each status that a task can have."""
    return [
        record(number, status, name=f"of_{status}")
        for number, status in enumerate(status for status in Status if status != "rejected")
    ]


def api(
    store: MemoryStore | None = None,
    control: Any = None,
    *,
    prefix: str = "/bgx",
    dependencies: Sequence[Any] = (),
    **options: Any,
) -> FastAPI:
    """An application with the routes of `make_router`, and nothing else of ours."""
    app = FastAPI()
    console = Console(store or store_with(), control or StandIn())
    guards = [Depends(each) for each in dependencies]
    router = make_router(console, dependencies=guards, public=not guards, **options)
    app.include_router(router, prefix=prefix)
    return app
