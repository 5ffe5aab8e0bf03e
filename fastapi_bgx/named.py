"""Named limits: what the option `limit` means, and what each name, or key of a name, consists of.

Routes ask for a name on whatever thread. Everything else happens on the event loop's thread.
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import chain
from types import FunctionType, MappingProxyType
from typing import Any

from fastapi_bgx.errors import LimitConflict, UnknownLimit
from fastapi_bgx.limits import Limiter, RateGate, nothing
from fastapi_bgx.options import Limit, normal_name
from fastapi_bgx.rates import Rate, parse_rate
from fastapi_bgx.reports import LimiterStats
from fastapi_bgx.timers import Timers


class NamedLimiter:
    """What a task needs that names a limit: its slots, its rate, or both."""

    __slots__ = ("limiters", "name", "rate", "slots")

    def __init__(
        self, name: str, slots: int | None, rate: Rate | None = None, timers: Timers | None = None
    ) -> None:
        self.name: str = name
        self.slots: int | None = slots
        self.rate: Rate | None = rate
        self.limiters: tuple[Limiter, ...] = _limiters(name, slots, rate, timers)

    def complete(self, slots: int | None, rate: Rate | None, timers: Timers | None) -> None:
        """Add what is new. What is there stays, with those who hold it and wait for it."""
        known = {limiter.gated: limiter for limiter in self.limiters}
        made = _limiters(self.name, slots, rate, timers)
        self.limiters = tuple(known.get(limiter.gated, limiter) for limiter in made)
        self.slots, self.rate = slots, rate

    def resize(self, slots: int) -> None:
        """Change the number of slots."""
        self.slots = slots
        _resize(self.limiters, slots)

    def stats(self) -> LimiterStats:
        """A snapshot."""
        return _stats(self.slots, self.rate, self.limiters)


class KeyedLimiter:
    """The same, for each key in use; idle keys are forgotten."""

    __slots__ = ("_by_key", "_timers", "limit", "name", "rate", "slots")

    def __init__(
        self,
        limit: Limit,
        slots: int | None,
        rate: Rate | None = None,
        timers: Timers | None = None,
    ) -> None:
        self.limit: Limit = limit
        self.name: str = limit.name
        self.slots: int | None = slots
        self.rate: Rate | None = rate
        self._timers = timers
        self._by_key: dict[Hashable, tuple[Limiter, ...]] = {}

    def of(self, key: Hashable) -> tuple[Limiter, ...]:
        """The limiters of one key."""
        limiters = self._by_key.get(key)
        if limiters is None:
            limiters = self._by_key[key] = _limiters(
                self.name, self.slots, self.rate, self._timers, lambda: self._forget(key)
            )
        return limiters

    def _forget(self, key: Hashable) -> None:
        if all(limiter.idle for limiter in self._by_key.get(key, ())):
            self._by_key.pop(key, None)

    def key_of(self, arguments: dict[str, Any]) -> Hashable:
        """The key of a call."""
        assert self.limit.key is not None, "a KeyedLimiter is made of a Limit with a key"
        key = self.limit.key(**arguments)
        hash(key)  # in the route, where the mistake is
        return key

    def resize(self, slots: int) -> None:
        """Change the number of slots of each key."""
        self.slots = slots
        for limiters in list(self._by_key.values()):
            _resize(limiters, slots)

    def stats(self) -> LimiterStats:
        """A snapshot, added up over the keys in use; from any thread."""
        limiters = chain.from_iterable(list(self._by_key.values()))
        return _stats(self.slots, self.rate, tuple(limiters))


def _limiters(
    name: str,
    slots: int | None,
    rate: Rate | None,
    timers: Timers | None,
    emptied: Callable[[], None] | None = None,
) -> tuple[Limiter, ...]:
    """The limiters of one limit; without timers none for its rate, since nothing will run.

    Slots come first. All who need them need the rate, too, so nobody else is held up when they are
    taken by those who wait for it. And of the permissions of the rate, which may be many, only
    those that can be used soon are taken: who is urgent finds the others.
    """
    named = () if slots is None else (Limiter(name, slots, emptied),)
    if rate is None or timers is None:
        return named
    return (*named, RateGate(name, rate, timers, emptied))


def _resize(limiters: tuple[Limiter, ...], slots: int) -> None:
    for limiter in limiters:
        if not limiter.gated:
            limiter.resize(slots)


def _stats(slots: int | None, rate: Rate | None, limiters: Iterable[Limiter]) -> LimiterStats:
    """One snapshot of limiters that belong together."""
    taken = waiting = spent = 0
    for limiter in limiters:
        waiting += limiter.waiting
        if not limiter.gated:
            taken += limiter.taken
        else:
            spent += limiter.taken
            taken -= limiter.waiting if slots else 0  # they wait, though they hold slots
    text = None if rate is None else rate.text
    return LimiterStats(slots=slots, taken=max(0, taken), waiting=waiting, rate=text, spent=spent)


class Limits:
    """The named limits of one runner.

    Names are compared as an environment variable can spell them, so that one can set any of them.
    """

    def __init__(
        self,
        slots: Mapping[str, int],
        rates: Mapping[str, str] = MappingProxyType({}),
        timers: Timers | None = None,
    ) -> None:
        self._slots = {normal_name(name): number for name, number in slots.items()}
        self._rates = {normal_name(name): parse_rate(rate) for name, rate in rates.items()}
        self._timers = timers
        self._by_name: dict[str, NamedLimiter | KeyedLimiter] = {}
        self._defined: dict[str, Limit] = {}
        self._lock = threading.Lock()  # routes add tasks from many threads
        self.redefined: Callable[[], None] = nothing
        """Called when a name of the settings means more than before: a `Limit` added to it."""
        for name in (*slots, *rates):
            self._add(name, None, None)

    def named(self, limit: str | Limit) -> NamedLimiter | KeyedLimiter:
        """What is behind an option.

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
        if first is not limit and not _agree(first, limit):
            raise LimitConflict(limit.name)
        with self._lock:
            return self._define(limit)

    def resize(self, name: str, slots: int) -> None:
        """Change the slots of a limit while it is in use; on the loop's thread.

        Raises:
            UnknownLimit: nothing defined it.
        """
        known = self.named(name)
        if known.slots is None:
            raise ValueError(f"limit {name!r} has a rate and no slots")
        self._slots[normal_name(name)] = slots
        known.resize(slots)

    def stats(self) -> dict[str, LimiterStats]:
        """A snapshot of each, by name."""
        return {limiter.name: limiter.stats() for limiter in list(self._by_name.values())}

    def _define(self, limit: Limit) -> NamedLimiter | KeyedLimiter:
        name = normal_name(limit.name)
        current = self._by_name.get(name)
        if limit.key is None:
            return self._add(limit.name, limit.slots, _rate_of(limit))
        if not isinstance(current, KeyedLimiter):
            values = self._values(name, limit.slots, _rate_of(limit))
            current = self._by_name[name] = KeyedLimiter(limit, *values, self._timers)
            self.redefined()
        return current

    def _add(self, name: str, slots: int | None, rate: Rate | None) -> NamedLimiter | KeyedLimiter:
        """A limit without keys, as far as it is not there."""
        normal = normal_name(name)
        values = self._values(normal, slots, rate)
        current = self._by_name.get(normal)
        if current is None:
            current = self._by_name[normal] = NamedLimiter(name, *values, self._timers)
        elif isinstance(current, NamedLimiter) and (current.slots, current.rate) != values:
            current.complete(*values, self._timers)
            self.redefined()
        return current

    def _values(
        self, name: str, slots: int | None, rate: Rate | None
    ) -> tuple[int | None, Rate | None]:
        """The values of the settings, and else these."""
        return self._slots.get(name, slots), self._rates.get(name, rate)


def _rate_of(limit: Limit) -> Rate | None:
    return None if limit.rate is None else parse_rate(limit.rate)


def _agree(one: Limit, other: Limit) -> bool:
    return (
        one.slots == other.slots and _rate_of(one) == _rate_of(other) and _same(one.key, other.key)
    )


def _same(one: object, other: object) -> bool:
    """True for one function, also when a route makes its lambda anew for each request.

    Not when the lambda uses variables of the route that differ: its results would, too.
    """
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        return _parts(one) == _parts(other)
    return one == other


def _parts(function: FunctionType) -> tuple[Any, ...]:
    return function.__code__, function.__closure__, function.__defaults__, function.__kwdefaults__
