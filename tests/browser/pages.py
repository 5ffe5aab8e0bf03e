"""Every page of the dashboard, as the tests of all of them need it."""

from fastapi_bgx.outcome import Status
from tests.browser.scene import Scene

PAGES = ("overview", "tasks", "task", "failures", "now")
"""The names of the pages."""


def path_of(page: str, scene: Scene) -> str:
    """Where that page is; the one task is one that failed."""
    failed = scene.first(Status.FAILED, "charge_card")
    return {
        "overview": "/",
        "tasks": "/ui/tasks",
        "task": f"/ui/tasks/{failed.id}",
        "failures": "/ui/failures",
        "now": "/ui/now",
    }[page]
