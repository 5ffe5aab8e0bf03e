"""The status of one task, behind a URL that only the application can make."""

from typing import Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from pydantic import SecretStr

from fastapi_bgx import Bgx, Settings, SettingsError, Tasks
from fastapi_bgx.console import Console
from fastapi_bgx.dashboard import make_status_router
from fastapi_bgx.dashboard.models import TaskStatus
from fastapi_bgx.errors import NoRequest, NoStatusRoute, SecretNeeded
from fastapi_bgx.outcome import Status
from fastapi_bgx.stores import MemoryStore
from fastapi_bgx.tokens import Tokens
from tests.asgi import client_of
from tests.consoles import StandIn, every_status, record, store_with

SECRET = SecretStr("a secret of some length")
TOKENS = Tokens(SECRET)


def status_app(store: MemoryStore, tokens: Tokens = TOKENS, **options: Any) -> FastAPI:
    app = FastAPI()
    console = Console(store, StandIn())
    app.include_router(make_status_router(console.get, tokens, **options), prefix="/status")
    return app


# The token.


def test_a_token_leads_to_its_task_and_no_other() -> None:
    assert TOKENS.task_id(TOKENS.token("p-1")) == "p-1"
    one, two = TOKENS.token("p-1"), TOKENS.token("p-2")
    assert TOKENS.task_id("p-2." + one.partition(".")[2]) is None
    assert one.partition(".")[2] != two.partition(".")[2]


@pytest.mark.parametrize("token", ["", ".", "p-1", "p-1.", "p-1.é", "p-1.x.y", "☃.☃"])
def test_what_was_not_signed_is_no_token(token: str) -> None:
    assert TOKENS.task_id(token) is None


def test_a_changed_token_is_none() -> None:
    token = TOKENS.token("p-1")
    last = "A" if token[-1] != "A" else "E"
    assert TOKENS.task_id(token[:-1] + last) is None
    assert TOKENS.task_id(token[:-1]) is None
    assert TOKENS.task_id(token + "=") is None


def test_processes_with_one_secret_know_each_others_tokens() -> None:
    assert Tokens(SECRET).token("p-1") == TOKENS.token("p-1")
    assert Tokens(None).task_id(TOKENS.token("p-1")) is None
    assert Tokens(None).token("p-1") != Tokens(None).token("p-1")


@pytest.mark.parametrize("secret", ["too short", 12345678901234567890])
def test_a_secret_that_is_none_is_refused_and_not_repeated(secret: Any) -> None:
    with pytest.raises(SettingsError, match="BGX_SECRET") as refused:
        Settings(secret=secret)
    assert str(secret) not in str(refused.value)


def test_a_secret_is_read_from_the_environment_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BGX_SECRET", "from the environment")
    settings = Settings()
    assert settings.secret is not None
    assert settings.secret.get_secret_value() == "from the environment"
    assert "from the environment" not in repr(settings)


# What a user is told.


def test_a_user_is_told_how_far_the_task_is_and_nothing_else(anyio_backend: str) -> None:
    store = store_with(record(1, Status.FAILED, progress=0.5, note="half of it", attempts=3))
    answer = client_of(status_app(store), anyio_backend).get(f"/status/{TOKENS.token('p-1')}")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "failed",
        "done": True,
        "attempt": 1,
        "attempts": 3,
        "progress": 0.5,
        "note": "half of it",
        "added_at": "2026-03-01T12:00:01Z",
        "started_at": "2026-03-01T12:00:02Z",
        "ended_at": "2026-03-01T12:00:03Z",
    }
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("task", every_status(), ids=lambda task: str(task.status))
def test_it_is_done_when_it_has_ended(task: Any) -> None:
    client = client_of(status_app(store_with(task)), "asyncio")
    told = TaskStatus.model_validate(client.get(f"/status/{TOKENS.token(task.id)}").json())
    assert (told.status, told.done) == (task.status, task.status.final)


def test_the_value_is_told_when_the_application_says_so() -> None:
    store = store_with(record(1, value='{"rows": 3}'))
    client = client_of(status_app(store, value=True), "asyncio")
    assert client.get(f"/status/{TOKENS.token('p-1')}").json()["value"] == '{"rows": 3}'


