"""`fastapi_bgx[opentelemetry]`: a span for each attempt of a task, and metrics of all of them.

`instrument(bgx)` is all that is public. The names of spans, attributes and metrics are a promise:
docs/how-to/opentelemetry.md lists them.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from importlib.metadata import version
from typing import Any, Protocol
from weakref import WeakSet

from fastapi_bgx.events import (
    Event,
    Listener,
    TaskCancelled,
    TaskDropped,
    TaskEnded,
    TaskExpired,
    TaskQueued,
    TaskRejected,
    TaskRetrying,
    TaskStarted,
)
from fastapi_bgx.outcome import Status
from fastapi_bgx.reports import Stats
from fastapi_bgx.task import Task
from fastapi_bgx.telemetry import error_type

try:
    from opentelemetry import context as otel
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import (
        Link,
        NonRecordingSpan,
        Span,
        SpanContext,
        StatusCode,
        Tracer,
        TracerProvider,
    )
except ImportError as error:
    raise ImportError(
        "traces and metrics need OpenTelemetry: pip install 'fastapi-bgx[opentelemetry]'"
    ) from error

SCOPE = "fastapi_bgx"
"""The instrumentation scope of all spans and metrics."""
MOST_NAMES = 200
"""Task names in the metrics; those that come later are counted as `OTHER`."""
OTHER = "_OTHER"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
"""Seconds: the upper bounds of the histograms."""
FAILURES = (Status.FAILED, Status.TIMED_OUT, Status.RETRYING)

Attributes = dict[str, str | int | float | bool]
Figures = Iterator[tuple[int, Attributes]]


class Observed(Protocol):
    """What has to be known of a `Bgx`."""

    def listen(self, listener: Listener) -> Listener:
        """Tell `listener` of every event."""
        ...

    def stats(self) -> Stats:
        """What runs and waits now."""
        ...


_traced: WeakSet[Any] = WeakSet()


def instrument(
    bgx: Observed,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Open a span for each attempt of the tasks of `bgx`, and measure them.

    With the global providers, unless others are given; these may be set later. A second call for
    the same `bgx` does nothing.
    """
    if bgx in _traced:
        return
    _traced.add(bgx)
    tracer = trace.get_tracer(SCOPE, version("fastapi-bgx"), tracer_provider)
    instruments = _instruments(meter_provider)
    instruments.watched.add(bgx)
    bgx.listen(Spans(tracer))
    bgx.listen(Measures(instruments))


# Spans.


class _Trail:
    """What is known of the spans of one task that has not ended."""

    __slots__ = ("added", "before", "open")

    def __init__(self, added: SpanContext | None) -> None:
        self.added = added
        """The span that was current at `add_task`."""
        self.before: SpanContext | None = None
        """That of the last attempt."""
        self.open: Span | None = None
        """That of the attempt that runs."""


class Spans:
    """Opens a span as an attempt starts, makes it current inside, and ends it with the attempt."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._trails: dict[Task[Any], _Trail] = {}

    def hears(self, event: type[Event]) -> bool:
        """What begins and ends an attempt, and where the task was added."""
        return issubclass(event, TaskQueued | TaskStarted | TaskRetrying | TaskEnded)

    def changed(self) -> bool:
        """Never."""
        return False

    def __call__(self, event: Event) -> None:
        """Hear of one."""
        if isinstance(event, TaskStarted):
            self._start(event)
        elif isinstance(event, TaskQueued):
            here = trace.get_current_span().get_span_context()
            if here.is_valid:
                self._trails[event.task] = _Trail(here)
        elif isinstance(event, TaskRetrying):
            self._retry(event)
        else:
            assert isinstance(event, TaskEnded)
            trail = self._trails.pop(event.task, None)
            if trail is not None and trail.open is not None:
                _end(trail.open, event.task.status, event.task.error, _reason(event))

    def _start(self, event: TaskStarted) -> None:
        task = event.task
        trail = self._trails.get(task)
        if trail is None:
            trail = self._trails[task] = _Trail(None)
        assert task.context is not None, "a task that has ended runs again"
        trail.open = task.context.run(_open, self._tracer, trail, event)

    def _retry(self, event: TaskRetrying) -> None:
        trail = self._trails.get(event.task)
        if trail is not None and trail.open is not None:  # or it began before there were spans
            span, trail.open = trail.open, None
            trail.before = span.get_span_context()
            _end(span, Status.RETRYING, event.error, {"bgx.retry_in_s": event.delay_s})


def _open(tracer: Tracer, trail: _Trail, event: TaskStarted) -> Span:
    """Open a span below the current one, and make it current for as long as its context lives."""
    here = otel.get_current()
    if trail.before is not None and not trace.get_current_span(here).get_span_context().is_valid:
        here = trace.set_span_in_context(NonRecordingSpan(trail.before), here)
    span = tracer.start_span(
        f"task {event.task.name}",
        here,
        attributes=_attributes_of(event),
        links=[Link(each) for each in (trail.added, trail.before) if each is not None],
    )
    otel.attach(trace.set_span_in_context(span, here))
    return span


def _end(span: Span, status: Status, error: BaseException | None, more: Attributes) -> None:
    try:
        if span.is_recording():
            span.set_attributes({"bgx.status": status.value, **more})
            if error is not None and status in FAILURES:
                span.set_attribute("error.type", error_type(error))
                span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
                span.record_exception(error)
    finally:  # an error may even fail to say what it is
        span.end()


def _attributes_of(event: TaskStarted) -> Attributes:
    task, plan = event.task, event.task.plan
    attributes: Attributes = {
        "code.function.name": _function_name(task.func),
        "bgx.task": plan.name,
        "bgx.task_id": task.id,
        "bgx.attempt": event.attempt,
        "bgx.executor": plan.executor,
        "bgx.detached": plan.detached,
        "bgx.queued_s": event.queued_s,
    }
    if plan.limit is not None:
        attributes["bgx.limit"] = plan.limit
    return attributes


def _reason(event: TaskEnded) -> Attributes:
    if isinstance(event, TaskCancelled | TaskDropped | TaskExpired):
        return {"bgx.reason": event.reason}
    return {}


def _function_name(func: Any) -> str:
    while isinstance(func, partial):
        func = func.func
    if not hasattr(func, "__qualname__"):  # an object that can be called
        func = func.__class__
    return f"{func.__module__}.{func.__qualname__}"


# Metrics.


class Instruments:
    """The metrics of one meter provider, shared by every `Bgx` that reports to it."""

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter(SCOPE, version("fastapi-bgx"), provider)
        self.watched: WeakSet[Any] = WeakSet()
        """Each `Bgx` whose `stats()` are asked."""
        self._names: set[str] = set()
        self.ended = meter.create_counter(
            "bgx.tasks.ended", "{task}", "Tasks that ended or were refused"
        )
        self.retries = meter.create_counter(
            "bgx.tasks.retries", "{retry}", "Attempts that failed and are followed by another one"
        )
        self.wait_time = meter.create_histogram(
            "bgx.task.wait_time",
            "s",
            "From add_task to the first attempt",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self.duration = meter.create_histogram(
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


_instruments = cache(Instruments)


class Measures:
    """Counts what happens to tasks."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    def hears(self, event: type[Event]) -> bool:
        """What begins and ends an attempt, and what was refused."""
        return issubclass(event, TaskStarted | TaskRetrying | TaskRejected | TaskEnded)

    def changed(self) -> bool:
        """Never."""
        return False

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
