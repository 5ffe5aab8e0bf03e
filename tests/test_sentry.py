"""Sentry sees each failed task once, with the original exception: the recipes of its page."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SECRET = "4242-4242"
FAILED = Counter(
    {
        ("ConnectionError", "the bank does not answer"): 2,
        ("KeyError", "'card'"): 1,
        ("TimeoutError", "hang ran longer than its timeout of 0.01 s"): 1,
    }
)


RECIPES = ("nothing", "log", "log without local variables", "hook", "hook beside a log")
Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def reported() -> dict[str, Events]:
    """The events that `tests/sentry_app.py` would have sent, for each recipe."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.sentry_app"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Events] = json.loads(result.stdout.splitlines()[-1])
    return found


def errors(events: Events) -> Counter[tuple[str, str]]:
    """What was raised in each; the last of a chain is the one that the task ended with."""
    found = [event["exception"]["values"][-1] for event in events]
    return Counter((error["type"], error["value"]) for error in found)


@pytest.mark.parametrize("recipe", ["log", "hook", "hook beside a log"])
def test_each_failed_task_is_one_event_with_its_exception(
    recipe: str, reported: dict[str, Events]
) -> None:
    events = reported[recipe]
    assert errors(events) == FAILED
    for event in events:
        assert event["level"] == "error"
        told = event["tags"] if recipe.startswith("hook") else event["extra"]
        assert told["task"] in {"fail_async", "fail_sync", "hang", "detached"}


@pytest.mark.parametrize("recipe", ["log", "hook", "hook beside a log"])
def test_an_event_tells_the_request_of_its_task(recipe: str, reported: dict[str, Events]) -> None:
    for event in reported[recipe]:
        assert event["transaction"] == "/signup"
        assert event["request"]["url"] == "http://testserver/signup"


def test_the_stack_of_an_event_is_that_of_the_function(reported: dict[str, Events]) -> None:
    stacks = [event["exception"]["values"][-1]["stacktrace"] for event in reported["log"][:2]]
    assert [[frame["function"] for frame in stack["frames"]] for stack in stacks] == [
        ["fail_async"],
        ["fail_sync"],
    ]


def test_a_log_that_is_printed_is_not_seen(reported: dict[str, Events]) -> None:
    """Why the page has a second recipe."""
    assert reported["nothing"] == []


def test_arguments_are_reported_as_local_variables_unless_told(
    reported: dict[str, Events],
) -> None:
    assert SECRET in json.dumps(reported["log"])
    assert SECRET not in json.dumps(reported["log without local variables"])
