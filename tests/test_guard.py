"""Who gets in, what a page of another site can have a browser do, and what browsers are told."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from fastapi_bgx.console import Console
from fastapi_bgx.dashboard import make_router
from fastapi_bgx.dashboard.guard import HEADERS, guarded_route, is_forged
from fastapi_bgx.errors import Unguarded
from fastapi_bgx.records import Answer
from fastapi_bgx.stores import MemoryStore
from tests.asgi import client_of
from tests.consoles import StandIn, api, record, store_with

PROBLEM = "application/problem+json"
CANCEL = "/bgx/tasks/p-1/cancel"


async def nobody() -> None:
    raise HTTPException(401, "who are you?", headers={"WWW-Authenticate": "Basic"})


def cancelling() -> StandIn:
    return StandIn(p_1=Answer(done=True))


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every path and method of the router, also those that are not in the document."""
    router = make_router(Console(MemoryStore(), StandIn()), public=True)
    for route in router.routes:
        assert isinstance(route, fastapi.routing.APIRoute)
        assert route.methods
        for method in route.methods:
            yield method, "/bgx" + route.path.replace("{", "").replace("}", "")


# Who gets in.


def test_a_router_without_a_guard_is_refused() -> None:
    with pytest.raises(Unguarded, match="public=True"):
        make_router(Console(MemoryStore(), StandIn()))


def test_the_api_is_there_without_the_pages() -> None:
    client = client_of(api(dashboard=False), "asyncio")
    assert client.get("/bgx/tasks").status_code == 200
    assert client.get("/bgx/").status_code == 404


def test_every_route_stands_behind_the_dependencies(anyio_backend: str) -> None:
    app = api(dependencies=[nobody])
    client = client_of(app, anyio_backend)
    tried = list(routes(app))
    assert ("GET", "/bgx/events") in tried
    for method, path in tried:
        answer = client.request(method, path)
        assert answer.status_code == 401, path
        assert answer.json() == {"detail": "who are you?"}
        assert answer.headers["www-authenticate"] == "Basic"


def test_what_a_dependency_raises_is_answered_by_the_application() -> None:
    class Stranger(Exception): ...

    async def raises() -> None:
        raise Stranger

    app = api(dependencies=[raises])

    @app.exception_handler(Stranger)
    async def answer(request: Request, error: Exception) -> Response:
        return PlainTextResponse("go away", 418)

    answered = client_of(app, "asyncio").get("/bgx/tasks")
    assert (answered.status_code, answered.text) == (418, "go away")
    assert answered.headers["cache-control"] == "no-store"


def test_a_wrong_id_tells_a_stranger_nothing() -> None:
    client = client_of(api(store_with(record(1)), dependencies=[nobody]), "asyncio")
    assert client.get("/bgx/tasks/p-1").content == client.get("/bgx/tasks/%00").content


def test_what_a_dependency_needs_and_does_not_get_is_a_problem() -> None:
    async def key(x_key: Annotated[str, Header()]) -> None: ...

    answer = client_of(api(dependencies=[key]), "asyncio").get("/bgx/tasks")
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    assert answer.json()["errors"][0]["place"] == "header"


def test_a_dependency_with_a_yield_ends_as_it_should() -> None:
    ended: list[str] = []

    async def session() -> AsyncIterator[None]:
        yield
        ended.append("session")

    client = client_of(api(store_with(record(1)), dependencies=[session]), "asyncio")
    assert client.get("/bgx/tasks/p-1").status_code == 200
    assert ended == ["session"]


def test_a_router_in_a_router_is_guarded_as_well() -> None:
    router = make_router(Console(MemoryStore(), StandIn()), dependencies=[Depends(nobody)])
    outer = APIRouter()
    outer.include_router(router, prefix="/inner")
    app = FastAPI()
    app.include_router(outer, prefix="/outer")
    client = client_of(app, "asyncio")
    assert client.get("/outer/inner/tasks").status_code == 401
    forged = client.post("/outer/inner/tasks/1/cancel", headers={"Origin": "https://evil.example"})
    assert forged.status_code == 403
    assert forged.headers["x-content-type-options"] == "nosniff"


