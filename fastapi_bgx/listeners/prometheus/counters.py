"""What is counted and timed: one set of counters and histograms for each task name.

The labels are names and statuses, never ids or arguments, and no more than `MOST_NAMES` names.
"""

import threading
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from fastapi_bgx.events import (
    Event,
    TaskCancelled,
    TaskDropped,
    TaskEnded,
    TaskExpired,
    TaskFailed,
    TaskSucceeded,
    TaskTimedOut,
)
from fastapi_bgx.listeners.prometheus.labels import MOST_NAMES, OTHER, printable
from fastapi_bgx.outcome import Status

BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""The upper bounds of the histograms, in seconds, unless `instrument` is given others."""

STATUS_OF: dict[type[TaskEnded], Status] = {
    TaskSucceeded: Status.SUCCEEDED,
    TaskFailed: Status.FAILED,
    TaskTimedOut: Status.TIMED_OUT,
    TaskCancelled: Status.CANCELLED,
    TaskExpired: Status.EXPIRED,
    TaskDropped: Status.DROPPED,
}


class Families:
    """The counters and histograms of one registry, of all names."""

    def __init__(self, registry: CollectorRegistry | None, buckets: Sequence[float]) -> None:
        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(name, meaning, ("task", *labels), registry=registry)

        def histogram(name: str, meaning: str) -> Histogram:
            return Histogram(name, meaning, ("task",), registry=registry, buckets=buckets)

        self.ended: Counter = counter(
            "bgx_tasks_total", "Tasks that ended, by final status.", "status"
        )
        self.retries: Counter = counter(
            "bgx_task_retries_total", "Attempts that failed and were followed by another one."
        )
        self.joins: Counter = counter(
            "bgx_tasks_joined_total", "Calls that were given an unfinished task of the same key."
        )
        self.wait: Histogram = histogram(
            "bgx_task_wait_seconds",
            "From add_task, or the end of its delay, to the first call of the function.",
        )
        self.duration: Histogram = histogram(
            "bgx_task_duration_seconds",
            "From the first call of the function to the end of the task.",
        )


class Series:
    """The counters and histograms of one name, all of them made when it is first heard of.

    A counter that is there before it first counts is one whose first increase Prometheus sees.
    """

    __slots__ = ("duration", "ended", "joins", "rejected", "retries", "wait")

    def __init__(self, families: Families, name: str) -> None:
        def ended(status: Status) -> Counter:
            return families.ended.labels(name, status.value)

        # By the class of the event: to hash a Status costs 0.2 µs.
        self.ended: dict[type[Event], Counter] = {
            kind: ended(status) for kind, status in STATUS_OF.items()
        }
        self.rejected: Counter = ended(Status.REJECTED)
        self.retries: Counter = families.retries.labels(name)
        self.joins: Counter = families.joins.labels(name)
        self.wait: Histogram = families.wait.labels(name)
        self.duration: Histogram = families.duration.labels(name)


class Counters:
    """Counts and times the tasks of one registry."""

    def __init__(self, registry: CollectorRegistry | None, buckets: Sequence[float]) -> None:
        self._families = Families(registry, buckets)
        self._by_name: dict[str, Series] = {}
        # Python may collect garbage while it is held, and so end a task in the same thread.
        self._lock = threading.RLock()
        self.when_named: Callable[[], None] | None = None
        """Called with the first task of each name."""

    def ended(self, event: TaskEnded) -> None:
        """Count the end of a task, and how long it waited and ran, if it was called at all."""
        task = event.task
        series = self._by_name.get(task.plan.name) or self.of(task.plan.name)
        series.ended[type(event)].inc()
        begun, ended = task.begun_at, task.ended_at
        if begun is not None and ended is not None:
            due = task.added_at if task.due is None else max(task.added_at, task.due)
            series.wait.observe(begun - due)
            series.duration.observe(ended - begun)

    def of(self, name: str) -> Series:
        """What counts for a name; once there are many, what counts for all the others."""
        with self._lock:
            series = self._by_name.get(name)
            if series is None:
                series = self._add(name if len(self._by_name) < MOST_NAMES else OTHER)
        return series

    def _add(self, name: str) -> Series:
        series = self._by_name.get(name)
        if series is None:
            series = self._by_name[name] = Series(self._families, printable(name))
            if self.when_named is not None:
                self.when_named()
        return series
