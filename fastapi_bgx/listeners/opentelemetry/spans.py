"""A span for each attempt."""

from functools import partial
from typing import Any

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, StatusCode, Tracer

from fastapi_bgx.events import (
    Event,
    TaskCancelled,
    TaskDropped,
    TaskEnded,
    TaskExpired,
    TaskQueued,
    TaskRetrying,
    TaskStarted,
)
from fastapi_bgx.listeners.opentelemetry.demand import Demand
from fastapi_bgx.outcome import Status
from fastapi_bgx.task import Task
from fastapi_bgx.telemetry import error_type

FAILURES = (Status.FAILED, Status.TIMED_OUT, Status.RETRYING)
"""How an attempt ends that has an error of its own."""
HEARD = (TaskQueued, TaskStarted, TaskRetrying, TaskEnded)
WITH_REASON = (TaskCancelled, TaskDropped, TaskExpired)

Attributes = dict[str, str | int | float | bool]


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

    def __init__(self, tracer: Tracer, demand: Demand) -> None:
        self._tracer = tracer
        self._demand = demand
        self._trails: dict[Task[Any], _Trail] = {}

    def hears(self, event: type[Event]) -> bool:
        """What begins and ends an attempt, and where the task was added."""
        return self._demand.there and issubclass(event, HEARD)

    def changed(self) -> bool:
        """True when there is somebody who records, for the first time."""
        return self._demand.arises()

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
    if isinstance(event, WITH_REASON):
        return {"bgx.reason": event.reason}
    return {}


def _function_name(func: Any) -> str:
    while isinstance(func, partial):
        func = func.func
    if not hasattr(func, "__qualname__"):  # an object that can be called
        func = func.__class__
    return f"{func.__module__}.{func.__qualname__}"
