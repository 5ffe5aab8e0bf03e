"""`bgx.retry`: the newest tasks that did not succeed can be run again by hand."""

import gc
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastapi import FastAPI

from fastapi_bgx import (
    BacklogFull,
    Bgx,
    Draining,
    NotRetryable,
    Retry,
    Settings,
    Status,
    Task,
    Tasks,
    current_task,
    task_options,
)
from fastapi_bgx.events import Event, TaskQueued
from fastapi_bgx.history import MOST_BYTES
from fastapi_bgx.runners import nearest_runners
from tests import work
from tests.asgi import call, running
from tests.logs import logged, named, one
from tests.supervision import PATIENCE, holding, serving, tasks_of, until

pytestmark = pytest.mark.anyio

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Flaky:
    """Fails until it is healed, and notes with which arguments it was called."""

    def __init__(self) -> None:
        self.healed = False
        self.calls: list[Any] = []

    async def run(self, *args: Any, **kwargs: Any) -> str:
        self.calls.append((args, kwargs))
        await anyio.sleep(0)
        if not self.healed:
            raise ConnectionError("lost")
        return "done"


async def failed(bgx: Bgx, function: Callable[..., Any], *args: Any, **options: Any) -> Task[Any]:
    """A task that has ended, of a request that is over."""
    tasks = await tasks_of(bgx)
    task = tasks.using(**options).add_task(function, *args)
    await tasks()
    await task.wait()
    return task


def why_not(bgx: Bgx, task_id: str) -> str:
    """Why a task cannot be run again."""
    with pytest.raises(NotRetryable) as caught:
        bgx.retry(task_id)
    assert caught.value.task_id == task_id
    assert str(caught.value) == f"task {task_id} cannot be run again: {caught.value.why}"
    return caught.value.why


async def test_a_failed_task_runs_again_with_the_same_call() -> None:
    flaky = Flaky()
    async with holding() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(timeout=7, name="sync").add_task(flaky.run, 1, by_name=[2])
        await tasks()
        assert task.status is Status.FAILED
        flaky.healed = True
        again = bgx.retry(task.id)
        assert (again.name, again.retry_of, again.plan.timeout) == ("sync", task.id, 7)
        assert (again.id != task.id, again.plan.detached) == (True, True)
        outcome = await again.wait()
    assert (outcome.value, task.status) == ("done", "failed")
    assert flaky.calls == [((1,), {"by_name": [2]})] * 2
    assert task.retry_of is None


async def test_its_lines_say_what_it_is_a_retry_of() -> None:
    flaky = Flaky()
    with logged() as lines:
        async with holding() as bgx:
            first = await failed(bgx, flaky.run)
            second = bgx.retry(first.id)
            await second.wait()
            flaky.healed = True
            await bgx.retry(second.id).wait()
    (told, again), (healed,) = named(lines, "task.failed"), named(lines, "task.succeeded")
    assert "retry_of" not in told
    assert again["retry_of"] == first.id
    assert healed["retry_of"] == second.id


@pytest.mark.parametrize("executor", ["thread", "process"])
@asyncio_only
async def test_in_whichever_executor(executor: Any) -> None:
    async with holding() as bgx:
        task = await failed(bgx, work.fail, executor=executor)
        again = bgx.retry(task.id)
        assert (await again.wait()).status == "failed"
        assert isinstance(again.error, LookupError)
        assert again.plan.executor == executor


async def test_every_end_but_success_can_be_followed_by_a_retry() -> None:
    ran: list[str] = []

    async def note() -> None:
        ran.append("ran")

    async with holding(max_concurrency=1, queue_timeout=0.01) as bgx:
        timed_out = await failed(bgx, anyio.sleep_forever, timeout=0.01)
        blocking = (await tasks_of(bgx)).using(detached=True)
        release = anyio.Event()
        blocking.add_task(release.wait)
        await blocking._tasks()
        await anyio.wait_all_tasks_blocked()
        expired = await failed(bgx, note)
        release.set()
        tasks = await tasks_of(bgx)
        cancelled = tasks.add_task(note)
        assert cancelled.cancel()
        dropped = tasks.add_task(note)
        tasks.drop("its request failed")
        ended = [timed_out, expired, cancelled, dropped]
        assert [task.status for task in ended] == ["timed_out", "expired", "cancelled", "dropped"]
        for task in ended:
            await bgx.retry(task.id).wait()
        assert ran == ["ran"] * 3


