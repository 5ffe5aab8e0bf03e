"""How a thing is measured: in interleaved, shuffled rounds; and what is kept of it."""

import gc
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import NamedTuple, TypeVar

T = TypeVar("T")

Tick = Callable[[str], None]
"""Called after each measurement, with what comes next: for the progress bar."""

MOST_TIMES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much a run takes upon itself."""

    rounds: int = 15
    block_s: float = 0.05
    """Seconds that one measurement of one contestant takes, about."""
    quick: bool = False

    def scaled(self, full: float, quick: float) -> float:
        """The size of something that a quick run does smaller."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One contestant in one case: a value for each round, in the order of the rounds."""

    case: str
    contestant: str
    unit: str
    values: tuple[float, ...]
    x: float | None = None
    """Where it stands on the axis of a growth plot."""

    @property
    def median(self) -> float:
        """The value in the middle."""
        return median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles: half of the rounds lie between them."""
        return quartiles(self.values)


def quartiles(values: Iterable[float]) -> tuple[float, float]:
    """The first and the third quartile."""
    known = list(values)
    if len(known) < 2:
        return known[0], known[0]
    low, _, high = quantiles(known, n=4, method="inclusive")
    return low, high


def nothing() -> None:
    """For a unit that needs no preparation."""


async def settled() -> None:
    """For a unit that leaves no work behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is timed: `run(times)` does its work `times` times over and waits for the end of it."""

    case: str
    contestant: str
    run: Callable[[int], Awaitable[None]]
    tasks: int = 1
    """How many tasks each time has: the result is microseconds for one of them."""
    prepare: Callable[[], None] = nothing
    """Called before each measurement, outside of the time."""
    settle: Callable[[], Awaitable[None]] = settled
    """Waits for the work that `run` left to other threads: no time of it, but CPU time."""
    cpu_case: str = ""
    """The case that keeps the CPU time of the whole process; when empty, none does."""
    most_times: int = MOST_TIMES
    """It is never asked to do its work more often at once."""
    x: float | None = None


class Spent(NamedTuple):
    """What one measurement took, in seconds."""

    wall: float
    cpu: float


@dataclass(slots=True)
class _Found:
    unit: Unit
    times: int
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    def note(self, spent: Spent) -> None:
        tasks = self.times * self.unit.tasks
        self.walls.append(spent.wall / tasks * 1e6)
        self.cpus.append(spent.cpu / tasks * 1e6)

    def series(self) -> Iterator[Series]:
        unit = self.unit
        kept = {unit.case: self.walls} | ({unit.cpu_case: self.cpus} if unit.cpu_case else {})
        for case, values in kept.items():
            yield Series(
                case=case,
                contestant=unit.contestant,
                unit="µs",
                values=tuple(values),
                x=unit.x,
            )


async def measure(units: Iterable[Unit], effort: Effort, tick: Tick) -> list[Series]:
    """Time every unit in every round; microseconds for each task.

    The order is shuffled anew in each round: first that of the cases, then that of the contestants
    of a case, which thus run close to each other and can be compared round by round.
    """
    by_case: dict[str, list[_Found]] = defaultdict(list)
    for unit in units:
        tick(f"{unit.case}: {unit.contestant}")
        by_case[unit.case].append(_Found(unit, await _calibrate(unit, effort.block_s)))
    for _ in range(effort.rounds):
        for case in shuffled(by_case):
            for found in shuffled(by_case[case]):
                tick(f"{case}: {found.unit.contestant}")
                found.note(await _time(found.unit, found.times))
    return [series for each in by_case.values() for found in each for series in found.series()]


def measure_steps(units: int, effort: Effort) -> int:
    """How often `measure` ticks."""
    return units * (effort.rounds + 1)


def shuffled(values: Iterable[T]) -> list[T]:
    """A list of them in any order."""
    found = list(values)
    random.shuffle(found)
    return found


async def _calibrate(unit: Unit, block_s: float) -> int:
    """How many times fill one block. Warms everything up, too."""
    times = 1
    while times < unit.most_times:
        seconds = (await _time(unit, times)).wall
        if seconds >= block_s / 2:
            return min(unit.most_times, max(1, round(times * block_s / seconds)))
        times = max(times * 2, min(times * 20, int(times * block_s / max(seconds, 1e-6))))
    return unit.most_times


async def _time(unit: Unit, times: int) -> Spent:
    unit.prepare()
    gc.collect()
    started, busy = time.perf_counter(), time.process_time()
    await unit.run(times)
    wall = time.perf_counter() - started
    await unit.settle()
    return Spent(wall, time.process_time() - busy)
