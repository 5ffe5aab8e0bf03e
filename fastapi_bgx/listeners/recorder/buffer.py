"""The records that the store has not taken yet: one for each task, bounded in number and size.

Too many: what has not ended is let go first, since it is told again later; then the oldest, but
those last of which the store may have that they go on: nobody else would tell it of their end.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from fastapi_bgx.records import FullRecord

MOST_RECORDS = 10_000
MOST_CHARACTERS = 50_000_000
"""Of the long texts of all of them together."""
KEPT_SHARE = 0.9
"""What is left when there were too many: it is looked through once for many records."""

Numbered = tuple[int, FullRecord]


class Buffer:
    """Records on their way; any thread may use it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._records: dict[str, Numbered] = {}  # in the order of their numbers
        self._in_flight: frozenset[str] = frozenset()
        self._going_on: set[str] = set()  # as the store may have it
        self._number = 0
        self._characters = 0
        self.lost: int = 0
        """Records of ended tasks that were let go."""
        self.let_go_unfinished: bool = False
        """True once a record of a task that has not ended was let go."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self._records)

    def get(self, task_id: str) -> FullRecord | None:
        """The record of that task, if it is here."""
        _, record = self._records.get(task_id, (0, None))
        return record

    def put(self, records: Iterable[FullRecord]) -> None:
        """Add these, each in the place of what is here of its task."""
        with self._changed:
            for record in records:
                self._remove(record.id)
                self._number += 1
                self._records[record.id] = self._number, record
                self._characters += size_of(record)
            if len(self._records) > MOST_RECORDS or self._characters > MOST_CHARACTERS:
                self._let_some_go()
            self._changed.notify_all()

    def take(self, most: int) -> list[Numbered]:
        """The oldest, at most so many. They stay here until they are `written`."""
        with self._changed:
            batch = list(islice(self._records.values(), most))
            self._in_flight = frozenset(record.id for _, record in batch)
            self._going_on.update(record.id for _, record in batch if not record.final)
            return batch

    def written(self, batch: Sequence[Numbered]) -> None:
        """These are kept elsewhere now: forget those that have not changed since."""
        with self._changed:
            self._going_on.difference_update(record.id for _, record in batch if record.final)
            for number, record in batch:
                there = self._records.get(record.id)
                if there is not None and there[0] == number:
                    self._remove(record.id)
            self._in_flight = frozenset()
            self._changed.notify_all()

    def not_written(self) -> None:
        """What was taken is nowhere else: it may be let go like the others, and nobody waits."""
        with self._changed:
            self._in_flight = frozenset()
            self._changed.notify_all()

    def give_up(self, batch: Sequence[Numbered]) -> None:
        """Nobody takes these."""
        self.written(batch)
        self.lost += len(batch)

    def wait_for_some(self, timeout: float) -> None:
        """Until there is one, or for so many seconds."""
        with self._changed:
            if not self._records:
                self._changed.wait(max(0.0, timeout))

    def wait_for_change(self, timeout: float) -> None:
        """Until something happens here, or for so many seconds."""
        with self._changed:
            self._changed.wait(max(0.0, timeout))

    def wait_for_room(self, timeout: float) -> bool:
        """Until half of it is free, for at most so many seconds; false when it is not."""
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self._records) <= MOST_RECORDS // 2, max(0.0, timeout)
            )

    def wait_until_written(self, timeout: float, unless: Callable[[], bool]) -> bool:
        """Until what is here now is written or let go; false when it is not within the time.

        False, too, as soon as `unless` holds.
        """
        with self._changed:
            last = self._number
            self._changed.wait_for(lambda: unless() or self._oldest() > last, max(0.0, timeout))
            return self._oldest() > last

    def wake(self) -> None:
        """Have everybody look again who waits."""
        with self._changed:
            self._changed.notify_all()

    def _oldest(self) -> int:
        return next((number for number, _ in self._records.values()), self._number + 1)

    def _remove(self, task_id: str) -> FullRecord | None:
        _, record = self._records.pop(task_id, (0, None))
        if record is not None:
            self._characters -= size_of(record)
        return record

    def _let_some_go(self) -> None:
        for task_id in list(self._least_wanted()):
            if (
                len(self._records) <= MOST_RECORDS * KEPT_SHARE
                and self._characters <= MOST_CHARACTERS * KEPT_SHARE
            ):
                return
            record = self._remove(task_id)
            final = record is not None and record.final
            self.lost += final
            self.let_go_unfinished |= not final

    def _least_wanted(self) -> Iterator[str]:
        ended: list[str] = []
        awaited: list[str] = []
        for task_id, (_, record) in self._records.items():
            if task_id in self._in_flight:  # it may be written at this moment
                continue
            if not record.final:
                yield task_id
            elif task_id in self._going_on:
                awaited.append(task_id)
            else:
                ended.append(task_id)
        yield from ended
        yield from awaited


def size_of(record: FullRecord) -> int:
    """About how many characters it holds."""
    arguments = record.arguments or {}
    return (
        len(record.traceback)
        + len(record.value or "")
        + len(record.error_message)
        + sum(len(step.text) for step in record.steps)
        + sum(len(value) for value in arguments.values())
    )


def seconds_left(until: float) -> float:
    """Until that moment of the monotonic clock; never negative."""
    return max(0.0, until - time.monotonic())
