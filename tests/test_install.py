"""`install`: every route of the application is supervised, and nothing else changes."""

import copy
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import fastapi
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Host
from structlog.testing import capture_logs

from fastapi_bgx import (
    AlreadyInstalled,
    AppAlreadyStarted,
    BackgroundTasks,
    Bgx,
    Settings,
    Status,
    Tasks,
)
from tests.asgi import FASTAPI, call, client_of, connect

Seen = dict[str, list[str]]


@pytest.fixture
def bgx() -> Bgx:
    return Bgx(Settings())


@pytest.fixture
def app() -> FastAPI:
    return FastAPI()


@pytest.fixture
def seen() -> Seen:
    """By path: the class that the route was given, and what the task left."""
    return {}


def define(router: FastAPI | APIRouter, seen: Seen, path: str) -> None:
    """Two routes that ask for stock tasks: `path`, and a WebSocket at `path`-socket."""

    def add(tasks: fastapi.BackgroundTasks, kind: str) -> None:
        given = seen.setdefault(kind, [])
        given.append("ours" if type(tasks) is BackgroundTasks else "stock")
        tasks.add_task(given.append, "ran")

    @router.get(path)
    def route(request: Request, tasks: fastapi.BackgroundTasks) -> None:
        add(tasks, request.scope["path"])

    @router.websocket(f"{path}-socket")
    async def socket(websocket: WebSocket, tasks: fastapi.BackgroundTasks) -> None:
        add(tasks, websocket.scope["path"])
        await websocket.accept()
        await websocket.close()


def visit(app: Starlette, *paths: str, backend: str = "asyncio") -> None:
    async def go() -> None:
        for path in paths:
            assert (await call(app, path))[0]["status"] == 200
            assert (await connect(app, f"{path}-socket"))[0]["type"] == "websocket.accept"

    anyio.run(go, backend=backend)


def supervised(*paths: str) -> Seen:
    return {f"{path}{kind}": ["ours", "ran"] for path in paths for kind in ("", "-socket")}


# Every route.


def test_routes_defined_before_and_after(
    app: FastAPI, bgx: Bgx, seen: Seen, anyio_backend: str
) -> None:
    define(app, seen, "/before")
    bgx.install(app)
    define(app, seen, "/after")
    visit(app, "/before", "/after", backend=anyio_backend)
    assert seen == supervised("/before", "/after")


def test_routers_included_before_and_after(
    app: FastAPI, bgx: Bgx, seen: Seen, anyio_backend: str
) -> None:
    before, after = APIRouter(), APIRouter(prefix="/prefix")
    define(before, seen, "/before")
    define(after, seen, "/after")
    app.include_router(before)
    bgx.install(app)
    app.include_router(after)
    visit(app, "/before", "/prefix/after", backend=anyio_backend)
    assert seen == supervised("/before", "/prefix/after")


@pytest.mark.parametrize("first", ["install", "include"])
def test_nested_routers(app: FastAPI, bgx: Bgx, seen: Seen, first: str) -> None:
    outer, middle, inner = APIRouter(), APIRouter(), APIRouter()
    define(inner, seen, "/inner")
    define(middle, seen, "/middle")
    middle.include_router(inner, prefix="/c")
    outer.include_router(middle, prefix="/b")
    if first == "install":
        bgx.install(app)
    app.include_router(outer, prefix="/a")
    bgx.install(app)
    visit(app, "/a/b/middle", "/a/b/c/inner")
    assert seen == supervised("/a/b/middle", "/a/b/c/inner")


def test_a_router_included_twice(app: FastAPI, bgx: Bgx, seen: Seen) -> None:
    router = APIRouter()
    define(router, seen, "/route")
    app.include_router(router, prefix="/one")
    bgx.install(app)
    app.include_router(router, prefix="/two")
    visit(app, "/one/route", "/two/route")
    assert seen == supervised("/one/route", "/two/route")


