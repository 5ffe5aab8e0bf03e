"""Every page shows what it promises; the most of it without JavaScript."""

import re
from collections.abc import Callable

import pytest

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Query
from tests.browser.chromium import Page, expect
from tests.browser.pages import PAGES, path_of
from tests.browser.serving import Served, empty_scene
from tests.browser.tab import Tab

Opening = Callable[..., Tab]
Serving = Callable[..., Served]
INK = """canvas => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let ink = 0;
    for (let i = 3; i < data.length; i += 4) ink += data[i] > 0;
    return ink;
}"""

BARS = """canvas => {
    const fill = getComputedStyle(document.querySelector(".k-ended"), "::before").color;
    const probe = new OffscreenCanvas(1, 1).getContext("2d");
    probe.fillStyle = fill;
    probe.fillRect(0, 0, 1, 1);
    const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let bars = 0;
    for (let i = 0; i < data.length; i += 4)
        bars += data[i] === r && data[i + 1] === g && data[i + 2] === b && data[i + 3] === 255;
    return bars;
}"""


@pytest.fixture(params=[True, False], ids=["scripts", "no scripts"])
def reading(served: Served, opening: Opening, request: pytest.FixtureRequest) -> Tab:
    """A page, not opened yet, with JavaScript and without."""
    return opening(served, None, java_script_enabled=request.param)


def rows(page: Page) -> list[str]:
    """The ids of the tasks in the list, in its order."""
    boxes = page.locator("input[name=id][type=checkbox]")  # at once: rows may change meanwhile
    ids: list[str] = boxes.evaluate_all("all => all.map(each => each.value)")
    return ids


def test_the_overview_draws_its_plots(served: Served, opening: Opening) -> None:
    tab = opening(served, "/")
    canvases = tab.page.locator(".plot canvas")
    expect(canvases).to_have_count(2)
    for canvas in canvases.all():
        assert canvas.evaluate(INK) > 500


def test_a_plot_goes_up_to_now(serving: Serving, opening: Opening) -> None:
    scene = empty_scene()
    for _ in range(5):
        scene.end(scene.add().id)
    tab = opening(serving(scene=scene), "/")
    bars = tab.page.locator("[data-plot=throughput] canvas")
    expect(bars).to_have_count(1)
    assert bars.evaluate(BARS) > 50


def test_the_overview_says_in_words_and_tables_what_its_plots_show(
    served: Served, reading: Tab
) -> None:
    reading.open("/")
    page = reading.page
    tables = page.get_by_text("As a table")
    for table in tables.all():
        table.click()
    expect(page.get_by_role("table", name="Ended tasks")).to_be_visible()
    expect(page.get_by_role("table", name="Run times")).to_be_visible()
    failed = sum(record.status is Status.FAILED for record in served.scene.records)
    link = page.get_by_role("navigation", name="Tasks by status").get_by_role("link", name="failed")
    expect(link).to_contain_text(str(failed))
    link.click()
    expect(page).to_have_url(f"{reading.base}/ui/tasks?status=failed&ended=24h")
    assert len(rows(page)) == failed


def test_the_overview_leads_to_the_newest_failure(served: Served, reading: Tab) -> None:
    reading.open("/")
    bad = frozenset({Status.FAILED, Status.TIMED_OUT})
    newest = served.scene.store.find(Query(status=bad, limit=1)).records[0]
    panel = reading.page.get_by_role("region", name="Newest failures")
    expect(panel).to_contain_text(newest.error_message)
    panel.get_by_role("link", name=newest.name).first.click()
    expect(reading.page.get_by_role("heading", level=1)).to_have_text(newest.name)
    expect(reading.page.get_by_text(newest.id, exact=True).first).to_be_visible()


def test_a_span_of_time_is_a_link(reading: Tab) -> None:
    reading.open("/")
    span = reading.page.get_by_role("navigation", name="Span of time")
    span.get_by_role("link", name="15 min").click()
    expect(reading.page).to_have_url(f"{reading.base}/?within=15m")
    current = reading.page.locator("nav.spans [aria-current]")
    expect(current).to_have_text("15 min")


def test_the_list_is_filtered_by_status_name_and_text(served: Served, reading: Tab) -> None:
    reading.open("/ui/tasks")
    page, form = reading.page, reading.page.get_by_role("search")
    form.get_by_role("checkbox", name="failed").check()
    form.get_by_role("checkbox", name="timed out").check()
    form.get_by_label("Name").fill("push_to_crm")
    apply(page)
    wanted = Query(status=frozenset({Status.FAILED, Status.TIMED_OUT}), name="push_to_crm")
    shown = [record.id for record in served.scene.store.find(wanted).records]
    assert shown
    until_rows(reading, shown)
    assert "name=push_to_crm" in page.url
    assert "status=failed" in page.url
    form.get_by_role("searchbox", name="Text").fill("no such thing")
    apply(page)
    expect(page.get_by_text("No task fits these filters.")).to_be_visible()
    page.get_by_role("link", name="Show all tasks").click()
    expect(page).to_have_url(f"{reading.base}/ui/tasks")
    assert len(rows(page)) == 50


def test_a_filtered_address_can_be_shared(served: Served, reading: Tab) -> None:
    reading.open("/ui/tasks?status=failed&text=REFUSED&within=24h")
    form = reading.page.get_by_role("search")
    expect(form.get_by_role("checkbox", name="failed")).to_be_checked()
    expect(form.get_by_role("checkbox", name="queued")).not_to_be_checked()
    expect(form.get_by_role("searchbox", name="Text")).to_have_value("REFUSED")
    wanted = Query(status=frozenset({Status.FAILED}), text="refused")
    assert rows(reading.page) == [record.id for record in served.scene.store.find(wanted).records]


