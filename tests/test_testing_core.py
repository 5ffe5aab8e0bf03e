"""The clock of a test, and captured tasks, with retries, delays and unique tasks."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import anyio
import pytest
from fastapi import FastAPI

from fastapi_bgx import Bgx, Progress, Retry, Settings, Task, Tasks
from fastapi_bgx.testing import Captured, Clock, capturing_tasks, owning_clock
from tests.asgi import client_of
from tests.supervision import PATIENCE, serving, tasks_of

RETRY: Any = Retry(attempts=4, wait_initial=60, wait_max=600, wait_jitter=0)
"""Pauses of one, two and four minutes."""


@pytest.fixture
def clock() -> Iterator[Clock]:
    with owning_clock() as owned:
        yield owned


@pytest.fixture
def captured() -> Iterator[Captured]:
    with capturing_tasks() as tasks:
        yield tasks


class Failing:
    """A function that fails until its last attempt."""

    def __init__(self, times: int) -> None:
        self.calls: list[float] = []
        self.times = times
        self.now: Any = time.monotonic

    async def __call__(self) -> str:
        self.calls.append(self.now())
        if len(self.calls) <= self.times:
            raise ConnectionError
        return "done"


def app_with(func: Any, **options: Any) -> tuple[FastAPI, list[Task[Any]]]:
    app, added = FastAPI(), list[Task[Any]]()
    Bgx(Settings()).install(app)

    @app.post("/")
    async def add(tasks: Tasks) -> None:
        added.append(tasks.using(**options).add_task(func))

    return app, added


@pytest.mark.parametrize("thread", [False, True])
def test_an_inline_task_is_retried_in_no_time(
    clock: Clock, anyio_backend: str, thread: bool
) -> None:
    failing = Failing(3)
    failing.now = clock.now

    def in_thread() -> Any:
        failing.calls.append(clock.now())
        if len(failing.calls) <= failing.times:
            raise ConnectionError
        return "done"

    app, added = app_with(in_thread if thread else failing, retry=RETRY)
    started = time.monotonic()
    client_of(app, anyio_backend).post("/")
    assert time.monotonic() - started < PATIENCE
    assert added[0].status == "succeeded"
    first = failing.calls[0]
    assert [round(call - first) for call in failing.calls] == [0, 60, 180, 420]


def test_a_delayed_inline_task_runs_in_no_time(clock: Clock, anyio_backend: str) -> None:
    app, added = app_with(Failing(0), delay=3600)
    client_of(app, anyio_backend).post("/")
    assert added[0].status == "succeeded"
    assert added[0].queued_s == pytest.approx(3600)


@pytest.mark.anyio
async def test_a_detached_task_is_retried_as_the_test_advances(clock: Clock) -> None:
    failing = Failing(2)
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(detached=True, retry=RETRY).add_task(failing)
        await tasks()
        await clock.advance_async(59)
        assert (task.status, len(failing.calls)) == ("retrying", 1)
        await clock.advance_async(1)
        assert (task.status, len(failing.calls)) == ("retrying", 2)
        await clock.advance_async(120)
        assert (task.status, len(failing.calls)) == ("succeeded", 3)


@pytest.mark.anyio
async def test_run_at_is_by_the_clock_of_the_test(clock: Clock) -> None:
    failing = Failing(0)
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        moment = clock.wall() + timedelta(days=1)
        task = tasks.using(detached=True, run_at=moment).add_task(failing)
        await tasks()
        await clock.advance_async(86_399)
        assert task.status == "queued"
        await clock.advance_async(1)
        assert task.status == "succeeded"


def test_a_drain_ends_a_pause_in_no_time(clock: Clock, anyio_backend: str) -> None:
    app, added = app_with(Failing(9), detached=True, retry=RETRY)
    with client_of(app, anyio_backend) as client:
        client.post("/")
    assert added[0].done


@pytest.mark.parametrize("lifespan", [False, True])
def test_captured_tasks_keep_their_delay_and_retry(
    clock: Clock, captured: Captured, anyio_backend: str, lifespan: bool
) -> None:
    failing = Failing(1)
    app, _ = app_with(failing, run_at=clock.wall() + timedelta(hours=1), retry=RETRY)
    client = client_of(app, anyio_backend)
    if lifespan:
        with client:
            client.post("/")
            [outcome] = captured.run()
    else:
        client.post("/")
        captured.using(retry=RETRY).added(failing)
        [outcome] = captured.run(backend=anyio_backend)
    assert (outcome.returned, outcome.attempts) == ("done", 2)
    assert outcome.queued_s == pytest.approx(3600)


@pytest.mark.anyio
async def test_nobody_hears_of_the_progress_of_a_captured_task(captured: Captured) -> None:
    tasks = await tasks_of(Bgx(Settings()))
    task = tasks.add_task(Failing(0))
    task.progress(0.5, "by hand")
    assert captured.added(task.func).last_progress == Progress(0.5, "by hand")


def test_a_captured_task_can_be_cancelled(captured: Captured, anyio_backend: str) -> None:
    app, added = app_with(Failing(0))
    with client_of(app, anyio_backend) as client:
        client.post("/")
        assert added[0].cancel()
        assert client.get("/").status_code == 405  # the loop has gone on
        assert len(captured) == 0


@pytest.mark.anyio
async def test_a_unique_task_is_captured_once(captured: Captured) -> None:
    bgx, failing = Bgx(Settings()), Failing(0)
    tasks = await tasks_of(bgx)
    first = tasks.using(unique="order-42").add_task(failing)
    assert tasks.using(unique="order-42").add_task(failing) is first
    captured.times(1).using(unique="order-42").added(failing)
    await tasks()
    with anyio.fail_after(PATIENCE):
        await captured.run_async()
    again = tasks.using(unique="order-42").add_task(failing)
    assert again is not first
