"""Captured tasks: what counts as added, what a failed assertion says, and running on demand."""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, cast
from unittest.mock import ANY, Mock

import anyio
import fastapi
import httpx
import pytest
from fastapi import FastAPI, HTTPException, WebSocket
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fastapi_bgx import (
    BackgroundTasks,
    Bgx,
    Limit,
    Outcome,
    Settings,
    Task,
    Tasks,
    UnknownOption,
    WrongCall,
    task_options,
)
from fastapi_bgx.testing import Captured, capturing_tasks, owning_clock
from tests.asgi import client_of
from tests.logs import logged, named
from tests.supervision import PATIENCE, serving, tasks_of

on_each_loop = pytest.mark.anyio

sent: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_sent() -> None:
    sent.clear()


@pytest.fixture
def captured() -> Iterator[Captured]:
    with capturing_tasks() as tasks:
        yield tasks


async def send(to: str, subject: str = "hi", **headers: str) -> str:
    sent.append(to)
    return to


def write(*lines: str) -> int:
    sent.extend(lines)
    return len(lines)


async def broken(error: BaseException) -> None:
    raise error


class Mailer:
    def send(self, to: str) -> None:
        sent.append(to)


def app_with(*funcs: Any, **settings: Any) -> FastAPI:
    """An app whose one route adds these; a view is made by `options`, if there are any."""
    app, bgx = FastAPI(), Bgx(Settings(**settings))
    bgx.install(app)

    @app.post("/")
    async def add(tasks: Tasks, fail: bool = False) -> list[str]:
        added = [tasks.add_task(func).id for func in funcs]
        if fail:
            raise HTTPException(418)
        return added

    return app


def failure_of(call: Any, *args: Any, **kwargs: Any) -> str:
    """What an assertion says that fails."""
    with pytest.raises(AssertionError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# What is captured.


def test_a_task_is_captured_and_does_not_run(captured: Captured, anyio_backend: str) -> None:
    app = app_with(partial(send, "a@b.c"))
    ids = client_of(app, anyio_backend).post("/").json()
    assert [task.id for task in captured] == ids
    assert captured[0].status == "queued"
    assert len(captured) == 1
    assert sent == []
    assert not captured[0].runner.overruns(captured[0])
    assert not captured[0].runner.hears_lines()


def test_sync_routes_stock_annotations_and_late_apps_are_captured(
    captured: Captured, anyio_backend: str
) -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)

    @app.post("/")
    def add(background_tasks: fastapi.BackgroundTasks) -> None:
        background_tasks.add_task(send, "a@b.c")

    client_of(app, anyio_backend).post("/")
    captured.added(send, "a@b.c")


def test_starlettes_own_tasks_are_captured(captured: Captured, anyio_backend: str) -> None:
    async def route(request: Request) -> Response:
        tasks = BackgroundTasks([BackgroundTask(send, "list@b.c")])
        tasks.add_task(send, "method@b.c")
        return Response(background=tasks)

    app = Starlette(routes=[Route("/", route, methods=["POST"])])
    Bgx(Settings()).install(app)
    client_of(app, anyio_backend).post("/")
    assert {task.args[0] for task in captured} == {"list@b.c", "method@b.c"}
    assert sent == []


def test_a_route_can_be_called_by_hand(captured: Captured) -> None:
    def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.using(timeout=2).add_task(send, "a@b.c")

    tasks = BackgroundTasks()
    route(tasks)
    captured.using(timeout=2).added(send, to="a@b.c")
    del tasks  # which nobody has called
    assert captured.run()[0].value == "a@b.c"


def test_a_detached_task_is_captured_with_a_lifespan(
    captured: Captured, anyio_backend: str
) -> None:
    app = app_with(partial(send, "a@b.c"), mode="detached")
    with client_of(app, anyio_backend) as client:
        client.post("/")
    captured.using(detached=True).added(send)
    assert sent == []


@pytest.mark.parametrize("options", [{"concurrent": True}, {"detached": True}])
@on_each_loop
async def test_nobody_waits_for_it(captured: Captured, options: dict[str, Any]) -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        tasks.using(**options).add_task(send, "a@b.c")
        with anyio.fail_after(PATIENCE):
            await tasks()
    assert len(captured) == 1


def test_it_is_captured_in_a_websocket(captured: Captured, anyio_backend: str) -> None:
    app, bgx = FastAPI(), Bgx(Settings())
    bgx.install(app)

    @app.websocket("/")
    async def add(websocket: WebSocket, tasks: Tasks) -> None:
        await websocket.accept()
        tasks.using(detached=True).add_task(send, "a@b.c")
        await websocket.send_text("added")

    with client_of(app, anyio_backend) as client, client.websocket_connect("/") as socket:
        assert socket.receive_text() == "added"
        captured.added(send)
    assert sent == []


