"""The recorder: a listener that has a record of each task kept in a store.

On the path of a task it only notes that the task has changed, and the few things that cannot be
read from it later (`trail`). A thread of its own makes records of the tasks that have changed
(`building`), and another one writes them (`writer`), so that neither a slow store nor one that
hangs keeps a task, its value or its error in memory.
"""

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Protocol

from fastapi_bgx.events import Event, TaskEvent, TaskJoined
from fastapi_bgx.listeners.recorder.buffer import Buffer, seconds_left
from fastapi_bgx.listeners.recorder.building import Builder
from fastapi_bgx.listeners.recorder.moments import Moments
from fastapi_bgx.listeners.recorder.passes import Passes
from fastapi_bgx.listeners.recorder.readings import reading_of
from fastapi_bgx.listeners.recorder.redaction import Redaction
from fastapi_bgx.listeners.recorder.rejections import Rejections
from fastapi_bgx.listeners.recorder.trail import NOTES, NOTES_WITH_ARGUMENTS
from fastapi_bgx.listeners.recorder.writer import OnCommands, Retention, Writer
from fastapi_bgx.notices import notice
from fastapi_bgx.records import FullRecord, ProcessReading
from fastapi_bgx.reports import Stats
from fastapi_bgx.stores import MemoryStore, Store
from fastapi_bgx.task import Task
from fastapi_bgx.timers import Clock

WINDOW_SECONDS = 0.1
"""What happens to a task within such a time is written once."""
MOST_CHANGED = 20_000
"""Tasks that may wait to be described. Far more than a moment brings: see `_let_some_go`."""
PIECE = 8
"""Records that are made without a pause."""
PAUSE_SECONDS = 0.0002
"""Without pauses, this thread would keep Python from the event loop for 5 ms at a time."""
MOST_BATCH = 500
ROOM_SECONDS = 1.0
EXIT_SECONDS = 2.0
MOST_IN_MEMORY, MOST_IN_DATABASE = 10_000, 100_000


class HasStats(Protocol):
    """One event loop that runs tasks."""

    def stats(self) -> Stats:
        """A snapshot; from any thread."""
        ...


class Place(Protocol):
    """What has to be known of the runners of a `Bgx`."""

    clock: Clock

    @property
    def process(self) -> str:
        """The id of this process."""
        ...

    def live(self) -> Iterable[Task[Any]]:
        """Every task that has not ended; some twice. From any thread."""
        ...

    def number_of(self, task_id: str) -> int | None:
        """The number of the task that has this id, if this process has given it."""
        ...

    def each(self) -> Iterable[HasStats]:
        """The event loops that have not ended."""
        ...


