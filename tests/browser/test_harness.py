"""The tests of this directory see what they promise to see, and need what they say."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from tests.browser import chromium
from tests.browser.serving import Served
from tests.browser.tab import Tab

HEAD = "<!doctype html><html lang=en><title>A page</title><link rel=icon href='data:,'>"
STRICT = {"Content-Security-Policy": "default-src 'none'; img-src * data:"}
FAULTS = {
    "<script>alert(1)</script>": "Content Security Policy",
    "<body style='color: red'>": "Content Security Policy",
    "<img src='http://localhost:9/there.png' alt=''>": "request to another host",
    "<img src='/nothing.png' alt=''>": "404",
}


def faulty(body: str, headers: dict[str, str] = STRICT) -> Callable[[FastAPI], None]:
    def extend(app: FastAPI) -> None:
        @app.get("/faulty")
        def page() -> HTMLResponse:
            return HTMLResponse(HEAD + body, headers=headers)

    return extend


def visit(tab: Tab, served: Served) -> None:
    tab.page.goto(served.host + "/faulty")
    tab.page.wait_for_load_state("networkidle")


@pytest.mark.parametrize(("body", "complaint"), FAULTS.items())
def test_what_is_wrong_with_a_page_is_a_complaint(
    opening: Callable[..., Tab], serving: Callable[..., Served], body: str, complaint: str
) -> None:
    served = serving(extend=faulty(body))
    tab = opening(served, None)
    visit(tab, served)
    assert any(complaint in line for line in tab.complaints), tab.console
    tab.complaints.clear()


def test_an_error_in_a_script_is_a_complaint(
    opening: Callable[..., Tab], serving: Callable[..., Served]
) -> None:
    served = serving(extend=faulty("<script>nobody.there()</script>", {}))
    tab = opening(served, None)
    visit(tab, served)
    assert any("nobody is not defined" in line for line in tab.complaints), tab.console
    tab.complaints.clear()


def test_axe_and_the_width_are_looked_at(
    opening: Callable[..., Tab], serving: Callable[..., Served]
) -> None:
    wide = f"<main><h1>Wide</h1><img src='data:,'><pre>{'x' * 500}</pre></main>"
    served = serving(extend=faulty(wide))
    tab = opening(served, None, viewport={"width": 360, "height": 700})
    visit(tab, served)
    assert any(line.startswith("image-alt") for line in tab.violations())
    assert tab.overflow()


def test_a_failed_test_reports_the_console_and_a_picture(
    opening: Callable[..., Tab], serving: Callable[..., Served], tmp_path: Path
) -> None:
    served = serving(extend=faulty("<script>nobody.there()</script>", {}))
    tab = opening(served, None)
    visit(tab, served)
    report = tab.report(tmp_path)
    tab.complaints.clear()
    assert "nobody is not defined" in report
    (picture,) = tmp_path.glob("*.png")
    assert str(picture) in report


def test_without_a_chromium_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert chromium.find() is None


@pytest.mark.parametrize(("no_skips", "raised"), [("", pytest.skip.Exception), ("1", ImportError)])
def test_without_playwright_the_tests_are_skipped_unless_nothing_may_be(
    monkeypatch: pytest.MonkeyPatch, no_skips: str, raised: type[BaseException]
) -> None:
    monkeypatch.setenv("CI_NO_SKIP", no_skips)
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    monkeypatch.delitem(sys.modules, "tests.browser.chromium")
    with pytest.raises(raised, match="playwright"):
        importlib.import_module("tests.browser.chromium")
