"""The status API: JSON about tasks, what cancels them and what runs them again.

No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.
"""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from fastapi import Query as Parameter
from pydantic import AfterValidator, AwareDatetime, BeforeValidator

from fastapi_bgx.console import Console
from fastapi_bgx.dashboard.models import Failures, Statistics
from fastapi_bgx.dashboard.problems import Flaw, ProblemRaised, declared, unprocessable
from fastapi_bgx.errors import Unavailable
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import MOST_PAGE, MOST_SEARCH, Answer, FullRecord, Page, Query

TAGS = ["background tasks"]
MOST_BUCKETS = 500
LEAST_HOURS = 0.01
MOST_HOURS = 24 * 366
NO_NUL = r"^[^\x00]*$"  # PostgreSQL knows no such character, and no record has one
DATE = re.compile(r"\d{4}-\d\d-\d\d")
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def within_reach(moment: datetime) -> datetime:
    """The same moment in UTC, or the nearest that every store can count with."""
    return min(max(moment, EARLIEST), LATEST).astimezone(UTC)


def written_out(moment: str) -> str:
    """The same text.

    Raises:
        ValueError: a number, which pydantic would take for seconds or milliseconds.
    """
    if not DATE.match(moment):
        raise ValueError("it is written like 2026-03-01T12:00:00Z")
    return moment


Moment = Annotated[AwareDatetime, BeforeValidator(written_out), AfterValidator(within_reach)]
TaskId = Annotated[
    str, Path(description="The id of the task.", max_length=MOST_SEARCH, pattern=NO_NUL)
]


def text(description: str) -> Any:
    """A query parameter that is compared with texts of records."""
    return Parameter(description=description, max_length=MOST_SEARCH, pattern=NO_NUL)


Statuses = Annotated[list[Status], Parameter(description="One of these; give it several times.")]
Name = Annotated[str | None, text("Exactly this name.")]
Text = Annotated[
    str | None,
    text("This text, in whatever case, in its name, id, function, error or reason."),
]
Since = Annotated[Moment | None, Parameter(description="At this moment or later.")]
Until = Annotated[Moment | None, Parameter(description="Before this moment.")]


async def query(
    status: Statuses = [],  # noqa: B006 - FastAPI copies it, and 0.115 shows it in the document
    name: Name = None,
    text: Text = None,
    since: Annotated[Moment | None, Parameter(description="Added at this moment or later.")] = None,
    until: Annotated[Moment | None, Parameter(description="Added before this moment.")] = None,
    ended_since: Annotated[
        Moment | None, Parameter(description="Ended at this moment or later.")
    ] = None,
    ended_until: Annotated[
        Moment | None, Parameter(description="Ended before this moment.")
    ] = None,
    fingerprint: Annotated[str | None, text("Ended by this error; see `/failures`.")] = None,
    overrunning: Annotated[
        bool | None, Parameter(description="Whether its function still runs though it is over.")
    ] = None,
    limit: Annotated[int, Parameter(ge=1, le=MOST_PAGE, description="At most so many.")] = 50,
    cursor: Annotated[str | None, text("`next_cursor` of the page before.")] = None,
) -> Query:
    """The dependency that reads which tasks somebody wants."""
    return Query(
        status=frozenset(status),
        name=name,
        text=text,
        since=since,
        until=until,
        ended_since=ended_since,
        ended_until=ended_until,
        fingerprint=fingerprint,
        overrunning=overrunning,
        limit=limit,
        cursor=cursor,
    )


Span = tuple[datetime, datetime]


async def span(
    hours: Annotated[
        float,
        Parameter(
            ge=LEAST_HOURS,
            le=MOST_HOURS,
            description="The length of the span; unless `since` is given.",
        ),
    ] = 24,
    since: Annotated[Moment | None, Parameter(description="The beginning of the span.")] = None,
    until: Annotated[
        Moment | None, Parameter(description="The end of the span; now, unless given.")
    ] = None,
) -> Span:
    """The dependency that reads a span of time.

    Raises:
        ProblemRaised: it ends before it begins.
    """
    end = until or datetime.now(UTC)
    begin = since or end - timedelta(hours=hours)
    if begin >= end:
        raise unprocessable([Flaw(place="query", name="since", detail="must be before `until`")])
    return begin, end


