"""What is counted and measured of all tasks."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from weakref import WeakSet

from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation

from fastapi_bgx.events import Event, TaskEnded, TaskRejected, TaskRetrying, TaskStarted
from fastapi_bgx.listeners.opentelemetry.demand import Demand
from fastapi_bgx.listeners.opentelemetry.spans import FAILURES, Attributes
from fastapi_bgx.outcome import Status
from fastapi_bgx.reports import Stats
from fastapi_bgx.task import Task
from fastapi_bgx.telemetry import error_type

MOST_NAMES = 200
"""Task names in the metrics; those that come later are counted as `OTHER`."""
OTHER = "_OTHER"
HEARD = (TaskStarted, TaskRetrying, TaskRejected, TaskEnded)
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
"""Seconds: the upper bounds of the histograms."""

Figures = Iterator[tuple[int, Attributes]]


class Instruments:
    """The metrics of one meter provider, shared by every `Bgx` that reports to it."""

    def __init__(self, meter: Meter) -> None:
        self.watched: WeakSet[Any] = WeakSet()
        """Each `Bgx` whose `stats()` are asked."""
        self._names: set[str] = set()
        self.ended: Counter = meter.create_counter(
            "bgx.tasks.ended", "{task}", "Tasks that ended or were refused"
        )
        self.retries: Counter = meter.create_counter(
            "bgx.tasks.retries", "{retry}", "Attempts that failed and are followed by another one"
        )
        self.wait_time: Histogram = meter.create_histogram(
            "bgx.task.wait_time",
            "s",
            "From add_task to the first attempt",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self.duration: Histogram = meter.create_histogram(
            "bgx.attempt.duration",
            "s",
            "From the start of an attempt to its end",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        for name, unit, about, figures in CURRENT:
            meter.create_observable_up_down_counter(
                name, [partial(self._observe, figures)], unit, about
            )

    def name_of(self, task: str) -> str:
        """The name of a task, as long as there are not too many of them."""
        if task not in self._names:
            if len(self._names) >= MOST_NAMES:
                return OTHER
            self._names.add(task)
        return task

    def _observe(
        self, figures: Callable[[Stats], Figures], _: CallbackOptions
    ) -> Iterable[Observation]:
        sums: dict[tuple[tuple[str, Any], ...], int] = {}
        for bgx in list(self.watched):
            try:
                stats: Stats = bgx.stats()
            except RuntimeError:  # nothing has run yet
                continue
            for value, attributes in figures(stats):
                key = tuple(attributes.items())
                sums[key] = sums.get(key, 0) + value
        return [Observation(value, dict(key)) for key, value in sums.items()]


class Measures:
    """Counts what happens to tasks."""

    def __init__(self, instruments: Instruments, demand: Demand) -> None:
        self._instruments = instruments
        self._demand = demand

    def hears(self, event: type[Event]) -> bool:
        """What begins and ends an attempt, and what was refused."""
        return self._demand.there and issubclass(event, HEARD)

    def changed(self) -> bool:
        """True when there is somebody who records, for the first time."""
        return self._demand.arises()

    def __call__(self, event: Event) -> None:
        """Count one."""
        counted = self._instruments
        if isinstance(event, TaskStarted):
            if event.attempt == 1:
                name = counted.name_of(event.task.name)
                counted.wait_time.record(event.queued_s, {"bgx.task": name})
        elif isinstance(event, TaskRetrying):
            task = event.task
            about = self._about(task.name, Status.RETRYING, event.error)
            counted.retries.add(1, {"bgx.task": about["bgx.task"]})
            self._record(task, task.runner.clock(), about)
        elif isinstance(event, TaskRejected):
            counted.ended.add(1, self._about(event.task_name, Status.REJECTED, None))
        else:
            assert isinstance(event, TaskEnded)
            task = event.task
            about = self._about(task.name, task.status, task.error)
            counted.ended.add(1, about)
            waited = task.attempt == len(task.errors)  # nothing of it ran when it ended
            if task.ended_at is not None and not waited:
                self._record(task, task.ended_at, about)

    def _about(self, name: str, status: Status, error: BaseException | None) -> Attributes:
        about: Attributes = {
            "bgx.task": self._instruments.name_of(name),
            "bgx.status": status.value,
        }
        if error is not None and status in FAILURES:
            about["error.type"] = error_type(error)
        return about

    def _record(self, task: Task[Any], until: float, about: Attributes) -> None:
        assert task.started_at is not None
        self._instruments.duration.record(until - task.started_at, about)


def _running(stats: Stats) -> Figures:
    for executor, running in stats.executors.items():
        yield running, {"bgx.executor": executor}


def _waiting(stats: Stats) -> Figures:
    yield stats.waiting, {}


def _overrunning(stats: Stats) -> Figures:
    yield stats.overrunning, {}


def _slots_used(stats: Stats) -> Figures:
    for name, limiter in stats.limiters.items():
        yield limiter.taken, {"bgx.limit": name}


def _slots(stats: Stats) -> Figures:
    for name, limiter in stats.limiters.items():
        if limiter.slots is not None:
            yield limiter.slots, {"bgx.limit": name}


CURRENT: tuple[tuple[str, str, str, Callable[[Stats], Figures]], ...] = (
    ("bgx.tasks.running", "{task}", "Functions that run now", _running),
    ("bgx.tasks.waiting", "{task}", "Tasks that have not started yet", _waiting),
    ("bgx.tasks.overrunning", "{task}", "Functions that outlived their task", _overrunning),
    ("bgx.slots.used", "{slot}", "Slots that are taken now", _slots_used),
    ("bgx.slots.limit", "{slot}", "Slots that there are", _slots),
)
"""The metrics that are read from `bgx.stats()` when they are collected."""
