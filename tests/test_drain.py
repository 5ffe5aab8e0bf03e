"""Drain: refuse what is new, wait for what is live, cancel what is left, and report."""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.types import Message

from fastapi_bgx import (
    BackgroundTasks,
    Bgx,
    Draining,
    DrainReport,
    Outcome,
    Settings,
    Status,
    Task,
    Tasks,
)
from tests.asgi import call, client_of, running
from tests.logs import Lines, logged, named, one
from tests.supervision import serving, tasks_of, until

pytestmark = pytest.mark.anyio
FAR = 60.0
"""A grace period that no test waits for."""


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as captured:
        yield captured


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was cancelled has less time to end."""
    monkeypatch.setattr("fastapi_bgx.drain.UNWIND_SECONDS", 0.02)
    monkeypatch.setattr("fastapi_bgx.attempt.UNWIND_SECONDS", 0.02)


class Held:
    """A function for tasks that runs until it is released."""

    def __init__(self) -> None:
        self.started = anyio.Event()
        self.released = anyio.Event()

    async def __call__(self) -> None:
        self.started.set()
        await self.released.wait()


async def detach(bgx: Bgx, *functions: Callable[[], Any], **options: Any) -> list[Task[Any]]:
    """Detached tasks of one request that has ended."""
    tasks = await tasks_of(bgx)
    added = [tasks.using(detached=True, **options).add_task(each) for each in functions]
    await tasks()
    return added


async def nothing() -> None:
    """A task that ends at once."""


# Waiting.


async def test_it_waits_for_a_detached_task() -> None:
    async with serving() as bgx, anyio.create_task_group() as group:
        held = Held()
        (task,) = await detach(bgx, held)
        await held.started.wait()
        group.start_soon(bgx.drain, FAR)
        await until(lambda: bgx.runners.current().refusing)
        assert task.status is Status.RUNNING
        held.released.set()
        report = await bgx.drain()
        assert report.finished == (task.ref,)
        assert report.cancelled == report.in_thread == report.stuck == ()
        assert report.duration_s < FAR


async def test_it_waits_for_an_inline_task_and_for_those_after_it() -> None:
    async with serving() as bgx, anyio.create_task_group() as group:
        held, second = Held(), Held()
        tasks = await tasks_of(bgx)
        added = [tasks.add_task(held), tasks.add_task(nothing), tasks.add_task(second)]
        group.start_soon(tasks)
        await held.started.wait()
        group.start_soon(bgx.drain, FAR)
        await until(lambda: bgx.runners.current().refusing)
        held.released.set()
        await second.started.wait()
        second.released.set()
        assert (await bgx.drain()).finished == tuple(task.ref for task in added)


async def test_it_waits_for_a_thread() -> None:
    started, released = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        released.wait()

    async with serving() as bgx, anyio.create_task_group() as group:
        (task,) = await detach(bgx, work)
        await until(started.is_set)
        group.start_soon(bgx.drain, FAR)
        await until(lambda: bgx.runners.current().refusing)
        released.set()
        assert (await bgx.drain()).finished == (task.ref,)


async def test_it_waits_for_the_detached_siblings_that_follow_and_for_the_backlog() -> None:
    async with serving(limits={"door": 1}) as bgx, anyio.create_task_group() as group:
        held = Held()
        siblings = await detach(bgx, held, nothing)
        await held.started.wait()
        holding = Held()
        siblings += await detach(bgx, holding, limit="door")
        await holding.started.wait()
        siblings += await detach(bgx, nothing, limit="door")
        group.start_soon(bgx.drain, FAR)
        await until(lambda: bgx.runners.current().refusing)
        held.released.set()
        holding.released.set()
        report = await bgx.drain()
        assert sorted(report.finished) == sorted(task.ref for task in siblings)


async def test_with_nothing_live_it_is_over_at_once() -> None:
    async with serving() as bgx:
        report = await bgx.drain(FAR)
        assert report == DrainReport(duration_s=report.duration_s)
        assert report.duration_s < 0.5  # what was cancelled would have 1 s to end


async def test_tasks_that_failed_have_finished_and_those_that_never_ran_have_not() -> None:
    async def fail() -> None:
        await held()
        raise ValueError

    async with serving(max_concurrency=1) as bgx, anyio.create_task_group() as group:
        held = Held()
        (failed,) = await detach(bgx, fail)
        await held.started.wait()
        (expired,) = await detach(bgx, nothing, queue_timeout=0.001)
        group.start_soon(bgx.drain, FAR)
        await expired.wait()
        held.released.set()
        assert (await bgx.drain()).finished == (failed.ref,)


@pytest.mark.parametrize("sync", [False, True])
async def test_it_waits_for_the_failure_hooks_of_detached_tasks(sync: bool) -> None:
    called = []

    async def fail() -> None:
        raise ValueError

    async with serving() as bgx:

        @bgx.on_failure
        async def hook(task: Task[Any], outcome: Outcome[Any]) -> None:
            for _ in range(10):
                await anyio.sleep(0)
            called.append(task)

        if sync:
            bgx.on_failure(lambda task, outcome: called.append(task))
        tasks = await detach(bgx, fail)
        await bgx.drain(FAR)
        assert called == tasks * (2 if sync else 1)


# Refusing.


async def test_new_tasks_are_refused(lines: Lines) -> None:
    async with serving() as bgx, anyio.create_task_group() as group:
        held = Held()
        await detach(bgx, held)
        await held.started.wait()
        group.start_soon(bgx.drain, FAR)
        await until(lambda: bgx.runners.current().refusing)
        tasks = await tasks_of(bgx)
        with pytest.raises(Draining) as refused:
            tasks.add_task(nothing)
        assert refused.value.retry_after > 0
        rejected = one(lines, "task.rejected")
        assert (rejected["task"], rejected["reason"]) == ("nothing", "shutting down")
        assert bgx.stats().totals[Status.REJECTED] == 1
        held.released.set()


async def test_a_request_whose_task_is_refused_is_answered_503_with_retry_after() -> None:
    app, bgx = FastAPI(), Bgx(Settings())
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(nothing)

    async with running(app):
        await bgx.drain()
        start, _ = await call(app)
        assert start["status"] == 503
        assert int(dict(start["headers"])[b"retry-after"]) > 0


async def test_a_running_task_may_still_add_tasks() -> None:
    async with serving() as bgx, anyio.create_task_group() as group:
        held, added = Held(), Held()
        tasks = await tasks_of(bgx)

        async def adds() -> None:
            await held()
            tasks.add_task(added)

        tasks.add_task(adds)
        group.start_soon(tasks)
        await held.started.wait()
        group.start_soon(bgx.drain, FAR)
        await until(lambda: bgx.runners.current().refusing)
        held.released.set()
        await added.started.wait()
        added.released.set()
        assert len((await bgx.drain()).finished) == 2


async def test_once_everything_is_cancelled_a_running_task_may_not_either() -> None:
    refused = anyio.Event()

    async def adds_late() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with pytest.raises(Draining):
                tasks.add_task(nothing)
            refused.set()

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        await detach(bgx, adds_late)
        await until(lambda: bgx.stats().running)
        await bgx.drain(0)
        assert refused.is_set()


async def test_a_task_that_was_accepted_before_and_is_called_afterwards_is_cancelled(
    lines: Lines,
) -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        inline, detached = tasks.add_task(nothing), tasks.using(detached=True).add_task(nothing)
        await bgx.drain()
        await tasks()
        assert inline.status is detached.status is Status.CANCELLED
        assert [line["reason"] for line in named(lines, "task.cancelled")] == ["shutdown"] * 2


# Cancelling.


@pytest.mark.parametrize("grace", [0, 0.01])
async def test_after_the_grace_period_everything_live_is_cancelled(
    grace: float, lines: Lines
) -> None:
    async with serving(limits={"door": 1}) as bgx, anyio.create_task_group() as group:
        held = Held()
        running_and_following = await detach(bgx, held, nothing, limit="door")
        waiting = await detach(bgx, nothing, limit="door")
        tasks = await tasks_of(bgx)
        inline, unstarted = tasks.add_task(Held()), tasks.add_task(nothing)
        group.start_soon(tasks)
        await held.started.wait()
        report = await bgx.drain(grace)

        every = [*running_and_following, *waiting, inline, unstarted]
        assert {task.status for task in every} == {Status.CANCELLED}
        assert sorted(report.cancelled) == sorted(task.ref for task in every)
        assert report.finished == report.in_thread == report.stuck == ()
        cancelled = named(lines, "task.cancelled")
        assert sorted(line["task_id"] for line in cancelled) == sorted(task.id for task in every)
        assert {line["reason"] for line in cancelled} == {"shutdown"}


async def test_the_grace_period_is_the_drain_timeout_unless_told() -> None:
    async with serving(drain_timeout=0.01) as bgx:
        (task,) = await detach(bgx, anyio.sleep_forever)
        assert (await bgx.drain()).cancelled == (task.ref,)


async def test_it_goes_on_when_what_was_cancelled_has_ended() -> None:
    async def unwinds() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            unwound.set()

    unwound = anyio.Event()
    async with serving() as bgx:
        await detach(bgx, unwinds)
        await until(lambda: bgx.stats().running)
        report = await bgx.drain(0)
        assert unwound.is_set()
        assert report.stuck == ()
        assert report.duration_s < 1  # the time that it would give to one that does not end


async def test_a_thread_that_goes_on_is_reported_and_not_waited_for(lines: Lines) -> None:
    started, released = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        released.wait()

    async with serving() as bgx:
        (task,) = await detach(bgx, work)
        await until(started.is_set)
        report = await bgx.drain(0)
        assert report.in_thread == report.cancelled == (task.ref,)
        drained = one(lines, "bgx.drained")
        assert drained["in_thread"] == [f"{task.name} {task.id}"]
        released.set()
        await until(lambda: named(lines, "task.overran"))


@pytest.mark.usefixtures("_impatient")
async def test_a_function_that_swallows_its_cancellation_is_reported(
    lines: Lines, anyio_backend_name: str
) -> None:
    cancelled = anyio.get_cancelled_exc_class()
    over = False

    async def stubborn() -> None:
        while not over:
            with suppress(cancelled):
                await anyio.sleep_forever()

    async with serving() as bgx:
        (task,) = await detach(bgx, stubborn)
        await until(lambda: bgx.stats().running)
        report = await bgx.drain(0)
        assert report.stuck == (task.ref,)
        assert report.in_thread == ()
        overran = named(lines, "task.overran")[0]
        assert (overran["task_id"], overran["ended"]) == (task.id, False)
        over = True  # trio cannot leave a function where it stands
        with anyio.fail_after(5):
            await task.wait()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.usefixtures("_impatient")
async def test_asyncio_leaves_such_a_function_where_it_stands(lines: Lines) -> None:
    ends = []

    async def stubborn() -> None:
        try:
            while True:
                try:
                    await anyio.sleep_forever()
                except anyio.get_cancelled_exc_class():
                    ends.append("swallowed")
        finally:
            ends.append("cleaned up")

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        tasks.add_task(stubborn)
        after = tasks.add_task(nothing)
        async with anyio.create_task_group() as group:
            group.start_soon(tasks)
            await until(lambda: bgx.stats().running)
            await bgx.drain(0)
        # The request has ended: nothing keeps the server from ending.
        assert ends == ["swallowed", "cleaned up"]
        assert after.status is Status.CANCELLED
        assert {line["task_id"] for line in named(lines, "task.cancelled")} == {
            task.id for task in (after, *tasks.tasks) if isinstance(task, Task)
        }


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.usefixtures("_impatient")
async def test_what_a_function_raises_when_it_is_left_hurts_nobody() -> None:
    async def stubborn() -> None:
        try:
            while True:
                with suppress(anyio.get_cancelled_exc_class()):
                    await anyio.sleep_forever()
        finally:
            raise ValueError("cannot clean up")

    async with serving() as bgx:
        (task,) = await detach(bgx, stubborn)
        await until(lambda: bgx.stats().running)
        assert (await bgx.drain(0)).stuck == (task.ref,)
        assert task.status is Status.CANCELLED


@pytest.mark.usefixtures("_impatient")
async def test_a_failure_hook_that_does_not_end_is_not_waited_for() -> None:
    async def fail() -> None:
        raise ValueError

    async with serving() as bgx:
        held = Held()
        bgx.on_failure(lambda task, outcome: held())
        (task,) = await detach(bgx, fail)
        await held.started.wait()
        assert (await bgx.drain(0)).finished == ()
        assert task.status is Status.FAILED
        held.released.set()


# Who asks.


async def test_a_second_call_gives_the_report_of_the_first(lines: Lines) -> None:
    async with serving() as bgx:
        first = await bgx.drain()
        assert await bgx.drain(FAR) is first
    assert len(named(lines, "bgx.drained")) == 1


async def test_calls_at_once_share_one_drain_and_the_shorter_grace_period(lines: Lines) -> None:
    reports = []

    async def drain(grace: float) -> None:
        reports.append(await bgx.drain(grace))

    async with serving() as bgx:
        (task,) = await detach(bgx, anyio.sleep_forever)
        async with anyio.create_task_group() as group:
            for grace in FAR, 0.01, FAR:
                group.start_soon(drain, grace)
        assert reports[0] is reports[1] is reports[2]
        assert reports[0].cancelled == (task.ref,)
    assert len(named(lines, "bgx.drained")) == 1


async def test_a_call_that_is_cancelled_ends_the_drain_for_nobody(lines: Lines) -> None:
    async with serving() as bgx, anyio.create_task_group() as group:
        held = Held()
        (task,) = await detach(bgx, held)
        await held.started.wait()
        with anyio.move_on_after(0.01) as scope:
            await bgx.drain(FAR)
        assert scope.cancelled_caught
        assert not named(lines, "bgx.drained")
        group.start_soon(bgx.drain)
        held.released.set()
        assert (await bgx.drain()).finished == (task.ref,)


async def test_a_task_that_drains_does_not_wait_for_itself() -> None:
    report: list[DrainReport] = []

    async def stop() -> None:
        await held.started.wait()
        report.append(await bgx.drain(FAR))
        await anyio.sleep(0)

    async with serving() as bgx:
        held = Held()
        (stopping,) = await detach(bgx, stop)
        (other,) = await detach(bgx, held)
        await held.started.wait()
        held.released.set()
        with anyio.fail_after(5):
            outcome = await stopping.wait()
        assert outcome.status is Status.SUCCEEDED
        assert report[0].finished == (other.ref,)


@pytest.mark.usefixtures("_impatient")
async def test_a_task_that_drains_is_neither_cancelled_nor_given_up_by_it() -> None:
    async def stubborn() -> None:
        while not over.is_set():
            with suppress(cancelled):
                await over.wait()

    cancelled, over = anyio.get_cancelled_exc_class(), anyio.Event()
    async with serving() as bgx:
        (other,) = await detach(bgx, stubborn)
        (stopping,) = await detach(bgx, lambda: bgx.drain(0))
        outcome = await stopping.wait()
        assert outcome.value.stuck == (other.ref,)
        over.set()


# With the lifespan.


async def test_it_comes_before_the_end_of_the_applications_own_lifespan(lines: Lines) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield
        ended.append([line["event"] for line in lines])

    ended: list[list[str]] = []
    app = FastAPI(lifespan=lifespan)
    Bgx(Settings()).install(app)
    async with running(app):
        pass
    assert ended == [["bgx.started", "bgx.drained"]]


async def test_the_lifespan_for_composing_by_hand_drains_too(lines: Lines) -> None:
    bgx = Bgx(Settings())
    async with bgx.lifespan(FastAPI()):
        (task,) = await detach(bgx, nothing)
    assert task.status is Status.SUCCEEDED
    assert one(lines, "bgx.drained")["finished"] == 1


async def test_an_error_in_a_lifespan_composed_by_hand_is_kept(lines: Lines) -> None:
    with pytest.raises(ValueError, match="cannot start the rest"):
        async with Bgx(Settings()).lifespan(FastAPI()):
            raise ValueError("cannot start the rest")
    one(lines, "bgx.drained")


async def composed(bgx: Bgx) -> None:
    """A lifespan that ends when it is cancelled."""
    async with bgx.lifespan(FastAPI()):
        await anyio.sleep_forever()


async def installed(bgx: Bgx) -> None:
    """An application whose server never sends `lifespan.shutdown`."""
    app = FastAPI()
    bgx.install(app)
    messages = iter([{"type": "lifespan.startup"}])

    async def receive() -> Message:
        for message in messages:
            return message
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        """The server is not interested."""

    await app({"type": "lifespan", "state": {}}, receive, send)


@pytest.mark.parametrize("lifespan", [composed, installed])
async def test_a_server_that_ends_without_a_shutdown_gets_the_report_at_once(
    lifespan: Callable[[Bgx], Coroutine[Any, Any, None]], lines: Lines
) -> None:
    bgx = Bgx(Settings(drain_timeout=FAR))
    async with anyio.create_task_group() as group:
        group.start_soon(lifespan, bgx)
        await until(lambda: named(lines, "bgx.started"))
        (task,) = await detach(bgx, anyio.sleep_forever)
        await until(lambda: bgx.stats().running)
        with anyio.fail_after(5):
            group.cancel_scope.cancel()
            await until(lambda: named(lines, "bgx.drained"))
    assert one(lines, "bgx.drained")["cancelled"] == [f"{task.name} {task.id}"]


def test_an_application_may_be_started_again(anyio_backend: str, lines: Lines) -> None:
    app, bgx = FastAPI(), Bgx(Settings())
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(nothing)

    for _ in range(2):
        with client_of(app, anyio_backend) as client:
            assert client.get("/").is_success
    assert [line["finished"] for line in named(lines, "bgx.drained")] == [0, 0]
    assert len(named(lines, "task.succeeded")) == 2


def test_a_task_that_is_dropped_when_the_loop_has_ended_hurts_nobody(lines: Lines) -> None:
    bgx = Bgx(Settings())

    async def add_and_leave() -> None:
        bgx.runners.drain().announce(FAR)
        kept.append(await tasks_of(bgx))
        kept[0].add_task(nothing)

    kept: list[BackgroundTasks] = []
    asyncio.run(add_and_leave())
    kept.clear()
    gc.collect()
    one(lines, "task.dropped")


# At once with another cancellation.


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancel_scope_around_the_request_gets_its_own_cancellation_back() -> None:
    """anyio's scopes know theirs from others; another one would go on and cancel the server's."""

    async def goes_on() -> None:
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()
        with anyio.CancelScope(shield=True):
            shielded.set()
            await anyio.sleep_forever()

    async def cancel_both() -> None:
        await until(lambda: bgx.stats().running)
        scope.cancel()
        await shielded.wait()
        bgx.runners.current().cancel(task, "shutdown")

    async with serving() as bgx, anyio.create_task_group() as group:
        shielded, tasks = anyio.Event(), await tasks_of(bgx)
        task = tasks.add_task(goes_on)
        group.start_soon(cancel_both)
        with anyio.CancelScope() as scope:
            await tasks()
        assert scope.cancelled_caught
        assert task.status is Status.CANCELLED


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_of_asyncio_at_the_same_time_is_not_lost() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.add_task(anyio.sleep_forever)
        request = asyncio.ensure_future(tasks())
        await until(lambda: bgx.stats().running)
        bgx.runners.current().cancel(task, "shutdown")
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request


@pytest.mark.anyio
async def test_a_detached_task_that_is_reached_after_the_grace_period_is_not_lost() -> None:
    """The detached one before it still cleans up: nobody would have it follow."""
    release = anyio.Event()

    async def cleans_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await release.wait()

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        first = tasks.using(detached=True).add_task(cleans_up)
        tasks.add_task(anyio.sleep_forever)
        behind = tasks.using(detached=True).add_task(anyio.sleep_forever)
        async with anyio.create_task_group() as group:
            group.start_soon(tasks)
            await until(lambda: bgx.stats().running == 2)
            group.start_soon(bgx.drain, 0)
            try:
                await until(lambda: behind.done)
                assert not first.done
            finally:
                release.set()
        assert behind.status is Status.CANCELLED
        assert bgx.stats().waiting == 0
