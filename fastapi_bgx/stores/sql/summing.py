"""A `Summary` and `Failure`s from what a database has counted. Pure.

Counts are exact; of the percentiles, see `histograms`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Bucket, Failure, NameSummary, Summary
from fastapi_bgx.stores.sql.histograms import parts, percentile, percentiles
from fastapi_bgx.stores.sql.rows import moment
from fastapi_bgx.stores.sql.selects import ENDS_OF_PIECE
from fastapi_bgx.stores.summaries import BAD, MOST_NAMES

Rows = Iterable[RowMapping]
Counts = Iterable[tuple[Sequence[Any], int]]
"""What was counted, and how many tasks of it."""


@dataclass(slots=True)
class Tally:
    """What is counted of some tasks that ended."""

    ended: int = 0
    failed: int = 0
    runs: Counter[int] = field(default_factory=lambda: Counter[int]())

    def add(self, end: int, tasks: int) -> None:
        """Count so many tasks of one end class."""
        status, run = parts(end)
        self.ended += tasks
        if status in BAD:
            self.failed += tasks
        if run is not None:
            self.runs[run] += tasks

    def told(self) -> dict[str, Any]:
        """In the words of the records."""
        return {"ended": self.ended, "failed": self.failed, **_percentiles(self.runs)}


def summary(
    since: datetime,
    until: datetime,
    buckets: int,
    *,
    pieces: Counts,
    names: Counts,
    waits: Counts,
    unfinished: Counts,
) -> Summary:
    """The summary of what was counted, piece by piece and name by name."""
    ended: Counter[Status] = Counter()
    runs: Counter[int] = Counter()
    of_piece: defaultdict[int, Tally] = defaultdict(Tally)
    for (key,), tasks in pieces:
        piece, end = divmod(key, ENDS_OF_PIECE)
        of_piece[piece].add(end, tasks)
        ended[parts(end)[0]] += tasks
    for tally in of_piece.values():
        runs.update(tally.runs)
    span = until - since
    return Summary(
        since=since,
        until=until,
        bucket_s=span / buckets / timedelta(seconds=1),
        buckets=tuple(
            Bucket(at=since + span * i / buckets, **of_piece[i].told()) for i in range(buckets)
        ),
        ended=dict(ended),
        unfinished={Status(status): tasks for (status,), tasks in unfinished},
        queued_p95_s=percentile({wait: tasks for (wait,), tasks in waits}, 0.95),
        names=_names(names),
        **_percentiles(runs),
    )


def _percentiles(runs: Counter[int]) -> dict[str, Any]:
    p50, p95, p99 = percentiles(runs)
    return {"p50_s": p50, "p95_s": p95, "p99_s": p99}


def _names(counts: Counts) -> tuple[NameSummary, ...]:
    of_name: defaultdict[str, Tally] = defaultdict(Tally)
    for (name, end), tasks in counts:
        of_name[name].add(end, tasks)
    order = sorted(of_name, key=lambda name: (-of_name[name].failed, -of_name[name].ended, name))
    return tuple(NameSummary(name=name, **of_name[name].told()) for name in order[:MOST_NAMES])


def failures(groups: Rows, newest: Rows, names: Rows) -> tuple[Failure, ...]:
    """Each group with its newest failure and its names, in the order of the groups."""
    last = {(row["fingerprint"], row["ended_at"]): row for row in newest}
    of_group: defaultdict[str, list[str]] = defaultdict(list)
    for row in names:
        of_group[row["fingerprint"]].append(row["name"])
    return tuple(
        _failure(row, last[row["fingerprint"], row["last"]], of_group[row["fingerprint"]])
        for row in groups
    )


def _failure(group: RowMapping, last: RowMapping, names: Iterable[str]) -> Failure:
    return Failure(
        fingerprint=group["fingerprint"],
        error_type=last["error_type"] or "",
        error_place=last["error_place"],
        error_message=last["error_message"],
        names=tuple(names),
        count=group["tasks"],
        first_at=moment(group["first"]),
        last_at=moment(group["last"]),
        last_id=last["id"],
    )
