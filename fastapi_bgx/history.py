"""The history: the newest of the tasks that have ended, for those who ask what became of them."""

import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastapi_bgx.task import Task

MOST_BYTES = 10_000
"""A larger value is not kept alive by the history. Counted as `sys.getsizeof` has it, with what is
in lists, tuples, dictionaries and sets, and without what other objects hold."""
MOST_FAILED = 100
"""Tasks with errors that it keeps alive: from a traceback hangs whatever its functions held."""

INSIDE: dict[type, Callable[[Any], Iterable[object]]] = {
    dict: lambda entries: (*entries.keys(), *entries.values()),
    list: tuple,
    tuple: tuple,
    set: tuple,
    frozenset: tuple,
}
"""What there is to look into. Subclasses may run code of their own when they are looked at."""


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
            if task.payload:
                task.payload = b""

    def add(self, task: Task[Any]) -> None:
        """Keep a task that is about to end, with its value and its error."""
        if not self._size:
            return
        small = task.value is None or is_small(task.value)
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


def is_small(value: object) -> bool:
    """True for what takes no more than `MOST_BYTES`; looks at no more of it than tells that."""
    left, seen = MOST_BYTES, set[int]()
    unseen: list[object] = [value]
    try:
        while unseen:
            each = unseen.pop()
            if id(each) not in seen:
                seen.add(id(each))
                left -= sys.getsizeof(each)
                if left < 0:
                    return False
                inside = INSIDE.get(type(each))
                unseen += () if inside is None else inside(each)
    except Exception:  # of a `__sizeof__` of its own, or somebody changes it meanwhile
        return False
    return True
