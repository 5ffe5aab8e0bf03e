"""Status and outcome: what a task knows about itself while it lives and after its end."""

import copy
import dataclasses
import pickle
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, HTTPException

from fastapi_bgx import BackgroundTasks, Bgx, NoValue, Outcome, Settings, Status, Task, Tasks
from tests.asgi import call, running

pytestmark = pytest.mark.anyio


async def one_task(
    add: Callable[[BackgroundTasks], Task[Any]], settings: Settings | None = None
) -> Task[Any]:
    """The task that a route adds, after its request."""
    app, found = FastAPI(), []
    Bgx(settings or Settings()).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        found.append(add(tasks))

    await call(app)
    return found[0]


def outcome_of(task: Task[Any]) -> Outcome[Any]:
    assert task.outcome is not None
    return task.outcome


async def give(value: object) -> object:
    await anyio.sleep(0)
    return value


def give_there(value: object) -> object:
    return value


async def fail() -> None:
    raise ValueError("boom")


# Status.


def test_the_final_statuses() -> None:
    unfinished = {Status.QUEUED, Status.RUNNING, Status.RETRYING}
    assert {status for status in Status if not status.final} == unfinished


def test_a_status_is_a_word() -> None:
    assert f"{Status.TIMED_OUT}" == Status.TIMED_OUT.value == "timed_out"


async def test_the_status_follows_the_life_of_a_task() -> None:
    seen: list[tuple[Status, int, bool, bool]] = []
    found: list[Task[Any]] = []

    def look() -> None:
        task = found[0]
        seen.append((task.status, task.attempt, task.done, task.outcome is None))

    def add(tasks: BackgroundTasks) -> Task[Any]:
        found.append(tasks.add_task(look))
        look()
        return found[0]

    await one_task(add)
    look()
    assert seen == [
        (Status.QUEUED, 0, False, True),
        (Status.RUNNING, 1, False, True),
        (Status.SUCCEEDED, 1, True, False),
    ]


# Outcome.


@pytest.mark.parametrize("function", [give, give_there, lambda value: give(value)])
@pytest.mark.parametrize("value", [7, None, ["list"], ValueError("returned, not raised")])
async def test_the_value_is_what_the_function_returned(function: Any, value: object) -> None:
    outcome = outcome_of(await one_task(lambda tasks: tasks.add_task(function, value)))
    assert outcome.status is Status.SUCCEEDED
    assert outcome.value is value
    assert outcome.error is None
    assert outcome.attempts == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # a worker takes a second to start
async def test_the_value_comes_back_from_a_process() -> None:
    task = await one_task(lambda t: t.using(executor="process").add_task(give_there, [1, "a"]))
    assert outcome_of(task).value == [1, "a"]


async def test_there_is_no_value_of_a_task_that_failed() -> None:
    outcome = outcome_of(await one_task(lambda tasks: tasks.add_task(fail)))
    assert outcome.status is Status.FAILED
    with pytest.raises(NoValue, match="it ended as 'failed'; see outcome") as caught:
        _ = outcome.value
    assert caught.value.status == "failed"
    assert caught.value.__cause__ is outcome.error


async def test_the_error_has_its_traceback() -> None:
    error = outcome_of(await one_task(lambda tasks: tasks.add_task(fail))).error
    assert isinstance(error, ValueError)
    traceback = error.__traceback__
    assert traceback is not None
    assert traceback.tb_frame.f_code.co_name == "fail"  # nothing of the library before it


async def test_a_timeout_is_an_error_that_says_where() -> None:
    task = await one_task(lambda t: t.using(timeout=0.01).add_task(anyio.sleep, 10))
    outcome = outcome_of(task)
    assert outcome.status is Status.TIMED_OUT
    assert isinstance(outcome.error, TimeoutError)
    assert str(outcome.error) == "sleep ran longer than its timeout of 0.01 s"
    assert outcome.error.__cause__ is not None
    with pytest.raises(NoValue, match="timed_out"):
        _ = outcome.value


