"""Injection: whoever asks for background tasks, and however, gets the one list of the request.

Four ways to ask, each tried in every place that FastAPI injects into. Which routes `install`
reaches is in test_install.py.
"""

import inspect
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, Protocol

import anyio
import anyio.to_thread
import fastapi
import pytest
from fastapi import APIRouter, Depends, FastAPI, Security, WebSocket
from fastapi.security import SecurityScopes
from structlog.testing import capture_logs

import fastapi_bgx
from fastapi_bgx import BackgroundTasks, Bgx, NotInstalled, Settings, Status, Task, Tasks
from fastapi_bgx.app import tasks_of_request
from tests.asgi import FASTAPI, call, client_of, connect

NEEDS_ANNOTATED = pytest.mark.skipif(
    FASTAPI < (0, 128, 2), reason="FastAPI < 0.128.2 refuses Depends beside BackgroundTasks"
)
Function = Callable[..., Any]


class Ask(Protocol):
    """One way to ask: given a function, its parameter `tasks` asks that way."""

    def __call__(self, function: Function) -> Function: ...


@pytest.fixture
def bgx() -> Bgx:
    return Bgx(Settings())


@pytest.fixture
def app() -> FastAPI:
    return FastAPI()


@pytest.fixture(
    params=[
        "stock annotation",
        "Tasks",
        "Depends(bgx) as the default",
        pytest.param("Annotated with Depends(bgx)", marks=NEEDS_ANNOTATED),
        pytest.param("our class, Depends(bgx) as the default", marks=NEEDS_ANNOTATED),
    ]
)
def ask(request: pytest.FixtureRequest, bgx: Bgx) -> Ask:
    """A decorator that gives `tasks`, the last parameter, one of the annotations in use."""
    annotation, *default = {
        "stock annotation": (fastapi.BackgroundTasks,),
        "Tasks": (Tasks,),
        "Depends(bgx) as the default": (Any, Depends(bgx)),
        "Annotated with Depends(bgx)": (Annotated[BackgroundTasks, Depends(bgx)],),
        "our class, Depends(bgx) as the default": (BackgroundTasks, Depends(bgx)),
    }[request.param]

    def decorate(function: Function) -> Function:
        function.__annotations__["tasks"] = annotation
        function.__defaults__ = tuple(default) or None
        return function

    return decorate


class Seen(list[Any]):
    """What the functions of a test were given, and what their tasks left behind."""

    def add(self, tasks: Any) -> None:
        self.append(tasks)
        tasks.add_task(self.append, "ran")

    def check(self) -> None:
        tasks, ran = self
        assert type(tasks) is BackgroundTasks
        assert ran == "ran"


@pytest.fixture
def seen() -> Seen:
    return Seen()


# Every place.


def test_an_async_route(app: FastAPI, bgx: Bgx, ask: Ask, seen: Seen, anyio_backend: str) -> None:
    @app.get("/")
    @ask
    async def route(tasks):  # type: ignore[no-untyped-def]
        seen.add(tasks)

    bgx.install(app)
    assert client_of(app, anyio_backend).get("/").status_code == 200
    seen.check()


def test_a_sync_route(app: FastAPI, bgx: Bgx, ask: Ask, seen: Seen, anyio_backend: str) -> None:
    @app.get("/")
    @ask
    def route(tasks):  # type: ignore[no-untyped-def]
        seen.add(tasks)

    bgx.install(app)
    assert client_of(app, anyio_backend).get("/").status_code == 200
    seen.check()


def test_a_sub_dependency(app: FastAPI, bgx: Bgx, ask: Ask, seen: Seen, anyio_backend: str) -> None:
    @ask
    def inner(tasks):  # type: ignore[no-untyped-def]
        seen.add(tasks)

    async def outer(inner: Annotated[None, Depends(inner)]) -> None: ...

    @app.get("/")
    async def route(outer: Annotated[None, Depends(outer)]) -> None: ...

    bgx.install(app)
    client_of(app, anyio_backend).get("/")
    seen.check()


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
def test_a_dependency_with_yield(
    app: FastAPI, bgx: Bgx, ask: Ask, seen: Seen, sync: bool, anyio_backend: str
) -> None:
    @ask
    def sync_resource(tasks):  # type: ignore[no-untyped-def]
        seen.add(tasks)
        yield

    @ask
    async def async_resource(tasks):  # type: ignore[no-untyped-def]
        seen.add(tasks)
        yield

    resource = sync_resource if sync else async_resource

    @app.get("/")
    async def route(resource: Annotated[None, Depends(resource)]) -> None: ...

    bgx.install(app)
    client_of(app, anyio_backend).get("/")
    seen.check()