async def test_what_did_not_fail_is_not_run_again() -> None:
    async with holding(history_of="all") as bgx:
        good = await failed(bgx, anyio.sleep, 0)
        assert why_not(bgx, good.id) == "it succeeded"
        tasks = await tasks_of(bgx)
        queued = tasks.add_task(anyio.sleep, 0)
        assert why_not(bgx, queued.id) == "it has not ended yet: queued"
        await tasks()
        assert why_not(bgx, "nonsense").startswith("it is none of the newest 100 of this process")


async def test_a_large_argument_is_not_held() -> None:
    async with holding() as bgx:
        task = await failed(bgx, Flaky().run, b"x" * MOST_BYTES)
        assert why_not(bgx, task.id).startswith("its arguments are not held")


async def test_only_the_newest_are_held() -> None:
    class Argument:
        pass

    async with serving(retryable=2, history=0) as bgx:
        arguments = [Argument(), Argument(), Argument()]
        watched = [weakref.ref(each) for each in arguments]
        flaky = Flaky()
        tasks = [(await failed(bgx, flaky.run, each)).id for each in arguments]
        flaky.calls.clear()
        arguments.clear()
        gc.collect()
        assert [each() is None for each in watched] == [True, False, False]
        assert why_not(bgx, tasks[0]).startswith("it is none of the newest 2")
        await bgx.retry(tasks[1]).wait()
        await until(lambda: not bgx._held.is_held(tasks[1]))
        assert bgx._held.is_held(tasks[2])
        assert set(bgx._held._again) <= set(bgx._held._calls)


async def test_none_is_held_when_told() -> None:
    async with serving(retryable=0) as bgx:
        task = await failed(bgx, Flaky().run)
        assert why_not(bgx, task.id) == "Settings.retryable is 0"


async def test_an_impatient_click_runs_it_once() -> None:
    flaky, release, started = Flaky(), anyio.Event(), []

    async def slow() -> None:
        started.append(1)
        if len(started) == 1:
            raise ConnectionError
        await release.wait()
        await flaky.run()

    async with holding() as bgx:
        task = await failed(bgx, slow)
        again = bgx.retry(task.id)
        assert why_not(bgx, task.id) == f"it runs again already, as {again.id}"
        release.set()
        await again.wait()
        assert (await bgx.retry(task.id).wait()).status == "failed", "once more, after its end"
        assert (await bgx.retry(again.id).wait()).status == "failed", "by the other id, too"
    assert len(started) == 4


async def test_two_threads_at_once_run_it_once() -> None:
    """While one of them is between looking and having the task, the other is refused."""
    flaky, refused = Flaky(), []

    class Clicks:
        def hears(self, event: type[Event]) -> bool:
            return event is TaskQueued

        def changed(self) -> bool:
            return False

        def __call__(self, event: Event) -> None:
            clicking = threading.Thread(target=lambda: refused.append(why_not(bgx, task.id)))
            clicking.start()
            clicking.join(PATIENCE)

    async with holding() as bgx:
        task = await failed(bgx, flaky.run)
        bgx.runners.join(Clicks())
        await bgx.retry(task.id).wait()
    assert refused == ["somebody is about to"]
    assert len(flaky.calls) == 2


async def test_from_a_thread_without_a_loop() -> None:
    flaky = Flaky()
    async with holding() as bgx:
        task = await failed(bgx, flaky.run)
        flaky.healed = True
        again = await anyio.to_thread.run_sync(bgx.retry, task.id)
        assert (await again.wait()).value == "done"


async def test_not_while_its_thread_still_runs() -> None:
    release = threading.Event()
    async with holding() as bgx:
        task = await failed(bgx, lambda: release.wait(PATIENCE), timeout=0.01)
        assert task.status == "timed_out"
        other = await failed(bgx, Flaky().run)
        assert why_not(bgx, task.id).startswith("its function still runs")
        await bgx.retry(other.id).wait()
        release.set()
        await until(lambda: not bgx.stats().overrunning)
        assert (await bgx.retry(task.id).wait()).status == "succeeded"


