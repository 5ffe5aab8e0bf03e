"""Each defect of another library that we know of is a test here that passes.

Seen in November 2026, with the newest release of each: fastapi-taskflow 0.12.1, fastapi-tasks,
asgi-background, aiojobs, taskiq's in-memory broker, fastapi-jobs and bgtasks-dashboard.
"""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastapi import FastAPI, HTTPException

from fastapi_bgx import BacklogFull, Bgx, Limit, Retry, Settings, Status, Tasks, current_task
from fastapi_bgx.errors import LimitConflict
from tests.asgi import call, client_of
from tests.supervision import PATIENCE, Gauge, serving, tasks_of, until

again = Retry(attempts=3, wait_initial=0.0, wait_jitter=0.0)
visitor: ContextVar[str] = ContextVar("visitor")


async def good() -> None:
    await anyio.sleep(0)


# One task and the others.


# fastapi-tasks, asgi-background: one of these ends the group that runs all tasks, and every route
# fails from then on.
@pytest.mark.anyio
@pytest.mark.parametrize("detached", [False, True])
async def test_a_leaked_cancelled_error_kills_nothing(detached: bool) -> None:
    async def leaks() -> None:
        await anyio.sleep(0)
        raise asyncio.CancelledError

    async with serving() as bgx:
        for _ in range(2):
            tasks = await tasks_of(bgx)
            view = tasks.using(detached=detached)
            added = [view.add_task(each) for each in (good, leaks, good)]
            await tasks()
            ended = [(await task.wait()).status for task in added]
            assert ended == ["succeeded", "failed", "succeeded"]


# bgtasks-dashboard: makes the coroutine of an async function, and never awaits it.
@pytest.mark.anyio
async def test_an_async_function_runs_to_its_end() -> None:
    reached: list[str] = []

    async def work() -> None:
        await anyio.sleep(0)
        reached.append("the end")

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        tasks.add_task(work)
        await tasks()
    assert reached == ["the end"]


# aiojobs: a job that waits for a slot is started by the one that ends, and sees its contextvars.
@pytest.mark.anyio
async def test_a_task_that_waited_has_the_context_of_its_own_request() -> None:
    seen: list[str] = []

    async def work() -> None:
        await anyio.sleep(0)
        seen.append(visitor.get())

    async def request(bgx: Bgx, name: str) -> None:
        visitor.set(name)
        tasks = await tasks_of(bgx)
        tasks.using(detached=True).add_task(work)
        await tasks()

    async with serving(max_concurrency=1) as bgx:
        async with anyio.create_task_group() as group:
            for name in "ann", "bob", "eve":
                group.start_soon(request, bgx, name)
        await until(lambda: len(seen) == 3)
    assert sorted(seen) == ["ann", "bob", "eve"]


# Limits.


# asgi-background: the fourth waits for a slot that the three hold until the fourth is added.
@pytest.mark.anyio
@pytest.mark.parametrize("detached", [False, True])
async def test_four_tasks_of_one_request_end_on_a_limit_of_three(detached: bool) -> None:
    gauge, release = Gauge(), anyio.Event()

    async def work() -> None:
        with gauge:
            await release.wait()

    async with serving(limits={"three": 3}) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=detached, concurrent=True, limit="three")
        added = [view.add_task(work) for _ in range(4)]
        async with anyio.create_task_group() as group:
            group.start_soon(tasks)
            await until(lambda: gauge.inside == 3)
            release.set()
        with anyio.fail_after(PATIENCE):
            assert [(await task.wait()).status for task in added] == [Status.SUCCEEDED] * 4
    assert gauge.most == 3