@pytest.mark.skipif(
    FASTAPI < (0, 137), reason="FastAPI < 0.137 serves the routes that a router had when included"
)
def test_routes_added_to_an_included_router_later(app: FastAPI, bgx: Bgx, seen: Seen) -> None:
    router, nested = APIRouter(), APIRouter()
    app.include_router(router)
    bgx.install(app)
    define(router, seen, "/later")
    define(nested, seen, "/nested")
    router.include_router(nested)
    visit(app, "/later", "/nested")
    assert seen == supervised("/later", "/nested")


def test_routes_of_a_class_of_ones_own(app: FastAPI, bgx: Bgx, seen: Seen) -> None:
    class Stamped(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def stamp(request: Request) -> Response:
                response = await handle(request)
                response.headers["x-stamp"] = "yes"
                return response

            return stamp

    before, after = APIRouter(route_class=Stamped), APIRouter(route_class=Stamped)
    define(before, seen, "/before")
    define(after, seen, "/after")
    app.include_router(before)
    bgx.install(app)
    app.include_router(after)
    visit(app, "/before", "/after")
    assert seen == supervised("/before", "/after")
    assert client_of(app, "asyncio").get("/before").headers["x-stamp"] == "yes"


def test_an_application_whose_routes_were_resolved_already(
    app: FastAPI, bgx: Bgx, seen: Seen
) -> None:
    router = APIRouter()
    define(router, seen, "/route")
    app.include_router(router)
    app.openapi()
    bgx.install(app)
    visit(app, "/route")
    assert seen == supervised("/route")


def test_the_dependencies_of_the_application_come_after_ours(bgx: Bgx, seen: Seen) -> None:
    given: list[Any] = []

    def audit(tasks: fastapi.BackgroundTasks) -> None:
        given.append(type(tasks))

    app = FastAPI(dependencies=[Depends(audit)])
    define(app, seen, "/before")
    bgx.install(app)
    define(app, seen, "/after")
    visit(app, "/before", "/after")
    assert given == [BackgroundTasks] * 4


@pytest.mark.skipif(not hasattr(FastAPI, "frontend"), reason="FastAPI < 0.138 has no frontends")
@pytest.mark.parametrize("first", ["install", "frontend"])
def test_the_dependencies_of_a_frontend(bgx: Bgx, tmp_path: Path, first: str) -> None:
    given: list[Any] = []

    def audit(tasks: fastapi.BackgroundTasks) -> None:
        given.append(type(tasks))
        tasks.add_task(given.append, "ran")

    (tmp_path / "index.html").write_text("hello")
    app = FastAPI(dependencies=[Depends(audit)])
    if first == "install":
        bgx.install(app)
    app.frontend("/", directory=tmp_path)
    bgx.install(app)
    assert client_of(app, "asyncio").get("/").text == "hello"
    assert given == [BackgroundTasks, "ran"]


def test_one_bgx_serves_two_applications(bgx: Bgx, seen: Seen) -> None:
    one, two = FastAPI(), FastAPI()
    for app, path in ((one, "/one"), (two, "/two")):
        define(app, seen, path)
        bgx.install(app)
        visit(app, path)
    assert seen == supervised("/one", "/two")


# Mounted applications.


def totals(bgx: Bgx) -> int:
    return bgx.stats().totals[Status.SUCCEEDED]


@pytest.mark.parametrize("same", [True, False], ids=["the same Bgx", "a Bgx of its own"])
def test_a_mounted_application_that_was_installed(
    app: FastAPI, bgx: Bgx, seen: Seen, same: bool
) -> None:
    inner = bgx if same else Bgx(Settings())
    mounted = FastAPI()
    define(mounted, seen, "/route")
    define(app, seen, "/route")
    inner.install(mounted)
    app.mount("/sub", mounted)
    bgx.install(app)
    visit(app, "/sub/route", "/route")
    assert seen == supervised("/sub/route", "/route")
    assert (totals(bgx), totals(inner)) == ((4, 4) if same else (2, 2))


def test_a_mounted_application_that_was_not_installed_keeps_fastapis_own_class(
    app: FastAPI, bgx: Bgx, seen: Seen
) -> None:
    mounted = FastAPI()
    define(mounted, seen, "/route")
    app.mount("/sub", mounted)
    bgx.install(app)
    assert client_of(app, "asyncio").get("/sub/route").status_code == 200
    assert seen == {"/sub/route": ["stock", "ran"]}


def test_a_mounted_application_that_was_not_installed_can_ask_for_ours(
    app: FastAPI, bgx: Bgx, anyio_backend: str
) -> None:
    given: list[Any] = []
    mounted = FastAPI()

    @mounted.get("/tasks")
    async def route(tasks: Tasks) -> None:
        given.append(tasks)

    @mounted.get("/depends")
    async def other(tasks: Annotated[Any, Depends(bgx)]) -> Response:
        given.append(tasks.add_task(len, "left over"))
        return Response(background=BackgroundTasks())

    app.mount("/sub", mounted)
    bgx.install(app)
    client = client_of(app, anyio_backend)
    client.get("/sub/tasks")
    client.get("/sub/depends")
    tasks, task = given
    assert type(tasks) is BackgroundTasks
    assert task.outcome.value == 9


def test_an_application_under_a_host_name(app: FastAPI, bgx: Bgx, seen: Seen) -> None:
    hosted = FastAPI()
    define(hosted, seen, "/route")
    bgx.install(hosted)
    app.router.routes.append(Host("testserver", hosted))
    bgx.install(app)
    visit(app, "/route")
    assert seen == supervised("/route")


# Once, in time, and whole.


def test_twice_is_the_same_as_once(app: FastAPI, bgx: Bgx, seen: Seen) -> None:
    define(app, seen, "/before")
    bgx.install(app)
    define(app, seen, "/between")
    bgx.install(app)
    assert len(app.user_middleware) == 1
    assert len(app.router.dependencies) == 1
    for route in app.routes:
        assert len(getattr(route, "dependencies", [None])) == 1, route
    visit(app, "/before", "/between")
    bgx.install(app)  # the same call again: in time, also after the first request
    assert seen == supervised("/before", "/between")


def test_an_application_that_depends_on_it_already(bgx: Bgx, seen: Seen) -> None:
    app = FastAPI(dependencies=[Depends(bgx)])
    define(app, seen, "/before")
    bgx.install(app)
    define(app, seen, "/after")
    assert len(app.router.dependencies) == 1
    visit(app, "/before", "/after")
    assert seen == supervised("/before", "/after")


def test_a_second_bgx_on_one_application_is_an_error(app: FastAPI, bgx: Bgx) -> None:
    bgx.install(app)
    with pytest.raises(AlreadyInstalled, match="another Bgx"):
        Bgx(Settings()).install(app)
    assert len(app.user_middleware) == 1
    assert len(app.router.dependencies) == 1


@pytest.mark.parametrize("by", ["a request", "the lifespan"])
def test_too_late_is_an_error_and_leaves_nothing_half_done(
    app: FastAPI, bgx: Bgx, seen: Seen, by: str
) -> None:
    define(app, seen, "/route")
    with client_of(app, "asyncio") as client:
        if by == "a request":
            client.get("/missing")
    with pytest.raises(AppAlreadyStarted, match="where the app is built"):
        bgx.install(app)
    assert app.user_middleware == []
    assert app.router.dependencies == []
    client_of(app, "asyncio").get("/route")
    assert seen == {"/route": ["stock", "ran"]}


# The routes that are spared the dependency, once the application serves.


def sparing_app(bgx: Bgx, seen: list[Any]) -> FastAPI:
    def asks(tasks: fastapi.BackgroundTasks) -> None:
        seen.append(type(tasks))

    def plain() -> None: ...

    app = FastAPI()

    @app.get("/nobody")
    async def nobody(it: Annotated[None, Depends(plain)]) -> None: ...

    @app.get("/async")
    async def async_route(tasks: fastapi.BackgroundTasks) -> None:
        asks(tasks)

    @app.get("/sync")
    def sync_route(it: Annotated[None, Depends(plain)], tasks: fastapi.BackgroundTasks) -> None:
        asks(tasks)

    @app.get("/depends")
    async def depends(
        tasks: Annotated[Any, Depends(bgx)], same: Tasks, stock: fastapi.BackgroundTasks
    ) -> None:
        asks(stock)

    @app.get("/sub-dependency")
    async def sub_dependency(it: Annotated[None, Depends(asks)]) -> None: ...

    app.get("/partial")(partial(asks))
    bgx.install(app)
    return app


def spared(app: FastAPI, bgx: Bgx) -> list[str]:
    """The paths whose routes need not solve the dependency that was injected."""
    return [
        route.path
        for route in app.routes
        if isinstance(route, APIRoute)
        and not any(each.call is bgx and not each.name for each in route.dependant.dependencies)
    ]


def test_routes_that_can_do_without_are_spared_the_dependency(bgx: Bgx, anyio_backend: str) -> None:
    seen: list[Any] = []
    app = sparing_app(bgx, seen)
    assert spared(app, bgx) == []
    client = client_of(app, anyio_backend)
    for _ in range(2):
        for route in app.routes:
            if isinstance(route, APIRoute):
                assert client.get(route.path).status_code == 200
    assert seen == [BackgroundTasks] * 10
    assert spared(app, bgx) == ["/nobody", "/async", "/sync", "/depends"]
    assert all(route.dependencies for route in app.routes if isinstance(route, APIRoute))


@pytest.mark.parametrize("included", [False, True])
def test_an_override_may_ask_where_nobody_asked(bgx: Bgx, included: bool) -> None:
    given: list[Any] = []

    def nothing() -> None: ...

    def asks(tasks: fastapi.BackgroundTasks) -> None:
        given.append(tasks.add_task(given.append, "ran"))  # type: ignore[func-returns-value]

    app, router = FastAPI(), APIRouter(dependencies=[Depends(nothing)])

    @router.get("/")
    async def route() -> None: ...

    if included:
        app.include_router(router, prefix="/here")
        bgx.install(app)
    else:
        app = FastAPI(dependencies=[Depends(nothing)])
        bgx.install(app)
        app.get("/here/")(route)
    client = client_of(app, "asyncio")
    client.get("/here/")
    app.dependency_overrides[nothing] = asks
    client.get("/here/")
    client.get("/here/")
    app.dependency_overrides = {}
    client.get("/here/")
    app.dependency_overrides[nothing] = asks
    client.get("/here/")
    assert [getattr(each, "status", each) for each in given] == [Status.SUCCEEDED, "ran"] * 3


async def overridden_meanwhile(app: FastAPI, seen: Seen) -> None:
    entered, may_go_on = anyio.Event(), anyio.Event()

    async def wait() -> None:
        entered.set()
        await may_go_on.wait()

    @app.get("/slow", dependencies=[Depends(wait)])
    async def slow(tasks: fastapi.BackgroundTasks) -> None:
        seen["/slow"] = [type(tasks).__module__]

    define(app, seen, "/fast")
    async with anyio.create_task_group() as group:
        group.start_soon(call, app, "/slow")
        await entered.wait()
        app.dependency_overrides[len] = len
        await call(app, "/fast")
        may_go_on.set()
    assert seen == {"/slow": [BackgroundTasks.__module__], "/fast": ["ours", "ran"]}


def test_a_request_that_is_under_way_when_overrides_come(
    app: FastAPI, bgx: Bgx, seen: Seen, anyio_backend: str
) -> None:
    bgx.install(app)
    anyio.run(overridden_meanwhile, app, seen, backend=anyio_backend)


def test_a_request_that_is_under_way_when_overrides_go_solves_each_dependency(
    app: FastAPI, bgx: Bgx, anyio_backend: str
) -> None:
    entered, may_go_on = anyio.Event(), anyio.Event()
    solved: list[str] = []

    async def wait() -> None:
        entered.set()
        await may_go_on.wait()

    async def guard() -> None:
        solved.append("guard")

    @app.get("/slow", dependencies=[Depends(wait), Depends(guard)])
    async def slow() -> None:
        solved.append("route")

    async def go() -> None:
        app.dependency_overrides[len] = len
        async with anyio.create_task_group() as group:
            group.start_soon(call, app, "/slow")
            await entered.wait()
            app.dependency_overrides.clear()
            await call(app, "/missing")
            may_go_on.set()

    bgx.install(app)
    anyio.run(go, backend=anyio_backend)
    assert solved == ["guard", "route"]


def test_routes_that_come_after_the_first_request(app: FastAPI, bgx: Bgx, seen: Seen) -> None:
    define(app, seen, "/before")
    bgx.install(app)
    visit(app, "/before")
    define(app, seen, "/after")
    visit(app, "/after")
    assert seen == supervised("/before", "/after")


@pytest.mark.parametrize("installed", [False, True])
def test_a_router_that_another_application_serves(
    app: FastAPI, bgx: Bgx, anyio_backend: str, installed: bool
) -> None:
    added: list[Any] = []

    @app.get("/sync")
    def sync_route(tasks: fastapi.BackgroundTasks) -> None:
        added.append(tasks.add_task(len, "abc"))  # type: ignore[func-returns-value]

    @app.get("/async")
    async def async_route(tasks: fastapi.BackgroundTasks) -> Response:
        added.append(tasks.add_task(len, "abc"))  # type: ignore[func-returns-value]
        return Response(background=BackgroundTasks() if installed else None)

    bgx.install(app)
    other = FastAPI()
    other.mount("/other", app.router)
    if installed:
        Bgx(Settings()).install(other)

    async def go() -> None:
        await call(app, "/sync")
        for path in ("/other/sync", "/other/async"):
            assert (await call(other, path))[0]["status"] == 200

    anyio.run(go, backend=anyio_backend)
    assert [task.outcome.value for task in added] == [3, 3, 3]
    assert totals(bgx) == 3


def test_the_function_of_a_route_looks_as_before(app: FastAPI, bgx: Bgx) -> None:
    @app.get("/async")
    async def async_route(tasks: fastapi.BackgroundTasks) -> None:
        "What it says."

    @app.get("/sync")
    def sync_route(tasks: fastapi.BackgroundTasks) -> None: ...

    bgx.install(app)
    client_of(app, "asyncio").get("/async")
    for route in app.routes:
        if not isinstance(route, APIRoute):
            continue
        call: Any = route.dependant.call
        assert type(call) is not type(route.endpoint)
        assert inspect.isfunction(call)
        assert inspect.isroutine(call)
        assert inspect.unwrap(call) is route.endpoint
        assert inspect.getsourcefile(call) == __file__
        assert copy.deepcopy(call) is call
        for look in (inspect.iscoroutinefunction, inspect.getsourcelines, inspect.signature):
            assert look(call) == look(route.endpoint), look
        for name in ("__module__", "__name__", "__qualname__", "__doc__", "__code__"):
            assert getattr(call, name) == getattr(route.endpoint, name), name


@pytest.mark.skipif(FASTAPI < (0, 134), reason="FastAPI < 0.134 does not stream from routes")
@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
def test_a_route_that_streams(app: FastAPI, bgx: Bgx, sync: bool) -> None:
    given: list[Any] = []

    @app.get("/async", response_class=StreamingResponse)
    async def async_route(tasks: fastapi.BackgroundTasks) -> AsyncIterator[str]:
        given.append(type(tasks))
        yield "hello"

    @app.get("/sync", response_class=StreamingResponse)
    def sync_route(tasks: fastapi.BackgroundTasks) -> Iterator[str]:
        given.append(type(tasks))
        yield "hello"

    bgx.install(app)
    client = client_of(app, "asyncio")
    for _ in range(2):
        assert client.get("/sync" if sync else "/async").text == "hello"
    assert given == [BackgroundTasks] * 2
    assert spared(app, bgx) == ["/async", "/sync"]


def test_a_spared_route_is_not_told_of_as_uninjected(app: FastAPI, bgx: Bgx) -> None:
    @app.get("/")
    async def route(tasks: BackgroundTasks) -> None: ...

    bgx.install(app)
    client_of(app, "asyncio").get("/")
    with capture_logs() as logs, client_of(app, "asyncio") as client:
        client.get("/")
    assert "bgx.not_injected" not in [log["event"] for log in logs]


# Nothing else changes.


class Item(BaseModel):
    name: str


def documented_app() -> FastAPI:
    app, router = FastAPI(title="Shop", version="1"), APIRouter(prefix="/router", tags=["router"])

    def helper(tasks: fastapi.BackgroundTasks, page: int = 1) -> None: ...

    @app.get("/nothing")
    async def nothing() -> None: ...

    @app.post("/items/{item_id}")
    async def items(item_id: int, item: Item, tasks: fastapi.BackgroundTasks) -> Item:
        return item

    @router.get("/helped", dependencies=[Depends(helper)])
    def helped(tasks: Tasks, q: str = "") -> list[Item]:
        return []

    app.include_router(router)
    return app


@pytest.mark.parametrize("opened_before", [False, True])
def test_nothing_shows_in_the_openapi_document(bgx: Bgx, opened_before: bool) -> None:
    app, stock = documented_app(), documented_app()
    if opened_before:
        app.openapi()
        app.openapi_schema = None
    bgx.install(app)

    @app.get("/after", operation_id="after")
    async def after(tasks: Annotated[Any, Depends(bgx)]) -> Item:
        return Item(name="")

    @stock.get("/after", operation_id="after", name="after")
    async def without() -> Item:
        return Item(name="")

    assert app.openapi() == stock.openapi()
    assert client_of(app, "asyncio").get("/openapi.json").json() == stock.openapi()


def test_lists_that_the_user_passed_are_left_alone(bgx: Bgx, seen: Seen) -> None:
    def nothing() -> None: ...

    dependencies = [Depends(nothing)]
    app = FastAPI(dependencies=dependencies)
    router = APIRouter(dependencies=dependencies)
    define(router, seen, "/route")
    app.include_router(router, dependencies=dependencies)
    app.get("/", dependencies=dependencies)(nothing)
    bgx.install(app)
    assert len(dependencies) == 1
    assert len(router.dependencies) == 1
    visit(app, "/route")
    assert seen == supervised("/route")


NO_MONKEYPATCHING = """
import sys
import fastapi, fastapi.testclient, fastapi.concurrency, starlette.applications

theirs = [name for name in sys.modules if name.partition(".")[0] in ("fastapi", "starlette")]

def everything():
    found = {}
    for name in theirs:
        for attribute, value in list(vars(sys.modules[name]).items()):
            found[name, attribute] = value
            if isinstance(value, type) and value.__module__ in theirs:
                found.update({(name, attribute, key): it for key, it in vars(value).items()})
    return {key: it for key, it in found.items() if type(it) is not type(sys)}

before = everything()
from fastapi_bgx import Bgx, Settings
app = fastapi.FastAPI()

@app.get("/")
def route(tasks: fastapi.BackgroundTasks):
    tasks.add_task(print, end="")

Bgx(Settings(log_events=[])).install(app)
with fastapi.testclient.TestClient(app) as client:
    client.get("/")
after = everything()
changed = {key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)}
caches = {"__slotnames__", "__annotations__", "__annotations_cache__"}  # of Python itself
print([key for key in changed if key[-1] not in caches])
"""


def test_no_attribute_of_fastapi_or_starlette_is_added_or_replaced() -> None:
    command = [sys.executable, "-W", "ignore", "-c", NO_MONKEYPATCHING]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
