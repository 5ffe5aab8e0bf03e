"""Names, values and errors may be hostile: they are shown as the text they are, and run nothing."""

from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import FullRecord, LimiterReading, ProcessReading, Step
from tests.browser.chromium import expect
from tests.browser.serving import Served
from tests.browser.tab import Tab

EVIL = (
    '<img src=x onerror="window.hacked=1">'
    "</script><script>window.hacked=1</script>"
    "\"'><svg onload=window.hacked=1></textarea></title>"
    "{{ 7*7 }}{% x %}${window.hacked=1}"
    "javascript:window.hacked=1"
    "&lt;b&gt;&amp;"
    " \u202egnp.exe\u202c \u05e9\u05dc\u05d5\u05dd \U0001f3f4\u200d\u2620\ufe0f \u0000\u001b[31m"
)
LONG = "long" * 480
"""A word without a place to break it."""
NOW = datetime.now(UTC)


def evil_record(number: int, status: Status, tail: str = "") -> FullRecord:
    evil = EVIL + tail
    ended = NOW if status.final else None
    return FullRecord(
        id=f"e666-{number}",
        name=evil,
        status=status,
        function=evil,
        executor="async",
        process="e666",
        limit=evil,
        attempt=1,
        added_at=NOW,
        started_at=NOW,
        ended_at=ended,
        duration_s=0.0 if ended else None,
        note=evil,
        progress=0.5,
        error_type=evil if ended else None,
        error_message=evil,
        error_place=evil,
        fingerprint=evil[:200] if ended else None,
        reason=evil,
        retryable=status.final,
        arguments={evil: evil},
        value=evil,
        traceback=evil,
        steps=(Step(at=NOW, kind="log", level="error", text=evil),),
    )


@pytest.fixture
def hostile(served: Served) -> Served:
    served.scene.store.write(
        [
            evil_record(1, Status.FAILED),
            evil_record(2, Status.RUNNING),
            evil_record(3, Status.FAILED, LONG),
        ]
    )
    limiters = {EVIL: LimiterReading(slots=1, taken=1, waiting=1, rate=EVIL)}
    served.scene.store.beat(
        ProcessReading(
            id="e666", host=EVIL, pid=1, started_at=NOW, seen_at=NOW, running=1, limiters=limiters
        )
    )
    return served


PAGES = ("/", "/ui/tasks", "/ui/tasks/e666-1", "/ui/tasks/e666-3", "/ui/failures", "/ui/now")
SAYS = '<img src=x onerror="window.hacked=1"></script>'


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_what_tasks_say_is_shown_as_text(
    hostile: Served, opening: Callable[..., Tab], scripts: bool
) -> None:
    tab = opening(hostile, None, java_script_enabled=scripts)
    for page in PAGES:
        tab.open(page)
        expect(tab.page.get_by_text(SAYS).first).to_be_attached()
        untouched(tab, scripts)


def test_what_the_address_says_is_shown_as_text(
    hostile: Served, opening: Callable[..., Tab]
) -> None:
    tab = opening(hostile, None)
    evil = quote(EVIL[:190].replace("\u0000", ""), safe="")
    for page, status in (
        (f"/ui/tasks?text={evil}", 200),
        (f"/ui/tasks?name={evil}", 200),
        (f"/ui/tasks?fingerprint={evil}", 200),
        (f"/ui/tasks?status={evil}", 422),
        (f"/ui/tasks?cursor={evil}", 422),
        (f"/ui/tasks?since={evil}", 422),
        ("/ui/tasks/" + quote("<img src=x onerror=window.hacked=1>", safe=""), 404),
    ):
        tab.open(page, status)
        untouched(tab)


def test_what_arrives_at_an_open_page_is_shown_as_text(
    served: Served, opening: Callable[..., Tab]
) -> None:
    tab = opening(served, "/ui/tasks")
    served.scene.store.write([evil_record(9, Status.FAILED)])
    expect(tab.page.get_by_text(SAYS).first).to_be_visible()
    untouched(tab)


def test_a_very_long_word_does_not_widen_a_page(
    hostile: Served, opening: Callable[..., Tab]
) -> None:
    tab = opening(hostile, None, viewport={"width": 360, "height": 640})
    for page in PAGES:
        tab.open(page)
        assert tab.overflow() == [], page


def untouched(tab: Tab, scripts: bool = True) -> None:
    assert tab.page.locator("img[src=x], svg[onload]").count() == 0
    if scripts:
        assert tab.page.evaluate("window.hacked") is None
    assert tab.complaints == []