def test_a_dependency_that_is_a_class(
    app: FastAPI, bgx: Bgx, ask: Ask, seen: Seen, anyio_backend: str
) -> None:
    class Mailer:
        @ask
        def __init__(self, tasks):  # type: ignore[no-untyped-def]
            self.tasks = tasks

    @app.get("/")
    async def route(mailer: Annotated[Mailer, Depends()]) -> None:
        seen.add(mailer.tasks)

    bgx.install(app)
    client_of(app, anyio_backend).get("/")
    seen.check()


def test_a_dependency_that_is_an_object(
    app: FastAPI, bgx: Bgx, ask: Ask, seen: Seen, anyio_backend: str
) -> None:
    class Mailer:
        @ask
        def __call__(self, tasks):  # type: ignore[no-untyped-def]
            seen.add(tasks)

    @app.get("/", dependencies=[Depends(Mailer())])
    async def route() -> None: ...

    bgx.install(app)
    client_of(app, anyio_backend).get("/")
    seen.check()


def test_a_dependency_of_the_application(bgx: Bgx, ask: Ask, seen: Seen) -> None:
    @ask
    def audit(tasks):  # type: ignore[no-untyped-def]
        seen.add(tasks)

    app = FastAPI(dependencies=[Depends(audit)])

    @app.get("/")
    async def route() -> None: ...

    bgx.install(app)
    client_of(app, "asyncio").get("/")
    seen.check()


def test_a_websocket_route(
    app: FastAPI, bgx: Bgx, ask: Ask, seen: Seen, anyio_backend: str
) -> None:
    @app.websocket("/")
    @ask
    async def route(websocket: WebSocket, tasks):  # type: ignore[no-untyped-def]
        seen.add(tasks)
        await websocket.accept()
        await websocket.close()

    bgx.install(app)
    anyio.run(connect, app, backend=anyio_backend)
    seen.check()


# One list for each request.


def test_everybody_in_a_request_shares_one_list(app: FastAPI, bgx: Bgx, anyio_backend: str) -> None:
    given: list[Any] = []
    order: list[str] = []

    def remember(where: str, tasks: Any) -> None:
        given.append(tasks)
        tasks.add_task(order.append, where)

    def stock(tasks: fastapi.BackgroundTasks) -> None:
        remember("stock", tasks)

    async def depends(tasks: Annotated[Any, Depends(bgx)]) -> None:
        remember("Depends", tasks)

    async def resource(tasks: Tasks) -> AsyncIterator[None]:
        remember("yield", tasks)
        yield

    class Service:
        def __init__(self, tasks: fastapi.BackgroundTasks) -> None:
            remember("class", tasks)

    uncached = Annotated[Any, Depends(bgx, use_cache=False)]

    def scoped(scopes: SecurityScopes, tasks: Tasks, again: uncached) -> None:
        remember("security", tasks)
        remember("uncached", again)

    @app.get("/")
    def route(
        a: Annotated[None, Depends(stock)],
        b: Annotated[None, Depends(depends)],
        c: Annotated[None, Depends(resource)],
        d: Annotated[Service, Depends()],
        e: Annotated[None, Security(scoped, scopes=["mail"])],
        tasks: fastapi.BackgroundTasks,
    ) -> None:
        remember("route", tasks)

    bgx.install(app)
    client_of(app, anyio_backend).get("/")
    assert len({id(tasks) for tasks in given}) == 1
    assert order == ["stock", "Depends", "yield", "class", "security", "uncached", "route"]


def test_what_was_added_to_the_stock_list_before_it_was_upgraded_runs_in_its_place(
    app: FastAPI, bgx: Bgx
) -> None:
    order: list[str] = []

    def early(tasks: fastapi.BackgroundTasks) -> None:
        assert type(tasks) is fastapi.BackgroundTasks
        tasks.add_task(order.append, "early")

    @app.get("/")
    def route(early: Annotated[None, Depends(early)], tasks: Annotated[Any, Depends(bgx)]) -> None:
        tasks.add_task(order.append, "late")

    with capture_logs() as logs:
        client_of(app, "asyncio").get("/")
    assert order == ["early", "late"]
    assert [log["event"] for log in logs].count("task.succeeded") == 2


