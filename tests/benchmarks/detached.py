"""W5: tasks that outlive their requests. What a pending one holds, and what to drain many costs."""

import asyncio
import gc
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import BackgroundTasks as StockBackgroundTasks
from fastapi import FastAPI

from fastapi_bgx import Bgx, Settings
from fastapi_bgx.background import upgrade
from tests.asgi import running
from tests.benchmarks.apps import PENDING, SUSPENDED, Served, available, build, work
from tests.benchmarks.contestants import HAND_WRITTEN, NOBODY, ONE_EVENT, STOCK
from tests.benchmarks.handwritten import TIMEOUT_S, log_json
from tests.benchmarks.in_process import get
from tests.benchmarks.measure import Effort, Series, Tick, shuffled
from tests.benchmarks.peers import AIOJOBS, TASKFLOW, TASKIQ

MEMORY = "memory of a pending task"
DRAIN = "draining 100,000 no-ops"
DRAINED = 100_000
HOLDING = (STOCK, HAND_WRITTEN, PENDING, SUSPENDED, TASKFLOW, AIOJOBS, TASKIQ)
DRAINING = (STOCK, NOBODY, ONE_EVENT)
MEMORY_ROUNDS = 3
SETTLE_S = 60.0

Lists = list[StockBackgroundTasks]
MakeList = Callable[[], StockBackgroundTasks]


async def w5(effort: Effort, tick: Tick) -> list[Series]:
    """Memory, then time."""
    memory = await _memory(effort, tick)
    count = int(effort.scaled(DRAINED, 5_000))
    return [*memory, *await drains(DRAIN, count, effort.rounds, tick)]


def steps(effort: Effort) -> int:
    """How often `w5` ticks."""
    return MEMORY_ROUNDS * len(available(*HOLDING)) + len(DRAINING) * effort.rounds


# Memory: as many requests as wanted, and none of their tasks ends.


async def _memory(effort: Effort, tick: Tick) -> list[Series]:
    count = int(effort.scaled(5_000, 300))
    found: dict[str, list[float]] = {}
    for _ in range(MEMORY_ROUNDS):
        for name in shuffled(available(*HOLDING)):
            tick(f"{MEMORY}: {name}")
            found.setdefault(name, []).append(await _bytes_of_a_pending_task(build(name), count))
    return [
        Series(case=MEMORY, contestant=name, unit="bytes", values=tuple(values))
        for name, values in sorted(found.items(), key=lambda each: HOLDING.index(each[0]))
    ]


async def _bytes_of_a_pending_task(served: Served, count: int) -> float:
    """Everything that Python allocates for one more request and what is left of it."""
    served.ready()
    async with AsyncExitStack() as stack:
        if served.has_lifespan:
            await stack.enter_async_context(running(served.app))
        await _hold(served, 10)  # what the first of them allocate is there for all
        await _release(10)
        tracemalloc.start()
        try:
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            await _hold(served, count)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await _release(count)
    return (after - before) / count


async def _hold(served: Served, count: int) -> None:
    """Send so many requests, and wait until each is answered."""
    work.gate, work.ran, work.accepted = asyncio.Event(), 0, 0
    requests: set[asyncio.Task[None]] = set()
    for _ in range(count):
        request = asyncio.create_task(get(served.app, "/held"))
        requests.add(request)
        request.add_done_callback(requests.discard)
    async with asyncio.timeout(SETTLE_S):
        while work.accepted < count:
            await asyncio.sleep(0)
    for _ in range(20):  # whatever follows the answer
        await asyncio.sleep(0)


async def _release(count: int) -> None:
    work.gate.set()
    async with asyncio.timeout(SETTLE_S):
        while work.ran < count:
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)


# Draining: one list for each task, as one request for each makes them.


async def drains(
    case: str,
    count: int,
    rounds: int,
    tick: Tick,
    *,
    names: Iterable[str] = DRAINING,
    x: float | None = None,
) -> list[Series]:
    """Microseconds for each of `count` no-ops that are pending: handed over and run to the end.

    Stock has nobody to hand over to: it awaits one list after the other.
    """
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in shuffled(found):
            tick(f"{case}: {name}")
            async with _lists(name) as make:
                found[name].append(await _drain(make, count) / count * 1e6)
    return [
        Series(case=case, contestant=name, unit="µs", values=tuple(values), x=x)
        for name, values in found.items()
    ]


@asynccontextmanager
async def _lists(name: str) -> AsyncIterator[MakeList]:
    if name == STOCK:
        yield StockBackgroundTasks
        return
    log_json(logging.INFO)
    settings = Settings(mode="detached", max_backlog=None, timeout=TIMEOUT_S)
    if name == NOBODY:
        settings = settings.model_copy(update={"log_events": frozenset()})
    bgx = Bgx(settings)
    async with bgx.lifespan(FastAPI()):
        yield lambda: upgrade(StockBackgroundTasks(), bgx.runners.current(), at_once=False)


async def _drain(make: MakeList, count: int) -> float:
    left = count
    ended = asyncio.Event()

    async def no_op() -> None:
        nonlocal left
        left -= 1
        if not left:
            ended.set()

    lists: Lists = [make() for _ in range(count)]
    for tasks in lists:
        tasks.add_task(no_op)
    gc.collect()
    started = time.perf_counter()
    for tasks in lists:
        await tasks()
    await ended.wait()
    return time.perf_counter() - started
