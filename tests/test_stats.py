"""`bgx.stats()`: a frozen snapshot of what runs and waits now, and of what has ended."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastapi import FastAPI, HTTPException

from fastapi_bgx import (
    BackgroundTasks,
    BacklogFull,
    Bgx,
    Limit,
    LimiterStats,
    Settings,
    Stats,
    Status,
    Tasks,
)
from tests.asgi import call, running

pytestmark = pytest.mark.anyio


def made(bgx: Bgx, add: Callable[[BackgroundTasks], object]) -> FastAPI:
    """An application with one route, which calls `add`."""
    app = FastAPI()
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        add(tasks)

    return app


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.001)


def only(**totals: int) -> dict[Status, int]:
    """Totals by status: zero but for these."""
    return {status: totals.get(status, 0) for status in Status if status.final}


async def fail() -> None:
    raise ValueError


def say_and_wait(path: Path) -> None:
    path.touch()
    threading.Event().wait(10)


async def test_nothing_has_happened() -> None:
    settings = Settings(
        max_concurrency=None, max_threads=3, max_processes=2, limits={"smtp": 1, "crm": 2}
    )
    assert Bgx(settings).stats() == Stats(
        running=0,
        waiting=0,
        overrunning=0,
        limiters={
            "smtp": LimiterStats(slots=1, taken=0, waiting=0),
            "crm": LimiterStats(slots=2, taken=0, waiting=0),
            "concurrency": LimiterStats(slots=None, taken=0, waiting=0),
            "threads": LimiterStats(slots=3, taken=0, waiting=0),
            "processes": LimiterStats(slots=2, taken=0, waiting=0),
        },
        executors={"async": 0, "thread": 0, "process": 0},
        totals=only(),
    )


async def test_what_runs_and_what_waits() -> None:
    bgx = Bgx(Settings(limits={"smtp": 2}, max_concurrency=10))
    gate = anyio.Event()
    thread_gate = threading.Event()

    def add(tasks: BackgroundTasks) -> None:
        view = tasks.using(detached=True, concurrent=True)
        for _ in range(5):
            view.using(limit="smtp").add_task(gate.wait)
        view.add_task(gate.wait)
        view.add_task(thread_gate.wait, 10)

    app = made(bgx, add)
    async with running(app):
        await call(app)
        await until(lambda: bgx.stats().waiting == 3)
        stats = bgx.stats()
        assert stats.running == 4
        assert stats.limiters["smtp"] == LimiterStats(slots=2, taken=2, waiting=3)
        assert stats.limiters["concurrency"] == LimiterStats(slots=10, taken=4, waiting=0)
        assert stats.limiters["threads"] == LimiterStats(slots=20, taken=1, waiting=0)
        assert stats.executors == {"async": 3, "thread": 1, "process": 0}
        assert stats.totals == only()
        gate.set()
        thread_gate.set()
    stats = bgx.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.executors == {"async": 0, "thread": 0, "process": 0}
    assert stats.totals == only(succeeded=7)


async def test_what_was_added_but_not_started_waits() -> None:
    bgx = Bgx(Settings())
    seen: list[int] = []

    def add(tasks: BackgroundTasks) -> None:
        tasks.add_task(fail)
        tasks.add_task(fail)
        seen.append(bgx.stats().waiting)

    await call(made(bgx, add))
    assert seen == [2]
    assert bgx.stats().waiting == 0


async def test_a_task_in_a_process(tmp_path: Path) -> None:
    bgx, path = Bgx(Settings()), tmp_path / "runs"
    app = made(bgx, lambda tasks: tasks.using(executor="process").add_task(say_and_wait, path))
    async with anyio.create_task_group() as group:
        group.start_soon(call, app)
        await until(path.exists)
        assert bgx.stats().executors["process"] == 1
        assert bgx.stats().limiters["processes"].taken == 1
        group.cancel_scope.cancel()
    assert bgx.stats().executors["process"] == 0


async def test_a_thread_that_outlived_its_timeout() -> None:
    bgx = Bgx(Settings(max_threads=3))
    gate = threading.Event()
    await call(made(bgx, lambda tasks: tasks.using(timeout=0.001).add_task(gate.wait, 10)))
    stats = bgx.stats()
    assert (stats.overrunning, stats.running, stats.waiting) == (1, 1, 0)
    assert stats.limiters["threads"] == LimiterStats(slots=3, taken=1, waiting=0)
    assert stats.totals == only(timed_out=1)
    gate.set()
    await until(lambda: bgx.stats().overrunning == 0)
    assert bgx.stats().running == 0


async def test_totals_by_status() -> None:
    bgx = Bgx(Settings(max_backlog=6, limits={"one": 1}))

    async def quick() -> None: ...

    def add(tasks: BackgroundTasks) -> None:
        tasks.add_task(quick)
        tasks.add_task(fail)
        tasks.using(timeout=0.001).add_task(anyio.sleep, 10)
        view = tasks.using(detached=True, concurrent=True, limit="one")
        view.add_task(anyio.sleep, 10)
        view.add_task(quick)
        view.using(queue_timeout=0.001).add_task(quick)
        with pytest.raises(BacklogFull):
            tasks.add_task(quick)

    app = made(bgx, add)

    @app.get("/failed")
    async def failed(tasks: Tasks) -> None:
        tasks.add_task(quick)
        raise HTTPException(500)

    async with running(app):
        await call(app)
        await until(lambda: bgx.stats().totals[Status.EXPIRED] == 1)
        await call(app, "/failed")
        await bgx.drain(grace=0)
    assert bgx.stats().totals == only(
        succeeded=1, failed=1, timed_out=1, cancelled=2, expired=1, rejected=1, dropped=1
    )


async def test_a_limit_with_a_key_is_added_up() -> None:
    bgx = Bgx(Settings())
    gate = anyio.Event()

    async def work(tenant: str) -> None:
        await gate.wait()

    def add(tasks: BackgroundTasks) -> None:
        limit = Limit("tenant", 1, key=lambda tenant: tenant)
        view = tasks.using(detached=True, concurrent=True, limit=limit)
        for tenant in ("a", "a", "a", "b"):
            view.add_task(work, tenant)

    app = made(bgx, add)
    async with running(app):
        await call(app)
        await until(lambda: bgx.stats().running == 2)
        assert bgx.stats().limiters["tenant"] == LimiterStats(slots=1, taken=2, waiting=2)
        gate.set()
    assert bgx.stats().limiters["tenant"] == LimiterStats(slots=1, taken=0, waiting=0)


async def test_a_snapshot_does_not_change() -> None:
    bgx = Bgx(Settings())
    before = bgx.stats()
    copied = dataclasses.replace(before)
    await call(made(bgx, lambda tasks: tasks.add_task(fail)))
    assert before == copied
    assert bgx.stats() != before


async def test_a_snapshot_is_frozen() -> None:
    stats: Any = Bgx(Settings()).stats()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.running = 3


async def test_stats_can_be_read_in_a_route_in_a_task_and_in_a_thread() -> None:
    bgx = Bgx(Settings())
    found: list[Stats] = []

    async def look() -> None:
        found.append(bgx.stats())

    def look_there() -> None:
        found.append(bgx.stats())

    def add(tasks: BackgroundTasks) -> None:
        tasks.add_task(look)
        tasks.add_task(look_there)
        look_there()

    await call(made(bgx, add))
    found.append(await anyio.to_thread.run_sync(bgx.stats))
    assert [(stats.running, stats.waiting) for stats in found] == [(0, 2), (1, 1), (1, 0), (0, 0)]


def test_stats_need_an_application_that_runs() -> None:
    with pytest.raises(RuntimeError, match="no event loop was seen yet"):
        Bgx(Settings()).stats()
