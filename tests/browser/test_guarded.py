"""Nobody who has not logged in sees or changes anything, and no other site does it for them."""

from collections.abc import Callable
from typing import Annotated

import httpx
import pytest
from fastapi import Cookie, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from starlette.routing import Route

from fastapi_bgx.outcome import Status
from tests.browser.chromium import expect
from tests.browser.pages import PAGES, path_of
from tests.browser.serving import PREFIX, Served
from tests.browser.tab import Tab

Opening = Callable[..., Tab]
Serving = Callable[..., Served]
SESSION = "the-one-and-only"


def logged_in(session: Annotated[str | None, Cookie()] = None) -> None:
    if session != SESSION:
        raise HTTPException(401)


def with_login(app: FastAPI) -> None:
    @app.get("/login")
    def login(request: Request, response: Response) -> str:
        """The least careful cookie that a browser takes."""
        if request.url.hostname == "127.0.0.1":
            response.set_cookie("session", SESSION, samesite="none", secure=True)
        else:
            response.set_cookie("session", SESSION)
        return "welcome"


def filled(route: Route, scene_id: str) -> str:
    return route.path.replace("{task_id}", scene_id).replace("{name}", "style.css")


@pytest.fixture
def guarded(serving: Serving) -> Served:
    return serving(dependencies=[Depends(logged_in)], extend=with_login)


def log_in(opening: Opening, guarded: Served, host: str = "127.0.0.1") -> Tab:
    tab = opening(guarded, None, host)
    tab.expects("favicon")
    tab.page.goto(guarded.at(host).removesuffix(PREFIX) + "/login")
    return tab


def test_no_route_answers_without_the_cookie(guarded: Served) -> None:
    task_id = guarded.scene.first(Status.RUNNING).id
    with httpx.Client(base_url=guarded.url, trust_env=False) as client:
        answers = {
            f"{method} {route.path}": client.request(method, filled(route, task_id)).status_code
            for route in guarded.routes
            for method in route.methods or ()
        }
    assert len(answers) > 10
    assert set(answers.values()) == {401}, answers
    assert guarded.scene.control.asked == []


def test_nothing_that_a_page_asks_for_answers_without_the_cookie(
    guarded: Served, opening: Opening
) -> None:
    tab = log_in(opening, guarded)
    for page in PAGES:
        tab.open(path_of(page, guarded.scene))
        expect(tab.page.get_by_role("heading", level=1)).to_be_visible()
    asked = {url for url in tab.requests if url.startswith(guarded.url)}
    assert any("/static/" in url for url in asked)
    assert any("/events" in url for url in asked)
    with httpx.Client(trust_env=False) as client:
        answers = {url: client.get(url).status_code for url in asked}
    assert set(answers.values()) == {401}, answers


FORMS = {
    "page": "<form method=post action='{url}/ui/actions'>"
    "<input name=action value=cancel><input name=id value='{id}'><input name=next value='/'>"
    "<button>Win a prize</button></form>",
    "api": "<form method=post action='{url}/tasks/{id}/cancel'><button>Win a prize</button></form>",
    "plain": "<form method=post action='{url}/ui/actions' enctype=text/plain>"
    "<input name='action=cancel&id={id}&next=' value=/><button>Win a prize</button></form>",
}


@pytest.mark.parametrize(
    ("here", "elsewhere"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("shop.test", "evil.shop.test")],
)
@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_another_site_changes_nothing(
    guarded: Served, serving: Serving, opening: Opening, form: str, here: str, elsewhere: str
) -> None:
    """Another port is another origin of the same site; `localhost` is another site.

    The cookie goes with each request. To `shop.test`, which is plain HTTP and not this machine as
    far as the browser knows, it sends no `Sec-Fetch-Site`.
    """
    task_id = guarded.scene.first(Status.RUNNING).id
    trap = FORMS[form].format(url=guarded.at(here), id=task_id)
    evil = serving(extend=lambda app: set_trap(app, trap))
    tab = log_in(opening, guarded, here)
    tab.expects("status of 403|another host|Cross-Origin-Opener-Policy")
    tab.page.goto(evil.at(elsewhere).removesuffix(PREFIX) + "/prize")
    with tab.page.expect_navigation() as navigation:
        tab.page.get_by_role("button").click()
    assert navigation.value is not None
    sent = navigation.value.request.all_headers()
    assert SESSION in sent.get("cookie", ""), "the trap was harmless anyway"
    assert ("sec-fetch-site" in sent) == (here == "127.0.0.1")
    assert navigation.value.status == 403
    assert guarded.scene.control.asked == []


def set_trap(app: FastAPI, trap: str) -> None:
    @app.get("/prize")
    def prize() -> HTMLResponse:
        page = f"<!doctype html><link rel=icon href='data:,'><title>You won</title>{trap}"
        return HTMLResponse(page)


def test_a_page_cannot_be_framed_by_another_site(
    guarded: Served, serving: Serving, opening: Opening
) -> None:
    frame = f"<iframe src='{guarded.url}/'></iframe>"
    evil = serving(extend=lambda app: set_trap(app, frame))
    tab = log_in(opening, guarded)
    tab.expects("another host|frame-ancestors|ERR_BLOCKED|Frame")
    tab.page.goto(evil.host + "/prize")
    framed = tab.page.frames[1]
    assert "tasks" not in framed.content().lower()