def test_the_tasks_of_a_failed_request_are_not_among_them(
    captured: Captured, anyio_backend: str
) -> None:
    client_of(app_with(partial(send, "a@b.c")), anyio_backend).post("/?fail=1")
    assert len(captured) == 0
    assert failure_of(captured.added, send) == (
        "send() was not added.\n"
        "\n"
        "Added, but dropped, because its request failed:\n"
        "  send(to='a@b.c')\n"
        "\n"
        "Nothing was added."
    )


@on_each_loop
async def test_who_waits_for_it_is_told(captured: Captured) -> None:
    async with serving() as bgx:
        task = (await tasks_of(bgx)).using(detached=True).add_task(send, "a@b.c")
        with pytest.raises(RuntimeError, match="send is captured and does not run"):
            await task.wait()
        await captured.run_async()
        assert (await task.wait()).value == "a@b.c"


@on_each_loop
async def test_it_is_only_captured_inside_of_the_block() -> None:
    bgx = Bgx(Settings())
    with capturing_tasks() as captured:
        tasks = await tasks_of(bgx)
        inside = tasks.add_task(send, "inside@b.c")
        await tasks()
        assert len(captured) == 1
    tasks = await tasks_of(bgx)
    outside = tasks.add_task(send, "outside@b.c")
    await tasks()
    assert (inside.status, outside.status) == ("dropped", "succeeded")
    assert bgx.stats().waiting == 0
    assert sent == ["outside@b.c"]


@on_each_loop
async def test_what_a_listener_may_ask_of_its_runner_is_answered(captured: Captured) -> None:
    bgx = Bgx(Settings())
    task = (await tasks_of(bgx)).add_task(send, "a@b.c")
    holding: Any = task.runner
    assert holding.settings is bgx.settings
    assert task.queued_s >= 0
    holding.cancel(task, "why")
    holding.raise_if_told(task)
    assert holding.outlives(task)
    assert task.status == "queued"


# What matches.


@pytest.fixture
def tasks(captured: Captured) -> BackgroundTasks:
    """A list that is filled by hand."""
    return BackgroundTasks()


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        (("a@b.c",), {}),
        ((), {"to": "a@b.c"}),
        ((), {"subject": "hi"}),
        ((), {"x_trace": "1"}),
        ((ANY,), {"subject": "hi", "x_trace": "1"}),
    ],
)
def test_arguments_match_however_they_are_passed(
    captured: Captured, tasks: BackgroundTasks, args: tuple[str, ...], kwargs: dict[str, str]
) -> None:
    positional = tasks.add_task(send, "a@b.c", x_trace="1")
    by_name = tasks.add_task(send, to="a@b.c", subject="hi", x_trace="1")
    of_partial = tasks.add_task(partial(send, "a@b.c"), x_trace="1")
    assert captured.added(send, *args, **kwargs) is positional
    assert captured.matching(send, *args, **kwargs) == [positional, by_name, of_partial]
    assert captured.matching(partial(send, *args), **kwargs) == [positional, by_name, of_partial]


def test_every_kind_of_function_is_found(captured: Captured, tasks: BackgroundTasks) -> None:
    mailer, mock = Mailer(), Mock(return_value=None)
    tasks.add_task(mailer.send, "a@b.c")
    tasks.add_task(mock, 1, key="x")
    tasks.add_task(write, "one", "two")
    tasks.add_task(print, "text", end="")
    tasks.add_task(max, 1, 2)
    captured.added(mailer.send, to="a@b.c")
    captured.not_added(Mailer().send)
    captured.added(mock, 1, key="x")
    captured.not_added(mock, 2)
    captured.added(write, "one", "two")
    captured.not_added(write, "one")
    captured.added(print, "text", end="")
    captured.added(max, 1, 2)
    captured.added(max, 1)
    captured.not_added(max, 2)
    assert "max(1, 2)" in repr(captured)


def test_an_argument_that_does_not_exist_is_refused(captured: Captured) -> None:
    def fixed(to: str) -> None: ...

    message = r"fixed\(to: str\) -> None: got an unexpected keyword argument 'too'"
    for ask in captured.added, captured.not_added, captured.matching:
        with pytest.raises(WrongCall, match=message):
            ask(fixed, too="a@b.c")


