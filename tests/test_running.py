"""Where and when tasks run: inline, detached, concurrent, in order; and what they leave behind."""

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import pytest
from fastapi import BackgroundTasks as StockBackgroundTasks
from fastapi import FastAPI
from starlette.requests import HTTPConnection

from fastapi_bgx import BackgroundTasks, Bgx, Settings, Status, Task, Tasks, current_task
from fastapi_bgx.workers import TASKS_BETWEEN_YIELDS
from tests.asgi import call, running
from tests.logs import logged, named
from tests.supervision import PATIENCE, Gauge, serving, tasks_of, until

pytestmark = pytest.mark.anyio

DETACHED = pytest.mark.parametrize("detached", [False, True], ids=["inline", "detached"])


async def later(value: Any) -> Any:
    await anyio.sleep(0)
    return value


def now(value: Any) -> Any:
    return value


async def settle(tasks: BackgroundTasks, *added: Task[Any]) -> None:
    """End the request, and wait for what outlives it."""
    with anyio.fail_after(PATIENCE):
        await tasks()
        for task in added:
            await task.wait()


# One task, from inside and outside.


@pytest.mark.parametrize("executor", ["async", "thread"])
async def test_a_task_sees_itself_while_it_runs(executor: Any) -> None:
    seen: list[tuple[Any, ...]] = []

    def look() -> None:
        inside = current_task()
        assert inside is not None
        seen.append((inside.id, inside.name, inside.attempt, inside.remaining()))
        seen.append((inside.timed_out, inside.cancelled))

    tasks = await tasks_of(Bgx(Settings()))
    task = tasks.using(executor=executor, name="looks").add_task(look)
    await tasks()
    assert seen == [(task.id, "looks", 1, None), (False, False)]
    assert current_task() is None


@DETACHED
async def test_a_task_runs_once_however_often_it_is_called(detached: bool) -> None:
    gauge = Gauge()

    async def work() -> None:
        with gauge:
            await anyio.sleep(0)

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        added = [tasks.using(detached=detached).add_task(work) for _ in range(2)]
        await added[1]()
        await tasks()
        await tasks()
        for task in added:
            await task()
            await task.wait()
    assert gauge.total == 2


# In order.


@DETACHED
async def test_the_tasks_of_a_request_run_one_after_the_other(detached: bool) -> None:
    gauge, ran = Gauge(), list[int]()

    async def work(number: int) -> None:
        with gauge:
            await anyio.sleep(0.001 * (number % 3))
            ran.append(number)

    def work_in_thread(number: int) -> None:
        with gauge:
            ran.append(number)

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=detached)
        added = [view.add_task((work, work_in_thread)[n % 2], n) for n in range(20)]
        await settle(tasks, *added)
    assert ran == list(range(20))
    assert gauge.most == 1


@DETACHED
async def test_a_failure_does_not_change_the_order(detached: bool) -> None:
    ran: list[int] = []

    async def work(number: int) -> None:
        ran.append(number)
        await anyio.sleep(0)
        if number % 2:
            raise RuntimeError

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        added = [tasks.using(detached=detached).add_task(work, n) for n in range(10)]
        await settle(tasks, *added)
    assert ran == list(range(10))
    assert [task.status for task in added] == ["succeeded", "failed"] * 5


async def test_detached_tasks_of_different_requests_run_beside_each_other() -> None:
    gauge, all_there = Gauge(), anyio.Event()

    async def work() -> None:
        with gauge:
            if gauge.inside == 10:
                all_there.set()
            await all_there.wait()

    async with serving(mode="detached") as bgx:
        added = []
        for _ in range(10):
            tasks = await tasks_of(bgx)
            added.append(tasks.add_task(work))
            await tasks()
        with anyio.fail_after(PATIENCE):
            for task in added:
                await task.wait()


async def test_an_inline_task_does_not_wait_for_a_detached_one_before_it() -> None:
    async with serving() as bgx:
        tasks, release = await tasks_of(bgx), anyio.Event()
        detached = tasks.using(detached=True).add_task(release.wait)
        inline = tasks.add_task(now, 1)
        with anyio.fail_after(PATIENCE):
            await tasks()
        assert (detached.done, inline.done) == (False, True)
        release.set()
        await detached.wait()


# The request and its end.


