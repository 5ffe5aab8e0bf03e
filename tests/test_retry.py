"""The retry policy: which errors, how long a delay, what an error may ask for. Nothing waits."""

import email.message
import math
import re
import urllib.error
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from fastapi_bgx import BacklogFull, Retry
from fastapi_bgx.retry import next_delay, retry_after_of

PROPERTY = hypothesis_settings(max_examples=200, deadline=None, derandomize=True, database=None)
SECONDS = st.floats(0, 1e6)


def delay(policy: Retry, **changes: Any) -> float | None:
    """What follows a first attempt that failed."""
    asked: dict[str, Any] = {
        "attempt": 1,
        "error": ValueError(),
        "timed_out": False,
        "elapsed": 0.0,
    } | changes
    return next_delay(policy, **asked)


def exact(**options: Any) -> Retry:
    """A policy without chance."""
    return Retry(**{"wait_jitter": 0, **options})


# How often.


@PROPERTY
@given(attempts=st.integers(1, 50), attempt=st.integers(1, 60))
def test_there_are_as_many_attempts_as_the_policy_says(attempts: int, attempt: int) -> None:
    follows = delay(Retry(attempts=attempts), attempt=attempt) is not None
    assert follows is (attempt < attempts)


# How long.


@PROPERTY
@given(
    initial=SECONDS,
    more=SECONDS,
    jitter=SECONDS,
    base=st.floats(1, 1e3),
    attempt=st.integers(1, 10_000),
)
def test_a_delay_is_between_the_backoff_and_the_backoff_with_all_its_jitter(
    initial: float, more: float, jitter: float, base: float, attempt: int
) -> None:
    """Also where the power is more than a float can hold."""
    longest = initial + more
    policy = Retry(
        attempts=attempt + 1,
        wait_initial=initial,
        wait_max=longest,
        wait_jitter=jitter,
        wait_exp_base=base,
    )
    found = delay(policy, attempt=attempt)
    try:
        backoff = initial * base ** (attempt - 1)
    except OverflowError:
        backoff = math.inf if initial else longest
    assert found is not None
    assert min(backoff, longest) <= found * (1 + 1e-9)
    assert found <= min(backoff + jitter, longest) * (1 + 1e-9)