def test_what_cannot_be_compared_is_different(captured: Captured, tasks: BackgroundTasks) -> None:
    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        def __hash__(self) -> int:
            return 0

        def __repr__(self) -> str:
            raise ValueError("broken")

    array = Array()
    tasks.add_task(write, cast(Any, array))
    captured.not_added(write, Array())
    one = tasks.add_task(send, cast(Any, array))
    assert captured.added(send, array) is one
    assert "to is <Array: its repr raises ValueError>, not 'x'" in failure_of(
        captured.added, send, "x"
    )


def test_a_call_that_nobody_checked_matches_no_argument(captured: Captured) -> None:
    app = FastAPI()
    Bgx(Settings(check_calls=False)).install(app)

    @app.post("/")
    async def add(tasks: Tasks) -> None:
        cast(Any, tasks).add_task(send, 1, 2, 3, 4)

    client_of(app, "asyncio").post("/")
    captured.added(send)
    assert "send(1, 2, 3, 4)  <- to is not given, not 1" in failure_of(captured.added, send, 1)


# Options.


def test_options_match_wherever_they_were_set(captured: Captured, tasks: BackgroundTasks) -> None:
    @task_options(slow_after=7)
    def slow() -> None: ...

    smtp = Limit("smtp", 2)
    task = tasks.using(timeout=5, limit=smtp, name="mail").add_task(slow)
    tasks.add_task(send, "a@b.c")
    assert captured.using(timeout=5).using(slow_after=7).added(slow) is task
    assert captured.using(limit="SMTP").added(slow) is task
    assert captured.using(limit=smtp, name="mail", executor="thread").added(slow) is task
    captured.using(timeout=None, limit=None).added(send)
    captured.using(timeout=6).not_added(slow)
    assert captured.using(timeout=5).matching(send) == []
    assert failure_of(captured.using(timeout=6).added, slow) == (
        "using(timeout=6.0).slow() was not added.\n"
        "\n"
        "Added, the most alike first:\n"
        "  mail: slow()  <- timeout is 5.0, not 6.0\n"
        "  send(to='a@b.c')"
    )


def test_an_option_that_the_plan_does_not_know_is_what_using_gave(
    captured: Captured, tasks: BackgroundTasks
) -> None:
    tasks.using(priority=3).add_task(send, "a@b.c")
    tasks.add_task(send, "x@y.z")
    captured.using(priority=3).added(send, "a@b.c")
    captured.using(priority=3).not_added(send, "x@y.z")


def test_a_misspelt_option_is_refused(captured: Captured) -> None:
    with pytest.raises(UnknownOption, match="did you mean 'timeout'"):
        captured.using(timout=1)  # type: ignore[call-arg]


# What a failure says.


def test_the_nearest_comes_first_with_what_is_different(
    captured: Captured, tasks: BackgroundTasks
) -> None:
    tasks.add_task(write, "a line")
    tasks.add_task(send, "far@b.c", "other")
    tasks.add_task(send, "x@y.z", subject="hello", x_trace="1")
    assert failure_of(captured.added, send, "a@b.c", subject="hello") == (
        "send(to='a@b.c', subject='hello') was not added.\n"
        "\n"
        "Added, the most alike first:\n"
        "  send(to='x@y.z', subject='hello', x_trace='1')  <- to is 'x@y.z', not 'a@b.c'\n"
        "  send(to='far@b.c', subject='other')  <- to is 'far@b.c', not 'a@b.c', "
        "subject is 'other', not 'hello'\n"
        "  write(lines=('a line',))"
    )


def test_nothing_at_all(captured: Captured) -> None:
    assert failure_of(captured.added, send) == "send() was not added.\n\nNothing was added."
    captured.not_added(send)
    assert repr(captured) == "<Captured []>"


def test_long_arguments_are_cut(captured: Captured, tasks: BackgroundTasks) -> None:
    tasks.add_task(send, "a" * 1000)
    assert len(repr(captured)) < 200
    assert "aaa…" in repr(captured)


def test_what_should_not_have_been_added_is_shown(
    captured: Captured, tasks: BackgroundTasks
) -> None:
    tasks.add_task(send, "a@b.c")
    assert failure_of(captured.not_added, send) == "send() was added:\n  send(to='a@b.c')"


# Counts and order.


def test_counts(captured: Captured, tasks: BackgroundTasks) -> None:
    first = tasks.add_task(send, "a@b.c")
    tasks.add_task(send, "x@y.z")
    assert captured.times(2).added(send) is first
    assert captured.using(timeout=None).times(1).added(send, "x@y.z")
    assert captured.times(1).using(timeout=None).added(send, "x@y.z")
    assert failure_of(captured.times(1).added, send).startswith(
        "send() was not added once, but 2 times.\n"
    )
    assert failure_of(captured.times(3).added, send, "x@y.z").startswith(
        "send(to='x@y.z') was not added 3 times, but once.\n"
    )
    assert failure_of(captured.times(2).added, write).startswith("write() was not added 2 times.\n")