@asynccontextmanager
async def application(add: Callable[[BackgroundTasks], Any]) -> AsyncIterator[FastAPI]:
    """An application that has started, with one route that adds tasks."""
    app = FastAPI()
    Bgx(Settings()).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        add(tasks)

    async with running(app):
        yield app


async def test_a_request_ends_after_its_inline_tasks() -> None:
    done: list[int] = []

    async def work() -> None:
        await anyio.sleep(0.01)
        done.append(1)

    async with application(lambda tasks: tasks.add_task(work)) as app:
        await call(app)
        assert done == [1]


async def test_a_request_ends_before_its_detached_tasks() -> None:
    release, ran = anyio.Event(), anyio.Event()

    async def work() -> None:
        await release.wait()
        ran.set()

    async with application(lambda tasks: tasks.using(detached=True).add_task(work)) as app:
        with anyio.fail_after(PATIENCE):
            await call(app)
            assert not ran.is_set()
            release.set()
            await ran.wait()


async def test_a_detached_task_survives_the_cancellation_of_its_request() -> None:
    async with serving() as bgx:
        tasks, release = await tasks_of(bgx), anyio.Event()
        detached = tasks.using(detached=True).add_task(release.wait)
        inline = tasks.add_task(anyio.sleep_forever)
        async with anyio.create_task_group() as request:
            request.start_soon(tasks)
            await until(lambda: inline.status == "running" and detached.status == "running")
            request.cancel_scope.cancel()
        assert (inline.status, detached.status) == ("cancelled", "running")
        release.set()
        assert (await detached.wait()).status == "succeeded"


# Concurrent tasks.


@DETACHED
async def test_concurrent_tasks_run_beside_their_siblings(detached: bool) -> None:
    gauge, all_there = Gauge(), anyio.Event()

    async def work() -> None:
        with gauge:
            if gauge.inside == 5:
                all_there.set()
            await all_there.wait()

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(concurrent=True, detached=detached)
        added = [view.add_task(work) for _ in range(4)] + [tasks.add_task(work)]
        await settle(tasks, *added)


async def test_a_request_ends_after_its_concurrent_tasks() -> None:
    tasks = await tasks_of(Bgx(Settings()))
    beside = tasks.using(concurrent=True).add_task(anyio.sleep, 0.02)
    after = tasks.add_task(later, 1)
    await tasks()
    assert (beside.status, after.status) == ("succeeded", "succeeded")


@pytest.mark.parametrize("sequential", [False, True])
async def test_concurrent_tasks_are_cancelled_with_their_request(sequential: bool) -> None:
    """Also while the request still awaits one of the others."""
    tasks = await tasks_of(Bgx(Settings()))
    beside = tasks.using(concurrent=True).add_task(anyio.sleep_forever)
    if sequential:
        tasks.add_task(anyio.sleep_forever)
    async with anyio.create_task_group() as request:
        request.start_soon(tasks)
        await until(lambda: all(task.status == "running" for task in added(tasks)))
        request.cancel_scope.cancel()
    with anyio.fail_after(PATIENCE):
        assert (await beside.wait()).status == "cancelled"


def added(tasks: BackgroundTasks) -> list[Task[Any]]:
    return [task for task in tasks.tasks if isinstance(task, Task)]


# Tasks that running tasks add.


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize("options", [{}, {"concurrent": True}, {"detached": True}], ids=str)
@pytest.mark.parametrize("more", [{}, {"concurrent": True}, {"detached": True}], ids=str)
async def test_a_task_that_a_running_task_adds_runs(
    options: dict[str, Any], more: dict[str, Any], sync: bool
) -> None:
    """Also one that a detached task adds, when its request has long ended."""
    async with serving() as bgx:
        tasks, found = await tasks_of(bgx), list[Task[Any]]()

        def add() -> None:
            found.append(tasks.using(**more).add_task(later, 3))

        async def add_later() -> None:
            await anyio.sleep(0.01)
            add()

        first = tasks.using(**options).add_task(add if sync else add_later)
        await settle(tasks, first)
        with anyio.fail_after(PATIENCE):
            assert (await found[0].wait()).value == 3


async def test_tasks_added_from_beside_run_before_the_request_ends() -> None:
    tasks, ran = await tasks_of(Bgx(Settings())), list[int]()

    async def work(left: int) -> None:
        await anyio.sleep(0)
        ran.append(left)
        if left:
            tasks.using(concurrent=bool(left % 2)).add_task(work, left - 1)

    tasks.using(concurrent=True).add_task(work, 5)
    await tasks()
    assert ran == [5, 4, 3, 2, 1, 0]


