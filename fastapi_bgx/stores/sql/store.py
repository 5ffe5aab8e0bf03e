"""`SqlStore`: the protocol of `stores.base` over a database. Its SQL is in the modules beside."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Executable, RowMapping, delete, select, update

from fastapi_bgx.records import (
    Answer,
    Changes,
    Command,
    Failure,
    FullRecord,
    Page,
    ProcessReading,
    Query,
    Summary,
)
from fastapi_bgx.stores.cursors import cursor_at
from fastapi_bgx.stores.memory import position
from fastapi_bgx.stores.sql import changing, migrating, selects, summing
from fastapi_bgx.stores.sql.burying import abandoned
from fastapi_bgx.stores.sql.database import Connections, Database
from fastapi_bgx.stores.sql.rows import (
    clean,
    full_record_of,
    micros,
    process_of,
    process_row,
    record_of,
)
from fastapi_bgx.stores.sql.tables import commands, counter, processes, tasks
from fastapi_bgx.stores.sql.urls import url_of

COMMAND_AGE = timedelta(hours=1)
"""Commands that are older are of no use to anybody."""


class SqlStore:
    """Keeps records in SQLite or PostgreSQL, for all processes that use the same database.

    Nothing connects before the first call. The tables, whose names begin with `bgx_`, are made and
    upgraded then.
    """

    shared: bool = True

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        """Keep records there.

        Args:
            url: Such as `sqlite:///tasks.db` or `postgresql://user:password@host/database`.
            clock: Seconds since 1970.

        Raises:
            ValueError: the URL is none, or that of another database or driver.
            ImportError: the driver of the database is not installed.
        """
        self._url = url_of(url)
        self._dialect = self._url.get_backend_name()
        self._database = Database(self._url, _prepare)
        self._clock = clock

    def __repr__(self) -> str:
        """Where the records are, without the password."""
        return f"SqlStore({self._url.render_as_string(hide_password=True)!r})"

    def open(self) -> None:
        """Connect, and make or upgrade the tables. A second call does nothing."""
        self._database.open()

    def close(self) -> None:
        """Close the connections of this process."""
        self._database.close()

    def write(self, records: Sequence[FullRecord]) -> None:
        """Keep these, each in the place of what was known of its task: all of them, or none."""
        if records:
            self._database.check_file()
            with self._database.open().write() as connection:
                changing.keep(connection, changing.latest(records))

    def get(self, task_id: str) -> FullRecord | None:
        """Everything that is kept of a task."""
        rows = self._read(select(tasks).where(tasks.c.id == clean(task_id)))
        return full_record_of(rows[0]) if rows else None

    def find(self, query: Query) -> Page:
        """The records that fit, the last added first."""
        rows = self._read(selects.page(query, self._dialect))
        records = tuple(record_of(row) for row in rows[: query.limit])
        more = len(rows) > query.limit
        return Page(records=records, next_cursor=cursor_at(position(records[-1])) if more else None)

    def summary(self, since: datetime, until: datetime, buckets: int) -> Summary:
        """What ended between two moments, in so many pieces of time."""
        span = micros(since), micros(until)
        with self._database.open().read() as connection:
            pieces, names, waits, unfinished = (
                [(row[:-1], row[-1]) for row in connection.execute(statement)]
                for statement in (
                    selects.pieces(*span, buckets),
                    selects.names(*span),
                    selects.waits(*span),
                    selects.unfinished(),
                )
            )
        counted: dict[str, Any] = {"pieces": pieces, "names": names, "waits": waits}
        return summing.summary(since, until, buckets, **counted, unfinished=unfinished)

    def failures(self, since: datetime, until: datetime, most: int) -> tuple[Failure, ...]:
        """What failed or timed out, by error and place; those that ended last first."""
        span = micros(since), micros(until)
        with self._database.open().read() as connection:
            ask = connection.execute
            groups = ask(selects.groups(*span, most)).mappings().all()
            lasts = [row["last"] for row in groups]
            fingerprints = [row["fingerprint"] for row in groups]
            newest = ask(selects.newest_of(lasts)).mappings().all()
            names = ask(selects.names_of(fingerprints, *span)).mappings().all()
        return summing.failures(groups, newest, names)

    def changes(self, after: int | None, most: int) -> Changes:
        """What has changed after that change."""
        with self._database.open().read() as connection:
            last = connection.execute(select(counter.c.last)).scalar_one()
            if after is None:
                return Changes(last=last)
            if not 0 <= after <= last:
                return Changes(last=last, missed=True)
            rows = connection.execute(selects.changed(after, most)).mappings().all()
        if len(rows) > most:
            return Changes(last=last, missed=True)
        return Changes(records=tuple(map(record_of, rows)), last=last)

    def prune(self, before: datetime, most: int) -> int:
        """Forget those that ended before that moment, and the oldest ended ones beyond `most`.

        Commands older than an hour are forgotten, too.
        """
        hour_ago = micros(self._now() - COMMAND_AGE)
        self._write(delete(commands).where(commands.c.asked_at < hour_ago))
        forgotten = 0
        while True:
            with self._database.open().write() as connection:
                some = changing.forget(connection, micros(before), most)
            forgotten += some
            if some < changing.AT_ONCE:
                return forgotten

    def beat(self, process: ProcessReading) -> None:
        """Keep what a process says of itself, in the place of what it said before."""
        self._database.check_file()
        row = process_row(process)
        statement = changing.inserting(self._dialect, processes).values(row)
        self._write(statement.on_conflict_do_update(index_elements=[processes.c.id], set_=row))

    def leave(self, process: str) -> None:
        """Forget a process; its tasks are neither retryable nor overrunning any more."""
        with self._database.open().write() as connection:
            changing.let_go(connection, [clean(process)])

    def processes(self) -> tuple[ProcessReading, ...]:
        """The processes that were heard of and have not left, the oldest first."""
        order = processes.c.started_at, processes.c.id
        return tuple(
            process_of(row["reading"]) for row in self._read(select(processes).order_by(*order))
        )

    def bury(self, unseen_since: datetime) -> int:
        """Forget processes that have not been heard of since then, and end what they left open."""
        since = micros(unseen_since)
        ended = 0
        while True:
            with self._database.open().write() as connection:
                changing.take_numbers(connection, 0)
                rows = connection.execute(changing.left_open(since)).mappings().all()
                if not rows:
                    gone = connection.scalars(
                        select(processes.c.id).where(processes.c.seen_at < since)
                    ).all()
                    if gone:  # else its look at all tasks would be for nothing
                        changing.let_go(connection, gone)
                    return ended
                changing.keep(connection, [abandoned(row, since) for row in rows])
            ended += len(rows)

    def ask(self, command: Command) -> None:
        """Leave a command for another process."""
        row = command.model_dump() | {"asked_at": micros(self._now())}
        self._write(
            changing.inserting(self._dialect, commands).values(row).on_conflict_do_nothing()
        )

    def asked_of(self, process: str) -> tuple[Command, ...]:
        """The commands that a process was left and has not answered, the oldest first."""
        c = commands.c
        mine = c.process == clean(process), c.answer.is_(None)
        statement = select(c.id, c.process, c.task_id, c.action).where(*mine).order_by(c.number)
        return tuple(Command(**row) for row in self._read(statement))

    def answer(self, command: str, answer: Answer) -> None:
        """Answer a command, by its id."""
        mine = commands.c.id == clean(command)
        text = clean(answer.model_dump_json())
        self._write(update(commands).where(mine).values(answer=text))

    def answer_to(self, command: str) -> Answer | None:
        """The answer to a command; `None` as long as there is none."""
        rows = self._read(select(commands.c.answer).where(commands.c.id == clean(command)))
        text = rows[0]["answer"] if rows else None
        return None if text is None else Answer.model_validate_json(text)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _read(self, statement: Executable) -> Sequence[RowMapping]:
        with self._database.open().read() as connection:
            return connection.execute(statement).mappings().all()

    def _write(self, statement: Executable) -> None:
        with self._database.open().write() as connection:
            connection.execute(statement)


def _prepare(connections: Connections) -> None:
    with connections.read() as connection:
        current = migrating.is_current(connection)
    if not current:
        with connections.write() as connection:
            migrating.migrate(connection)
