"""What each listener costs: a task that nobody hears of, and the same with one who listens."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from fastapi_bgx import Bgx
from fastapi_bgx.events import Event, TaskEnded
from tests.benchmarks import instruments
from tests.benchmarks.contestants import NOBODY, Contestant, Func, Supervised, opened
from tests.benchmarks.measure import MOST_TIMES, Effort, Series, Tick, Unit, measure, measure_steps
from tests.benchmarks.recording import PLACES, recordings
from tests.benchmarks.workloads import batch_of, no_op

SUCCESS = "a task that succeeds"
FAILURE = "a task that fails"
CPU = "; CPU time of the whole process"
BATCHES = (10, 1000)
FAILING_BATCH = 10
MOST_ROUNDS = 9
"""Each round waits for 20,000 records to be written."""

LOG = "the log"
PROMETHEUS = "Prometheus"
NO_PROVIDER = "OpenTelemetry, no provider"
SDK = "OpenTelemetry, its SDK"
SENTRY = "Sentry"
OF_ENDS = "a listener of your own, for the end"
OF_ALL = "a listener of your own, for everything"

NOTE = """\
Each row is a `Bgx` with one listener, or none: what two of them cost together is what they cost on
top of the first row, added up. The first table is the time on the event loop, which is what a
request sees. The second one is the processor time of the whole process until the last record is in
the store: while the thread that writes has the interpreter, the event loop has not. PostgreSQL's
own processes come on top. A failed task is dearer by its traceback, which each of these reads for
itself."""
"""What the page says of the tables."""

DOES = {
    NOBODY: "`log_events` is empty",
    LOG: "one JSON line to the null device",
    PROMETHEUS: "one counter and two histograms",
    NO_PROVIDER: "instrumented, but the application has set up nothing that records",
    SDK: "a span, one counter and two histograms, all kept in memory",
    SENTRY: "nothing of a success; an event of a failure, handed to a transport that sends nothing",
    OF_ENDS: "hears `TaskEnded`, and does nothing",
    OF_ALL: "hears every event, and does nothing",
    **{name: f"a record of each task in {place}" for name, place in PLACES.items()},
}
"""What each of them does for one task that is over."""


async def fail() -> None:
    """The least that a failure can be, with a frame of the application around it."""
    _refuse()


def _refuse() -> None:
    raise ValueError("refused")


class Idle:
    """A listener that does nothing."""

    def __init__(self, what: type[Event]) -> None:
        self._what = what

    def hears(self, event: type[Event]) -> bool:
        return issubclass(event, self._what)

    def changed(self) -> bool:
        return False

    def __call__(self, event: Event) -> None:
        pass


class Listening(Supervised):
    """A `Bgx` that nobody listens to but what `listen` adds to it."""

    def __init__(self, name: str, listen: Callable[[Bgx], object]) -> None:
        super().__init__(name, logging.INFO, log_events=frozenset())
        self._listen = listen

    async def open(self) -> None:
        await super().open()
        self._listen(self._bgx)


class ToSentry(Listening):
    """Reports to Sentry's SDK, which is there as long as this is open."""

    def __init__(self) -> None:
        super().__init__(SENTRY, instruments.sentry)

    async def open(self) -> None:
        self._stop = instruments.start_sentry()
        await super().open()

    async def close(self) -> None:
        self._stop()


class Traced(Listening):
    """Opens spans of OpenTelemetry's SDK, which a thread of its own exports."""

    most_tasks = instruments.MOST_SPANS

    def __init__(self) -> None:
        self._sdk = instruments.Sdk()
        super().__init__(SDK, self._sdk.instrument)

    async def settle(self) -> None:
        await asyncio.to_thread(self._sdk.forget)

    async def close(self) -> None:
        await asyncio.to_thread(self._sdk.stop)


def listening() -> list[Contestant]:
    """Everybody who can be measured here; the one without listeners first."""
    return [
        Listening(NOBODY, lambda bgx: None),
        Listening(OF_ENDS, lambda bgx: bgx.listen(Idle(TaskEnded))),
        Listening(OF_ALL, lambda bgx: bgx.listen(Idle(Event))),
        Supervised(LOG, logging.INFO),
        Listening(PROMETHEUS, instruments.prometheus),
        Listening(NO_PROVIDER, instruments.opentelemetry),
        Traced(),
        ToSentry(),
        *recordings(),
    ]


def steps(effort: Effort) -> int:
    """How often `listeners` ticks."""
    return measure_steps((len(BATCHES) + 1) * len(listening()), _fewer(effort))


def _fewer(effort: Effort) -> Effort:
    return replace(effort, rounds=min(effort.rounds, MOST_ROUNDS))


async def listeners(effort: Effort, tick: Tick) -> list[Series]:
    """The cost of a task that succeeds and of one that fails, on the loop and in all."""
    return await measure_each(listening(), BATCHES, FAILING_BATCH, _fewer(effort), tick)


async def measure_each(
    contestants: list[Contestant], batches: Iterable[int], failing: int, effort: Effort, tick: Tick
) -> list[Series]:
    """The same for some contestants, in lists of other sizes."""
    async with opened(contestants) as ready:
        units = [_unit(SUCCESS, no_op, count, each) for count in batches for each in ready]
        units += [_unit(FAILURE, fail, failing, each) for each in ready]
        found = await measure(units, effort, tick)
    return sorted(found, key=lambda each: (FAILURE in each.case, CPU in each.case))


def _unit(name: str, func: Func, count: int, contestant: Contestant) -> Unit:
    return Unit(
        case=name + batch_of(count),
        cpu_case=name + CPU + batch_of(count),
        contestant=contestant.name,
        tasks=count,
        prepare=contestant.prepare,
        run=_runner(contestant, func, count),
        settle=contestant.settle,
        most_times=max(1, min(MOST_TIMES, contestant.most_tasks // count)),
    )


def _runner(contestant: Contestant, func: Func, count: int) -> Callable[[int], Awaitable[None]]:
    return lambda times: contestant.run(func, count, times)
