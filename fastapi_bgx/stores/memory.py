"""Records in the memory of this process: gone with it, and unknown to every other one."""

import threading
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice

from fastapi_bgx.records import (
    Answer,
    Changes,
    Command,
    Failure,
    FullRecord,
    Page,
    ProcessReading,
    Query,
    Record,
    Summary,
)
from fastapi_bgx.stores.cursors import Position, cursor_at, position_of
from fastapi_bgx.stores.searching import searched
from fastapi_bgx.stores.summaries import BAD, UNFINISHED, summarise

MOST_FAILURE_NAMES = 10
Place = tuple[datetime, str]
"""When a task was added, and its id."""
Check = Callable[[Record], bool]


class MemoryStore:
    """A dictionary of records behind a lock."""

    shared: bool = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, FullRecord] = {}  # in the order of their changes
        self._added: list[Place] = []  # sorted: they nearly are when they come
        self._processes: dict[str, ProcessReading] = {}
        self._change = 0

    def open(self) -> None:
        """Nothing has to be made ready."""

    def close(self) -> None:
        """Nothing is held."""

    def write(self, records: Sequence[FullRecord]) -> None:
        """Keep these, each in the place of what was known of its task."""
        with self._lock:
            for record in records:
                before = self._records.get(record.id)
                if before is not None and before.final and not record.final:
                    continue
                self._change += 1
                self._records.pop(record.id, None)
                self._place(before, record)
                self._records[record.id] = record.model_copy(update={"change": self._change})

    def get(self, task_id: str) -> FullRecord | None:
        """Everything that is kept of a task."""
        with self._lock:  # a record that changes is away for a moment
            return self._records.get(task_id)

    def find(self, query: Query) -> Page:
        """The records that fit, the last added first."""
        with self._lock:
            places, records = self._added.copy(), self._records.copy()
        if query.cursor is not None:
            del places[bisect_left(places, position_of(query.cursor), key=_position) :]
        fitting: Iterator[FullRecord] = (records[task_id] for _, task_id in reversed(places))
        for check in _checks(query):
            fitting = filter(check, fitting)
        found = list(islice(fitting, query.limit + 1))
        shown = found[: query.limit]
        more = len(found) > len(shown)
        return Page(
            records=tuple(record.brief() for record in shown),
            next_cursor=cursor_at(position(shown[-1])) if more else None,
        )

    def summary(self, since: datetime, until: datetime, buckets: int) -> Summary:
        """What ended between two moments, in so many pieces of time."""
        records = self._all()
        ended = [r for r in records if r.ended_at is not None and since <= r.ended_at < until]
        unfinished = Counter(r.status for r in records if r.status in UNFINISHED)
        return summarise(ended, unfinished, since, until, buckets)

    def failures(self, since: datetime, until: datetime, most: int) -> tuple[Failure, ...]:
        """What failed or timed out, by error and place; those that ended last first."""
        groups: dict[str, list[tuple[datetime, Record]]] = {}
        for record in self._all():
            ended_at = record.ended_at
            if record.status in BAD and ended_at is not None and since <= ended_at < until:
                groups.setdefault(record.fingerprint or "", []).append((ended_at, record))
        failures = [_failure(fingerprint, group) for fingerprint, group in groups.items()]
        failures.sort(key=lambda each: each.fingerprint)
        return tuple(sorted(failures, key=lambda each: each.last_at, reverse=True)[:most])

    def changes(self, after: int | None, most: int) -> Changes:
        """What has changed after that change."""
        with self._lock:
            if after is None:
                return Changes(last=self._change)
            if after > self._change or after < 0:
                return Changes(last=self._change, missed=True)
            changed: list[FullRecord] = []
            for record in reversed(self._records.values()):
                if record.change <= after:
                    break
                if len(changed) == most:
                    return Changes(last=self._change, missed=True)
                changed.append(record)
            return Changes(
                records=tuple(record.brief() for record in reversed(changed)),
                last=self._change,
            )

    def prune(self, before: datetime, most: int) -> int:
        """Forget those that ended before that moment, and the oldest ended ones beyond `most`."""
        with self._lock:
            ended = sorted(
                (record.ended_at, record.id)
                for record in self._records.values()
                if record.ended_at is not None
            )
            beyond = max(0, len(ended) - most)
            old = [
                task_id
                for index, (ended_at, task_id) in enumerate(ended)
                if index < beyond or ended_at < before
            ]
            for task_id in old:
                del self._records[task_id]
            if old:
                self._added = [place for place in self._added if place[1] in self._records]
            return len(old)

    def beat(self, process: ProcessReading) -> None:
        """Keep what this process says of itself."""
        self._processes[process.id] = process

    def leave(self, process: str) -> None:
        """Forget a process; its tasks are neither retryable nor overrunning any more."""
        self._processes.pop(process, None)
        over = {"retryable": False, "overrunning": False}
        with self._lock:
            for record in self._records.values():
                if record.process == process and (record.retryable or record.overrunning):
                    self._records[record.id] = record.model_copy(update=over)  # in its old place

    def processes(self) -> tuple[ProcessReading, ...]:
        """This process, and those that it was forked from."""
        known = list(self._processes.values())
        return tuple(sorted(known, key=lambda process: (process.started_at, process.id)))

    def bury(self, unseen_since: datetime) -> int:  # noqa: ARG002 - as the protocol has it
        """0: what it keeps ends with its process."""
        return 0

    def ask(self, command: Command) -> None:
        """No other process would see it.

        Raises:
            LookupError: always.
        """
        raise LookupError(f"the process {command.process} does not share this store")

    def asked_of(self, process: str) -> tuple[Command, ...]:  # noqa: ARG002 - as the protocol has it
        """Nothing: nobody else is here."""
        return ()

    def answer(self, command: str, answer: Answer) -> None:
        """Nobody asks."""

    def answer_to(self, command: str) -> Answer | None:  # noqa: ARG002 - as the protocol has it
        """Nobody was asked."""
        return None

    def _place(self, before: FullRecord | None, record: FullRecord) -> None:
        """Find the place of a record in the list."""
        place = record.added_at, record.id
        if before is not None:
            if before.added_at == record.added_at:
                return
            self._added.remove((before.added_at, before.id))
        insort(self._added, place)

    def _all(self) -> list[FullRecord]:
        with self._lock:
            return list(self._records.values())


