"""The books of the soak: what was added, called and ended, and who held which limit at once."""

import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog

from fastapi_bgx import BackgroundTasks, BacklogFull, Draining, Stats
from fastapi_bgx.background import TasksView

MOST_PROBLEMS = 50
CALLED_ONCE = {"task.succeeded", "task.failed", "task.timed_out"}
NEVER_CALLED = {"task.expired", "task.dropped"}
PERHAPS_CALLED = {"task.cancelled"}
FINAL = CALLED_ONCE | NEVER_CALLED | PERHAPS_CALLED


class Gauge:
    """How many hold a limit at this instant, as seen from inside the functions."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.held = 0
        self.peak = 0


class Entry(NamedTuple):
    """One task that was added."""

    name: str
    number: int
    counts_calls: bool


@dataclass(slots=True)
class Ledger:
    """Everything since the last settling, and the totals since the beginning."""

    problems: list[str] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)
    _entries: dict[str, Entry] = field(default_factory=dict)
    _calls: Counter[int] = field(default_factory=Counter)
    _ends: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _refused: int = 0
    _rejected: int = 0
    _queued: int = 0
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def add(
        self,
        tasks: BackgroundTasks | TasksView,
        func: Any,
        *args: Any,
        counts_calls: bool = True,
    ) -> None:
        """Add a task, called with its number and `args`; enter it, or that it was refused."""
        number = next(self._numbers)
        given = (number, *args) if counts_calls else args
        try:
            task = tasks.add_task(func, *given)
        except (BacklogFull, Draining):
            with self._lock:
                self._refused += 1
            return
        with self._lock:
            self._entries[task.id] = Entry(task.name, number, counts_calls)

    @contextmanager
    def call(self, number: int, *gauges: Gauge) -> Iterator[None]:
        """What each function does around its work."""
        with self._lock:
            self._calls[number] += 1
            for gauge in gauges:
                gauge.held += 1
                gauge.peak = max(gauge.peak, gauge.held)
                if gauge.held > gauge.limit:
                    self.report(f"{gauge.held} held {gauge.name}, which has {gauge.limit} slots")
        try:
            yield
        finally:
            with self._lock:
                for gauge in gauges:
                    gauge.held -= 1

    def hear(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A processor for structlog: every event of the library comes by here, and ends here."""
        name = event["event"]
        with self._lock:
            self.totals[name] += 1
            if name in FINAL:
                self._ends[event["task_id"]].append(name)
            elif name == "task.rejected":
                self._rejected += 1
            elif name == "task.queued":
                self._queued += 1
            elif not name.startswith(("task.", "bgx.started", "bgx.drained")):
                self.report(f"an event that nobody expects: {dict(event)}")
        raise structlog.DropEvent

    def report(self, problem: str) -> None:
        """Note what must not be; the first of many."""
        with self._lock:
            if len(self.problems) < MOST_PROBLEMS:
                self.problems.append(problem)

    def settle(self) -> None:
        """Close the books once everything has ended: every task is accounted for, once."""
        with self._lock:
            for task_id, entry in self._entries.items():
                self._check(task_id, entry)
            for task_id in self._ends.keys() - self._entries.keys():
                self.report(f"{task_id} ended and was never added: {self._ends[task_id]}")
            if self._refused != self._rejected:
                self.report(f"{self._refused} were refused, {self._rejected} events tell of it")
            if self._queued != len(self._entries):
                self.report(f"{len(self._entries)} were added, {self._queued} events tell of it")
            self.totals["added"] += len(self._entries)
            self._entries, self._calls, self._ends = {}, Counter(), defaultdict(list)
            self._refused = self._rejected = self._queued = 0

    def _check(self, task_id: str, entry: Entry) -> None:
        ends = self._ends.get(task_id, [])
        if len(ends) != 1:
            self.report(f"{entry.name} {task_id} has {len(ends)} final events: {ends}")
            return
        calls = self._calls[entry.number]
        if not entry.counts_calls:
            return
        allowed = {0, 1} if ends[0] in PERHAPS_CALLED else {int(ends[0] in CALLED_ONCE)}
        if calls not in allowed:
            self.report(f"{entry.name} {task_id} was called {calls} times, and has {ends[0]}")

    def check_idle(self, stats: Stats) -> None:
        """Nothing is held when everything has ended."""
        if stats.running or stats.waiting or stats.overrunning:
            self.report(f"not idle: {stats}")
        for name, limiter in stats.limiters.items():
            if limiter.taken or limiter.waiting:
                self.report(f"{name} is held by nobody: {limiter}")
