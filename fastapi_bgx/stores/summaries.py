"""Sums and percentiles of what ended.

Nothing is made for each record: among so many objects, Python's garbage collector would take longer
than the sums.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Bucket, NameSummary, Record, Summary

MOST_NAMES = 100
BAD = frozenset({Status.FAILED, Status.TIMED_OUT})
UNFINISHED = frozenset(status for status in Status if not status.final)


def summarise(
    records: Iterable[Record],
    unfinished: Mapping[Status, int],
    since: datetime,
    until: datetime,
    buckets: int,
) -> Summary:
    """The summary of `records`, all of which ended in the span."""
    span = until - since
    kept = sorted(records, key=_ended_at)  # they nearly are: that takes no time
    begins = [since - (-span * i) // buckets for i in range(1, buckets)]  # no earlier than exactly
    cuts = [bisect_left(kept, begin, key=_ended_at) for begin in begins]
    pieces = [kept[first:end] for first, end in pairwise([0, *cuts, len(kept)])]
    names: dict[str, list[Record]] = {}
    for record in kept:
        names.setdefault(record.name, []).append(record)
    waits = sorted(r.queued_s for r in kept if r.queued_s is not None and r.duration_s is not None)
    return Summary(
        since=since,
        until=until,
        bucket_s=span / buckets / timedelta(seconds=1),
        buckets=tuple(
            Bucket(at=since + span * i / buckets, **_sums(piece)) for i, piece in enumerate(pieces)
        ),
        ended=dict(Counter(record.status for record in kept)),
        unfinished=dict(unfinished),
        queued_p95_s=percentile(waits, 0.95),
        **_times(kept),
        names=tuple(
            sorted(
                (NameSummary(name=name, **_sums(those)) for name, those in names.items()),
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


def _ended_at(record: Record) -> datetime:
    assert record.ended_at is not None, "it has ended"
    return record.ended_at


def _times(records: Iterable[Record]) -> dict[str, Any]:
    durations = sorted(r.duration_s for r in records if r.duration_s is not None)
    p50, p95, p99 = percentiles(durations)
    return {"p50_s": p50, "p95_s": p95, "p99_s": p99}


def _sums(records: Sequence[Record]) -> dict[str, Any]:
    """What a piece of time and a name have in common."""
    failed = sum(record.status in BAD for record in records)
    return {"ended": len(records), "failed": failed, **_times(records)}
