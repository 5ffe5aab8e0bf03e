"""Retries: the policy, and what it says about one failed attempt. Pure: nothing here waits.

The length of a delay is tenacity's arithmetic; what is added is which errors count, the caps, and
the delay that an error itself asks for.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from inspect import isclass
from typing import Annotated, Any, ClassVar, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, field_validator, model_validator
from tenacity import RetryCallState, wait_exponential_jitter

ErrorTest: TypeAlias = Callable[[BaseException], bool]
ErrorTypes: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]


def retry_after_of(error: BaseException) -> float | None:
    """The seconds that `error` asks to wait; `None` when it does not say.

    Looks at `error.retry_after`, and for a `Retry-After` header at `error.headers` and
    `error.response.headers`: httpx, requests, aiohttp, urllib and Starlette put it there. Both
    forms of RFC 9110 are understood, seconds and a date.
    """
    for asked in (
        getattr(error, "retry_after", None),
        _header(getattr(error, "headers", None)),
        _header(getattr(getattr(error, "response", None), "headers", None)),
    ):
        seconds = _seconds(asked)
        if seconds is not None:
            return seconds
    return None


def _header(headers: object) -> object:
    get: Any = getattr(headers, "get", None)
    with suppress(Exception):  # of headers that are something else
        return get("Retry-After") or get("retry-after")
    return None


def _seconds(asked: object) -> float | None:
    if isinstance(asked, int | float) and not isinstance(asked, bool):
        return max(0.0, float(asked))
    if not isinstance(asked, str):
        return None
    if asked.strip().isdecimal():
        return float(asked)
    with suppress(ValueError, TypeError):
        until = parsedate_to_datetime(asked)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    return None


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
    of up to `wait_jitter`, together at most `wait_max`: tenacity's `wait_exponential_jitter`. All
    times are in seconds.

    Raises:
        ValueError: a value that is out of range, or values that contradict each other.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True
    )

    attempts: Annotated[int, Field(ge=1, strict=False)] = 3
    """How often the function is called at most, the first time included."""
    on: Annotated[ErrorTypes | ErrorTest, PlainValidator(_error_types_or_test)] = Exception
    """The errors that are retried: a class, a tuple of classes, or a function that is asked."""
    on_timeout: bool = True
    """True: an attempt that ran into its timeout is retried, too, whatever `on` says."""
    total_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds after the start of the first attempt at which no other one may begin any more."""
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

    @field_validator("attempts", mode="before")
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

    def covers(self, error: BaseException, *, timed_out: bool) -> bool:
        """True when an attempt that ended with `error` is to be followed by another one.

        Raises:
            Exception: what a function given as `on` raises.
        """
        if timed_out:
            return self.on_timeout
        on: Any = self.on
        if isinstance(on, tuple):
            return isinstance(error, cast("tuple[type[BaseException], ...]", on))
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
    if attempt >= policy.attempts or not policy.covers(error, timed_out=timed_out):
        return None
    delay = None if policy.wait_from_error is None else policy.wait_from_error(error)
    if delay is None:
        delay = _computed(policy, attempt)
    delay = min(delay, policy.wait_max)
    if policy.total_timeout is not None and elapsed + delay >= policy.total_timeout:
        return None
    return delay


def _computed(policy: Retry, attempt: int) -> float:
    nobody: Any = None
    state = RetryCallState(nobody, None, (), {})
    state.attempt_number = attempt
    wait = wait_exponential_jitter(
        initial=policy.wait_initial,
        max=policy.wait_max,
        exp_base=policy.wait_exp_base,
        jitter=policy.wait_jitter,
    )
    return float(wait(state))
