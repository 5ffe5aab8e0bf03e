"""FastAPI's documented behaviour of background tasks, with our class in place of theirs.

Each test of the first part runs on a plain application, and on one with `install`. What differs
on purpose (failures, contexts, tasks that stock loses) comes after it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import fastapi
import pytest
import starlette
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from opentelemetry import baggage
from opentelemetry import context as otel
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.testing import capture_logs

from fastapi_bgx import Bgx, Settings, Status, Task, Tasks
from tests.asgi import FASTAPI, call, client_of, last_body

pytestmark = pytest.mark.anyio
STARLETTE = tuple(int(part) for part in starlette.__version__.split(".")[:2])
NEEDS_ASGI_2_4 = pytest.mark.skipif(STARLETTE < (0, 42), reason="Starlette < 0.42: only ASGI 2.3")
Supervise = Callable[[FastAPI], None]


def by_hand(app: FastAPI) -> None:
    """Stock: nothing is done to the application."""


def by_install(app: FastAPI) -> None:
    Bgx(Settings()).install(app)


class Traced:
    """Leaves something in OpenTelemetry's context, as its middlewares do: a path of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = otel.attach(baggage.set_baggage("traced", "yes"))
        await self.app(scope, receive, send)
        otel.detach(token)


def by_install_and_traced(app: FastAPI) -> None:
    by_install(app)
    app.add_middleware(Traced)


@pytest.fixture(
    params=[by_hand, by_install, by_install_and_traced], ids=["stock", "ours", "ours, traced"]
)
def supervise(request: pytest.FixtureRequest) -> Supervise:
    chosen: Supervise = request.param
    return chosen


@pytest.fixture
def app() -> FastAPI:
    return FastAPI()


@pytest.fixture
def ran() -> list[Any]:
    return []


async def fail(error: BaseException) -> None:
    raise error


def note_last_byte(ran: list[Any]) -> Callable[[Message], None]:
    return lambda message: ran.append("last byte") if last_body(message) else None


# The tutorial.


def test_a_task_writes_after_the_answer(
    app: FastAPI, supervise: Supervise, tmp_path: Path, anyio_backend: str
) -> None:
    log = tmp_path / "log.txt"

    def write_notification(email: str, message: str = "") -> None:
        log.write_text(f"notification for {email}: {message}")

    @app.post("/send/{email}")
    async def send(email: str, background_tasks: fastapi.BackgroundTasks) -> dict[str, bool]:
        background_tasks.add_task(write_notification, email, message="hello")
        return {"written": log.exists()}

    supervise(app)
    client = client_of(app, anyio_backend)
    assert client.post("/send/a@example.org").json() == {"written": False}
    assert log.read_text() == "notification for a@example.org: hello"


def test_the_tasks_of_a_dependency_come_before_those_of_the_route(
    app: FastAPI, supervise: Supervise, ran: list[Any], anyio_backend: str
) -> None:
    def get_query(tasks: fastapi.BackgroundTasks, q: str | None = None) -> str | None:
        if q:
            tasks.add_task(ran.append, f"query {q}")
        return q

    @app.get("/")
    def route(tasks: fastapi.BackgroundTasks, q: Annotated[str | None, Depends(get_query)]) -> None:
        tasks.add_task(ran.append, "route")

    supervise(app)
    client = client_of(app, anyio_backend)
    client.get("/?q=foo")
    client.get("/")
    assert ran == ["query foo", "route", "route"]


@pytest.mark.skipif(FASTAPI < (0, 128, 2), reason="FastAPI < 0.128.2 refuses such a dependency")
def test_a_dependency_may_return_the_tasks(
    app: FastAPI, supervise: Supervise, ran: list[Any]
) -> None:
    def begin(tasks: fastapi.BackgroundTasks) -> fastapi.BackgroundTasks:
        tasks.add_task(ran.append, "dependency")
        return tasks

    @app.get("/")
    async def route(tasks: Annotated[fastapi.BackgroundTasks, Depends(begin)]) -> None:
        tasks.add_task(ran.append, "route")

    supervise(app)
    client_of(app, "asyncio").get("/")
    assert ran == ["dependency", "route"]


