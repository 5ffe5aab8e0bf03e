"""The targets of each workload, and how the figures are held against them.

A target that is not met needs its `explanation`: what was profiled, what was tried.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from tests.benchmarks import detached, growth, served, workloads
from tests.benchmarks.apps import DEPENDS, DETACHED, INSTALL, PENDING, QUIET_DEPENDS, QUIET_INSTALL
from tests.benchmarks.contestants import (
    FILTERED,
    HAND_WRITTEN,
    NOBODY,
    ONE_EVENT,
    STOCK,
    TWO_EVENTS,
)
from tests.benchmarks.measure import Series, quartiles
from tests.benchmarks.peers import TASKFLOW
from tests.benchmarks.workloads import BATCHES, NO_OP, ONCE, SYNC, batch_of


class Figures:
    """Everything that was measured, by case and contestant."""

    def __init__(self, series: Iterable[Series]) -> None:
        self._found = {(each.case, each.contestant): each for each in series}

    def find(self, case: str, contestant: str) -> Series | None:
        """One series; `None` when it was not measured."""
        return self._found.get((case, contestant))

    def ratios(self, case: str, contestant: str, baseline: str) -> tuple[float, ...]:
        """The ratio of each round; empty when one of the two was not measured."""
        of, to = self.find(case, contestant), self.find(case, baseline)
        if of is None or to is None:
            return ()
        return tuple(one / other for one, other in zip(of.values, to.values, strict=True) if other)

    def ratio(self, case: str, contestant: str, baseline: str) -> float | None:
        """The ratio in the middle: what the targets are held against."""
        ratios = self.ratios(case, contestant, baseline)
        return median(ratios) if ratios else None

    def spread(self, case: str, contestant: str, baseline: str) -> tuple[float, float] | None:
        """Half of the rounds lie between these ratios."""
        ratios = self.ratios(case, contestant, baseline)
        return quartiles(ratios) if ratios else None


Measured = Callable[[Figures], Mapping[str, float | None]]
"""The figures that have to keep to a bound, each with what it is called beside its fellows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One line of the table."""

    workload: str
    says: str
    bound: float
    measured: Measured
    at_least: bool = False
    """True when more is better."""
    explanation: str = ""

    def values(self, figures: Figures) -> dict[str, float]:
        """What was measured of it."""
        return {k: v for k, v in self.measured(figures).items() if v is not None}

    def met(self, figures: Figures) -> bool | None:
        """`None` when nothing of it was measured."""
        values = self.values(figures).values()
        if not values:
            return None
        return all(v >= self.bound if self.at_least else v <= self.bound for v in values)


def batches(function: str, contestant: str, baseline: str, *counts: int) -> Measured:
    """The ratios of a function of W1 or W2 for each size of a batch."""

    def measured(figures: Figures) -> dict[str, float | None]:
        return {
            str(count): figures.ratio(function + batch_of(count), contestant, baseline)
            for count in counts or BATCHES
        }

    return measured


def one(case: str, contestant: str, baseline: str) -> Measured:
    """A single ratio."""
    return lambda figures: {"": figures.ratio(case, contestant, baseline)}


def growing(curve: str, contestant: str, few: int, *many: int) -> Measured:
    """The cost of one task among many, in terms of its cost among few."""

    def measured(figures: Figures) -> dict[str, float | None]:
        first = figures.find(f"{curve}: {few}", contestant)
        found = {count: figures.find(f"{curve}: {count}", contestant) for count in many}
        return {
            f"{count:,}": last.median / first.median
            for count, last in found.items()
            if first is not None and last is not None
        }

    return measured


PIECES = "see [where the time goes](#where-the-time-goes)"
FLOOR = (
    "a lean copy of nothing but the necessary steps (task, context, id, count, slot) took 1.05 to "
    f"1.14 of stock's time on this Python; {PIECES}"
)
SUSPENDED = (
    "the turn of the loop is most of stock's time; a cancel scope, timers, and each step inside of "
    f"the task's own context come on top; {PIECES}"
)
LINES = "one bare structlog line of six fields takes three times as long as stock's whole task"
HOP = (
    "to wake a thread, and then the loop, is most of it, the more so when they wake on different "
    f"cores; {PIECES}"
)
STRETCH = (
    "not built: a thread would have to pass slots, timers and events from task to task, for lists "
    "of many sync tasks, which are rare"
)
DEPENDENCY = (
    "FastAPI takes a fifth of this request to solve any async dependency; the rest is the list and "
    f"the task; {PIECES}"
)
REQUEST = f"the middleware takes 3 µs, the list 3, the task 4 more than stock's; {PIECES}"
PER_REQUEST = "what W3 shows for each request, in a server that does little else"

TARGETS = (
    Target(
        workload="W1",
        says="async no-op, nobody listening; in terms of stock",
        bound=0.75,
        measured=batches(NO_OP, NOBODY, STOCK),
        explanation=FLOOR,
    ),
    Target(
        workload="W1",
        says="async no-op, level filtered; in terms of stock",
        bound=0.75,
        measured=batches(NO_OP, FILTERED, STOCK),
        explanation=FLOOR,
    ),
    Target(
        workload="W1",
        says="suspends once, nobody listening; in terms of stock",
        bound=1.15,
        measured=batches(ONCE, NOBODY, STOCK),
        explanation=SUSPENDED,
    ),
    Target(
        workload="W1",
        says="suspends once, level filtered; in terms of stock",
        bound=1.15,
        measured=batches(ONCE, FILTERED, STOCK),
        explanation=SUSPENDED,
    ),
    Target(
        workload="W1",
        says="async no-op, nobody listening; in terms of hand-written",
        bound=0.10,
        measured=batches(NO_OP, NOBODY, HAND_WRITTEN),
        explanation=f"stock's own task takes 0.08 of hand-written's time already; {PIECES}",
    ),
    Target(
        workload="W1",
        says="async no-op, level filtered; in terms of hand-written",
        bound=0.10,
        measured=batches(NO_OP, FILTERED, HAND_WRITTEN),
        explanation=f"stock's own task takes 0.08 of hand-written's time already; {PIECES}",
    ),
    Target(
        workload="W1",
        says="async no-op, one JSON event; in terms of stock",
        bound=3.2,
        measured=batches(NO_OP, ONE_EVENT, STOCK),
        explanation=LINES,
    ),
    Target(
        workload="W1",
        says="async no-op, two JSON events; in terms of stock",
        bound=5.5,
        measured=batches(NO_OP, TWO_EVENTS, STOCK),
        explanation=f"{LINES}; here there are two",
    ),
    Target(
        workload="W1",
        says="async no-op, two JSON events; in terms of hand-written",
        bound=0.55,
        measured=batches(NO_OP, TWO_EVENTS, HAND_WRITTEN),
        explanation="the same two lines are half of what hand-written does",
    ),
    Target(
        workload="W1",
        says="async no-op, two JSON events; in terms of fastapi-taskflow",
        bound=0.30,
        measured=batches(NO_OP, TWO_EVENTS, TASKFLOW),
        explanation="two lines of structlog are two thirds of it, and a list of one is dearer",
    ),
    Target(
        workload="W2",
        says="sync no-op, one or ten in a list; in terms of stock",
        bound=0.55,
        measured=batches(SYNC, NOBODY, STOCK, 1, 10),
        explanation=HOP,
    ),
    Target(
        workload="W2",
        says="stretch: sync no-op, ten in a list; in terms of stock",
        bound=0.10,
        measured=batches(SYNC, NOBODY, STOCK, 10),
        explanation=STRETCH,
    ),
    Target(
        workload="W2",
        says="stretch: sync no-op, 1000 in a list; in terms of stock",
        bound=0.03,
        measured=batches(SYNC, NOBODY, STOCK, 1000),
        explanation=STRETCH,
    ),
    Target(
        workload="W3",
        says="request through `Depends`, nobody listening; in terms of stock",
        bound=1.25,
        measured=one(workloads.REQUEST, QUIET_DEPENDS, STOCK),
        explanation=DEPENDENCY,
    ),
    Target(
        workload="W3",
        says="request through `install`, nobody listening; in terms of stock",
        bound=1.10,
        measured=one(workloads.REQUEST, QUIET_INSTALL, STOCK),
        explanation=REQUEST,
    ),
    Target(
        workload="W3",
        says="request through `install`, one JSON event; in terms of fastapi-taskflow",
        bound=0.30,
        measured=one(workloads.REQUEST, INSTALL, TASKFLOW),
        explanation="stock's own request takes 0.3 of taskflow's time: there is no room",
    ),
    Target(
        workload="W4",
        says="requests per second through `Depends`, one JSON event; in terms of stock",
        bound=0.85,
        at_least=True,
        measured=one(served.RATE, DEPENDS, STOCK),
        explanation=PER_REQUEST,
    ),
    Target(
        workload="W4",
        says="requests per second through `install`, one JSON event; in terms of stock",
        bound=0.85,
        at_least=True,
        measured=one(served.RATE, INSTALL, STOCK),
        explanation=PER_REQUEST,
    ),
    Target(
        workload="W4",
        says="requests per second through `install`, one JSON event; in terms of fastapi-taskflow",
        bound=3.5,
        at_least=True,
        measured=one(served.RATE, INSTALL, TASKFLOW),
        explanation=PER_REQUEST,
    ),
    Target(
        workload="W4",
        says="p99 of an innocent sync endpoint in a flood of detached tasks; better than stock",
        bound=500,
        at_least=True,
        measured=one(served.P99, STOCK, DETACHED),
    ),
    Target(
        workload="W4",
        says="p99 of an innocent sync endpoint in a flood of inline tasks; better than stock",
        bound=500,
        at_least=True,
        measured=one(served.P99, STOCK, INSTALL),
        explanation=(
            "an inline task holds its request, 14 kB: hundreds of them that wait make the garbage "
            "collector pause for longer than the endpoint takes (see its pauses in the flood)"
        ),
    ),
    Target(
        workload="W5",
        says="memory of a pending detached task; in terms of stock's pending request",
        bound=1 / 30,
        measured=one(detached.MEMORY, PENDING, STOCK),
        explanation=(
            "the task, the copy of its context and its place in the backlog take about 480 bytes, "
            "which is 1/30; the rest is what the middleware set in that context for its request"
        ),
    ),
    Target(
        workload="W5",
        says="draining 100,000 detached no-ops, nobody listening; in terms of stock's loop",
        bound=1.2,
        measured=one(detached.DRAIN, NOBODY, STOCK),
        explanation=(
            "stock's loop awaits what is there, nothing else; ours makes a place for each in the "
            f"backlog, takes and gives back slots, and runs it; {PIECES}"
        ),
    ),
    Target(
        workload="growth",
        says="cost of one of many pending tasks; in terms of one of 1,000",
        bound=1.5,
        measured=growing(growth.PENDING, NOBODY, 1_000, 10_000, 100_000, 1_000_000),
        explanation=(
            "beyond the 1000 slots a task needs a place in the backlog, and the garbage collector "
            "goes through all that wait: each time that their number has grown by a quarter"
        ),
    ),
)
