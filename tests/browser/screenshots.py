"""The pictures in the docs: `python -m tests.browser.screenshots` writes `docs/how-to/dashboard/`.

The scene and its clock are the same each time, so that a picture changes only with the dashboard.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest.mock import patch

from tests.browser import chromium
from tests.browser.chromium import Browser
from tests.browser.pages import path_of
from tests.browser.scene import NOW, Scene
from tests.browser.serving import Served
from tests.browser.tab import Tab

FOLDER = Path(__file__).parents[2] / "docs" / "how-to" / "dashboard"
MOST_BYTES = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture: of which page, and how it is looked at."""

    name: str
    page: str
    scheme: Literal["light", "dark"] = "light"
    width: int = 1280
    height: int = 900
    phone: bool = False


PICTURES = (
    Picture(name="overview", page="overview"),
    Picture(name="overview-dark", page="overview", scheme="dark"),
    Picture(name="tasks", page="tasks"),
    Picture(name="task", page="task"),
    Picture(name="failures", page="failures"),
    Picture(name="now", page="now"),
    Picture(name="phone", page="tasks", width=390, height=844, phone=True),
)


@contextmanager
def standing_still() -> Iterator[Served]:
    """A dashboard at whose server it is always the same moment."""
    served = Served(scene=Scene(NOW))
    served.start()
    with patch("fastapi_bgx.dashboard.pages.utc_now", lambda: NOW):
        yield served
    served.stop()


def take(browser: Browser, served: Served, picture: Picture, folder: Path) -> Path:
    """Look at a page and write what is seen; the file."""
    context = browser.new_context(
        viewport={"width": picture.width, "height": picture.height},
        color_scheme=picture.scheme,
        reduced_motion="reduce",
        is_mobile=picture.phone,
        has_touch=picture.phone,
        timezone_id="UTC",
        locale="en-GB",
    )
    tab = Tab(context, served.url)
    tab.page.clock.install(time=NOW)
    tab.open(path_of(picture.page, served.scene))
    tab.page.clock.run_for(500)
    written = folder / f"{picture.name}.png"
    tab.page.screenshot(path=written, animations="disabled")
    context.close()
    return written


def main() -> None:
    """Write every picture."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots")
    parser.add_argument("--output", type=Path, default=FOLDER)
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    path = chromium.find()
    if path is None:
        raise SystemExit("no Chromium is on the path, and $CHROMIUM names none")
    with chromium.launched(path) as browser, standing_still() as served:
        for picture in PICTURES:
            written = take(browser, served, picture, folder)
            print(f"{written} {written.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
