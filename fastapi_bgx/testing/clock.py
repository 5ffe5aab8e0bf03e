"""A clock that tests own: it stands still, until somebody advances it or nothing else can happen.

Time goes on in jumps, from one timer to the next. Before each jump, whatever can happen without it
has happened: a pulse on each event loop looks, about once in a millisecond, whether all is calm.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi_bgx.attempt import Watch
from fastapi_bgx.backends import Backend, current_backend, current_token
from fastapi_bgx.runner import Runner
from fastapi_bgx.runners import everyone
from fastapi_bgx.testing.reach import living_by
from fastapi_bgx.timers import Lane

BEAT_SECONDS = 0.001
MOST_BETWEEN_LOOKS = 0.005
CALM_BEATS = 2
"""So often in a row all must be calm: a callback may be on its way to its loop."""
SETTLE_SECONDS = 0.05
"""What a running function gets of real time, before the clock jumps to what would stop it."""
HANG_SECONDS = 10.0


class Alarm:
    """One callback that is due later; also the handle to cancel it."""

    def __init__(self, pulse: "Pulse", due: float, callback: Callable[[], Any]) -> None:
        self.pulse = pulse
        self.due = due
        self.callback = callback
        self.cancelled: bool = False
        lane = getattr(callback, "__self__", None)
        self._lane = lane if isinstance(lane, Lane) else None

    def cancel(self) -> None:
        """Do not call it."""
        self.cancelled = True

    def pending(self) -> bool:
        """False when it will never ring: cancelled, or its loop has ended."""
        return not self.cancelled and not self.pulse.backend.ended()

    def awaited(self) -> bool:
        """True when somebody waits for it now: a lane stays armed for those that were cancelled."""
        return self.pulse.running() and (self._lane is None or bool(self._lane.waiting))

    def ends_something(self) -> bool:
        """False when all that it does is to tell that a function is slow."""
        return self.awaited() and not (
            self._lane and all(isinstance(each, Watch) for each in list(self._lane.waiting))
        )


class Clock:
    """The time of every `Bgx`, for one test.

    `advance` (in an async test `advance_async`) lets time pass at once, and rings what becomes due
    on the way, in order. By itself the clock only goes on when the test could not advance it: an
    inline task waits (a delay, the pause before a retry) and so does its request, or a drain waits,
    and no function runs.
    """

    patience: float | None = None
    """Seconds of real silence after which the clock goes on to the next timer, whatever it is, also
    the timeout of a function that runs. `None`: it does not."""
    hang_after: float = HANG_SECONDS
    """Seconds of real silence, with a timer that nobody advances to, after which a test counts as
    hung: the clock goes on, and the test fails."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = self._tell
        self.hung: str = ""
        """What the test waited for, if it hung."""
        self._time = time.monotonic()  # near the real one: who changes clocks sees no leap
        self._to_wall = datetime.now(UTC) - timedelta(seconds=self._time)
        self._behind: float | None = None
        self._lock = threading.RLock()
        self._pulses: dict[object, Pulse] = {}
        self._alarms: list[Alarm] = []
        self._changes = 0
        self._target: float | None = None
        self._arrived: Callable[[], None] = nothing
        self._moved_at = 0.0
        self._flowing = 0

    # What `timers.Clock` asks for.

    def wall(self) -> datetime:
        """Date and time: the real ones of the beginning, and what has passed by this clock."""
        return self._to_wall + timedelta(seconds=self.now())

    def call_later(self, backend: Backend, delay: float, callback: Callable[[], Any]) -> Any:
        """Call `callback` on the loop of `backend`, once `delay` seconds have passed."""
        if self._behind is not None:
            return backend.call_later(delay, callback)
        with self._lock:
            alarm = Alarm(self._pulse(backend), self._time + delay, callback)
            self._alarms.append(alarm)
            self._changes += 1
        alarm.pulse.start()
        return alarm

    # What tests ask for.

    def advance(self, seconds: float) -> None:
        """Let time pass; from a sync test. What it causes has happened when it returns.

        A function that runs, and that no timer stops, is given a moment and then left running.

        Raises:
            RuntimeError: an event loop runs in this thread: `await advance_async(...)` instead; or
                it did not go on, because something blocks it.
        """
        if _in_loop():
            raise RuntimeError("an event loop runs here: await clock.advance_async(...) instead")
        arrived = threading.Event()
        pulses = self._set_out(seconds, arrived.set)
        try:
            while not arrived.wait(SETTLE_SECONDS):
                if not any(pulse.running() for pulse in pulses):
                    self._arrive()
                elif time.monotonic() - self._moved_at > self.hang_after:
                    raise RuntimeError(
                        f"an event loop did not go on for {self.hang_after:g} s: "
                        f"something blocks it, or never stops"
                    )
        finally:
            self._target = None

    async def advance_async(self, seconds: float) -> None:
        """The same, from an async test."""
        backend = current_backend()
        waiter = backend.waiter()
        self._set_out(seconds, lambda: backend.call_soon_threadsafe(waiter.set))
        try:
            await waiter.wait()
        finally:
            self._target = None

    @contextmanager
    def flowing(self) -> Generator[None]:
        """Let the clock go on by itself, for as long as no function runs."""
        self._flowing += 1
        try:
            yield
        finally:
            self._flowing -= 1

    def check(self) -> None:
        """Fail if the test hung.

        Raises:
            AssertionError: it did; what for is in the message.
        """
        __tracebackhide__ = True
        hung, self.hung = self.hung, ""
        if hung:
            raise AssertionError(hung)

    def release(self) -> None:
        """Go on with the time of the machine, for what still waits."""
        with self._lock:
            left, self._alarms = self._alarms, []
            self._behind = self._time - time.monotonic()
        for alarm in left:
            if not alarm.cancelled:
                alarm.pulse.hand_over(alarm.due - self.now(), alarm.callback)

    # Inside.

    def _tell(self) -> float:
        return self._time if self._behind is None else time.monotonic() + self._behind

    def _pulse(self, backend: Backend) -> "Pulse":
        pulse = self._pulses.get(backend.token)
        if pulse is None:
            pulse = self._pulses[backend.token] = Pulse(self, backend)
        return pulse

    def _set_out(self, seconds: float, arrived: Callable[[], None]) -> "list[Pulse]":
        """Begin to advance; the loops that will carry it out."""
        if seconds < 0:
            raise ValueError(f"time does not go back, got {seconds}")
        with self._lock:
            if self._target is not None:
                raise RuntimeError("the clock is being advanced already")
            pulses = [self._pulse(runner.backend) for runner in self.runners()]
            self._target, self._arrived = self._time + seconds, arrived
            self._changes += 1
            self._moved_at = time.monotonic()
            for pulse in pulses:
                pulse.calm, pulse.silence = 0, 0.0
        for pulse in pulses:
            pulse.backend.call_soon_threadsafe(pulse.start)
        if not pulses:
            self._arrive()
        return pulses

    def _arrive(self) -> None:
        if self._target is not None:  # pragma: no branch - else it has arrived just now
            self._time, self._target = self._target, None
            self._arrived()

    def runners(self) -> list[Runner]:
        """Those that live by this clock, on a loop that runs."""
        owned = [runners for runners in list(everyone) if runners.clock is self]
        found = [runner for runners in owned for runner in runners.each()]
        return [runner for runner in found if runs(runner.backend)]

    def wanted(self, pulse: "Pulse") -> bool:
        """True while a loop has to be looked at."""
        return self._target is not None or any(each.pulse is pulse for each in self._alarms)

    def consider(self) -> None:
        """Go on to the next timer, if it is time; called by a pulse, in its loop."""
        with self._lock:
            pulses = [each for each in self._pulses.values() if each.beating and each.running()]
            if any(pulse.calm < CALM_BEATS for pulse in pulses):
                return
            silence = min((pulse.silence for pulse in pulses), default=0.0)
            alarm = self._next()
            if alarm is not None and self._may_ring(alarm, silence):
                self._ring(alarm)
            elif self._target is not None and self._settled(silence):
                self._arrive()

    def _next(self) -> Alarm | None:
        self._alarms = [each for each in self._alarms if each.pending()]
        return min(
            (each for each in self._alarms if each.awaited()),
            key=lambda each: each.due,
            default=None,
        )

    def _may_ring(self, alarm: Alarm, silence: float) -> bool:
        if self._target is not None:
            return alarm.due <= self._target and self._settled(silence)
        if not self._busy() and (self._flowing or any(map(_waited_for, self.runners()))):
            return True
        if self.patience is not None and silence >= self.patience:
            return True
        if silence < (SETTLE_SECONDS if self.hung else self.hang_after):
            return False
        return self._hangs()

    def _hangs(self) -> bool:
        """Note what the test waits for; false when it is nothing that time could end."""
        dues = [each.due for each in self._alarms if each.ends_something()]
        if dues and not self.hung:
            self.hung = (
                f"nothing happened for {self.hang_after:g} s, while a timer was due in "
                f"{min(dues) - self._time:g} s by the clock of the test: call clock.advance(...), "
                f"or set clock.patience"
            )
        return bool(dues)

    def _settled(self, silence: float) -> bool:
        return silence >= SETTLE_SECONDS or not self._busy()

    def _busy(self) -> bool:
        """True while a function runs, of a task or a hook."""
        return any(
            runner.telling or any(isinstance(each, Watch) for each in list(runner.live.values()))
            for runner in self.runners()
        )

    def _ring(self, alarm: Alarm) -> None:
        self._alarms.remove(alarm)
        self._time = max(self._time, alarm.due)
        self._changes += 1
        self._moved_at = time.monotonic()
        for pulse in self._pulses.values():
            pulse.calm, pulse.silence = 0, 0.0
        alarm.pulse.backend.call_soon_threadsafe(alarm.callback)

    def state(self, backend: Backend) -> object:
        """Something that changes when anything happens on a loop."""
        live = [
            (id(task), id(entry), task.attempt)
            for runner in self.runners()
            if runner.backend.token is backend.token
            for task, entry in list(runner.live.items())
        ]
        return self._changes, live