def test_two_requests_do_not_share_a_list(app: FastAPI, bgx: Bgx) -> None:
    given: list[Any] = []

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        given.append(tasks)

    bgx.install(app)
    client = client_of(app, "asyncio")
    client.get("/")
    client.get("/")
    first, second = given
    assert first is not second


# Depends(bgx) without install.


def test_depends_alone_supervises_without_install(
    app: FastAPI, bgx: Bgx, anyio_backend: str
) -> None:
    added: list[Task[Any]] = []

    async def boom() -> None:
        raise ValueError("boom")

    @app.get("/")
    async def route(tasks: Annotated[Any, Depends(bgx)]) -> None:
        added.append(tasks.add_task(boom))
        added.append(tasks.using(timeout=60, detached=True).add_task(len, "abc"))

    with capture_logs() as logs:
        assert client_of(app, anyio_backend).get("/").status_code == 200
    assert [task.status for task in added] == [Status.FAILED, Status.SUCCEEDED]
    assert "task.failed" in [log["event"] for log in logs]


def test_tasks_without_any_bgx_says_what_to_do(app: FastAPI) -> None:
    @app.get("/")
    async def route(tasks: Tasks) -> None: ...

    with pytest.raises(NotInstalled, match=r"install\(app\)"):
        client_of(app, "asyncio").get("/")


@pytest.mark.skipif(FASTAPI >= (0, 128, 2), reason="FastAPI >= 0.128.2 allows it")
def test_an_old_fastapi_refuses_the_annotation_where_the_route_is_defined(
    app: FastAPI, bgx: Bgx
) -> None:
    async def route(tasks: Annotated[BackgroundTasks, Depends(bgx)]) -> None: ...

    with pytest.raises(AssertionError, match="Cannot specify `Depends` for type"):
        app.get("/")(route)


@pytest.mark.parametrize("installed", [True, False])
def test_an_override_takes_the_place_of_bgx(app: FastAPI, bgx: Bgx, installed: bool) -> None:
    class Fake(list[Any]):
        def add_task(self, func: Function, *args: Any) -> None:
            self.append((func, args))

    fake = Fake()

    @app.get("/")
    async def route(tasks: Annotated[Any, Depends(bgx)]) -> None:
        tasks.add_task(print, "never")

    if installed:
        bgx.install(app)
    app.dependency_overrides[bgx] = lambda: fake
    client_of(app, "asyncio").get("/")
    assert fake == [(print, ("never",))]


def test_an_override_takes_the_place_of_tasks(app: FastAPI, bgx: Bgx) -> None:
    given: list[Any] = []

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        given.append(tasks)

    bgx.install(app)
    app.dependency_overrides[tasks_of_request] = lambda: "fake"
    client_of(app, "asyncio").get("/")
    assert given == ["fake"]


@pytest.mark.anyio
async def test_injection_does_not_wait_for_one_of_the_threads_that_serve_sync_routes(
    app: FastAPI, bgx: Bgx
) -> None:
    @app.get("/")
    async def route(tasks: Tasks, same: Annotated[Any, Depends(bgx)]) -> None:
        assert tasks is same

    bgx.install(app)
    limiter = anyio.to_thread.current_default_thread_limiter()
    for _ in range(int(limiter.total_tokens)):
        limiter.acquire_on_behalf_of_nowait(object())
    with anyio.fail_after(5):
        assert (await call(app))[0]["status"] == 200


# Our class as an annotation, and nothing that injects it.


def not_injected(logs: Any) -> list[str]:
    return [
        function
        for log in logs
        if log["event"] == "bgx.not_injected"
        for function in log["functions"]
    ]


