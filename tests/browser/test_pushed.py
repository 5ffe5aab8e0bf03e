"""What is sent is bounded: by the page, not by what happens and not by what is kept."""

from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import pytest

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import FullRecord
from tests.benchmarks.pages import fill, pages_of
from tests.browser.scene import Scene
from tests.browser.serving import Served
from tests.browser.tab import Tab

ENDING = 5_000
"""Tasks that end while pages are open."""
MOST_PUSHED = 3_000_000
"""Bytes that one open page may be sent meanwhile; the peer that is compared with sends 210 MB."""
MOST_PAGE = 250_000
"""Bytes of a page, however many records there are."""


@pytest.mark.parametrize("page", ["/", "/ui/tasks"])
def test_what_an_open_page_is_sent_while_thousands_end_is_bounded(
    served: Served, opening: Callable[..., Tab], page: str
) -> None:
    store = served.scene.store
    tab = opening(served, page)
    tab.until(lambda: any("/events" in url for url in tab.requests), "no stream was opened")
    before = served.pushed()
    records = [_started(served.scene, number) for number in range(ENDING)]
    for start in range(0, ENDING, 100):
        store.write(records[start : start + 100])
        store.write([_ended(record) for record in records[start : start + 100]])
        tab.page.wait_for_timeout(40)  # the browser works meanwhile
    store.write([_started(served.scene, ENDING).model_copy(update={"name": "the_last"})])
    tab.open("/ui/tasks?name=the_last")
    assert tab.page.get_by_text("the_last").count()
    assert 0 < served.pushed() - before < MOST_PUSHED


def test_pages_of_many_records_are_no_larger(serving: Callable[..., Served]) -> None:
    """How fast they are, `python -m tests.benchmarks.pages` measures."""
    served = serving()
    fill(served.scene.store, served.scene, 20_000)
    with httpx.Client(base_url=served.url, trust_env=False, timeout=15) as client:
        for page, path in pages_of(served.scene).items():
            answer = client.get(path).raise_for_status()
            assert len(answer.content) < MOST_PAGE, page


def _started(scene: Scene, number: int) -> FullRecord:
    running = scene.first(Status.RUNNING)
    return running.model_copy(update={"id": f"push-{number}", "added_at": datetime.now(UTC)})


def _ended(record: FullRecord) -> FullRecord:
    return record.model_copy(
        update={"status": Status.SUCCEEDED, "ended_at": datetime.now(UTC), "duration_s": 0.01}
    )
