"""Async tasks that block the event loop, and so the timers that watch them; and cancel counts."""

import asyncio
import time

import anyio
import pytest
import structlog

from fastapi_bgx import BackgroundTasks, Status

pytestmark = pytest.mark.anyio


async def blocks_at_once() -> str:
    time.sleep(0.02)
    return "done"


async def waits_and_blocks() -> str:
    await anyio.sleep(0)
    time.sleep(0.02)
    return "done"


@pytest.mark.parametrize("block", [blocks_at_once, waits_and_blocks])
async def test_a_task_that_blocks_the_loop_past_its_timeout_succeeds_and_is_told_of(block) -> None:  # type: ignore[no-untyped-def]
    tasks = BackgroundTasks()
    task = tasks.using(timeout=0.005).add_task(block)
    with structlog.testing.capture_logs() as logs:
        await tasks()
    assert task.status is Status.SUCCEEDED
    (overran,) = [line for line in logs if line["event"] == "task.overran"]
    assert overran["ended"] is True
    assert overran["overran_s"] > 0.01


async def test_a_task_that_ends_in_time_is_not_told_of() -> None:
    tasks = BackgroundTasks()
    tasks.using(timeout=5, slow_after=5).add_task(blocks_at_once)
    tasks.using(timeout=5, slow_after=5).add_task(waits_and_blocks)
    with structlog.testing.capture_logs() as logs:
        await tasks()
    assert not [line for line in logs if line["log_level"] == "warning"]


async def test_a_task_that_waited_long_and_ran_short_is_not_told_of() -> None:
    tasks = BackgroundTasks()
    tasks.using(timeout=0.005, slow_after=0.005).add_task(anyio.lowlevel.cancel_shielded_checkpoint)
    time.sleep(0.01)
    with structlog.testing.capture_logs() as logs:
        await tasks()
    assert not [line for line in logs if line["log_level"] == "warning"]


async def test_a_task_that_blocks_the_loop_for_long_is_slow() -> None:
    tasks = BackgroundTasks()
    tasks.using(slow_after=0.005).add_task(blocks_at_once)
    with structlog.testing.capture_logs() as logs:
        await tasks()
    (slow,) = [line for line in logs if line["event"] == "task.slow"]
    assert slow["running_s"] >= 0.02


async def test_a_task_that_blocks_the_loop_for_long_and_fails_is_slow_too() -> None:
    async def waits_blocks_and_fails() -> None:
        await waits_and_blocks()
        raise LookupError

    tasks = BackgroundTasks()
    tasks.using(slow_after=0.005).add_task(waits_blocks_and_fails)
    with structlog.testing.capture_logs() as logs:
        await tasks()
    assert [line["event"] for line in logs if line["log_level"] in ("warning", "error")] == [
        "task.slow",
        "task.failed",
    ]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_cancels_itself_to_time_out_stops_no_sibling() -> None:
    async def old_timeout() -> None:
        host = asyncio.current_task()
        assert host is not None
        asyncio.get_running_loop().call_soon(host.cancel)
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            raise TimeoutError from None  # and the count of the cancellation stays, unasked

    tasks = BackgroundTasks()
    first = tasks.add_task(old_timeout)
    second = tasks.add_task(blocks_at_once)
    await tasks()
    assert first.status is Status.FAILED
    assert second.status is Status.SUCCEEDED
    host = asyncio.current_task()
    assert host is not None
    host.uncancel()
