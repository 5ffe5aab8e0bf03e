"""The answers of the API that are not records themselves."""

from datetime import datetime
from typing import Any

from pydantic import AwareDatetime

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Failure, Frozen, FullRecord, ProcessReading, Summary


class Statistics(Summary):
    """What ended in a span of time, what has not ended yet, and the processes that run tasks."""

    processes: tuple[ProcessReading, ...]
    """The processes that run tasks, and what they do now."""


class Failures(Frozen):
    """What failed in a span of time, by error and place."""

    since: AwareDatetime
    """The beginning of the span."""
    until: AwareDatetime
    """Its end."""
    failures: tuple[Failure, ...]
    """By error and place; those that ended last first."""


class TaskStatus(Frozen):
    """What the user of an application may know of one task."""

    status: Status
    """Where it is in its life, or how it ended."""
    done: bool
    """True when it has ended."""
    attempt: int
    """The number of the current or last attempt; 0 before the first."""
    attempts: int
    """How many there may be."""
    progress: float | None
    """How far it said that it is, from 0 to 1."""
    note: str
    """What it said that it does."""
    added_at: datetime
    """When it was added."""
    started_at: datetime | None
    """When its first attempt began."""
    ended_at: datetime | None
    """When it ended."""


class TaskResult(TaskStatus):
    """The same, with what the task returned."""

    value: str | None
    """What it returned, as JSON where it can be; shortened. `None` unless it has succeeded."""


def status_of(record: FullRecord) -> TaskStatus:
    """What a user may know: no function, no arguments, no error."""
    return TaskStatus.model_validate(_shown(record))


def result_of(record: FullRecord) -> TaskResult:
    """The same, with the value."""
    return TaskResult.model_validate(_shown(record) | {"value": record.value})


def _shown(record: FullRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: getattr(record, name) for name in TaskStatus.model_fields if name != "done"
    }
    return fields | {"done": record.final}