class Recorder:
    """Has the records of the tasks of one `Bgx` kept. Whatever happens here, no task notices."""

    def __init__(
        self,
        place: Place,
        store: Store,
        redaction: Redaction,
        *,
        most: int | None,
        max_age: float,
        arguments: bool,
    ) -> None:
        self.store: Store = store
        """Where the records are kept."""
        default = MOST_IN_MEMORY if isinstance(store, MemoryStore) else MOST_IN_DATABASE
        self._place = place
        self._retention = Retention(most=default if most is None else most, max_age=max_age)
        self._moments = Moments(place)
        self._builder = Builder(self._moments, redaction, arguments=arguments)
        self._notes = NOTES_WITH_ARGUMENTS if arguments else NOTES
        self.rejections: Rejections = Rejections(
            lambda: self._place.clock.now(), self._moments, self._crowded
        )
        """A listener, too: what is refused is no task."""
        self._on_commands: OnCommands | None = None
        self._begin()
        _recorders.add(self)

    def _begin(self) -> None:
        """Start with nothing; also in a process that was forked: its threads are not there."""
        self._changed: dict[int, Task[Any]] = {}
        # By their ids: what is in `_changed` no more, and in the buffer not yet.
        self._in_hand: dict[str, Task[Any] | FullRecord] = {}
        self._room = 0  # of `_changed`; 0 while nobody looks, so that one comparison tells both
        self._lost = 0
        self._missed_some = False
        self._lock = threading.Lock()
        self.rejections.begin()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._passes = Passes()
        self._buffer = Buffer()
        self._started_at: datetime | None = None
        self._writer = Writer(
            self.store,
            self._buffer,
            self._retention,
            lambda: self.process,
            self._reading,
            self._wall,
            lambda: self.lost,
        )
        self._writer.on_commands = self._on_commands
        self._writer.on_back = self.mark_all_live

    def __repr__(self) -> str:
        """Its name in the message when it fails."""
        return "recorder"

    # What others ask.

    @property
    def process(self) -> str:
        """The id of this process in the records."""
        return self._place.process

    @property
    def lost(self) -> int:
        """Records of tasks that could not be kept, since the start of this process."""
        return self._lost + self.rejections.lost + self._buffer.lost

    @property
    def is_held(self) -> Callable[[str], bool]:
        """True for the id of a task that could be run again: what `Record.retryable` says."""
        return self._builder.is_held

    @is_held.setter
    def is_held(self, is_held: Callable[[str], bool]) -> None:
        self._builder.is_held = is_held

    @property
    def on_commands(self) -> OnCommands | None:
        """Called, in a thread, with what other processes ask of this one; they await answers."""
        return self._on_commands

    @on_commands.setter
    def on_commands(self, on_commands: OnCommands | None) -> None:
        self._on_commands = self._writer.on_commands = on_commands

    def record_of(self, task: Task[Any]) -> FullRecord:
        """The record of a task as it is now; from any thread.

        It looks at values and errors, and asks the hooks of `@bgx.redact`: that may take time.
        """
        return self._builder.build(task)

    def unwritten(self, task_id: str) -> FullRecord | None:
        """The record of a task of this process as long as the store may not have it.

        From any thread; as `record_of` does, it may take time.
        """
        # In the order of its way to the store, or it could be missed where it has just left.
        number = self._place.number_of(task_id)
        task = None if number is None else self._changed.get(number)
        found = task or self._in_hand.get(task_id)
        if isinstance(found, Task):
            return self.record_of(found)
        return found or self._buffer.get(task_id)

    def mark(self, task: Task[Any]) -> None:
        """Have the record of a task written again."""
        self._changed[task.number] = task
        if len(self._changed) > self._room:
            self._crowded()

    def mark_all_live(self) -> None:
        """Have every task written again that has not ended."""
        for task in self._place.live():
            self.mark(task)

    def start(self) -> None:
        """Have the threads run, so that this process is heard of before its first task."""
        self._start_threads()

    def wait_until_heard_of(self, timeout: float) -> bool:
        """Wait until other processes can know of this one; blocks. False: not within `timeout`."""
        return not self.store.shared or self._writer.heard_of.wait(timeout)

    def flush(self, timeout: float) -> bool:
        """Have what has happened up to now in the store; blocks, for so many seconds at most.

        False when it is not: at once when the store is known not to answer.
        """
        return self._flush(timeout, unless=lambda: self._writer.outage.on)

    def _flush(self, timeout: float, unless: Callable[[], bool]) -> bool:
        until = time.monotonic() + timeout
        waits = self._changed or self.rejections or self._passes.under_way
        if waits and not self._passes.wait_for_next(timeout, self._hurry):
            return False
        return self._buffer.wait_until_written(seconds_left(until), unless)

    def leave(self, timeout: float = EXIT_SECONDS) -> bool:
        """Flush, tell the store that this process leaves, and end the threads; blocks.

        False when the store does not answer in time. The next event starts everything anew.
        """
        until = time.monotonic() + timeout
        self._writer.hurry()
        flushed = self._flush(timeout, unless=lambda: False)  # it may be back by now
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
            self._wake.set()
        left = self._writer.stop(seconds_left(until))
        if thread is not None:
            thread.join(seconds_left(until))
        self._room = 0
        if not flushed:
            self._writer.outage.end(self.lost + len(self._buffer) + len(self._changed))
        if self._changed or self.rejections:  # by what has happened meanwhile
            self._crowded()
        return flushed and left

    # The listener. It is asked for each event: see `__call__` for what that costs.

    def hears(self, event: type[Event]) -> bool:
        """True for what changes a task."""
        return issubclass(event, TaskEvent) and event is not TaskJoined

    def changed(self) -> bool:
        """False: it always hears the same."""
        return False

    def __call__(self, event: Event) -> None:
        """Note that a task has changed."""
        told: Any = event  # of a task: no other event is heard
        task: Task[Any] = told.task
        note = self._notes.get(type(event))
        if note is not None:
            note(event, task.runner.clock())
        changed = self._changed
        changed[task.number] = task
        if len(changed) > self._room:
            self._crowded()

    def _crowded(self) -> None:
        if not self._room:
            self._room = MOST_CHANGED
            self._start_threads()
            self._wake.set()
        if len(self._changed) > MOST_CHANGED:
            self._let_some_go()

    def _start_threads(self) -> None:
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._stop = threading.Event()
            thread = threading.Thread(
                target=self._run, args=(self._stop,), name="bgx-recorder", daemon=True
            )
            try:
                thread.start()
                self._writer.start()
            except RuntimeError:  # the system has no more threads, or the interpreter ends
                return
            self._thread = thread

    def _let_some_go(self) -> None:
        """Tasks end faster than they can be described: the oldest are not.

        Those that have not ended are described when they change again, or when there is time.
        """
        with self._lock:
            for number in list(self._changed)[: MOST_CHANGED // 10]:
                task = self._changed.pop(number, None)
                if task is not None and task.ended_at is not None:
                    self._lost += 1
                    if task.trail is not None:
                        task.trail.call = None  # nobody describes its arguments any more
                else:
                    self._missed_some = True
        self._start_threads()  # where there was no thread to be had

    # The thread that describes.

    def _run(self, stop: threading.Event) -> None:
        while True:
            self._wake.wait()
            if stop.is_set():
                return
            self._wake.clear()
            self._passes.wait_for_hurry(WINDOW_SECONDS)
            self._pass()

    def _pass(self) -> None:
        """Describe what has changed. Whatever changes from now on is for the next pass."""
        self._passes.begin()
        self._room = 0  # before the look: who comes after it wakes us again
        self._moments.look()
        self._buffer.put(self.rejections.take(self.process))
        numbers = list(self._changed)  # a copy that no other thread can disturb
        for start in range(0, len(numbers), MOST_BATCH):
            self._describe(numbers[start : start + MOST_BATCH])
        self._writer.outage.look(self.lost)
        self._passes.end()
        if self._missed_some or self._buffer.let_go_unfinished:
            self._catch_up()

    def _describe(self, numbers: list[int]) -> None:
        records: list[FullRecord] = []
        for index, number in enumerate(numbers):
            if index % PIECE == PIECE - 1:
                time.sleep(PAUSE_SECONDS)
            task = self._changed.get(number)
            if task is not None:
                self._in_hand[task.id] = task
                self._changed.pop(number, None)
                records += self._described(task)
        if not self._writer.outage.on:  # the tasks are to be let go, whatever the store does
            self._buffer.wait_for_room(ROOM_SECONDS)
        self._buffer.put(records)
        self._in_hand.clear()

    def _described(self, task: Task[Any]) -> list[FullRecord]:
        try:
            record = self._in_hand[task.id] = self._builder.build(task)
            return [record]
        except Exception:
            self._in_hand.pop(task.id, None)
            self._lost += 1
            notice("exception", "bgx.record_failed", task=task.name, task_id=task.id)
            return []

    def _catch_up(self) -> None:
        """Some tasks that go on were passed over: look at all of them, once there is time."""
        if not self._changed and not self._writer.outage.on:
            self._missed_some = self._buffer.let_go_unfinished = False
            self.mark_all_live()

    def _hurry(self) -> None:
        self._start_threads()
        self._wake.set()

    # What the writer asks.

    def _wall(self) -> datetime:
        return self._place.clock.wall()

    def _reading(self) -> ProcessReading:
        now = self._wall()
        if self._started_at is None:
            self._started_at = now
        loops = [loop.stats() for loop in self._place.each()]
        return reading_of(self.process, self._started_at, now, self.lost, loops)

    def forked(self) -> None:
        """In the child of a fork: what waits is the parent's, and its threads are not here."""
        self._begin()


_recorders: "weakref.WeakSet[Recorder]" = weakref.WeakSet()


def _begin_anew() -> None:
    for recorder in list(_recorders):
        recorder.forked()


@atexit.register
def _leave_all() -> None:
    """At the end of the interpreter, where daemon threads still run; for all of them together."""
    until = time.monotonic() + EXIT_SECONDS
    for recorder in list(_recorders):
        recorder.leave(seconds_left(until))


if sys.platform != "win32":  # pragma: no branch - it knows no fork
    os.register_at_fork(after_in_child=_begin_anew)

__all__ = ["Recorder", "Redaction"]
