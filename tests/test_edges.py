"""Corners that no promise names: what is asked twice, too late, or outside of every loop."""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastapi import BackgroundTasks as StockBackgroundTasks
from starlette.background import BackgroundTask

from fastapi_bgx import BackgroundTasks, BacklogFull, Bgx, Limit, Settings, Status, Task
from fastapi_bgx.attempt import Ending, Watch
from fastapi_bgx.backends import current_backend, current_token
from fastapi_bgx.background import upgrade
from fastapi_bgx.backlog import Waiting
from fastapi_bgx.calls import Shape, arguments_by_name
from fastapi_bgx.events import TaskSucceeded
from fastapi_bgx.executors import ThreadCall
from fastapi_bgx.limits import Admission, Limiter
from fastapi_bgx.runners import Runners

pytestmark = pytest.mark.anyio


async def nothing() -> None: ...


def tasks_of(bgx: Bgx) -> BackgroundTasks:
    from fastapi import BackgroundTasks as Stock

    return upgrade(Stock(), bgx.runners.current(), at_once=False)


# Event loops.


def test_outside_of_every_loop_there_is_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    with pytest.raises(RuntimeError, match="no event loop"):
        current_token()


async def test_a_callback_for_later_can_be_cancelled() -> None:
    called: list[str] = []
    backend = current_backend()
    done = backend.waiter()
    backend.call_later(0.001, lambda: called.append("cancelled")).cancel()
    backend.call_later(0.005, done.set)
    await done.wait()
    assert not called


async def test_an_interrupt_that_is_over_does_nothing() -> None:
    interrupt = current_backend().interrupt()
    with interrupt:
        pass
    interrupt.fire()
    interrupt.abandon("too late")
    await anyio.lowlevel.checkpoint()
    assert interrupt.caught is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_code_that_interrupts_itself_is_cancelled_where_it_waits_next() -> None:
    interrupt = current_backend().interrupt()
    with interrupt:
        interrupt.fire()
        await anyio.sleep_forever()
    assert isinstance(interrupt.caught, asyncio.CancelledError)
    host = asyncio.current_task()
    assert host is not None
    assert not host.cancelling()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_code_that_interrupts_itself_and_never_waits_ends_as_it_likes() -> None:
    interrupt = current_backend().interrupt()
    with interrupt:
        interrupt.fire()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert interrupt.caught is None


# Waiting.


class Finisher:
    """What the backlog needs of a runner."""

    clock = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.timers: Any = None
        self.ended: list[Ending] = []

    def finish(self, task: Task[Any], ending: Ending) -> None:
        task.end(ending.status, 0.0)
        self.ended.append(ending)


async def test_a_waiting_task_that_is_cancelled_twice_ends_once() -> None:
    finisher, taken = Finisher(), Limiter("taken", 1)
    taken.taken = 1
    task = Bgx(Settings()).runners.current().entrance.accept(nothing, (), {}, None)
    waiting = Waiting(finisher, task, (taken,), then=lambda _: None)
    waiting.cancel(task, "first")
    waiting.cancel(task, "second")
    assert [ending.reason for ending in finisher.ended] == ["first"]


def test_a_place_that_was_granted_cannot_be_given_up() -> None:
    limiter = Limiter("one", 1)
    limiter.taken = 1
    place = Admission((limiter,), lambda: None)
    place.start()
    assert limiter.waiting == 1
    limiter.release()
    limiter.leave(place)
    assert (limiter.taken, limiter.waiting) == (1, 0)


def test_an_admission_that_holds_everything_gives_it_back() -> None:
    limiter = Limiter("one", 1)
    admission = Admission((limiter,), lambda: None)
    admission.start()
    assert limiter.taken == 1
    admission.abandon()
    assert limiter.taken == 0


async def test_a_thread_is_refused_when_the_backlog_is_full() -> None:
    tasks = tasks_of(Bgx(Settings(max_backlog=1)))
    tasks.add_task(nothing)
    with pytest.raises(BacklogFull):
        await anyio.to_thread.run_sync(tasks.add_task, nothing)
    await tasks()


async def test_a_thread_that_is_given_up_is_not_touched() -> None:
    """A drain gives up what does not end; a thread is left behind long before."""
    runner = Bgx(Settings()).runners.current()
    task = runner.entrance.accept(nothing, (), {}, None)
    task.started_at = runner.clock()
    call = ThreadCall(task, runner)
    watch = Watch(runner, task, call)
    watch.start()
    watch.give_up()
    watch.end()
    assert not call.ended
    runner.drop(task, "only watched")


# Lists.


