"""`Store`: what keeps records. Each adapter is a module or package beside this one."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from fastapi_bgx.records import (
    Answer,
    Changes,
    Command,
    Failure,
    FullRecord,
    Page,
    ProcessReading,
    Query,
    Summary,
)


class Store(Protocol):
    """Keeps records and answers questions about them. Every method may block: no event loop here.

    Each may be called from several threads at once. All raise `StoreUnavailable` when what they
    need does not answer, and leave everything as it was; the next call may succeed.
    """

    shared: bool
    """True when other processes see the same records."""

    def open(self) -> None:
        """Make it ready, with its tables as this version needs them. A second call does nothing."""
        ...

    def close(self) -> None:
        """Let go of connections. It opens itself again when it is asked for something."""
        ...

    def write(self, records: Sequence[FullRecord]) -> None:
        """Keep these, each in the place of what was known of its task: all of them, or none.

        The store numbers the changes itself (`Record.change`). A record that has ended never
        becomes one that has not, whatever comes late.
        """
        ...

    def get(self, task_id: str) -> FullRecord | None:
        """Everything that is kept of a task."""
        ...

    def find(self, query: Query) -> Page:
        """The records that fit, the last added first.

        Raises:
            ValueError: the cursor is not one that a page gave.
        """
        ...

    def summary(self, since: datetime, until: datetime, buckets: int) -> Summary:
        """What ended between two moments, in so many pieces of time."""
        ...

    def failures(self, since: datetime, until: datetime, most: int) -> tuple[Failure, ...]:
        """What failed or timed out, by error and place; those that ended last first."""
        ...

    def changes(self, after: int | None, most: int) -> Changes:
        """What has changed after that change; `None`: nothing yet, but `last` as it is now.

        More than `most` are not given: then `missed` says so, and `last` is as it is now. So it
        is when `after` was never given by this store.
        """
        ...

    def prune(self, before: datetime, most: int) -> int:
        """Forget those that ended before that moment, and the oldest ended ones beyond `most`.

        What has not ended stays. How many were forgotten.
        """
        ...

    def beat(self, process: ProcessReading) -> None:
        """Keep what a process says of itself, in the place of what it said before."""
        ...

    def leave(self, process: str) -> None:
        """Forget a process that ends as it should.

        Its tasks are neither `retryable` nor `overrunning` any more. `changes` does not tell so.
        """
        ...

    def processes(self) -> tuple[ProcessReading, ...]:
        """The processes that were heard of and have not left, the oldest first."""
        ...

    def bury(self, unseen_since: datetime) -> int:
        """Forget processes that have not been heard of since then, and end what they left open.

        Their tasks that had begun become `cancelled`, the others `dropped`, with the reason
        "its process ended without a shutdown". How many tasks. For the others, see `leave`.
        """
        ...

    def ask(self, command: Command) -> None:
        """Leave a command for another process."""
        ...

    def asked_of(self, process: str) -> tuple[Command, ...]:
        """The commands that a process was left and has not answered, the oldest first."""
        ...

    def answer(self, command: str, answer: Answer) -> None:
        """Answer a command, by its id."""
        ...

    def answer_to(self, command: str) -> Answer | None:
        """The answer to a command; `None` as long as there is none."""
        ...