# taskiq, in memory: thirty run at once on a limit of three.
@pytest.mark.anyio
@pytest.mark.parametrize("sync", [False, True])
async def test_thirty_tasks_do_not_exceed_a_limit_of_three(sync: bool) -> None:
    gauge = Gauge()

    async def work() -> None:
        with gauge:
            await anyio.sleep(0)

    def work_in_thread() -> None:
        with gauge:
            time.sleep(0.001)

    async with serving(limits={"three": 3}) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(concurrent=True, limit="three")
        for _ in range(30):
            view.add_task(work_in_thread if sync else work)
        await tasks()
    assert (gauge.most, gauge.total) == (3, 30)


# fastapi-taskflow: what is run again goes past the queue: 38 at once on a limit of 2.
@pytest.mark.anyio
async def test_attempts_after_the_first_respect_the_limit_too() -> None:
    gauge = Gauge()

    async def fails() -> None:
        with gauge:
            await anyio.sleep(0)
            raise ValueError

    async with serving(limits={"two": 2}) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(concurrent=True, limit="two", retry=again)
        for _ in range(20):
            view.add_task(fails)
        await tasks()
    assert (gauge.most, gauge.total) == (2, 60)


# fastapi-taskflow: sleeps between two attempts with the slot in its hands.
@pytest.mark.anyio
async def test_a_task_that_waits_for_its_next_attempt_holds_no_slot() -> None:
    async def fails() -> None:
        raise ValueError

    async with serving(max_concurrency=1) as bgx:
        tasks = await tasks_of(bgx)
        policy = Retry(attempts=2, wait_initial=60, wait_jitter=0)
        waits = tasks.using(detached=True, retry=policy).add_task(fails)
        await tasks()
        await until(lambda: waits.status is Status.RETRYING)
        assert bgx.stats().limiters["concurrency"].taken == 0
        other = await tasks_of(bgx)
        task = other.add_task(good)
        with anyio.fail_after(PATIENCE):
            await other()
        assert task.status is Status.SUCCEEDED


# fastapi-jobs: after a timeout the thread runs on, uncounted: five at once on one slot.
@pytest.mark.anyio
async def test_a_thread_that_outlives_its_timeout_keeps_its_slot() -> None:
    release, gauge = threading.Event(), Gauge()

    def hangs() -> None:
        with gauge:
            release.wait(PATIENCE)

    async with serving(max_threads=1) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, concurrent=True, timeout=0.01)
        added = [view.add_task(hangs) for _ in range(5)]
        await tasks()
        await added[0].wait()
        assert added[0].status is Status.TIMED_OUT
        assert bgx.stats().limiters["threads"].taken == 1
        assert bgx.stats().limiters["threads"].waiting == 4
        release.set()
        for task in added:
            await task.wait()
    assert gauge.most == 1


# fastapi-taskflow: a change of a queue's concurrency while tasks run stalls the queue for ever.
@pytest.mark.anyio
@pytest.mark.parametrize("slots", [1, 5])
async def test_a_limit_that_is_changed_while_it_is_busy_goes_on(slots: int) -> None:
    gauge, release = Gauge(), anyio.Event()

    async def work() -> None:
        with gauge:
            await release.wait()

    async with serving(limits={"smtp": 3}) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, concurrent=True, limit="smtp")
        added = [view.add_task(work) for _ in range(8)]
        await tasks()
        await until(lambda: gauge.inside == 3)
        await bgx.resize("smtp", slots)
        await until(lambda: gauge.inside == max(3, slots))
        release.set()
        with anyio.fail_after(PATIENCE):
            for task in added:
                await task.wait()
        assert bgx.stats().limiters["smtp"].taken == 0
    assert gauge.total == 8


# The same, by code that defines a limit anew.
@pytest.mark.anyio
async def test_a_limit_that_is_defined_anew_while_it_is_busy_is_refused_and_goes_on() -> None:
    release = anyio.Event()
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, concurrent=True, limit=Limit("smtp", 1))
        added = [view.add_task(release.wait) for _ in range(3)]
        with pytest.raises(LimitConflict):
            tasks.using(limit=Limit("smtp", 2)).add_task(good)
        await tasks()
        release.set()
        with anyio.fail_after(PATIENCE):
            for task in added:
                await task.wait()