def test_the_list_has_pages(served: Served, reading: Tab) -> None:
    reading.open("/ui/tasks")
    first = rows(reading.page)
    reading.page.get_by_role("link", name="Older").click()
    expect(reading.page.get_by_role("link", name="Newest")).to_be_visible()
    second = rows(reading.page)
    assert len(second) == 50
    assert not set(first) & set(second)
    reading.page.get_by_role("link", name="Newest").click()
    expect(reading.page.get_by_role("link", name="Newest")).not_to_be_attached()
    assert rows(reading.page) == first


def test_the_page_of_a_task_tells_its_story(served: Served, reading: Tab) -> None:
    failed = served.scene.first(Status.FAILED, "send_receipt")
    reading.open(f"/ui/tasks/{failed.id}")
    page = reading.page
    expect(page.get_by_role("heading", level=1)).to_have_text("send_receipt")
    expect(page.get_by_role("region", name="Timeline")).to_contain_text("Attempt 3")
    expect(page.locator("pre").first).to_contain_text("Traceback (most recent call last)")
    expect(page.get_by_role("region", name="What happened")).to_contain_text("request.sent")
    expect(page.get_by_role("region", name="Arguments")).to_contain_text("order")
    page.get_by_role("link", name=re.compile("All.*Same error")).click()
    assert failed.id in rows(page)


def test_the_traceback_can_be_copied(served: Served, opening: Opening) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    failed = served.scene.first(Status.FAILED, "send_receipt")
    tab = opening(served, f"/ui/tasks/{failed.id}", permissions=permissions)
    tab.page.get_by_role("button", name="Copy").click()
    expect(tab.page.get_by_role("button", name="Copied")).to_be_visible()
    copied: str = tab.page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == failed.traceback.strip()


def test_failures_are_grouped_and_lead_to_their_tasks(served: Served, reading: Tab) -> None:
    reading.open("/ui/failures")
    group = reading.page.get_by_role("listitem").filter(has_text="SMTPRecipientsRefused")
    expect(group).to_contain_text("shop/mail.py:31 in deliver")
    group.get_by_role("link", name="All with").click()
    wanted = Query(fingerprint="5e02aa7c13")
    shown = [record.id for record in served.scene.store.find(wanted).records]
    assert rows(reading.page) == shown


def test_now_shows_processes_what_runs_and_what_overran(served: Served, reading: Tab) -> None:
    reading.open("/ui/now")
    page = reading.page
    overran = [record for record in served.scene.records if record.overrunning]
    expect(page.get_by_role("region", name="Over, but still running")).to_contain_text(
        overran[0].id
    )
    running = served.scene.first(Status.RUNNING, "build_export")
    expect(page.get_by_role("region", name="Running", exact=True)).to_contain_text(running.id)
    expect(page.get_by_role("article")).to_have_count(2)
    limiters = page.get_by_role("table", name="Limiters of process k3f9")
    expect(limiters.get_by_role("row", name="smtp")).to_contain_text("2 of 2")
    expect(page.get_by_text("silent, last heard")).to_have_count(1)


def test_where_there_is_nothing_the_page_says_so(
    serving: Callable[..., Served], opening: Opening
) -> None:
    served = serving(scene=empty_scene())
    for path, words in {
        "/": "No task has failed in the last 24 h.",
        "/ui/tasks": "No task was added yet.",
        "/ui/failures": "No task has failed in the last 24 h.",
        "/ui/now": "Nothing runs at this moment.",
    }.items():
        tab = opening(served, path)
        expect(tab.page.get_by_text(words).first).to_be_visible()


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/ui/tasks/nobody-1", 404, "Nothing is known of the task nobody-1"),
        ("/ui/tasks?cursor=nonsense", 422, "no page has given the cursor"),
        ("/ui/tasks?status=sleeping", 422, "sleeping"),
    ],
)
def test_what_cannot_be_shown_is_a_page_that_says_why(
    reading: Tab, path: str, status: int, words: str
) -> None:
    reading.open(path, status)
    expect(reading.page.get_by_role("main")).to_contain_text(words)
    reading.page.get_by_role("link", name="All tasks").click()
    expect(reading.page.get_by_role("heading", level=1)).to_have_text("Tasks")


def test_every_link_of_every_page_leads_somewhere(served: Served, opening: Opening) -> None:
    tab = opening(served, None, java_script_enabled=False)
    links: set[str] = set()
    for page in PAGES:
        tab.open(path_of(page, served.scene))
        found = tab.page.locator("a[href]").all()
        links |= {href.partition("#")[0] for a in found if (href := str(a.evaluate("a => a.href")))}
    assert all(link.startswith(tab.base) for link in links)
    kinds = {link.partition("?")[0] for link in links}
    for link in kinds:
        assert tab.page.request.get(link).ok, link


def apply(page: Page) -> None:
    """Without scripts a form has to be sent; with them it is, when somebody types."""
    button = page.get_by_role("button", name="Filter", exact=True)
    if button.is_visible():
        button.click()


def until_rows(tab: Tab, expected: list[str]) -> None:
    tab.until(lambda: rows(tab.page) == expected, f"{rows(tab.page)} instead of {expected}")
