"""Nothing vanishes: what was added and not called is run, or one event says why it was not."""

import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import suppress
from typing import Annotated, Any

import anyio
import fastapi
import pytest
import starlette
from fastapi import (
    Depends,
    FastAPI,
    HTTPException,
    Request,
    Response,
    WebSocket,
    WebSocketException,
)
from fastapi.responses import PlainTextResponse
from starlette.background import BackgroundTask
from starlette.exceptions import WebSocketException as PlainWebSocketException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from structlog.testing import capture_logs

from fastapi_bgx import BackgroundTasks, Bgx, Settings, Status, Task, Tasks
from tests.asgi import call, connect, last_body, running
from tests.logs import FINAL

pytestmark = pytest.mark.anyio
Logs = list[MutableMapping[str, Any]]
STARLETTE = tuple(int(part) for part in starlette.__version__.split(".")[:2])


@pytest.fixture
def bgx() -> Bgx:
    return Bgx(Settings())


@pytest.fixture
def app(bgx: Bgx) -> FastAPI:
    app = FastAPI()
    bgx.install(app)
    return app


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs() as captured:
        yield captured


@pytest.fixture
def ran() -> list[str]:
    """What the tasks of a test appended."""
    return []


def ends(logs: Logs) -> list[tuple[str, str]]:
    """The final event of each task, with its reason."""
    return [(log["event"], log.get("reason", "")) for log in logs if log["event"] in FINAL]


async def fail() -> None:
    raise ValueError("boom")


# What stock loses, though the request succeeded, runs.


async def test_a_response_with_a_background_of_its_own(
    app: FastAPI, logs: Logs, ran: list[str]
) -> None:
    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> Response:
        tasks.add_task(ran.append, "injected")
        return Response(background=BackgroundTask(ran.append, "its own"))

    await call(app)
    assert ran == ["its own", "injected"]
    assert ends(logs) == [("task.succeeded", "")]


async def test_a_response_with_a_list_made_by_hand(
    app: FastAPI, logs: Logs, ran: list[str]
) -> None:
    @app.get("/")
    def route(tasks: Tasks) -> Response:
        by_hand = BackgroundTasks()
        tasks.add_task(ran.append, "injected")
        by_hand.add_task(ran.append, "by hand")
        return Response(background=by_hand)

    await call(app)
    assert ran == ["by hand", "injected"]
    assert ends(logs) == [("task.succeeded", "")] * 2


async def test_what_is_left_over_starts_after_the_response_was_sent(app: FastAPI) -> None:
    order: list[str] = []

    @app.get("/")
    async def route(tasks: Tasks) -> Response:
        tasks.add_task(order.append, "task")
        return Response("hello", background=BackgroundTasks())

    await call(app, sent=lambda message: order.append(message["type"]))
    assert order == ["http.response.start", "http.response.body", "task"]


async def test_a_failure_among_them_hurts_no_other(
    app: FastAPI, logs: Logs, ran: list[str]
) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> Response:
        tasks.add_task(fail)
        tasks.add_task(ran.append, "sibling")
        return Response(background=BackgroundTask(ran.append, "its own"))

    await call(app)
    assert ran == ["its own", "sibling"]
    assert ends(logs) == [("task.failed", ""), ("task.succeeded", "")]


async def test_a_task_that_one_of_them_adds(app: FastAPI, ran: list[str]) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> Response:
        def add_another() -> None:
            tasks.add_task(ran.append, "another")

        tasks.add_task(add_another)
        return Response(background=BackgroundTask(ran.append, "its own"))

    await call(app)
    assert ran == ["its own", "another"]


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_task_added_after_the_yield_of_a_dependency(
    app: FastAPI, logs: Logs, ran: list[str], sync: bool
) -> None:
    async def async_resource(tasks: fastapi.BackgroundTasks) -> AsyncIterator[None]:
        tasks.add_task(ran.append, "before")
        yield
        tasks.add_task(ran.append, "after")

    def sync_resource(tasks: fastapi.BackgroundTasks) -> Iterator[None]:
        tasks.add_task(ran.append, "before")
        yield
        tasks.add_task(ran.append, "after")

    @app.get("/", dependencies=[Depends(sync_resource if sync else async_resource)])
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(ran.append, "route")

    await call(app)
    assert ran == ["before", "route", "after"]
    assert ends(logs) == [("task.succeeded", "")] * 3


