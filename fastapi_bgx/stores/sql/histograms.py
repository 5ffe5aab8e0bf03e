"""How tasks ended and how long that took, as small numbers that a database counts. Pure.

A class holds the durations up to 10 % above those of the class before. The middle of it is what is
told: at most 5 % more or less than the exact one.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate

from fastapi_bgx.outcome import Status

RATIO = 1.1
LEAST = 1e-6
"""Seconds: whatever is shorter is in class 0."""
MOST_CLASS = 500
"""About 1e14 seconds; whatever is longer, infinity too, is in this class."""
NEVER_BEGAN = 1_023
CLASSES = 1_024
# Their places are in databases: a new one goes to the end.
ENDS = (
    Status.SUCCEEDED,
    Status.FAILED,
    Status.TIMED_OUT,
    Status.CANCELLED,
    Status.EXPIRED,
    Status.REJECTED,
    Status.DROPPED,
)


def class_of(seconds: float) -> int:
    """The class of a duration."""
    if seconds <= LEAST or math.isnan(seconds):
        return 0
    if math.isinf(seconds):
        return MOST_CLASS
    return min(MOST_CLASS, math.ceil(math.log(seconds / LEAST, RATIO)))


def middle_of(number: int) -> float:
    """The duration that a class stands for, in seconds."""
    return LEAST * RATIO ** (number - 0.5) if number else LEAST


def end_class(status: Status, duration_s: float | None) -> int | None:
    """How a task ended and the class of its duration, in one number; `None` before the end."""
    if not status.final:
        return None
    run = NEVER_BEGAN if duration_s is None else class_of(duration_s)
    return ENDS.index(status) * CLASSES + run


def parts(number: int) -> tuple[Status, int | None]:
    """What `end_class` has put into one number."""
    end, run = divmod(number, CLASSES)
    return ENDS[end], None if run == NEVER_BEGAN else run


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """What that share of all durations did not exceed; `None` when there are none."""
    if not counts:
        return None
    rank = math.ceil(sum(counts.values()) * share)
    return middle_of(_at(counts, rank))


def _at(counts: Mapping[int, int], rank: int) -> int:
    ordered = sorted(counts)
    sums = list(accumulate(counts[number] for number in ordered))
    return ordered[bisect_left(sums, rank)]


def percentiles(counts: Mapping[int, int]) -> tuple[float | None, float | None, float | None]:
    """The 50th, the 95th and the 99th."""
    return percentile(counts, 0.5), percentile(counts, 0.95), percentile(counts, 0.99)
