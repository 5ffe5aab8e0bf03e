"""Writes docs/reference/events.md from the code: `uv run python -m tests.reference`.

test_reference.py fails when the page and the code differ, and when a field has no meaning here.
"""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastapi_bgx
from fastapi_bgx import DrainReport, Limit, Settings, Task, TaskOptions
from fastapi_bgx.events import ALL_EVENTS, Event, TaskCancelled, TaskFailed, TaskTimedOut
from fastapi_bgx.listeners.log import fields_of
from fastapi_bgx.runners import Runners

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "events.md"
PACKAGE = Path(fastapi_bgx.__file__).parent

MEANINGS = {
    "about": "the event that the listener was told of",
    "attempt": "the number of the call, from 1; 0 when there was none",
    "blocked_s": "seconds for which the event loop did nothing else",
    "cancelled": "the tasks that were cancelled, each as name and id (the first 20)",
    "delay_s": "seconds until it may start",
    "duration_s": "seconds from the start of the function to the end of the task; of a drain, "
    "from its beginning to its end",
    "effect": "what it means",
    "ended": "`true` when the function has ended; `false` while it still runs",
    "error": "the class of the exception",
    "exc_info": "the exception itself, with its traceback: structlog renders it",
    "executor": "where the function runs: `async`, `thread` or `process`",
    "finished": "how many tasks ended by themselves while it lasted",
    "fraction": "how much of it is done, from 0 to 1",
    "functions": "their names, and the paths of their routes",
    "holds_request": "`true` when the request does not end before the task: it is inline",
    "hook": "the name of the hook",
    "in_thread": "the tasks whose thread still runs, each as name and id (the first 20)",
    "lasted_s": "seconds for which it did",
    "limit": "the name of the task's limit, if it has one",
    "line_level": "the level of the line",
    "listener": "the listener that raised",
    "lost": "records of ended tasks that could not be kept, since the start of the process",
    "mode": "`Settings.mode`",
    "note": "what the task said that it does; empty when it did not say",
    "overran_s": "seconds since the task ended or should have",
    "queued_s": "seconds from `add_task` to the start",
    "reason": "why, in words",
    "remedy": "what to do about it",
    "retry_of": "the id of the task that `bgx.retry` ran again, if this is what became of that",
    "running_s": "seconds since the start of the function",
    "stack": "where the task was, as text, innermost frame last",
    "stuck": "the async tasks that swallowed their cancellation and still run, each as name and id "
    "(the first 20)",
    "task": "the name of the task",
    "task_id": "the id of the task",
    "text": "what it says, with its fields",
    "unique": "the key of the task",
}
"""What each field means."""

NOTICES = {
    "bgx.command_failed": "Another process asked for something, and doing it raised.",
    "bgx.hook_failed": "A hook of `on_failure` raised, or ran longer than 10 seconds.",
    "bgx.listener_failed": "Telling an event raised; mostly it is the log itself that did.",
    "bgx.no_lifespan": "A detached task ran inline: without a lifespan nothing would wait for it "
    "at shutdown. Once for each `Bgx`.",
    "bgx.no_watchdog": "`loop_block_after` is set, and this Python or system cannot do it.",
    "bgx.not_injected": "Functions ask for this library's `BackgroundTasks` and get FastAPI's own. "
    "Once for each application.",
    "bgx.record_failed": "Making the record of a task raised: that record is lost.",
    "bgx.records_lost": "Records are lost though the store answers, as it is too slow for them, or "
    "the process ends while it does not answer. At most once a minute.",
    "bgx.redact_failed": "A hook of `redact` raised: what it was asked about is not kept. At most "
    "once a minute.",
    "bgx.retry_undecided": "A function of a `Retry` raised: the task is not tried again.",
    "bgx.store_back": "The store of the records answers again.",
    "bgx.store_unavailable": "The store of the records does not answer. At most once a minute.",
    "bgx.watchdog_failed": "What looks for tasks that block the event loop raised, and stopped.",
}
"""What is logged beside events, whatever `Settings.log_events` says."""


