"""`Tab`: a page in the browser that remembers everything that went wrong in it."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]

from tests.browser.chromium import BrowserContext, ConsoleMessage, Error, Request
from tests.browser.serving import PATIENCE

WORSE = {"error", "warning", "assert"}
"""What a console says that nobody should have to read. Violations of the CSP are errors."""

WIDER = """() => {
    const { clientWidth, scrollWidth } = document.documentElement;
    if (scrollWidth <= clientWidth) return [];
    const out = each => each.getBoundingClientRect().left + each.scrollWidth > clientWidth + 1;
    const wide = [...document.querySelectorAll("body *")].filter(out);
    return [`${scrollWidth} > ${clientWidth}`, ...wide.map(each => each.outerHTML.slice(0, 120))];
}"""


class Tab:
    """One page; `complaints` must be empty when the test ends."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.base = base
        """Where the dashboard is."""
        self.console: list[str] = []
        """Everything that the browser's console says."""
        self.requests: list[str] = []
        """Every address that was asked."""
        self.complaints: list[str] = []
        """Console errors, uncaught errors, violations of the CSP, requests to another host."""
        self._expected: list[re.Pattern[str]] = []
        self.page = page = context.new_page()
        """Playwright's page."""
        page.set_default_timeout(8_000)
        page.on("console", self._said)
        page.on("pageerror", self._raised)
        page.on("request", self._asked)

    def open(self, path: str = "/", status: int = 200) -> None:
        """Go to a page of the dashboard; its path begins with a slash."""
        if status != 200:
            self.expects(f"status of {status}")
        answer = self.page.goto(self.base + path, wait_until="load")
        assert answer is not None
        assert answer.status == status, f"{path}: {answer.status}, {answer.text()[:500]}"

    def until(self, condition: Callable[[], object], otherwise: str) -> None:
        """Wait for what the browser, or the server at its request, makes true."""
        for _ in range(int(PATIENCE / 0.05)):
            if condition():
                return
            self.page.wait_for_timeout(50)  # the browser's events are heard meanwhile only
        raise AssertionError(otherwise)

    def expects(self, pattern: str) -> None:
        """Complaints that match are part of this test, from here on."""
        self._expected.append(re.compile(pattern))

    def violations(self) -> list[str]:
        """What axe finds wrong with the page as it is now, a line each."""
        found = Axe().run(self.page).response["violations"]
        return [_line(violation, node) for violation in found for node in violation["nodes"]]

    def overflow(self) -> list[str]:
        """The elements that make the page wider than the window, if it is."""
        found: list[str] = self.page.evaluate(WIDER)
        return found

    def report(self, folder: Path) -> str:
        """What one wants to know of it when a test has failed; a picture goes to the folder."""
        picture = folder / f"{id(self):x}.png"
        try:
            self.page.screenshot(path=picture, full_page=True)
        except Error as error:
            return "\n".join((self.page.url, *self.console, f"no screenshot: {error}"))
        return "\n".join((self.page.url, *self.console, f"screenshot: {picture}"))

    def _said(self, message: ConsoleMessage) -> None:
        line = f"{message.type}: {message.text} ({message.location.get('url')})"
        self.console.append(line)
        if message.type in WORSE:
            self._complain(line)

    def _raised(self, error: Error) -> None:
        self.console.append(f"uncaught: {error}")
        self._complain(self.console[-1])

    def _asked(self, request: Request) -> None:
        self.requests.append(request.url)
        asked = urlsplit(request.url)
        if asked.scheme != "data" and asked.netloc != urlsplit(self.base).netloc:
            self._complain(f"request to another host: {request.url}")

    def _complain(self, line: str) -> None:
        if not any(pattern.search(line) for pattern in self._expected):
            self.complaints.append(line)


def _line(violation: dict[str, str], node: dict[str, str]) -> str:
    return f"{violation['id']}: {node['target']} {node['html'][:200]} {node.get('failureSummary')}"
