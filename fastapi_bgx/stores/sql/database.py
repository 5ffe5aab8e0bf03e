"""Connections and transactions: engines of this process, and what becomes of their errors.

Nothing here knows what is kept. Nothing here connects before it is asked for a transaction.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from fastapi_bgx.errors import StoreUnavailable

CONNECT_SECONDS = 3
STATEMENT_SECONDS = 5
LOCK_SECONDS = 4
POOLED = 2
"""Connections that are kept open; up to `MOST_CONNECTIONS` are opened."""
MOST_CONNECTIONS = 8

Prepare = Callable[["Connections"], None]


class Database:
    """One database, reached over connections of the process that asks: none crosses a fork."""

    def __init__(self, url: URL, prepare: Prepare) -> None:
        self._url = url
        self._prepare = prepare
        self._connections: dict[int, Connections] = {}

    def open(self) -> "Connections":
        """The connections of this process, after `prepare` has had them once.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        here = self._connections.get(os.getpid())
        if here is None:  # what the parent had stays as it is: it is not ours to close
            here = self._connections.setdefault(os.getpid(), Connections(self._url))
        here.prepare_once(self._prepare)
        return here

    def check_file(self) -> None:
        """Look whether the file of a SQLite database is still where it was.

        SQLite itself would go on to write to one that nobody finds any more.

        Raises:
            StoreUnavailable: it was moved, deleted or replaced. The next call opens what is there,
                or makes it anew.
        """
        here = self.open()
        if here.moved():
            self.close()
            raise StoreUnavailable(f"{here.url.database}: it was moved, deleted or replaced")

    def close(self) -> None:
        """Close the connections of this process."""
        here = self._connections.pop(os.getpid(), None)
        if here is not None:
            here.close()


class Connections:
    """The connections of one process."""

    def __init__(self, url: URL) -> None:
        self.url = url
        """Where they lead."""
        engine = _engine(url)
        sqlite = url.get_backend_name() == "sqlite"  # where reading is repeatable anyway
        self._reading: Engine = (
            engine if sqlite else engine.execution_options(isolation_level="REPEATABLE READ")
        )
        self._writing = engine.execution_options(bgx_writes=True)
        # Absolute: a process may change its folder.
        self._path = Path(url.database or "").absolute() if sqlite else None
        self._file: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._prepared = False

    def prepare_once(self, prepare: Prepare) -> None:
        """Call `prepare`, unless that was done since the last failure."""
        if self._prepared:
            return
        with self._lock:
            if not self._prepared:
                prepare(self)
                self._file = self._file or self._found()
                self._prepared = True

    def moved(self) -> bool:
        """True when there is another file than the one that was prepared, or none."""
        return self._found() != self._file

    def _found(self) -> tuple[int, int] | None:
        """What tells one file from another; `None` where there is none."""
        try:
            stat = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return None if stat is None else (stat.st_dev, stat.st_ino)

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one moment."""
        return self._transaction(self._reading)

    def write(self) -> AbstractContextManager[Connection]:
        """A transaction that writes; in SQLite it is the only one."""
        return self._transaction(self._writing)

    def close(self) -> None:
        """Close them."""
        self._writing.dispose()

    @contextmanager
    def _transaction(self, engine: Engine) -> Generator[Connection, None, None]:
        try:
            with engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            self._prepared = False  # whoever restores a database may have left the tables out
            raise StoreUnavailable(reason(error, self.url)) from error


def reason(error: SQLAlchemyError, url: URL) -> str:
    """What went wrong, in a line that names no password and no values."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    lines = str(origin).strip().splitlines() or [type(origin).__name__]
    why = lines[0]
    if url.get_backend_name() == "sqlite":
        why = f"{url.database}: {_missing_folder(url) or why}"
    password = url.password
    return why.replace(str(password), "***") if password else why


def _missing_folder(url: URL) -> str | None:
    folder = Path(url.database or "").resolve().parent
    return None if folder.is_dir() else f"the folder {folder} does not exist"


def _engine(url: URL) -> Engine:
    sqlite = url.get_backend_name() == "sqlite"
    engine = create_engine(
        url,
        connect_args={"timeout": STATEMENT_SECONDS} if sqlite else _postgresql_arguments(url),
        pool_pre_ping=True,
        pool_size=POOLED,
        max_overflow=MOST_CONNECTIONS - POOLED,
        pool_timeout=STATEMENT_SECONDS,
        hide_parameters=True,
    )
    if sqlite:
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    elif "timeout" not in str(url.query.get("options", "")):
        event.listen(engine, "begin", _begin_postgresql)
    return engine


def _postgresql_arguments(url: URL) -> dict[str, Any]:
    """How long to wait for a server that is gone; the URL has the last word."""
    ours = {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        "tcp_user_timeout": 10_000,
        "application_name": "fastapi-bgx",
    }
    return {name: value for name, value in ours.items() if name not in url.query}


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA cache_size=-16000")  # in KiB
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """Have readers and a writer not wait for each other; the file remembers it."""
    patience = time.monotonic() + STATEMENT_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:  # another process does just that; nobody waits by itself
            if time.monotonic() > patience:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes then fails at once when another one has written.
    writes = connection.get_execution_options().get("bgx_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    # Not when connecting: a connection pooler in between may give each transaction another one.
    connection.exec_driver_sql(
        f"SELECT set_config('statement_timeout', '{STATEMENT_SECONDS}s', true), "
        f"set_config('lock_timeout', '{LOCK_SECONDS}s', true)"
    )
