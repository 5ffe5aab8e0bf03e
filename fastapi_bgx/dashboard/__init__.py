"""The router that `bgx.router()` gives: the status API, and the dashboard on top of it.

Here is what holds for all of its routes: nobody gets past its dependencies, `guard.py`.
"""

from collections.abc import Collection, Sequence

from fastapi import APIRouter
from fastapi.params import Depends

from fastapi_bgx.console import Console
from fastapi_bgx.dashboard.api import add_api
from fastapi_bgx.dashboard.guard import guarded_route
from fastapi_bgx.dashboard.pages import add_pages
from fastapi_bgx.dashboard.status import make_status_router, status_path
from fastapi_bgx.dashboard.stream import WhenClosing, add_stream, never
from fastapi_bgx.errors import Unguarded

__all__ = ["make_router", "make_status_router", "status_path"]


def make_router(
    console: Console,
    *,
    dependencies: Sequence[Depends] = (),
    public: bool = False,
    dashboard: bool = True,
    trusted_origins: Collection[str] = (),
    when_closing: WhenClosing = never,
) -> APIRouter:
    """The routes that show tasks, cancel them and run them again.

    Pages of `trusted_origins`, as in `https://ops.example.org`, may have browsers send what
    changes tasks; others than that of the router itself may not. Streams end when `when_closing`
    calls back.

    Raises:
        Unguarded: neither dependencies nor `public`.
        ValueError: a trusted origin that is not one.
        ImportError: the dashboard needs an extra that is not installed.
    """
    if not dependencies and not public:
        raise Unguarded("bgx.router")
    router = APIRouter(dependencies=list(dependencies), route_class=guarded_route(trusted_origins))
    add_api(router, console)
    add_stream(router, console, when_closing)
    if dashboard:
        add_pages(router, console)
    return router
