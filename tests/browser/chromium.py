"""The browser: where it is on this machine, and how it is started. Only this imports Playwright.

Test modules take Playwright's names from here: without Playwright they are skipped as a whole, with
the reason, and with `CI_NO_SKIP` that is an error.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

try:
    from playwright.sync_api import (
        Browser,
        BrowserContext,
        ConsoleMessage,
        Dialog,
        Error,
        Locator,
        Page,
        Request,
        expect,
        sync_playwright,
    )
except ImportError:
    if os.environ.get("CI_NO_SKIP"):
        raise
    pytest.skip("playwright is not installed: group `browser`", allow_module_level=True)

__all__ = [
    "Browser",
    "BrowserContext",
    "ConsoleMessage",
    "Dialog",
    "Error",
    "Locator",
    "Page",
    "Request",
    "expect",
    "find",
    "launched",
]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.test 127.0.0.1",
)
"""It asks nobody for anything of its own accord. Every host under `.test` is this machine."""


def find() -> str | None:
    """The path of a Chromium: `$CHROMIUM`, or the first that is on the path."""
    named = (os.environ.get("CHROMIUM"), *NAMES)
    return next((path for name in named if name and (path := shutil.which(name))), None)


@contextmanager
def launched(path: str) -> Iterator[Browser]:
    """A browser, until the end of the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=list(QUIET), ignore_default_args=["--hide-scrollbars"]
        )
        try:
            yield browser
        finally:
            browser.close()
