"""The pages of the dashboard without a browser: what they say, escape and link to."""

import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from fastapi_bgx.console import Console
from fastapi_bgx.dashboard import make_router, pages
from fastapi_bgx.dashboard.actions import MOST_BODY, safe_next
from fastapi_bgx.errors import StoreUnavailable
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import FullRecord, Page, Query
from fastapi_bgx.stores import MemoryStore
from tests.asgi import client_of
from tests.browser.scene import NOW, Scene, SceneControl
from tests.consoles import api, record, store_with

PAGES = ("", "ui/tasks", "ui/failures", "ui/now")
HOSTILE = "<img src=x onerror=alert(1)>\"'</script>&amp;\u202e{{7*7}}"
VOID = {"img", "input", "link", "meta", "br", "rect", "path", "circle", "use"}


class Html(HTMLParser):
    """The elements of a page, its text, and whether its tags close as they should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [
            found
            for name, found in self.elements
            if name == tag and attributes.items() <= found.items()
        ]

    def urls(self) -> Iterator[str]:
        for _, attributes in self.elements:
            for name in ("href", "src", "action", "hx-get", "hx-post"):
                if attributes.get(name) and not attributes[name].startswith("#"):
                    yield attributes[name]


def app_of(console: Console, prefix: str = "/ops", **options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.include_router(make_router(console, public=True), prefix=prefix)
    return app


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(pages, "utc_now", lambda: NOW)
    return Scene()


@pytest.fixture
def client(scene: Scene, anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    return client_of(app_of(scene.console), anyio_backend)


def read(client: TestClient, path: str, status: int = 200) -> Html:
    answer = client.get(f"/ops/{path}")
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    html = Html(answer.text)
    assert not html.open
    return html


# What the pages say.


def test_the_overview_tells_what_failed_last_night_and_why(client: TestClient) -> None:
    html = read(client, "")
    assert "Failed 28 10 % of what ended" in html.text
    assert "TimeoutError: an attempt took longer than 5 s" in html.text
    assert "shop/mail.py:31 in deliver" in html.text
    assert [each["aria-current"] for each in html.all("a", href="./?within=24h")] == ["true"]
    assert html.all("a", href="./ui/tasks?status=failed&ended=24h")
    assert html.all("a", href="./ui/tasks?status=running")
    for plot in html.all("div", **{"class": "plot"}):
        assert plot["data-graph"].startswith('{"at":[')


def test_a_number_leads_to_just_the_tasks_that_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(number: int, *, waited: timedelta, ago: timedelta) -> FullRecord:
        at = NOW - ago
        return record(number, Status.FAILED, added_at=at - waited, ended_at=at)

    monkeypatch.setattr(pages, "utc_now", lambda: NOW)
    hour, day = timedelta(hours=1), timedelta(days=1)
    long_ago = failed(1, waited=hour, ago=day + hour)
    delayed = failed(2, waited=2 * day, ago=hour)
    short = failed(3, waited=hour, ago=hour)
    client = client_of(api(store_with(long_ago, delayed, short), prefix="/ops"), "asyncio")
    overview = read(client, "")
    assert "Failed 2 100 % of what ended" in overview.text
    assert set(ids_on(overview)) == {"p-2", "p-3"}, "the newest failures"
    (by_status,) = overview.all("a", href="./ui/tasks?status=failed&ended=24h")
    (by_name,) = overview.all("a", href="./ui/tasks?name=send_welcome&ended=24h")
    failures = read(client, "ui/failures?within=24h")
    assert "2 times" in failures.text
    (by_error,) = failures.all("a", href="../ui/tasks?fingerprint=abc&ended=24h")
    for link in (by_status, by_name, by_error):
        shown = read(client, link["href"].lstrip("./"))
        assert ids_on(shown) == ["p-3", "p-2"]
        assert shown.all("option", value="24h", selected="")


def ids_on(html: Html) -> list[str]:
    """The ids of the tasks that a page links to, once each."""
    paths = [each["href"].rpartition("ui/tasks/")[2] for each in html.all("a", **{"class": "name"})]
    return [path for path in dict.fromkeys(paths) if path.startswith("p-")]


def test_a_page_is_told_which_span_to_show(client: TestClient) -> None:
    assert "in the last 15 min" in read(client, "?within=15m").text
    assert (
        "No task has failed in the last 15 min."
        in read(
            client_of(app_of(Scene(NOW - timedelta(days=1)).console), "asyncio"),
            "ui/failures?within=15m",
        ).text
    )


def test_the_list_shows_what_the_filters_let_through(client: TestClient, scene: Scene) -> None:
    html = read(client, "ui/tasks?status=failed&text=bank")
    failed = [each for each in scene.records if each.error_message.endswith("charges")]
    rows = [row for row in html.all("tr") if row.get("id", "").startswith("t-")]
    assert {row["id"] for row in rows} == {f"t-{each.id}" for each in failed}
    assert all(row["class"] == "s-failed" for row in rows)
    assert html.all("input", name="status", value="failed", checked="")
    assert html.all("input", name="text", value="bank")


def test_an_error_is_a_filter_that_can_be_taken_away(client: TestClient) -> None:
    html = read(client, "ui/tasks?fingerprint=b41f09c2d7&since=2026-03-01T00:00")
    assert html.all("input", name="fingerprint", value="b41f09c2d7", checked="")
    assert html.all("details", **{"class": "between", "open": ""})


def test_pages_lead_to_older_ones_and_back(client: TestClient) -> None:
    html = read(client, "ui/tasks?name=send_receipt")
    (older,) = html.all("a", rel="next")
    assert "Newest" not in html.text
    second = read(client, older["href"].removeprefix("../"))
    first_ids = {row.get("id") for row in html.all("tr")}
    assert not first_ids & {row["id"] for row in second.all("tr") if "id" in row}
    assert second.all("a", href="../ui/tasks?name=send_receipt", **{"class": "button"})


def test_a_task_tells_its_whole_story(client: TestClient, scene: Scene) -> None:
    record = scene.first(Status.TIMED_OUT, "push_to_crm")
    html = read(client, f"ui/tasks/{record.id}")
    for text in (
        "Attempt 4 failed",
        "Waited to retry",
        "attempt 1 began",
        "request.sent attempt=3",
        "raise TimeoutError('an attempt took longer than 2 s') from error",
        "shop/crm.py:19 in push",
        "locale 'en'",
        "Same error",
        "Same name",
    ):
        assert text in html.text
    assert not html.all("input", name="action", value="cancel")


def test_a_task_that_runs_shows_how_far_it_is(client: TestClient, scene: Scene) -> None:
    record = scene.first(Status.RUNNING, "build_export")
    html = read(client, f"ui/tasks/{record.id}")
    assert html.all("progress", max="1", value=str(record.progress))
    assert record.note in html.text
    assert html.all("input", name="action", value="cancel")
    assert "so far" in html.text


def test_what_is_rare_is_shown_where_it_is(client: TestClient, scene: Scene) -> None:
    record = scene.change(
        scene.first(Status.CANCELLED).id,
        retry_of="k3f9-1",
        detached=True,
        priority=3,
        arguments={},
        steps_left_out=9,
        value='{"a": 1}',
    )
    text = read(client, f"ui/tasks/{record.id}").text
    for part in ("k3f9-1", "detached", "Priority 3", "called without any", "9 in the middle"):
        assert part in text
    assert "Why it was cancelled" in text
    assert '{"a": 1}' in text
    queued = next(each for each in scene.records if each.due_at and each.status == "queued")
    text = read(client, f"ui/tasks/{queued.id}").text
    assert "Due in 9 min" in text
    bare = scene.change(queued.id, arguments=None, limit=None, timeout_s=None, due_at=None)
    assert "Arguments" not in read(client, f"ui/tasks/{bare.id}").text


def test_a_very_long_name_can_be_looked_for(client: TestClient, scene: Scene) -> None:
    long = "x" * 300
    failed = scene.first(Status.FAILED)
    scene.change(failed.id, name=long)
    assert long in read(client, f"ui/tasks/{failed.id}").text
    for path in ("", "ui/failures"):
        links = [each["href"] for each in read(client, path).all("a") if "xxx" in each["href"]]
        assert links
        for link in links:
            found = read(client, link.removeprefix("../").removeprefix("../").removeprefix("./"))
            assert long in found.text


def test_no_change_is_lost_between_a_page_and_its_stream(
    client: TestClient, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scene.store.changes(None, 1).last
    find = scene.store.find

    def changing(query: Query) -> Page:
        page = find(query)
        scene.add()
        return page

    monkeypatch.setattr(scene.store, "find", changing)
    (after,) = read(client, "ui/tasks").all("span", id="after")
    assert after["data-after"] == str(before)


def test_failures_are_grouped_by_error(client: TestClient) -> None:
    html = read(client, "ui/failures")
    assert "28 tasks failed or timed out in the last 24 h, by 6 errors" in html.text
    assert html.all("a", href="../ui/tasks?fingerprint=b41f09c2d7&ended=24h")
    assert html.all("input", name="fingerprint", value="b41f09c2d7")


def test_now_shows_processes_limiters_and_threads_that_overran(client: TestClient) -> None:
    html = read(client, "ui/now")
    for text in (
        "Over, but still running",
        "silent, last heard",
        "heard",
        "records lost",
        "2 of 2 full",
    ):
        assert text in html.text
    assert len(html.all("meter", max="8")) == 2
    assert "2 started, 2/second allowed" in html.text


def test_an_empty_dashboard_says_what_will_be_there(anyio_backend: str) -> None:
    store = MemoryStore()
    scene = Scene(ended=0)
    empty = client_of(app_of(Console(store, SceneControl(scene))), anyio_backend)
    assert "No task has failed in the last 24 h" in read(empty, "").text
    assert "No task was added yet" in read(empty, "ui/tasks").text
    assert "No task fits these filters" in read(empty, "ui/tasks?name=x").text
    assert "No task has failed" in read(empty, "ui/failures").text
    now = read(empty, "ui/now").text
    assert "Nothing runs at this moment" in now
    assert "No process has said yet" in now


def test_more_than_a_page_of_tasks_at_once_is_linked(client: TestClient, scene: Scene) -> None:
    for _ in range(51):
        scene.add(at=NOW)
        scene.change(scene.add(at=NOW).id, status=Status.QUEUED)
    html = read(client, "ui/now")
    assert html.all("a", href="../ui/tasks?status=running")
    assert html.all("a", href="../ui/tasks?status=queued&status=retrying")


def test_the_live_part_is_what_the_page_has_and_bounded(client: TestClient) -> None:
    for path in PAGES:
        glue = "&" if "?" in path else "?"
        part = client.get(f"/ops/{path}{glue}fragment=live").text
        assert "<html" not in part
        assert len(part) < 64_000
        assert part.strip() in client.get(f"/ops/{path}").text


# Escaping, links, structure.


def test_hostile_names_and_errors_are_text(client: TestClient, scene: Scene) -> None:
    victim = scene.first(Status.FAILED, "build_export")
    hostile = dict.fromkeys(
        ("name", "function", "error_type", "error_message", "error_place", "traceback", "reason"),
        HOSTILE,
    )
    scene.change(victim.id, **hostile, arguments={HOSTILE: HOSTILE}, value=HOSTILE, note=HOSTILE)
    paths = [*PAGES, "ui/tasks?status=failed", f"ui/tasks/{victim.id}"]
    hostile_url = "ui/tasks?text=%3Cimg%20src=x%20onerror=alert(1)%3E&name=%22%3E%3Cscript%3E"
    for path in [*paths, hostile_url]:
        html = read(client, path)
        assert all(each.get("src") != "x" for each in html.all("img")), path
        assert all("onerror" not in each for _, each in html.elements)
        assert len(html.all("script")) in (2, 3)
    assert HOSTILE in "".join(read(client, f"ui/tasks/{victim.id}").texts)


def test_ids_of_any_kind_are_linked_and_found(client: TestClient, scene: Scene) -> None:
    odd = scene.records[-1].model_copy(update={"id": "a b?c#d&é"})
    scene.store.write([odd])
    html = read(client, "ui/tasks")
    (link,) = [each["href"] for each in html.all("a") if "a%20b" in each.get("href", "")]
    assert "a b?c#d&é" in read(client, link.removeprefix("../")).text


def test_nothing_inline_and_nothing_of_another_host(client: TestClient, scene: Scene) -> None:
    for path in (*PAGES, f"ui/tasks/{scene.records[-1].id}"):
        html = read(client, path)
        assert not html.all("style")
        assert all(script["src"] for script in html.all("script"))
        for _, attributes in html.elements:
            assert "style" not in attributes
            assert not any(name.startswith(("on", "hx-on")) for name in attributes)
        assert all(not urlsplit(url).scheme and not url.startswith("/") for url in html.urls())


@pytest.mark.parametrize("prefix", ["", "/ops", "/a/b/c"])
@pytest.mark.parametrize("root_path", ["", "/behind/proxy"])
def test_links_work_under_any_prefix_and_root_path(prefix: str, root_path: str) -> None:
    scene = Scene(ended=8)
    client = TestClient(app_of(scene.console, prefix), root_path=root_path)
    start = f"{prefix}/"
    task = f"{start}ui/tasks/{scene.records[-1].id}"
    targets: dict[str, str] = {}
    for page in (start, *(start + each for each in PAGES[1:]), task, f"{start}ui/tasks/none"):
        for url in Html(client.get(f"{root_path}{page}").text).urls():
            target = urljoin(f"{root_path}{page}", url)
            assert target.startswith(f"{root_path}{prefix}/"), (page, url)
            if not target.endswith("/ui/actions"):
                targets[re.sub(r"\w{4}-\d+", "an-id", urlsplit(target).path)] = target
    for target in targets.values():
        assert client.get(target).status_code == 200, target


def test_pages_have_landmarks_headings_and_labels(client: TestClient, scene: Scene) -> None:
    for path in (*PAGES, f"ui/tasks/{scene.records[0].id}"):
        html = read(client, path)
        assert len(html.all("main")) == len(html.all("h1")) == 1
        assert html.all("a", href="#main", **{"class": "skip"})
        levels = [int(tag[1]) for tag, _ in html.elements if re.fullmatch(r"h\d", tag)]
        assert all(after - before <= 1 for before, after in pairwise(levels))
        ids = [each["id"] for _, each in html.elements if "id" in each]
        assert len(ids) == len(set(ids)), path


def test_pages_are_not_in_the_openapi_document(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if "/ui/" in path or "/static/" in path or path == "/ops/"]


# What goes wrong.


def test_an_unknown_task_is_a_page_that_says_so(client: TestClient) -> None:
    html = read(client, "ui/tasks/nobody", 404)
    assert "No such task" in html.text
    assert "nobody" in html.text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("ui/tasks?status=nope", "There is no status “nope”"),
        ("ui/tasks?cursor=nope", "no page has given the cursor 'nope'"),
        ("?within=1y", "There is no span “1y”"),
        ("ui/failures?within=1y", "There is no span “1y”"),
    ],
)
def test_a_wrong_filter_is_a_page_that_says_what_is_wrong(
    client: TestClient, path: str, words: str
) -> None:
    assert words in read(client, path, 422).text


def test_a_store_that_is_away_is_a_page_that_says_so(
    client: TestClient, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailable("connection refused")

    for name in ("find", "get", "summary", "failures", "processes", "changes"):
        monkeypatch.setattr(scene.store, name, away)
    for path in (*PAGES, "ui/tasks/k3f9-1"):
        html = read(client, path, 503)
        assert "connection refused" in html.text
        assert "Tasks go on" in html.text
    assert client.get("/ops/").headers["retry-after"] == "5"


def test_without_jinja_the_dashboard_names_the_extra(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"fastapi-bgx\[dashboard\]"):
        make_router(scene.console, public=True)
    assert make_router(scene.console, public=True, dashboard=False).routes


def test_the_time_is_the_servers_own() -> None:
    assert pages.utc_now().utcoffset() == timedelta(0)


# Actions.


def post(client: TestClient, *, htmx: bool = False, **fields: Any) -> Any:
    headers = {"HX-Request": "true"} if htmx else {}
    return client.post("/ops/ui/actions", data=fields, headers=headers, follow_redirects=False)


def test_an_action_asks_first_then_acts_and_says_what_it_did(
    client: TestClient, scene: Scene
) -> None:
    running = scene.first(Status.RUNNING)
    ended = scene.first(Status.SUCCEEDED)
    ids = [running.id, ended.id, "nobody"]
    asked = post(client, action="cancel", id=ids, next="ui/tasks?status=running")
    html = Html(asked.text)
    assert "Cancel 1 task?" in html.text
    assert "2 other selected tasks cannot be cancelled" in html.text
    assert [each["value"] for each in html.all("input", name="id")] == [running.id]
    assert not scene.control.asked

    fields: dict[str, Any] = {each["name"]: each["value"] for each in html.all("input")}
    assert fields["confirmed"] == "yes"
    fields["id"] = ids
    done = post(client, **fields)
    assert done.status_code == 303
    assert done.headers["location"] == "../ui/tasks?status=running&did=cancel.1.1.1.0"
    assert sorted(scene.control.asked) == sorted(("cancel", each) for each in ids)
    page = read(client, done.headers["location"].removeprefix("../"))
    assert "1 task asked to stop, 1 had ended already, 1 not found." in page.text


def test_a_dialog_is_the_same_without_a_page_around_it(client: TestClient, scene: Scene) -> None:
    failed = next(each for each in scene.records if each.retryable)
    asked = post(client, htmx=True, action="retry", id=[failed.id], depth="2")
    assert asked.text.lstrip().startswith("<h2")
    html = Html(asked.text)
    assert html.all("form", action="../../ui/actions")
    done = post(
        client, htmx=True, action="retry", id=[failed.id, "nobody"], depth="2", confirmed="yes"
    )
    assert done.headers["hx-trigger"] == "bgx:refresh"
    assert "1 task run again, 1 not found." in done.text
    (again,) = [each["href"] for each in Html(done.text).all("a")]
    record = scene.store.get(again.rpartition("/")[2])
    assert record is not None
    assert record.retry_of == failed.id


def test_what_cannot_be_done_is_told_for_each_task(client: TestClient, scene: Scene) -> None:
    ended = next(each for each in scene.records if each.final and not each.retryable)
    told = post(client, htmx=True, action="retry", id=[ended.id], confirmed="yes").text
    assert "its arguments are not held any more" in told
    stopped = scene.first(Status.RUNNING)
    told = post(client, htmx=True, action="cancel", id=[stopped.id], confirmed="yes").text
    assert "asked to stop" in told


def test_all_held_tasks_of_an_error_run_again(client: TestClient, scene: Scene) -> None:
    held = [
        each.id
        for each in scene.records
        if each.fingerprint == "5e02aa7c13" and each.retryable and each.status is Status.FAILED
    ]
    html = Html(post(client, action="retry", fingerprint="5e02aa7c13").text)
    assert sorted(each["value"] for each in html.all("input", name="id")) == sorted(held)
    nothing = Html(post(client, action="retry", fingerprint="unknown").text)
    assert "Run 0 tasks again?" in nothing.text
    assert not nothing.all("button", **{"class": "main"})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"action": "delete", "id": "k-1"}, "“cancel” or “retry”"),
        ({"action": "cancel"}, "No task is selected"),
        ({"action": "cancel", "id": [f"k-{n}" for n in range(201)]}, "at most 200 tasks"),
        ({"action": "cancel", "id": [f"k-{n}" for n in range(300)]}, "at most 200 tasks"),
        ({"action": "cancel", "id": "x" * 201}, "No task has such an id"),
        ({"action": "cancel", "id": "a\x00"}, "No task has such an id"),
    ],
)
def test_a_form_that_makes_no_sense_does_nothing(
    client: TestClient, scene: Scene, fields: dict[str, Any], words: str
) -> None:
    for htmx in (False, True):
        answer = post(client, htmx=htmx, confirmed="yes", **fields)
        assert answer.status_code == 422
        assert words in answer.text
        assert ("<html" in answer.text) is not htmx
    assert not scene.control.asked


def test_a_form_that_is_too_long_is_not_read_to_its_end(client: TestClient) -> None:
    assert client.post("/ops/ui/actions", content=b"x" * (MOST_BODY + 1)).status_code == 413
    assert client.post("/ops/ui/actions", content=b"id=\xff").status_code == 422


def test_a_store_that_is_away_stops_one_task_and_not_all(
    client: TestClient, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(scene.console, "get", away)
    assert "Cancel 0 tasks?" in post(client, action="cancel", id="k-1").text
    monkeypatch.setattr(scene.console, "cancel", away)
    told = post(client, htmx=True, action="cancel", id="k-1", confirmed="yes").text
    assert "does not answer: gone" in told


@pytest.mark.parametrize(
    ("path", "to"),
    [
        ("ui/tasks?status=failed&text=a%20b", "ui/tasks?status=failed&text=a%20b"),
        ("ui/tasks/k3f9-1", "ui/tasks/k3f9-1"),
        ("?within=1h", "?within=1h"),
        ("", "ui/tasks"),
        ("//evil.example", "ui/tasks"),
        ("https://evil.example", "ui/tasks"),
        ("../admin", "ui/tasks"),
        ("ui/tasks\r\nSet-Cookie: a=b", "ui/tasks"),
        ("ui/tasks\\evil", "ui/tasks"),
    ],
)
def test_a_form_leads_back_into_the_dashboard_only(path: str, to: str) -> None:
    assert safe_next(path) == to


def test_a_page_of_another_site_can_do_nothing(client: TestClient, scene: Scene) -> None:
    answer = client.post(
        "/ops/ui/actions",
        data={"action": "cancel", "id": scene.records[-1].id, "confirmed": "yes"},
        headers={"Sec-Fetch-Site": "cross-site"},
    )
    assert answer.status_code == 403
    assert not scene.control.asked