class Api:
    """The routes, as methods; what they need is a `Console`."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def tasks(self, query: Annotated[Query, Depends(query)]) -> Page:
        """The tasks that meet every condition given, the last added first."""
        try:
            return await self._console.find(query)
        except ValueError as error:
            flaw = Flaw(place="query", name="cursor", detail=str(error))
            raise unprocessable([flaw]) from None

    async def task(self, task_id: TaskId) -> FullRecord:
        """Everything that is kept of one task."""
        record = await self._console.get(task_id)
        if record is None:
            raise no_such_task(task_id)
        return record

    async def cancel(self, task_id: TaskId) -> Answer:
        """Ask a task to stop. It may need a while to do so: look at its status."""
        return await _done(self._console.cancel, task_id)

    async def retry(self, task_id: TaskId) -> Answer:
        """Run a task that has ended once more, as a new task with the same arguments and options.

        Possible as long as its arguments are held: see `retryable`.
        """
        return await _done(self._console.retry, task_id)

    async def stats(
        self,
        span: Annotated[Span, Depends(span)],
        buckets: Annotated[
            int, Parameter(ge=1, le=MOST_BUCKETS, description="Into how many pieces.")
        ] = 60,
    ) -> Statistics:
        """What ended in a span of time, in pieces; what has not ended; which processes run."""
        summary = await self._console.summary(*span, buckets)
        processes = await self._console.processes()
        fields = {name: getattr(summary, name) for name in type(summary).model_fields}
        return Statistics(**fields, processes=processes)

    async def failures(
        self,
        span: Annotated[Span, Depends(span)],
        limit: Annotated[
            int, Parameter(ge=1, le=MOST_PAGE, description="At most so many kinds.")
        ] = 100,
    ) -> Failures:
        """What failed or timed out in a span of time, by error and the place that raised it."""
        since, until = span
        failures = await self._console.failures(since, until, limit)
        return Failures(since=since, until=until, failures=failures)


def no_such_task(task_id: str) -> ProblemRaised:
    """The problem of an id that nobody knows."""
    return ProblemRaised(404, f"no task has the id {task_id!r}, or it is kept no longer")


async def _done(ask: Callable[[str], Awaitable[Answer | None]], task_id: str) -> Answer:
    """What became of it.

    Raises:
        ProblemRaised: nobody knows the task, or it could not be done.
    """
    try:
        answer = await ask(task_id)
    except Unavailable as error:  # there is no room for one more task
        raise ProblemRaised(503, str(error.detail), retry_after=error.retry_after) from error
    if answer is None:
        raise no_such_task(task_id)
    if not answer.done:
        status = 409 if answer.retry_after_s is None else 503
        raise ProblemRaised(status, answer.detail, retry_after=answer.retry_after_s)
    return answer


def add_api(router: APIRouter, console: Console) -> None:
    """Add the routes of the status API."""
    api = Api(console)
    add_get(router, "/tasks", api.tasks, "bgx_list_tasks", "Find tasks", 422)
    add_get(router, "/tasks/{task_id}", api.task, "bgx_get_task", "Look at a task", 404, 422)
    _add_post(router, "/tasks/{task_id}/cancel", api.cancel, "bgx_cancel_task", "Cancel a task")
    _add_post(router, "/tasks/{task_id}/retry", api.retry, "bgx_retry_task", "Run a task again")
    add_get(router, "/stats", api.stats, "bgx_get_stats", "Sums and percentiles", 422)
    add_get(router, "/failures", api.failures, "bgx_list_failures", "Failures by error", 422)


def add_get(
    router: APIRouter,
    path: str,
    endpoint: Callable[..., Any],
    name: str,
    summary: str,
    *statuses: int,
    **options: Any,
) -> None:
    """Add a route that changes nothing and may answer with these problems, and with 503."""
    router.add_api_route(
        path,
        endpoint,
        methods=["GET"],
        name=name,
        operation_id=name,
        summary=summary,
        tags=list(TAGS),
        responses=declared(*statuses, 503),
        **options,
    )


def _add_post(
    router: APIRouter, path: str, endpoint: Callable[..., Any], name: str, summary: str
) -> None:
    router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        name=name,
        operation_id=name,
        summary=summary,
        tags=list(TAGS),
        responses=declared(403, 404, 409, 422, 503),
    )
