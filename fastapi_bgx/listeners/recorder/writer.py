"""The thread that asks the store: it writes what is in the buffer, and keeps house.

The store may be slow, raise, or hang for ever: nobody but this thread waits for it. What it cannot
take is tried again, less and less often; the buffer bounds what waits.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi_bgx.errors import StoreUnavailable
from fastapi_bgx.listeners.recorder.buffer import Buffer
from fastapi_bgx.listeners.recorder.outage import Outage
from fastapi_bgx.listeners.recorder.watch import Watch
from fastapi_bgx.notices import notice
from fastapi_bgx.records import Command, ProcessReading
from fastapi_bgx.stores import Store

MOST_BATCH = 500
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 15.0  # shorter than others take a silent process for dead
BEAT_SECONDS = 2.0
COMMANDS_SECONDS = 0.5
BURY_SECONDS = 10.0
PRUNE_SECONDS = 60.0

OnCommands = Callable[[tuple[Command, ...]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which records of ended tasks are kept."""

    most: int
    max_age: float
    """Seconds."""


@dataclass(slots=True)
class Chore:
    """Something that is done again and again."""

    every: float
    do: Callable[[], object]
    next_at: float = 0.0


class Writer:
    """Writes to one store, in a thread that is started when there is something to write."""

    def __init__(
        self,
        store: Store,
        buffer: Buffer,
        retention: Retention,
        process: Callable[[], str],
        reading: Callable[[], ProcessReading],
        wall: Callable[[], datetime],
        lost: Callable[[], int],
    ) -> None:
        self._store = store
        self._buffer = buffer
        self._retention = retention
        self._process = process
        self._reading = reading
        self._wall = wall
        self._lost = lost
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._opened = False
        self._size = MOST_BATCH
        self._backoff = FIRST_BACKOFF
        self._retry_at = 0.0
        self._ended_since_prune = 0
        self._watch = Watch()
        self._beating = Chore(BEAT_SECONDS, self._beat)
        self._chores = self._all_chores()
        self.outage: Outage = Outage()
        self.heard_of: threading.Event = threading.Event()
        """Set once the store knows of this process."""
        self.on_commands: OnCommands | None = None
        """Called with what other processes ask of this one, in this thread."""
        self.on_back: Callable[[], object] | None = None
        """Called when the store answers again."""

    def _all_chores(self) -> list[Chore]:
        self._prune = Chore(PRUNE_SECONDS, self._prune_now, time.monotonic() + PRUNE_SECONDS)
        chores = [self._beating, self._prune]
        if self._store.shared:
            chores.append(Chore(BURY_SECONDS, self._bury))
            chores.append(Chore(COMMANDS_SECONDS, self._look_for_commands))
        return chores

    def start(self) -> None:
        """Have the thread run, if it does not."""
        with self._start_lock:
            if self._thread is None or not self._thread.is_alive() or self._stop.is_set():
                self._stop = threading.Event()
                self.heard_of.clear()
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="bgx-writer", daemon=True
                )
                self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Tell the store that this process leaves, and end; false when that takes longer."""
        with self._start_lock:
            thread, stop = self._thread, self._stop
        if thread is None:
            return True
        stop.set()
        self._buffer.wake()
        thread.join(timeout)
        return not thread.is_alive()

    def hurry(self) -> None:
        """Try again now, however short ago it failed."""
        self._retry_at = 0.0
        self._buffer.wake()

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._wait()
            if not stop.is_set() and time.monotonic() >= self._retry_at:
                self._try()
        self._leave()

    def _wait(self) -> None:
        next_at = min(chore.next_at for chore in self._chores)
        now = time.monotonic()
        if now < self._retry_at:
            self._buffer.wait_for_change(self._retry_at - now)
        else:
            self._buffer.wait_for_some(next_at - now)

    def _try(self) -> None:
        self.outage.asking()
        try:
            self._open()
            self._do_chores([self._beating])  # first: nobody takes our tasks for those of the dead
            self._write()
            self._do_chores(self._chores)
        except Exception as error:
            self._failed(error)
        else:
            self._succeeded()

    def _open(self) -> None:
        if not self._opened:
            self._store.open()
            self._opened = True

    def _write(self) -> None:
        batch = self._buffer.take(self._size)
        if not batch:
            return
        try:
            self._store.write([record for _, record in batch])
        except StoreUnavailable:
            raise
        except Exception:
            self._write_less(len(batch))
            if len(batch) == 1 and self._backoff >= LAST_BACKOFF:
                self._buffer.give_up(batch)  # it may be this record that the store cannot take
            raise
        self._buffer.written(batch)
        self._size = min(MOST_BATCH, self._size * 2)
        self._ended_since_prune += sum(record.final for _, record in batch)
        if self._ended_since_prune >= max(MOST_BATCH, self._retention.most // 10):
            self._prune.next_at = 0.0

    def _write_less(self, tried: int) -> None:
        """One record may be to blame: with half as many each time, that one is found."""
        self._size = max(1, tried // 2)
        if tried > 1:
            self._backoff = FIRST_BACKOFF

    def _do_chores(self, chores: list[Chore]) -> None:
        for chore in chores:
            now = time.monotonic()
            if now >= chore.next_at:
                self.outage.asking()
                chore.do()
                chore.next_at = now + chore.every

    def _failed(self, error: Exception) -> None:
        self.outage.failed(error, self._lost())
        self._watch.begin_anew()
        self._retry_at = time.monotonic() + self._backoff
        self._backoff = min(LAST_BACKOFF, self._backoff * 2)
        self._buffer.not_written()  # who waits for it need not wait any longer

    def _succeeded(self) -> None:
        self._backoff = FIRST_BACKOFF
        if self.outage.answered(self._lost()) and self.on_back is not None:
            self.on_back()

    def _leave(self) -> None:
        if not self._opened:
            return
        self.outage.asking()
        try:
            self._store.leave(self._process())
            self._store.close()
        except Exception as error:
            self.outage.failed(error, self._lost())
        else:
            self.outage.answered(self._lost())

    # Keeping house.

    def _beat(self) -> None:
        self._store.beat(self._reading())
        self.heard_of.set()

    def _prune_now(self) -> None:
        self._ended_since_prune = 0
        before = self._wall() - timedelta(seconds=self._retention.max_age)
        self._store.prune(before, self._retention.most)

    def _bury(self) -> None:
        processes = self._store.processes()
        self._store.bury(self._watch.gone_before(processes, time.monotonic(), self._wall()))

    def _look_for_commands(self) -> None:
        if self.on_commands is None:
            return
        commands = self._store.asked_of(self._process())
        if commands:
            try:
                self.on_commands(commands)
            except StoreUnavailable:
                raise
            except Exception:
                notice("exception", "bgx.command_failed", effect="it is not answered")