class Pulse:
    """Looks again and again whether all is calm on one event loop."""

    def __init__(self, clock: Clock, backend: Backend) -> None:
        self.backend = backend
        self.beating: bool = False
        self.calm: int = 0
        """So many times in a row there was nothing to see."""
        self.silence: float = 0.0
        """Real seconds for which there was nothing to see."""
        self._clock = clock
        self._seen: object = None
        self._looked_at = 0.0

    def start(self) -> None:
        """Beat, for as long as that is wanted; on the thread of the loop."""
        if not self.beating:
            self.beating = True
            self.backend.call_later(BEAT_SECONDS, self._beat)

    def running(self) -> bool:
        """True while the loop runs."""
        return runs(self.backend)

    def hand_over(self, delay: float, callback: Callable[[], Any]) -> None:
        """Leave a callback to the loop itself; from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self.backend.call_soon_threadsafe(
                lambda: self.backend.call_later(max(0.0, delay), callback)
            )

    def _beat(self) -> None:
        self.backend.when_idle(self._look)

    def _look(self) -> None:
        self.beating = False
        before, self._looked_at = self._looked_at, time.monotonic()
        seen = self._clock.state(self.backend)
        if seen == self._seen:
            self.calm += 1
            # A late look tells that others were busy, or the whole machine: that is no silence.
            self.silence += min(self._looked_at - before, MOST_BETWEEN_LOOKS)
        else:
            self.calm, self._seen, self.silence = 0, seen, 0.0
        if self._clock.wanted(self):
            self.start()
            self._clock.consider()


@contextmanager
def owning_clock() -> Generator[Clock]:
    """Every `Bgx` of the process lives by the clock that this gives, inside of the block.

    Raises:
        AssertionError: at the end, if the block hung.
    """
    clock = Clock()
    with living_by(clock):
        try:
            yield clock
        finally:
            clock.release()
    clock.check()


def nothing() -> None:
    """Who waits for a clock that nobody advances."""


def _waited_for(runner: Runner) -> bool:
    """True when somebody waits for the runner who cannot advance the clock meanwhile."""
    if runner.refusing:
        return bool(runner.live)
    return any(
        not isinstance(entry, Watch) and not runner.outlives(task)
        for task, entry in list(runner.live.items())
    )


def runs(backend: Backend) -> bool:
    """True when the loop runs now; one of asyncio may pause between the tests of a module."""
    loop = backend.token
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.is_running()
    return not backend.ended()


def _in_loop() -> bool:
    try:
        current_token()
    except RuntimeError:
        return False
    return True
