"""Sums and percentiles of what ended, from one small row for each task."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Bucket, NameSummary, Summary

MOST_NAMES = 100
BAD = frozenset({Status.FAILED, Status.TIMED_OUT})


class Ended(NamedTuple):
    """What counts of a task that has ended."""

    at: datetime
    """When it ended."""
    name: str
    status: Status
    queued_s: float | None
    duration_s: float | None
    """`None` when it never began: then it is counted, and not timed."""


def summarise(
    rows: Iterable[Ended],
    unfinished: Mapping[Status, int],
    since: datetime,
    until: datetime,
    buckets: int,
) -> Summary:
    """The summary of `rows`, all of which ended in the span."""
    span = until - since
    kept = list(rows)
    pieces: list[list[Ended]] = [[] for _ in range(buckets)]
    names: dict[str, list[Ended]] = {}
    for row in kept:
        pieces[min(buckets - 1, max(0, (row.at - since) * buckets // span))].append(row)
        names.setdefault(row.name, []).append(row)
    waits = sorted(r.queued_s for r in kept if r.queued_s is not None and r.duration_s is not None)
    return Summary(
        since=since,
        until=until,
        bucket_s=span / buckets / timedelta(seconds=1),
        buckets=tuple(
            Bucket(at=since + span * i / buckets, **_sums(piece)) for i, piece in enumerate(pieces)
        ),
        ended=dict(Counter(row.status for row in kept)),
        unfinished=dict(unfinished),
        queued_p95_s=percentile(waits, 0.95),
        **_times(kept),
        names=tuple(
            sorted(
                (NameSummary(name=name, **_sums(rows)) for name, rows in names.items()),
                key=lambda each: (-each.failed, -each.ended, each.name),
            )[:MOST_NAMES]
        ),
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of them that is not less than that share of all (nearest rank)."""
    if not ordered:
        return None
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


def percentiles(ordered: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The 50th, the 95th and the 99th."""
    return percentile(ordered, 0.5), percentile(ordered, 0.95), percentile(ordered, 0.99)


def _times(rows: Iterable[Ended]) -> dict[str, Any]:
    durations = sorted(row.duration_s for row in rows if row.duration_s is not None)
    p50, p95, p99 = percentiles(durations)
    return {"p50_s": p50, "p95_s": p95, "p99_s": p99}


def _sums(rows: Sequence[Ended]) -> dict[str, Any]:
    """What a piece of time and a name have in common."""
    return {"ended": len(rows), "failed": sum(row.status in BAD for row in rows), **_times(rows)}
