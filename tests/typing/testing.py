"""What tests ask of `fastapi_bgx.testing` has the types that it promises."""

from datetime import datetime
from typing import Any, assert_type

from fastapi_bgx import Outcome, Task
from fastapi_bgx.testing import (
    Captured,
    CapturedView,
    Clock,
    Failures,
    capturing_tasks,
    owning_clock,
    watching_failures,
)


async def send(to: str, *, copies: int = 1) -> bytes:
    return to.encode() * copies


def write(line: str) -> int:
    return len(line)


def asserting(bgx_tasks: Captured) -> None:
    assert_type(bgx_tasks.added(send, "a@b.c"), Task[bytes])
    assert_type(bgx_tasks.added(write), Task[int])
    assert_type(bgx_tasks.added(lambda: 1.5), Task[float])
    assert_type(bgx_tasks.matching(send, copies=2), list[Task[bytes]])
    assert_type(bgx_tasks.using(timeout=5), CapturedView)
    assert_type(bgx_tasks.using(timeout=5).times(2).added(send), Task[bytes])
    assert_type(bgx_tasks[0], Task[Any])
    assert_type(bgx_tasks.names(), list[str])
    assert_type(bgx_tasks.in_order(send, write), list[Task[Any]])
    for task in bgx_tasks:
        assert_type(task, Task[Any])


def wrong(bgx_tasks: Captured) -> None:
    bgx_tasks.added("send")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    bgx_tasks.using(timout=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bgx_tasks.times("2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def running(bgx_tasks: Captured) -> None:
    assert_type(bgx_tasks.run(), list[Outcome[Any]])
    assert_type(await bgx_tasks.run_async(raises=False), list[Outcome[Any]])


async def time(bgx_clock: Clock) -> None:
    bgx_clock.advance(60)
    await bgx_clock.advance_async(0.5)
    assert_type(bgx_clock.now(), float)
    assert_type(bgx_clock.wall(), datetime)
    bgx_clock.patience = 0.05


def failing(bgx_failures: Failures) -> None:
    assert_type(bgx_failures.expect(), list[BaseException])


def without_pytest() -> None:
    with capturing_tasks() as captured, owning_clock() as clock, watching_failures() as failures:
        assert_type(captured, Captured)
        assert_type(clock, Clock)
        assert_type(failures, Failures)
