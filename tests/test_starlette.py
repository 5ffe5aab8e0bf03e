"""Plain Starlette: lists made by hand behave as Starlette documents for its own class.

Where `List` is a parameter, the same test runs with Starlette's class and with ours.
"""

import threading
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.background import BackgroundTasks as StarletteTasks
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from structlog.testing import capture_logs

from fastapi_bgx import (
    BackgroundTasks,
    Bgx,
    Settings,
    Status,
    Task,
    WrongCall,
    current_task,
)
from tests.asgi import call, client_of, connect, last_body

pytestmark = pytest.mark.anyio
Logs = list[MutableMapping[str, Any]]
List = type[StarletteTasks] | type[BackgroundTasks]


@pytest.fixture(params=[StarletteTasks, BackgroundTasks], ids=["stock", "ours"], name="List")
def list_class(request: pytest.FixtureRequest) -> List:
    made: List = request.param
    return made


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs() as captured:
        yield captured


@pytest.fixture
def ran() -> list[Any]:
    return []


def serving(response: Response) -> ASGIApp:
    """The smallest application: one response."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await response(scope, receive, send)

    return app


async def fail(error: BaseException) -> None:
    raise error


# What Starlette documents.


async def test_an_async_and_a_sync_task_run(List: List, ran: list[Any]) -> None:
    async def note(what: str) -> None:
        ran.append(what)

    tasks = List()
    tasks.add_task(note, "async")
    tasks.add_task(ran.append, "sync")
    await call(serving(Response("done", background=tasks)))
    assert ran == ["async", "sync"]


async def test_arguments_arrive_as_they_were_given(List: List, ran: list[Any]) -> None:
    def note(*args: Any, **kwargs: Any) -> None:
        ran.append((args, kwargs))

    tasks = List()
    tasks.add_task(note, 1, "two", three=3, timeout=4, name="n", options={}, args=(), kwargs={})
    await call(serving(Response(background=tasks)))
    names = {"three": 3, "timeout": 4, "name": "n", "options": {}, "args": (), "kwargs": {}}
    assert ran == [((1, "two"), names)]


async def test_tasks_run_one_after_the_other_in_the_order_added(List: List, ran: list[Any]) -> None:
    async def slow(what: str) -> None:
        ran.append(f"{what} starts")
        for _ in range(5):
            await anyio.sleep(0)
        ran.append(f"{what} ends")

    tasks = List()
    for what in ("first", "second"):
        tasks.add_task(slow, what)
    await call(serving(Response(background=tasks)))
    assert ran == ["first starts", "first ends", "second starts", "second ends"]


async def test_a_sync_task_runs_beside_the_event_loop(List: List, ran: list[Any]) -> None:
    tasks = List()
    tasks.add_task(lambda: ran.append(threading.get_ident()))
    await call(serving(Response(background=tasks)))
    assert ran != [threading.get_ident()]


async def test_the_first_task_starts_when_the_last_byte_was_sent(
    List: List, ran: list[Any]
) -> None:
    tasks = List()
    tasks.add_task(ran.append, "task")
    app = serving(PlainTextResponse("hello", background=tasks))
    await call(app, sent=lambda message: ran.append(last_body(message)))
    assert ran == [False, True, "task"]


async def streamed() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.parametrize("kind", ["plain", "json", "redirect", "stream", "file"])
async def test_every_kind_of_response_runs_its_tasks(
    List: List, ran: list[Any], tmp_path: Path, kind: str, spec_version: str
) -> None:
    file = tmp_path / "file.txt"
    file.write_text("hello")
    tasks = List()
    tasks.add_task(file.unlink)
    tasks.add_task(ran.append, "task")
    responses: dict[str, Callable[[], Response]] = {
        "plain": lambda: PlainTextResponse("hello", background=tasks),
        "json": lambda: JSONResponse({}, background=tasks),
        "redirect": lambda: RedirectResponse("/", background=tasks),
        "stream": lambda: StreamingResponse(streamed(), background=tasks),
        "file": lambda: FileResponse(file, background=tasks),
    }
    response = responses[kind]()
    await call(
        serving(response),
        spec_version=spec_version,
        sent=lambda message: ran.append("last byte") if last_body(message) else None,
    )
    assert ran == ["last byte", "task"]
    assert not file.exists()


async def test_a_client_that_leaves_a_stream_does_not_stop_its_tasks(
    List: List, ran: list[Any]
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"more"
            await anyio.sleep(0)

    async def leave() -> dict[str, str]:
        return {"type": "http.disconnect"}

    tasks = List()
    tasks.add_task(ran.append, "task")
    app = serving(StreamingResponse(endless(), background=tasks))
    await call(app, receive=leave, spec_version="2.3")
    assert ran == ["task"]


async def test_a_list_can_begin_with_plain_tasks(List: List, ran: list[Any]) -> None:
    async def note(what: str) -> None:
        ran.append(what)

    tasks = List(tasks=[BackgroundTask(note, "first"), BackgroundTask(ran.append, "second")])
    tasks.add_task(note, "third")
    await call(serving(Response(background=tasks)))
    assert ran == ["first", "second", "third"]


async def test_a_list_can_be_a_task_of_another_list(List: List, ran: list[Any]) -> None:
    inner = List()
    inner.add_task(ran.append, "inner")
    outer = List([inner, BackgroundTask(ran.append, "outer")])
    await call(serving(Response(background=outer)))
    assert ran == ["inner", "outer"]


async def test_a_subclass_of_a_task_runs_its_own_call(List: List, ran: list[Any]) -> None:
    class Twice(BackgroundTask):
        async def __call__(self) -> None:
            await super().__call__()
            await super().__call__()

    tasks = List([Twice(ran.append, "task")])
    await call(serving(Response(background=tasks)))
    assert ran == ["task", "task"]


async def test_a_task_may_be_appended_to_the_list_itself(List: List, ran: list[Any]) -> None:
    tasks = List()

    def append_another() -> None:
        tasks.tasks.append(BackgroundTask(ran.append, "another"))

    tasks.tasks.append(BackgroundTask(append_another))
    await call(serving(Response(background=tasks)))
    assert ran == ["another"]


async def test_a_task_that_a_running_task_adds_runs(List: List, ran: list[Any]) -> None:
    tasks = List()

    async def add_two() -> None:
        tasks.add_task(ran.append, "sync")
        tasks.add_task(lambda: tasks.add_task(ran.append, "nested"))

    tasks.add_task(add_two)
    tasks.add_task(ran.append, "sibling")
    await call(serving(Response(background=tasks)))
    assert ran == ["sibling", "sync", "nested"]


def test_a_test_client_sees_what_the_tasks_did(
    List: List, ran: list[Any], anyio_backend: str
) -> None:
    tasks = List()
    tasks.add_task(ran.append, "task")
    client = client_of(serving(PlainTextResponse("hello", background=tasks)), anyio_backend)
    assert client.get("/").text == "hello"
    assert ran == ["task"]


async def test_a_background_that_a_middleware_adds_runs(List: List, ran: list[Any]) -> None:
    async def add(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.background = List([BackgroundTask(ran.append, "middleware")])
        return response

    async def route(request: Request) -> Response:
        return Response(background=List([BackgroundTask(ran.append, "route")]))

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=add)]
    await call(Starlette(routes=[Route("/", route)], middleware=middleware))
    assert sorted(ran) == ["middleware", "route"]


# A failure: ours captures it, unless told to do as stock.


async def test_a_failure_hurts_no_sibling_and_reaches_nobody(logs: Logs, ran: list[Any]) -> None:
    tasks = BackgroundTasks()
    failed = tasks.add_task(fail, ValueError("boom"))
    tasks.add_task(ran.append, "sibling")
    await call(serving(Response(background=tasks)))
    assert ran == ["sibling"]
    assert failed.status is Status.FAILED
    assert "task.failed" in [log["event"] for log in logs]


@pytest.mark.parametrize("own", [True, False], ids=["ours, on_error='raise'", "stock"])
def test_a_failure_stops_the_rest_and_reaches_the_error_handler(
    ran: list[Any], own: bool, anyio_backend: str
) -> None:
    async def route(request: Request) -> Response:
        tasks: StarletteTasks = BackgroundTasks() if own else StarletteTasks()
        tasks.add_task(fail, ValueError("boom"))
        tasks.add_task(ran.append, "sibling")
        return Response(status_code=204, background=tasks)

    async def handle(request: Request, error: Exception) -> Response:
        ran.append(f"handled {error}")
        return Response(status_code=500)

    app = Starlette(routes=[Route("/", route)], exception_handlers={Exception: handle})
    Bgx(Settings(on_error="raise")).install(app)
    client = client_of(app, anyio_backend, raise_server_exceptions=False)
    assert client.get("/").status_code == 204
    assert ran == ["handled boom"]
    with pytest.raises(ValueError, match="boom"):
        client_of(app, anyio_backend).get("/")


async def test_a_failure_of_a_plain_task_in_a_list_is_captured(logs: Logs, ran: list[Any]) -> None:
    class Broken(BackgroundTask):
        async def __call__(self) -> None:
            raise ValueError("boom")

    plain = [
        BackgroundTask(fail, ValueError("boom")),
        Broken(len, ""),
        BackgroundTask(len),  # type: ignore[call-arg]  # too late to refuse
        BackgroundTask(ran.append, "last"),
    ]
    await call(serving(Response(background=BackgroundTasks(tasks=plain))))
    assert ran == ["last"]
    events = [log["event"] for log in logs if log["event"] in ("task.failed", "task.succeeded")]
    assert events == ["task.failed"] * 3 + ["task.succeeded"]


# Ours alone: tasks run once.


async def test_a_list_of_a_module_runs_its_tasks_once_for_all_requests(ran: list[Any]) -> None:
    shared = BackgroundTasks()

    async def route(request: Request) -> Response:
        shared.add_task(ran.append, request.url.path)
        return Response(background=shared)

    app = Starlette(routes=[Route("/{path}", route)])
    for path in ("/one", "/two", "/three"):
        await call(app, path)
    assert ran == ["/one", "/two", "/three"]
    assert len(shared.tasks) <= 1


async def test_two_requests_at_once_share_a_list_and_run_each_task_once(ran: list[Any]) -> None:
    shared, both_are_here = BackgroundTasks(), anyio.Event()

    async def meet(path: str) -> None:
        ran.append(path)
        if len(ran) == 2:
            both_are_here.set()
        await both_are_here.wait()

    async def route(request: Request) -> Response:
        shared.add_task(meet, request.url.path)
        return Response(background=shared)

    app = Starlette(routes=[Route("/{path}", route)])
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(call, app, "/one")
            group.start_soon(call, app, "/two")
    assert sorted(ran) == ["/one", "/two"]


async def test_one_task_is_a_background_by_itself_and_runs_once(ran: list[Any]) -> None:
    tasks = BackgroundTasks()
    task = tasks.add_task(ran.append, "task")
    assert isinstance(task, BackgroundTask)
    await call(serving(Response(background=task)))
    await tasks()
    await task()
    assert ran == ["task"]
    assert task.status is Status.SUCCEEDED


async def test_a_list_can_be_awaited_by_hand(ran: list[Any]) -> None:
    tasks = BackgroundTasks()
    task: Task[None] = tasks.using(timeout=60).add_task(ran.append, "task")
    await tasks()
    assert ran == ["task"]
    assert task.done


# Outside of every event loop.


def test_tasks_added_at_import_time_run_in_the_first_request(
    ran: list[Any], anyio_backend: str
) -> None:
    tasks = BackgroundTasks()
    task = tasks.using(name="early", timeout=60).add_task(lambda: ran.append(current_task()))
    assert (task.name, task.status, task.outcome) == ("early", Status.QUEUED, None)
    client = client_of(serving(Response(background=tasks)), anyio_backend)
    client.get("/")
    client.get("/")
    assert ran == [task]
    assert task.status is Status.SUCCEEDED


def test_a_wrong_call_is_refused_outside_of_every_loop_too() -> None:
    with pytest.raises(WrongCall, match="missing a required argument"):
        BackgroundTasks().add_task(lambda argument: argument)  # type: ignore[call-overload]


def test_a_task_added_at_import_time_and_dropped_by_hand_says_so(logs: Logs) -> None:
    tasks = BackgroundTasks()
    task = tasks.add_task(len, "abc")
    tasks.drop("no longer wanted")
    assert task.status is Status.DROPPED
    assert [log["reason"] for log in logs if log["event"] == "task.dropped"] == ["no longer wanted"]


# A Starlette application with `install`.


async def test_lists_made_in_a_request_belong_to_the_installed_bgx(ran: list[Any]) -> None:
    async def route(request: Request) -> Response:
        tasks = BackgroundTasks([BackgroundTask(ran.append, "plain")])
        tasks.add_task(fail, ValueError("boom"))
        return Response(background=tasks)

    app = Starlette(routes=[Route("/", route), Mount("/sub", routes=[Route("/", route)])])
    bgx = Bgx(Settings(log_events=frozenset()))
    bgx.install(app)
    bgx.install(app)
    await call(app)
    await call(app, "/sub/")
    totals = bgx.stats().totals
    assert (totals[Status.SUCCEEDED], totals[Status.FAILED]) == (2, 2)


async def test_a_list_made_in_a_websocket_runs_when_it_is_awaited(ran: list[Any]) -> None:
    async def route(websocket: WebSocket) -> None:
        await websocket.accept()
        tasks = BackgroundTasks()
        tasks.add_task(ran.append, "task")
        await tasks()
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/", route)])
    bgx = Bgx(Settings())
    bgx.install(app)
    await connect(app)
    assert ran == ["task"]
    assert bgx.stats().totals[Status.SUCCEEDED] == 1


def test_a_detached_task_of_an_installed_application_outlives_its_request(
    ran: list[Any], anyio_backend: str
) -> None:
    may_end = threading.Event()

    def wait() -> None:
        ran.append(may_end.wait(5))

    async def route(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.using(detached=True).add_task(wait)
        return Response(background=tasks)

    app = Starlette(routes=[Route("/", route)])
    Bgx(Settings()).install(app)
    with client_of(app, anyio_backend) as client:
        assert client.get("/").status_code == 200
        assert ran == []
        may_end.set()
    assert ran == [True]