def test_the_delays_double_up_to_the_longest() -> None:
    policy = exact(attempts=9, wait_initial=1, wait_max=10)
    assert [delay(policy, attempt=n) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_with_a_base_of_one_all_delays_are_the_same() -> None:
    policy = exact(attempts=9, wait_initial=0.5, wait_exp_base=1)
    assert {delay(policy, attempt=n) for n in range(1, 9)} == {0.5}


def test_the_jitter_is_by_chance() -> None:
    policy = Retry(wait_initial=0.1, wait_jitter=1)
    assert len({delay(policy) for _ in range(20)}) > 10


def test_a_delay_of_any_length_is_computed_without_a_warning() -> None:
    """Some versions of tenacity warn of arguments that others need."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert delay(exact(wait_initial=0.25)) == 0.25


@PROPERTY
@given(elapsed=SECONDS, initial=st.floats(0, 60), total=st.floats(0.001, 1e6))
def test_no_attempt_begins_after_the_total_timeout(
    elapsed: float, initial: float, total: float
) -> None:
    found = delay(exact(wait_initial=initial, total_timeout=total), elapsed=elapsed)
    assert (found is None) is (elapsed + initial >= total)


# Which errors.


@pytest.mark.parametrize(
    ("on", "error", "follows"),
    [
        (None, ValueError(), True),
        (None, SystemExit(), False),
        (ConnectionError, ConnectionError(), True),
        (ConnectionError, ConnectionResetError(), True),
        (ConnectionError, ValueError(), False),
        ((ConnectionError, ValueError), ValueError(), True),
        ((ConnectionError, ValueError), KeyError(), False),
        (Exception, SystemExit(), False),
        (BaseException, SystemExit(), True),
        (lambda error: "again" in str(error), ValueError("again"), True),
        (lambda error: "again" in str(error), ValueError("never"), False),
        (lambda error: "a text is true, too", ValueError(), True),
    ],
)
def test_only_errors_that_are_covered_are_tried_again(
    on: Any, error: BaseException, follows: bool
) -> None:
    policy = Retry() if on is None else Retry(on=on)
    assert (delay(policy, error=error) is not None) is follows


@pytest.mark.parametrize("on_timeout", [True, False])
def test_a_timeout_is_tried_again_as_the_policy_says_whatever_errors_are(on_timeout: bool) -> None:
    """Its error is ours: `on` is about those of the function."""
    for on in KeyError, TimeoutError, lambda error: not on_timeout:
        policy = Retry(on=on, on_timeout=on_timeout)
        found = delay(policy, error=TimeoutError(), timed_out=True)
        assert (found is not None) is on_timeout


def test_what_the_function_of_a_policy_raises_is_passed_on() -> None:
    policy = Retry(on=lambda error: error.args[7])
    with pytest.raises(IndexError):
        delay(policy)


def test_a_function_is_not_asked_when_there_is_no_attempt_left_anyhow() -> None:
    asked: list[BaseException] = []

    def on(error: BaseException) -> bool:
        asked.append(error)
        return True

    assert delay(Retry(on=on, attempts=2), attempt=2) is None
    assert delay(Retry(on=on, total_timeout=5), elapsed=5.0) is None
    assert not asked


# What an error asks for.


class Asks(Exception):
    """An error that carries what its test wants."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        vars(self).update(attributes)


class Answer:
    """A response, as HTTP libraries hang it on their errors."""

    def __init__(self, headers: Any) -> None:
        self.headers = headers


def soon(seconds: float) -> str:
    """A date of HTTP."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def of_httpx(value: str) -> Exception:
    request = httpx.Request("GET", "https://example.com")
    response = httpx.Response(503, headers={"retry-after": value}, request=request)
    return httpx.HTTPStatusError("no", request=request, response=response)


def of_urllib(value: str) -> Exception:
    headers = email.message.Message()
    headers["Retry-After"] = value
    return urllib.error.HTTPError("https://example.com", 503, "no", headers, None)


def of_requests(value: str) -> Exception:
    """Its errors have a response, whose headers ignore case; before an answer that is `None`."""
    assert retry_after_of(Asks(response=None)) is None
    return Asks(response=Answer(httpx.Headers({"RETRY-AFTER": value})))


def of_starlette(value: str) -> Exception:
    return HTTPException(503, headers={"Retry-After": value})


def of_aiohttp(value: str) -> Exception:
    """Its `ClientResponseError` has the headers itself, and they ignore case."""
    return Asks(headers=httpx.Headers({"RETRY-AFTER": value}), status=503)


@pytest.mark.parametrize("make", [of_httpx, of_urllib, of_requests, of_starlette, of_aiohttp])
def test_the_header_of_an_answer_is_found_where_the_libraries_put_it(
    make: Callable[[str], Exception],
) -> None:
    assert retry_after_of(make("7")) == 7
    assert delay(exact(), error=make("7")) == 7
    asked = retry_after_of(make(soon(100)))
    assert asked is not None
    assert 95 < asked <= 100


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (3, 3),
        (0.5, 0.5),
        ("12", 12),
        (" 12 ", 12),
        (timedelta(minutes=2), 120),
        (timedelta(minutes=-2), 0),
        (-4, 0),
        (0, 0),
        (math.inf, math.inf),
        (math.nan, 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("Sun Nov  6 08:49:37 1994", 0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0),
        ("-3", None),
        ("1.5", None),
        ("", None),
        ("soon", None),
        ("Mon, 01 Jan 99999999999999999 00:00:00 GMT", None),
        ("Mon, 31 Feb 2094 00:00:00 GMT", None),
        (True, None),
        (None, None),
        (b"3", None),
        ([3], None),
    ],
)
def test_an_error_may_say_itself_how_long(asked: object, seconds: float | None) -> None:
    assert retry_after_of(Asks(retry_after=asked)) == seconds


def test_the_old_form_of_a_date_is_in_the_same_time_zone() -> None:
    moment = datetime.now(UTC) + timedelta(hours=1)
    asked = retry_after_of(Asks(retry_after=moment.strftime("%a %b %d %H:%M:%S %Y")))
    assert asked is not None
    assert 3590 < asked <= 3600


@PROPERTY
@given(
    st.one_of(st.text(), st.binary(), st.integers(), st.floats(), st.none(), st.lists(st.text()))
)
def test_whatever_an_error_carries_there_is_a_delay(garbage: object) -> None:
    policy = exact(wait_initial=2, wait_max=50)
    for error in (
        Asks(retry_after=garbage),
        Asks(headers=garbage),
        Asks(headers={"Retry-After": garbage}),
        Asks(response=garbage),
        Asks(response=Answer({"retry-after": garbage})),
    ):
        found = delay(policy, error=error)
        assert found is not None
        assert 0 <= found <= 50


def test_an_error_that_fails_when_it_is_asked_does_not_keep_the_task_from_its_next_attempt() -> (
    None
):
    class Nasty(Exception):
        @property
        def retry_after(self) -> float:
            raise RuntimeError("no response was received")

        headers = retry_after

        @property
        def response(self) -> Answer:
            return Answer({"Retry-After": "4"})

    assert retry_after_of(Nasty()) == 4


def test_the_backlog_that_was_full_says_how_long() -> None:
    assert retry_after_of(BacklogFull(10, retry_after=5)) == 5


def test_an_error_gets_no_longer_delay_than_the_longest() -> None:
    assert delay(exact(wait_max=10), error=Asks(retry_after=3600)) == 10
    assert delay(exact(wait_max=10), error=Asks(retry_after=math.inf)) == 10


def test_the_delay_of_an_error_counts_for_the_total_timeout() -> None:
    policy = exact(total_timeout=20)
    assert delay(policy, error=Asks(retry_after=19)) == 19
    assert delay(policy, error=Asks(retry_after=20)) is None


def test_the_delay_is_computed_where_nobody_looks_at_the_error() -> None:
    policy = exact(wait_initial=2, wait_from_error=None)
    assert delay(policy, error=Asks(retry_after=9)) == 2


@pytest.mark.parametrize(
    ("answer", "expected"), [(None, 2), (0.5, 0.5), (-1, 0), (math.nan, 0), (99, 60)]
)
def test_a_function_of_ones_own_reads_the_delay(answer: float | None, expected: float) -> None:
    policy = exact(wait_initial=2, wait_from_error=lambda error: answer)
    assert delay(policy) == expected


# The values.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attempts": 0}, "greater than or equal to 1"),
        ({"attempts": 2.5}, "integer"),
        ({"attempts": True}, "should be a number"),
        ({"on": ValueError()}, "an exception class"),
        ({"on": ()}, "an exception class"),
        ({"on": (ValueError, int)}, "an exception class"),
        ({"on": int}, "an exception class"),
        ({"on": "ValueError"}, "an exception class"),
        ({"total_timeout": 0}, "greater than 0"),
        ({"total_timeout": True}, "should be a number"),
        ({"wait_initial": -1}, "greater than or equal to 0"),
        ({"wait_initial": False}, "should be a number"),
        ({"wait_initial": math.nan}, "finite"),
        ({"wait_max": math.inf}, "finite"),
        ({"wait_jitter": -0.1}, "greater than or equal to 0"),
        ({"wait_exp_base": 0.5}, "greater than or equal to 1"),
        ({"wait_from_error": 3}, "a function"),
        ({"attempts": None}, "valid integer"),
        ({"wait_initial": 5, "wait_max": 1}, "wait_initial (5 s) is longer than wait_max (1 s)"),
        ({"wait": 5}, "Extra inputs"),
    ],
)
def test_a_wrong_value_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Retry(**wrong)
    assert all(name in str(error.value) for name in wrong)


def test_a_policy_does_not_change_and_can_be_a_key() -> None:
    """Options are found again by their values."""
    policy = Retry(on=(KeyError,), attempts=4)
    assert {policy: 1}[Retry(on=KeyError, attempts=4)] == 1
    with pytest.raises(ValueError, match="frozen"):
        policy.attempts = 5


def test_one_policy_over_another_changes_what_it_names() -> None:
    code = Retry(on=KeyError, attempts=2, wait_max=9)
    assert Retry(attempts=7).over(code) == Retry(on=KeyError, attempts=7, wait_max=9)
