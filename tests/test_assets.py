"""Static files: kept by browsers for as long as they stay the same, and all of them ours."""

import re
from importlib.resources import files
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient

from fastapi_bgx.dashboard import make_router
from fastapi_bgx.dashboard.assets import FOREVER, Assets
from tests.browser.scene import Scene

STATIC = files("fastapi_bgx.dashboard").joinpath("static")


def client(*dependencies: Any) -> TestClient:
    app = FastAPI()
    router = make_router(Scene(ended=3).console, dependencies=dependencies, public=True)
    app.include_router(router, prefix="/ops")
    return TestClient(app)


def test_a_url_with_the_hash_of_a_file_is_kept_for_good() -> None:
    url = Assets().url("app.css")
    assert re.fullmatch(r"static/app\.[0-9a-f]{12}\.css", url)
    answer = client().get(f"/ops/{url}")
    assert answer.headers["cache-control"] == FOREVER
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.content == STATIC.joinpath("app.css").read_bytes()


@pytest.mark.parametrize("name", ["app.css", "app.0123456789ab.css"])
def test_another_hash_or_none_gets_the_file_of_now_and_is_asked_for_again(name: str) -> None:
    answer = client().get(f"/ops/static/{name}")
    assert answer.content == STATIC.joinpath("app.css").read_bytes()
    assert answer.headers["cache-control"] == "private, no-cache"


def test_a_file_that_did_not_change_is_not_sent_again() -> None:
    browser = client()
    tag = browser.get("/ops/static/app.js").headers["etag"]
    again = browser.get("/ops/static/app.js", headers={"If-None-Match": f"W/{tag}"})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag


@pytest.mark.parametrize("name", ["nothing.js", "LICENSE", "..%2fpages.py", "%2e%2e", "app.x.css"])
def test_nothing_but_the_files_is_served(name: str) -> None:
    assert client().get(f"/ops/static/{name}").status_code == 404


def test_static_files_stand_behind_the_guard() -> None:
    def nobody() -> None:
        raise HTTPException(401)

    guarded = client(Depends(nobody))
    assert guarded.get(f"/ops/{Assets().url('app.js')}").status_code == 401


def test_what_others_wrote_has_its_licence_beside_it() -> None:
    for folder in STATIC.joinpath("vendor").iterdir():
        assert folder.joinpath("LICENSE").is_file(), folder.name


def test_own_code_makes_no_html_of_strings_and_asks_nobody_else() -> None:
    for name in ("app.js", "app.css"):
        text = STATIC.joinpath(name).read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "Function(", "://"):
            assert word not in text, f"{name} has {word}"