def test_order(captured: Captured, tasks: BackgroundTasks) -> None:
    added = [tasks.add_task(send, "a@b.c"), tasks.add_task(write), tasks.add_task(send, "x@y.z")]
    assert captured.names() == ["send", "write", "send"]
    assert captured.in_order(send, write, send) == added
    assert captured.in_order(write, send) == added[1:]
    assert failure_of(captured.in_order, write, send, send) == (
        "no send was added after send(to='x@y.z').\n"
        "Added, in this order:\n"
        "  send(to='a@b.c')\n"
        "  write()\n"
        "  send(to='x@y.z')"
    )
    assert failure_of(captured.in_order, print).startswith("no print was added.\n")


def test_what_is_cleared_does_not_run(captured: Captured, tasks: BackgroundTasks) -> None:
    task = tasks.add_task(send, "a@b.c")
    captured.clear()
    assert len(captured) == 0
    assert captured.run() == []
    assert task.status == "dropped"


# Running on demand.


def outcomes_of(outcomes: list[Outcome[Any]]) -> list[Any]:
    return [outcome.returned for outcome in outcomes]


def test_a_sync_test_runs_them_in_their_order(captured: Captured, anyio_backend: str) -> None:
    app = app_with(partial(send, "first"), partial(write, "second"), partial(send, "third"))
    client_of(app, anyio_backend).post("/")
    outcomes = captured.run(backend=anyio_backend)
    assert outcomes_of(outcomes) == ["first", 1, "third"]
    assert sent == ["first", "second", "third"]
    assert len(captured) == 0


@pytest.mark.parametrize("mode", ["inline", "detached"])
def test_they_run_on_the_loop_of_an_open_client(
    captured: Captured, anyio_backend: str, mode: str
) -> None:
    where: list[int] = []

    async def here() -> None:
        where.append(threading.get_ident())

    app = app_with(here, mode=mode)
    loop: list[int] = []

    @app.get("/")
    async def look() -> None:
        loop.append(threading.get_ident())

    with client_of(app, anyio_backend) as client:
        client.get("/")
        client.post("/")
        captured.run()
    assert where == loop != [threading.get_ident()]


def test_they_may_take_their_time_there(
    captured: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow() -> None:
        await anyio.sleep(0.02)
        sent.append("slow")

    monkeypatch.setattr("fastapi_bgx.testing.captured.LOOK_SECONDS", 0.001)
    with client_of(app_with(slow), "asyncio") as client:
        client.post("/")
        captured.run()
    assert sent == ["slow"]


def test_tasks_that_were_called_by_hand_run_too(captured: Captured, anyio_backend: str) -> None:
    tasks = BackgroundTasks()
    added = tasks.add_task(send, "a@b.c")
    anyio.run(tasks, backend=anyio_backend)
    assert added.claimed
    assert outcomes_of(captured.run()) == ["a@b.c"]


@pytest.mark.parametrize("options", [{}, {"concurrent": True}, {"detached": True}])
@pytest.mark.parametrize("lifespan", [False, True])
@on_each_loop
async def test_an_async_test_runs_them_on_its_own_loop(
    captured: Captured, options: dict[str, Any], lifespan: bool
) -> None:
    bgx = Bgx(Settings())
    if lifespan:
        bgx.start()
    tasks = await tasks_of(bgx)
    task = tasks.using(**options).add_task(send, "a@b.c")
    sync = tasks.using(**options).add_task(write, "line")
    await tasks()
    with logged() as lines:
        assert outcomes_of(await captured.run_async()) == ["a@b.c", 1]
    assert not named(lines, "bgx.no_lifespan")
    assert (task.status, sync.status) == ("succeeded", "succeeded")
    assert bgx.runners.current().detaching is lifespan
    assert (bgx.stats().waiting, bgx.stats().running) == (0, 0)
    await bgx.drain()


@on_each_loop
async def test_with_httpx(captured: Captured) -> None:
    transport = httpx.ASGITransport(app_with(partial(send, "a@b.c")))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.post("/")
    captured.added(send, "a@b.c")
    await captured.run_async()
    assert sent == ["a@b.c"]


def test_what_a_task_adds_runs_too(captured: Captured, anyio_backend: str) -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)

    @app.post("/")
    async def add(tasks: Tasks) -> None:
        async def outer() -> None:
            sent.append("outer")
            tasks.add_task(send, "inner")
            tasks.using(detached=True).add_task(send, "detached")

        tasks.add_task(outer)

    client_of(app, anyio_backend).post("/")
    captured.run(backend=anyio_backend)
    assert sent == ["outer", "inner", "detached"]