async def test_everything_that_can_be_called_is_called(
    app: FastAPI, supervise: Supervise, ran: list[Any]
) -> None:
    class Mailer:
        async def send(self, what: str) -> None:
            ran.append(what)

        async def __call__(self, what: str) -> None:
            ran.append(what)

        @classmethod
        def shared(cls, what: str) -> None:
            ran.append(what)

        @staticmethod
        async def static(what: str) -> None:
            ran.append(what)

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(Mailer().send, "method")
        tasks.add_task(Mailer(), "object")
        tasks.add_task(Mailer.shared, "class method")
        tasks.add_task(Mailer.static, what="static method")
        tasks.add_task(partial(Mailer().send, what="partial"))
        tasks.add_task(partial(ran.append, "builtin"))
        tasks.add_task(lambda: ran.append("lambda"))

    supervise(app)
    await call(app)
    assert ran == [
        "method",
        "object",
        "class method",
        "static method",
        "partial",
        "builtin",
        "lambda",
    ]


# When the response is sent.


class Streamed:
    """Two chunks. No generator: one that is left half-way warns, on trio, when it is collected."""

    def __init__(self) -> None:
        self.chunks = ["one", "two"]

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)


def answer(kind: str, file: Path) -> Any:
    answers: dict[str, Callable[[], Any]] = {
        "json": lambda: {"a": 1},
        "nothing": lambda: None,
        "response": lambda: PlainTextResponse("hello"),
        "stream": lambda: StreamingResponse(Streamed()),
        "file": lambda: FileResponse(file),
        "refusal": lambda: JSONResponse({}, status_code=402),
        "broken": lambda: JSONResponse({}, status_code=500),
    }
    return answers[kind]()


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.parametrize(
    "kind", ["json", "nothing", "response", "stream", "file", "refusal", "broken"]
)
async def test_tasks_start_when_the_last_byte_was_sent(
    app: FastAPI,
    supervise: Supervise,
    ran: list[Any],
    tmp_path: Path,
    kind: str,
    spec_version: str,
) -> None:
    file = tmp_path / "file.txt"
    file.write_text("hello")

    @app.get("/", response_model=None)
    async def route(tasks: fastapi.BackgroundTasks) -> Any:
        tasks.add_task(ran.append, "task")
        return answer(kind, file)

    supervise(app)
    await call(app, spec_version=spec_version, sent=note_last_byte(ran))
    assert ran == ["last byte", "task"]


