"""Unique tasks: while one is unfinished, whoever adds it again is given that one."""

import gc
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastapi import FastAPI, HTTPException, WebSocket

from fastapi_bgx import (
    BackgroundTasks,
    BacklogFull,
    Bgx,
    Retry,
    Settings,
    Task,
    TaskOptions,
    Tasks,
    task_options,
)
from fastapi_bgx.events import TaskJoined
from tests.asgi import client_of
from tests.logs import logged, named, one
from tests.supervision import PATIENCE, Gauge, serving, tasks_of, until

pytestmark = pytest.mark.anyio

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


async def good() -> str:
    await anyio.sleep(0)
    return "ran"


async def bad() -> None:
    raise ValueError("no")


async def charge(order_id: int, note: str = "") -> tuple[int, str]:
    await anyio.sleep(0)
    return order_id, note


def by_order(order_id: int, **_: object) -> int:
    return order_id


def kept(bgx: Bgx) -> int:
    """How many tasks the registry of this loop's runner knows."""
    return len(bgx.runners.current().entrance.uniques._tasks)


# The same task.


@pytest.mark.parametrize("detached", [False, True])
async def test_the_same_task_is_given_and_runs_once(detached: bool) -> None:
    with Gauge() as gauge:

        async def counted() -> None:
            with gauge:
                await anyio.sleep(0)

        async with serving() as bgx:
            first, second = await tasks_of(bgx), await tasks_of(bgx)
            one, two = (
                tasks.using(unique="order-42", detached=detached).add_task(counted)
                for tasks in (first, second)
            )
            assert one is two
            await second()
            await first()
            await one.wait()
            assert one.status == "succeeded"
            assert bgx.stats().waiting == 0
    assert gauge.total == 2, "this test and the task"


async def test_once_it_has_ended_a_new_one_is_made() -> None:
    bgx = Bgx(Settings())
    seen: list[Task[Any]] = []
    for function in good, bad, good:
        tasks = await tasks_of(bgx)
        seen.append(tasks.using(unique="k", name="same").add_task(function))
        await tasks()
    assert [task.status for task in seen] == ["succeeded", "failed", "succeeded"]
    assert len(set(seen)) == 3
    assert kept(bgx) == 0


async def test_a_key_belongs_to_the_name_of_the_task() -> None:
    tasks = await tasks_of(Bgx(Settings()))
    view = tasks.using(unique="k")
    added = [view.add_task(good), view.add_task(bad), view.using(name="other").add_task(good)]
    assert len(set(added)) == 3
    assert tasks.using(unique="k", name="other").add_task(good) is added[2]
    assert tasks.using(unique="l").add_task(good) not in added
    assert tasks.add_task(good) not in added, "one without a key"
    await tasks()


async def test_the_key_may_be_made_of_the_arguments_however_they_are_passed() -> None:
    @task_options(unique=by_order)
    async def attached(order_id: int, note: str = "") -> None:
        await anyio.sleep(0)

    bgx = Bgx(Settings(tasks={"charge": TaskOptions(unique=by_order)}))
    tasks = await tasks_of(bgx)
    for function in attached, charge:
        first = tasks.add_task(function, 1, "a")
        assert tasks.add_task(function, order_id=1) is first
        assert tasks.add_task(function, note="b", order_id=1) is first
        assert tasks.add_task(function, 2) is not first
        assert tasks.using(unique="mine").add_task(function, 1) is not first
        assert tasks.using(unique=None).add_task(function, 1) is not first
        assert tasks.using(unique=lambda note, **_: note).add_task(function, 1, "c") is not first
    await tasks()


async def test_a_text_may_be_configured_by_name() -> None:
    bgx = Bgx(Settings(tasks={"good": TaskOptions(unique="only-one")}))
    tasks = await tasks_of(bgx)
    assert tasks.add_task(good) is tasks.add_task(good)
    await tasks()


