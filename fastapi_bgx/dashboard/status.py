"""The status of one task, for the user who caused it: a URL that only the application can make.

Ids can be guessed, so a URL has a token: the id and its signature. Who has the token may look at
that one task, as with a link that is sent by mail; that is why the route needs no other guard.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.params import Depends
from starlette.requests import HTTPConnection
from starlette.routing import NoMatchFound

from fastapi_bgx.dashboard.api import TAGS
from fastapi_bgx.dashboard.guard import guarded_route
from fastapi_bgx.dashboard.models import TaskResult, TaskStatus, result_of, status_of
from fastapi_bgx.dashboard.problems import ProblemRaised, declared
from fastapi_bgx.errors import NoStatusRoute
from fastapi_bgx.records import FullRecord
from fastapi_bgx.tokens import Tokens

ROUTE = "bgx_task_status"
MOST_TOKEN = 500

GetRecord = Callable[[str], Awaitable[FullRecord | None]]


def make_status_router(
    get: GetRecord,
    tokens: Tokens,
    *,
    dependencies: Sequence[Depends] = (),
    value: bool = False,
) -> APIRouter:
    """One route, `GET /{token}`, that tells the status of the task that the token is for."""

    async def bgx_task_status(
        token: Annotated[
            str, Path(description="From `bgx.status_url(task)`.", max_length=MOST_TOKEN)
        ],
    ) -> TaskStatus:
        """How far a task is, for who was given its token."""
        task_id = tokens.task_id(token)
        record = None if task_id is None else await get(task_id)
        if record is None:
            raise ProblemRaised(404, "there is no such task, or it is kept no longer")
        return result_of(record) if value else status_of(record)

    router = APIRouter(dependencies=list(dependencies), route_class=guarded_route())
    model: Any = TaskResult if value else TaskStatus
    router.add_api_route(
        "/{token}",
        bgx_task_status,
        methods=["GET"],
        response_model=model,
        name=ROUTE,
        operation_id=ROUTE,
        summary="The status of a task",
        tags=list(TAGS),
        responses=declared(404, 422, 503),
    )
    return router


def status_path(connection: HTTPConnection, token: str) -> str:
    """Where the route is, as a browser has to ask for it: with prefixes and `root_path`.

    Raises:
        NoStatusRoute: the application that serves the request does not include the router.
    """
    try:
        return connection.url_for(ROUTE, token=token).path
    except NoMatchFound:
        raise NoStatusRoute from None
