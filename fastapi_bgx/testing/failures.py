"""Failures of background tasks as failures of the test that caused them."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

from fastapi_bgx.events import Event, TaskEnded, TaskFailed, TaskTimedOut
from fastapi_bgx.outcome import Outcome, Status
from fastapi_bgx.runners import Runners
from fastapi_bgx.task import Task
from fastapi_bgx.testing.reach import listening

shown: WeakSet[Task[Any]] = WeakSet()
"""Tasks whose outcome a test was given by other means."""


class Failures:
    """The tasks that failed or timed out, and that the test was not told of yet."""

    def __init__(self) -> None:
        self.tasks: list[Task[Any]] = []

    def __iter__(self) -> Iterator[Task[Any]]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def expect(self) -> list[BaseException]:
        """What they raised, in order. The test expects it: it does not fail for them any more."""
        failed, self.tasks = self.tasks, []
        return [task.error for task in failed if task.error is not None]

    def check(self) -> None:
        """Fail for what nobody expected.

        Raises:
            Exception: what a task raised; of several, an `ExceptionGroup`.
        """
        __tracebackhide__ = True
        raise_all(self.expect(), "background tasks")


class _Watcher:
    """The listener that notes the failures of one `Bgx`."""

    def __init__(self, failures: Failures, runners: Runners) -> None:
        self._failures = failures
        self._raised = runners.settings.on_error == "raise"

    def hears(self, event: type[Event]) -> bool:
        return event in (TaskFailed, TaskTimedOut)

    def changed(self) -> bool:
        return False

    def __call__(self, event: Event) -> None:
        assert isinstance(event, TaskEnded)
        task = event.task
        if task not in shown and not (self._raised and not task.spawned):
            self._failures.tasks.append(task)


@contextmanager
def watching_failures() -> Generator[Failures]:
    """Note each task of every `Bgx` that fails or times out inside of the block.

    Raises:
        Exception: at the end of the block, unless it raises itself: see `Failures.check`.
    """
    failures = Failures()
    with listening(partial(_Watcher, failures)):
        yield failures
    failures.check()


def errors_of(outcomes: Iterable[Outcome[Any]]) -> list[BaseException]:
    """The errors of those that failed or timed out."""
    failed = (Status.FAILED, Status.TIMED_OUT)
    return [each.error for each in outcomes if each.status in failed and each.error is not None]


def raise_all(errors: list[BaseException], whose: str) -> None:
    """Raise one error as it is, several as a group; nothing where there is none."""
    __tracebackhide__ = True
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} {whose} failed", errors)