async def test_joining_is_told_with_the_key() -> None:
    with logged() as lines:
        tasks = await tasks_of(Bgx(Settings(log_events=frozenset({"task.joined"}))))
        view = tasks.using(unique=by_order)
        task = view.add_task(charge, 42)
        assert not lines
        view.add_task(charge, 42)
        await tasks()
    line = one(lines, TaskJoined.name)
    assert (line["unique"], line["task_id"], line["log_level"]) == ("42", task.id, "info")
    assert len(lines) == 1


# Mistakes, in the route.


@pytest.mark.parametrize(
    ("unique", "message"),
    [
        (lambda order_id, **_: [order_id], "unhashable type"),
        (lambda order_id: order_id, "note"),
        (lambda **_: 1 // 0, "division"),
    ],
)
async def test_a_key_that_cannot_be_made_is_an_error_where_it_is_added_and_nothing_counts(
    unique: Callable[..., Any], message: str
) -> None:
    bgx = Bgx(Settings())
    tasks = await tasks_of(bgx)
    with pytest.raises((TypeError, ZeroDivisionError), match=message):
        tasks.using(unique=unique).add_task(charge, 1, note="x")
    assert bgx.stats().waiting == 0
    assert kept(bgx) == 0
    assert not tasks.tasks


async def test_a_wrong_call_is_refused_though_the_key_is_known() -> None:
    tasks = await tasks_of(Bgx(Settings()))
    view: Any = tasks.using(unique="k")
    view.add_task(charge, 1)
    with pytest.raises(TypeError, match="order_id"):
        view.add_task(charge)
    await tasks()


# A full backlog.


async def test_a_duplicate_is_given_the_live_one_when_the_backlog_is_full() -> None:
    bgx = Bgx(Settings(max_backlog=1))
    tasks = await tasks_of(bgx)
    task = tasks.using(unique="k").add_task(good)
    with pytest.raises(BacklogFull):
        tasks.add_task(good)
    assert tasks.using(unique="k").add_task(good) is task
    assert bgx.stats().waiting == 1
    await tasks()
    assert bgx.stats().waiting == 0


async def test_one_that_was_refused_leaves_no_trace() -> None:
    bgx = Bgx(Settings(max_backlog=1))
    tasks = await tasks_of(bgx)
    tasks.add_task(good)
    with pytest.raises(BacklogFull):
        tasks.using(unique="k").add_task(good)
    assert kept(bgx) == 0
    await tasks()
    task = tasks.using(unique="k").add_task(good)
    await tasks()
    assert task.status == "succeeded"


async def test_a_duplicate_is_given_the_live_one_while_the_process_drains() -> None:
    bgx, joined = Bgx(Settings()), list[bool]()
    bgx.start()
    tasks, other = await tasks_of(bgx), await tasks_of(bgx)
    release = anyio.Event()
    task = tasks.using(unique="k", detached=True).add_task(release.wait)
    await tasks()
    async with anyio.create_task_group() as group:
        group.start_soon(bgx.drain)
        await until(lambda: bgx.runners.current().refusing)
        joined.append(other.using(unique="k", detached=True).add_task(release.wait) is task)
        await other()
        release.set()
    assert joined == [True]
    assert task.status == "succeeded"


# What is unfinished.


async def test_one_that_waits_for_its_time_or_for_another_attempt_is_unfinished() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(unique="k", detached=True)
        delayed = view.using(delay=60).add_task(good)
        retried = view.using(retry=Retry(wait_from_error=lambda _: 60)).add_task(bad)
        await tasks()
        await until(lambda: retried.status == "retrying")
        assert view.add_task(good) is delayed
        assert view.add_task(bad) is retried
        assert kept(bgx) == 2
        assert delayed.cancel()
        assert retried.cancel()
        assert kept(bgx) == 0
        assert view.add_task(good) is not delayed


# Two requests share it.


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("failing", [0, 1])
async def test_when_one_of_two_requests_fails_it_runs_for_the_other(
    detached: bool, failing: int
) -> None:
    async with serving() as bgx:
        both = await tasks_of(bgx), await tasks_of(bgx)
        task, same = (t.using(unique="k", detached=detached).add_task(good) for t in both)
        assert task is same
        both[failing].drop("its request failed")
        assert task.status == "queued"
        await both[1 - failing]()
        assert (await task.wait()).status == "succeeded"


async def test_it_is_dropped_with_the_last_request() -> None:
    bgx = Bgx(Settings())
    with logged() as lines:
        lists = [await tasks_of(bgx) for _ in range(3)]
        task, *_ = [tasks.using(unique="k").add_task(good) for tasks in lists]
        for tasks in lists:
            assert task.status == "queued"
            tasks.drop("its request failed")
    assert task.status == "dropped"
    assert len(named(lines, "task.dropped")) == 1
    assert (kept(bgx), bgx.stats().waiting) == (0, 0)


async def test_a_request_that_adds_it_twice_gives_it_up_once() -> None:
    bgx = Bgx(Settings())
    first, second = await tasks_of(bgx), await tasks_of(bgx)
    task, *_ = [first.using(unique="k").add_task(good) for _ in range(3)]
    assert len(first.tasks) == 1
    first.drop("its request failed")
    assert task.status == "dropped"
    again = first.using(unique="k").add_task(good)
    assert second.using(unique="k").add_task(good) is again
    assert second.using(unique="k").add_task(good) is again
    second.drop("its request failed")
    assert again.status == "queued", "the first one still wants it"
    await first()
    assert again.status == "succeeded"


async def test_a_request_that_fails_while_it_runs_does_not_make_room_for_a_second_one() -> None:
    async with serving() as bgx:
        first, second = await tasks_of(bgx), await tasks_of(bgx)
        release = anyio.Event()
        task = first.using(unique="k", detached=True).add_task(release.wait)
        second.using(unique="k", detached=True).add_task(release.wait)
        await first()
        for _ in first, second:  # as a list does that another thread's collector frees
            task.runner.drop(task, "late")
        assert second.using(unique="k", detached=True).add_task(release.wait) is task
        release.set()


def test_a_failed_request_and_one_that_succeeds_share_it(anyio_backend: str) -> None:
    """Through the middleware: both routes are under way at once."""
    app, met = FastAPI(), threading.Barrier(2)
    bgx = Bgx(Settings())
    bgx.install(app)
    tasks_given: list[Task[Any]] = []

    def add(tasks: BackgroundTasks) -> None:
        tasks_given.append(tasks.using(unique="k").add_task(good))
        met.wait(PATIENCE)

    @app.get("/good")
    def route(tasks: Tasks) -> None:
        add(tasks)

    @app.get("/bad")
    def failing(tasks: Tasks) -> None:
        add(tasks)
        raise HTTPException(402)

    statuses: list[int] = []
    with client_of(app, anyio_backend) as client:

        def get(where: str) -> None:
            statuses.append(client.get(where).status_code)

        threads = [threading.Thread(target=get, args=(where,)) for where in ("/good", "/bad")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert sorted(statuses) == [200, 402]
    assert len(set(tasks_given)) == 1
    assert tasks_given[0].status == "succeeded"


async def test_a_request_that_is_cancelled_leaves_the_task_of_another_one_alone() -> None:
    async with serving() as bgx:
        first, second = await tasks_of(bgx), await tasks_of(bgx)
        release = anyio.Event()
        view = first.using(unique="k", concurrent=True)
        task = view.add_task(release.wait)
        second.using(unique="k", concurrent=True).add_task(release.wait)
        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()

            async def request() -> None:
                with scope:
                    await first()

            group.start_soon(request)
            await until(lambda: task.status == "running")
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert task.status == "running"
            release.set()
            await second()
        assert task.status == "succeeded"


@asyncio_only
async def test_a_request_that_is_cancelled_does_not_wait_for_what_it_shares() -> None:
    """asyncio delivers a cancellation once: whoever waits after it waits to the end."""
    import asyncio

    async with serving() as bgx:
        first, second = await tasks_of(bgx), await tasks_of(bgx)
        release = anyio.Event()
        task = first.using(unique="k", concurrent=True).add_task(release.wait)
        second.using(unique="k", concurrent=True).add_task(release.wait)
        request = asyncio.create_task(first())
        await until(lambda: task.status == "running")
        request.cancel()
        with anyio.fail_after(PATIENCE), pytest.raises(asyncio.CancelledError):
            await request
        assert task.status == "running"
        release.set()
        await second()
        assert task.status == "succeeded"


async def test_with_the_only_request_that_wants_it_it_is_cancelled() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(unique="k", concurrent=True).add_task(anyio.sleep_forever)
        async with anyio.create_task_group() as group:
            group.start_soon(tasks.__call__)
            await until(lambda: task.status == "running")
            group.cancel_scope.cancel()
        assert (await task.wait(PATIENCE)).status == "cancelled"
        assert kept(bgx) == 0


async def test_an_inline_task_that_two_requests_share_ends_before_both_and_with_neither() -> None:
    """Whichever of them happens to call it: its request may be cancelled, the other's waits."""
    gate = anyio.Event()
    async with serving() as bgx:
        first, second = await tasks_of(bgx), await tasks_of(bgx)
        task = first.using(unique="k").add_task(gate.wait)
        assert second.using(unique="k").add_task(gate.wait) is task
        async with anyio.create_task_group() as group:
            scope, ended = anyio.CancelScope(), anyio.Event()

            async def call_second() -> None:
                with scope:
                    await second()

            async def call_first() -> None:
                await first()
                ended.set()

            group.start_soon(call_second)
            await until(lambda: task.status == "running")
            group.start_soon(call_first)
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert (task.status, ended.is_set()) == ("running", False)
            gate.set()
        assert ended.is_set()
        assert task.status == "succeeded"


async def test_siblings_run_in_their_order_around_a_task_that_is_shared() -> None:
    ran: list[str] = []

    async def note(name: str) -> None:
        await anyio.sleep(0)
        ran.append(name)

    async with serving() as bgx:
        first, second = await tasks_of(bgx), await tasks_of(bgx)
        for tasks, names in (first, ("a", "shared", "b")), (second, ("c", "shared", "d")):
            for name in names:
                unique = "k" if name == "shared" else None
                tasks.using(detached=True, unique=unique).add_task(note, name)
        await first()
        await second()
        await until(lambda: len(ran) == 5)
    assert [name for name in ran if name in ["a", "shared", "b"]] == ["a", "shared", "b"]
    assert [name for name in ran if name in "cd"] == ["c", "d"]


# Where it is added.


async def test_added_by_the_task_itself_it_is_the_task_itself() -> None:
    found: list[Task[Any]] = []
    async with serving() as bgx:
        tasks = await tasks_of(bgx)

        async def adds() -> None:
            found.append(tasks.using(unique="k").add_task(adds))

        task = tasks.using(unique="k").add_task(adds)
        await tasks()
    assert found == [task]
    assert task.status == "succeeded"


async def test_a_running_task_adds_it_to_a_request_that_is_over() -> None:
    """Two at once, from two threads: it is started once."""
    gauge, met, added = Gauge(), threading.Barrier(2), list[Task[Any]]()

    def counted() -> None:
        with gauge:
            pass

    async with serving() as bgx:
        for _ in range(20):
            requests = [await tasks_of(bgx) for _ in range(2)]
            added.clear()

            def adds(tasks: BackgroundTasks, added: list[Task[Any]] = added) -> None:
                met.wait(PATIENCE)
                added.append(tasks.using(unique="k", detached=True).add_task(counted))

            for tasks in requests:
                tasks.using(detached=True).add_task(adds, tasks)
                await tasks()
            await until(lambda: len(added) == 2)
            for task in added:
                assert (await task.wait()).status == "succeeded"
            assert gauge.total == len(set(added)), "each ran once"
            gauge.total = 0
        assert kept(bgx) == 0


def test_in_a_websocket_it_starts_at_once(anyio_backend: str) -> None:
    app, ran, given = FastAPI(), threading.Event(), list[Task[Any]]()
    Bgx(Settings()).install(app)

    @app.websocket("/")
    async def route(socket: WebSocket, tasks: Tasks) -> None:
        await socket.accept()
        for _ in range(2):
            given.append(tasks.using(unique="k", detached=True).add_task(ran.set))
        await socket.receive_text()

    with client_of(app, anyio_backend) as client, client.websocket_connect("/") as socket:
        assert ran.wait(PATIENCE)
        socket.send_text("enough")
    assert given[0] is given[1]
    assert given[0].status == "succeeded"


async def test_from_many_threads_at_once_there_is_exactly_one() -> None:
    async with serving(max_backlog=100) as bgx:
        release, gauge = threading.Event(), Gauge()

        def held() -> None:
            with gauge:
                release.wait(PATIENCE)

        for round_ in range(10):
            release.clear()
            requests = [await tasks_of(bgx) for _ in range(16)]
            added: list[Task[Any]] = []
            barrier = threading.Barrier(len(requests))

            def add(
                tasks: BackgroundTasks,
                barrier: threading.Barrier = barrier,
                added: list[Task[Any]] = added,
                key: str = f"k{round_}",
            ) -> None:
                barrier.wait(PATIENCE)
                added.append(tasks.using(unique=key, detached=True).add_task(held))

            async with anyio.create_task_group() as group:
                for tasks in requests:
                    group.start_soon(partial(anyio.to_thread.run_sync, add, tasks))
            assert len(set(added)) == 1
            assert bgx.stats().waiting == 1
            for tasks in requests:
                await tasks()
            release.set()
            assert (await added[0].wait()).status == "succeeded"
        assert gauge.total == 10
        assert kept(bgx) == 0


def test_sync_routes_share_it(anyio_backend: str) -> None:
    app, given, met = FastAPI(), list[Task[Any]](), threading.Barrier(8)
    bgx = Bgx(Settings())
    bgx.install(app)

    @app.get("/")
    def route(tasks: Tasks) -> str:
        given.append(tasks.using(unique="k", detached=True).add_task(good))
        met.wait(PATIENCE)
        return given[-1].id

    ids: list[str] = []
    with client_of(app, anyio_backend) as client:
        threads = [
            threading.Thread(target=lambda: ids.append(client.get("/").json())) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert (len(ids), len(set(ids))) == (8, 1)
    assert given[0].status == "succeeded"


def test_outside_of_every_loop_a_key_is_an_option_like_any_other(anyio_backend: str) -> None:
    tasks = BackgroundTasks()
    added = [tasks.using(unique="k").add_task(good) for _ in range(2)]
    anyio.run(tasks.__call__, backend=anyio_backend)
    assert [task.status for task in added] == ["succeeded"] * 2


# Cost.


async def test_many_keys_make_one_plan_and_the_registry_empties() -> None:
    bgx = Bgx(Settings(log_events=frozenset()))
    runner = bgx.runners.current()
    tasks = await tasks_of(bgx)
    for number in range(10_000):
        tasks.using(unique=f"order-{number}").add_task(good)
    assert len(runner._planner._plans) == 1
    assert kept(bgx) == 10_000
    tasks.drop("enough")
    assert kept(bgx) == 0


@asyncio_only
async def test_a_task_with_a_key_is_freed_with_its_last_reference() -> None:
    bgx = Bgx(Settings(log_events=frozenset()))
    gc.disable()
    try:
        before = _living()
        tasks = await tasks_of(bgx)
        tasks.using(unique="k").add_task(good)
        await tasks()
        del tasks
        assert _living() == before
    finally:
        gc.enable()


def _living() -> int:
    return sum(type(each) is Task for each in gc.get_objects())
