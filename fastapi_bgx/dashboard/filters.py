"""What a list is filtered by: from the query of a URL to a `Query`, and back. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from urllib.parse import urlencode

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import MOST_SEARCH, Query

SPANS: dict[str, tuple[timedelta, str, int]] = {
    "15m": (timedelta(minutes=15), "15 min", 60),
    "1h": (timedelta(hours=1), "1 h", 60),
    "24h": (timedelta(hours=24), "24 h", 96),
    "7d": (timedelta(days=7), "7 days", 84),
}
"""The spans that a page offers: length, words, and how many pieces a plot has."""
ROWS = 50
"""Rows of a list."""


class BadFilter(ValueError):
    """The query of a URL asks for what cannot be; each problem is a sentence."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("; ".join(self.problems))


class Params(Protocol):
    """The query of a URL."""

    def get(self, key: str, default: str, /) -> str:
        """The last value of that name."""
        ...

    def getlist(self, key: str) -> list[str]:
        """All values of that name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What the form above the list of tasks holds, as texts that were checked."""

    status: tuple[Status, ...] = ()
    name: str = ""
    text: str = ""
    within: str = ""
    """The span that they were added in."""
    ended: str = ""
    """The span that they ended in."""
    since: str = ""
    until: str = ""
    fingerprint: str = ""
    overrunning: str = ""
    cursor: str = ""

    @property
    def narrow(self) -> bool:
        """True when they leave anything out."""
        return replace(self, cursor="") != Filters()

    def link(self, **changes: Any) -> str:
        """They as the query of a URL, with changes; begins with `?`."""
        changed = replace(self, **changes)
        pairs = [("status", str(status)) for status in changed.status]
        pairs += [(name, getattr(changed, name)) for name in TEXTS if getattr(changed, name)]
        return f"?{urlencode(pairs)}"

    def query(self, now: datetime) -> Query:
        """What to ask the store for."""
        since = _moment(self.since)
        if self.within:
            since = now - SPANS[self.within][0]
        return Query(
            status=frozenset(self.status),
            name=self.name or None,
            text=self.text or None,
            since=since,
            until=_moment(self.until),
            ended_since=now - SPANS[self.ended][0] if self.ended else None,
            fingerprint=self.fingerprint or None,
            overrunning=True if self.overrunning else None,
            limit=ROWS,
            cursor=self.cursor or None,
        )


def by_name(name: str) -> dict[str, str]:
    """The filter that finds the tasks of a name; those with a very long one by its beginning."""
    return {"name": name} if len(name) <= MOST_SEARCH else {"text": name[:MOST_SEARCH]}


TEXTS = (
    "name",
    "text",
    "within",
    "ended",
    "since",
    "until",
    "fingerprint",
    "overrunning",
    "cursor",
)


def read_filters(params: Params) -> Filters:
    """The filters in the query of a URL; what is empty was not asked for.

    Raises:
        BadFilter: something in it cannot be.
    """
    texts = {name: params.get(name, "").strip() for name in TEXTS}
    problems = [
        *_bad_statuses(params.getlist("status")),
        *_bad_texts(texts),
        *_bad_span(texts["within"]),
        *_bad_span(texts["ended"]),
        *_bad_moment("from", texts["since"]),
        *_bad_moment("to", texts["until"]),
    ]
    if problems:
        raise BadFilter(problems)
    statuses = dict.fromkeys(Status(value) for value in params.getlist("status") if value)
    return Filters(status=tuple(statuses), **texts)


def read_span(params: Params, default: str) -> str:
    """The span that a page is asked for.

    Raises:
        BadFilter: there is no such span.
    """
    within = params.get("within", "") or default
    problems = list(_bad_span(within))
    if problems:
        raise BadFilter(problems)
    return within


def _bad_statuses(values: Iterable[str]) -> Iterable[str]:
    known = ", ".join(Status)
    for value in values:
        if value and value not in list(Status):
            yield f"There is no status “{value[:50]}”; there are {known}."


def _bad_texts(texts: dict[str, str]) -> Iterable[str]:
    for name, value in texts.items():
        if len(value) > MOST_SEARCH:
            yield f"“{name}” is longer than {MOST_SEARCH} characters."
        if "\x00" in value:
            yield f"“{name}” has a character that no record has."


def _bad_span(within: str) -> Iterable[str]:
    if within and within not in SPANS:
        yield f"There is no span “{within[:50]}”; there are {', '.join(SPANS)}."


def _bad_moment(label: str, value: str) -> Iterable[str]:
    try:
        _moment(value)
    except (ValueError, OverflowError):
        yield f"“{value[:50]}” ({label}) is no time such as 2026-03-14T03:07."


def _moment(value: str) -> datetime | None:
    if not value:
        return None
    at = datetime.fromisoformat(value)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