async def test_a_subclass_that_somebody_put_in_the_place_of_stock_is_turned_into_ours() -> None:
    """As extensions do that replace the class which FastAPI injects."""

    class Theirs(StockBackgroundTasks):
        pass

    runner = Bgx(Settings()).runners.current()
    tasks = upgrade(Theirs(), runner, at_once=False)
    task = tasks.add_task(nothing)
    assert type(tasks) is BackgroundTasks
    await tasks()
    assert task.status == "succeeded"


# Tasks.


async def test_a_task_that_is_dropped_twice_ends_once() -> None:
    bgx = Bgx(Settings())
    runner = bgx.runners.current()
    task = runner.entrance.accept(nothing, (), {}, None)
    runner.drop(task, "first")
    runner.drop(task, "second")
    assert bgx.stats().totals[Status.DROPPED] == 1


async def test_an_event_knows_the_outcome_of_its_task() -> None:
    tasks = BackgroundTasks()
    task = tasks.add_task(nothing)
    await tasks()
    assert TaskSucceeded(task).outcome is task.outcome


async def test_a_task_is_async_when_its_function_is() -> None:
    tasks = BackgroundTasks()
    assert tasks.add_task(nothing).is_async
    assert not tasks.add_task(print).is_async
    await tasks()


def test_the_arguments_of_a_function_without_a_signature_are_those_by_keyword() -> None:
    unknown = Shape("f", is_async=False, signature=None, least=0, most=9)
    assert arguments_by_name(unknown, (1,), {"a": 2}) == {"a": 2}


# Outside of every loop.


def no_key(**_: object) -> str:
    raise ValueError("no key")


@pytest.fixture
def unbound() -> Callable[[], BackgroundTasks]:
    """A list as it is made at import time: nothing knows of a loop yet."""
    return BackgroundTasks


def test_a_task_without_a_loop_can_be_dropped_and_outlives_nothing(
    unbound: Callable[[], BackgroundTasks],
) -> None:
    tasks = unbound()
    task = tasks.using(detached=True).add_task(nothing)
    assert not task.runner.start_now(task)
    assert not task.runner.outlives(task)
    assert not task.runner.overruns(task)
    assert not task.runner.hears_lines()
    tasks.drop("nobody will call it")
    assert task.status is Status.DROPPED


def test_a_task_whose_key_fails_when_its_loop_is_there_fails_alone(
    unbound: Callable[[], BackgroundTasks],
) -> None:
    tasks = unbound()
    broken = tasks.using(limit=Limit("without", 1, key=no_key)).add_task(nothing)
    sound = tasks.add_task(nothing)
    anyio.run(tasks)
    assert broken.status is Status.FAILED
    assert isinstance(broken.error, ValueError)
    assert sound.status is Status.SUCCEEDED


def test_calls_need_not_be_checked() -> None:
    task = Runners(Settings(check_calls=False)).accept(nothing, (1, 2), {}, None)
    assert task.args == (1, 2)
    task.runner.drop(task, "never called")


def test_the_runner_of_a_loop_that_ended_is_forgotten() -> None:
    bgx = Bgx(Settings())

    async def runner() -> object:
        return bgx.runners.current()

    first, second = anyio.run(runner), anyio.run(runner, backend="trio")
    third = anyio.run(runner)
    assert len({id(first), id(second), id(third)}) == 3
    assert len(bgx.runners._by_loop) == 1


async def test_a_plain_generator_task_does_what_stock_does() -> None:
    def generates() -> Any:
        yield

    tasks = BackgroundTasks(tasks=[BackgroundTask(generates)])
    await tasks()
    (task,) = tasks.tasks
    assert isinstance(task, Task)
    assert task.status is Status.SUCCEEDED


async def test_a_detached_task_of_a_websocket_waits_for_its_end_without_a_lifespan() -> None:
    from fastapi import BackgroundTasks as Stock

    tasks = upgrade(Stock(), Bgx(Settings()).runners.current(), at_once=True)
    task = tasks.using(detached=True).add_task(nothing)
    assert not task.done
    await tasks()
    assert task.status is Status.SUCCEEDED


class Answer:
    """An awaitable that is no coroutine, as compiled async functions give."""

    def __await__(self) -> Any:
        yield from anyio.lowlevel.checkpoint().__await__()
        return 42


def answers() -> Any:
    return Answer()


async def test_an_async_function_may_give_another_awaitable() -> None:
    tasks = BackgroundTasks()
    task = tasks.add_task(nothing)
    task.func = answers  # type: ignore[assignment]  # taken for a coroutine function
    await tasks()
    assert task.value == 42
