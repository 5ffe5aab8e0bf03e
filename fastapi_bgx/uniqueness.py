"""Unique tasks: while one is unfinished, whoever adds it again is given that one.

Used by the entrance, on whatever thread; hence the lock.
"""

import threading
from collections.abc import Callable, Hashable
from typing import Any

from fastapi_bgx.calls import arguments_by_name
from fastapi_bgx.options import Particulars
from fastapi_bgx.plan import Plan
from fastapi_bgx.task import Task

Key = tuple[str, Hashable]


def key_of(
    plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], call: Particulars | None
) -> Key:
    """The name of the task and its key: two functions never share one.

    Raises:
        Exception: what the function that makes the key raises; a `TypeError` when what it made
            cannot be hashed.
    """
    key: Any = plan.unique if call is None or call.unique is None else call.unique
    if callable(key):
        key = key(**arguments_by_name(plan.shape, args, kwargs))
    hash(key)  # in the route, where the mistake is
    return plan.name, key


class Uniques:
    """The unfinished tasks of one runner that have a key."""

    def __init__(self) -> None:
        self._tasks: dict[Key, Task[Any]] = {}
        self._lock = threading.RLock()  # a task may be added while another one is

    def join_or_add(self, key: Key, add: Callable[[], Task[Any]]) -> tuple[Task[Any], bool]:
        """The unfinished task of `key`, and True; without one, what `add` makes, and False."""
        with self._lock:
            task, known = self.find_or_add(key, add)
            if known:
                task.sharers += 1
            return task, known

    def find_or_add(self, key: Key, add: Callable[[], Task[Any]]) -> tuple[Task[Any], bool]:
        """The same, for somebody who has no share in a task that there is already."""
        with self._lock:
            known = self._tasks.get(key)
            if known is not None and not known.done:
                return known, True
            task = add()
            task.unique = key
            task.sharers = 1
            task.when_ended(self._forget)
            self._tasks[key] = task
            return task, False

    def is_new(self, task: Task[Any]) -> bool:
        """True once: for the first of the requests that share the task to put it into its list.

        Which need not be the one whose call made it: they may run in several threads.
        """
        with self._lock:
            new, task.listed = not task.listed, True
            return new

    def leave(self, task: Task[Any]) -> bool:
        """Take one call of `add_task` back that gave the task; true for the last of them."""
        with self._lock:
            task.sharers -= 1
            if not task.sharers:
                self._forget(task)  # nobody may join it any more
            return not task.sharers

    def _forget(self, task: Task[Any]) -> None:
        with self._lock:
            if self._tasks.get(task.unique) is task:
                del self._tasks[task.unique]
