"""A full backlog is refused where the route can still say so (promise 6)."""

import gc
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from fastapi_bgx import (
    BackgroundTasks,
    BacklogFull,
    Bgx,
    Limit,
    Settings,
    Status,
    Tasks,
    WrongCall,
)
from tests.asgi import client_of
from tests.logs import logged, named
from tests.supervision import PATIENCE, serving, tasks_of, until


async def good() -> None:
    await anyio.sleep(0)


async def bad() -> None:
    raise ValueError


# The answer.


def application() -> FastAPI:
    """Two tasks may wait; a route of each kind adds three."""
    app = FastAPI()
    Bgx(Settings(max_backlog=2)).install(app)

    @app.get("/async")
    async def on_loop(tasks: Tasks) -> None:
        for _ in range(3):
            tasks.add_task(good)

    @app.get("/sync")
    def in_thread(tasks: Tasks) -> None:
        for _ in range(3):
            tasks.using(detached=True).add_task(good)

    @app.get("/caught")
    async def catches(tasks: Tasks) -> dict[str, Any]:
        try:
            for _ in range(3):
                tasks.add_task(good)
        except BacklogFull as full:
            return {"limit": full.limit, "retry_after": full.retry_after}
        raise AssertionError

    return app


@pytest.mark.parametrize("path", ["/async", "/sync"])
def test_a_request_whose_task_finds_the_backlog_full_is_answered_503(
    path: str, anyio_backend: str
) -> None:
    with logged() as lines, client_of(application(), anyio_backend) as client:
        for _ in range(3):  # nothing of it is left behind
            response = client.get(path)
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "5"
            message = "2 background tasks are waiting already; try again in 5 s"
            assert response.json() == {"detail": message}
    rejected = named(lines, "task.rejected")
    assert [(line["task"], line["reason"]) for line in rejected] == [
        ("good", "the backlog is full")
    ] * 3
    assert {line["log_level"] for line in rejected} == {"warning"}
    assert len(named(lines, "task.dropped")) == 6, "those of the failed requests that had entered"


def test_a_route_can_catch_it_and_answer_itself(anyio_backend: str) -> None:
    with logged() as lines, client_of(application(), anyio_backend) as client:
        response = client.get("/caught")
    assert response.json() == {"limit": 2, "retry_after": 5.0}
    assert len(named(lines, "task.succeeded")) == 2, "the others run"


def test_the_application_can_answer_in_its_own_way(anyio_backend: str) -> None:
    app = application()

    @app.exception_handler(BacklogFull)
    async def later(_: Request, full: BacklogFull) -> JSONResponse:
        return JSONResponse({"wait": full.retry_after}, status_code=429)

    with client_of(app, anyio_backend) as client:
        response = client.get("/async")
    assert (response.status_code, response.json()) == (429, {"wait": 5.0})


# What counts.


@asynccontextmanager
async def occupied(max_backlog: int | None, **settings: Any) -> AsyncIterator[tuple[Bgx, Any]]:
    """One task runs, and holds the only slot until the event is set."""
    release = anyio.Event()
    async with serving(max_backlog=max_backlog, max_concurrency=1, **settings) as bgx:
        tasks = await tasks_of(bgx)
        running = tasks.using(detached=True).add_task(release.wait)
        await tasks()
        await until(lambda: running.status == "running")
        yield bgx, release
        release.set()


@pytest.mark.anyio
async def test_what_runs_does_not_wait_and_what_waits_does_not_run() -> None:
    async with occupied(max_backlog=3) as (bgx, release):
        assert bgx.stats().waiting == 0
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True)
        for number in range(3):
            assert bgx.stats().waiting == number
            view.add_task(good)
        with pytest.raises(BacklogFull):
            view.add_task(good)
        await tasks()
        with pytest.raises(BacklogFull):  # they still wait, for the slot and for each other
            tasks.add_task(good)
        release.set()
        await until(lambda: bgx.stats().waiting == 0)
        tasks.add_task(good)
        await tasks()
        assert bgx.stats().totals[Status.REJECTED] == 2


