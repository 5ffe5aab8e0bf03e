"""W1 to W3: what happens in one process, on one event loop; each timed in shuffled rounds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from tests.asgi import running
from tests.benchmarks.apps import (
    DEPENDS,
    INSTALL,
    QUIET_DEPENDS,
    QUIET_INSTALL,
    TASKFLOW_SQLITE,
    Served,
    available,
    build,
    unpatch,
    work,
)
from tests.benchmarks.contestants import (
    HAND_WRITTEN,
    STOCK,
    Contestant,
    Func,
    HandWritten,
    Stock,
    filtered,
    nobody,
    one_event,
    opened,
    two_events,
)
from tests.benchmarks.in_process import get
from tests.benchmarks.measure import Effort, Series, Tick, Unit, measure, measure_steps
from tests.benchmarks.peers import AIOJOBS, TASKFLOW, TASKIQ, installed_peers

BATCHES = (1, 10, 1000)
NO_OP = "async no-op"
ONCE = "async, suspends once"
SYNC = "sync no-op"
REQUEST = "request with one async task"
REQUESTED = (
    STOCK,
    HAND_WRITTEN,
    QUIET_DEPENDS,
    QUIET_INSTALL,
    DEPENDS,
    INSTALL,
    TASKFLOW,
    TASKFLOW_SQLITE,
    AIOJOBS,
    TASKIQ,
)


async def no_op() -> None:
    """The least that an async task can be."""


async def suspend_once() -> None:
    """The least that needs the event loop."""
    await asyncio.sleep(0)


def sync_no_op() -> None:
    """The least that a sync task can be."""


def batch_of(count: int) -> str:
    """The end of the name of a case."""
    return f", {count} in a list"


def async_contestants() -> list[Contestant]:
    """Everybody; this library in each state of its listeners."""
    ours: list[Contestant] = [nobody(), filtered(), one_event(), two_events()]
    return [Stock(), HandWritten(), *ours, *installed_peers()]


def sync_contestants() -> list[Contestant]:
    """Everybody; the hop to a thread costs more than what is logged."""
    return [Stock(), HandWritten(), nobody(), one_event(), *installed_peers()]


def w1_steps(effort: Effort) -> int:
    """How often `w1` ticks."""
    return measure_steps(2 * len(BATCHES) * len(async_contestants()), effort)


def w2_steps(effort: Effort) -> int:
    """How often `w2` ticks."""
    return measure_steps(len(BATCHES) * len(sync_contestants()), effort)


def w3_steps(effort: Effort) -> int:
    """How often `w3` ticks."""
    return measure_steps(len(available(*REQUESTED)), effort)


async def w1(effort: Effort, tick: Tick, batches: Iterable[int] = BATCHES) -> list[Series]:
    """Async tasks, added and run, without a request around them."""
    functions = {NO_OP: no_op, ONCE: suspend_once}
    return await measure_batches(functions, async_contestants(), batches, effort, tick)


async def w2(effort: Effort, tick: Tick, batches: Iterable[int] = BATCHES) -> list[Series]:
    """Sync tasks, added and run, without a request around them."""
    return await measure_batches({SYNC: sync_no_op}, sync_contestants(), batches, effort, tick)


async def measure_batches(
    functions: dict[str, Func],
    contestants: list[Contestant],
    batches: Iterable[int],
    effort: Effort,
    tick: Tick,
) -> list[Series]:
    """Each function, in each size of a batch, by each contestant."""
    async with opened(contestants) as ready:
        units = [
            Unit(
                case=name + batch_of(count),
                contestant=contestant.name,
                tasks=count,
                prepare=contestant.prepare,
                run=_runner(contestant, func, count),
            )
            for name, func in functions.items()
            for count in batches
            for contestant in ready
        ]
        return await measure(units, effort, tick)


def _runner(contestant: Contestant, func: Func, count: int) -> Callable[[int], Awaitable[None]]:
    return lambda times: contestant.run(func, count, times)


async def w3(effort: Effort, tick: Tick) -> list[Series]:
    """A request with one task, from the call of the application to the end of its task."""
    async with serving(available(*REQUESTED)) as ready:
        units = [
            Unit(
                case=REQUEST, contestant=served.name, prepare=served.ready, run=requests_of(served)
            )
            for served in ready
        ]
        return await measure(units, effort, tick)


@asynccontextmanager
async def serving(names: Iterable[str]) -> AsyncIterator[list[Served]]:
    """Start the applications of these names, and see that each runs the tasks that it accepts."""
    async with AsyncExitStack() as stack:
        stack.callback(unpatch)
        ready = []
        for served in map(build, names):
            served.ready()
            if served.has_lifespan:
                await stack.enter_async_context(running(served.app))
            before = work.ran
            await requests_of(served)(3)
            if work.ran != before + 3:
                raise AssertionError(f"{served.name} ran {work.ran - before} of 3 tasks")
            ready.append(served)
        yield ready


def requests_of(served: Served) -> Callable[[int], Awaitable[None]]:
    """Call an application so many times, and wait for the end of each task."""
    app, settle = served.app, served.settle

    async def run(times: int) -> None:
        for _ in range(times):
            await get(app, "/light")
            if settle is not None:
                await settle()

    return run