async def test_what_a_detached_task_adds_comes_after_its_siblings() -> None:
    async with serving(mode="detached") as bgx:
        tasks, ran, found = await tasks_of(bgx), list[str](), list[Task[Any]]()

        async def work(name: str) -> None:
            await anyio.sleep(0)
            ran.append(name)
            if name == "first":
                found.append(tasks.add_task(work, "added"))

        siblings = [tasks.add_task(work, name) for name in ("first", "second")]
        await settle(tasks, *siblings)
        with anyio.fail_after(PATIENCE):
            await found[0].wait()
    assert ran == ["first", "second", "added"]


async def test_a_list_that_is_used_again_does_not_start_tasks_before_it_is_called() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        first = tasks.add_task(later, 1)
        await tasks()
        second = tasks.add_task(later, 2)
        await anyio.sleep(0.01)
        assert (first.status, second.status) == ("succeeded", "queued")
        await tasks()
        assert second.status == "succeeded"


async def test_without_a_lifespan_what_nobody_can_run_is_dropped_with_an_event() -> None:
    tasks = await tasks_of(Bgx(Settings()))
    tasks.add_task(later, 1)
    await tasks()
    with logged() as lines:
        late = tasks.add_task(later, 2)
        del tasks
        gc.collect()
    assert late.status == "dropped"
    assert late.id in [line["task_id"] for line in named(lines, "task.dropped")]


# Workers.


async def test_a_detached_task_that_waits_does_not_hold_the_next_one_back() -> None:
    release = anyio.Event()
    async with serving(mode="detached") as bgx:
        waiting = []
        for _ in range(50):
            tasks = await tasks_of(bgx)
            waiting.append(tasks.add_task(release.wait))
            await tasks()
        tasks = await tasks_of(bgx)
        free = tasks.add_task(later, 1)
        await tasks()
        with anyio.fail_after(PATIENCE):
            await free.wait()
        assert not any(task.done for task in waiting)
        release.set()
        for task in waiting:
            await task.wait()


async def test_ten_thousand_short_tasks_leave_the_event_loop_to_others() -> None:
    number, ticks = 10_000, 0

    async def short() -> None:
        pass

    async with serving(log_events=frozenset()) as bgx:
        tasks = await tasks_of(bgx)
        for _ in range(number):
            tasks.using(detached=True, concurrent=True).add_task(short)
        await tasks()
        while bgx.stats().waiting:
            ticks += 1
            await anyio.sleep(0)
        assert bgx.stats().totals[Status.SUCCEEDED] == number
    assert ticks > number / TASKS_BETWEEN_YIELDS / 2


color: ContextVar[str] = ContextVar("color", default="none")


async def test_a_detached_task_runs_with_its_own_context_not_that_of_an_earlier_one() -> None:
    seen: list[str] = []

    async def work() -> None:
        seen.append(color.get())
        color.set("changed")
        await anyio.sleep(0)
        seen.append(color.get())

    async with serving(mode="detached", max_concurrency=1) as bgx:

        async def request(name: str) -> None:
            color.set(name)
            tasks = await tasks_of(bgx)
            task = tasks.add_task(work)
            await settle(tasks, task)

        async with anyio.create_task_group() as group:
            for name in "red", "green", "blue":
                group.start_soon(request, name)
    assert sorted(seen[::2]) == ["blue", "green", "red"]
    assert seen[1::2] == ["changed"] * 3


def test_tasks_that_the_end_of_the_loop_overtakes_are_reported(anyio_backend: str) -> None:
    """Without a drain: nothing waits for them, and nothing vanishes in silence."""

    async def main() -> None:
        bgx.start()
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, concurrent=True)
        found.extend(view.add_task(anyio.sleep_forever) for _ in range(50))
        found.extend(tasks.using(detached=True).add_task(anyio.sleep_forever) for _ in range(50))
        await tasks()
        await until(lambda: bgx.stats().running == 3)

    bgx, found = Bgx(Settings(max_concurrency=3)), list[Task[Any]]()
    with logged() as lines:
        anyio.run(main, backend=anyio_backend)
    assert [task.status for task in found] == [Status.CANCELLED] * 100
    reported = named(lines, "task.cancelled")
    assert sorted(line["task_id"] for line in reported) == sorted(task.id for task in found)
    assert bgx.runners.latest().stats().running == 0  # type: ignore[union-attr]