async def test_what_the_response_called_does_not_run_again(
    app: FastAPI, logs: Logs, ran: list[str]
) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(ran.append, "once")

    await call(app)
    assert ran == ["once"]
    assert ends(logs) == [("task.succeeded", "")]


@pytest.mark.parametrize("same", [True, False], ids=["the same Bgx", "a Bgx of its own"])
async def test_what_a_mounted_application_leaves_over_runs_once(
    app: FastAPI, bgx: Bgx, logs: Logs, ran: list[str], same: bool
) -> None:
    mounted = FastAPI()

    @mounted.get("/")
    async def route(tasks: Tasks) -> Response:
        tasks.add_task(ran.append, "left over")
        return Response(background=BackgroundTasks())

    (bgx if same else Bgx(Settings())).install(mounted)
    app.mount("/sub", mounted)
    await call(app, "/sub/")
    assert ran == ["left over"]
    assert ends(logs) == [("task.succeeded", "")]


# WebSockets.


async def test_the_tasks_of_a_websocket_run_when_it_has_closed(
    app: FastAPI, logs: Logs, ran: list[str]
) -> None:
    @app.websocket("/")
    async def route(websocket: WebSocket, tasks: fastapi.BackgroundTasks) -> None:
        await websocket.accept()
        tasks.add_task(ran.append, "task")
        await websocket.close()
        ran.append("closed")

    await connect(app)
    assert ran == ["closed", "task"]
    assert ends(logs) == [("task.succeeded", "")]


async def test_a_client_that_leaves_is_how_a_websocket_ends(
    app: FastAPI, logs: Logs, ran: list[str]
) -> None:
    @app.websocket("/")
    async def echo(websocket: WebSocket, tasks: fastapi.BackgroundTasks) -> None:
        await websocket.accept()
        while True:
            tasks.add_task(ran.append, await websocket.receive_text())

    with pytest.raises(WebSocketDisconnect):
        await connect(app, "/", "one", "two")
    assert ran == ["one", "two"]
    assert ends(logs) == [("task.succeeded", "")] * 2


async def test_a_client_that_leaves_after_the_tasks_were_called(
    app: FastAPI, logs: Logs, ran: list[str]
) -> None:
    @app.websocket("/")
    async def route(websocket: WebSocket, tasks: Tasks) -> None:
        await websocket.accept()
        tasks.add_task(ran.append, "task")
        await tasks()
        await websocket.receive_text()
        await websocket.receive_text()

    with pytest.raises(WebSocketDisconnect):
        await connect(app, "/", "one")
    assert ran == ["task"]
    assert ends(logs) == [("task.succeeded", "")]


async def test_a_plain_task_that_got_into_the_list_past_add_task_is_left_over_too(
    app: FastAPI, ran: list[str]
) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> Response:
        tasks.tasks.append(BackgroundTask(ran.append, "plain"))
        return Response(background=BackgroundTasks())

    await call(app)
    assert ran == ["plain"]


async def test_a_route_that_closes_a_websocket_over_an_error_has_not_failed(
    app: FastAPI, ran: list[str]
) -> None:
    @app.websocket("/")
    async def route(websocket: WebSocket, tasks: fastapi.BackgroundTasks) -> None:
        await websocket.accept()
        tasks.add_task(ran.append, "task")
        try:
            int(await websocket.receive_text())
        except ValueError:
            await websocket.close(1003)

    await connect(app, "/", "no number")
    assert ran == ["task"]


async def test_a_detached_task_does_not_wait_for_the_end_of_a_websocket(app: FastAPI) -> None:
    ended: list[Status] = []

    @app.websocket("/")
    async def route(websocket: WebSocket, tasks: Tasks) -> None:
        await websocket.accept()
        task = tasks.using(detached=True).add_task(len, "abc")
        ended.append((await task.wait()).status)
        await websocket.close()

    async with running(app):
        with anyio.fail_after(5):
            await connect(app)
    assert ended == [Status.SUCCEEDED]


