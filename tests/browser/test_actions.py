"""Tasks are cancelled and run again from pages: one or many, never without asking, and told of."""

from collections.abc import Callable

import pytest

from fastapi_bgx.outcome import Status
from tests.browser.chromium import Page, expect
from tests.browser.serving import Served
from tests.browser.tab import Tab

Opening = Callable[..., Tab]


@pytest.fixture(params=[True, False], ids=["scripts", "no scripts"])
def acting(served: Served, opening: Opening, request: pytest.FixtureRequest) -> Tab:
    """A page, not opened yet, with JavaScript and without."""
    return opening(served, None, java_script_enabled=request.param)


def asked(served: Served) -> list[tuple[str, str]]:
    return sorted(served.scene.control.asked)


def test_one_task_is_cancelled(served: Served, acting: Tab) -> None:
    running = served.scene.first(Status.RUNNING, "build_export")
    acting.open(f"/ui/tasks/{running.id}")
    page = acting.page
    page.get_by_role("button", name="Cancel…").click()
    expect(page.get_by_role("heading", name="Cancel 1 task?")).to_be_visible()
    expect(page.get_by_text(running.id).last).to_be_visible()
    assert asked(served) == [], "it was not confirmed"
    page.get_by_role("button", name="Cancel 1 task").click()
    expect(page.get_by_text("1 task asked to stop.")).to_be_visible()
    assert asked(served) == [("cancel", running.id)]
    close(page)
    expect(page.get_by_role("main").locator(".badge").first).to_have_text("cancelled")


def test_one_task_is_run_again(served: Served, acting: Tab) -> None:
    failed = next(each for each in served.scene.records if each.retryable)
    acting.open(f"/ui/tasks/{failed.id}")
    page = acting.page
    page.get_by_role("button", name="Run again…").click()
    page.get_by_role("button", name="Run 1 task again").click()
    expect(page.get_by_text("1 task run again.")).to_be_visible()
    assert asked(served) == [("retry", failed.id)]


def test_who_leaves_it_changes_nothing(served: Served, acting: Tab) -> None:
    running = served.scene.first(Status.RUNNING, "build_export")
    acting.open(f"/ui/tasks/{running.id}")
    page = acting.page
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_text("Leave it", exact=True).click()
    expect(page.get_by_role("heading", name="Cancel 1 task?")).to_be_hidden()
    expect(page).to_have_url(f"{acting.base}/ui/tasks/{running.id}")
    assert asked(served) == []


def test_many_tasks_are_cancelled_and_those_that_have_ended_are_told(
    served: Served, acting: Tab
) -> None:
    running = served.scene.first(Status.RUNNING)
    queued = served.scene.first(Status.QUEUED)
    ended = served.scene.first(Status.SUCCEEDED)
    acting.open("/ui/tasks")
    page = acting.page
    for record in (running, queued, ended):
        page.get_by_role("checkbox", name=record.id).check()
    page.get_by_role("button", name="Cancel…").click()
    expect(page.get_by_role("heading", name="Cancel 2 tasks?")).to_be_visible()
    expect(page.get_by_text("1 other selected task cannot be cancelled")).to_be_visible()
    page.get_by_role("button", name="Cancel 2 tasks").click()
    expect(page.get_by_text("2 tasks asked to stop.")).to_be_visible()
    assert asked(served) == sorted([("cancel", running.id), ("cancel", queued.id)])


def test_many_tasks_are_run_again(served: Served, acting: Tab) -> None:
    able = [each for each in served.scene.records if each.retryable][-3:]
    acting.open("/ui/tasks?status=failed&status=timed_out&status=cancelled&status=dropped")
    page = acting.page
    shown = [box for each in able if (box := page.get_by_role("checkbox", name=each.id)).count()]
    assert len(shown) > 1
    for box in shown:
        box.check()
    page.get_by_role("button", name="Run again…").click()
    page.get_by_role("button", name=f"Run {len(shown)} tasks again").click()
    expect(page.get_by_text(f"{len(shown)} tasks run again.")).to_be_visible()
    assert [action for action, _ in asked(served)] == ["retry"] * len(shown)