def test_tasks_whose_coroutine_is_thrown_away_are_reported() -> None:
    """The loop was stopped and closed without a cancellation, as some test tools do."""

    async def main() -> Coroutine[Any, Any, None]:
        tasks = await tasks_of(bgx)
        found.extend(tasks.add_task(anyio.sleep_forever) for _ in range(2))
        found.append(tasks.using(concurrent=True).add_task(anyio.sleep_forever))
        request = tasks()
        request.send(None)
        return request

    bgx, found = Bgx(Settings()), list[Task[Any]]()
    loop = asyncio.new_event_loop()
    with logged() as lines:
        request = loop.run_until_complete(main())
        loop.close()
        request.close()
    assert [task.status for task in found] == ["cancelled", "dropped", "dropped"]
    ended = {line["task_id"]: line["reason"] for line in lines if "reason" in line}
    assert ended[found[0].id] == "the event loop ended"
    assert len(ended) == 3
    assert bgx.runners.latest().stats().running == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_detached_task_that_cancels_its_worker_hurts_no_other() -> None:
    async def cancels_itself() -> None:
        await asyncio.sleep(0)
        host = asyncio.current_task()
        assert host is not None
        host.cancel()
        await asyncio.sleep(PATIENCE)

    async with serving(mode="detached", max_concurrency=5) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(concurrent=True)
        bad = [view.add_task(cancels_itself) for _ in range(5)]
        good = [view.add_task(later, number) for number in range(50)]
        await tasks()
        with anyio.fail_after(PATIENCE):
            for task in bad + good:
                await task.wait()
    assert {task.status for task in good} == {Status.SUCCEEDED}


async def test_very_many_detached_siblings_can_be_cancelled_by_a_shutdown() -> None:
    bgx = Bgx(Settings(log_events=frozenset()))
    bgx.start()
    tasks = await tasks_of(bgx)
    siblings = [tasks.using(detached=True).add_task(anyio.sleep_forever) for _ in range(2000)]
    await tasks()
    await until(lambda: siblings[0].status == "running")
    report = await bgx.drain(grace=0)
    assert len(report.cancelled) == 2000
    assert {task.status for task in siblings} == {Status.CANCELLED}


# Memory: what has ended keeps nothing alive, without the help of the garbage collector.


class Big:
    """An argument that would be missed."""


@pytest.fixture
def collector_is_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def succeeds(big: Big) -> None:
    pass


async def succeeds_later(big: Big) -> None:
    await anyio.sleep(0)


async def fails(big: Big) -> None:
    raise RuntimeError


async def fails_later(big: Big) -> None:
    await anyio.sleep(0)
    raise RuntimeError


async def waits(big: Big) -> None:
    # Not sleep(): asyncio keeps its timers, with their context, for a while after they end.
    await anyio.Event().wait()


def succeeds_in_thread(big: Big) -> None:
    pass


def fails_in_thread(big: Big) -> None:
    raise RuntimeError


def overruns(big: Big) -> None:
    time.sleep(0.03)


RUNS = [succeeds, succeeds_later, fails, fails_later, succeeds_in_thread, fails_in_thread]
MEMORY: list[tuple[Callable[[Big], Any], dict[str, Any]]] = [
    *[(func, {}) for func in RUNS],
    *[(func, {"detached": True}) for func in RUNS],
    *[(func, {"concurrent": True, "timeout": 5, "queue_timeout": 5}) for func in RUNS],
    (waits, {"timeout": 0.01}),
    (waits, {"timeout": 0.01, "detached": True}),
    (overruns, {"timeout": 0.01}),
    (lambda big: succeeds_later(big), {"limit": "one"}),
]


@pytest.mark.usefixtures("collector_is_off")
@pytest.mark.parametrize(("called", "options"), MEMORY, ids=repr)
async def test_a_task_that_has_ended_is_freed_at_once(
    called: Callable[[Big], Any], options: dict[str, Any]
) -> None:
    async with serving(limits={"one": 1}, history=0) as bgx:

        async def request() -> weakref.ref[Big]:
            big = Big()
            tasks = await tasks_of(bgx)
            added = tasks.using(**options).add_task(called, big)
            await settle(tasks, added)
            return weakref.ref(big)

        reference = await request()
        if sys.version_info >= (3, 12) and called in (fails, fails_later, waits):
            # There, the frame of a coroutine that raised leads to its callers' (`f_back`), ours
            # and the server's, whose variables lead to the task, which keeps the error: a cycle.
            await until(lambda: gc.collect() >= 0 and reference() is None)
        await until(lambda: reference() is None)