def page() -> str:
    """The whole page."""
    return f"""\
<!-- Written by `uv run python -m tests.reference`. Do not edit. -->

# Events

Everything that happens to a task is an event, and each event is one line of the log. The logger is
`fastapi_bgx`. `Settings.log_events` chooses the events that are logged.

Each task that was accepted has exactly one of `task.succeeded`, `task.failed`, `task.timed_out`,
`task.cancelled`, `task.expired` and `task.dropped`.

{_table(("event", "level", "what happened", "fields"), _event_rows())}

A field in brackets is there when there is something to say.

Each line about a task also carries what was bound in structlog's contextvars when the task was
added (the configuration needs `structlog.contextvars.merge_contextvars`; structlog's own has it),
and `arguments` with `Settings(log_arguments=True)`.

## Fields

{_table(("field", "meaning"), [(f"`{name}`", MEANINGS[name]) for name in _used()])}

## Beside the events

What there is to say about the setup, and about code that is called here and fails, is logged
whatever `Settings.log_events` says.

{_table(("line", "level", "what happened", "fields"), _notice_rows())}
"""


def fields(event: type[Event]) -> tuple[set[str], set[str]]:
    """The names of the fields that an event has always, and of those that it has sometimes."""
    found = [set(fields_of(each)) for each in _samples(event)]
    always = found[0].intersection(*found)
    return always, found[0].union(*found) - always


def notices() -> dict[str, tuple[str, list[str]]]:
    """The level and the fields of each `notice` in the code."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "notice":
                level, name = (ast.literal_eval(argument) for argument in node.args)
                names = [str(keyword.arg) for keyword in node.keywords]
                found[name] = level, [*names, "exc_info"] if level == "exception" else names
    return found


def _samples(event: type[Event]) -> Iterator[Event]:
    """The event as it may look: with and without what only some tasks have."""
    errors: list[Exception | None] = [None]
    if event in (TaskFailed, TaskTimedOut):
        errors = [ValueError()]
    elif event is TaskCancelled:
        errors = [None, ValueError()]
    for error in errors:
        for limit in (None, Limit("smtp", 1)):
            values: dict[str, Any] = {
                "attempt": 1,
                "ended": True,
                "error": ValueError(),
                "key": "order-42",
                "line_level": "info",
                "text": "",
                "note": "",
                "stack": "",
                "mode": "inline",
                "report": DrainReport(),
                "task": _task(limit, error),
            }
            names = [field.name for field in dataclasses.fields(event)]
            yield event(**{name: values.get(name, 0.0) for name in names})


def _task(limit: Limit | None, error: Exception | None) -> Task[Any]:
    runners = Runners(Settings(log_events=set()))
    task = runners.accept(len, ((),), {}, TaskOptions(limit=limit))
    task.claimed = True
    task.error = error
    task.retry_of = None if limit is None else "8c1f-1"
    return task


def _event_rows() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for event in ALL_EVENTS:
        always, sometimes = fields(event)
        shown = [f"`{name}`" for name in sorted(always)]
        shown += [f"(`{name}`)" for name in sorted(sometimes)]
        rows.append((f"`{event.name}`", event.level, _sentence(event), ", ".join(shown)))
    return rows


def _notice_rows() -> list[tuple[str, ...]]:
    return [
        (
            f"`{name}`",
            "error" if level == "exception" else level,
            NOTICES[name],
            ", ".join(f"`{field}`" for field in names),
        )
        for name, (level, names) in sorted(notices().items())
    ]


def _used() -> list[str]:
    """Every field of every line, in order."""
    of_events = {name for event in ALL_EVENTS for names in fields(event) for name in names}
    of_notices = {name for _, names in notices().values() for name in names}
    return sorted(of_events | of_notices)


def _sentence(event: type[Event]) -> str:
    return " ".join((inspect.getdoc(event) or "").split())


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
