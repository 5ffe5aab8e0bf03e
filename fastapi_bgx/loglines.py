"""The log lines of a task, on their way to its record: structlog processors that pass them on.

A line is told as the application's own processors have left it, so that what they hide is hidden.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeGuard, cast, overload

import structlog
from structlog.typing import EventDict, Processor

from fastapi_bgx.records import MOST_TEXT
from fastapi_bgx.settings import ALL_EVENTS
from fastapi_bgx.texts import shortened, summary_of, text_of

MOST_FIELD = 500
LEVELS = {
    "debug": "debug",
    "info": "info",
    "msg": "info",
    "notset": "debug",
    "warn": "warning",
    "warning": "warning",
    "err": "error",
    "error": "error",
    "exception": "error",
    "critical": "critical",
    "fatal": "critical",
    "failure": "error",
}
"""How bad a line is, by the method that was called."""
TOLD_ELSEWHERE = frozenset(
    {
        "attempt",
        "event",
        "exc_info",
        "exception",
        "level",
        "level_number",
        "log_level",
        "logger",
        "positional_args",
        "stack",
        "stack_info",
        "task",
        "task_id",
        "timestamp",
    }
)


class Keeper(Protocol):
    """What keeps the lines of one task."""

    def keep_line(self, level: str, text: str) -> None:
        """Tell of one line."""
        ...


class KeepLines:
    """A processor of structlog: tells of each line of the current task, and changes none."""

    def __init__(self, keeper: Callable[[], Keeper | None]) -> None:
        self._keeper = keeper

    def __call__(self, _logger: Any, method: str, line: EventDict) -> EventDict:
        """Tell of one line; it is passed on as it is."""
        keeper = self._keeper()
        if keeper is not None and line.get("event") not in ALL_EVENTS:  # those are steps already
            tell(keeper, method, line)
        return line


class KeptChain(Sequence[Processor]):
    """The processors of the application as they are now, and one that tells before the last.

    The last one makes a text of the line. An application that has a `KeepLines` among its own is
    told by that: no line twice.
    """

    def __init__(self, keeper: Callable[[], Keeper | None]) -> None:
        self._keep = KeepLines(keeper)

    def __iter__(self) -> Iterator[Processor]:
        """For each line."""
        return iter(self._now())

    def __len__(self) -> int:
        """How many there are now."""
        return len(self._now())

    @overload
    def __getitem__(self, index: int) -> Processor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Processor]: ...

    def __getitem__(self, index: int | slice) -> Processor | Sequence[Processor]:
        """One or some of them."""
        return self._now()[index]

    def _now(self) -> list[Processor]:
        processors: list[Processor] = list(structlog.get_config()["processors"])
        if not any(isinstance(each, KeepLines) for each in processors):
            processors.insert(max(0, len(processors) - 1), self._keep)
        return processors


class _Telling(threading.local):
    on = False


_telling = _Telling()
"""On in a thread that tells of a line: a listener may log in turn, and hears itself then."""


def tell(keeper: Keeper, method: str, line: EventDict) -> None:
    """Have a line kept; never raises."""
    if _telling.on:
        return
    _telling.on = True
    try:
        keeper.keep_line(LEVELS.get(method, "info"), text_of_line(line))
    finally:
        _telling.on = False


def text_of_line(line: EventDict) -> str:
    """What a line says: its event, its fields, its error; at most `MOST_TEXT` characters."""
    parts = [_message(line)]
    left = MOST_TEXT - len(parts[0])
    for name, value in line.items():
        if left <= 0:
            break
        if name not in TOLD_ELSEWHERE and not name.startswith("_"):
            parts.append(f"{name}={_field(value)}")
            left -= len(parts[-1])
    return shortened(" ".join(parts) + _error(line))


def _message(line: EventDict) -> str:
    message = text_of(line.get("event", ""))[:MOST_TEXT]
    arguments: Any = line.get("positional_args")  # of structlog.stdlib's loggers
    if arguments and _are_positional(arguments):
        try:
            return (message % arguments)[:MOST_TEXT]
        except Exception:
            return f"{message} {summary_of(arguments, MOST_FIELD)}"
    return message


def _are_positional(arguments: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(arguments, tuple)


def _field(value: object) -> str:
    if isinstance(value, str) and value.isprintable() and " " not in value and value:
        return value[:MOST_FIELD]
    return summary_of(value, MOST_FIELD)


def _error(line: EventDict) -> str:
    rendered: Any = line.get("exception")
    raised: Any = line.get("exc_info")
    if isinstance(rendered, str):
        return f"\n{rendered[:MOST_TEXT]}"
    if isinstance(raised, tuple):
        raised = cast(Any, raised[1])
    elif raised and not isinstance(raised, BaseException):
        raised = sys.exc_info()[1]
    if not isinstance(raised, BaseException):
        return ""
    return f"\n{type(raised).__qualname__}: {text_of(raised)[:MOST_TEXT]}"