# Cancelling and trying again.


# fastapi-taskflow: says "cancelled" of a pending task, and runs it.
@pytest.mark.anyio
async def test_a_waiting_task_that_is_cancelled_never_runs() -> None:
    release, called = anyio.Event(), list[str]()

    async def work(name: str) -> None:
        called.append(name)

    async with serving(max_concurrency=1) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, concurrent=True)
        view.add_task(release.wait)
        waits, last = view.add_task(work, "cancelled"), view.add_task(work, "last")
        await tasks()
        await until(lambda: bgx.stats().limiters["concurrency"].waiting == 2)
        assert bgx.cancel(waits.id)
        release.set()
        await last.wait()
        assert waits.status is Status.CANCELLED
    assert called == ["last"]


# fastapi-jobs: a function that kills its worker is tried without end; it ran seven times.
@pytest.mark.anyio
async def test_a_task_is_tried_as_often_as_its_policy_says_and_no_more() -> None:
    calls: list[int] = []

    async def fails() -> None:
        task = current_task()
        assert task is not None
        calls.append(task.attempt)
        raise SystemExit

    insists = Retry(attempts=3, on=BaseException, wait_initial=0.0, wait_jitter=0.0)
    async with serving() as bgx:
        for policy, attempts in (again, [1]), (insists, [1, 2, 3]):
            tasks = await tasks_of(bgx)
            task = tasks.using(retry=policy).add_task(fails)
            await tasks()
            assert task.status is Status.FAILED
            assert calls == attempts
            calls.clear()


# fastapi-taskflow: what is run again gets a text in place of the argument: "User(id=1)".
@pytest.mark.anyio
async def test_each_attempt_gets_the_very_same_arguments() -> None:
    user, seen = object(), list[object]()

    async def fails(who: object) -> None:
        seen.append(who)
        raise ValueError

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        tasks.using(retry=again).add_task(fails, user)
        await tasks()
    assert [who is user for who in seen] == [True] * 3


# fastapi-taskflow: notes the key before it looks whether there is room. The client that tries again
# gets the id of a task that does not exist.
@pytest.mark.anyio
async def test_a_key_whose_task_found_no_room_is_free_when_the_client_tries_again() -> None:
    release, called = anyio.Event(), list[str]()

    async def pay() -> None:
        called.append("paid")

    async with serving(max_backlog=1, max_concurrency=1) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, concurrent=True)
        holder = view.add_task(release.wait)
        await tasks()
        await until(lambda: holder.status is Status.RUNNING)
        full = await tasks_of(bgx)
        full.using(detached=True).add_task(good)
        with pytest.raises(BacklogFull):
            full.using(detached=True, unique="order-42").add_task(pay)
        await full()
        release.set()
        await until(lambda: bgx.stats().waiting == 0)
        retried = await tasks_of(bgx)
        task = retried.using(unique="order-42").add_task(pay)
        await retried()
        assert task.status is Status.SUCCEEDED
    assert called == ["paid"]


# Calls.