@pytest.mark.parametrize("policy", ["drop", "run"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WebSocketException(1008), "the request failed: WebSocketException"),
        (PlainWebSocketException(1008), "the request failed: WebSocketException"),
        pytest.param(
            HTTPException(403),
            "the request failed: 403",
            marks=pytest.mark.skipif(
                STARLETTE < (0, 41), reason="Starlette < 0.41 ends such a WebSocket in silence"
            ),
        ),
        (ValueError("boom"), "the request failed: ValueError"),
    ],
)
async def test_a_websocket_that_failed(
    logs: Logs, ran: list[str], policy: Any, error: Exception, reason: str
) -> None:
    app = FastAPI()
    Bgx(Settings(on_failed_response=policy)).install(app)

    @app.websocket("/")
    async def route(websocket: WebSocket, tasks: fastapi.BackgroundTasks) -> None:
        await websocket.accept()
        tasks.add_task(ran.append, "task")
        raise error

    with suppress(ValueError):
        await connect(app)
    check_policy(policy, logs, ran, reason)


async def test_a_websocket_that_was_denied(app: FastAPI, logs: Logs) -> None:
    @app.websocket("/")
    async def route(websocket: WebSocket, tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(len, "abc")
        raise HTTPException(401)

    await connect(app)
    assert [event for event, _ in ends(logs)] == ["task.dropped"]


# A request that failed: dropped with the reason, or run.


def check_policy(policy: str, logs: Logs, ran: list[str], reason: str) -> None:
    if policy == "drop":
        assert ran == []
        assert ends(logs) == [("task.dropped", reason)]
    else:
        assert ran == ["task"]
        assert ends(logs) == [("task.succeeded", "")]


class Redirect(Exception):
    """Answered with a redirect by a handler of the application."""


def failing_app(ran: list[str]) -> FastAPI:
    app = FastAPI()

    def add(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(ran.append, "task")

    def needs(number: int) -> None: ...

    class Silent(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    @app.exception_handler(Redirect)
    async def redirect(request: Request, error: Exception) -> Response:
        return Response(status_code=307)

    endings: dict[str, Callable[[], Response]] = {
        "/http-exception": lambda: raising(HTTPException(404)),
        "/redirect": lambda: raising(HTTPException(303)),
        "/handled": lambda: raising(Redirect()),
        "/error": lambda: raising(ValueError("boom")),
        "/4xx": lambda: Response(status_code=402, background=BackgroundTask(len, "")),
        "/5xx": lambda: Response(status_code=500, background=BackgroundTask(len, "")),
        "/silent": lambda: Silent(),
    }
    for path, end in endings.items():
        app.add_api_route(path, end, dependencies=[Depends(add)], response_model=None)
    app.get("/422", dependencies=[Depends(add), Depends(needs)])(lambda: None)
    return app


def raising(error: Exception) -> Response:
    raise error


@pytest.mark.parametrize("policy", ["drop", "run"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/http-exception", "the request failed: 404"),
        ("/redirect", "the request failed: HTTPException"),
        ("/handled", "the request failed: Redirect"),
        ("/error", "the request failed: ValueError"),
        ("/4xx", "the request failed: 402"),
        ("/5xx", "the request failed: 500"),
        ("/422", "the request failed: 422"),
        ("/silent", "the request failed: no response"),
    ],
)
async def test_a_request_that_failed(
    logs: Logs, ran: list[str], policy: Any, path: str, reason: str
) -> None:
    app = failing_app(ran)
    Bgx(Settings(on_failed_response=policy)).install(app)
    with suppress(ValueError):
        await call(app, path)
    check_policy(policy, logs, ran, reason)


@pytest.mark.parametrize("path", ["/http-exception", "/redirect", "/handled", "/422", "/4xx"])
async def test_the_answer_of_a_request_that_failed_is_the_stock_one(path: str) -> None:
    stock, ours = failing_app([]), failing_app([])
    Bgx(Settings()).install(ours)
    assert await call(ours, path) == await call(stock, path)


async def test_a_request_that_failed_while_its_dependencies_closed(
    app: FastAPI, logs: Logs, ran: list[str]
) -> None:
    def resource() -> Iterator[None]:
        yield
        raise ValueError("boom")

    @app.get("/", dependencies=[Depends(resource)])
    async def route(tasks: fastapi.BackgroundTasks) -> Response:
        tasks.add_task(ran.append, "task")
        return Response(background=BackgroundTasks())

    with pytest.raises(ValueError, match="boom"):
        await call(app)
    check_policy("drop", logs, ran, "the request failed: ValueError")


async def test_a_request_inside_of_an_except_block_has_not_failed_for_that(
    app: FastAPI, ran: list[str]
) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> Response:
        tasks.add_task(ran.append, "task")
        return Response(background=BackgroundTasks())

    try:
        await fail()
    except ValueError:
        await call(app)
    assert ran == ["task"]


async def test_nor_one_that_is_answered_in_a_task_of_its_own(bgx: Bgx, ran: list[str]) -> None:
    app = FastAPI()

    class Apart:
        def __init__(self, app: ASGIApp) -> None:
            self.app: Any = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(self.app, scope, receive, send)

    @app.get("/")
    async def route(tasks: Tasks) -> Response:
        tasks.add_task(ran.append, "task")
        return Response(background=BackgroundTasks())

    app.add_middleware(Apart)
    bgx.install(app)
    try:
        await fail()
    except ValueError:
        await call(app)
    assert ran == ["task"]


async def test_what_is_made_of_the_answer_further_out_is_not_its_failure(
    app: FastAPI, ran: list[str]
) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> Response:
        tasks.add_task(ran.append, "task")
        return Response(background=BackgroundTasks())

    await call(app, sent=lambda message: message.update(status=500))
    assert ran == ["task"]


async def test_a_failed_task_of_a_failed_request_raises_when_told_so(
    logs: Logs, ran: list[str]
) -> None:
    app = FastAPI()
    Bgx(Settings(on_failed_response="run", on_error="raise")).install(app)

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(fail)
        tasks.add_task(ran.append, "sibling")
        raise HTTPException(404)

    with pytest.raises(ValueError, match="boom"):
        await call(app)
    assert ran == []
    assert ends(logs) == [
        ("task.failed", ""),
        ("task.dropped", "an earlier task failed, and on_error='raise'"),
    ]


async def test_the_outcome_of_a_dropped_task_says_so(app: FastAPI) -> None:
    added: list[Task[Any]] = []

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        added.append(tasks.add_task(len, "abc"))
        raise HTTPException(404)

    await call(app)
    (task,) = added
    assert task.outcome is not None
    assert (task.outcome.status, task.outcome.attempts) == (Status.DROPPED, 0)


# A request that was cancelled.


async def test_the_tasks_of_a_cancelled_request_are_dropped(
    app: FastAPI, logs: Logs, ran: list[str]
) -> None:
    with anyio.CancelScope() as scope:

        @app.get("/")
        async def route(tasks: fastapi.BackgroundTasks) -> None:
            tasks.add_task(ran.append, "task")
            scope.cancel()
            await anyio.sleep_forever()

        await call(app)
    assert ran == []
    assert ends(logs) == [("task.dropped", "the request was cancelled")]


@pytest.mark.parametrize("left_over", [True, False])
async def test_a_cancellation_while_tasks_run_ends_each_of_them_once(
    app: FastAPI, logs: Logs, ran: list[str], left_over: bool
) -> None:
    with anyio.CancelScope() as scope:

        async def wait() -> None:
            scope.cancel()
            await anyio.sleep_forever()

        @app.get("/")
        async def route(tasks: fastapi.BackgroundTasks) -> Response:
            tasks.add_task(ran.append, "first")
            tasks.add_task(wait)
            tasks.add_task(ran.append, "last")
            return Response(background=BackgroundTasks() if left_over else None)

        await call(app)
    assert ran == ["first"]
    outside = "the request around it was cancelled"
    assert ends(logs) == [
        ("task.succeeded", ""),
        ("task.cancelled", outside),
        ("task.dropped", outside),
    ]


# Without the middleware.


async def test_without_the_middleware_a_list_that_nobody_called_says_so(
    bgx: Bgx, logs: Logs, ran: list[str]
) -> None:
    app = FastAPI()

    @app.get("/")
    async def route(tasks: Annotated[Any, Depends(bgx)]) -> None:
        tasks.add_task(ran.append, "one")
        tasks.add_task(ran.append, "two")
        raise HTTPException(404)

    await call(app)
    gc.collect()
    assert ran == []
    assert ends(logs) == [("task.dropped", "it was never called")] * 2


async def test_a_list_made_by_hand_that_nobody_called_says_so(
    app: FastAPI, logs: Logs, ran: list[str]
) -> None:
    @app.get("/")
    async def route() -> None:
        BackgroundTasks().add_task(ran.append, "task")

    await call(app)
    gc.collect()
    assert ran == []
    assert ends(logs) == [("task.dropped", "it was never called")]


def test_a_list_made_and_forgotten_outside_of_every_loop_says_so(logs: Logs) -> None:
    BackgroundTasks().add_task(len, "abc")
    gc.collect()
    assert ends(logs) == [("task.dropped", "it was never called")]


async def test_a_list_that_another_thread_forgets_says_so(app: FastAPI, logs: Logs) -> None:
    added: list[Task[Any]] = []
    kept: list[BackgroundTasks] = []

    @app.get("/")
    async def route() -> None:
        kept.append(BackgroundTasks())
        added.append(kept[0].add_task(len, "abc"))

    await call(app)
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    with anyio.fail_after(5):
        assert (await added[0].wait()).status is Status.DROPPED
    assert ends(logs) == [("task.dropped", "it was never called")]


# The middleware itself is not noticed.


async def test_messages_and_scope_pass_unchanged(bgx: Bgx) -> None:
    seen: list[Scope] = []

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await PlainTextResponse("hello")(scope, receive, send)

    stock, ours = FastAPI(), FastAPI()
    bgx.install(ours)
    for app in (stock, ours):
        app.mount("/", route)
    assert await call(ours) == await call(stock)
    assert {key for key in seen[0] if seen[0][key] is not None} >= {"type", "path"}
    assert seen[0].get("fastapi_bgx") is None


async def test_an_error_of_the_route_reaches_the_server_unchanged(app: FastAPI) -> None:
    error = ValueError("boom")
    messages: list[Message] = []

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        raise error

    with pytest.raises(ValueError, match="boom") as caught:
        await call(app, sent=messages.append)
    assert caught.value is error
    assert [message.get("status") for message in messages] == [500, None]
    assert last_body(messages[-1])


async def test_a_list_made_after_a_request_does_not_belong_to_its_bgx(
    app: FastAPI, bgx: Bgx
) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None: ...

    await call(app)
    tasks = BackgroundTasks()
    tasks.add_task(len, "abc")
    assert bgx.stats().waiting == 0
    await tasks()


# A request that is over.


async def test_a_detached_task_keeps_nothing_of_its_request(app: FastAPI) -> None:
    release = anyio.Event()

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.using(detached=True).add_task(release.wait)

    class Connection:
        """What the server holds of one request."""

        def note(self, message: Message) -> None: ...

    async with running(app):
        connection = Connection()
        reference = weakref.ref(connection)
        await call(app, sent=connection.note)
        del connection
        gc.collect()
        assert reference() is None
        release.set()


async def test_what_is_sent_after_a_request_is_refused(app: FastAPI) -> None:
    kept: list[Send] = []

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        kept.append(send)
        await PlainTextResponse("hello")(scope, receive, send)

    app.mount("/", route)
    await call(app)
    with pytest.raises(RuntimeError, match=r"^http\.response\.body was sent after the request"):
        await kept[0]({"type": "http.response.body"})


async def test_a_list_that_is_asked_for_after_a_request_is_ours(bgx: Bgx, ran: list[str]) -> None:
    """By something that was started in it, and goes on."""
    visits: list[Any] = []

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        visits.append(scope["fastapi_bgx"])
        await PlainTextResponse("hello")(scope, receive, send)

    app = FastAPI()
    bgx.install(app)
    app.mount("/", route)
    await call(app)
    tasks = visits[0].supervise(fastapi.BackgroundTasks(), visits[0].runner)
    tasks.add_task(ran.append, "late")
    await tasks()
    assert (type(tasks), ran, visits[0].lists) == (BackgroundTasks, ["late"], [])
