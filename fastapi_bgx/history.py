"""The history: the newest of the tasks that have ended, for those who ask what became of them."""

import sys
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

from fastapi_bgx.task import Task

MOST_BYTES = 10_000
"""A larger value (as `sys.getsizeof` has it) is not kept alive by the history."""
MOST_FAILED = 100
"""Tasks with errors that it keeps alive: from a traceback hangs whatever its functions held."""


class History:
    """At most `size` ended tasks. It must not be what fills the memory of a server.

    Tasks with a large value, and failed ones but the newest, are kept weakly: whoever holds one
    finds it here, too.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._ended: deque[Task[Any] | weakref.ref[Task[Any]]] = deque(maxlen=size)
        self._failed: deque[Task[Any]] = deque(maxlen=min(size, MOST_FAILED))

    def forget_arguments(self, task: Task[Any]) -> None:
        """A task that is kept here is over: nobody calls its function any more."""
        if self._size:
            task.args, task.named_args = (), None  # type: ignore[assignment]  # as in Task.__init__

    def add(self, task: Task[Any]) -> None:
        """Keep a task that has ended."""
        if not self._size:
            return
        small = task.value is None or _size(task.value) <= MOST_BYTES
        failed = task.error is not None or bool(task.errors)
        self._ended.append(task if small and not failed else weakref.ref(task))
        if failed:
            self._failed.append(task)

    def __iter__(self) -> Iterator[Task[Any]]:
        """The tasks, the newest end first; from any thread."""
        for kept in reversed(self._ended.copy()):
            task = kept() if isinstance(kept, weakref.ref) else kept
            if task is not None:
                yield task


def _size(value: object) -> int:
    try:
        return sys.getsizeof(value)
    except Exception:  # of a `__sizeof__` of its own
        return MOST_BYTES + 1