async def test_a_full_backlog_and_a_shutdown_refuse_it() -> None:
    async with holding(max_concurrency=1, max_backlog=1) as bgx:
        task = await failed(bgx, Flaky().run)
        release, tasks = anyio.Event(), await tasks_of(bgx)
        tasks.using(detached=True, concurrent=True).add_task(release.wait)
        await tasks()
        await anyio.wait_all_tasks_blocked()
        waiting = await tasks_of(bgx)
        waiting.add_task(release.wait)
        with pytest.raises(BacklogFull):
            bgx.retry(task.id)
        release.set()
        await waiting()
        await bgx.drain()
        with pytest.raises(Draining):
            bgx.retry(task.id)


async def test_not_outside_of_a_lifespan() -> None:
    bgx = Bgx(Settings(retryable=100))
    task = await failed(bgx, Flaky().run)
    assert "outside of a lifespan" in why_not(bgx, task.id)


async def test_after_a_restart_of_the_application() -> None:
    flaky = Flaky()
    async with holding() as bgx:
        task = await failed(bgx, flaky.run)
        await bgx.drain()
        bgx.start()
        flaky.healed = True
        assert (await bgx.retry(task.id).wait()).value == "done"


async def test_the_options_hold_but_a_delay_does_not() -> None:
    """Who clicks on "retry" wants it now."""

    @task_options(delay=0.01, retry=Retry(attempts=2, wait_initial=0, wait_jitter=0), priority=3)
    async def delayed() -> None:
        raise ConnectionError

    with logged() as lines:
        async with holding() as bgx:
            task = await failed(bgx, delayed)
            again = bgx.retry(task.id)
            await again.wait()
            third = bgx.retry(again.id)
            await third.wait()
            for each in again, third:
                assert (each.plan.priority, each.attempt, each.due) == (3, 2, None)
            assert third.plan is again.plan, "no plan is made anew for each click"
            named = await failed(bgx, Flaky().run, name="named", delay=0.01)
            fifth = bgx.retry(named.id)
            await fifth.wait()
            sixth = bgx.retry(fifth.id)
            await sixth.wait()
            assert fifth.plan is sixth.plan
            assert (sixth.name, sixth.due) == ("named", None)
    assert sum(line["event"] == "task.delayed" for line in lines) == 2


async def test_a_unique_task_is_not_run_beside_another_of_its_key() -> None:
    flaky, release = Flaky(), anyio.Event()

    async def sync(account: int, other: bool = False) -> None:
        if other:
            await release.wait()
        await flaky.run(account)

    for unique in (lambda account, **_: account), "all":
        async with holding() as bgx:
            task = await failed(bgx, sync, 1, unique=unique)
            tasks = await tasks_of(bgx)
            other = tasks.using(unique=unique, detached=True).add_task(sync, 1, True)
            await tasks()
            assert why_not(bgx, task.id) == f"{other.id} is unfinished and has the same unique key"
            assert other.sharers == 1
            release.set()
            await other.wait()
            flaky.healed = True
            again = bgx.retry(task.id)
            tasks = await tasks_of(bgx)
            joined = tasks.using(unique=unique).add_task(sync, 1)
            assert joined is again, "its key is taken while it runs again"
            await tasks()
            assert (await again.wait()).status == "succeeded"
        flaky, release = Flaky(), anyio.Event()


variable: ContextVar[str] = ContextVar("variable", default="nothing")


async def test_it_sees_nobodys_context_but_finds_its_bgx() -> None:
    seen: list[Any] = []
    added: list[Task[Any]] = []
    bgx, app = Bgx(Settings(retryable=100)), FastAPI()
    bgx.install(app)

    async def look() -> None:
        seen.append((variable.get(), nearest_runners(), current_task()))
        raise ConnectionError

    @app.get("/")
    async def add(tasks: Tasks) -> None:
        variable.set("of the request")
        added.append(tasks.add_task(look))

    async with running(app):
        await call(app)
        variable.set("of who clicks")
        again = bgx.retry(added[0].id)
        await again.wait()
    assert seen == [
        ("of the request", bgx.runners, added[0]),
        ("nothing", bgx.runners, again),
    ]


async def test_what_cannot_be_looked_at_is_not_held() -> None:
    class Odd:
        def __sizeof__(self) -> int:
            raise RuntimeError

    with logged() as lines:
        async with holding() as bgx:
            task = await failed(bgx, Flaky().run, Odd())
            assert why_not(bgx, task.id).startswith("its arguments are not held")
    assert one(lines, "task.failed")
    assert repr(bgx._held) == "held calls"