@pytest.mark.usefixtures("collector_is_off")
@pytest.mark.parametrize("options", [{}, {"queue_timeout": 5}, {"queue_timeout": 0.01}], ids=str)
@DETACHED
async def test_a_task_that_waited_is_freed_at_once(options: dict[str, Any], detached: bool) -> None:
    async with serving(max_concurrency=1) as bgx:

        async def request() -> weakref.ref[Big]:
            big, release, first = Big(), anyio.Event(), await tasks_of(bgx)
            first.using(detached=True).add_task(release.wait)
            await first()
            tasks = await tasks_of(bgx)
            waited = tasks.using(detached=detached, **options).add_task(succeeds_later, big)
            async with anyio.create_task_group() as group:
                group.start_soon(tasks)
                await until(lambda: bgx.stats().limiters["concurrency"].waiting)
                if options.get("queue_timeout") == 0.01:
                    await waited.wait()
                release.set()
            await waited.wait()
            return weakref.ref(big)

        reference = await request()
        await until(lambda: reference() is None)


@pytest.mark.usefixtures("collector_is_off")
async def test_a_sibling_that_follows_frees_the_one_before() -> None:
    async with serving(mode="detached") as bgx:

        async def request() -> tuple[weakref.ref[Big], Task[Any]]:
            big, tasks = Big(), await tasks_of(bgx)
            tasks.add_task(succeeds_later, big)
            last = tasks.add_task(anyio.sleep_forever)
            await tasks()
            return weakref.ref(big), last

        reference, last = await request()
        await until(lambda: last.status == "running")
        await until(lambda: reference() is None)


@pytest.mark.usefixtures("collector_is_off")
async def test_a_task_that_was_dropped_is_freed_at_once() -> None:
    tasks, big = await tasks_of(Bgx(Settings())), Big()
    reference = weakref.ref(big)
    tasks.add_task(succeeds, big)
    del big, tasks
    await until(lambda: reference() is None)


async def test_a_running_task_is_kept_although_nobody_else_holds_it() -> None:
    """asyncio itself keeps only weak references to its tasks."""
    woken: list[weakref.ref[anyio.Event]] = []

    async def work() -> None:
        event = anyio.Event()
        woken.append(weakref.ref(event))
        await event.wait()

    async with serving(mode="detached") as bgx:
        tasks = await tasks_of(bgx)
        tasks.add_task(work)
        await tasks()
        del tasks
        await until(lambda: woken)
        gc.collect()
        event = woken[0]()
        assert event is not None
        event.set()
        await until(lambda: bgx.stats().totals[Status.SUCCEEDED])


async def test_threads_that_add_detached_tasks_are_served_by_the_loop() -> None:
    """As sync routes do; the loop is not theirs."""
    gauge = Gauge()

    async def work() -> None:
        with gauge:
            await anyio.sleep(0)

    async with serving(mode="detached") as bgx:
        requests = [await tasks_of(bgx) for _ in range(8)]

        def route(tasks: BackgroundTasks) -> None:
            for _ in range(50):
                tasks.add_task(work)

        threads = [threading.Thread(target=partial(route, tasks)) for tasks in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join)
        for tasks in requests:
            await tasks()
        await until(lambda: gauge.total == 400)


async def test_what_a_task_adds_runs_though_its_websocket_is_over_and_had_nothing_to_call() -> None:
    release = anyio.Event()
    async with serving() as bgx:
        scope: Any = {"type": "websocket"}
        connection: Any = HTTPConnection(scope)
        tasks = await bgx(StockBackgroundTasks(), connection)
        added: list[Task[Any]] = []

        async def adds() -> None:
            await release.wait()
            added.append(tasks.add_task(anyio.sleep, 0))

        first = tasks.using(detached=True).add_task(adds)  # started at once, by nobody's call
        await until(lambda: first.status is Status.RUNNING)
        await tasks()
        release.set()
        await first.wait()
        with anyio.fail_after(PATIENCE):
            assert (await added[0].wait()).status is Status.SUCCEEDED
