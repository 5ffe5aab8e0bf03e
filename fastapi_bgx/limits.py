"""Limiters: permission to run, handed out in the order of `queues.py`.

A `Limiter` bounds what runs at once, a `RateGate` what starts in a time.

Everything here runs on the event loop's thread and never awaits: whoever waits leaves a callback.
Slots are taken one limiter after the other in one fixed order, so that no two tasks can wait for
each other.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import ClassVar

from fastapi_bgx.queues import Place, Queue, fitting, purged
from fastapi_bgx.rates import Rate, Starts
from fastapi_bgx.reports import LimiterStats
from fastapi_bgx.timers import Timers


class Limiter:
    """A number of slots and a queue for them. `slots=None`: counts, never refuses."""

    __slots__ = ("_emptied", "_queue", "keyed", "name", "slots", "taken", "waiting")

    gated: ClassVar[bool] = False
    """True for one that has to be told when a task starts."""

    def __init__(
        self, name: str, slots: int | None, emptied: Callable[[], None] | None = None
    ) -> None:
        self.name: str = name
        self.slots: int = sys.maxsize if slots is None else slots
        self.taken: int = 0
        self.waiting: int = 0
        self._queue: Queue = deque()
        self._emptied = emptied
        self.keyed: bool = emptied is not None
        """True when `release` is more than one less that is taken."""

    @property
    def free(self) -> bool:
        """True when a slot is free and nobody waited for it earlier."""
        return self.taken < self.slots and not self.waiting

    @property
    def idle(self) -> bool:
        """True when nobody holds a slot or waits for one."""
        return not self.taken and not self.waiting

    def queue_up(self, place: Place) -> None:
        """Have `place` granted once, with the slot already taken for it."""
        place.waits = True
        if place.priority or type(self._queue) is not deque:
            self._queue = fitting(self._queue, place, self.waiting)
        self._queue.append(place)
        self.waiting += 1

    def leave(self, place: Place) -> None:
        """Give a place in the queue up. What is left of it is skipped when its turn comes."""
        if place.waits:
            place.waits = False
            self.waiting -= 1
            self._queue = purged(self._queue, self.waiting)  # its turn may never come
            self._forget_if_idle()

    def release(self) -> None:
        """Give a slot back after the run: to the next in the queue, if there is one."""
        if self.taken <= self.slots:  # else there are fewer than there were
            while self.waiting:
                place = self._queue.popleft()
                if place.waits:
                    place.waits = False
                    self.waiting -= 1
                    place.grant()
                    return
        self.taken -= 1
        self._forget_if_idle()

    def give_back(self) -> None:
        """Give a slot back that was not used: the task did not start."""
        self.release()

    def started(self, now: float) -> None:
        """A task that holds a slot starts; called where `gated`. `now`: seconds of the clock."""

    def resize(self, slots: int) -> None:
        """Change the number of slots. What runs goes on, and those who wait get what is new."""
        self.slots = slots
        while self.waiting and self.taken < slots:
            self.taken += 1
            self.release()

    def stats(self) -> LimiterStats:
        """A snapshot."""
        slots = None if self.slots == sys.maxsize else self.slots
        return LimiterStats(slots=slots, taken=self.taken, waiting=self.waiting)

    def _forget_if_idle(self) -> None:
        if self._emptied is not None and self.idle:
            self._emptied()


class RateGate(Limiter):
    """So many starts in so long a time, and a queue for them.

    Its slot is taken before the start and stays so until the start has left the window. So what is
    granted and has not started yet counts, too, and in no window do more tasks start.
    """

    __slots__ = ("_looks", "_starts", "_timers", "rate")

    gated: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        rate: Rate,
        timers: Timers,
        emptied: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(name, rate.starts, emptied)
        self.keyed = True
        self.rate: Rate = rate
        self._timers = timers
        self._starts = Starts(rate)
        self._looks = False
        """True while a timer is set for the first start that leaves the window."""

    def started(self, now: float) -> None:
        """Its slot is free again when the start has left the window."""
        self._starts.record(now)
        if not self._looks:
            self._look_after(self.rate.seconds)

    def release(self) -> None:
        """That a task has ended gives nothing back."""

    def give_back(self) -> None:
        """The task does not start: its slot is free at once."""
        super().release()

    def _look_after(self, seconds: float) -> None:
        self._looks = True
        self._timers.start(seconds, self._look)

    def _look(self) -> None:
        """Hand on the slots of the starts that have left the window."""
        now = self._timers.now()
        for _ in range(self._starts.forget(now)):
            super().release()
        wait = self._starts.wait(now)
        if wait is None:
            self._looks = False
        else:
            self._look_after(wait)


class Admission:
    """One task's way through its limiters: takes each slot in order, waiting where it has to.

    It is itself its place in their queues: a hundred thousand tasks may stand there.
    """

    __slots__ = ("_held", "_limiters", "_ready", "priority", "waits")

    def __init__(
        self, limiters: tuple[Limiter, ...], ready: Callable[[], None], priority: int = 0
    ) -> None:
        self._limiters = limiters
        self._held = 0
        self._ready = ready
        self.priority: int = priority
        self.waits: bool = False

    def start(self) -> None:
        """Take what is free; `ready` is called when all slots are held, perhaps at once."""
        while self._held < len(self._limiters):
            limiter = self._limiters[self._held]
            if not limiter.free:
                limiter.queue_up(self)
                return
            limiter.taken += 1
            self._held += 1
        self.admitted()

    def admitted(self) -> None:
        """All slots are held."""
        ready, self._ready = self._ready, nothing  # whose it is leads back here: a cycle
        ready()

    def abandon(self) -> None:
        """Stop waiting and give back what is held."""
        self._ready = nothing
        if self.waits:
            self._limiters[self._held].leave(self)
        give_back_slots(self._limiters[: self._held])
        self._held = 0

    def grant(self) -> None:
        """The next slot is held: go on."""
        self._held += 1
        self.start()


def nothing() -> None:
    """What an admission calls that is over."""


def take_slots(limiters: tuple[Limiter, ...]) -> bool:
    """Take one slot of each limiter at once, or none of them."""
    for limiter in limiters:
        if limiter.taken >= limiter.slots or limiter.waiting:
            return False
    for limiter in limiters:
        limiter.taken += 1
    return True


def release_slots(limiters: Iterable[Limiter]) -> None:
    """Give one slot of each limiter back, after the run."""
    for limiter in limiters:
        if limiter.waiting or limiter.keyed:
            limiter.release()
        else:  # the same, without the call
            limiter.taken -= 1


def give_back_slots(limiters: Iterable[Limiter]) -> None:
    """Give one slot of each limiter back, which was not used: the task did not start."""
    for limiter in limiters:
        limiter.give_back()


def note_start(limiters: Iterable[Limiter], now: float) -> None:
    """A task that holds its slots starts: tell the rates among its limiters."""
    for limiter in limiters:
        if limiter.gated:
            limiter.started(now)