async def test_a_dropped_task_never_ran() -> None:
    def add(tasks: BackgroundTasks) -> Task[Any]:
        found.append(tasks.add_task(give, 1))
        raise HTTPException(500)

    found: list[Task[Any]] = []
    app = FastAPI()
    Bgx(Settings()).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        add(tasks)

    await call(app)
    outcome = outcome_of(found[0])
    assert (outcome.status, outcome.attempts, outcome.duration_s) == (Status.DROPPED, 0, 0)
    assert outcome.queued_s > 0
    assert outcome.error is None
    with pytest.raises(NoValue, match="dropped"):
        _ = outcome.value


async def test_the_durations() -> None:
    found: list[Task[Any]] = []

    def add(tasks: BackgroundTasks) -> Task[Any]:
        found.append(tasks.add_task(anyio.sleep, 0.02))
        found.append(tasks.add_task(give, 1))
        return found[0]

    await one_task(add)
    first, second = map(outcome_of, found)
    assert first.duration_s >= 0.015
    assert second.queued_s >= first.duration_s
    assert 0 <= second.duration_s < first.duration_s


def test_an_outcome_is_a_frozen_value() -> None:
    outcome = Outcome(status=Status.SUCCEEDED, returned=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        outcome.status = Status.FAILED  # type: ignore[misc]
    assert outcome == Outcome(status=Status.SUCCEEDED, returned=3)
    assert copy.copy(outcome) == outcome
    assert pickle.loads(pickle.dumps(outcome)) == outcome


async def test_the_outcome_of_a_task_is_one_object() -> None:
    task = await one_task(lambda tasks: tasks.add_task(give, 1))
    assert task.outcome is task.outcome


# Waiting for it.


async def test_a_detached_task_can_be_waited_for() -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)
    found: list[Task[object]] = []
    gate = anyio.Event()

    async def wait() -> object:
        await gate.wait()
        return "value"

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        found.append(tasks.using(detached=True).add_task(wait))

    values: list[object] = []

    async def wait_for_it() -> None:
        values.append((await found[0].wait()).value)

    async with running(app):
        await call(app)
        async with anyio.create_task_group() as group:
            group.start_soon(wait_for_it)
            group.start_soon(wait_for_it)
            await anyio.sleep(0)
            assert values == []
            gate.set()
    assert values == ["value", "value"]


@pytest.mark.parametrize("function", [give, give_there])
async def test_a_task_that_has_ended_is_not_waited_for(function: Any) -> None:
    task = await one_task(lambda tasks: tasks.add_task(function, 7))
    assert (await task.wait()).value == 7


async def test_waiting_gives_the_outcome_of_a_failure_and_raises_nothing() -> None:
    task = await one_task(lambda tasks: tasks.add_task(fail))
    assert isinstance((await task.wait()).error, ValueError)


async def test_a_waiter_that_gives_up_does_not_disturb_the_task() -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)
    found: list[Task[object]] = []
    gate = anyio.Event()

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        found.append(tasks.using(detached=True).add_task(gate.wait))

    async with running(app):
        await call(app)
        with anyio.move_on_after(0.001):
            await found[0].wait()
        assert not found[0].done
        gate.set()
        assert (await found[0].wait()).status is Status.SUCCEEDED


# What a task shows.


async def test_the_representation_is_name_id_and_status() -> None:
    task = await one_task(lambda tasks: tasks.using(name="crm").add_task(give, "secret"))
    assert repr(task) == f"<Task crm {task.id} succeeded>"


async def test_ids_are_unique_also_of_tasks_added_in_many_threads() -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)
    found: list[Task[Any]] = []

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        def add() -> None:
            found.extend(tasks.add_task(give, 1) for _ in range(50))

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join)

    await call(app)
    assert len({task.id for task in found}) == 200
    assert {outcome_of(task).value for task in found} == {1}
