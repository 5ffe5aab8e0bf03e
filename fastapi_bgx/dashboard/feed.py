"""What clients of the stream are told: one question for all of an event loop, an answer for each.

Once a second, whoever of the streams comes first asks the store for all of them. A stream holds one
number, the change up to which it has told: a client that is slow, or was away, costs nothing but a
question of its own when it comes back.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import anyio

from fastapi_bgx.console import Console
from fastapi_bgx.errors import StoreUnavailable
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Changes, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often, how much and how long. Times are in seconds."""

    every_s: float = 1.0
    """Between two questions to the store, and so between two pushes."""
    heartbeat_s: float = 15.0
    """After so long without anything to tell, a comment keeps the connection open."""
    life_s: float = 15 * 60.0
    """After so long a stream ends. The client connects again, and is let in again, or not."""
    retry_s: float = 3.0
    """After so long a client connects again."""
    most_records: int = 200
    """In one push; when more has changed, the client is told to load the list anew."""
    most_streams: int = 100
    """At once in this process."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What changed between two questions."""

    after: int
    """The change up to which was told before."""
    changes: Changes
    """What has changed since."""


class Feed:
    """What changes, for all streams of one event loop."""

    def __init__(self, console: Console, pace: Pace) -> None:
        self._console = console
        self._pace = pace
        self._lock = anyio.Lock()
        self._due = 0.0
        self._after: int | None = None
        self.streams = 0
        """How many listen."""
        self.tick: int = 0
        """How often the store was asked."""
        self.batch: Batch | None = None
        """Its last answer; `None` when there was none."""

    async def wait(self, tick: int) -> None:
        """Wait until the store was asked more often than that; ask it, if nobody does."""
        if self.tick > tick:
            return
        async with self._lock:
            await self._ask_after(tick)

    async def since(self, after: int) -> Changes | None:
        """What has changed after that; `None` when the store does not answer."""
        with suppress(StoreUnavailable):
            return await self._console.changes(after, self._pace.most_records)
        return None

    async def _ask_after(self, tick: int) -> None:
        if self.tick > tick:  # somebody else has asked meanwhile
            return
        await anyio.sleep_until(self._due)
        self.batch = await self._ask()
        self.tick += 1
        self._due = anyio.current_time() + self._pace.every_s

    async def _ask(self) -> Batch | None:
        try:
            changes = await self._console.changes(self._after, self._pace.most_records)
        except StoreUnavailable:
            return None
        after = changes.last if self._after is None else self._after
        self._after = changes.last
        return Batch(after, changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which changes a client wants to hear of."""

    after: int | None = None
    """Those after this one; from now on when it is `None`."""
    status: frozenset[Status] = frozenset()
    name: str | None = None

    def fits(self, record: Record) -> bool:
        """True when it wants to hear of this one."""
        return (not self.status or record.status in self.status) and (
            self.name is None or record.name == self.name
        )


@dataclass(slots=True)
class Teller:
    """Decides what one client is told of each answer of the store."""

    wanted: Wanted
    position: int | None = field(init=False)
    """The change up to which it was told; `None` as long as nobody knows where changes stand."""
    resumed: bool = field(init=False)
    """True when it knows all that happened before it came."""

    def __post_init__(self) -> None:
        self.position = self.wanted.after
        self.resumed = self.position is None

    def behind(self, batch: Batch) -> int | None:
        """From where it has to ask for itself; `None` when the answer for all is enough."""
        if self.position is None or (self.resumed and self.position >= batch.after):
            return None
        return self.position

    def tell(self, changes: Changes) -> bytes:
        """The next messages."""
        self.resumed = True
        if self.position is None:
            self.position = changes.last
            return _position(changes.last)
        if changes.missed:
            self.position = changes.last
            return _reset(changes.last)
        return b"".join(self._news(self.position, changes))

    def _news(self, before: int, changes: Changes) -> Iterator[bytes]:
        told = before
        for record in changes.records:
            if record.change > before and self.wanted.fits(record):
                told = record.change
                yield _task(record)
        self.position = max(before, changes.last)
        if self.position > told:  # the client need not hear of what it does not want once more
            yield _position(self.position)


def _task(record: Record) -> bytes:
    return f"id: {record.change}\nevent: task\ndata: {record.model_dump_json()}\n\n".encode()


def _reset(last: int) -> bytes:
    return f"id: {last}\nevent: reset\ndata: {{}}\n\n".encode()


def _position(last: int) -> bytes:
    """No event: the client keeps the number, and gives it back when it connects again."""
    return f"id: {last}\n\n".encode()
