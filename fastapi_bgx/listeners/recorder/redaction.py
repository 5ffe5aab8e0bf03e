"""`@bgx.redact`: the application's own say in what of its values is kept."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi_bgx.notices import notice
from fastapi_bgx.task import Task

RedactHook = Callable[[Task[Any], str, object], object]
Hook = TypeVar("Hook", bound=RedactHook)
FAILED = "<redacted: the hook failed>"
NOTICE_SECONDS = 60.0


class Redaction:
    """Asks each hook what to keep; what a hook raises hurts nobody, and keeps nothing."""

    def __init__(self) -> None:
        self._hooks: list[RedactHook] = []
        self._told_at: float | None = None

    def add(self, hook: Hook) -> Hook:
        """Ask one more, after the others; used as a decorator."""
        self._hooks.append(hook)
        return hook

    def __call__(self, task: Task[Any], name: str, value: object) -> object:
        """What to keep in the place of a value."""
        for hook in self._hooks:
            try:
                value = hook(task, name, value)
            except BaseException as error:  # also SystemExit: it would end the thread of the writer
                self._tell(hook, task, error)
                return FAILED
        return value

    def _tell(self, hook: RedactHook, task: Task[Any], error: BaseException) -> None:
        """Say that a hook fails; it may do so for each value of each task."""
        now = time.monotonic()
        if self._told_at is not None and now - self._told_at < NOTICE_SECONDS:
            return
        self._told_at = now
        notice(
            "error",
            "bgx.redact_failed",
            hook=getattr(hook, "__qualname__", type(hook).__qualname__),
            task=task.name,
            task_id=task.id,
            effect="the value is not kept",
            exc_info=error,
        )
