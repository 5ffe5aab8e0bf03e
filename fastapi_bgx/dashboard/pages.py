"""The pages of the dashboard: which route shows what. What they look like is in `templates/`.

Each page has a part that changes while tasks run. `?fragment=live` gives that part alone: an open
page asks for it again and again, so it is bounded.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial, wraps
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from fastapi_bgx.console import Console
from fastapi_bgx.dashboard import actions, graphs
from fastapi_bgx.dashboard.assets import Assets
from fastapi_bgx.dashboard.filters import SPANS, BadFilter, by_name, read_filters, read_span
from fastapi_bgx.dashboard.rendering import Templates
from fastapi_bgx.dashboard.timeline import timeline
from fastapi_bgx.dashboard.views import done_of, sum_up
from fastapi_bgx.errors import StoreUnavailable
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Query

Endpoint = Callable[[Request], Awaitable[Response]]
NIGHT = "24h"
"""The span that pages show unless they are asked for another: it holds last night."""
BAD = frozenset({Status.FAILED, Status.TIMED_OUT})
WAITING = frozenset({Status.QUEUED, Status.RETRYING})
NEWEST = 8
"""Failures on the overview."""
WORST = 10
"""Names on the overview."""
RELATED = 5
"""Other tasks on the page of one."""
FORGOTTEN = (
    "Records of ended tasks are kept for a while only; those in memory are gone when their "
    "process ends."
)


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def add_pages(router: APIRouter, console: Console) -> None:
    """Add the pages and their static files.

    Raises:
        ImportError: Jinja2 is not installed.
    """
    assets = Assets()
    pages = Pages(console, Templates(assets))
    routes: list[tuple[str, str, Endpoint]] = [
        ("GET", "/", pages.guarded(pages.live(pages.overview), 0)),
        ("GET", "/ui/tasks", pages.guarded(pages.live(pages.tasks), 1)),
        ("GET", "/ui/tasks/{task_id}", pages.guarded(pages.live(pages.task), 2)),
        ("GET", "/ui/failures", pages.guarded(pages.live(pages.failures), 1)),
        ("GET", "/ui/now", pages.guarded(pages.live(pages.now), 1)),
        ("POST", "/ui/actions", pages.guarded(pages.act, 1)),
        ("GET", "/static/{name}", assets.serve),
    ]
    for method, path, endpoint in routes:
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            name=f"bgx_page:{path}",
            include_in_schema=False,
        )


class Pages:
    """The endpoints."""

    def __init__(self, console: Console, templates: Templates) -> None:
        self._console = console
        self._templates = templates

    def guarded(self, endpoint: Endpoint, depth: int) -> Endpoint:
        """The endpoint, with a page for each error that a page may end with."""

        @wraps(endpoint)
        async def answer(request: Request) -> Response:
            problem = partial(self._problem, request, depth)
            try:
                return await endpoint(request)
            except BadFilter as error:
                return problem(422, "That cannot be done", *error.problems)
            except actions.TooLarge:
                return problem(413, "That is too much", "The form is too long.")
            except StoreUnavailable as error:
                return problem(503, "The records do not answer", f"{error.why}.")

        return answer

    def live(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint, for a page that wants to hear what changes after it was made.

        It asks where changes stand before it asks for anything else, so that none gets lost
        between the page and the stream.
        """

        @wraps(endpoint)
        async def answer(request: Request) -> Response:
            request.state.after = (await self._console.changes(None)).last
            return await endpoint(request)

        return answer

    def _problem(
        self, request: Request, depth: int, status: int, title: str, *problems: str
    ) -> HTMLResponse:
        context = {"title": title, "status": status, "problems": problems}
        headers = {"Retry-After": "5"} if status == 503 else None
        template = "problem_part.html" if _by_htmx(request) else "problem.html"
        return self._templates.page(template, depth, utc_now(), context, status, headers)

    def _show(self, request: Request, name: str, depth: int, **context: Any) -> HTMLResponse:
        live = request.query_params.get("fragment") == "live"
        template = f"{name}_live.html" if live else f"{name}.html"
        said = done_of(request.query_params.get("did", ""))
        common = {"said": said, "after": request.state.after}
        return self._templates.page(template, depth, utc_now(), {**context, **common})

    async def overview(self, request: Request) -> Response:
        """What ended in a span of time, what failed, and what is there now."""
        within = read_span(request.query_params, NIGHT)
        length, _, pieces = SPANS[within]
        now = utc_now()
        summary = await self._console.summary(now - length, now, pieces)
        newest = Query(status=BAD, ended_since=now - length, limit=NEWEST)
        return self._show(
            request,
            "overview",
            0,
            within=within,
            spans=SPANS,
            summary=summary,
            ended=sum(summary.ended.values()),
            failed=sum(summary.ended.get(status, 0) for status in BAD),
            throughput=graphs.throughput(summary),
            durations=graphs.durations(summary),
            worst=summary.names[:WORST],
            newest=(await self._console.find(newest)).records,
        )

    async def tasks(self, request: Request) -> Response:
        """The list of tasks."""
        filters = read_filters(request.query_params)
        try:
            page = await self._console.find(filters.query(utc_now()))
        except ValueError as error:
            raise BadFilter([f"{error}."]) from None
        return self._show(request, "tasks", 1, filters=filters, page=page, spans=SPANS)

    async def task(self, request: Request) -> Response:
        """Everything about one task."""
        task_id = request.path_params["task_id"]
        record = await self._console.get(task_id)
        if record is None:
            unknown = f"Nothing is known of the task {task_id[:100]}. {FORGOTTEN}"
            return self._problem(request, 2, 404, "No such task", unknown)
        same_error = Query(fingerprint=record.fingerprint, limit=RELATED + 1)
        same_name = Query.model_validate({**by_name(record.name), "limit": RELATED + 1})
        return self._show(
            request,
            "task",
            2,
            record=record,
            spans=timeline(record, utc_now()),
            same_error=await self._others(same_error, task_id) if record.fingerprint else [],
            same_name=await self._others(same_name, task_id),
        )

    async def _others(self, query: Query, task_id: str) -> list[Any]:
        found = (await self._console.find(query)).records
        return [record for record in found if record.id != task_id][:RELATED]

    async def failures(self, request: Request) -> Response:
        """What failed, by error and place."""
        within = read_span(request.query_params, NIGHT)
        now = utc_now()
        groups = await self._console.failures(now - SPANS[within][0], now)
        return self._show(request, "failures", 1, within=within, spans=SPANS, groups=groups)

    async def now(self, request: Request) -> Response:
        """What runs at this moment, and where."""
        find = self._console.find
        return self._show(
            request,
            "now",
            1,
            processes=await self._console.processes(),
            running=await find(Query(status=frozenset({Status.RUNNING}))),
            waiting=await find(Query(status=WAITING, limit=20)),
            overrunning=await find(Query(overrunning=True)),
        )

    async def act(self, request: Request) -> Response:
        """Cancel tasks or run them again: ask first, then do it and say what was done."""
        form = await actions.read_form(request)
        dialog = _by_htmx(request)
        if not form.confirmed:
            return await self._confirm(form, dialog)
        answers = await actions.carry_out(self._console, form)
        done = sum_up(form.action, [answer for _, answer in answers])
        if not dialog:
            glue = "&" if "?" in form.next else "?"
            return RedirectResponse(f"../{form.next}{glue}did={done.code()}", 303)
        context = {"form": form, "done": done, "answers": answers}
        told = {"HX-Trigger": "bgx:refresh"}
        return self._templates.page("done.html", form.depth, utc_now(), context, headers=told)

    async def _confirm(self, form: actions.Form, dialog: bool) -> Response:
        ids, known = await actions.chosen(self._console, form)
        able = [each for each in ids if actions.able(form.action, known.get(each))]
        context = {"form": form, "ids": ids, "known": known, "able": able, "dialog": dialog}
        template, depth = ("confirm_form.html", form.depth) if dialog else ("confirm.html", 1)
        return self._templates.page(template, depth, utc_now(), context)


def _by_htmx(request: Request) -> bool:
    return request.headers.get("hx-request") == "true"
