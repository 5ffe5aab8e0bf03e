"""The lifespan: tasks may outlive their requests from its start to its end, whatever it is.

`install` watches the lifespan's messages; `bgx.lifespan` is for those who compose by hand.
"""

import threading
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

import anyio
import fastapi
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.testing import capture_logs

from fastapi_bgx import Bgx, Draining, Settings, Status, Task, Tasks
from tests.asgi import call, client_of, running

pytestmark = pytest.mark.anyio
Story = list[MutableMapping[str, Any]]
Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]

WITHOUT_DETAILS = {"bgx.started", "bgx.drained", "bgx.no_lifespan", "task.succeeded"}


@pytest.fixture
def story() -> Iterator[Story]:
    """The log; the applications of the tests add what they do themselves."""
    with capture_logs() as logs:
        yield logs


def told(story: Story) -> list[str]:
    """What happened, in order."""
    return [
        line["event"]
        for line in story
        if line["event"] in WITHOUT_DETAILS or not line["event"].startswith(("task.", "bgx."))
    ]


def tell(story: Story, event: str) -> None:
    story.append({"event": event})


@pytest.fixture
def bgx() -> Bgx:
    return Bgx(Settings())


@pytest.fixture
def users(story: Story) -> Lifespan:
    """A lifespan of the user."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        tell(story, "user starts")
        yield
        tell(story, "user stops")

    return lifespan


def detach(app: FastAPI, story: Story) -> None:
    """Add a route whose task goes on until the shutdown has begun."""

    @app.get("/detach")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        async def outlive() -> None:
            with anyio.fail_after(5):
                while not app.state.shutting_down:
                    await anyio.sleep(0.001)
            tell(story, "task ends")

        tasks.using(detached=True).add_task(outlive)  # type: ignore[attr-defined]


def noticing(app: FastAPI) -> ASGIApp:
    """Have `app.state` say when the server has asked for the shutdown."""
    app.state.shutting_down = False

    async def noticed(scope: Scope, receive: Receive, send: Send) -> None:
        async def notice() -> Message:
            message = await receive()
            app.state.shutting_down = message["type"] == "lifespan.shutdown"
            return message

        await app(scope, notice if scope["type"] == "lifespan" else receive, send)

    return noticed


STORY = [
    "user starts",
    "bgx.started",
    "request ends",
    "task ends",
    "task.succeeded",
    "bgx.drained",
    "user stops",
]


def live(app: FastAPI, story: Story, backend: str) -> None:
    """Start `app`, send it one request whose task outlives it, and shut it down."""
    with client_of(noticing(app), backend) as client:
        assert client.get("/detach").status_code == 200
        tell(story, "request ends")


# Whatever lifespan the user has.


def test_a_lifespan_function(bgx: Bgx, users: Lifespan, story: Story, anyio_backend: str) -> None:
    app = FastAPI(lifespan=users)
    detach(app, story)
    bgx.install(app)
    live(app, story, anyio_backend)
    assert told(story) == STORY


def test_none_at_all(bgx: Bgx, story: Story, anyio_backend: str) -> None:
    app = FastAPI()
    detach(app, story)
    bgx.install(app)
    live(app, story, anyio_backend)
    assert told(story) == STORY[1:-1]


@pytest.mark.filterwarnings(r"ignore:\s*on_event is deprecated:DeprecationWarning")
def test_handlers_of_startup_and_shutdown(bgx: Bgx, story: Story, anyio_backend: str) -> None:
    app: Any = FastAPI()  # Any: type checkers know that on_event is deprecated
    detach(app, story)

    async def start() -> None:
        tell(story, "user starts")

    def stop() -> None:
        tell(story, "user stops")

    app.on_event("startup")(start)
    bgx.install(app)
    app.on_event("shutdown")(stop)

    live(app, story, anyio_backend)
    assert told(story) == STORY


def test_a_lifespan_that_is_reassigned_after_install(
    bgx: Bgx, users: Lifespan, story: Story, anyio_backend: str
) -> None:
    app = FastAPI()
    detach(app, story)
    bgx.install(app)
    app.router.lifespan_context = users
    live(app, story, anyio_backend)
    assert told(story) == STORY


def test_a_lifespan_of_an_included_router(
    bgx: Bgx, users: Lifespan, story: Story, anyio_backend: str
) -> None:
    app = FastAPI()
    detach(app, story)
    bgx.install(app)
    app.include_router(APIRouter(lifespan=users))
    live(app, story, anyio_backend)
    assert told(story) == STORY


def test_a_lifespan_of_plain_starlette(
    bgx: Bgx, users: Lifespan, story: Story, anyio_backend: str
) -> None:
    app = Starlette(lifespan=users)
    bgx.install(app)
    with client_of(app, anyio_backend):
        pass
    assert told(story) == ["user starts", "bgx.started", "bgx.drained", "user stops"]


def test_middlewares_around_and_behind(
    bgx: Bgx, users: Lifespan, story: Story, anyio_backend: str
) -> None:
    async def passthrough(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    app = FastAPI(lifespan=users)
    detach(app, story)
    app.add_middleware(BaseHTTPMiddleware, dispatch=passthrough)
    bgx.install(app)
    app.add_middleware(BaseHTTPMiddleware, dispatch=passthrough)
    live(app, story, anyio_backend)
    assert told(story) == STORY


async def test_a_lifespan_that_is_cancelled_drains_without_grace(bgx: Bgx, story: Story) -> None:
    """A server that skips the shutdown, as uvicorn does for a second Ctrl-C."""
    app, added = FastAPI(), list[Task[Any]]()
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        added.append(tasks.using(detached=True).add_task(anyio.sleep_forever))

    with anyio.CancelScope() as scope:
        async with running(app):
            await call(app)
            scope.cancel()
    assert added[0].status is Status.CANCELLED
    assert told(story) == ["bgx.started", "bgx.drained"]


def test_the_state_of_the_lifespan_reaches_the_requests(bgx: Bgx, anyio_backend: str) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"db": "connected"}

    app = FastAPI(lifespan=lifespan)
    bgx.install(app)

    @app.get("/")
    async def route(request: Request) -> str:
        state: str = request.state.db
        return state

    with client_of(app, anyio_backend) as client:
        assert client.get("/").json() == "connected"


async def test_a_startup_that_fails_starts_nothing(bgx: Bgx, story: Story) -> None:
    error = ValueError("no database")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if app.title:
            raise error
        yield

    app = FastAPI(lifespan=lifespan)
    bgx.install(app)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(app):
            tell(story, "it started")
    assert caught.value.subgroup(lambda one: one is error)
    assert told(story) == []


async def test_a_shutdown_that_fails_comes_after_the_drain(bgx: Bgx, story: Story) -> None:
    error = ValueError("no goodbye")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        raise error

    app = FastAPI(lifespan=lifespan)
    bgx.install(app)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(app):
            pass
    assert caught.value.subgroup(lambda one: one is error)
    assert told(story) == ["bgx.started", "bgx.drained"]


# By hand.


def test_by_hand_alone(bgx: Bgx, story: Story, anyio_backend: str) -> None:
    app = FastAPI(lifespan=bgx.lifespan, dependencies=[Depends(bgx)])
    detach(app, story)
    live(app, story, anyio_backend)
    assert told(story) == STORY[1:-1]


def test_by_hand_inside_of_the_users(bgx: Bgx, story: Story, anyio_backend: str) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tell(story, "user starts")
        async with bgx.lifespan(app):
            yield
        tell(story, "user stops")

    app = FastAPI(lifespan=lifespan, dependencies=[Depends(bgx)])
    detach(app, story)
    live(app, story, anyio_backend)
    assert told(story) == STORY


def test_by_hand_and_by_install(bgx: Bgx, story: Story, anyio_backend: str) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tell(story, "user starts")
        async with bgx.lifespan(app):
            yield
        tell(story, "user stops")

    app = FastAPI(lifespan=lifespan)
    detach(app, story)
    bgx.install(app)
    live(app, story, anyio_backend)
    assert told(story) == STORY


async def test_by_hand_a_lifespan_that_is_cancelled_drains_without_grace(
    bgx: Bgx, story: Story
) -> None:
    added: list[Task[Any]] = []
    with anyio.CancelScope() as scope:
        async with bgx.lifespan(FastAPI()):
            tasks = await bgx(fastapi.BackgroundTasks(), Request({"type": "http"}))
            added.append(tasks.using(detached=True).add_task(anyio.sleep_forever))
            await tasks()
            scope.cancel()
            await anyio.sleep_forever()
    assert added[0].status is Status.CANCELLED
    assert told(story) == ["bgx.started", "bgx.drained"]


# More than once.


def test_an_application_that_starts_again_on_another_loop(
    bgx: Bgx, story: Story, anyio_backend: str
) -> None:
    app = FastAPI()
    detach(app, story)
    bgx.install(app)
    live(app, story, anyio_backend)
    live(app, story, anyio_backend)
    assert told(story) == STORY[1:-1] * 2


async def test_an_application_that_starts_again_on_the_same_loop(bgx: Bgx, story: Story) -> None:
    app = FastAPI()
    detach(app, story)
    bgx.install(app)
    for _ in range(2):
        async with running(noticing(app)):
            await call(app, "/detach")
            tell(story, "request ends")
    assert told(story) == STORY[1:-1] * 2


async def test_between_two_lives_a_task_is_refused(bgx: Bgx) -> None:
    app = FastAPI()
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(len, "abc")

    async with running(app):
        assert (await call(app))[0]["status"] == 200
    assert (await call(app))[0]["status"] == Draining(1).status_code
    async with running(app):
        assert (await call(app))[0]["status"] == 200


async def test_a_drain_by_hand_and_the_one_of_the_lifespan_are_one(bgx: Bgx, story: Story) -> None:
    app = FastAPI()
    bgx.install(app)
    async with running(app):
        first = await bgx.drain(grace=0)
    assert await bgx.drain() is first
    assert told(story) == ["bgx.started", "bgx.drained"]


# No lifespan: detached runs inline, with one warning.


def inline_app(bgx: Bgx) -> tuple[FastAPI, list[Task[Any]]]:
    app, added = FastAPI(), list[Task[Any]]()

    @app.get("/")
    async def route(tasks: Annotated[Any, Depends(bgx)]) -> None:
        added.append(tasks.using(detached=True).add_task(len, "abc"))

    return app, added


@pytest.mark.parametrize("installed", [True, False])
def test_a_bare_client_is_warned_once_not_once_for_each_request(
    bgx: Bgx, story: Story, anyio_backend: str, installed: bool
) -> None:
    app, added = inline_app(bgx)
    if installed:
        bgx.install(app)
    client = client_of(app, anyio_backend)
    for count in (1, 2, 3):
        client.get("/")
        assert [task.status for task in added] == [Status.SUCCEEDED] * count
    assert told(story).count("bgx.no_lifespan") == 1


def test_a_mode_that_detaches_everything_does_so_with_a_lifespan(
    story: Story, anyio_backend: str
) -> None:
    bgx, inline = Bgx(Settings(mode="detached")), list[bool]()
    app, may_end = FastAPI(), threading.Event()
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(lambda: inline.append(not may_end.wait(0.5)))

    with client_of(app, anyio_backend) as client:
        client.get("/")
        may_end.set()
    client_of(app, anyio_backend).get("/")
    assert inline == [False, False]
    assert told(story).count("bgx.no_lifespan") == 1


@pytest.mark.parametrize("same", [True, False], ids=["the same Bgx", "a Bgx of its own"])
def test_a_mounted_application_detaches_in_the_lifespan_of_its_own_bgx(
    bgx: Bgx, story: Story, anyio_backend: str, same: bool
) -> None:
    inner = bgx if same else Bgx(Settings())
    mounted, added = inline_app(inner)
    inner.install(mounted)
    app = FastAPI()
    app.mount("/sub", mounted)
    bgx.install(app)
    with client_of(app, anyio_backend) as client:
        client.get("/sub/")
        client.get("/sub/")
    assert [task.status for task in added] == [Status.SUCCEEDED] * 2
    assert told(story).count("bgx.no_lifespan") == (0 if same else 1)
