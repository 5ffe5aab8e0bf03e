"""Growth: the cost of one task as there are more of them, flat where it should be."""

import asyncio
import gc
import logging
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio.to_thread
from fastapi import BackgroundTasks as StockBackgroundTasks

from fastapi_bgx import Bgx, Limit, Settings, task_options
from fastapi_bgx.background import BackgroundTasks, upgrade
from tests.benchmarks.contestants import NOBODY, STOCK, Stock, nobody, one_event, opened
from tests.benchmarks.detached import drains
from tests.benchmarks.handwritten import TIMEOUT_S, log_json
from tests.benchmarks.measure import Effort, Series, Tick, Unit, measure, measure_steps, shuffled
from tests.benchmarks.workloads import no_op

PENDING = "pending tasks"
IN_A_REQUEST = "tasks in one request"
LIMITERS = "named limiters"
KEYS = "keys of one limiter"
FORGOTTEN = "memory that distinct keys leave behind"
THREADS = "threads"

STEPS = (1, 10, 100, 1000)
GROWING = (STOCK, NOBODY)
BATCH = 1000
BLOCKED_S = 0.002
TASKS_PER_THREAD = 10


def _pending(effort: Effort) -> dict[int, int]:
    """How many, and in how many rounds."""
    rounds = min(effort.rounds, 9)
    if effort.quick:
        return {1_000: rounds, 10_000: rounds}
    return {1_000: rounds, 10_000: rounds, 100_000: rounds, 1_000_000: min(rounds, 3)}


def _threads(effort: Effort) -> tuple[int, ...]:
    return (1, 20, 200) if effort.quick else (1, 2, 5, 10, 20, 50, 100, 200)


def _forgotten(effort: Effort) -> tuple[int, ...]:
    return (1_000, 10_000) if effort.quick else (1_000, 10_000, 100_000)


def steps(effort: Effort) -> int:
    """How often `growth` ticks."""
    units = 3 * len(STEPS) + 2 * len(STEPS)
    drained = len(GROWING) * sum(_pending(effort).values())
    threads = 2 * len(_threads(effort)) * min(effort.rounds, 9)
    return measure_steps(units, effort) + drained + threads + len(_forgotten(effort))


async def growth(effort: Effort, tick: Tick) -> list[Series]:
    """Every curve."""
    found: list[Series] = []
    for count, rounds in _pending(effort).items():
        case = f"{PENDING}: {count}"
        found += await drains(case, count, rounds, tick, names=GROWING, x=count)
    found += await _in_a_request(effort, tick)
    found += await measure([*_limiters(), *_keys()], effort, tick)
    found += [_memory_of(count, tick, await _after_keys(count)) for count in _forgotten(effort)]
    return [*found, *await _by_threads(effort, tick)]


async def _in_a_request(effort: Effort, tick: Tick) -> list[Series]:
    async with opened([Stock(), nobody(), one_event()]) as ready:
        units = [
            Unit(
                case=f"{IN_A_REQUEST}: {count}",
                contestant=each.name,
                tasks=count,
                prepare=each.prepare,
                run=lambda times, each=each, count=count: each.run(no_op, count, times),  # type: ignore[misc]
                x=count,
            )
            for count in STEPS
            for each in ready
        ]
        return await measure(units, effort, tick)


# Limiters and keys: as many tasks each time, spread over more and more of them.


def _limiters() -> Iterable[Unit]:
    for count in STEPS:
        names = [f"limiter-{number}" for number in range(count)]
        bgx = _quiet(limits=dict.fromkeys(names, 5))
        wanted = [names[number % count] for number in range(BATCH)]

        def add(tasks: BackgroundTasks, wanted: list[str] = wanted) -> None:
            for name in wanted:
                tasks.using(limit=name).add_task(no_op)

        yield _unit(LIMITERS, count, bgx, add)


def _keys() -> Iterable[Unit]:
    for count in STEPS:
        tenants = [number % count for number in range(BATCH)]

        def add(tasks: BackgroundTasks, tenants: list[int] = tenants) -> None:
            for tenant in tenants:
                tasks.add_task(of_tenant, tenant)

        yield _unit(KEYS, count, _quiet(), add)


@task_options(limit=Limit("tenant", 2, key=lambda tenant: tenant))
async def of_tenant(tenant: int) -> None:
    """A task that is limited by key."""


def _quiet(**settings: Any) -> Bgx:
    return Bgx(Settings(timeout=TIMEOUT_S, log_events=frozenset(), **settings))


def _list(bgx: Bgx) -> BackgroundTasks:
    return upgrade(StockBackgroundTasks(), bgx.runners.current(), at_once=False)


def _unit(case: str, count: int, bgx: Bgx, add: Callable[[BackgroundTasks], None]) -> Unit:
    async def run(times: int) -> None:
        for _ in range(times):
            tasks = _list(bgx)
            add(tasks)
            await tasks()

    return Unit(case=f"{case}: {count}", contestant=NOBODY, tasks=BATCH, run=run, x=count)


async def _after_keys(count: int) -> float:
    """Kilobytes that are left after tasks of so many keys have ended."""
    bgx = _quiet()

    async def run(tenants: range) -> None:
        for tenant in tenants:
            tasks = _list(bgx)
            tasks.add_task(of_tenant, tenant)
            await tasks()

    await run(range(100))
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await run(range(count))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / 1000


def _memory_of(count: int, tick: Tick, kilobytes: float) -> Series:
    tick(FORGOTTEN)
    case = f"{FORGOTTEN}: {count}"
    return Series(case=case, contestant=NOBODY, unit="kB", values=(kilobytes,), x=count)


# Threads: the processor time of a sync task that blocks, beside more and more like it.


def block() -> None:
    """Wait as for a database."""
    time.sleep(BLOCKED_S)


async def _by_threads(effort: Effort, tick: Tick) -> list[Series]:
    found: dict[tuple[int, str], list[float]] = {}
    for _ in range(min(effort.rounds, 9)):
        for count in shuffled(_threads(effort)):
            for name, run in shuffled({STOCK: _stock_threads, NOBODY: _our_threads}.items()):
                tick(f"{THREADS}: {count}: {name}")
                found.setdefault((count, name), []).append(await run(count))
    return [
        Series(case=f"{THREADS}: {x}", contestant=name, unit="µs", values=tuple(values), x=x)
        for (x, name), values in sorted(found.items())
    ]


async def _stock_threads(threads: int) -> float:
    limiter = anyio.to_thread.current_default_thread_limiter()
    usual = limiter.total_tokens
    limiter.total_tokens = threads
    try:
        return await _processor_time(StockBackgroundTasks, threads)
    finally:
        limiter.total_tokens = usual


async def _our_threads(threads: int) -> float:
    bgx = _quiet(max_threads=threads)
    return await _processor_time(lambda: _list(bgx), threads)


async def _processor_time(make: Callable[[], StockBackgroundTasks], threads: int) -> float:
    """Microseconds of all threads together, for each task; the threads exist before."""
    log_json(logging.INFO)
    await _at_once(make, threads)
    tasks = threads * TASKS_PER_THREAD
    started = time.process_time()
    await _at_once(make, tasks)
    return (time.process_time() - started) / tasks * 1e6


async def _at_once(make: Callable[[], StockBackgroundTasks], count: int) -> None:
    """As many requests, each with one task."""
    lists = [make() for _ in range(count)]
    for tasks in lists:
        tasks.add_task(block)
    called: list[Awaitable[None]] = [tasks() for tasks in lists]
    await asyncio.gather(*called)
