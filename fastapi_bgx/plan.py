"""The plan of a task: everything that is decided about a call before its arguments are known.

Options are merged here, and nowhere else. The first that names an option wins: `using`, then
`Settings.tasks[name]`, then `@task_options`, then `Settings`. Only `retry` is more than one value:
there `Settings.tasks[name]` changes the fields that it names.
"""

import math
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from fastapi_bgx.calls import Shape, shape_of
from fastapi_bgx.errors import WrongCall
from fastapi_bgx.limits import Limiter
from fastapi_bgx.named import KeyedLimiter, Limits, NamedLimiter
from fastapi_bgx.options import ATTRIBUTE, ExecutorName, TaskOptions, normal_name
from fastapi_bgx.retry import Retry
from fastapi_bgx.settings import Settings
from fastapi_bgx.timers import Timers

Key = tuple[int, bool, int]
MOST_PLANS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the calls of one function run."""

    name: str
    shape: Shape
    executor: ExecutorName
    timeout: float | None
    queue_timeout: float | None
    slow_after: float | None
    detached: bool
    concurrent: bool
    retry: Retry | None
    delay: float | None
    expires: float | None
    priority: int
    unique: str | Callable[..., Hashable] | None
    limit: str | None
    keyed: KeyedLimiter | None
    limiters: tuple[Limiter, ...]
    special: bool
    """Detached, concurrent, delayed, retried or unique: perhaps not run, or not to its end, by the
    coroutine that starts it."""
    prepared: bool
    """There is something to work out when it is added."""
    marks_start: bool
    """There is something to note, or to check, when an attempt starts."""
    rated: bool
    """There is a rate among its limiters, which has to be told when an attempt starts."""
    notable_after: float
    """Seconds after which the end of an async function is late or slow, though no timer told."""
    by_hand: bool
    """A coroutine function on the event loop: its first step can be made by hand."""
    only: Limiter | None
    """Its one limiter, if it has just one: what most tasks need."""
    using: TaskOptions | None
    """What `using` gave: to plan the call anew for another event loop."""


class Planner:
    """Makes the plan of a function once, and remembers it as long as the function lives."""

    def __init__(self, settings: Settings, *, eager: bool, timers: Timers | None = None) -> None:
        self._settings = settings
        self._eager = eager
        self._by_name = settings.tasks
        self.limits: Limits = Limits(settings.limits, settings.rates, timers)
        self.limits.redefined = self._forget_all
        self.concurrency: Limiter = Limiter("concurrency", settings.max_concurrency)
        self.threads: Limiter = Limiter("threads", settings.max_threads)
        self.processes: Limiter = Limiter("processes", settings.max_processes)
        self._plain: dict[int, Plan] = {}  # of those functions, without options, that live
        self._plans: dict[Key, tuple[weakref.ref[Any], Plan, TaskOptions | None]] = {}

    def plan(self, func: Any, options: TaskOptions | None) -> Plan:
        """The plan for `func`, called with the options that `using` gave.

        Raises:
            WrongCall: `func` cannot be called, or not by the executor that was asked for.
            UnknownLimit: the options name a limit that is not configured.
        """
        if options is None:
            known = self._plain.get(id(func))
            if known is not None:
                return known
        return self._find(func, options)

    def resize(self, name: str, slots: int) -> None:
        """Change the slots of a limiter while it is in use; on the loop's thread.

        Raises:
            UnknownLimit: there is none of that name.
            ValueError: it has a rate and no slots.
        """
        for pool in (self.concurrency, self.threads, self.processes):
            if pool.name == normal_name(name):
                pool.resize(slots)
                return
        self.limits.resize(name, slots)

    # Plans are remembered by id and weak reference: hashing a function through WeakKeyDictionary
    # costs 0.35 µs, and a strong reference would keep every closure that was ever added. An id is
    # forgotten by the callback of the reference, before another object can have it.

    def _find(self, func: Any, options: TaskOptions | None) -> Plan:
        bound = type(func) is MethodType
        anchor = func.__func__ if bound else func
        key = (id(anchor), bound, id(options))
        known = self._plans.get(key)
        if known is not None and known[0]() is anchor:
            return known[1]
        plan = self._make(func, options)
        if type(anchor) is FunctionType:
            self._remember(key, anchor, plan, options)
        return plan

    def _remember(self, key: Key, anchor: Any, plan: Plan, options: TaskOptions | None) -> None:
        if len(self._plans) >= MOST_PLANS:
            self._forget_all()

        def forget(_: weakref.ref[Any]) -> None:
            self._plans.pop(key, None)
            self._plain.pop(key[0], None)

        reference = weakref.ref(anchor, forget)
        self._plans[key] = (
            reference,
            plan,
            options,
        )  # the options stay alive: their id is in the key
        if options is None and not key[1]:
            self._plain[key[0]] = plan

    def _forget_all(self) -> None:
        self._plans.clear()
        self._plain.clear()

    def _make(self, func: Any, using: TaskOptions | None) -> Plan:
        shape = shape_of(func)
        attached = _attached(func)
        name = (using and using.name) or (attached and attached.name) or shape.name
        merged = self._defaults()
        configured = self._by_name.get(normal_name(name))
        for layer in (attached, configured, using):
            if layer is not None:
                before, merged = merged["retry"], merged | layer.given()
                if layer is configured:
                    merged["retry"] = _refined(before, merged["retry"])
        options = TaskOptions.model_construct(None, **merged)
        executor = _executor(shape, options.executor)
        limiter = None if options.limit is None else self.limits.named(options.limit)
        keyed = limiter if isinstance(limiter, KeyedLimiter) else None
        named = limiter.limiters if isinstance(limiter, NamedLimiter) else ()
        # From the scarce to the plentiful, so that nobody holds a common slot while it waits for a
        # rare one; one order for all, so that nobody waits in a circle.
        limiters = (*named, *self._pools(executor), self.concurrency)
        rated = limiter is not None and limiter.rate is not None
        return Plan(
            name=name,
            shape=shape,
            executor=executor,
            timeout=options.timeout,
            queue_timeout=options.queue_timeout,
            slow_after=options.slow_after,
            detached=bool(options.detached),
            concurrent=bool(options.concurrent),
            limit=None if limiter is None else _limit_name(options),
            keyed=keyed,
            limiters=limiters,
            retry=options.retry,
            delay=options.delay,
            expires=options.expires,
            priority=options.priority or 0,
            unique=options.unique,
            special=_is_special(options),
            prepared=bool(keyed or executor == "process" or options.delay is not None),
            marks_start=_marks_start(options) or rated,
            rated=rated,
            notable_after=_notable_after(options) if executor == "async" else math.inf,
            by_hand=self._eager and executor == "async" and shape.is_async,
            only=limiters[0] if keyed is None and len(limiters) == 1 else None,
            using=using,
        )

    def _pools(self, executor: ExecutorName) -> tuple[Limiter, ...]:
        if executor == "thread":
            return (self.threads,)
        return (self.processes,) if executor == "process" else ()

    def _defaults(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "timeout": settings.timeout,
            "queue_timeout": settings.queue_timeout,
            "slow_after": settings.slow_after,
            "detached": settings.mode == "detached",
            "retry": settings.retry,
        }


def _refined(code: Retry | None, configured: Retry | None) -> Retry | None:
    """What is configured for a name changes single fields: an environment cannot spell all."""
    if code is None or configured is None or code is configured:
        return configured
    return configured.over(code)


def _is_special(options: TaskOptions) -> bool:
    given = (options.retry, options.delay, options.unique)
    return bool(options.detached or options.concurrent or any(o is not None for o in given))


def _marks_start(options: TaskOptions) -> bool:
    return any(o is not None for o in (options.timeout, options.expires, options.retry))


def _notable_after(options: TaskOptions) -> float:
    return min(options.timeout or math.inf, options.slow_after or math.inf)


def _limit_name(options: TaskOptions) -> str | None:
    return options.limit if isinstance(options.limit, str | None) else options.limit.name


def _attached(func: Any) -> TaskOptions | None:
    """The options of `@task_options`, also through a partial or on the `__call__` of an object."""
    while not hasattr(func, ATTRIBUTE) and isinstance(func, partial):  # a Mock has any attribute
        func = func.func
    options = getattr(func, ATTRIBUTE, None) or getattr(
        getattr(func, "__call__", None),  # noqa: B004 - the method itself is wanted
        ATTRIBUTE,
        None,
    )
    return options if isinstance(options, TaskOptions) else None


def _executor(shape: Shape, wanted: ExecutorName | None) -> ExecutorName:
    if wanted is None:
        return "async" if shape.is_async else "thread"
    if shape.is_async and wanted != "async":
        raise WrongCall(
            f"{shape.name} is an async function: it runs on the event loop, not in a {wanted}; "
            f"leave `executor` out, or give it a sync function"
        )
    return wanted