async def test_a_status_that_the_route_sets_on_the_response_changes_nothing(
    app: FastAPI, supervise: Supervise, ran: list[Any]
) -> None:
    @app.get("/", status_code=204)
    async def no_content(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(ran.append, "204")

    @app.get("/conflict")
    async def conflict(response: Response, tasks: fastapi.BackgroundTasks) -> None:
        response.status_code = 409
        tasks.add_task(ran.append, "409")

    supervise(app)
    await call(app)
    await call(app, "/conflict")
    assert ran == ["204", "409"]


async def test_a_task_added_while_the_response_streams_runs(
    app: FastAPI, supervise: Supervise, ran: list[Any]
) -> None:
    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> StreamingResponse:
        async def stream() -> AsyncIterator[str]:
            yield "one"
            tasks.add_task(ran.append, "task")
            yield "two"

        return StreamingResponse(stream())

    supervise(app)
    await call(app, sent=note_last_byte(ran))
    assert ran == ["last byte", "task"]


@pytest.mark.skipif(FASTAPI < (0, 134), reason="FastAPI < 0.134 does not stream from routes")
@pytest.mark.parametrize("path", ["/async", "/sync"])
async def test_a_route_that_yields_its_answer(
    app: FastAPI, supervise: Supervise, ran: list[Any], path: str
) -> None:
    @app.get("/async")
    async def route(tasks: fastapi.BackgroundTasks) -> AsyncIterator[int]:
        tasks.add_task(ran.append, "task")
        yield 1

    @app.get("/sync")
    def sync(tasks: fastapi.BackgroundTasks) -> Iterator[int]:
        tasks.add_task(ran.append, "task")
        yield 1

    supervise(app)
    await call(app, path, sent=note_last_byte(ran))
    assert ran == ["last byte", "task"]


async def test_the_request_ends_after_its_tasks(
    app: FastAPI, supervise: Supervise, ran: list[Any]
) -> None:
    async def slow() -> None:
        for _ in range(10):
            await anyio.sleep(0)
        ran.append("task")

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(slow)

    supervise(app)
    await call(app)
    ran.append("request")
    assert ran == ["task", "request"]


async def test_a_task_that_a_running_task_adds_runs(
    app: FastAPI, supervise: Supervise, ran: list[Any]
) -> None:
    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        async def add_another() -> None:
            tasks.add_task(ran.append, "another")

        tasks.add_task(add_another)
        tasks.add_task(ran.append, "sibling")

    supervise(app)
    await call(app)
    assert ran == ["sibling", "another"]


@pytest.mark.parametrize("way", ["HTTPException", "error", "validation"])
async def test_the_tasks_of_a_route_that_raises_do_not_run(
    app: FastAPI, supervise: Supervise, ran: list[Any], way: str
) -> None:
    def add(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(ran.append, "task")

    async def needs(number: int) -> None: ...

    @app.get("/HTTPException", dependencies=[Depends(add)])
    async def refuse() -> None:
        raise HTTPException(404)

    @app.get("/error", dependencies=[Depends(add)])
    async def error() -> None:
        raise ValueError("boom")

    app.get("/validation", dependencies=[Depends(add), Depends(needs)])(lambda: None)
    supervise(app)
    with suppress(ValueError):
        await call(app, f"/{way}")
    assert ran == []


# Dependencies with `yield`.


async def test_dependencies_with_yield_are_open_while_tasks_run(
    app: FastAPI, supervise: Supervise, ran: list[Any]
) -> None:
    async def outer() -> AsyncIterator[list[str]]:
        state = ["outer open"]
        yield state
        state.append("outer closed")
        ran.append("closed")

    def inner(state: Annotated[list[str], Depends(outer)]) -> Iterator[list[str]]:
        state.append("inner open")
        yield state
        state.append("inner closed")

    @app.get("/")
    async def route(
        tasks: fastapi.BackgroundTasks, state: Annotated[list[str], Depends(inner)]
    ) -> None:
        tasks.add_task(lambda: ran.append(list(state)))

    supervise(app)
    await call(app)
    still_open = ["outer open", "inner open"]
    if FASTAPI >= (0, 118):
        assert ran == [still_open, "closed"]
    else:
        assert ran == ["closed", [*still_open, "inner closed", "outer closed"]]


# Middlewares.


def stack_middlewares(app: FastAPI, supervise: Supervise, where: str) -> None:
    """`BaseHTTPMiddleware` behind ours, in front of it, or both."""

    async def passthrough(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    if where != "in front":
        app.add_middleware(BaseHTTPMiddleware, dispatch=passthrough)
    supervise(app)
    if where != "behind":
        app.add_middleware(BaseHTTPMiddleware, dispatch=passthrough)


@pytest.mark.parametrize("where", ["behind", "in front", "both"])
async def test_base_http_middleware_lets_tasks_run_after_the_response(
    app: FastAPI, supervise: Supervise, ran: list[Any], where: str
) -> None:
    async def slow() -> None:
        ran.append("task starts")
        for _ in range(10):
            await anyio.sleep(0)
        ran.append("task ends")

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(slow)

    stack_middlewares(app, supervise, where)
    await call(app, sent=note_last_byte(ran))
    ran.append("request")
    if STARLETTE >= (1, 7):
        assert ran == ["last byte", "task starts", "task ends", "request"]
    else:  # the task may start before the last, empty message is through all middlewares
        ran.remove("last byte")
        assert ran == ["task starts", "task ends", "request"]


@pytest.mark.parametrize("where", ["behind", "in front", "both"])
async def test_a_client_that_leaves_does_not_stop_tasks_under_base_http_middleware(
    app: FastAPI, supervise: Supervise, ran: list[Any], where: str
) -> None:
    sent = anyio.Event()
    begun = False

    def leave(message: Message) -> None:
        if last_body(message):
            sent.set()

    async def receive() -> Message:
        nonlocal begun
        if not begun:
            begun = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await sent.wait()
        return {"type": "http.disconnect"}

    async def slow() -> None:
        for _ in range(20):
            await anyio.sleep(0)
        ran.append("task")

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(slow)
        tasks.add_task(ran.append, "sibling")

    stack_middlewares(app, supervise, where)
    await call(app, receive=receive, sent=leave)
    assert ran == ["task", "sibling"]


@pytest.mark.parametrize("where", ["behind", "in front", "both"])
async def test_a_client_that_left_before_the_route_answered(
    app: FastAPI, supervise: Supervise, ran: list[Any], where: str
) -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    @app.get("/")
    async def route(request: Request, tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(ran.append, "task")
        with pytest.raises(ClientDisconnect):
            await request.body()

    stack_middlewares(app, supervise, where)
    await call(app, receive=gone)
    assert ran == ["task"]


@pytest.mark.filterwarnings(  # Starlette < 1, on trio: its own generator
    "ignore:Exception ignored in. <async_generator object Request.stream"
    ":pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("where", ["behind", "in front", "both"])
@pytest.mark.parametrize("kind", ["stream", "file"])
async def test_streams_and_files_under_base_http_middleware(
    app: FastAPI, supervise: Supervise, ran: list[Any], tmp_path: Path, where: str, kind: str
) -> None:
    file = tmp_path / "file.txt"
    file.write_text("hello")

    @app.get("/", response_model=None)
    async def route(tasks: fastapi.BackgroundTasks) -> Any:
        tasks.add_task(ran.append, "task")
        return answer(kind, file)

    stack_middlewares(app, supervise, where)
    messages = await call(app)
    assert b"".join(message.get("body", b"") for message in messages) in (b"onetwo", b"hello")
    assert ran == ["task"]


def test_a_middleware_function_of_the_application(
    app: FastAPI, supervise: Supervise, ran: list[Any], anyio_backend: str
) -> None:
    supervise(app)

    @app.middleware("http")
    async def stamp(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await call_next(request)
        response.headers["x-stamp"] = "yes"
        return response

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(ran.append, "task")

    response = client_of(app, anyio_backend).get("/")
    assert response.headers["x-stamp"] == "yes"
    assert ran == ["task"]


# A client that leaves.


async def test_a_client_that_leaves_during_a_task_does_not_stop_it(
    app: FastAPI, supervise: Supervise, ran: list[Any]
) -> None:
    async def watch(request: Request) -> None:
        ran.append(await request.is_disconnected())
        ran.append("task")

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    @app.get("/")
    async def route(request: Request, tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(watch, request)

    supervise(app)
    await call(app, receive=gone)
    assert ran == [True, "task"]


async def test_a_client_that_leaves_a_stream_of_an_old_server(
    app: FastAPI, supervise: Supervise, ran: list[Any]
) -> None:
    """ASGI before 2.4: the disconnect is a message, and the tasks run."""

    async def endless() -> AsyncIterator[str]:
        while True:
            yield "more"
            await anyio.sleep(0)

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> StreamingResponse:
        tasks.add_task(ran.append, "task")
        return StreamingResponse(endless())

    supervise(app)
    await call(app, receive=gone, spec_version="2.3")
    assert ran == ["task"]


@NEEDS_ASGI_2_4
async def test_a_client_that_leaves_a_stream_of_a_new_server(
    app: FastAPI, supervise: Supervise, ran: list[Any]
) -> None:
    """ASGI 2.4: the disconnect is an `OSError` of `send`, and the tasks do not run."""

    def break_off(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> StreamingResponse:
        tasks.add_task(ran.append, "task")
        return StreamingResponse(Streamed())

    supervise(app)
    with pytest.raises(ClientDisconnect):
        await call(app, sent=break_off, spec_version="2.4")
    assert ran == []


# What differs on purpose.


@NEEDS_ASGI_2_4
async def test_the_tasks_of_a_stream_that_the_client_left_are_reported(app: FastAPI) -> None:
    def break_off(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> StreamingResponse:
        tasks.add_task(len, "abc")
        return StreamingResponse(Streamed())

    by_install(app)
    with capture_logs() as logs, pytest.raises(ClientDisconnect):
        await call(app, sent=break_off, spec_version="2.4")
    reasons = [log["reason"] for log in logs if log["event"] == "task.dropped"]
    assert reasons == ["the request failed: ClientDisconnect"]


ERRORS = [ValueError("boom"), HTTPException(404), SystemExit(1), asyncio.CancelledError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["behind", "in front", "both", "nowhere"])
async def test_what_a_task_raises_hurts_nobody(
    app: FastAPI, ran: list[Any], where: str, error: BaseException, anyio_backend_name: str
) -> None:
    if isinstance(error, asyncio.CancelledError) and anyio_backend_name == "trio":
        error = BaseExceptionGroup("two", [KeyError("one"), SystemExit(2)])
    added: list[Task[Any]] = []

    @app.exception_handler(ValueError)
    async def handle(request: Request, error: Exception) -> Response:
        raise AssertionError("the response was sent: there is nothing to handle")

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        added.append(tasks.add_task(fail, error))
        tasks.add_task(ran.append, "sibling")

    if where == "nowhere":
        by_install(app)
    else:
        stack_middlewares(app, by_install, where)
    messages = await call(app)
    assert messages[0]["status"] == 200
    assert ran == ["sibling"]
    assert added[0].outcome is not None
    assert added[0].outcome.error is error


@pytest.mark.parametrize("where", ["behind", "in front", "both", "nowhere"])
@pytest.mark.parametrize("own", [True, False], ids=["ours", "stock"])
async def test_told_to_raise_it_stops_and_raises_as_stock_does(
    app: FastAPI, ran: list[Any], where: str, own: bool
) -> None:
    error = ValueError("boom")

    def to_raise(app: FastAPI) -> None:
        if own:
            Bgx(Settings(on_error="raise")).install(app)

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(fail, error)
        tasks.add_task(ran.append, "sibling")

    if where == "nowhere":
        to_raise(app)
    else:
        stack_middlewares(app, to_raise, where)
    if where == "nowhere" or STARLETTE >= (0, 47):
        with pytest.raises(ValueError, match="boom") as caught:
            await call(app)
        assert caught.value is error
    else:  # BaseHTTPMiddleware loses it
        with suppress(ValueError):
            await call(app)
    assert ran == []


user: ContextVar[str] = ContextVar("user", default="nobody")


@pytest.mark.parametrize("where", ["behind", "in front", "both"])
async def test_a_task_sees_the_context_of_its_add_task(
    app: FastAPI, ran: list[Any], where: str
) -> None:
    async def see() -> None:
        ran.append(user.get())
        user.set("changed by a task")

    @app.get("/async")
    async def route(tasks: Tasks) -> None:
        user.set("one")
        tasks.add_task(see)
        user.set("two")
        tasks.add_task(see)
        tasks.add_task(lambda: ran.append(user.get()))
        user.set("three")

    @app.get("/sync")
    def sync(tasks: fastapi.BackgroundTasks) -> None:
        user.set("four")
        tasks.add_task(see)
        tasks.add_task(lambda: ran.append(user.get()))

    stack_middlewares(app, by_install, where)
    await call(app, "/async")
    await call(app, "/sync")
    assert ran == ["one", "two", "two", "four", "four"]
    assert user.get() in ("nobody", "three")


async def test_sync_tasks_take_none_of_the_threads_that_serve_sync_routes(
    app: FastAPI, ran: list[Any]
) -> None:
    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(lambda: ran.append(threading.current_thread().name))

    by_install(app)
    limiter = anyio.to_thread.current_default_thread_limiter()
    for _ in range(int(limiter.total_tokens)):
        limiter.acquire_on_behalf_of_nowait(object())
    with anyio.fail_after(5):
        await call(app)
    assert ran[0].startswith("bgx-thread")


async def test_the_task_that_add_task_returns_tells_how_it_went(app: FastAPI) -> None:
    added: list[Task[int]] = []

    @app.get("/")
    async def route(tasks: Tasks) -> str:
        added.append(tasks.add_task(len, "abc"))
        return added[0].status

    by_install(app)
    messages = await call(app)
    assert messages[1]["body"] == b'"queued"'
    assert added[0].status is Status.SUCCEEDED
    assert added[0].outcome is not None
    assert added[0].outcome.value == 3