@pytest.mark.parametrize("token", ["p-1", "p-1.x", Tokens(None).token("p-1"), TOKENS.token("p-9")])
def test_a_wrong_token_and_a_task_that_is_gone_look_the_same(token: str) -> None:
    answer = client_of(status_app(store_with(record(1))), "asyncio").get(f"/status/{token}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "there is no such task, or it is kept no longer"


def test_the_store_is_not_asked_for_a_wrong_token() -> None:
    asked: list[str] = []

    async def get(task_id: str) -> None:
        asked.append(task_id)

    app = FastAPI()
    app.include_router(make_status_router(get, TOKENS))
    client = client_of(app, "asyncio")
    client.get("/p-1.forged")
    assert asked == []
    client.get(f"/{TOKENS.token('p-1')}")
    assert asked == ["p-1"]


def test_an_application_may_guard_it_as_well() -> None:
    async def nobody() -> None:
        raise HTTPException(401)

    app = status_app(store_with(record(1)), dependencies=[Depends(nobody)])
    client = client_of(app, "asyncio")
    assert client.get(f"/status/{TOKENS.token('p-1')}").status_code == 401


# The URL.


async def export(rows: int) -> str:
    return f"{rows} rows"


def shop(bgx: Bgx, **include: Any) -> FastAPI:
    """An application that gives its users a URL for what they started."""
    app = FastAPI()
    bgx.install(app)

    @app.post("/exports")
    async def start(tasks: Tasks) -> str:
        return bgx.status_url(tasks.add_task(export, 3))

    @app.post("/sync")
    def start_in_thread(tasks: Tasks) -> str:
        return bgx.status_url(tasks.add_task(export, 3).id)

    app.include_router(bgx.status_router(value=True), **include)
    return app


@pytest.mark.parametrize("route", ["/exports", "/sync"])
def test_a_route_gives_its_user_the_url_of_the_task(route: str, anyio_backend: str) -> None:
    with client_of(shop(Bgx(), prefix="/my/exports"), anyio_backend) as client:
        url = client.post(route).json()
        assert url.startswith("/my/exports/")
        answer = client.get(url).json()
    assert (answer["status"], answer["value"]) == ("succeeded", '"3 rows"')


def test_a_root_path_is_part_of_the_url() -> None:
    app = shop(Bgx(), prefix="/status")
    with client_of(app, "asyncio", root_path="/api") as client:
        assert client.post("/exports").json().startswith("/api/status/")


def test_a_mounted_application_finds_its_own_route() -> None:
    app = FastAPI()
    app.mount("/shop", shop(Bgx(), prefix="/status"))
    client = client_of(app, "asyncio")
    url = client.post("/shop/exports").json()
    assert url.startswith("/shop/status/")
    assert client.get(url).json()["status"] == "succeeded"


def test_a_router_in_a_router_is_found() -> None:
    app, bgx, outer = FastAPI(), Bgx(), APIRouter()
    outer.include_router(bgx.status_router(), prefix="/inner")
    app.include_router(outer, prefix="/outer")

    @app.get("/")
    async def url(request: Request) -> str:
        return bgx.status_url("p-1", request)

    assert client_of(app, "asyncio").get("/").json().startswith("/outer/inner/p-1.")


def test_without_the_router_there_is_no_url() -> None:
    app, bgx = FastAPI(), Bgx()
    bgx.install(app)

    @app.get("/")
    async def url() -> str:
        return bgx.status_url("p-1")

    with pytest.raises(NoStatusRoute, match="include_router"):
        client_of(app, "asyncio").get("/")


def test_outside_of_a_request_nobody_knows_where_the_route_is() -> None:
    with pytest.raises(NoRequest, match=r"status_url\(task, request\)"):
        Bgx().status_url("p-1")


def test_a_task_that_outlives_its_request_cannot_make_a_url() -> None:
    app, bgx = FastAPI(), Bgx()
    bgx.install(app)
    app.include_router(bgx.status_router(), prefix="/status")
    raised: list[BaseException | None] = []
    release: list[anyio.Event] = []

    async def too_late() -> None:
        await release[0].wait()
        bgx.status_url("p-1")

    @bgx.on_failure
    def failed(task: Any, outcome: Any) -> None:
        raised.append(outcome.error)

    @app.get("/later")
    async def later(tasks: Tasks) -> None:
        release.append(anyio.Event())
        tasks.using(detached=True).add_task(too_late)

    @app.get("/release")
    async def release_it() -> None:
        release[0].set()

    with client_of(app, "asyncio") as client:
        client.get("/later")
        client.get("/release")
    assert isinstance(raised[0], NoRequest)


def test_a_shared_store_needs_a_secret_that_all_processes_know() -> None:
    class Shared(MemoryStore):
        shared = True

    for secret in (None, SECRET):
        bgx = Bgx(Settings(secret=secret))
        bgx.recorder.store = Shared()
        if secret is not None:
            assert bgx.status_router()
            continue
        with pytest.raises(SecretNeeded, match="BGX_SECRET"):
            bgx.status_router()
        with pytest.raises(SecretNeeded, match="token_urlsafe"):
            bgx.status_url("p-1", Request({"type": "http"}))