def position(record: Record) -> Position:
    """Where a record stands in the list."""
    return record.added_at.timestamp(), record.id


def _position(place: Place) -> Position:
    return place[0].timestamp(), place[1]


def _checks(query: Query) -> Iterator[Check]:
    """One for each condition that was given: the others cost nothing."""
    if query.status:
        yield lambda record: record.status in query.status
    if query.name is not None:
        yield lambda record: record.name == query.name
    yield from _checks_of_time(query)
    if query.fingerprint is not None:
        yield lambda record: record.fingerprint == query.fingerprint
    if query.overrunning is not None:
        yield lambda record: record.overrunning == query.overrunning
    if query.text:
        text = query.text.casefold()
        yield lambda record: text in searched(record)


def _checks_of_time(query: Query) -> Iterator[Check]:
    if (since := query.since) is not None:
        yield lambda record: record.added_at >= since
    if (until := query.until) is not None:
        yield lambda record: record.added_at < until
    if (ended_since := query.ended_since) is not None:
        yield lambda record: record.ended_at is not None and record.ended_at >= ended_since
    if (ended_until := query.ended_until) is not None:
        yield lambda record: record.ended_at is not None and record.ended_at < ended_until


def _failure(fingerprint: str, group: Sequence[tuple[datetime, Record]]) -> Failure:
    ordered = sorted(group, key=lambda each: (each[0], each[1].id))
    last_at, last = ordered[-1]
    ended = {record.name: ended_at for ended_at, record in ordered}
    names = sorted(sorted(ended), key=lambda name: ended[name], reverse=True)
    return Failure(
        fingerprint=fingerprint,
        error_type=last.error_type or "",
        error_place=last.error_place,
        error_message=last.error_message,
        names=tuple(names)[:MOST_FAILURE_NAMES],
        count=len(ordered),
        first_at=ordered[0][0],
        last_at=last_at,
        last_id=last.id,
    )
