"""Events as structlog events, in the application's own structlog configuration.

The fields of each event are in `fields_of` and `OWN_FIELDS`; the levels are with the events.
"""

import logging
from collections.abc import Callable
from typing import Any

import structlog

from fastapi_bgx.events import (
    Drained,
    Event,
    Started,
    TaskCancelled,
    TaskDropped,
    TaskEnded,
    TaskEvent,
    TaskFailed,
    TaskOverran,
    TaskRejected,
    TaskSlow,
    TaskStarted,
    TaskTimedOut,
)
from fastapi_bgx.notices import current_logger
from fastapi_bgx.reports import TaskRef
from fastapi_bgx.settings import Settings

MOST_NAMED = 20
LEVELS = ("debug", "info", "warning", "error")


class LogListener:
    """Logs the events of `Settings.log_events`."""

    def __init__(self, settings: Settings) -> None:
        self._events = settings.log_events
        self._arguments = settings.log_arguments
        self._logger: Any = None
        self._stdlib = False
        self._config: dict[str, Any] | None = None
        self._state: object = None

    def __repr__(self) -> str:
        """Its name in the message when it fails."""
        return "log"

    def hears(self, event: type[Event]) -> bool:
        """True when the event is to be logged and its level is enabled."""
        if event.name not in self._events:
            return False
        try:
            return _enabled(self._current_logger(), event.level)
        except Exception:
            return True  # it raises again when the event is told, and is reported there

    def changed(self) -> bool:
        """True when structlog was configured anew, or a level of the standard library was set."""
        if not self._events:
            return False
        before = self._state
        try:
            self._state = self._current_state()
        except Exception:
            return True
        return self._state != before

    def __call__(self, event: Event) -> None:
        """Log one event, in the context of its task."""
        fields = fields_of(event)
        if self._arguments and isinstance(event, TaskEvent):
            fields["arguments"] = _arguments(event)
        write = getattr(self._current_logger(), event.level)
        context = event.task.context if isinstance(event, TaskEvent) else None
        if context is None:
            write(event.name, **fields)
        else:  # a copy: a thread may be in the context itself
            context.copy().run(write, event.name, **fields)

    def _current_state(self) -> object:
        """What decides on the levels: for structlog its configuration, which never changes."""
        logger = self._current_logger()
        levels = [_enabled(logger, each) for each in LEVELS] if self._stdlib else None
        return self._config, levels

    def _current_logger(self) -> Any:
        """The bound logger for the configuration of now: to bind costs more than to compare."""
        config = structlog.get_config()
        if config != self._config:
            self._logger = current_logger()
            self._stdlib = _knows(self._logger, "isEnabledFor")
            self._config = config
        return self._logger


def fields_of(event: Event) -> dict[str, Any]:
    """The fields of an event in the log."""
    fields: dict[str, Any] = {}
    if isinstance(event, TaskEvent):
        task, plan = event.task, event.task.plan
        fields = {"task": plan.name, "task_id": task.id, "executor": plan.executor}
        if plan.limit is not None:
            fields["limit"] = plan.limit
        if isinstance(event, TaskEnded):
            fields["attempt"] = task.attempt
            fields["queued_s"] = round(task.queued_s, 6)
            fields["duration_s"] = round(task.duration_s, 6)
            if task.error is not None:
                fields["error"] = type(task.error).__qualname__
    own = OWN_FIELDS.get(type(event))
    return fields if own is None else fields | own(event)


def _started(event: TaskStarted) -> dict[str, Any]:
    return {"attempt": event.attempt, "queued_s": round(event.queued_s, 6)}


def _with_traceback(event: TaskFailed | TaskTimedOut) -> dict[str, Any]:
    return {"exc_info": event.task.error}


def _with_reason(event: TaskCancelled | TaskDropped) -> dict[str, Any]:
    return {"reason": event.reason}


def _overran(event: TaskOverran) -> dict[str, Any]:
    return {"overran_s": round(event.overran_s, 6), "ended": event.ended}


def _slow(event: TaskSlow) -> dict[str, Any]:
    return {"running_s": round(event.running_s, 6)}


def _rejected(event: TaskRejected) -> dict[str, Any]:
    return {"task": event.task_name, "reason": event.reason}


def _bgx_started(event: Started) -> dict[str, Any]:
    return {"mode": event.mode}


def _drained(event: Drained) -> dict[str, Any]:
    report = event.report
    return {
        "finished": len(report.finished),
        "cancelled": _named(report.cancelled),
        "in_thread": _named(report.in_thread),
        "stuck": _named(report.stuck),
        "duration_s": round(report.duration_s, 6),
    }


OWN_FIELDS: dict[type[Event], Callable[[Any], dict[str, Any]]] = {
    TaskStarted: _started,
    TaskFailed: _with_traceback,
    TaskTimedOut: _with_traceback,
    TaskCancelled: _with_reason,
    TaskDropped: _with_reason,
    TaskOverran: _overran,
    TaskSlow: _slow,
    TaskRejected: _rejected,
    Started: _bgx_started,
    Drained: _drained,
}
"""What each event has beside the fields of its task and its outcome."""


def _named(refs: tuple[TaskRef, ...]) -> list[str]:
    """Names and ids; the first few of many."""
    shown = [f"{ref.name} {ref.id}" for ref in refs[:MOST_NAMED]]
    more = len(refs) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def _arguments(event: TaskEvent) -> str:
    parts = [_repr(value) for value in event.task.args]
    parts += [f"{name}={_repr(value)}" for name, value in event.task.kwargs.items()]
    return ", ".join(parts)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # an event must not get lost for the sake of an argument
        return f"<{type(value).__qualname__}, without a repr>"


def _enabled(logger: Any, level: str) -> bool:
    """Ask a logger whether it would log at `level`; one that cannot tell is taken to."""
    number = logging.getLevelNamesMapping()[level.upper()]
    for question in ("isEnabledFor", "is_enabled_for"):
        if _knows(logger, question):
            return bool(getattr(logger, question)(number))
    return True


def _knows(logger: object, question: str) -> bool:
    """True when the class of the logger has such a method; some loggers answer everything."""
    return hasattr(type(logger), question)