def uninjected_app(bgx: Bgx) -> FastAPI:
    app, router = FastAPI(), APIRouter()

    @app.get("/good")
    async def good(tasks: Annotated[Any, Depends(bgx)]) -> None: ...

    @app.get("/by-another", dependencies=[Depends(bgx)])
    async def by_another_parameter(tasks: BackgroundTasks) -> None: ...

    @app.get("/stock")
    async def stock(tasks: fastapi.BackgroundTasks) -> None: ...

    @app.get("/bare")
    async def bare(tasks: BackgroundTasks) -> None: ...

    @router.get("/described")
    async def described(tasks: Annotated[BackgroundTasks, "the tasks"]) -> None: ...

    router.include_router(uninjected_router(), prefix="/nested")
    app.include_router(router, prefix="/router")
    return app


def uninjected_router() -> APIRouter:
    router = APIRouter()

    def helper(tasks: "BackgroundTasks") -> None: ...

    class Service:
        def __init__(self, tasks: BackgroundTasks) -> None: ...

    @router.get("/helped")
    async def helped(
        helper: Annotated[None, Depends(helper)], service: Annotated[Service, Depends()]
    ) -> None: ...

    @router.websocket("/socket")
    async def socket(websocket: WebSocket, tasks: BackgroundTasks) -> None: ...

    return router


WHO = [
    "bare (/bare)",
    "described (/router/described)",
    "helper (/router/nested/helped)",
    "Service (/router/nested/helped)",
    "socket (/router/nested/socket)",
]


def short(found: list[str]) -> list[str]:
    return [function.rpartition("<locals>.")[2] for function in found]


def test_the_first_use_of_depends_tells_who_gets_fastapis_own_class(bgx: Bgx) -> None:
    client = client_of(uninjected_app(bgx), "asyncio")
    with capture_logs() as logs:
        client.get("/good")
        client.get("/good")
    assert short(not_injected(logs)) == WHO


def test_the_lifespan_by_hand_tells_who_gets_fastapis_own_class(bgx: Bgx) -> None:
    app = uninjected_app(bgx)
    app.router.lifespan_context = bgx.lifespan
    with capture_logs() as logs, client_of(app, "asyncio") as client:
        client.get("/good")
    assert short(not_injected(logs)) == WHO


def test_install_injects_them_all_and_has_nobody_to_tell_of(bgx: Bgx) -> None:
    app = uninjected_app(bgx)
    bgx.install(app)
    with capture_logs() as logs, client_of(app, "asyncio") as client:
        client.get("/good")
    assert not_injected(logs) == []


def test_a_function_whose_annotations_cannot_be_read_is_passed_over(app: FastAPI, bgx: Bgx) -> None:
    @app.get("/")
    async def route(tasks: BackgroundTasks, other: Annotated[Any, Depends(bgx)]) -> None: ...

    def unreadable(tasks: BackgroundTasks) -> None: ...

    @app.get("/unreadable")
    async def victim(it: Annotated[None, Depends(unreadable)]) -> None: ...

    unreadable.__annotations__["return"] = "Missing"
    with capture_logs() as logs:
        client_of(app, "asyncio").get("/")
    assert not_injected(logs) == []


def test_a_mounted_application_that_was_not_installed_is_told_of_at_the_start(
    app: FastAPI, bgx: Bgx
) -> None:
    app.mount("/plain", uninjected_app(bgx))
    installed = uninjected_app(bgx)
    Bgx(Settings()).install(installed)
    app.mount("/installed", installed)
    bgx.install(app)
    with capture_logs() as logs, client_of(app, "asyncio"):
        pass
    assert short(not_injected(logs)) == [who.replace("(", "(/plain") for who in WHO]


@pytest.mark.anyio
async def test_without_any_bgx_there_is_nothing_that_could_tell(app: FastAPI) -> None:
    """The evidence that such an application cannot be warned: none of our code ever runs in it.

    FastAPI looks at the annotation when the route is defined, makes its own class for each
    request, and calls nothing of the annotated class on the way.
    """
    ours = str(Path(inspect.getfile(fastapi_bgx)).parent)
    called: set[str] = set()
    given: list[Any] = []

    def trace(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ours):
            called.add(frame.f_code.co_qualname)

    threading.setprofile(trace)
    sys.setprofile(trace)
    try:

        @app.get("/")
        async def route(tasks: BackgroundTasks) -> None:
            given.append(type(tasks))

        app.openapi()
        messages = await call(app)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert messages[0]["status"] == 200
    assert given == [fastapi.BackgroundTasks]
    assert called == set()
