"""Templates: what every page has, how it is escaped, and how links find the dashboard.

Links are relative (`../../ui/tasks`), so that they work under any prefix and behind any proxy.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast
from urllib.parse import quote

from starlette.responses import HTMLResponse

from fastapi_bgx.dashboard import views
from fastapi_bgx.dashboard.assets import Assets
from fastapi_bgx.dashboard.filters import by_name
from fastapi_bgx.outcome import Status


class Templates:
    """Renders the templates of this package, with everything escaped."""

    def __init__(self, assets: Assets) -> None:
        """Load them.

        Raises:
            ImportError: Jinja2 is not installed.
        """
        try:
            import jinja2
        except ImportError as missing:
            raise ImportError(
                "the dashboard needs Jinja2: pip install 'fastapi-bgx[dashboard]', "
                "or leave it out with dashboard=False"
            ) from missing
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("fastapi_bgx.dashboard"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters.update(FILTERS)
        cast(dict[str, Any], self._environment.globals).update(
            Status=Status,
            asset=assets.url,
            by_name=by_name,
            share=views.share,
            many=views.many,
        )

    def page(
        self,
        template: str,
        depth: int,
        now: datetime,
        context: Mapping[str, Any],
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> HTMLResponse:
        """A page that is so many folders below the dashboard's own."""
        base = "../" * depth or "./"
        common = {"base": base, "depth": depth, "now": now}
        html = self._environment.get_template(template).render({**common, **context})
        return HTMLResponse(html, status, headers)


def segment(text: str) -> str:
    """A text as one segment of a path."""
    return quote(text, safe="")


FILTERS: dict[str, Any] = {
    "ago": views.ago,
    "clock": views.clock,
    "count": views.count,
    "duration": views.duration,
    "exact": views.exact,
    "iso": views.iso,
    "last_of_dots": views.last_of_dots,
    "segment": segment,
    "status_word": views.status_word,
    "step_word": views.step_word,
    "took": views.took,
    "traceback_lines": views.traceback_lines,
    "waited": views.waited,
    "why": views.why,
}
