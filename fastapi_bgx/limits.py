"""Limiters: permission to run, handed out first come, first served.

Everything here runs on the event loop's thread and never awaits: whoever waits leaves a callback.
Slots are taken one limiter after the other in one fixed order, so that no two tasks can wait for
each other.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from types import FunctionType
from typing import Any, Protocol

from fastapi_bgx.errors import LimitConflict, UnknownLimit
from fastapi_bgx.options import Limit, normal_name
from fastapi_bgx.reports import LimiterStats

FEW = 64


class Place(Protocol):
    """A place in the queue of one limiter."""

    waits: bool
    """False once it was granted or given up: what is left of it in the queue is skipped."""

    def grant(self) -> None:
        """The slot is taken for it."""
        ...


class Limiter:
    """A number of slots and a queue for them. `slots=None`: counts, never refuses."""

    __slots__ = ("_emptied", "_queue", "keyed", "name", "slots", "taken", "waiting")

    def __init__(
        self, name: str, slots: int | None, emptied: Callable[[], None] | None = None
    ) -> None:
        self.name: str = name
        self.slots: int = sys.maxsize if slots is None else slots
        self.taken: int = 0
        self.waiting: int = 0
        self._queue: deque[Place] = deque()
        self._emptied = emptied
        self.keyed: bool = emptied is not None

    @property
    def free(self) -> bool:
        """True when a slot is free and nobody waited for it earlier."""
        return self.taken < self.slots and not self.waiting

    def queue_up(self, place: Place) -> None:
        """Have `place` granted once, with the slot already taken for it."""
        place.waits = True
        self._queue.append(place)
        self.waiting += 1

    def leave(self, place: Place) -> None:
        """Give a place in the queue up. What is left of it is skipped when its turn comes."""
        if place.waits:
            place.waits = False
            self.waiting -= 1
            if len(self._queue) > 2 * self.waiting + FEW:  # its turn may never come
                self._queue = deque(each for each in self._queue if each.waits)
            self._forget_if_idle()

    def release(self) -> None:
        """Give a slot back: to the first in the queue, if there is one."""
        while self._queue:
            place = self._queue.popleft()
            if place.waits:
                place.waits = False
                self.waiting -= 1
                place.grant()
                return
        self.taken -= 1
        self._forget_if_idle()

    def stats(self) -> LimiterStats:
        """A snapshot."""
        slots = None if self.slots == sys.maxsize else self.slots
        return LimiterStats(slots=slots, taken=self.taken, waiting=self.waiting)

    def _forget_if_idle(self) -> None:
        if self._emptied is not None and not self.taken and not self.waiting:
            self._emptied()


class KeyedLimiter:
    """One `Limiter` for each key in use; idle keys are forgotten."""

    __slots__ = ("_by_key", "limit", "name", "slots")

    def __init__(self, limit: Limit, slots: int) -> None:
        self.limit: Limit = limit
        self.name: str = limit.name
        self.slots: int = slots
        self._by_key: dict[Hashable, Limiter] = {}

    def of(self, key: Hashable) -> Limiter:
        """The limiter of one key."""
        limiter = self._by_key.get(key)
        if limiter is None:
            limiter = Limiter(self.limit.name, self.slots, lambda: self._forget(key))
            self._by_key[key] = limiter
        return limiter

    def _forget(self, key: Hashable) -> None:
        self._by_key.pop(key, None)

    def key_of(self, arguments: dict[str, Any]) -> Hashable:
        """The key of a call."""
        assert self.limit.key is not None, "a KeyedLimiter is made of a Limit with a key"
        key = self.limit.key(**arguments)
        hash(key)  # in the route, where the mistake is
        return key

    def stats(self) -> LimiterStats:
        """A snapshot, added up over the keys in use; from any thread."""
        limiters = list(self._by_key.values())
        return LimiterStats(
            slots=self.slots,
            taken=sum(limiter.taken for limiter in limiters),
            waiting=sum(limiter.waiting for limiter in limiters),
        )


class Limits:
    """The named limiters of one runner.

    Names are compared as an environment variable can spell them, so that one can set any of them.
    """

    def __init__(self, configured: dict[str, int]) -> None:
        self._configured = {normal_name(name): slots for name, slots in configured.items()}
        self._by_name: dict[str, Limiter | KeyedLimiter] = {}
        self._defined: dict[str, Limit] = {}
        self._lock = threading.Lock()  # routes add tasks from many threads
        for name, slots in configured.items():
            self._by_name[normal_name(name)] = Limiter(name, slots)

    def named(self, limit: str | Limit) -> Limiter | KeyedLimiter:
        """The limiter behind an option.

        Raises:
            UnknownLimit: a name that neither the settings nor an earlier `Limit` defined.
            LimitConflict: a `Limit` that contradicts an earlier one of the same name.
        """
        if isinstance(limit, str):
            known = self._by_name.get(normal_name(limit))
            if known is None:
                raise UnknownLimit(limit, self.stats())
            return known
        first = self._defined.setdefault(normal_name(limit.name), limit)
        if first is not limit and (first.slots != limit.slots or not _same(first.key, limit.key)):
            raise LimitConflict(limit.name)
        with self._lock:
            return self._define(limit)

    def stats(self) -> dict[str, LimiterStats]:
        """A snapshot of each, by name."""
        return {limiter.name: limiter.stats() for limiter in list(self._by_name.values())}

    def _define(self, limit: Limit) -> Limiter | KeyedLimiter:
        name = normal_name(limit.name)
        slots = self._configured.get(name, limit.slots)
        current = self._by_name.get(name)
        if limit.key is not None:
            if not isinstance(current, KeyedLimiter):
                current = self._by_name[name] = KeyedLimiter(limit, slots)
        elif current is None:
            current = self._by_name[name] = Limiter(limit.name, slots)
        return current


def _same(one: object, other: object) -> bool:
    """True for one function, also when a route makes its lambda anew for each request.

    Not when the lambda uses variables of the route that differ: its results would, too.
    """
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        return _parts(one) == _parts(other)
    return one == other


def _parts(function: FunctionType) -> tuple[Any, ...]:
    return function.__code__, function.__closure__, function.__defaults__, function.__kwdefaults__


class Admission:
    """One task's way through its limiters: takes each slot in order, waiting where it has to.

    It is itself its place in their queues: a hundred thousand tasks may stand there.
    """

    __slots__ = ("_held", "_limiters", "_ready", "waits")

    def __init__(self, limiters: tuple[Limiter, ...], ready: Callable[[], None]) -> None:
        self._limiters = limiters
        self._held = 0
        self._ready = ready
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
        release_slots(self._limiters[: self._held])
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
    """Give one slot of each limiter back."""
    for limiter in limiters:
        if limiter.waiting or limiter.keyed:
            limiter.release()
        else:  # the same, without the call
            limiter.taken -= 1