@pytest.mark.anyio
async def test_a_running_task_finds_the_backlog_full_like_everybody() -> None:
    async with serving(max_backlog=1) as bgx:
        tasks, refused = await tasks_of(bgx), list[BacklogFull]()

        async def adds() -> None:
            tasks.add_task(good)
            try:
                tasks.add_task(good)
            except BacklogFull as full:
                refused.append(full)

        first = tasks.add_task(adds)
        await tasks()
        assert first.status == "succeeded"
        assert len(refused) == 1


@pytest.mark.anyio
async def test_without_a_bound_nothing_is_refused() -> None:
    async with serving(max_backlog=None, log_events=frozenset()) as bgx:
        tasks = await tasks_of(bgx)
        for _ in range(10_000):
            tasks.add_task(good)
        assert bgx.stats().waiting == 10_000
        tasks.drop("enough")
        assert bgx.stats().waiting == 0


# Every way to leave gives the place back.


async def succeeds(bgx: Bgx) -> None:
    tasks = await tasks_of(bgx)
    tasks.add_task(good)
    await tasks()


async def fails(bgx: Bgx) -> None:
    tasks = await tasks_of(bgx)
    tasks.add_task(bad)
    await tasks()


async def fails_in_a_thread(bgx: Bgx) -> None:
    tasks = await tasks_of(bgx)
    tasks.add_task(lambda: 1 // 0)
    await tasks()


async def times_out(bgx: Bgx) -> None:
    tasks = await tasks_of(bgx)
    tasks.using(timeout=0.002).add_task(anyio.sleep_forever)
    await tasks()


async def is_cancelled_while_it_runs(bgx: Bgx) -> None:
    tasks = await tasks_of(bgx)
    task = tasks.add_task(anyio.sleep_forever)
    async with anyio.create_task_group() as group:
        group.start_soon(tasks)
        await until(lambda: task.status == "running")
        group.cancel_scope.cancel()


async def hold(bgx: Bgx) -> Callable[[], Awaitable[object]]:
    """Occupy the only slot; what is given back ends that."""
    tasks, release = await tasks_of(bgx), anyio.Event()
    task = tasks.using(detached=True).add_task(release.wait)
    await tasks()
    await until(lambda: task.status == "running")

    async def end() -> None:
        release.set()
        await task.wait()

    return end


async def is_cancelled_while_it_waits(bgx: Bgx) -> None:
    end = await hold(bgx)
    tasks = await tasks_of(bgx)
    tasks.add_task(good)
    tasks.add_task(good)
    async with anyio.create_task_group() as group:
        group.start_soon(tasks)
        await until(lambda: bgx.stats().limiters["concurrency"].waiting)
        group.cancel_scope.cancel()
    await end()


async def expires(bgx: Bgx) -> None:
    for detached in False, True:
        end = await hold(bgx)
        tasks = await tasks_of(bgx)
        task = tasks.using(queue_timeout=0.002, detached=detached).add_task(good)
        await tasks()
        await task.wait()
        await end()


async def is_dropped(bgx: Bgx) -> None:
    tasks = await tasks_of(bgx)
    tasks.add_task(good)
    tasks.using(detached=True).add_task(good)
    tasks.drop("nobody wants it")


async def is_forgotten(bgx: Bgx) -> None:
    tasks = await tasks_of(bgx)
    tasks.add_task(good)
    del tasks
    gc.collect()


async def is_forgotten_in_a_thread(bgx: Bgx) -> None:
    lists = [await tasks_of(bgx)]

    def route() -> None:
        lists[0].add_task(good)
        lists.clear()
        gc.collect()

    await anyio.to_thread.run_sync(route)
    await until(lambda: bgx.stats().waiting == 0)


async def has_no_key(bgx: Bgx) -> None:
    tasks = await tasks_of(bgx)
    with pytest.raises(ZeroDivisionError):
        tasks.using(limit=Limit("x", 1, key=lambda **_: 1 // 0)).add_task(good)


async def cannot_be_pickled(bgx: Bgx) -> None:
    tasks = await tasks_of(bgx)
    with pytest.raises(WrongCall):
        tasks.using(executor="process").add_task(lambda: None)


async def is_a_wrong_call(bgx: Bgx) -> None:
    tasks: Any = await tasks_of(bgx)
    with pytest.raises(WrongCall):
        tasks.add_task(good, 1)


async def was_made_outside_of_every_loop(bgx: Bgx) -> None:
    tasks = await tasks_of(bgx)
    tasks._entrance = None  # as one made by hand at import time
    await anyio.to_thread.run_sync(lambda: tasks.add_task(good))
    await tasks()


WAYS = [
    succeeds,
    fails,
    fails_in_a_thread,
    times_out,
    is_cancelled_while_it_runs,
    is_cancelled_while_it_waits,
    expires,
    is_dropped,
    is_forgotten,
    is_forgotten_in_a_thread,
    has_no_key,
    cannot_be_pickled,
    is_a_wrong_call,
    was_made_outside_of_every_loop,
]


@pytest.mark.anyio
@pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)
async def test_a_task_gives_its_place_back_when_it(
    leave: Callable[[Bgx], Awaitable[None]],
) -> None:
    async with serving(max_backlog=2, max_concurrency=1) as bgx:
        for _ in range(3):
            with anyio.fail_after(PATIENCE):
                await leave(bgx)
            assert bgx.stats().waiting == 0
        tasks = await tasks_of(bgx)
        for _ in range(2):
            tasks.add_task(good)
        with pytest.raises(BacklogFull):
            tasks.add_task(good)
        await tasks()
        assert bgx.stats().waiting == 0


# Threads.


def entered(tasks: BackgroundTasks) -> bool:
    """Add a task; false when the backlog is full."""
    try:
        tasks.add_task(good)
    except BacklogFull:
        return False
    return True


@pytest.mark.anyio
async def test_many_threads_that_add_at_once_are_counted_exactly() -> None:
    async with serving(max_backlog=1000, log_events=frozenset()) as bgx:
        requests = [await tasks_of(bgx) for _ in range(8)]
        start, results = threading.Barrier(len(requests)), Counter[bool]()

        def route(tasks: BackgroundTasks) -> Counter[bool]:
            start.wait(PATIENCE)
            return Counter(entered(tasks) for _ in range(300))

        async def serve(tasks: BackgroundTasks) -> None:
            results.update(await anyio.to_thread.run_sync(route, tasks))

        async with anyio.create_task_group() as group:
            for tasks in requests:
                group.start_soon(serve, tasks)
        assert results == {True: 1000, False: 1400}
        assert bgx.stats().waiting == 1000
        assert bgx.stats().totals[Status.REJECTED] == 1400
        for tasks in requests:
            await tasks()
        assert bgx.stats().waiting == 0
        assert bgx.stats().totals[Status.SUCCEEDED] == 1000


@pytest.mark.anyio
async def test_threads_that_add_while_the_loop_runs_tasks_lose_no_count() -> None:
    async with serving(max_backlog=50, log_events=frozenset()) as bgx:
        tasks, done = await tasks_of(bgx), Counter[str]()

        def route() -> None:
            for _ in range(1000):
                while not entered(tasks):
                    time.sleep(0.0005)

        async def serve() -> None:
            await anyio.to_thread.run_sync(route)
            done["routes"] += 1

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(serve)
            while done["routes"] < 4:
                await tasks()
                await anyio.sleep(0)
        await tasks()
        assert bgx.stats().waiting == 0
        assert bgx.stats().totals[Status.SUCCEEDED] == 4000


@pytest.mark.anyio
async def test_a_task_that_leaves_in_the_moment_of_a_refusal_does_not_change_the_reason() -> None:
    async with serving(max_backlog=1) as bgx:
        tasks, entrance = await tasks_of(bgx), bgx.runners.current().entrance
        first = tasks.add_task(good)

        class MakesRoom:
            """The lock of the entrance; when it is given back, the loop starts a task."""

            def __enter__(self) -> None: ...

            def __exit__(self, *_: object) -> None:
                entrance.left += 1

        entrance._lock = MakesRoom()  # type: ignore[assignment]
        with pytest.raises(BacklogFull):
            await anyio.to_thread.run_sync(tasks.add_task, good)
        await tasks()
        assert first.status == "succeeded"
