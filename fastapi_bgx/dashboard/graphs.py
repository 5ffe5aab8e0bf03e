"""The data of the plots on the overview, for the plotting library and for the tables beside."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from fastapi_bgx.dashboard.views import duration
from fastapi_bgx.records import Bucket, Summary

SHORTEST = 0.0001
"""Seconds: what took no time at all has a place on a logarithmic scale, too."""


class Graph(NamedTuple):
    """A plot."""

    data: str
    """JSON: `{"at": [...], "series": [[...], ...]}`, times in seconds since 1970."""
    rows: Sequence[tuple[datetime, Sequence[str]]]
    """The same as a table: the pieces of time in which something ended, newest first."""


def throughput(summary: Summary) -> Graph:
    """How many ended, and how many of them badly."""
    columns = [[b.ended for b in summary.buckets], [b.failed for b in summary.buckets]]
    rows = [(b.at, (f"{b.ended:,}", f"{b.failed:,}")) for b in _busy(summary)]
    return Graph(_data(summary, columns), rows)


def durations(summary: Summary) -> Graph:
    """How long they ran: of half of them, of 95 % and of 99 %."""
    columns = [
        [_seconds(b.p50_s) for b in summary.buckets],
        [_seconds(b.p95_s) for b in summary.buckets],
        [_seconds(b.p99_s) for b in summary.buckets],
    ]
    rows = [
        (b.at, (duration(b.p50_s), duration(b.p95_s), duration(b.p99_s)))
        for b in _busy(summary)
        if b.p50_s is not None
    ]
    return Graph(_data(summary, columns), rows)


def _busy(summary: Summary) -> list[Bucket]:
    return [bucket for bucket in reversed(summary.buckets) if bucket.ended]


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(max(value, SHORTEST), 4)


def _data(summary: Summary, series: Sequence[Sequence[float | None]]) -> str:
    at = [round(bucket.at.timestamp(), 3) for bucket in summary.buckets]
    return json.dumps({"at": at, "series": series}, separators=(",", ":"))
