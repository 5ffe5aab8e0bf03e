"""Values and errors as texts: bounded, storable, and never the cause of another error."""

import json
import math
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr

from fastapi_bgx.listeners.recorder import failures
from fastapi_bgx.listeners.recorder.failures import describe, is_of_application, message_of
from fastapi_bgx.records import MOST_TEXT, MOST_TRACEBACK
from fastapi_bgx.texts import both_ends, clean, shortened, summary_of, text_of


class Color(Enum):
    RED = "red"


class Size(StrEnum):
    BIG = "big"


@dataclass
class Order:
    number: int
    card: str = field(default="4111", repr=False)


class User(BaseModel):
    name: str
    password: str = Field(default="hunter2", repr=False)
    token: SecretStr = SecretStr("s3cret")


class Rude:
    def __repr__(self) -> str:
        raise SystemExit("no")


class Endless:
    def __repr__(self) -> str:
        return f"<{self!r}>"


class Evil:
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("not bound")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (2.5, "2.5"),
        ("né", '"né"'),
        (math.nan, '"NaN"'),
        ([math.inf, -math.inf], '["Infinity", "-Infinity"]'),
        ({"a": [1, (2, 3)], 4: {5}}, '{"a": [1, [2, 3]], "4": [5]}'),
        (deque([1]), "[1]"),
        (Color.RED, '"red"'),
        ({Color.RED: Size.BIG}, '{"red": "big"}'),
        (Decimal("1.10"), '"1.10"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (datetime(2026, 1, 2, tzinfo=UTC), '"2026-01-02 00:00:00+00:00"'),
        (Path("a/b"), '"a/b"'),
        (Order(7), '{"number": 7}'),
        (User(name="ann"), '{"name": "ann", "token": "SecretStr(\'**********\')"}'),
        (b"\x00abc", "b'\\x00abc'"),
        ([b"x"], "[\"b'x'\"]"),
        (Order, repr(Order)),
    ],
)
def test_a_value_is_shown_as_json_or_else_by_its_repr(value: Any, text: str) -> None:
    assert summary_of(value) == text


def test_a_value_that_fails_when_it_is_looked_at_is_said_to_do_so() -> None:
    assert summary_of(Rude()) == "<Rude that cannot be shown: SystemExit>"
    assert summary_of([Rude()]) == '["<Rude that cannot be shown: SystemExit>"]'
    assert summary_of({"a": Endless()}) == '{"a": "<Endless that cannot be shown: RecursionError>"}'
    assert summary_of(Evil()) == "<Evil that cannot be shown: RuntimeError>"
    assert summary_of(1 << 20_000) == '"<integer of 20,001 bits>"'


def test_what_refers_to_itself_ends() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert summary_of(loop) == '[1, "…"]'
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    assert len(summary_of(deep)) < 100


def test_no_more_of_a_huge_value_is_looked_at_than_is_shown() -> None:
    looked = 0

    class Huge(dict[str, int]):
        def items(self) -> Any:
            nonlocal looked
            for looked in count():
                yield str(looked), looked

    text = summary_of(Huge())
    assert len(text) == MOST_TEXT
    assert text.endswith("…")
    assert looked < MOST_TEXT
    assert len(summary_of(bytes(10**8))) == MOST_TEXT
    assert len(summary_of({"x" * 10**6: "y" * 10**6})) <= MOST_TEXT


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
)


@given(json_values, st.integers(10, 300))
def test_a_text_is_bounded_and_can_be_stored(value: Any, most: int) -> None:
    text = summary_of(value, most)
    assert len(text) <= most
    text.encode()
    assert "\x00" not in text
    if not text.endswith("…"):
        json.loads(text)


@given(st.text(st.characters(categories=["Cs", "Cc", "L"])))
def test_what_a_database_refuses_is_replaced(text: str) -> None:
    assert "\x00" not in clean(text)
    clean(text).encode()
    assert len(clean(text)) == len(text)


def test_a_long_text_keeps_its_beginning_or_both_its_ends() -> None:
    assert shortened("abcdef", 4) == "abc…"
    assert both_ends("short", 100) == "short"
    text = both_ends("a" * 500 + "b" * 500, 200)
    assert len(text) <= 200
    assert text.startswith("aaa")
    assert text.endswith("bbb")
    assert text_of(Evil()).startswith("<tests.test_record_texts.Evil object")
    assert "cannot be shown" in text_of(Rude())


# Errors.


def plain(text: str) -> str:
    return text


def fail(depth: int = 0) -> None:
    if depth:
        fail(depth - 1)
    json.loads("{")


def caught(function: Any) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


def test_the_place_of_an_error_is_the_innermost_one_of_the_application() -> None:
    found = describe(caught(fail), plain)
    assert found.type == "json.decoder.JSONDecodeError"
    line = fail.__code__.co_firstlineno + 3
    assert found.place == f"tests/test_record_texts.py:{line} in fail"
    assert found.traceback.startswith("Traceback (most recent call last):\n")
    assert found.traceback.endswith(f"{found.type}: {found.message}")


