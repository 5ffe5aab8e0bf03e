"""Rates: so many starts in so long a time. All that is known here of pyrate-limiter.

Its bucket is a log of the starts of one window that slides. It is handed each moment, so it asks no
clock, and none of its threads is started.
"""

import re
from dataclasses import dataclass, field
from importlib import import_module

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
FORM = re.compile(rf"([1-9]\d*)/(?:([1-9]\d*) )?({'|'.join(SECONDS)})s?", re.ASCII)
NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `starts` starts within any `seconds` seconds."""

    starts: int
    seconds: int
    text: str = field(compare=False)
    """As it was written."""


def parse_rate(text: object) -> Rate:
    """The rate that is written as `100/minute` or `10/5 minutes`.

    Raises:
        ValueError: it is written in another way.
        ImportError: the extra `rates` is not installed.
    """
    if not isinstance(text, str) or (found := FORM.fullmatch(text)) is None:
        raise ValueError(f"write a rate as '100/minute' or '10/5 minutes' ({', '.join(SECONDS)})")
    _require_library()
    number, times, unit = found.groups()
    return Rate(int(number), int(times or 1) * SECONDS[unit], text)


def check_rate(text: str) -> str:
    """The same text, if it is a rate: see `parse_rate`."""
    parse_rate(text)
    return text


class Starts:
    """When tasks started, as far back as the rate looks. Moments are seconds of a clock."""

    __slots__ = ("_bucket", "_item", "_window")

    def __init__(self, rate: Rate) -> None:
        from pyrate_limiter import InMemoryBucket, RateItem
        from pyrate_limiter import Rate as BucketRate

        # Its timestamps are integers of any unit. With nanoseconds nothing is rounded that
        # `time.monotonic` can tell apart.
        self._window = rate.seconds * NANO
        self._bucket = InMemoryBucket([BucketRate(rate.starts, self._window)])
        self._item = RateItem

    def record(self, now: float) -> None:
        """A task starts. There has to be room for it."""
        recorded = self._bucket.put(self._item("start", _nanoseconds(now)))
        assert recorded, "more starts than the rate allows"

    def forget(self, now: float) -> int:
        """Forget the starts that have left the window, and say how many they were."""
        # It keeps what is as old as the window is long. That is no longer inside: hence the 1.
        return self._bucket.leak(_nanoseconds(now) + 1)

    def wait(self, now: float) -> float | None:
        """Seconds until the first start leaves the window; `None` when there is none."""
        oldest = self._bucket.peek(self._bucket.count() - 1)
        if oldest is None:
            return None
        return (oldest.timestamp + self._window - _nanoseconds(now)) / NANO


def _nanoseconds(moment: float) -> int:
    return round(moment * NANO)


def _require_library() -> None:
    """Fail where the rate is written, not where the first task of it is added."""
    try:
        import_module("pyrate_limiter")
    except ImportError as error:
        raise ImportError(
            "a rate needs pyrate-limiter: pip install 'fastapi-bgx[rates]'"
        ) from error
