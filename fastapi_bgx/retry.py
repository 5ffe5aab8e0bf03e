"""Retries: the policy, and what it says about one failed attempt. Pure: nothing here waits.

The length of a delay is tenacity's arithmetic; what is added is which errors count, the caps, and
the delay that an error itself asks for.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from inspect import isclass
from typing import Annotated, Any, ClassVar, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, field_validator, model_validator
from tenacity import RetryCallState, wait_exponential, wait_random

ErrorTest: TypeAlias = Callable[[BaseException], bool]
ErrorTypes: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]


def retry_after_of(error: BaseException) -> float | None:
    """The seconds that `error` asks to wait; `None` when it does not say. Never raises.

    Looks at `error.retry_after` (a number, a `timedelta` or a text), and for a `Retry-After` header
    at `error.headers` and `error.response.headers`: httpx, requests, aiohttp, urllib and Starlette
    put it there. Both forms of RFC 9110 are understood, seconds and a date.
    """
    for find in _PLACES:
        with suppress(Exception):  # the error is somebody else's: it may hold anything
            seconds = _seconds(find(error))
            if seconds is not None:
                return seconds
    return None


_PLACES: tuple[Callable[[Any], object], ...] = (
    lambda error: error.retry_after,
    lambda error: _header(error.headers),
    lambda error: _header(error.response.headers),
)


def _header(headers: Any) -> object:
    return headers.get("Retry-After") or headers.get("retry-after")


def _seconds(asked: object) -> float | None:
    if isinstance(asked, timedelta):
        return max(0.0, asked.total_seconds())
    if isinstance(asked, int | float) and not isinstance(asked, bool):
        return max(0.0, float(asked))
    if not isinstance(asked, str):
        return None
    if asked.strip().isdecimal():
        return float(asked)
    until = parsedate_to_datetime(asked)
    if until.tzinfo is None:  # the oldest of the three forms has none, and means the same
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _error_types_or_test(value: Any) -> Any:
    given: Any = value
    classes: tuple[Any, ...] = (*given,) if isinstance(value, tuple) else (given,)
    if classes and all(isclass(each) and issubclass(each, BaseException) for each in classes):
        return classes
    if callable(given) and not isclass(given):
        return given
    raise ValueError("Input should be an exception class, a tuple of them, or a function")


def _delay_function(value: Any) -> Any:
    if value is None or callable(value):
        return value
    raise ValueError("Input should be a function that gives seconds or None, or None")


class Retry(BaseModel):
    """When a failed attempt is followed by another one, and after how long.

    The delay before attempt `n + 1` is `wait_initial * wait_exp_base ** (n - 1)` plus a random part
    of up to `wait_jitter`, together at most `wait_max`: tenacity's `wait_exponential` and
    `wait_random`. All times are in seconds.

    Raises:
        ValueError: a value that is out of range, or values that contradict each other.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True
    )

    attempts: Annotated[int, Field(ge=1, strict=False)] = 3
    """How often the function is called at most, the first time included."""
    on: Annotated[ErrorTypes | ErrorTest, PlainValidator(_error_types_or_test)] = (Exception,)
    """The errors that are retried: a class, a tuple of classes, or a function that is asked."""
    on_timeout: bool = True
    """True: an attempt that ran into its timeout is retried, too, whatever `on` says."""
    total_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds after the start of the first attempt from which on no other one begins. Where the
    delay would end later, the task has failed at once."""
    wait_initial: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """The delay before the second attempt, without its random part."""
    wait_max: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """The longest delay, also where the error asks for a longer one."""
    wait_jitter: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """The most that is added to a delay by chance, so that tasks do not retry all at once."""
    wait_exp_base: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """What each delay is multiplied by to give the next one; 1: they are all the same."""
    wait_from_error: Annotated[
        Callable[[BaseException], float | None] | None, PlainValidator(_delay_function)
    ] = retry_after_of
    """Reads a delay from the error, which then replaces the computed one; `None` in answer, or
    here: it is computed. Default: a `Retry-After` of the error or of its response."""

    @field_validator(
        "attempts",
        "total_timeout",
        "wait_initial",
        "wait_max",
        "wait_jitter",
        "wait_exp_base",
        mode="before",
    )
    @classmethod
    def _no_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("Input should be a number")
        return value

    @model_validator(mode="after")
    def _no_contradiction(self) -> "Retry":
        if self.wait_initial > self.wait_max:
            raise ValueError(
                f"wait_initial ({self.wait_initial:g} s) is longer than wait_max "
                f"({self.wait_max:g} s)"
            )
        return self

    def over(self, other: "Retry") -> "Retry":
        """`other`, with the fields that were named for this one."""
        named = {field: getattr(self, field) for field in self.model_fields_set}
        return other.model_copy(update=named)

    def is_over(self, elapsed: float) -> bool:
        """True when no attempt may begin `elapsed` seconds after the first one any more."""
        return self.total_timeout is not None and elapsed >= self.total_timeout

    def covers(self, error: BaseException, *, timed_out: bool) -> bool:
        """True when an attempt that ended with `error` is to be followed by another one.

        Raises:
            Exception: what a function given as `on` raises.
        """
        if timed_out:
            return self.on_timeout
        on: Any = self.on
        if isinstance(on, tuple | type):  # the default is a class: nobody validates defaults
            return isinstance(error, cast("ErrorTypes", on))
        return bool(on(error))


def next_delay(
    policy: Retry, *, attempt: int, error: BaseException, timed_out: bool, elapsed: float
) -> float | None:
    """Seconds to wait before the next attempt, or `None` when the task is finished.

    `attempt` is the number of the one that ended with `error`, `elapsed` the seconds since the
    first one began.

    Raises:
        Exception: what a function of the policy raises.
    """
    if attempt >= policy.attempts or policy.is_over(elapsed):
        return None
    if not policy.covers(error, timed_out=timed_out):
        return None
    delay = None if policy.wait_from_error is None else policy.wait_from_error(error)
    if delay is None:
        delay = _computed(policy, attempt)
    delay = max(0.0, min(delay, policy.wait_max))  # in this order NaN gives 0, too
    return None if policy.is_over(elapsed + delay) else delay


def _computed(policy: Retry, attempt: int) -> float:
    nobody: Any = None
    state = RetryCallState(nobody, None, (), {})
    state.attempt_number = attempt
    wait = wait_exponential(policy.wait_initial, policy.wait_max, policy.wait_exp_base)
    return float((wait + wait_random(0, policy.wait_jitter))(state))
