"""Cancelling and running again, one task or many, from a form: read, asked again, done, told."""

import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import parse_qsl

import anyio
from starlette.requests import Request

from fastapi_bgx.console import Console
from fastapi_bgx.dashboard.filters import BadFilter
from fastapi_bgx.errors import StoreUnavailable
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import MOST_PAGE, MOST_SEARCH, Answer, FullRecord, Query

MOST_BODY = 64 * 1024
"""Bytes of a form."""
MOST_IDS = 200
"""Tasks that one form may name."""
AT_ONCE = 20
"""Tasks that are asked at the same time."""
NEXT = re.compile(r"(ui/(tasks|failures|now)(/[\w.%~-]+)?)?(\?[^\s#\\]*)?", re.ASCII)
"""Where a form may lead back to: a page of the dashboard, relative to it, and nowhere else."""

Action = Literal["cancel", "retry"]


class TooLarge(Exception):
    """The form has more than `MOST_BODY` bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What somebody wants to have done."""

    action: Action
    ids: tuple[str, ...]
    fingerprint: str
    """In the place of ids: the tasks that this error ended."""
    next: str
    """The page to go to afterwards, relative to the dashboard."""
    confirmed: bool
    depth: int
    """How many folders below the dashboard the page is that shows the dialog."""


async def read_form(request: Request) -> Form:
    """The form in the body of a request.

    Raises:
        TooLarge: it is longer than a form of the dashboard ever is.
        BadFilter: it does not say what to do, or with which tasks.
    """
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MOST_BODY:
                raise TooLarge
    return parse_form(bytes(body))


def parse_form(body: bytes) -> Form:
    """The form that a browser sent.

    Raises:
        BadFilter: it does not say what to do, or with which tasks.
    """
    try:
        pairs = parse_qsl(body.decode(), max_num_fields=MOST_IDS + 10)
    except ValueError:
        raise BadFilter([f"A form names at most {MOST_IDS} tasks."]) from None
    fields = dict(pairs)
    ids = tuple(dict.fromkeys(value for name, value in pairs if name == "id"))
    fingerprint = fields.get("fingerprint", "")
    problems = list(_problems(fields.get("action", ""), ids, fingerprint))
    if problems:
        raise BadFilter(problems)
    return Form(
        action=cast(Action, fields["action"]),
        ids=ids,
        fingerprint=fingerprint,
        next=safe_next(fields.get("next", "")),
        confirmed=fields.get("confirmed") == "yes",
        depth=2 if fields.get("depth") == "2" else 1,
    )


def _problems(action: str, ids: Sequence[str], fingerprint: str) -> list[str]:
    problems: list[str] = []
    if action not in ("cancel", "retry"):
        problems.append("What to do is “cancel” or “retry”.")
    if not ids and not fingerprint:
        problems.append("No task is selected: tick at least one.")
    if len(ids) > MOST_IDS:
        problems.append(f"A form names at most {MOST_IDS} tasks.")
    if any(len(text) > MOST_SEARCH or "\x00" in text for text in (*ids, fingerprint)):
        problems.append("No task has such an id.")
    return problems


def safe_next(path: str) -> str:
    """The path, when it is a page of the dashboard, or else its list of tasks."""
    return path if path and NEXT.fullmatch(path) else "ui/tasks"


async def chosen(console: Console, form: Form) -> tuple[list[str], dict[str, FullRecord]]:
    """The ids that a form means, and the records of those that are known."""
    ids = list(form.ids) or await _of_error(console, form.fingerprint)
    found: dict[str, FullRecord | None] = {}
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def look(task_id: str) -> None:
        async with limiter:
            found[task_id] = await _tried(console, task_id)

    async with anyio.create_task_group() as group:
        for task_id in ids:
            group.start_soon(look, task_id)
    return ids, {each: record for each, record in found.items() if record is not None}


async def _tried(console: Console, task_id: str) -> FullRecord | None:
    try:
        return await console.get(task_id)
    except StoreUnavailable:  # it is only shown before somebody confirms
        return None


async def _of_error(console: Console, fingerprint: str) -> list[str]:
    query = Query(
        fingerprint=fingerprint,
        status=frozenset({Status.FAILED, Status.TIMED_OUT}),
        limit=MOST_PAGE,
    )
    return [each.id for each in (await console.find(query)).records if each.retryable]


def able(action: Action, record: FullRecord | None) -> bool:
    """Whether an action may succeed, as far as its record tells."""
    if record is None:
        return False
    return not record.final if action == "cancel" else record.retryable


async def carry_out(console: Console, form: Form) -> list[tuple[str, Answer | None]]:
    """Do it, many at once; in the order of the ids. `None`: nobody knows the task."""
    answers: dict[str, Answer | None] = {}
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def do(task_id: str) -> None:
        async with limiter:
            answers[task_id] = await _one(console, form.action, task_id)

    async with anyio.create_task_group() as group:
        for task_id in form.ids:
            group.start_soon(do, task_id)
    return [(task_id, answers[task_id]) for task_id in form.ids]


async def _one(console: Console, action: Action, task_id: str) -> Answer | None:
    try:
        ask = console.cancel if action == "cancel" else console.retry
        return await ask(task_id)
    except StoreUnavailable as error:
        return Answer(done=False, detail=str(error))
