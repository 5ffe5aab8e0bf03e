"""Fixtures: a browser for all tests of this directory, and a server and pages for each.

A page that complains fails its test. A test that fails reports what the browser's console says, and
where a picture of the page is.
"""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.serving import Served
from tests.conftest import require

if TYPE_CHECKING:
    from tests.browser.chromium import Browser
    from tests.browser.tab import Tab

    Opening = Callable[..., Tab]
Serving = Callable[..., Served]
TABS = pytest.StashKey[list["Tab"]]()


@pytest.fixture(scope="package")
def browser() -> Iterator["Browser"]:
    """One Chromium. Playwright keeps an event loop running, so it must not outlive this package."""
    from tests.browser import chromium

    path = chromium.find()
    require(path, "no Chromium is on the path, and $CHROMIUM names none")
    assert path is not None
    with chromium.launched(path) as browser:
        yield browser


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Starts servers, and ends them with the test."""
    started: list[Served] = []

    def serve(**options: Any) -> Served:
        served = Served(**options)
        started.append(served)
        served.start()
        return served

    yield serve
    for served in started:
        served.stop()
    raised = [text for served in started for text in served.raised]
    assert not raised, "\n".join(raised)


@pytest.fixture
def served(serving: Serving) -> Served:
    """A dashboard with believable records in every state."""
    return serving()


@pytest.fixture
def opening(
    browser: "Browser", serving: Serving, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator["Opening"]:
    """Opens pages of a server, each in a profile of its own; options are those of Playwright.

    It asks for `serving` so that pages are closed before their servers.
    """
    from tests.browser.tab import Tab

    tabs = request.node.stash.setdefault(TABS, [])

    def opened(
        served: Served, path: str | None = "/", host: str = "127.0.0.1", **options: Any
    ) -> Tab:
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        tab = Tab(context, served.at(host))
        tabs.append(tab)
        if path is not None:
            tab.open(path)
        return tab

    yield opened
    complaints = [line for tab in tabs for line in tab.complaints]
    for tab in tabs:
        tab.page.context.close()
    assert not complaints, "\n".join(complaints)


@pytest.fixture
def tab(served: Served, opening: "Opening") -> "Tab":
    """A page, not opened yet, of a dashboard with records."""
    return opening(served, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failed test what its pages look like."""
    report = yield
    if report.when == "call" and report.failed:
        for tab in item.stash.get(TABS, []):
            folder: Path = item.funcargs["tmp_path"]  # type: ignore[assignment]
            report.sections.append(("browser", tab.report(folder)))
    return report
