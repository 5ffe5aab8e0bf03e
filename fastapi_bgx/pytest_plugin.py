"""The pytest plugin: `bgx_tasks`, `bgx_clock`, `bgx_failures`. pytest finds it by itself.

`fastapi_bgx.testing` is loaded when a test asks for a fixture, and not before.
"""

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fastapi_bgx.testing import Captured, Clock, Failures

CHECKS = pytest.StashKey[list[Callable[[], None]]]()
"""What is checked right after a test, so that it is the test that fails."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the one option of `pytest.ini` or `pyproject.toml`."""
    help_text = "a background task that fails, fails the test that caused it: see bgx_failures"
    parser.addini("bgx_raise_failures", help_text, type="bool", default=False)


@pytest.fixture
def bgx_tasks() -> "Iterator[Captured]":
    """Captures what is added, without running it: see `fastapi_bgx.testing.Captured`."""
    from fastapi_bgx.testing import capturing_tasks

    with capturing_tasks() as captured:
        yield captured


@pytest.fixture
def bgx_clock(request: pytest.FixtureRequest) -> "Iterator[Clock]":
    """The clock of every `Bgx`, owned by the test: see `fastapi_bgx.testing.Clock`."""
    from fastapi_bgx.testing import owning_clock

    with owning_clock() as clock:
        _check_after(request, clock.check)
        yield clock


@pytest.fixture
def bgx_failures(request: pytest.FixtureRequest) -> "Iterator[Failures]":
    """Fails the test for each task that fails unexpectedly: see `fastapi_bgx.testing.Failures`."""
    from fastapi_bgx.testing import watching_failures

    with watching_failures() as failures:
        _check_after(request, failures.check)
        yield failures


@pytest.fixture(autouse=True)
def _bgx_raise_failures(request: pytest.FixtureRequest) -> None:
    if request.config.getini("bgx_raise_failures"):
        request.getfixturevalue("bgx_failures")


def _check_after(request: pytest.FixtureRequest, check: Callable[[], None]) -> None:
    request.node.stash.setdefault(CHECKS, []).append(check)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Have the test itself fail, and not its end, for what is known when it returns."""
    __tracebackhide__ = True
    result = yield
    for check in item.stash.setdefault(CHECKS, []):
        check()
    return result
