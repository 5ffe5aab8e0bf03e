"""Everybody can read and use every page: axe finds nothing, nothing scrolls sideways."""

from collections.abc import Callable

import pytest

from fastapi_bgx.outcome import Status
from tests.browser.chromium import expect
from tests.browser.pages import PAGES, path_of
from tests.browser.serving import Served, empty_scene
from tests.browser.tab import Tab

Opening = Callable[..., Tab]
DESK = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
SMALLEST = {"width": 360, "height": 640}


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    served: Served, opening: Opening, scheme: str, size: dict[str, int]
) -> None:
    tab = opening(served, None, color_scheme=scheme, viewport=size)
    for page in PAGES:
        tab.open(path_of(page, served.scene))
        unfold(tab)
        assert tab.violations() == [], page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_where_there_is_nothing_or_an_error(
    serving: Callable[..., Served], opening: Opening, scheme: str
) -> None:
    served = serving(scene=empty_scene())
    tab = opening(served, None, color_scheme=scheme)
    for page in ("/", "/ui/tasks", "/ui/failures", "/ui/now"):
        tab.open(page)
        assert tab.violations() == [], page
    for page, status in (("/ui/tasks/nobody-1", 404), ("/ui/tasks?cursor=nonsense", 422)):
        tab.open(page, status)
        assert tab.violations() == [], page


def test_nothing_scrolls_sideways_on_a_small_phone(served: Served, opening: Opening) -> None:
    tab = opening(served, None, viewport=SMALLEST, is_mobile=True, has_touch=True)
    for page in PAGES:
        tab.open(path_of(page, served.scene))
        unfold(tab)
        assert tab.overflow() == [], page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_a_dialog(served: Served, opening: Opening, scheme: str) -> None:
    tab = opening(served, "/ui/tasks", color_scheme=scheme, viewport=PHONE)
    running = served.scene.first(Status.RUNNING)
    tab.page.get_by_role("checkbox", name=running.id).check()
    tab.page.get_by_role("button", name="Cancel…").click()
    dialog = tab.page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name="Cancel 1 task?")).to_be_visible()
    assert tab.violations() == []
    assert tab.overflow() == []
    dialog.get_by_role("button", name="Cancel 1 task").click()
    expect(dialog.get_by_text("1 task asked to stop.")).to_be_visible()
    assert tab.violations() == []


@pytest.mark.parametrize(("scheme", "other"), [("light", "Dark"), ("dark", "Light")])
def test_the_other_theme_is_remembered(
    served: Served, opening: Opening, scheme: str, other: str
) -> None:
    tab = opening(served, "/", color_scheme=scheme)
    shade = "getComputedStyle(document.body).backgroundColor"
    before = tab.page.evaluate(shade)
    tab.page.get_by_role("button", name=other, exact=True).click()
    chosen = tab.page.evaluate(shade)
    assert chosen != before
    tab.open("/ui/tasks")
    assert tab.page.evaluate(shade) == chosen
    tab.page.reload()
    assert tab.page.evaluate(shade) == chosen


def unfold(tab: Tab) -> None:
    """Open all that can be folded out."""
    tab.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
