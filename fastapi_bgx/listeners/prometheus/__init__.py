"""Metrics for Prometheus: `instrument(bgx)`. The one package that imports `prometheus_client`.

Counters and histograms change as tasks end: `counters.py`. Gauges are read when somebody scrapes,
and cost a task nothing: `gauges.py`. Here is what connects both with the events and a registry.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

try:
    from prometheus_client import REGISTRY, CollectorRegistry, values
except ImportError as _missing:
    raise ImportError(
        "metrics need prometheus-client: pip install 'fastapi-bgx[prometheus]'"
    ) from _missing

from fastapi_bgx.events import (
    Event,
    Listener,
    Started,
    TaskEnded,
    TaskJoined,
    TaskRejected,
    TaskRetrying,
)
from fastapi_bgx.listeners.prometheus.counters import BUCKETS, Counters
from fastapi_bgx.listeners.prometheus.gauges import GaugeReader, GaugeWriter, Readings, readings_of
from fastapi_bgx.reports import Stats

__all__ = ["BUCKETS", "instrument"]

HEARD = (TaskEnded, TaskRejected, TaskRetrying, TaskJoined)


class Instrumented(Protocol):
    """What the metrics need of a `Bgx`."""

    def listen(self, listener: Listener) -> Listener:
        """Tell `listener` of every event."""
        ...

    def stats(self) -> Stats:
        """What runs and waits now.

        Raises:
            RuntimeError: it has not run yet.
        """
        ...


def instrument(
    bgx: Instrumented,
    *,
    registry: CollectorRegistry = REGISTRY,
    buckets: Sequence[float] = BUCKETS,
) -> None:
    """Have `registry` tell of the tasks of `bgx`, from now on.

    A second call for both does nothing. Several `Bgx` in one registry are added up. In the
    multi-process mode of `prometheus_client` there is one set of metrics for each process, in no
    registry.

    Args:
        bgx: The `Bgx` whose tasks are counted and timed.
        registry: Where the metrics are registered.
        buckets: The upper bounds of both histograms, in seconds.

    Raises:
        ValueError: the registry has these metrics with other buckets, or others of their names.
    """
    multiprocess = values.ValueClass is not values.MutexValue
    key = REGISTRY if multiprocess else registry
    with _lock:
        metrics = _metrics.get(key)
        if metrics is None:
            metrics = _metrics[key] = Metrics(None if multiprocess else registry, buckets)
    metrics.add(bgx, buckets)


class Metrics:
    """What one registry tells: the listener of every `Bgx` that was given to it."""

    def __init__(self, registry: CollectorRegistry | None, buckets: Sequence[float]) -> None:
        self._buckets = tuple(buckets)
        self._counters = Counters(registry, buckets)
        self._instrumented: WeakSet[Instrumented] = WeakSet()
        self._writer: GaugeWriter | None = None
        if registry is None:
            self._writer = GaugeWriter(self.readings)
            self._counters.when_named = self._writer.start  # also without a lifespan
        else:
            registry.register(GaugeReader(self.readings))

    def __repr__(self) -> str:
        """Its name in the message when it fails."""
        return "prometheus"

    def add(self, bgx: Instrumented, buckets: Sequence[float]) -> None:
        """Tell of one more `Bgx`.

        Raises:
            ValueError: the buckets are others.
        """
        if tuple(buckets) != self._buckets:
            raise ValueError(f"the metrics of this registry have the buckets {self._buckets}")
        with _lock:
            if bgx not in self._instrumented:
                self._instrumented.add(bgx)
                bgx.listen(self)

    def readings(self) -> Readings:
        """What all of them run now; nothing of one that has not begun."""
        snapshots: list[Stats] = []
        with _lock:
            instrumented = list(self._instrumented)
        for bgx in instrumented:
            with suppress(RuntimeError):
                snapshots.append(bgx.stats())
        return readings_of(snapshots)

    def hears(self, event: type[Event]) -> bool:
        """True for what ends a task, or is counted by itself."""
        return issubclass(event, HEARD) or (event is Started and self._writer is not None)

    def changed(self) -> bool:
        """False: it always hears the same."""
        return False

    def __call__(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, TaskEnded):
            self._counters.ended(event)
        elif isinstance(event, TaskRejected):
            self._counters.of(event.task_name).rejected.inc()
        elif isinstance(event, TaskRetrying):
            self._counters.of(event.task.name).retries.inc()
        elif isinstance(event, TaskJoined):
            self._counters.of(event.task.name).joins.inc()
        else:  # the process serves
            assert self._writer is not None, "only then is Started heard"
            self._writer.start()


_lock = threading.RLock()
_metrics: WeakKeyDictionary[CollectorRegistry, Metrics] = WeakKeyDictionary()
