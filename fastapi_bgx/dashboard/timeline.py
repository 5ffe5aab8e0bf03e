"""One task's life as bars: how long it waited, each attempt, and the waits between. Pure."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import FullRecord, Step

WIDTH = 1_000.0
"""The length of the whole drawing, in its own units."""
LEAST = 3.0
"""The shortest bar that can be seen."""

SpanKind = Literal["wait", "attempt", "failed", "overran"]


class Span(NamedTuple):
    """A piece of a task's life."""

    kind: SpanKind
    label: str
    at: datetime
    """When it began."""
    seconds: float
    open: bool
    """True when it has not ended."""
    x: float
    """Where its bar begins in the drawing."""
    width: float
    """How long its bar is."""


class Piece(NamedTuple):
    """A piece before anybody knows how long the whole is."""

    kind: SpanKind
    label: str
    begin: datetime
    end: datetime
    open: bool = False


def timeline(record: FullRecord, now: datetime) -> list[Span]:
    """The pieces of its life, in order; never empty."""
    pieces = [*_first_wait(record, now), *_attempts(record, now), *_overrun(record, now)]
    begin = pieces[0].begin
    whole = max((piece.end - begin).total_seconds() for piece in pieces) or 1e-9
    return [_span(piece, begin, whole) for piece in pieces]


def _span(piece: Piece, begin: datetime, whole: float) -> Span:
    seconds = (piece.end - piece.begin).total_seconds()
    width = max(LEAST, seconds / whole * WIDTH)
    x = min((piece.begin - begin).total_seconds() / whole * WIDTH, WIDTH - width)
    return Span(
        piece.kind,
        piece.label,
        piece.begin,
        seconds,
        piece.open,
        round(max(0.0, x), 1),
        round(width, 1),
    )


def _first_wait(record: FullRecord, now: datetime) -> Iterator[Piece]:
    end = record.started_at or record.ended_at or now
    over = record.started_at is not None or record.final
    label = "Waited to start" if over else "Waits to start"
    yield Piece("wait", label, record.added_at, max(end, record.added_at), open=not over)


def _attempts(record: FullRecord, now: datetime) -> Iterator[Piece]:
    starts = _starts(record)
    failures = {step.attempt: step for step in record.steps if step.kind == "failed"}
    for index, (number, at) in enumerate(starts):
        after = starts[index + 1][1] if index + 1 < len(starts) else None
        failure = failures.get(number)
        yield _attempt(record, number, at, failure, after, now)
        if failure is not None and after is not None:
            yield Piece("wait", "Waited to retry", failure.at, max(after, failure.at))
        elif failure is not None and record.status is Status.RETRYING:
            yield Piece("wait", "Waits to retry", failure.at, max(now, failure.at), open=True)


def _starts(record: FullRecord) -> Sequence[tuple[int, datetime]]:
    starts = [(step.attempt, step.at) for step in record.steps if step.kind == "started"]
    if not starts and record.started_at is not None:
        return [(max(1, record.attempt), record.started_at)]
    return starts


def _attempt(
    record: FullRecord,
    number: int,
    at: datetime,
    failure: Step | None,
    after: datetime | None,
    now: datetime,
) -> Piece:
    end = (failure.at if failure else None) or after or record.ended_at
    last_one_failed = after is None and record.status in (Status.FAILED, Status.TIMED_OUT)
    failed = failure is not None or last_one_failed
    kind: SpanKind = "failed" if failed else "attempt"
    label = f"Attempt {number}" + (" failed" if failed else "")
    return Piece(kind, label, at, max(end or now, at), open=end is None)


def _overrun(record: FullRecord, now: datetime) -> Iterator[Piece]:
    if record.overrunning and record.ended_at is not None:
        end = max(now, record.ended_at)
        yield Piece("overran", "Its function still runs", record.ended_at, end, open=True)
