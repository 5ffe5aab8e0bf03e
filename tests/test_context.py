"""Context travels: what was bound at `add_task` is seen inside the task and in every log line."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import fastapi
import pytest
import structlog
from fastapi import Depends, FastAPI, HTTPException
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from structlog.contextvars import bind_contextvars, bound_contextvars, get_contextvars

from fastapi_bgx import (
    BackgroundTasks,
    BacklogFull,
    Bgx,
    Limit,
    Outcome,
    Settings,
    Status,
    Task,
    Tasks,
)
from tests.asgi import call, running
from tests.logs import Lines, logged, named, one

pytestmark = pytest.mark.anyio

user: ContextVar[str] = ContextVar("user", default="nobody")
Seen = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as lines:
        yield lines


@pytest.fixture
def bgx() -> Bgx:
    return Bgx(Settings())


@pytest.fixture
def app(bgx: Bgx) -> FastAPI:
    app = FastAPI()
    bgx.install(app)
    return app


@pytest.fixture
def seen() -> Seen:
    """What the tasks of a test saw of both kinds of context."""
    return []


def context() -> tuple[str, dict[str, Any]]:
    return user.get(), get_contextvars()


def look(seen: Seen) -> None:
    seen.append(context())


async def look_async(seen: Seen) -> None:
    seen.append(context())


async def look_later(seen: Seen) -> None:
    await anyio.sleep(0)
    seen.append(context())


def become(name: str) -> None:
    user.set(name)
    bind_contextvars(user=name)


ANN = ("ann", {"user": "ann"})
each_kind = pytest.mark.parametrize("function", [look, look_async, look_later])


# Where a task may be added.


@each_kind
async def test_from_an_async_route(app: FastAPI, seen: Seen, function: Any) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(function, seen)

    await call(app)
    assert seen == [ANN]


@each_kind
async def test_from_a_sync_route(app: FastAPI, seen: Seen, function: Any) -> None:
    @app.get("/")
    def route(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(function, seen)

    await call(app)
    assert seen == [ANN]


async def test_of_a_sync_function_on_the_loop(app: FastAPI, seen: Seen) -> None:
    @app.get("/")
    def route(tasks: Tasks) -> None:
        become("ann")
        tasks.using(executor="async").add_task(look, seen)

    await call(app)
    assert seen == [ANN]


@each_kind
async def test_from_a_stock_annotation(app: FastAPI, seen: Seen, function: Any) -> None:
    @app.get("/")
    def route(tasks: fastapi.BackgroundTasks) -> None:
        become("ann")
        tasks.add_task(function, seen)

    await call(app)
    assert seen == [ANN]


@each_kind
async def test_from_an_async_dependency(app: FastAPI, seen: Seen, function: Any) -> None:
    async def dependency(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(function, seen)

    @app.get("/", dependencies=[Depends(dependency)])
    async def route() -> None: ...

    await call(app)
    assert seen == [ANN]


@each_kind
async def test_from_a_sync_dependency(app: FastAPI, seen: Seen, function: Any) -> None:
    def dependency(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(function, seen)

    @app.get("/", dependencies=[Depends(dependency)])
    async def route() -> None: ...

    await call(app)
    assert seen == [ANN]


async def test_after_the_yield_of_a_dependency(app: FastAPI, seen: Seen) -> None:
    async def dependency(tasks: Tasks) -> AsyncIterator[None]:
        yield
        become("ann")
        tasks.add_task(look_async, seen)

    @app.get("/", dependencies=[Depends(dependency)])
    async def route() -> None: ...

    await call(app)
    assert seen == [ANN]


async def test_from_a_thread_of_the_route(app: FastAPI, seen: Seen) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None:
        def work() -> None:
            become("ann")
            tasks.add_task(look, seen)

        await anyio.to_thread.run_sync(work)

    await call(app)
    assert seen == [ANN]


async def test_from_a_running_task(app: FastAPI, seen: Seen) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None:
        async def first() -> None:
            become("ann")
            tasks.add_task(look_async, seen)
            become("bob")

        tasks.add_task(first)

    await call(app)
    assert seen == [ANN]


async def test_what_was_bound_before_the_route(app: FastAPI, seen: Seen) -> None:
    @app.get("/")
    def route(tasks: Tasks) -> None:
        tasks.add_task(look, seen)

    become("ann")
    await call(app)
    assert seen == [ANN]


async def test_in_plain_starlette(seen: Seen) -> None:
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        tasks = BackgroundTasks()
        become("ann")
        tasks.add_task(look, seen)
        become("bob")
        response = PlainTextResponse("x", background=tasks)
        await response(scope, receive, send)

    await call(endpoint)
    assert seen == [ANN]


async def test_in_a_plain_task_that_was_put_into_the_list(app: FastAPI, seen: Seen) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None:
        become("ann")
        tasks.tasks.append(BackgroundTask(look_async, seen))

    await call(app)
    assert seen == [ANN]


# When: as it was at `add_task`.


async def test_not_what_the_route_binds_later(app: FastAPI, seen: Seen) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(look, seen)
        tasks.add_task(look_async, seen)
        become("bob")
        tasks.add_task(look_async, seen)

    await call(app)
    assert seen == [ANN, ANN, ("bob", {"user": "bob"})]


async def test_what_was_bound_for_a_block(app: FastAPI, seen: Seen) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None:
        with bound_contextvars(step=1):
            tasks.add_task(look_async, seen)
        tasks.add_task(look_async, seen)

    await call(app)
    assert [bound for _, bound in seen] == [{"step": 1}, {}]


# Who sees the changes of a task: nobody else.


@pytest.mark.parametrize("options", [{}, {"concurrent": True}, {"detached": True}])
async def test_tasks_do_not_see_the_changes_of_each_other(
    app: FastAPI, seen: Seen, options: Any
) -> None:
    async def change_async() -> None:
        become("eve")
        await anyio.sleep(0)
        assert context() == ("eve", {"user": "eve"})

    def change() -> None:
        become("mallory")

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        become("ann")
        view = tasks.using(**options)
        view.add_task(change)
        view.add_task(change_async)
        view.add_task(look, seen)
        view.add_task(look_async, seen)
        view.add_task(look_later, seen)

    async with running(app):
        await call(app)
    assert seen == [ANN] * 3


async def test_the_server_does_not_see_the_changes_of_a_task(app: FastAPI) -> None:
    async def change() -> None:
        become("eve")
        await anyio.sleep(0)
        become("mallory")

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(change)
        tasks.add_task(become, "trudy")

    become("ann")
    await call(app)
    assert context() == ANN


async def test_a_task_keeps_its_own_changes(app: FastAPI) -> None:
    seen: list[str] = []

    async def change() -> None:
        for name in ("eve", "mallory"):
            user.set(name)
            await anyio.sleep(0)
            seen.append(user.get())

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(change)

    await call(app)
    assert seen == ["eve", "mallory"]


async def test_a_token_of_a_context_variable_is_good_until_the_end_of_the_task(
    app: FastAPI, bgx: Bgx
) -> None:
    """As `structlog.contextvars.bound_contextvars` and OpenTelemetry use them, across a wait."""

    async def change() -> None:
        with bound_contextvars(user="eve"):
            await anyio.sleep(0)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(change)

    await call(app)
    assert bgx.stats().totals[Status.SUCCEEDED] == 1


async def test_what_a_task_starts_has_its_context(app: FastAPI, seen: Seen) -> None:
    async def start() -> None:
        await anyio.sleep(0)
        async with anyio.create_task_group() as group:
            group.start_soon(look_later, seen)
        await anyio.to_thread.run_sync(look, seen)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(start)

    await call(app)
    assert seen == [ANN, ANN]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_task_starts_in_asyncio_has_its_context(app: FastAPI, seen: Seen) -> None:
    async def start() -> None:
        await asyncio.create_task(look_later(seen))
        await asyncio.to_thread(look, seen)
        asyncio.get_running_loop().call_soon(look, seen)
        await asyncio.sleep(0)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(start)

    await call(app)
    assert seen == [ANN, ANN, ANN]


# Tasks that wait, and outlive their request.


async def test_a_task_that_waited_has_the_context_of_its_own_request(
    app: FastAPI, seen: Seen
) -> None:
    gate = anyio.Event()

    async def hold() -> None:
        await gate.wait()
        seen.append(context())

    @app.get("/{name}")
    async def route(name: str, tasks: Tasks) -> None:
        become(name)
        tasks.using(detached=True, limit=Limit("one", 1)).add_task(hold)

    async with running(app):
        for name in ("ann", "bob", "eve"):
            await call(app, f"/{name}")
        gate.set()
    assert [name for name, _ in seen] == ["ann", "bob", "eve"]
    assert [bound["user"] for _, bound in seen] == ["ann", "bob", "eve"]


# Worker processes: structlog's context, as far as it can be pickled.


def bound_there() -> dict[str, Any]:
    return get_contextvars()


async def test_the_context_of_the_log_is_seen_in_a_worker_process(app: FastAPI) -> None:
    found: list[Task[dict[str, Any]]] = []

    @app.get("/")
    def route(tasks: Tasks) -> None:
        bind_contextvars(user="ann", connection=lambda: "cannot be pickled")
        found.append(tasks.using(executor="process").add_task(bound_there))
        bind_contextvars(user="bob")
        found.append(tasks.using(executor="process").add_task(bound_there))

    await call(app)
    outcomes = [task.outcome for task in found]
    assert [outcome and outcome.value for outcome in outcomes] == [
        {"user": "ann"},
        {"user": "bob"},  # and nothing of the task that ran in this worker before
    ]


# Log lines: those of the task and those of the library.


async def test_log_lines_of_a_task_carry_the_context(app: FastAPI, lines: Lines) -> None:
    log = structlog.get_logger()

    async def speak_async() -> None:
        log.info("async")
        await anyio.sleep(0)
        log.info("later")

    def speak() -> None:
        log.info("sync")

    @app.get("/")
    def route(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(speak_async)
        tasks.add_task(speak)
        become("bob")

    await call(app)
    for event in ("async", "later", "sync"):
        assert one(lines, event)["user"] == "ann"


async def fail() -> None:
    raise ValueError


async def until(lines: Lines, event: str) -> None:
    while not named(lines, event):
        await anyio.sleep(0.001)


def events_of(lines: Lines, name: str) -> set[str]:
    """The events that carry the context of `name`; there must be no others about tasks."""
    about_tasks = [line for line in lines if line["event"].startswith("task.")]
    assert {line.get("user") for line in about_tasks} == {name}
    return {line["event"] for line in about_tasks}


async def test_events_of_tasks_that_ran_carry_their_context(lines: Lines) -> None:
    app = FastAPI()
    Bgx(Settings(slow_after=0.001)).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(fail)
        tasks.add_task(until, lines, "task.slow")
        tasks.using(timeout=0.001).add_task(anyio.sleep, 10)
        become("bob")

    await call(app)
    assert events_of(lines, "ann") == {
        "task.queued",
        "task.started",
        "task.failed",
        "task.slow",
        "task.succeeded",
        "task.timed_out",
    }


async def test_events_of_tasks_that_waited_carry_their_context(
    app: FastAPI, bgx: Bgx, lines: Lines
) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None:
        become("ann")
        view = tasks.using(detached=True, concurrent=True, limit=Limit("one", 1))
        view.add_task(anyio.sleep, 10)
        view.using(queue_timeout=0.001).add_task(anyio.sleep, 10)
        become("bob")

    async with running(app):
        await call(app)
        await until(lines, "task.expired")
        await bgx.drain(grace=0)
    assert events_of(lines, "ann") == {
        "task.queued",
        "task.started",
        "task.expired",
        "task.cancelled",
    }


async def test_events_of_tasks_that_were_dropped_carry_their_context(
    app: FastAPI, lines: Lines
) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(fail)
        become("bob")
        raise HTTPException(500)

    await call(app)
    assert events_of(lines, "ann") == {"task.queued", "task.dropped"}


async def test_an_overrun_carries_the_context_of_its_task(app: FastAPI, lines: Lines) -> None:
    gate = threading.Event()

    @app.get("/")
    def route(tasks: Tasks) -> None:
        become("ann")
        tasks.using(timeout=0.01).add_task(gate.wait, 10)

    become("bob")
    await call(app)
    assert one(lines, "task.timed_out")["user"] == "ann"
    gate.set()
    while not [line for line in named(lines, "task.overran") if line["ended"]]:
        await anyio.sleep(0.001)
    assert {line["user"] for line in named(lines, "task.overran")} == {"ann"}


async def test_a_refused_task_is_logged_in_the_context_of_its_route(lines: Lines) -> None:
    app = FastAPI()
    Bgx(Settings(max_backlog=1)).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(look, [])
        with pytest.raises(BacklogFull):
            tasks.add_task(look, [])

    await call(app)
    assert one(lines, "task.rejected")["user"] == "ann"


async def test_the_last_line_of_a_task_has_what_the_task_itself_bound(
    app: FastAPI, lines: Lines
) -> None:
    async def bind() -> None:
        await anyio.sleep(0)
        bind_contextvars(order=7)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(bind)

    await call(app)
    assert one(lines, "task.succeeded")["order"] == 7
    assert "order" not in one(lines, "task.queued")


async def test_events_of_the_library_itself_carry_no_context_of_a_request(
    app: FastAPI, lines: Lines
) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(look, [])

    async with running(app):
        await call(app)
    assert "user" not in one(lines, "bgx.started")
    assert "user" not in one(lines, "bgx.drained")


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_hooks_have_the_context_of_the_task_that_failed(
    app: FastAPI, bgx: Bgx, seen: Seen, kind: str
) -> None:
    def sync_hook(task: Task[Any], outcome: Outcome[Any]) -> None:
        look(seen)

    async def async_hook(task: Task[Any], outcome: Outcome[Any]) -> None:
        await look_later(seen)

    bgx.on_failure(sync_hook if kind == "sync" else async_hook)

    @app.get("/")
    def route(tasks: Tasks) -> None:
        become("ann")
        tasks.add_task(fail)
        become("bob")

    await call(app)
    assert seen == [ANN]
