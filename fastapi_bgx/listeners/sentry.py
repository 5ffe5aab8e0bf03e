"""`fastapi_bgx[sentry]`: each task that failed for good is one event in Sentry.

`instrument(bgx)` is all that is public. What an event carries is a promise: docs/how-to/sentry.md
lists it.
"""

import threading
from functools import cache
from typing import Any, Protocol
from weakref import WeakSet

from fastapi_bgx.events import (
    Event,
    Listener,
    Publisher,
    TaskFailed,
    TaskRetrying,
    TaskTimedOut,
)
from fastapi_bgx.listeners.log import LogListener
from fastapi_bgx.task import Task
from fastapi_bgx.telemetry import error_type

try:
    import sentry_sdk
    from sentry_sdk.scope import add_global_event_processor
    from sentry_sdk.types import Event as SentryEvent
    from sentry_sdk.types import Hint
    from sentry_sdk.utils import event_from_exception
except ImportError as _missing:
    raise ImportError(
        "reports to Sentry need its SDK: pip install 'fastapi-bgx[sentry]'"
    ) from _missing

MECHANISM = "fastapi_bgx"
"""What Sentry is told that caught the error."""
TASK = "fastapi_bgx_task"
"""In the hint of an event of ours, which `before_send` gets, too: the task."""
REPORTED = "_fastapi_bgx_reported"
"""Set in the `__dict__` of an error that was reported; most errors allow no weak reference."""


class HasPublisher(Protocol):
    """What publishes the events of a `Bgx`."""

    @property
    def publisher(self) -> Publisher:
        """Hands events to listeners."""
        ...


class Reporting(Protocol):
    """What has to be known of a `Bgx`."""

    @property
    def runners(self) -> HasPublisher:
        """Where its events come from."""
        ...

    def listen(self, listener: Listener) -> Listener:
        """Tell `listener` of every event."""
        ...


_reporting: WeakSet[Any] = WeakSet()


def instrument(bgx: Reporting) -> None:
    """Report each task of `bgx` that failed or timed out for good, once, to Sentry.

    What the log of this library says about that is no event of its own any more, however structlog
    is configured. `sentry_sdk.init` may come before or after. A second call for the same `bgx` does
    nothing.
    """
    if bgx in _reporting:
        return
    _reporting.add(bgx)
    _be_asked_of_every_event()
    bgx.runners.publisher.replace(_unreported)
    bgx.listen(SentryListener())


class SentryListener:
    """Sends an event for a failure, and leaves a breadcrumb for a retry."""

    def hears(self, event: type[Event]) -> bool:
        """What is wrong with a task."""
        return issubclass(event, TaskFailed | TaskTimedOut | TaskRetrying)

    def changed(self) -> bool:
        """Never."""
        return False

    def __call__(self, event: Event) -> None:
        """Report one, in the context of its task: there Sentry knows the request."""
        assert isinstance(event, TaskFailed | TaskTimedOut | TaskRetrying)
        context = event.task.context
        assert context is not None, "a task that has ended fails again"
        context = context.copy()  # a thread may be in it itself
        if isinstance(event, TaskRetrying):
            context.run(_leave_breadcrumb, event)
        else:
            context.run(_report, event.task)


def _leave_breadcrumb(event: TaskRetrying) -> None:
    task = event.task
    sentry_sdk.add_breadcrumb(
        category="task",
        level="warning",
        message=f"{task.name}, attempt {event.attempt}: {error_type(event.error)}",
        data={
            "task_id": task.id,
            "error": str(event.error),
            "retry_in_s": event.delay_s,
        },
    )


def _report(task: Task[Any]) -> None:
    error, client = task.error, sentry_sdk.get_client()
    if error is None or not client.is_active():
        return
    event, hint = event_from_exception(
        error,
        client_options=client.options,
        mechanism={"type": MECHANISM, "handled": False},
    )
    event["level"] = "error"
    event["fingerprint"] = _fingerprint(task, error)
    with sentry_sdk.new_scope() as scope:
        scope.set_tags(_tags(task))
        scope.set_context("task", _facts(task))
        sentry_sdk.capture_event(event, hint={**hint, TASK: task})
    error.__dict__[REPORTED] = True


def _tags(task: Task[Any]) -> dict[str, str | int]:
    tags: dict[str, str | int] = {
        "task": task.name,
        "task_id": task.id,
        "attempt": task.attempt,
        "executor": task.plan.executor,
        "status": task.status.value,
    }
    if task.plan.limit is not None:
        tags["limit"] = task.plan.limit
    return tags


def _facts(task: Task[Any]) -> dict[str, object]:
    return {
        "queued_s": task.queued_s,
        "duration_s": task.duration_s,
        "earlier_errors": [error_type(error) for error in task.errors],
    }


def _fingerprint(task: Task[Any], error: BaseException) -> list[str]:
    """One issue for each task, class of error, and place; the place is Sentry's own grouping.

    A timeout has no place, and the traceback of a worker process does not come along: with these,
    Sentry would group by the message.
    """
    what = [task.name, error_type(error)]
    return what if error.__traceback__ is None else ["{{ default }}", *what]


# No second event for a failure: through the log, through `on_error="raise"`, through a hook.


class _Telling(threading.local):
    on = False


_telling = _Telling()
"""On in a thread that logs something which is reported here."""


class Unreported:
    """The log, as before; but what it logs of failures and retries makes no event in Sentry."""

    def __init__(self, log: LogListener) -> None:
        self._log = log

    def __repr__(self) -> str:
        """The name of the log in the message when it fails."""
        return repr(self._log)

    def hears(self, event: type[Event]) -> bool:
        """What the log hears."""
        return self._log.hears(event)

    def changed(self) -> bool:
        """True when the log may hear something else than before."""
        return self._log.changed()

    def __call__(self, event: Event) -> None:
        """Log one event."""
        if not isinstance(event, TaskFailed | TaskTimedOut | TaskRetrying):
            self._log(event)
            return
        _telling.on = True
        try:
            self._log(event)
        finally:
            _telling.on = False


def _unreported(listener: Listener) -> Listener:
    return Unreported(listener) if isinstance(listener, LogListener) else listener


@cache
def _be_asked_of_every_event() -> None:
    """Once in a process: Sentry forgets nobody whom it asks."""
    add_global_event_processor(_drop_the_second)


def _drop_the_second(event: SentryEvent, hint: Hint) -> SentryEvent | None:
    """What Sentry asks of every event: `None` for one that says again what was reported."""
    if TASK in hint:
        return event
    if _telling.on:
        return None
    error = (hint.get("exc_info") or (None, None, None))[1]
    return None if REPORTED in getattr(error, "__dict__", ()) else event
