"""From records to rows and back. Pure: a new field of a record needs a column, or its place here.

What a database cannot hold is changed a little, for one such record would keep all others of its
batch out: characters that are none become U+FFFD, numbers beyond 64 bits the nearest ones.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import RowMapping

from fastapi_bgx.records import FullRecord, ProcessReading, Record, Step
from fastapi_bgx.stores.searching import searched
from fastapi_bgx.stores.sql.histograms import class_of, end_class
from fastapi_bgx.stores.sql.tables import tasks

R = TypeVar("R", bound=Record)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MOST_INTEGER = 2**63 - 1
TIMES = ("added_at", "due_at", "started_at", "ended_at")
PLAIN = tuple(name for name in Record.model_fields if name not in TIMES)
DETAILS = ("arguments", "value", "traceback", "steps_left_out")
LISTED = [tasks.c[name] for name in Record.model_fields]
"""The columns that a list reads."""


def micros(moment: datetime) -> int:
    """Whole microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND


def moment(value: int) -> datetime:
    """The moment that is so many microseconds after 1970."""
    return EPOCH + value * MICROSECOND


def clean(text: str) -> str:
    """The text as both databases can hold it."""
    if text.isascii():
        return text.replace("\0", "\ufffd")
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", "\ufffd")


def bounded(number: int) -> int:
    """The number, or the nearest one that fits into 64 bits."""
    return max(-MOST_INTEGER, min(MOST_INTEGER, number))


def row_of(record: FullRecord, change: int) -> dict[str, Any]:
    """What is written of a record."""
    row = {name: _plain(getattr(record, name)) for name in PLAIN}
    for name in TIMES:
        time = getattr(record, name)
        row[name] = None if time is None else micros(time)
    run, wait = record.duration_s, record.queued_s
    row |= {
        "change": change,
        "searched": clean(searched(record)),
        "end_class": end_class(record.status, run),
        "wait_class": None if run is None or wait is None else class_of(wait),
        "details": details_of(record),
    }
    return row


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return clean(str(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return bounded(value)
    return value


def details_of(record: FullRecord) -> str:
    """What a list does not show, as JSON."""
    kept: dict[str, Any] = {name: getattr(record, name) for name in DETAILS}
    if kept["arguments"] is not None:
        kept["arguments"] = dict(kept["arguments"])
    kept["steps"] = [{**step.model_dump(), "at": micros(step.at)} for step in record.steps]
    return clean(json.dumps(kept, ensure_ascii=False, separators=(",", ":")))


def record_of(row: RowMapping) -> Record:
    """The record of a row that has at least the columns `LISTED`."""
    return Record(**_fields(row))


def full_record_of(row: RowMapping) -> FullRecord:
    """The record of a whole row."""
    details = json.loads(row["details"])
    steps = tuple(
        Step.model_validate({**known(Step, step), "at": moment(step["at"])})
        for step in details["steps"]
    )
    return FullRecord(**_fields(row), **{name: details[name] for name in DETAILS}, steps=steps)


def _fields(row: RowMapping) -> dict[str, Any]:
    fields = {name: row[name] for name in PLAIN}
    for name in TIMES:
        fields[name] = None if row[name] is None else moment(row[name])
    return fields


def process_row(process: ProcessReading) -> dict[str, Any]:
    """What is written of a process."""
    return {
        "id": clean(process.id),
        "started_at": micros(process.started_at),
        "seen_at": micros(process.seen_at),
        "reading": clean(process.model_dump_json()),
    }


def process_of(reading: str) -> ProcessReading:
    """The process that wrote this of itself."""
    return ProcessReading(**known(ProcessReading, json.loads(reading)))


def known(model: type[Step] | type[ProcessReading], values: Mapping[str, Any]) -> dict[str, Any]:
    """What this version knows of what a newer one may have written."""
    return {name: value for name, value in values.items() if name in model.model_fields}