class Mailer:
    """An object that is called, and one that has a method."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def __call__(self, to: str) -> None:
        self.sent.append(to)

    def send(self, to: str) -> None:
        self.sent.append(to)


# fastapi-taskflow: `partial` has no `__name__`, so adding one raises.
@pytest.mark.anyio
async def test_partials_callable_objects_and_methods_are_functions_like_any() -> None:
    mailer = Mailer()
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        tasks.add_task(partial(mailer, "a partial"))
        tasks.add_task(mailer, "an object")
        tasks.add_task(mailer.send, to="a method")
        tasks.add_task(partial(partial(mailer.send), "nested"))
        await tasks()
    assert mailer.sent == ["a partial", "an object", "a method", "nested"]


# fastapi-taskflow: takes `priority`, `queue`, `tags`, `eager` and `idempotency_key` for itself.
@pytest.mark.anyio
@pytest.mark.parametrize("with_options", [False, True])
async def test_every_keyword_is_the_function_s_own(with_options: bool) -> None:
    names = (
        *("priority", "queue", "tags", "eager", "idempotency_key", "name", "timeout", "delay"),
        *("unique", "retry", "limit", "executor", "detached", "run_at", "options", "args", "self"),
    )
    given: dict[str, Any] = {name: f"my {name}" for name in names}
    got: list[dict[str, Any]] = []

    async def work(**keywords: Any) -> None:
        got.append(keywords)

    def takes_func(func: str) -> None:
        got.append({"func": func})

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        adder: Any = tasks.using(timeout=5) if with_options else tasks
        adder.add_task(work, **given)
        adder.add_task(takes_func, func="my func")
        await tasks()
    assert got == [given, {"func": "my func"}]


# Applications.


# fastapi-taskflow: hangs itself on `on_startup`, which does not run beside `lifespan=`. Nothing
# starts, and nothing says so.
def test_a_lifespan_of_the_application_switches_nothing_off(anyio_backend: str) -> None:
    said: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        said.append("open")
        yield
        said.append("close")

    async def work() -> None:
        await anyio.sleep(0)
        said.append("worked")

    app = FastAPI(lifespan=lifespan)
    Bgx(Settings(mode="detached")).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(work)

    with client_of(app, anyio_backend) as client:
        assert client.get("/").status_code == 200
    assert said == ["open", "worked", "close"]


# fastapi-taskflow: a task of a request that was answered 402 stays pending, and runs after the next
# start of the server.
def test_a_task_of_a_request_that_failed_never_runs(anyio_backend: str) -> None:
    called, added = list[str](), list[Any]()

    async def ship() -> None:
        called.append("shipped")

    app = FastAPI()
    bgx = Bgx()
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        added.append(tasks.add_task(ship))
        added.append(tasks.using(detached=True).add_task(ship))
        raise HTTPException(402)

    for _ in range(2):
        with client_of(app, anyio_backend) as client:
            assert client.get("/").status_code == 402
    assert [task.status for task in added] == [Status.DROPPED] * 4
    assert not called


# fastapi-taskflow: its dependency is a sync function. FastAPI calls it in one of the 40 threads: an
# async route waited 902 ms for one.
@pytest.mark.anyio
async def test_an_async_route_does_not_wait_for_a_thread_to_get_its_tasks() -> None:
    app, bgx = FastAPI(), Bgx()
    bgx.install(app)
    release, busy = threading.Event(), Gauge()

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(good)

    def hold() -> None:
        with busy:
            release.wait(PATIENCE)

    threads = int(anyio.to_thread.current_default_thread_limiter().total_tokens)
    async with anyio.create_task_group() as group:
        for _ in range(threads):
            group.start_soon(anyio.to_thread.run_sync, hold)
        await until(lambda: busy.inside == threads)
        with anyio.fail_after(PATIENCE / 2):
            answer = await call(app)
        assert busy.inside == threads
        release.set()
    assert answer[0]["status"] == 200


class Ballast:
    """Something large that a task was given."""


# fastapi-taskflow: keeps every task that ever ran, with its arguments.
@pytest.mark.anyio
async def test_of_tasks_that_have_ended_nothing_grows() -> None:
    async def fails(_: Ballast) -> None:
        raise ValueError

    async def works(_: Ballast) -> None: ...

    alive: list[weakref.ref[Ballast]] = []
    async with serving(history=10, history_of="all", log_events=frozenset()) as bgx:

        async def request() -> None:
            tasks = await tasks_of(bgx)
            for function in works, fails:
                ballast = Ballast()
                alive.append(weakref.ref(ballast))
                tasks.add_task(function, ballast)
            await tasks()

        for _ in range(50):
            await request()
        gc.collect()
        assert len(bgx.find()) <= 10
    # Those that failed are in the frames of their tracebacks.
    assert sum(reference() is not None for reference in alive) <= 20
