"""What a process says of itself: the live numbers of all its event loops together."""

import os
import socket
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache

from fastapi_bgx.records import LimiterReading, ProcessReading
from fastapi_bgx.reports import LimiterStats, Stats
from fastapi_bgx.texts import shortened


def reading_of(
    process: str, started_at: datetime, seen_at: datetime, lost: int, loops: Iterable[Stats]
) -> ProcessReading:
    """The reading of this process, from a snapshot of each of its event loops."""
    stats = list(loops)
    return ProcessReading(
        id=process,
        host=_host(),
        pid=os.getpid(),
        started_at=started_at,
        seen_at=seen_at,
        running=sum(each.running for each in stats),
        waiting=sum(each.waiting for each in stats),
        overrunning=sum(each.overrunning for each in stats),
        lost=lost,
        limiters=_limiters(stats),
    )


@cache
def _host() -> str:
    return shortened(socket.gethostname())


def _limiters(stats: Iterable[Stats]) -> Mapping[str, LimiterReading]:
    by_name: dict[str, list[LimiterStats]] = {}
    for each in stats:
        for name, limiter in each.limiters.items():
            by_name.setdefault(shortened(name), []).append(limiter)
    return {name: _sum(found) for name, found in by_name.items()}


def _sum(found: list[LimiterStats]) -> LimiterReading:
    slots = [each.slots for each in found if each.slots is not None]
    return LimiterReading(
        slots=sum(slots) if slots else None,
        taken=sum(each.taken for each in found),
        waiting=sum(each.waiting for each in found),
        rate=found[0].rate,
        spent=sum(each.spent for each in found),
    )
