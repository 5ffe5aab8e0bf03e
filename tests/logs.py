"""What was logged, as data: structlog as an application configures it, with a list at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from structlog.testing import LogCapture
from structlog.typing import EventDict, Processor

Lines = list[EventDict]

FINAL = {
    "task.succeeded",
    "task.failed",
    "task.timed_out",
    "task.cancelled",
    "task.expired",
    "task.dropped",
}
"""The events of which every task has exactly one."""


@contextmanager
def logged(*processors: Processor, **configuration: Any) -> Iterator[Lines]:
    """Every line that is logged inside, after `merge_contextvars` and `processors`."""
    capture = LogCapture()
    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *processors, capture], **configuration
    )
    try:
        yield capture.entries
    finally:
        structlog.configure(**before)
        structlog.contextvars.clear_contextvars()


def named(lines: Lines, event: str) -> Lines:
    """The lines of one event."""
    return [line for line in lines if line["event"] == event]


def one(lines: Lines, event: str) -> EventDict:
    """The only line of one event."""
    found = named(lines, event)
    assert len(found) == 1, f"{event}: {found} among {[line['event'] for line in lines]}"
    return found[0]
