"""Frozen snapshots that a `Bgx` hands out: what runs now, and what a drain left behind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fastapi_bgx.outcome import Status


class TaskRef(NamedTuple):
    """The name and id of a task, without the task."""

    name: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterStats:
    """One limiter at one moment."""

    slots: int | None
    """How many tasks may hold it at once (per key); `None` for no limit."""
    taken: int
    """How many slots are taken now; 0 where there is only a rate."""
    waiting: int
    """How many tasks wait for a slot, or for their turn in the rate."""
    rate: str | None = None
    """How many tasks may start in a time (per key), as it was written; `None` for no limit."""
    spent: int = 0
    """How many have started in the last window of the rate, and are about to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """A snapshot of one runner: the tasks of this process and event loop."""

    running: int
    """Tasks that hold their slots now, threads that outlived their timeout included."""
    waiting: int
    """Tasks that were added and not started yet; `Settings.max_backlog` bounds them."""
    overrunning: int
    """Functions that still run though their task is over: threads that outlived their timeout or
    a shutdown, and async tasks that swallowed their cancellation."""
    limiters: Mapping[str, LimiterStats]
    """By name: the named limits in use, and `concurrency`, `threads` and `processes`."""
    executors: Mapping[str, int]
    """Functions that run now, by executor: `async`, `thread`, `process`."""
    totals: Mapping[Status, int]
    """Tasks that ended since the runner started, by final status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What a drain waited for, and what it left."""

    finished: tuple[TaskRef, ...] = ()
    """Live tasks that ended by themselves within the grace period."""
    cancelled: tuple[TaskRef, ...] = ()
    """Tasks that were cancelled after the grace period, waiting ones included. Some of them may be
    in `in_thread` or `stuck`, too."""
    in_thread: tuple[TaskRef, ...] = ()
    """Tasks whose thread still runs: nobody waits for it any more, and it ends with the process."""
    stuck: tuple[TaskRef, ...] = ()
    """Async tasks that swallowed their cancellation, and were left where they stood."""
    duration_s: float = 0.0
    """Seconds that the drain took."""
