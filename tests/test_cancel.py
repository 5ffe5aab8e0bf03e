"""Cancelling and waiting: what is stopped where it stands, and a status that says what happened."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from fastapi import FastAPI

from fastapi_bgx import (
    BackgroundTasks,
    Bgx,
    Cancelled,
    Outcome,
    Retry,
    Settings,
    Status,
    Task,
    Tasks,
    current_task,
)
from fastapi_bgx import attempt as attempt_module
from tests import work
from tests.asgi import client_of
from tests.logs import FINAL, logged, named, one
from tests.supervision import PATIENCE, serving, tasks_of, until

pytestmark = pytest.mark.anyio

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])
SOON = Retry(attempts=5, wait_from_error=lambda _: 0.0)
LATER = Retry(attempts=5, wait_from_error=lambda _: 60.0, total_timeout=None)


async def good() -> str:
    await anyio.sleep(0)
    return "ran"


async def bad() -> None:
    raise ValueError("no")


def never() -> None:
    raise AssertionError("it was cancelled")


def ending(task: Task[Any]) -> tuple[str, int]:
    """The status and how often it was called."""
    assert task.outcome is not None
    return str(task.outcome.status), task.outcome.attempts


def inside() -> Any:
    """The running task."""
    task = current_task()
    assert task is not None
    return task


# What waits never runs.


async def test_a_task_that_nobody_has_called_yet() -> None:
    bgx = Bgx(Settings())
    with logged() as lines:
        tasks = await tasks_of(bgx)
        task, sibling = tasks.add_task(never), tasks.add_task(good)
        assert task.cancel()
        assert ending(task) == ("cancelled", 0)
        assert task.cancelled
        assert bgx.stats().waiting == 1
        await tasks()
    assert sibling.status == "succeeded"
    line = one(lines, "task.cancelled")
    assert (line["reason"], line["task_id"]) == ("cancel() was called", task.id)
    assert len([line for line in lines if line["event"] in FINAL]) == 2
    assert bgx.stats().waiting == 0


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("function", [never, good])
async def test_a_task_that_waits_for_a_slot(detached: bool, function: Callable[[], Any]) -> None:
    async with serving(max_concurrency=1) as bgx:
        holder, other = await tasks_of(bgx), await tasks_of(bgx)
        release = anyio.Event()
        first = holder.using(detached=True).add_task(release.wait)
        await holder()
        waiting = other.using(detached=detached).add_task(function)
        after = other.using(detached=detached).add_task(good)
        async with anyio.create_task_group() as group:
            group.start_soon(other.__call__)
            await until(lambda: bgx.stats().limiters["concurrency"].waiting)
            assert waiting.cancel()
            assert ending(waiting) == ("cancelled", 0)
            release.set()
        assert (await after.wait()).status == "succeeded"
        assert first.status == "succeeded"
        stats = bgx.stats()
        assert (stats.running, stats.waiting, stats.limiters["concurrency"].waiting) == (0, 0, 0)


async def test_one_that_was_given_its_slot_but_has_not_begun() -> None:
    async with serving(max_concurrency=1) as bgx:
        holder, other = await tasks_of(bgx), await tasks_of(bgx)
        release = anyio.Event()
        holder.using(detached=True).add_task(release.wait)
        await holder()
        async with anyio.create_task_group() as group:
            waiting = other.add_task(never)
            holder.tasks[0].when_ended(lambda _: waiting.cancel())  # type: ignore[attr-defined]
            group.start_soon(other.__call__)
            await until(lambda: bgx.stats().limiters["concurrency"].waiting)
            release.set()
        assert ending(waiting) == ("cancelled", 0)
        assert bgx.stats().running == 0


async def test_a_task_that_is_ready_for_a_worker_gives_its_slot_back() -> None:
    async with serving(max_concurrency=1) as bgx:
        tasks = await tasks_of(bgx)
        ready = tasks.using(detached=True, concurrent=True).add_task(never)
        behind = tasks.using(detached=True, concurrent=True).add_task(good)
        await tasks()
        assert bgx.stats().running == 1, "it holds the slot"
        assert ready.cancel()
        assert ending(ready) == ("cancelled", 0)
        assert (await behind.wait()).status == "succeeded"


async def test_a_detached_task_behind_its_sibling_and_the_next_one_keeps_its_place() -> None:
    ran: list[str] = []
    release = anyio.Event()

    async def first() -> None:
        await release.wait()
        ran.append("first")

    async def last() -> None:
        ran.append("last")

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True)
        view.add_task(first)
        before = view.add_task(never)  # cancelled before it is called
        assert before.cancel()
        waiting = [view.add_task(never) for _ in range(3)]
        end = view.add_task(last)
        await tasks()
        for task in waiting[1], waiting[0], waiting[2]:
            assert task.cancel()
        await anyio.wait_all_tasks_blocked()
        assert ran == []
        release.set()
        await end.wait()
    assert ran == ["first", "last"]
    assert {task.status for task in (before, *waiting)} == {"cancelled"}


async def test_a_delayed_task() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        inline, detached = (
            tasks.using(delay=60, detached=detached).add_task(never) for detached in (False, True)
        )
        async with anyio.create_task_group() as group:
            group.start_soon(tasks.__call__)
            await until(lambda: len(bgx.runners.current().live) == 2)
            assert detached.cancel()
            assert inline.cancel()  # and the request ends, that waited for it
        assert ending(inline) == ending(detached) == ("cancelled", 0)
        assert bgx.stats().waiting == 0


async def test_a_task_between_two_attempts_keeps_its_errors() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=LATER, detached=True).add_task(bad)
        await tasks()
        await until(lambda: task.status == "retrying")
        assert task.cancel()
        assert ending(task) == ("cancelled", 1)
        assert task.outcome is not None
        assert [str(error) for error in task.outcome.errors] == ["no"]
        assert (bgx.stats().waiting, bgx.stats().running) == (0, 0)


async def test_one_that_a_websocket_or_a_late_task_has_just_handed_over() -> None:
    async with serving() as bgx:
        tasks, added = await tasks_of(bgx), list[Task[Any]]()
        release = anyio.Event()

        async def adds_and_cancels() -> None:
            await release.wait()
            for unique in None, "k":
                view = tasks.using(detached=True, unique=unique)
                added.append(view.add_task(never))
                assert bgx.cancel(added[-1].id), "found, though it is nowhere yet"

        last = tasks.using(detached=True).add_task(adds_and_cancels)
        await tasks()
        release.set()
        assert (await last.wait()).status == "succeeded"
        await anyio.wait_all_tasks_blocked()
    assert [ending(task) for task in added] == [("cancelled", 0)] * 2


def test_a_task_that_was_added_outside_of_every_loop(anyio_backend: str) -> None:
    tasks = BackgroundTasks()
    task, sibling = tasks.add_task(never), tasks.add_task(good)
    assert task.cancel()
    assert not task.cancel()
    anyio.run(tasks.__call__, backend=anyio_backend)
    assert ending(task) == ("cancelled", 0)
    assert sibling.status == "succeeded"


# An async function is cancelled.


@pytest.mark.parametrize("detached", [False, True])
async def test_a_running_async_task_is_cancelled_and_nobody_else_is(detached: bool) -> None:
    cleaned: list[str] = []
    told: list[Task[Any]] = []

    async def endless() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append("yes")

    async with serving(max_concurrency=1, retry=SOON) as bgx:

        @bgx.on_failure
        async def tell(task: Task[Any], _: Outcome[Any]) -> None:
            told.append(task)

        tasks = await tasks_of(bgx)
        view = tasks.using(detached=detached)
        task, sibling = view.add_task(endless), view.add_task(good)
        async with anyio.create_task_group() as group:
            group.start_soon(tasks.__call__)  # raises nothing: the request is not hurt
            await until(lambda: task.status == "running")
            assert task.cancel()
            await task.wait()
        assert ending(task) == ("cancelled", 1), "and it is not tried again"
        assert (await sibling.wait()).status == "succeeded"
        assert bgx.stats().running == 0
    assert (cleaned, told) == (["yes"], [])


async def test_a_second_call_leaves_it_to_clean_up_in_peace() -> None:
    cleaned: list[str] = []
    cleaning, release = anyio.Event(), anyio.Event()

    async def careful() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                cleaning.set()
                await release.wait()
            cleaned.append("yes")

    async def old_style() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaning.set()
            await release.wait()  # asyncio delivers a cancellation once
            cleaned.append("yes")

    functions = [careful]
    if _is_asyncio():
        functions.append(old_style)
    async with serving() as bgx:
        for function in functions:
            cleaning, release = anyio.Event(), anyio.Event()
            tasks = await tasks_of(bgx)
            task = tasks.using(detached=True).add_task(function)
            await tasks()
            await until(lambda task=task: task.status == "running")  # type: ignore[misc]
            assert task.cancel()
            await cleaning.wait()
            assert task.cancel(), "it has not ended"
            await anyio.wait_all_tasks_blocked()
            release.set()
            assert (await task.wait()).status == "cancelled"
    assert cleaned == ["yes"] * len(functions)


def _is_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def test_one_that_swallows_it_says_how_it_ended() -> None:
    async def returns() -> str:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass
        return "enough"

    async def raises() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("instead")

    with logged() as lines:
        async with serving(retry=SOON) as bgx:
            tasks = await tasks_of(bgx)
            view = tasks.using(detached=True, concurrent=True)
            swallows, fails = view.add_task(returns), view.add_task(raises)
            await tasks()
            await until(lambda: swallows.status == fails.status == "running")
            assert swallows.cancel()
            assert fails.cancel()
            assert (await swallows.wait()).value == "enough"
            assert str((await fails.wait()).error) == "instead"
    assert (ending(swallows), ending(fails)) == (("succeeded", 1), ("failed", 1))
    assert not named(lines, "task.retrying")
    assert not named(lines, "task.cancelled")


@asyncio_only
async def test_one_that_goes_on_is_told_of_and_may_be_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt_module, "UNWIND_SECONDS", 0.01)

    async def stubborn() -> None:
        for _ in range(2):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    with logged() as lines:
        async with serving() as bgx:
            tasks = await tasks_of(bgx)
            task = tasks.using(detached=True).add_task(stubborn)
            await tasks()
            await until(lambda: task.status == "running")
            assert task.cancel()
            await until(lambda: named(lines, "task.overran"))
            assert task.status == "running"
            assert task.cancel()
            await task.wait()
    assert ending(task) == ("succeeded", 1)
    assert [line["ended"] for line in named(lines, "task.overran")] == [False, True]


@pytest.mark.parametrize("executor", ["async", None])
async def test_a_task_may_cancel_itself(executor: Any) -> None:
    bgx = Bgx(Settings(retry=SOON))
    went_on: list[str] = []

    async def and_waits() -> None:
        assert bgx.cancel(inside().id)
        assert inside().cancelled
        went_on.append("and_waits")
        await anyio.sleep_forever()

    async def and_returns() -> str:
        assert bgx.cancel(inside().id)
        return "done"

    async def and_fails() -> None:
        assert bgx.cancel(inside().id)
        raise ValueError

    async def later() -> None:
        await anyio.sleep(0)
        assert bgx.cancel(inside().id)
        went_on.append("later")
        await anyio.sleep_forever()

    async def and_asks() -> None:
        assert bgx.cancel(inside().id)
        inside().check_cancelled()

    functions = and_waits, and_returns, and_fails, later, and_asks
    tasks = await tasks_of(bgx)
    added = [tasks.using(executor=executor).add_task(function) for function in functions]
    plain = tasks.using(executor="async").add_task(lambda: bgx.cancel(inside().id))
    with anyio.fail_after(PATIENCE):
        await tasks()
    statuses = ["cancelled", "succeeded", "failed", "cancelled", "cancelled"]
    assert [ending(task) for task in added] == [(status, 1) for status in statuses]
    assert plain.status == "succeeded"
    assert went_on == ["and_waits", "later"]


async def test_a_task_cancels_another_one() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        victim = tasks.using(detached=True, concurrent=True).add_task(anyio.sleep_forever)
        cancels = tasks.using(detached=True, concurrent=True).add_task(victim.cancel)
        await tasks()
        assert (await victim.wait()).status == "cancelled"
        assert (await cancels.wait()).value is True


# A thread is asked.


async def in_thread(
    function: Callable[[], Any], started: threading.Event, **options: Any
) -> tuple[Task[Any], Bgx]:
    """A task in a thread that was asked to stop once it ran, after its end."""
    async with serving(retry=SOON, max_threads=1) as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(detached=True, **options).add_task(function)
        sibling = tasks.using(detached=True).add_task(lambda: "ran")
        await tasks()
        await until(started.is_set)
        assert task.cancel()
        assert task.cancelled
        with anyio.fail_after(PATIENCE):
            await task.wait()
            assert (await sibling.wait()).status == "succeeded", "the thread is free again"
        return task, bgx


def wait_until_asked(started: threading.Event) -> None:
    started.set()
    deadline = time.monotonic() + PATIENCE
    while not inside().cancelled:
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def test_a_thread_that_returns_has_succeeded() -> None:
    started = threading.Event()

    def obeys() -> str:
        wait_until_asked(started)
        return "half"

    task, _ = await in_thread(obeys, started)
    assert ending(task) == ("succeeded", 1)
    assert task.outcome is not None
    assert task.outcome.value == "half"


async def test_a_thread_that_lets_cancelled_pass_was_cancelled() -> None:
    started = threading.Event()

    def obeys() -> None:
        wait_until_asked(started)
        inside().check_cancelled()

    with logged() as lines:
        task, _ = await in_thread(obeys, started)
    assert ending(task) == ("cancelled", 1)
    assert isinstance(task.error, Cancelled)
    assert task.error.__traceback__ is not None
    assert task.error.__traceback__.tb_frame.f_code.co_name == "obeys"
    assert one(lines, "task.cancelled")["reason"] == "cancel() was called"
    assert not named(lines, "task.failed")


async def test_a_thread_that_fails_after_it_was_asked_is_not_tried_again() -> None:
    started = threading.Event()

    def fails() -> None:
        wait_until_asked(started)
        raise ValueError

    task, _ = await in_thread(fails, started)
    assert ending(task) == ("failed", 1)


async def test_who_raises_cancelled_without_being_asked_has_failed() -> None:
    def raises() -> None:
        raise Cancelled("raises")

    tasks = await tasks_of(Bgx(Settings()))
    task = tasks.add_task(raises)
    await tasks()
    assert task.status == "failed"


async def test_the_timeout_of_a_thread_that_was_asked_still_counts() -> None:
    started, release = threading.Event(), threading.Event()

    def ignores() -> None:
        started.set()
        release.wait(PATIENCE)

    async with serving(retry=SOON) as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(detached=True, timeout=0.05).add_task(ignores)
        await tasks()
        await until(started.is_set)
        assert task.cancel()
        assert (await task.wait()).status == "timed_out"
        assert ending(task) == ("timed_out", 1), "asked to stop, it is not tried again"
        release.set()
        await until(lambda: not bgx.stats().overrunning)


async def test_what_a_thread_returns_to_be_awaited_is_cancelled() -> None:
    started, waited = threading.Event(), list[str]()

    async def endless() -> None:
        waited.append("here")
        await anyio.sleep_forever()

    def gives() -> Any:
        wait_until_asked(started)
        return endless()

    task, _ = await in_thread(gives, started)
    assert ending(task) == ("cancelled", 1)

    async with serving() as bgx:  # and once it is awaited
        tasks = await tasks_of(bgx)
        waited.clear()
        task = tasks.using(detached=True).add_task(lambda: endless())
        await tasks()
        await until(lambda: waited)
        assert task.cancel()
        assert (await task.wait()).status == "cancelled"


async def test_a_shutdown_does_not_wait_for_a_thread_that_was_asked() -> None:
    started, release = threading.Event(), threading.Event()

    def ignores() -> None:
        started.set()
        release.wait(PATIENCE)

    bgx = Bgx(Settings())
    bgx.start()
    tasks = await tasks_of(bgx)
    task = tasks.using(detached=True).add_task(ignores)
    await tasks()
    await until(started.is_set)
    assert task.cancel()
    report = await bgx.drain(grace=0)
    assert (report.cancelled, report.in_thread) == ((task.ref,), (task.ref,))
    assert task.status == "cancelled"
    release.set()
    await until(lambda: not bgx.stats().overrunning)


# A process is killed.


async def test_a_worker_process_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    async with serving(max_processes=1, retry=SOON) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, executor="process")
        task, sibling = view.add_task(work.hang, str(note)), view.add_task(work.pid)
        await tasks()
        await until(lambda: note.exists() and note.read_text())
        assert task.cancel()
        assert (await task.wait()).status == "cancelled"
        assert (await sibling.wait()).value != int(note.read_text())
    assert ending(task) == ("cancelled", 1)
    assert not Path(f"/proc/{note.read_text()}").exists()


# What has ended, and who asks.


async def test_what_has_ended_cannot_be_cancelled() -> None:
    bgx = Bgx(Settings(history_of="all"))
    tasks = await tasks_of(bgx)
    added: list[Task[Any]] = [tasks.add_task(function) for function in (good, bad, never)]
    assert added[2].cancel()
    await tasks()
    statuses = [task.status for task in added]
    for task in added:
        assert not task.cancel()
        assert not bgx.cancel(task.id)
        assert not await anyio.to_thread.run_sync(task.cancel)
    assert [task.status for task in added] == statuses == ["succeeded", "failed", "cancelled"]
    assert not bgx.cancel("nobody")


async def test_from_a_thread_even_when_it_ends_before_the_loop_looks() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(detached=True).add_task(anyio.sleep_forever)
        await tasks()
        await until(lambda: task.status == "running")
        assert await anyio.to_thread.run_sync(bgx.cancel, task.id)
        assert (await task.wait()).status == "cancelled"
        short = tasks.add_task(good)
        thread = threading.Thread(target=short.cancel)
        thread.start()
        thread.join()  # the loop has not looked yet
        await tasks()
        await short.wait()
        await anyio.wait_all_tasks_blocked()
        assert short.status in ("succeeded", "cancelled")
        assert bgx.stats().totals[Status.CANCELLED] == 1 + (short.status == "cancelled")


@pytest.mark.parametrize("path", ["/sync", "/async"])
def test_from_the_route_of_another_request(path: str, anyio_backend: str) -> None:
    app, bgx = FastAPI(), Bgx(Settings())
    bgx.install(app)

    @app.post("/")
    async def add(tasks: Tasks) -> str:
        return tasks.using(detached=True).add_task(anyio.sleep_forever).id

    @app.delete("/sync/{task_id}")
    def in_thread(task_id: str) -> tuple[bool, str]:
        asked, task = bgx.cancel(task_id), bgx.get(task_id)
        assert task is not None
        outcome = anyio.from_thread.run(task.wait, PATIENCE)
        return asked, outcome.status

    @app.delete("/async/{task_id}")
    async def on_loop(task_id: str) -> tuple[bool, str]:
        asked, task = bgx.cancel(task_id), bgx.get(task_id)
        assert task is not None
        return asked, (await task.wait(PATIENCE)).status

    with client_of(app, anyio_backend) as client:
        task_id = client.post("/").json()
        assert client.delete(f"{path}/{task_id}").json() == [True, "cancelled"]
        assert client.delete(f"{path}/{task_id}").json() == [False, "cancelled"]


def test_a_task_whose_loop_has_ended_ends_at_once(anyio_backend: str) -> None:
    bgx = Bgx(Settings())

    async def add() -> tuple[BackgroundTasks, Task[Any]]:
        tasks = await tasks_of(bgx)
        return tasks, tasks.add_task(good)

    tasks, task = anyio.run(add, backend=anyio_backend)
    assert task.cancel()
    assert ending(task) == ("cancelled", 0)
    assert len(tasks.tasks) == 1


async def test_a_drain_afterwards_has_nothing_left_to_do() -> None:
    bgx = Bgx(Settings())
    bgx.start()
    tasks = await tasks_of(bgx)
    view = tasks.using(detached=True, concurrent=True)
    added = [view.add_task(anyio.sleep_forever), view.using(delay=60).add_task(never)]
    await tasks()
    await until(lambda: added[0].status == "running")
    assert all(task.cancel() for task in added)
    with anyio.fail_after(PATIENCE):
        report = await bgx.drain(grace=60)
    assert {task.status for task in added} == {"cancelled"}
    assert (report.in_thread, report.stuck) == ((), ())


# Waiting.


async def test_waiting_gives_the_outcome() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(detached=True).add_task(good)
        outcomes: list[Outcome[str]] = []

        async def wait() -> None:
            outcomes.append(await task.wait(timeout=PATIENCE))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(wait)
            await tasks()
        assert [outcome.value for outcome in outcomes] == ["ran"] * 5
        assert await task.wait(timeout=0) is outcomes[0], "it has ended"


async def test_a_wait_that_takes_too_long_touches_nothing_and_leaves_nothing() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        release = anyio.Event()
        task = tasks.using(detached=True).add_task(release.wait)
        await tasks()
        await until(lambda: task.status == "running")
        async with anyio.create_task_group() as group:
            group.start_soon(task.wait)  # somebody who is patient
            await anyio.wait_all_tasks_blocked()
            for timeout in (0.001, 0, -1) * 20:
                with pytest.raises(TimeoutError, match=r"after .* s Event.wait is running"):
                    await task.wait(timeout=timeout)
            assert task.status == "running"
            assert not task.cancelled
            assert len(task.at_end or []) == 1
            release.set()
        assert task.status == "succeeded"
        assert task.at_end is None


async def test_who_waits_may_be_cancelled() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        release = anyio.Event()
        task = tasks.using(detached=True).add_task(release.wait)
        await tasks()
        with anyio.move_on_after(0.001):
            await task.wait()
        assert not task.at_end
        release.set()
        assert (await task.wait()).status == "succeeded"


async def test_waiting_goes_on_over_the_attempts() -> None:
    calls: list[int] = []

    async def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError
        return "at last"

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(detached=True, retry=SOON).add_task(flaky)
        await tasks()
        assert (await task.wait(PATIENCE)).value == "at last"


async def test_a_task_that_has_ended_before_the_loop_heard_of_it_stays_as_it_ended() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.add_task(ends_at_once)
        thread = threading.Thread(target=task.cancel)
        thread.start()
        thread.join()  # what it asked for is on its way
        await tasks()
        await anyio.wait_all_tasks_blocked()
    assert task.status == "succeeded"


async def ends_at_once() -> None: ...