def test_all_that_one_error_ended_are_run_again(served: Served, acting: Tab) -> None:
    mine = [each for each in served.scene.records if each.fingerprint == "5e02aa7c13"]
    held = {each.id for each in mine if each.retryable}
    acting.open("/ui/failures")
    group = acting.page.get_by_role("listitem").filter(has_text="SMTPRecipientsRefused")
    group.get_by_role("button", name="Run again…").click()
    acting.page.get_by_role("button", name=f"Run {len(held)} tasks again").click()
    expect(acting.page.get_by_text(f"{len(held)} tasks run again.")).to_be_visible()
    assert {task_id for _, task_id in asked(served)} == held


def test_a_task_that_ends_before_the_confirmation_is_told(served: Served, acting: Tab) -> None:
    running = served.scene.first(Status.RUNNING, "build_export")
    acting.open(f"/ui/tasks/{running.id}")
    page = acting.page
    page.get_by_role("button", name="Cancel…").click()
    expect(page.get_by_role("button", name="Cancel 1 task")).to_be_visible()
    served.scene.end(running.id)
    page.get_by_role("button", name="Cancel 1 task").click()
    expect(page.get_by_text("had ended already")).to_be_visible()


def test_nothing_selected_is_nothing_done(served: Served, opening: Opening) -> None:
    scripted = opening(served, "/ui/tasks")
    expect(scripted.page.get_by_role("button", name="Cancel…")).to_be_disabled()
    plain = opening(served, "/ui/tasks", java_script_enabled=False)
    plain.expects("status of 422")
    plain.page.get_by_role("button", name="Cancel…").click()
    expect(plain.page.get_by_role("main")).to_contain_text("No task is selected")
    assert asked(served) == []


def test_all_that_are_shown_can_be_selected_at_once(served: Served, opening: Opening) -> None:
    tab = opening(served, "/ui/tasks?status=queued")
    tab.page.get_by_role("checkbox", name="Select all that are shown").check()
    expect(tab.page.get_by_text("10 selected")).to_be_visible()
    tab.page.get_by_role("button", name="Cancel…").click()
    tab.page.get_by_role("button", name="Cancel 10 tasks").click()
    expect(tab.page.get_by_text("10 tasks asked to stop.")).to_be_visible()
    assert len(asked(served)) == 10


def test_the_keyboard_is_enough(served: Served, opening: Opening) -> None:
    """Find a task, select it, cancel it, and be back where it was: no mouse."""
    running = served.scene.first(Status.RUNNING, "build_export")
    tab = opening(served, "/")
    page = tab.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    press_until(page, "Tab", "Tasks")
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/tasks")
    press_until(page, "Tab", running.id)
    page.keyboard.press("Space")
    expect(page.get_by_text("1 selected")).to_be_visible()
    press_until(page, "Shift+Tab", "Cancel…")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    for _ in range(6):
        page.keyboard.press("Tab")
        inside = (
            "document.activeElement === document.body || dialog.contains(document.activeElement)"
        )
        assert page.evaluate(inside), "the dialog keeps the focus"
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert asked(served) == []
    expect(page.get_by_role("button", name="Cancel…")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("button", name="Cancel 1 task")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("1 task asked to stop.")).to_be_visible()
    expect(dialog.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    assert asked(served) == [("cancel", running.id)]


def press_until(page: Page, key: str, name: str) -> None:
    """Press a key until what has the focus says that."""
    says = """() => {
        const { ariaLabel, textContent } = document.activeElement;
        return (ariaLabel || textContent).trim();
    }"""
    for _ in range(150):
        page.keyboard.press(key)
        said: str = page.evaluate(says)
        if said.endswith(name) and "\n" not in said:
            return
    raise AssertionError(f"{key} never leads to {name}")


def close(page: Page) -> None:
    """Close the dialog, if there is one."""
    button = page.get_by_role("dialog").get_by_role("button", name="Close")
    if button.is_visible():
        button.click()
