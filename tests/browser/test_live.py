"""An open page follows what happens, never under the hands of whoever works with it."""

from collections.abc import Callable

import pytest

from fastapi_bgx.outcome import Status
from tests.browser.chromium import expect
from tests.browser.scene import Scene
from tests.browser.serving import Served
from tests.browser.tab import Tab

Opening = Callable[..., Tab]
LONG = 15_000
"""Milliseconds; on a busy machine a page may be slow to hear of something."""
LOST = "ERR_|Failed to load resource|fetch"
"""What the browser's console says of a server that is gone."""


def test_a_task_that_is_added_and_ends_is_seen_to_do_so(served: Served, opening: Opening) -> None:
    tab = opening(served, "/ui/tasks")
    added = served.scene.add("send_sms")
    row = tab.page.get_by_role("row").filter(has_text=added.id)
    expect(row).to_contain_text("running", timeout=LONG)
    served.scene.end(added.id)
    expect(row).to_contain_text("succeeded", timeout=LONG)


@pytest.mark.parametrize("path", ["/", "/ui/failures", "/ui/now"])
def test_other_pages_follow_too(served: Served, opening: Opening, path: str) -> None:
    tab = opening(served, path)
    main = tab.page.get_by_role("main")
    before = main.inner_text()
    running = served.scene.first(Status.RUNNING, "count_stock")
    served.scene.change(running.id, error_type="Meltdown", fingerprint="new")
    served.scene.end(running.id, Status.FAILED)
    words = "Meltdown" if path != "/ui/now" else None
    if words:
        expect(main).to_contain_text(words, timeout=LONG)
    else:
        expect(main).not_to_contain_text(running.id, timeout=LONG)
    assert main.inner_text() != before


def test_the_page_of_a_task_follows_it(served: Served, opening: Opening) -> None:
    running = served.scene.first(Status.RUNNING, "build_export")
    tab = opening(served, f"/ui/tasks/{running.id}")
    served.scene.change(running.id, progress=0.77, note="nearly there")
    expect(tab.page.get_by_text("nearly there")).to_be_visible(timeout=LONG)
    served.scene.end(running.id)
    expect(tab.page.locator("main .badge").first).to_have_text("succeeded", timeout=LONG)


def test_a_selection_the_focus_and_the_place_stay(served: Served, opening: Opening) -> None:
    tab = opening(served, "/ui/tasks")
    page = tab.page
    running = served.scene.first(Status.RUNNING, "build_export")
    box = page.get_by_role("checkbox", name=running.id)
    box.check()
    box.focus()
    top = box.bounding_box()
    served.scene.change(running.id, progress=0.93, note="nearly there")
    newer = [served.scene.add().id for _ in range(5)]
    expect(page.get_by_text("nearly there").first).to_be_visible(timeout=LONG)
    expect(box).to_be_checked()
    expect(box).to_be_focused()
    assert box.bounding_box() == top, "the row moved under the hands"
    expect(page.get_by_text("1 selected")).to_be_visible()
    box.uncheck()
    box.blur()
    expect(page.get_by_text(newer[-1])).to_be_visible(timeout=LONG)


def test_words_that_are_being_typed_stay(served: Served, opening: Opening) -> None:
    tab = opening(served, "/ui/tasks")
    text = tab.page.get_by_role("searchbox", name="Text")
    text.press_sequentially("receipt", delay=20)
    tab.until(lambda: "text=receipt" in tab.page.url, "the filter is not in the address")
    added = served.scene.add("send_receipt")
    expect(tab.page.get_by_text(added.id)).to_be_visible(timeout=LONG)
    expect(text).to_be_focused()
    expect(text).to_have_value("receipt")
    other = served.scene.add("send_sms")
    one_more = served.scene.add("send_receipt")
    expect(tab.page.get_by_text(one_more.id)).to_be_visible(timeout=LONG)
    expect(tab.page.get_by_text(other.id)).not_to_be_attached()


def test_a_table_that_was_opened_stays_open(served: Served, opening: Opening) -> None:
    tab = opening(served, "/")
    tab.page.get_by_text("As a table").first.click()
    running = served.scene.first(Status.RUNNING, "count_stock")
    served.scene.change(running.id, error_type="Meltdown", fingerprint="new")
    served.scene.end(running.id, Status.FAILED)
    expect(tab.page.get_by_role("main")).to_contain_text("Meltdown", timeout=LONG)
    expect(tab.page.get_by_role("table", name="Ended tasks")).to_be_visible()
    expect(tab.page.locator(".plot canvas")).to_have_count(2)


def test_a_page_that_is_paused_waits(served: Served, opening: Opening) -> None:
    tab = opening(served, "/ui/tasks")
    tab.page.get_by_role("button", name="Pause").click()
    expect(tab.page.get_by_text("Paused")).to_be_visible()
    before = len(tab.requests)
    added = served.scene.add()
    tab.page.wait_for_timeout(2_500)
    assert tab.page.get_by_text(added.id).count() == 0
    assert tab.requests[before:] == []
    tab.page.get_by_role("button", name="Go on").click()
    expect(tab.page.get_by_text(added.id)).to_be_visible(timeout=LONG)
    expect(tab.page.get_by_role("status").filter(has_text="Live")).to_be_visible()


def test_a_page_goes_on_after_its_server_was_restarted(served: Served, opening: Opening) -> None:
    tab = opening(served, "/ui/tasks")
    link = tab.page.locator("#link")
    expect(link).to_have_text("Live")
    tab.expects(LOST)
    served.stop()
    expect(link).to_contain_text("Connection lost", timeout=LONG)
    added = served.scene.add()
    served.start()
    expect(link).to_have_text("Live", timeout=LONG)
    expect(tab.page.get_by_text(added.id)).to_be_visible(timeout=LONG)


def test_a_page_goes_on_when_all_was_forgotten(served: Served, opening: Opening) -> None:
    """Records in memory are gone after a restart, and their changes are counted anew."""
    tab = opening(served, "/ui/tasks")
    tab.expects(LOST)
    served.stop()
    served.scene = Scene(ended=3, seed=8)
    served.start()
    added = served.scene.add("send_sms")
    expect(tab.page.get_by_text(added.id)).to_be_visible(timeout=LONG)
    expect(tab.page.locator("#link")).to_have_text("Live", timeout=LONG)


def test_without_a_stream_a_page_asks_now_and_then(served: Served, opening: Opening) -> None:
    tab = opening(served, None)
    tab.page.add_init_script("delete window.EventSource")
    tab.open("/ui/tasks")
    added = served.scene.add()
    expect(tab.page.get_by_text(added.id)).to_be_visible(timeout=LONG)
    assert not any("/events" in url for url in tab.requests)
