"""A clock that stands still until a test moves it on: hours of waiting in no time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio

from fastapi_bgx import Bgx, Settings
from fastapi_bgx.backends import Backend
from fastapi_bgx.timers import SystemClock


class Due:
    """A callback and its time, in the list of those that wait."""

    def __init__(self, at: float, callback: Callable[[], Any], among: "list[Due]") -> None:
        self.at = at
        self.callback = callback
        self._among = among
        among.append(self)

    def cancel(self) -> None:
        """Also harmless when it was called already."""
        if self in self._among:
            self._among.remove(self)


class StandingClock(SystemClock):
    """Everything timed by it waits for `advance`."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.due: list[Due] = []

    @property
    def now(self) -> Callable[[], float]:
        return lambda: self.time

    def wall(self) -> datetime:
        """In step with the seconds."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time)

    def call_later(self, backend: Backend, delay: float, callback: Callable[[], Any]) -> Due:
        return Due(self.time + max(0.0, delay), callback, self.due)

    @property
    def waits(self) -> list[float]:
        """Seconds until each callback that is still wanted, the first one first."""
        return sorted(due.at - self.time for due in self.due)

    def advance(self, seconds: float) -> None:
        """Let time pass, calling back what becomes due on the way; on the loop's thread."""
        end = self.time + seconds
        while ready := [due for due in self.due if due.at <= end]:
            first = min(ready, key=lambda due: due.at)
            self.due.remove(first)
            self.time = max(self.time, first.at)
            first.callback()
        self.time = end


@asynccontextmanager
async def standing(**settings: Any) -> AsyncIterator[tuple[Bgx, StandingClock]]:
    """A `Bgx` whose lifespan is active, and the clock that it goes by."""
    bgx, clock = Bgx(Settings(**{"slow_after": None, **settings})), StandingClock()
    bgx.runners.clock = clock
    bgx.start()
    try:
        yield bgx, clock
    finally:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                group.start_soon(bgx.drain, 0.0)
                await anyio.sleep(0.001)
                clock.advance(60)