def test_errors_of_one_class_from_one_function_have_one_fingerprint() -> None:
    prints = {describe(caught(each), plain).fingerprint for each in (fail, lambda: fail(3))}
    assert len(prints) == 1
    prints.add(describe(caught(lambda: 1 / 0), plain).fingerprint)
    prints.add(describe(ValueError("raised nowhere"), plain).fingerprint)
    assert len(prints) == 3


def test_without_a_frame_of_the_application_the_innermost_one_is_the_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failures, "is_of_application", lambda _: False)
    assert describe(caught(fail), plain).place.endswith("in raw_decode")


def test_what_is_installed_is_not_of_the_application() -> None:
    assert is_of_application("/srv/app/mail.py")
    assert not is_of_application("/srv/.venv/lib/python3.11/site-packages/httpx/_client.py")
    assert not is_of_application(failures.__file__)
    assert not is_of_application("<frozen importlib._bootstrap>")


def test_a_cause_that_is_known_as_a_text_tells_the_place() -> None:
    error = TimeoutError("too long")
    error.__cause__ = RuntimeError(
        'it is here:\n  File "/srv/app/mail.py", line 31, in send\n    wait()\n'
        '  File "/usr/lib/site-packages/x.py", line 3, in wait\n'
    )
    assert describe(error, plain).place == "/srv/app/mail.py:31 in send"
    error.__cause__ = caught(fail)
    assert describe(error, plain).place.endswith("in fail")
    error.__cause__ = RuntimeError("who knows")
    assert describe(error, plain).place == ""


def test_chains_groups_and_notes_are_in_the_traceback() -> None:
    def chained() -> None:
        try:
            fail()
        except ValueError as error:
            try:
                raise LookupError("second")
            except LookupError:
                third = KeyError("third")
                third.add_note("a note")
                raise ExceptionGroup("many", [third, error]) from None

    def outer() -> None:
        try:
            chained()
        except ExceptionGroup as error:
            raise RuntimeError("outer") from error

    text = describe(caught(outer), plain).traceback
    assert "direct cause" in text
    assert "  | KeyError: 'third'\n  | a note\n" in text
    assert "  +---------------- 2 ----------------\n" in text
    assert text.endswith("RuntimeError: outer")
    assert "JSONDecodeError" in text


def test_a_traceback_is_bounded_whatever_the_error() -> None:
    def recurse() -> None:
        recurse()

    text = describe(caught(recurse), plain).traceback
    assert "frames left out" in text
    assert len(text) <= MOST_TRACEBACK
    error = first = ValueError("0")
    for number in range(1, 1000):
        error.__context__ = ValueError(str(number))
        error = error.__context__
    assert "errors before this one were left out" in describe(first, plain).traceback
    group: Exception = ValueError("innermost")
    for _ in range(100):
        group = ExceptionGroup("g", [group])
    assert "was left out" in describe(group, plain).traceback
    wide = ExceptionGroup("wide", [ValueError(i) for i in range(1000)])
    assert "and 985 more" in describe(wide, plain).traceback
    circle = ValueError("round")
    circle.__cause__ = KeyError()
    circle.__cause__.__cause__ = circle
    assert len(describe(circle, plain).traceback) < 500
    assert len(describe(ValueError("x" * 10**6), plain).message) == MOST_TEXT


def test_a_group_of_groups_of_the_same_errors_does_not_grow_without_bound() -> None:
    error: Exception = ValueError("leaf")
    for _ in range(7):
        error = ExceptionGroup("g", [error] * 15)  # 170 million paths lead to the leaf
    messages: list[str] = []

    def safe(text: str) -> str:
        messages.append(text)
        return text

    assert "more errors, which were left out" in describe(error, safe).traceback
    assert len(messages) < 250


@pytest.mark.parametrize("notes", [3, None, "text", [3, "x" * 10**6]])
def test_notes_that_are_none_hide_no_error(notes: object) -> None:
    error = ValueError("boom")
    error.__notes__ = notes  # type: ignore[assignment]  # nothing keeps anybody from it
    assert describe(error, plain).traceback.startswith("ValueError: boom")
    assert len(describe(error, plain).traceback) < 3_000


def test_every_message_in_a_traceback_is_redacted() -> None:
    def two() -> None:
        try:
            raise ValueError("card 4111")
        except ValueError as error:
            error.add_note("card 4111, again")
            raise ExceptionGroup("card 4111", [KeyError("card 4111")]) from error

    def safe(text: str) -> str:
        return text.replace("4111", "****")

    found = describe(caught(two), safe)
    shown = [line for line in found.traceback.splitlines() if "raise" not in line]
    assert not [line for line in shown if "4111" in line and "add_note" not in line]
    assert found.message == "card **** (1 sub-exception)"


def test_an_error_that_cannot_say_what_it_is_is_shown_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    assert message_of(Mute(), plain) == (
        "<test_an_error_that_cannot_say_what_it_is_is_shown_all_the_same.<locals>.Mute "
        "that cannot be shown: ValueError>"
    )