def test_it_runs_with_its_options_on_another_loop(captured: Captured, anyio_backend: str) -> None:
    app, bgx = FastAPI(), Bgx(Settings(limits={"smtp": 1}))
    bgx.install(app)

    @app.post("/")
    async def add(tasks: Tasks) -> None:
        tasks.using(timeout=0.01, limit="smtp").add_task(anyio.sleep_forever)

    client_of(app, anyio_backend).post("/")
    [outcome] = captured.run(backend=anyio_backend, raises=False)
    assert outcome.status == "timed_out"


def test_a_failure_is_raised_in_the_test(captured: Captured, anyio_backend: str) -> None:
    error = ValueError("mine")
    app = app_with(partial(broken, error), partial(send, "after"))
    client_of(app, anyio_backend).post("/")
    with pytest.raises(ValueError, match="mine") as caught:
        captured.run(backend=anyio_backend)
    assert caught.value is error
    assert sent == ["after"]


def test_several_failures_are_raised_together(captured: Captured, anyio_backend: str) -> None:
    errors = [ValueError("one"), KeyError("two")]
    app = app_with(*(partial(broken, error) for error in errors), partial(send, "a@b.c"))
    client_of(app, anyio_backend).post("/")
    with pytest.raises(ExceptionGroup, match="2 of 3 captured tasks failed") as caught:
        captured.run(backend=anyio_backend)
    assert list(caught.value.exceptions) == errors


@pytest.mark.parametrize("on_error", ["capture", "raise"])
def test_failures_are_in_the_outcomes_if_told(
    captured: Captured, anyio_backend: str, on_error: str
) -> None:
    error = ValueError("mine")
    app = app_with(partial(broken, error), partial(send, "after"), on_error=on_error)
    client_of(app, anyio_backend).post("/")
    failed, after = captured.run(raises=False, backend=anyio_backend)
    assert (failed.error, after.returned) == (error, "after")


@on_each_loop
async def test_a_sync_run_is_refused_where_a_loop_runs(captured: Captured) -> None:
    with pytest.raises(RuntimeError, match=r"await bgx_tasks\.run_async"):
        captured.run()


def test_a_client_that_closes_meanwhile_is_told_of(
    captured: Captured, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_with(partial(send, "a@b.c"))
    with client_of(app, anyio_backend) as client:
        client.post("/")
        answers = iter([True])  # when the loop is chosen; not any more when it is waited for
        monkeypatch.setattr(
            "fastapi_bgx.testing.captured.runs", lambda backend: next(answers, False)
        )
        monkeypatch.setattr("fastapi_bgx.testing.captured.LOOK_SECONDS", 0.0)
        monkeypatch.setattr(Captured, "run_async", lambda self, raises: anyio.sleep(0.1))
        with pytest.raises(RuntimeError, match="has ended meanwhile"):
            captured.run()


def test_what_goes_wrong_on_another_loop_is_raised_here(
    captured: Captured, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Captured, *, raises: bool) -> None:
        raise LookupError("mine")

    with client_of(app_with(partial(send, "a@b.c")), anyio_backend) as client:
        client.post("/")
        monkeypatch.setattr(Captured, "run_async", fail)
        with pytest.raises(LookupError, match="mine"):
            captured.run()


@on_each_loop
async def test_with_a_clock_of_the_test_what_waits_does_not_take_its_time(
    captured: Captured,
) -> None:
    with owning_clock():
        async with serving(limits={"smtp": 1}) as bgx:
            limiter: Any = bgx.runners.current()._planner.limits.named("smtp")
            limiter.limiters[0].taken += 1
            tasks = await tasks_of(bgx)
            tasks.using(detached=True, limit="smtp", queue_timeout=3600).add_task(send, "a@b.c")
            with anyio.fail_after(PATIENCE):
                [outcome] = await captured.run_async()
    assert outcome.status == "expired"
    assert outcome.queued_s == pytest.approx(3600)


# Several at once.


def test_two_blocks_capture_both() -> None:
    with capturing_tasks() as outer, capturing_tasks() as inner:
        tasks = BackgroundTasks()
        task: Task[Any] = tasks.add_task(send, "a@b.c")
        assert outer[0] is inner[0] is task
        inner.run()
    assert sent == ["a@b.c"]
