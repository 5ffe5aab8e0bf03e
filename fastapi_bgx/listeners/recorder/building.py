"""A task and its trail, as a record. Nothing is changed, but arguments that are described once."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from itertools import islice
from types import CodeType
from typing import Any, Literal, cast

from fastapi_bgx.calls import arguments_by_name
from fastapi_bgx.listeners.recorder.failures import Failure, describe, message_of
from fastapi_bgx.listeners.recorder.moments import Moments
from fastapi_bgx.listeners.recorder.redaction import Redaction
from fastapi_bgx.listeners.recorder.trail import Noted, Trail
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import FullRecord, Step
from fastapi_bgx.task import Task
from fastapi_bgx.telemetry import error_type
from fastapi_bgx.texts import clean, shortened, summary_of, text_of

MOST_ARGUMENTS = 100
MOST_NAME = 500
"""Characters of a name."""
FAILURES = (Status.FAILED, Status.TIMED_OUT)


class Builder:
    """Makes the record of a task as it is now; on any thread, but it may take its time."""

    def __init__(self, moments: Moments, redaction: Redaction, *, arguments: bool) -> None:
        self._date_of = moments.date_of
        self._redaction = redaction
        self._arguments = arguments
        self.is_held: Callable[[str], bool] = lambda _: False
        """True for the id of a task that could be run again."""

    def build(self, task: Task[Any]) -> FullRecord:
        """The record of a task."""
        # The end is read first: a task that ends meanwhile is written again, with its end.
        ended_at = task.ended_at
        status = _status(task, ended=ended_at is not None)
        trail: Trail = task.trail or Trail()
        failure = self._failure(task, status)
        task_id = task.id
        return FullRecord(
            **self._facts(task, task_id),
            **self._times(task, trail, status, ended_at),
            **_error_fields(failure),
            status=status,
            reason=shortened(trail.reason) if ended_at is not None else "",
            overrunning=task.runner.overruns(task),
            retryable=ended_at is not None and self.is_held(task_id),
            arguments=self._arguments_of(task, trail),
            value=self._value(task, status),
            steps=tuple(self._steps(task, trail, failure, ended_at)),
            steps_left_out=max(0, trail.count - len(trail.first) - len(trail.newest)),
        )

    def _facts(self, task: Task[Any], task_id: str) -> dict[str, Any]:
        plan, last = task.plan, task.last_progress
        return {
            "id": task_id,
            "name": shortened(plan.name, MOST_NAME),
            "function": shortened(function_name(task.func), MOST_NAME),
            "executor": plan.executor,
            "process": task.runner.prefix.removesuffix("-"),
            "detached": plan.detached,
            "limit": None if plan.limit is None else shortened(plan.limit, MOST_NAME),
            "priority": plan.priority,
            "attempt": task.attempt,
            "attempts": 1 if plan.retry is None else plan.retry.attempts,
            "timeout_s": plan.timeout,
            "progress": None if last is None else last.fraction,
            "note": "" if last is None else self._note(task, text_of(last.note)),
            "retry_of": task.retry_of,
        }

    def _note(self, task: Task[Any], note: str) -> str:
        return shortened(self._redacted_text(task, "note", note)) if note else ""

    def _times(
        self, task: Task[Any], trail: Trail, status: Status, ended_at: float | None
    ) -> dict[str, Any]:
        begun, due = task.begun_at, _due(task, trail, status)
        until = ended_at if begun is None else begun
        ran = None if begun is None or ended_at is None else max(0.0, ended_at - begun)
        return {
            "added_at": self._date_of(task.added_at),
            "due_at": self._date(due),
            "started_at": self._date(begun),
            "ended_at": self._date(ended_at),
            "queued_s": None if until is None else max(0.0, until - task.added_at),
            "duration_s": ran,
        }

    def _date(self, at: float | None) -> datetime | None:
        return None if at is None else self._date_of(at)

    def _failure(self, task: Task[Any], status: Status) -> Failure | None:
        error = task.error
        if error is None or status not in (*FAILURES, Status.RETRYING):
            return None
        # Of a process that hangs nobody sees where: then it is the function.
        hung = definition_of(task.func) if status is Status.TIMED_OUT else None
        return describe(error, self._safe(task, "error"), hung)

    def _safe(self, task: Task[Any], name: str) -> Callable[[str], str]:
        return lambda text: self._redacted_text(task, name, text)

    def _redacted_text(self, task: Task[Any], name: str, text: str) -> str:
        kept = self._redaction(task, name, text)
        return kept if isinstance(kept, str) else summary_of(kept)

    def _value(self, task: Task[Any], status: Status) -> str | None:
        value = task.value
        if status is not Status.SUCCEEDED or value is None:
            return None
        return summary_of(self._redaction(task, "return", value))

    def _arguments_of(self, task: Task[Any], trail: Trail) -> Mapping[str, str] | None:
        if not self._arguments:
            return None
        call = trail.call
        if call is None and trail.arguments is None and task.ended_at is None:
            call = task.args, task.named_args  # recording began after it was added
        if call is not None:
            trail.arguments = dict(self._described(task, *call))  # first: others may look
            trail.call = None
        return trail.arguments

    def _described(
        self, task: Task[Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> Iterator[tuple[str, str]]:
        named = _by_name(task, args, kwargs or {})
        for name, value in islice(named.items(), MOST_ARGUMENTS):
            yield shortened(name, MOST_NAME), summary_of(self._redaction(task, name, value))
        if len(named) > MOST_ARGUMENTS:
            yield "…", f"and {len(named) - MOST_ARGUMENTS} more"

    def _steps(
        self, task: Task[Any], trail: Trail, failure: Failure | None, ended_at: float | None
    ) -> Iterator[Step]:
        begun = task.begun_at
        start = None if begun is None else Noted(begun, "started", 1)
        for noted in trail.kept():
            if start is not None and noted.at >= start.at:
                yield self._step(task, start)
                start = None
            yield self._step(task, noted)
        if start is not None:
            yield self._step(task, start)
        if failure is not None and ended_at is not None:
            text = shortened(f"{failure.type}: {failure.message}")
            yield self._step(task, Noted(ended_at, "failed", task.attempt, "error", text))

    def _step(self, task: Task[Any], noted: Noted) -> Step:
        text = noted.text
        if noted.error is not None:
            said = message_of(noted.error, self._safe(task, "error"))
            text = f"{error_type(noted.error)}: {said}"
        elif noted.kind == "log":
            text = self._redacted_text(task, "log", text)
        return Step(
            at=self._date_of(noted.at),
            kind=noted.kind,
            attempt=noted.attempt,
            level=noted.level,
            text=shortened(text),
            seconds=noted.seconds,
        )


def _called(func: Any) -> Any:
    while isinstance(func, partial):
        func = func.func
    return func


def function_name(func: Any) -> str:
    """Module and name of what is called; of a `partial`, of what it calls."""
    func = _called(func)
    named = func if hasattr(func, "__qualname__") else cast(Any, type(func))
    return f"{text_of(named.__module__)}.{text_of(named.__qualname__)}"


def definition_of(func: Any) -> tuple[str, int, str] | None:
    """File, line and name of a function of Python; of a `partial`, of what it calls."""
    code: Any = getattr(_called(func), "__code__", None)
    if not isinstance(code, CodeType):
        return None
    return code.co_filename, code.co_firstlineno, code.co_name


def _status(task: Task[Any], *, ended: bool) -> Status:
    """The status; that of before while the task is just ending."""
    status = task.status
    if ended or not status.final:
        return status
    return Status.RUNNING if task.attempt else Status.QUEUED


def _due(task: Task[Any], trail: Trail, status: Status) -> float | None:
    if status is Status.QUEUED:
        return task.due
    return trail.due if status is Status.RETRYING else None


ErrorField = Literal["error_type", "error_message", "error_place", "fingerprint", "traceback"]


def _error_fields(failure: Failure | None) -> dict[ErrorField, Any]:
    if failure is None:
        return {}
    return {
        "error_type": failure.type,
        "error_message": failure.message,
        "error_place": failure.place,
        "fingerprint": failure.fingerprint,
        "traceback": failure.traceback,
    }


def _by_name(
    task: Task[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Mapping[str, object]:
    """The arguments by parameter; a call that fits no signature is shown as it is."""
    shape = task.plan.shape
    if shape.signature is not None:
        try:
            return arguments_by_name(shape, args, kwargs)
        except TypeError:  # nobody has checked it: Settings.check_calls is off
            pass
    return {**({"args": args} if args else {}), **{clean(k): v for k, v in kwargs.items()}}
