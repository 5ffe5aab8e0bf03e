"""What a store is asked, as SQL. Nothing here connects."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, TextClause, func, not_, select, tuple_, union_all

from fastapi_bgx.records import Query
from fastapi_bgx.stores.cursors import position_of
from fastapi_bgx.stores.sql.histograms import CLASSES
from fastapi_bgx.stores.sql.rows import LISTED, bounded, clean, micros
from fastapi_bgx.stores.sql.tables import BAD, OVERRUNNING, UNFINISHED, tasks

c: Any = tasks.c
MOST_FAILURE_NAMES = 10
ENDS_OF_PIECE = CLASSES * 32
"""A piece of a span times this, and the end class, make one number."""
FINGERPRINT: ColumnElement[str] = func.coalesce(c.fingerprint, "").label("fingerprint")
Condition = ColumnElement[bool] | TextClause


def page(query: Query, dialect: str) -> Select[Any]:
    """The records that fit, and one more when there are more.

    Raises:
        ValueError: the cursor is not one that a page gave.
    """
    conditions = list(_conditions(query, dialect))
    most = query.limit + 1
    if not query.status:
        return _newest(conditions, most)
    # The newest of each status are found in its part of the index, however rare it is.
    pieces = [_newest([c.status == str(each), *conditions], most) for each in sorted(query.status)]
    both = union_all(*(select(piece.subquery()) for piece in pieces)).subquery()
    return select(both).order_by(both.c.added_at.desc(), both.c.id.desc()).limit(most)


def _newest(conditions: Sequence[Condition], most: int) -> Select[Any]:
    return select(*LISTED).where(*conditions).order_by(c.added_at.desc(), c.id.desc()).limit(most)


def _conditions(query: Query, dialect: str) -> Iterator[Condition]:
    if query.name is not None:
        yield c.name == clean(query.name)
    if query.fingerprint is not None:
        yield c.fingerprint == clean(query.fingerprint)
    yield from _conditions_of_time(query)
    if query.overrunning is not None:
        yield OVERRUNNING if query.overrunning else not_(c.overrunning)
    if query.text:
        place = func.strpos if dialect == "postgresql" else func.instr
        yield place(c.searched, clean(query.text.casefold())) > 0
    if query.cursor is not None:
        added_at, task_id = position_of(query.cursor)
        at = bounded(round(added_at * 1e6))
        yield tuple_(c.added_at, c.id) < tuple_(at, clean(task_id))


def _conditions_of_time(query: Query) -> Iterator[Condition]:
    spans = (
        (c.added_at, query.since, query.until),
        (c.ended_at, query.ended_since, query.ended_until),
    )
    for column, since, until in spans:
        if since is not None:
            yield column >= micros(since)
        if until is not None:
            yield column < micros(until)


def changed(after: int, most: int) -> Select[Any]:
    """What has changed since, and one more when there is more."""
    return select(*LISTED).where(c.change > after).order_by(c.change).limit(most + 1)


def pieces(since: int, until: int, buckets: int) -> Select[Any]:
    """How many ended in each piece of a span, by end class: one number for both, which sorts fast.

    See `ENDS_OF_PIECE`.
    """
    piece = (c.ended_at - since) * buckets // max(1, until - since)
    key = (piece * ENDS_OF_PIECE + c.end_class).label("key")
    return _counted(key).where(*_ended(since, until)).group_by(key)


def names(since: int, until: int) -> Select[Any]:
    """How many of each name ended in a span, by end class."""
    columns = (c.name, c.end_class)
    return _counted(*columns).where(*_ended(since, until)).group_by(*columns)


def waits(since: int, until: int) -> Select[Any]:
    """How many of those that began and ended in a span had waited how long."""
    conditions = (*_ended(since, until), c.wait_class.is_not(None))
    return _counted(c.wait_class).where(*conditions).group_by(c.wait_class)


def unfinished() -> Select[Any]:
    """How many have not ended, by status."""
    return _counted(c.status).where(UNFINISHED).group_by(c.status)


def _counted(*columns: ColumnElement[Any]) -> Select[Any]:
    return _only(*columns, func.count().label("tasks"))


def _only(*columns: ColumnElement[Any]) -> Select[Any]:
    return select(*columns)


def _ended(since: int, until: int) -> tuple[Condition, ...]:
    return c.ended_at >= since, c.ended_at < until


def groups(since: int, until: int, most: int) -> Select[Any]:
    """What went wrong in a span, by fingerprint; those that ended last first."""
    last = func.max(c.ended_at).label("last")
    first = func.min(c.ended_at).label("first")
    columns = (FINGERPRINT, first, last, func.count().label("tasks"))
    return (
        _bad(*columns)
        .where(*_ended(since, until))
        .group_by(FINGERPRINT)
        .order_by(last.desc(), FINGERPRINT)
        .limit(most)
    )


def newest_of(lasts: Sequence[int]) -> Select[Any]:
    """What went wrong at these moments."""
    columns = (FINGERPRINT, c.ended_at, c.id, c.error_type, c.error_place, c.error_message)
    return _bad(*columns).where(c.ended_at.in_(lasts)).order_by(c.id)


def names_of(fingerprints: Sequence[str], since: int, until: int) -> Select[Any]:
    """The names of what went wrong, by fingerprint, those that ended last first."""
    last = func.max(c.ended_at)
    place = func.row_number().over(partition_by=FINGERPRINT, order_by=(last.desc(), c.name))
    ranked = (
        _bad(FINGERPRINT, c.name, place.label("place"))
        .where(*_ended(since, until), FINGERPRINT.in_(fingerprints))
        .group_by(FINGERPRINT, c.name)
        .subquery()
    )
    first = ranked.c.place <= MOST_FAILURE_NAMES
    return select(ranked).where(first).order_by(ranked.c.place)


def _bad(*columns: ColumnElement[Any]) -> Select[Any]:
    """Of what failed or timed out, by the index of just that; SQLite would guess another one."""
    return _only(*columns).where(BAD).with_hint(tasks, "INDEXED BY bgx_tasks_bad", "sqlite")
