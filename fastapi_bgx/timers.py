"""Timers that cost a dictionary entry: one timer of the event loop for each delay in use.

Tasks share few delays (one timeout, one `slow_after`), and with one delay the timers become due in
the order in which they started. Measured: 0.2 µs a timer, against 1.2 µs for `loop.call_later`.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, Protocol

from fastapi_bgx.backends import Backend, Handle


class Clock(Protocol):
    """What tells the time, and wakes those who wait for a moment: tests have one of their own."""

    @property
    def now(self) -> Callable[[], float]:
        """Gives seconds, of a clock that nobody sets; its zero means nothing."""
        ...

    def wall(self) -> datetime:
        """Date and time, with a time zone."""
        ...

    def call_later(self, backend: Backend, delay: float, callback: Callable[[], Any]) -> Handle:
        """Call `callback` on the thread of the loop of `backend`, after `delay` seconds."""
        ...


class SystemClock:
    """The clock of the machine."""

    @property
    def now(self) -> Callable[[], float]:
        """The function that gives the seconds: asked for once."""
        return time.monotonic

    def wall(self) -> datetime:
        """Date and time."""
        return datetime.now(UTC)

    def call_later(self, backend: Backend, delay: float, callback: Callable[[], Any]) -> Handle:
        """Have the event loop call."""
        return backend.call_later(delay, callback)


class Alarm(Protocol):
    """What can be due. Kept in a dictionary, so it is hashed by identity."""

    due: float
    """When, by the clock of the timers."""

    def ring(self) -> None:
        """It is due."""
        ...


class Timer:
    """One callback that is due later."""

    __slots__ = ("_callback", "_lane", "due")

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._lane: Lane | None = None
        self.due: float = 0.0

    def ring(self) -> None:
        """It is due."""
        self._callback()

    def cancel(self) -> None:
        """Do not call it. Harmless when it was called already."""
        assert self._lane is not None
        self._lane.cancel(self)

    def start(self, timers: "Timers", delay: float) -> "Timer":
        """Be due after `delay` seconds."""
        self._lane = timers.add(delay, self)
        return self


class Timers:
    """The timers of one event loop."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock
        self._now = clock.now
        self._lanes: dict[float, Lane] = {}

    def start(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` after `delay` seconds, unless cancelled."""
        return Timer(callback).start(self, delay)

    def add(self, delay: float, alarm: Alarm) -> "Lane":
        """Ring `alarm` after `delay` seconds, unless it is cancelled in the lane given back."""
        lane = self._lanes.get(delay)
        if lane is None:
            lane = self._lanes[delay] = Lane(self._backend, self._clock, delay, self._forget)
        alarm.due = self._now() + delay
        lane.waiting[alarm] = None
        if lane.armed is None:
            lane.arm()
        return lane

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Handle:
        """Call `callback` after `delay` seconds, by a timer of its own: for delays of all kinds."""
        return self._clock.call_later(self._backend, delay, callback)

    def _forget(self, delay: float) -> None:
        self._lanes.pop(delay, None)


class Lane:
    """All alarms of one delay, the first due first."""

    __slots__ = ("_backend", "_clock", "_delay", "_idle", "_now", "armed", "waiting")

    def __init__(
        self,
        backend: Backend,
        clock: Clock,
        delay: float,
        idle: Callable[[float], None],
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._now = clock.now
        self._delay = delay
        self._idle = idle
        self.armed: Handle | None = None
        """The timer of the event loop, while there is one."""
        self.waiting: dict[Alarm, None] = {}

    def arm(self) -> None:
        """Have the event loop call, for the first that is due."""
        self.armed = self._clock.call_later(self._backend, self._delay, self._ring)

    def cancel(self, alarm: Alarm) -> None:
        """Do not ring it. Harmless when it has rung already."""
        self.waiting.pop(alarm, None)

    def _ring(self) -> None:
        now = self._now()
        # In one pass: a dictionary whose first entries are gone is slow to find the first one left.
        for alarm in list(takewhile(lambda alarm: alarm.due <= now, self.waiting)):
            if alarm in self.waiting:  # an earlier one may have cancelled it
                del self.waiting[alarm]
                alarm.ring()
        if self.waiting:
            due = next(iter(self.waiting)).due
            self.armed = self._clock.call_later(self._backend, max(0.0, due - now), self._ring)
        else:
            self.armed = None
            self._idle(self._delay)
