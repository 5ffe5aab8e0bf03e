"""What a store is told, as SQL, for a connection inside of a transaction that writes."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Select, Table, and_, delete, or_, select, text, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import FullRecord
from fastapi_bgx.stores.sql.rows import bounded, row_of
from fastapi_bgx.stores.sql.tables import UNFINISHED, counter, processes, tasks

c: Any = tasks.c
OPEN = ", ".join(f"'{status}'" for status in Status if not status.final)
NOT_BACK = text(f"bgx_tasks.status IN ({OPEN}) OR excluded.status NOT IN ({OPEN})")
"""A record that has ended does not become one that has not."""
AT_ONCE = 1_000
"""Records that are forgotten or ended in one transaction, so that nobody waits long for it."""


def latest(records: Iterable[FullRecord]) -> list[FullRecord]:
    """One record of each task: the last, or the last that has ended."""
    kept: dict[str, FullRecord] = {}
    for record in records:
        before = kept.get(record.id)
        if before is None or record.final or not before.final:
            kept.pop(record.id, None)
            kept[record.id] = record
    return list(kept.values())


def take_numbers(connection: Connection, count: int) -> int:
    """The last change before `count` new ones, which nobody else is given.

    Whoever else writes waits from here to the end of the transaction.
    """
    taken = update(counter).values(last=counter.c.last + count).returning(counter.c.last)
    last: int = connection.execute(taken).scalar_one()
    return last - count


def keep(connection: Connection, records: Sequence[FullRecord]) -> None:
    """Write one record of each task, after what others have written."""
    change = take_numbers(connection, len(records))
    rows = [row_of(record, change + i) for i, record in enumerate(records, 1)]
    connection.execute(_upsert(connection.dialect.name), rows)


def _upsert(dialect: str) -> postgresql.Insert | sqlite.Insert:
    statement = inserting(dialect, tasks)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[c.id],
        set_={column.name: new[column.name] for column in c if column.name != "id"},
        where=NOT_BACK,
    )


def inserting(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    """`INSERT` with `ON CONFLICT`, which each database has its own class for."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def forget(connection: Connection, before: int, most: int) -> int:
    """Delete some of those that ended before, or are beyond the newest `most`; how many."""
    take_numbers(connection, 0)
    ended = select(c.ended_at, c.id).where(c.ended_at.is_not(None))
    newest = ended.order_by(c.ended_at.desc(), c.id.desc())
    beyond = connection.execute(newest.offset(bounded(most)).limit(1)).one_or_none()
    old = c.ended_at < before
    if beyond is not None and beyond.ended_at >= before:
        old = tuple_(c.ended_at, c.id) <= tuple_(beyond.ended_at, beyond.id)
    some = select(c.id).where(old).order_by(c.ended_at).limit(AT_ONCE)
    return connection.execute(delete(tasks).where(c.id.in_(some))).rowcount


def let_go(connection: Connection, gone: Sequence[str]) -> None:
    """Forget some processes; their tasks are neither retryable nor overrunning any more."""
    take_numbers(connection, 0)
    still = text("(retryable OR overrunning)"), c.process.in_(gone)
    connection.execute(update(tasks).where(*still).values(retryable=False, overrunning=False))
    connection.execute(delete(processes).where(processes.c.id.in_(gone)))


def left_open(unseen_since: int) -> Select[Any]:
    """Some unfinished tasks of processes that have not been heard of since, or never were.

    A process says that it is there before it writes. One that is not known any more has left, or
    was forgotten before its last records came.
    """
    p = processes.c
    unknown = and_(p.id.is_(None), c.added_at < unseen_since)
    return (
        select(tasks, p.seen_at)
        .select_from(tasks.outerjoin(processes, c.process == p.id))
        .where(UNFINISHED, or_(p.seen_at < unseen_since, unknown))
        .limit(AT_ONCE)
    )
