"""Whatever a task does, it hurts nobody else, and its error is kept (promise 1)."""

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from fastapi import FastAPI

from fastapi_bgx import BackgroundTasks, Bgx, Outcome, Settings, Task, Tasks
from tests.asgi import client_of
from tests.logs import logged, named
from tests.supervision import PATIENCE, serving, tasks_of, until

pytestmark = pytest.mark.anyio


class Rude(BaseException):
    """Nothing that `except Exception` catches."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def recurse() -> None:
    recurse()


ERRORS: list[BaseException] = [
    ValueError("what a task may raise"),
    SystemExit(3),
    GeneratorExit(),
    StopAsyncIteration(),
    asyncio.CancelledError("leaked"),
    BaseExceptionGroup("several", [ValueError(), SystemExit(), asyncio.CancelledError()]),
    ExceptionGroup("several", [ValueError(), OSError()]),
    Rude(),
    Unprintable(),
]


def raising(error: BaseException, where: str) -> Callable[[], Any]:
    """A function that raises `error` at a certain place."""

    def in_sync_function() -> None:
        raise error

    async def at_first_step() -> None:
        raise error

    async def after_a_suspension() -> None:
        await anyio.sleep(0)
        raise error

    async def while_cleaning_up() -> None:
        try:
            await anyio.sleep(0)
        finally:
            raise error

    functions = [in_sync_function, at_first_step, after_a_suspension, while_cleaning_up]
    return {function.__name__: function for function in functions}[where]


PLACES = ["in_sync_function", "at_first_step", "after_a_suspension", "while_cleaning_up"]


async def good() -> str:
    await anyio.sleep(0)
    return "ran"


class Request:
    """What awaits the tasks of a request, and goes on afterwards unless it is cancelled."""

    def __init__(self, tasks: BackgroundTasks) -> None:
        self.tasks = tasks
        self.went_on = False

    async def __call__(self) -> None:
        await self.tasks()
        self.went_on = True


@pytest.mark.parametrize("options", [{}, {"detached": True}, {"concurrent": True}], ids=str)
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_an_error_hurts_no_sibling_and_is_kept(
    error: BaseException, where: str, options: dict[str, Any]
) -> None:
    error.__traceback__ = None
    with logged() as lines:
        async with serving() as bgx:
            tasks = await tasks_of(bgx)
            view = tasks.using(**options)
            before = view.add_task(good)
            bad: Task[Any] = view.add_task(raising(error, where))
            after = [view.add_task(good), view.add_task(lambda: "ran"), tasks.add_task(good)]
            with anyio.fail_after(PATIENCE):
                await tasks()
                for task in [before, bad, *after]:
                    await task.wait()
            assert bgx.stats().running == 0
            again = await tasks_of(bgx)
            next_request = again.add_task(good)
            await again()
    assert [task.status for task in [before, *after, next_request]] == ["succeeded"] * 5
    assert bad.outcome is not None
    assert (bad.outcome.status, bad.outcome.attempts) == ("failed", 1)
    assert bad.outcome.error is error, "the very same object"
    frames = traceback.extract_tb(error.__traceback__)
    assert [frame.name for frame in frames] == [where], "its traceback is that of the function"
    [line] = named(lines, "task.failed")
    assert (line["exc_info"], line["error"]) == (error, type(error).__qualname__)
    assert (line["task_id"], line["log_level"]) == (bad.id, "error")


async def test_the_traceback_leads_into_what_the_function_called() -> None:
    async def outer() -> None:
        await anyio.sleep(0)
        await inner()

    async def inner() -> None:
        raise ValueError

    def outer_in_thread() -> None:
        recurse_a_little(3)

    def recurse_a_little(left: int) -> None:
        if not left:
            raise ValueError
        recurse_a_little(left - 1)

    tasks = await tasks_of(Bgx(Settings()))
    added = [tasks.add_task(outer), tasks.add_task(outer_in_thread)]
    await tasks()
    names = []
    for task in added:
        assert task.error is not None
        names.append([frame.name for frame in traceback.extract_tb(task.error.__traceback__)])
    assert names == [["outer", "inner"], ["outer_in_thread", *["recurse_a_little"] * 4]]


async def test_a_task_that_recurses_without_end_fails_alone() -> None:
    tasks = await tasks_of(Bgx(Settings()))
    for executor in "async", "thread":
        tasks.using(executor=executor).add_task(recurse)
    after = tasks.add_task(good)
    await tasks()
    added = [task for task in tasks.tasks if isinstance(task, Task)]
    assert [type(task.error) for task in added] == [RecursionError, RecursionError, type(None)]
    assert after.status == "succeeded"


async def test_sys_exit_ends_neither_the_server_nor_a_thread() -> None:
    tasks = await tasks_of(Bgx(Settings()))
    added: list[Task[Any]] = [tasks.add_task(sys.exit, 3)]
    added.append(tasks.using(executor="async").add_task(sys.exit, 4))
    after = tasks.add_task(lambda: "ran")
    await tasks()
    assert [getattr(task.error, "code", None) for task in added] == [3, 4]
    assert after.status == "succeeded"


# A cancellation that leaks is an error like any other; one that is meant is not.


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("detached", [False, True])
async def test_a_cancelled_future_that_a_task_awaits_is_its_own_failure(detached: bool) -> None:
    async def awaits_a_cancelled_future() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def awaits_a_cancelled_task() -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        await task

    async def awaits_a_task_group_of_one() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(60))
            await asyncio.sleep(0)
            task.cancel()
        await task

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=detached)
        bad = [
            view.add_task(awaits_a_cancelled_future),
            view.add_task(awaits_a_cancelled_task),
            view.add_task(awaits_a_task_group_of_one),
        ]
        after = view.add_task(good)
        await tasks()
        assert (await after.wait()).status == "succeeded"
    for task in bad:
        assert task.status == "failed"
        assert isinstance(task.error, asyncio.CancelledError)


async def test_a_cancellation_that_leaks_from_a_group_of_anyio_is_a_failure() -> None:
    async def leaks() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            await anyio.sleep(0)
            raise asyncio.CancelledError

    tasks = await tasks_of(Bgx(Settings()))
    bad, after = tasks.add_task(leaks), tasks.add_task(good)
    await tasks()
    assert (bad.status, after.status) == ("failed", "succeeded")


async def test_a_cancellation_that_a_task_asks_for_inside_of_itself_ends_there() -> None:
    async def cancels_its_own_scope() -> str:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        with anyio.move_on_after(0.001):
            await anyio.sleep_forever()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            await anyio.sleep(0)
            group.cancel_scope.cancel()
        return "done"

    tasks = await tasks_of(Bgx(Settings(timeout=PATIENCE)))
    task, after = tasks.add_task(cancels_its_own_scope), tasks.add_task(good)
    await tasks()
    assert task.outcome is not None
    assert task.outcome.value == "done"
    assert after.status == "succeeded"


async def test_a_request_that_is_cancelled_takes_its_inline_task_with_it() -> None:
    tasks, cleaned = await tasks_of(Bgx(Settings())), list[str]()

    async def cleans_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append("yes")

    request, running, queued = Request(tasks), tasks.add_task(cleans_up), tasks.add_task(good)
    with logged() as lines:
        async with anyio.create_task_group() as group:
            group.start_soon(request)
            await until(lambda: running.status == "running")
            group.cancel_scope.cancel()
    assert (request.went_on, cleaned) == (False, ["yes"])
    assert (running.status, queued.status) == ("cancelled", "dropped")
    reasons = {line["task_id"]: line["reason"] for line in lines if "reason" in line}
    assert reasons == dict.fromkeys([running.id, queued.id], "the request around it was cancelled")


async def swallows() -> str:
    try:
        await anyio.sleep_forever()
    except BaseException:
        return "no thanks"
    raise AssertionError


async def test_a_task_that_swallows_the_cancellation_of_its_request_does_not_hide_it(
    anyio_backend_name: str,
) -> None:
    tasks = await tasks_of(Bgx(Settings()))
    request = Request(tasks)
    swallowing, after = tasks.add_task(swallows), tasks.add_task(good)
    async with anyio.create_task_group() as group:
        group.start_soon(request)
        await until(lambda: swallowing.status == "running")
        group.cancel_scope.cancel()
    assert (swallowing.status, swallowing.value) == ("succeeded", "no thanks")
    assert not request.went_on
    # On asyncio nobody can tell before anyio cancels once more, when the next task waits.
    assert after.status == ("dropped" if anyio_backend_name == "trio" else "cancelled")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_that_is_delivered_once_is_over_when_a_task_swallows_it() -> None:
    """As in stock: asyncio itself knows nothing more of it."""
    tasks = await tasks_of(Bgx(Settings()))
    swallowing, after = tasks.add_task(swallows), tasks.add_task(good)
    request = asyncio.create_task(tasks())
    await until(lambda: swallowing.status == "running")
    request.cancel()
    await request
    assert (swallowing.status, after.status) == ("succeeded", "succeeded")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_times_itself_out_and_forgets_to_take_it_back_hurts_nobody() -> None:
    """As old versions of `async_timeout` did: a cancellation, swallowed, without `uncancel`."""

    async def times_itself_out() -> None:
        host = asyncio.current_task()
        assert host is not None
        asyncio.get_running_loop().call_soon(host.cancel)
        await swallows()

    tasks = await tasks_of(Bgx(Settings()))
    forgetful, after = tasks.add_task(times_itself_out), tasks.add_task(good)
    await tasks()
    assert (forgetful.status, after.status) == ("succeeded", "succeeded")


async def test_a_request_that_is_cancelled_leaves_a_thread_and_says_when_it_ends() -> None:
    entered, release = threading.Event(), threading.Event()

    def blocks() -> None:
        entered.set()
        release.wait(PATIENCE)

    with logged() as lines:
        async with serving(max_threads=1) as bgx:
            tasks = await tasks_of(bgx)
            request, blocking = Request(tasks), tasks.add_task(blocks)
            async with anyio.create_task_group() as group:
                group.start_soon(request)
                await until(entered.is_set)
                group.cancel_scope.cancel()
            assert (blocking.status, request.went_on) == ("cancelled", False)
            assert bgx.stats().overrunning == bgx.stats().executors["thread"] == 1
            release.set()
            await until(lambda: bgx.stats().overrunning == 0)
            assert bgx.stats().executors["thread"] == 0
    [line] = named(lines, "task.overran")
    assert (line["task_id"], line["ended"]) == (blocking.id, True)
    [line] = named(lines, "task.cancelled")
    assert line["reason"] == "the request around it was cancelled"


# Ctrl-C is for the process, not for the task that happens to run.


@pytest.mark.parametrize("where", ["at_first_step", "after_a_suspension"])
async def test_ctrl_c_in_a_task_is_recorded_and_goes_on_to_the_server(where: str) -> None:
    tasks = await tasks_of(Bgx(Settings()))
    bad, after = tasks.add_task(raising(KeyboardInterrupt(), where)), tasks.add_task(good)
    with logged() as lines, pytest.raises(KeyboardInterrupt):
        await tasks()
    assert (bad.status, after.status) == ("failed", "dropped")
    assert len(named(lines, "task.failed")) == 1


async def test_in_a_thread_nobody_has_pressed_ctrl_c() -> None:
    tasks = await tasks_of(Bgx(Settings()))
    bad = tasks.add_task(raising(KeyboardInterrupt(), "in_sync_function"))
    after = tasks.add_task(good)
    await tasks()
    assert isinstance(bad.error, KeyboardInterrupt)
    assert after.status == "succeeded"


# Told to raise, as in stock.


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("error", ERRORS[:3], ids=lambda error: type(error).__name__)
async def test_told_to_raise_it_stops_at_the_first_error(error: BaseException, where: str) -> None:
    tasks = await tasks_of(Bgx(Settings(on_error="raise")))
    before, bad = tasks.add_task(good), tasks.add_task(raising(error, where))
    dropped = [tasks.add_task(good), tasks.add_task(lambda: "ran")]
    with logged() as lines, pytest.raises(type(error)) as caught:
        await tasks()
    assert caught.value is error
    assert (before.status, bad.status) == ("succeeded", "failed")
    assert [task.status for task in dropped] == ["dropped", "dropped"]
    events = named(lines, "task.dropped")
    assert [line["task_id"] for line in events] == [task.id for task in dropped]
    assert {line["reason"] for line in events} == {"an earlier task failed, and on_error='raise'"}


async def test_told_to_raise_it_raises_timeouts_too() -> None:
    tasks = await tasks_of(Bgx(Settings(on_error="raise", timeout=0.01)))
    slow, after = tasks.add_task(anyio.sleep_forever), tasks.add_task(good)
    with pytest.raises(TimeoutError, match="ran longer than its timeout") as caught:
        await tasks()
    assert caught.value is slow.error
    assert after.status == "dropped"


async def test_told_to_raise_it_raises_the_error_of_a_concurrent_task_when_all_have_ended() -> None:
    tasks = await tasks_of(Bgx(Settings(on_error="raise")))
    view, release = tasks.using(concurrent=True), anyio.Event()

    async def sets() -> None:
        await anyio.sleep(0.01)
        release.set()

    bad = view.add_task(raising(ValueError(), "at_first_step"))
    others = [view.add_task(release.wait), tasks.add_task(sets)]
    with anyio.fail_after(PATIENCE), pytest.raises(ValueError) as caught:  # noqa: PT011 - it is compared
        await tasks()
    assert caught.value is bad.error
    assert [task.status for task in others] == ["succeeded"] * 2


async def test_told_to_raise_it_waits_for_concurrent_tasks_when_another_stops_the_rest() -> None:
    tasks = await tasks_of(Bgx(Settings(on_error="raise")))
    beside = tasks.using(concurrent=True).add_task(anyio.sleep, 0.02)
    tasks.add_task(raising(ValueError(), "at_first_step"))
    with pytest.raises(ValueError):  # noqa: PT011 - the only one
        await tasks()
    assert beside.status == "succeeded"


async def test_a_detached_task_has_nowhere_to_raise() -> None:
    async with serving(on_error="raise") as bgx:
        tasks = await tasks_of(bgx)
        bad = tasks.using(detached=True).add_task(raising(ValueError(), "after_a_suspension"))
        after = tasks.using(detached=True).add_task(good)
        await tasks()
        assert (await after.wait()).status == "succeeded"
        assert bad.status == "failed"


async def test_told_to_raise_a_shutdown_raises_nothing() -> None:
    bgx = Bgx(Settings(on_error="raise"))
    tasks = await tasks_of(bgx)
    request, task = Request(tasks), tasks.add_task(anyio.sleep_forever)
    async with anyio.create_task_group() as group:
        group.start_soon(request)
        await until(lambda: task.status == "running")
        await bgx.drain(grace=0)
    assert (task.status, request.went_on) == ("cancelled", True)


def test_told_to_raise_the_server_sees_the_error(anyio_backend: str) -> None:
    app = FastAPI()
    Bgx(Settings(on_error="raise")).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(raising(ValueError("seen"), "at_first_step"))

    with pytest.raises(ValueError, match="seen"), client_of(app, anyio_backend) as client:
        client.get("/")


async def test_a_hook_can_add_tasks() -> None:
    bgx, ran = Bgx(Settings()), list[str]()
    tasks = await tasks_of(bgx)

    @bgx.on_failure
    async def retries_by_hand(task: Task[Any], outcome: Outcome[Any]) -> None:
        tasks.add_task(ran.append, "again")

    tasks.add_task(raising(ValueError(), "in_sync_function"))
    await tasks()
    assert ran == ["again"]