# What other sites can do.


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"},
        {"Sec-Fetch-Site": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://testserver.evil.example"},
        {"Origin": "http://testserver:8080"},
        {"Origin": "http://testserver/"},
        {"Origin": "http://user@testserver"},
        {"Origin": "http://testserver:x"},
        {"Origin": "http://["},
        {"Origin": "file://testserver"},
        {"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example"},
    ],
)
def test_what_a_page_of_another_site_sends_is_refused(headers: dict[str, str]) -> None:
    control = cancelling()
    answer = client_of(api(control=control), "asyncio").post(CANCEL, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (403, PROBLEM)
    assert "trusted_origins" in answer.json()["detail"]
    assert control.asked == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://testserver"},
        {"Origin": "HTTP://TESTSERVER"},
        {"Origin": "http://testserver:80"},
        {"Origin": "https://testserver"},  # a proxy speaks HTTPS, and HTTP to us
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://public.example"},  # Host rewritten
    ],
)
def test_what_our_own_pages_and_no_browser_send_is_done(headers: dict[str, str]) -> None:
    control = cancelling()
    answer = client_of(api(control=control), "asyncio").post(CANCEL, headers=headers)
    assert answer.status_code == 200
    assert control.asked == [("cancel", "p-1")]


def test_a_page_that_was_not_sent_encrypted_is_another_origin() -> None:
    client = client_of(api(control=cancelling()), "asyncio", base_url="https://testserver")
    assert client.post(CANCEL, headers={"Origin": "http://testserver"}).status_code == 403
    assert client.post(CANCEL, headers={"Origin": "https://testserver"}).status_code == 200


def test_a_trusted_origin_may_send(anyio_backend: str) -> None:
    app = api(control=cancelling(), trusted_origins=["https://Ops.example:443", "http://[::1]:90"])
    client = client_of(app, anyio_backend)
    for origin in ("https://ops.example", "http://[::1]:90"):
        headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        assert client.post(CANCEL, headers=headers).status_code == 200
    assert client.post(CANCEL, headers={"Origin": "http://ops.example"}).status_code == 403


@pytest.mark.parametrize("origin", ["ops.example", "*", "https://ops.example/x", "ftp://a", ""])
def test_a_trusted_origin_that_is_none_is_refused_at_once(origin: str) -> None:
    with pytest.raises(ValueError, match="is written https://"):
        guarded_route([origin])


def test_a_request_without_a_host_is_nobodys_own() -> None:
    scope: Any = {
        "type": "http",
        "method": "POST",
        "headers": [(b"origin", b"http://a")],
        "server": ("a", 80),
        "path": "/",
        "query_string": b"",
        "scheme": "http",
    }
    assert is_forged(Request(scope), ())


def test_looking_is_allowed_from_everywhere_and_read_by_nobody_else() -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    answer = client_of(api(), "asyncio").get("/bgx/tasks", headers=headers)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


# What browsers are told.


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/bgx/tasks"), ("GET", "/bgx/tasks/p-9"), ("GET", "/bgx/tasks?limit=x")],
)
def test_every_answer_has_the_headers(method: str, path: str, anyio_backend: str) -> None:
    answer = client_of(api(), anyio_backend).request(method, path)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS


def test_a_route_may_say_for_itself_how_long_it_is_kept() -> None:
    router = APIRouter(route_class=guarded_route())

    @router.get("/static")
    async def static() -> Response:
        return PlainTextResponse("x", headers={"Cache-Control": "private, immutable"})

    app = FastAPI()
    app.include_router(router)
    answer = client_of(app, "asyncio").get("/static")
    assert answer.headers.get_list("cache-control") == ["private, immutable"]


def test_the_policy_allows_no_inline_code() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
