"""The database of the records: which it may be, its tables, and what is said when it fails."""

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from importlib import reload
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import SQLAlchemyError

import fastapi_bgx.stores.sql
from fastapi_bgx.errors import StoreUnavailable
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import ProcessReading, Query
from fastapi_bgx.stores.sql import SqlStore, database, histograms, migrating
from fastapi_bgx.stores.sql.database import reason
from fastapi_bgx.stores.sql.tables import metadata
from fastapi_bgx.stores.sql.urls import url_of
from tests.conftest import require
from tests.postgres import address, schema
from tests.records import NOW, a_task

SECRET = "s3cr3t-p4ss"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/tasks.db"
    else:
        with schema(address()) as url:
            yield url


@contextmanager
def connected(url: str) -> Iterator[sqlalchemy.Connection]:
    engine = sqlalchemy.create_engine(url_of(url))
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def tables(url: str) -> set[str]:
    with connected(url) as connection:
        return set(sqlalchemy.inspect(connection).get_table_names())


# Which database.


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:///tasks.db", "sqlite"),
        ("sqlite+pysqlite:////var/tasks.db", "sqlite+pysqlite"),
        ("postgresql://localhost/tasks", "postgresql+psycopg"),
        ("postgres://localhost/tasks", "postgresql+psycopg"),
        ("postgresql+psycopg://localhost/tasks", "postgresql+psycopg"),
    ],
)
def test_sqlite_and_postgresql_are_databases(url: str, driver: str) -> None:
    assert url_of(url).drivername == driver


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:tasks?mode=memory&uri=true",
        f"mysql://root:{SECRET}@localhost/tasks",
        f"postgresql+asyncpg://root:{SECRET}@localhost/tasks",
        "sqlite+aiosqlite:///tasks.db",
        f"nonsense {SECRET}",
        f"postgresql://root:{SECRET}@localhost:port/tasks",
    ],
)
def test_every_other_url_is_refused_at_once_and_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///") as refused:
        SqlStore(url)
    assert SECRET not in str(refused.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi_bgx.stores.sql.urls.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"psycopg\[binary\]"):
        SqlStore("postgresql://localhost/tasks")


@pytest.mark.parametrize("missing", ["sqlalchemy", "alembic"])
def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"fastapi-bgx\[sql\]"):
        reload(fastapi_bgx.stores.sql)


def test_a_store_shows_no_password() -> None:
    shown = repr(SqlStore(f"postgresql://ada:{SECRET}@localhost/tasks"))
    assert shown == "SqlStore('postgresql+psycopg://ada:***@localhost/tasks')"


def test_construction_does_not_connect(tmp_path: Path) -> None:
    SqlStore(f"sqlite:///{tmp_path}/tasks.db").close()
    assert not list(tmp_path.iterdir())


# Its tables.


def test_the_revisions_make_the_tables_that_the_code_knows(url: str) -> None:
    with closing(SqlStore(url)) as store:
        store.open()
    with connected(url) as connection:
        options = {"version_table": "bgx_version", "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_tables_of_the_application_are_left_alone(url: str) -> None:
    with connected(url) as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE alembic_version (version_num TEXT)"))
        connection.execute(sqlalchemy.text("INSERT INTO alembic_version VALUES ('theirs')"))
    with closing(SqlStore(url)) as store:
        store.open()
    assert all(name.startswith("bgx_") for name in tables(url) - {"alembic_version"})
    with connected(url) as connection:
        rows = connection.execute(sqlalchemy.text("SELECT * FROM alembic_version")).all()
    assert rows == [("theirs",)]


def test_migrating_leaves_logging_as_it_was(url: str) -> None:
    before = (list(logging.root.handlers), logging.root.level)
    with closing(SqlStore(url)) as store:
        store.open()
    assert (logging.root.handlers, logging.root.level) == before
    assert not logging.getLogger("alembic").disabled


def test_many_workers_may_start_at_the_same_moment(url: str) -> None:
    stores = [SqlStore(url) for _ in range(6)]
    together = threading.Barrier(len(stores))
    errors: list[BaseException] = []

    def start(store: SqlStore) -> None:
        together.wait()
        try:
            store.write([a_task()])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(stores[0].find(Query()).records) == len(stores)
    for store in stores:
        store.close()


def test_tables_of_a_newer_version_are_refused(url: str) -> None:
    with closing(SqlStore(url)) as store:
        store.open()
    with connected(url) as connection:
        connection.execute(sqlalchemy.text("UPDATE bgx_version SET version_num = '9999'"))
    with closing(SqlStore(url)) as store, pytest.raises(StoreUnavailable, match="9999"):
        store.open()


SECOND_REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade():
    op.add_column("bgx_tasks", sa.Column("colour", sa.Text))
"""


def test_an_upgrade_keeps_what_is_there(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = a_task()
    with closing(SqlStore(url)) as store:
        store.write([task])
    scripts = tmp_path / "100% scripts"
    (scripts / "versions").mkdir(parents=True)
    for script in ("env.py", "versions/r0001_records.py"):
        (scripts / script).write_text((migrating.SCRIPTS / script).read_text())
    (scripts / "versions" / "r0002_colour.py").write_text(SECOND_REVISION)
    with connected(url) as connection:
        assert not migrating.is_current(connection, scripts)
        migrating.migrate(connection, scripts)
        migrating.migrate(connection, scripts)
        assert migrating.is_current(connection, scripts)
        columns = sqlalchemy.inspect(connection).get_columns("bgx_tasks")
    assert "colour" in {column["name"] for column in columns}
    with connected(url) as connection:
        # As a worker of the version before, which had opened it already.
        assert connection.execute(sqlalchemy.text("SELECT count(*) FROM bgx_tasks")).scalar() == 1


def test_the_revisions_are_beside_the_code() -> None:
    """As `.ci/run` runs this against the built wheel, they are in the wheel."""
    assert (migrating.SCRIPTS / "env.py").is_file()
    assert list((migrating.SCRIPTS / "versions").glob("r*.py"))


def test_tables_that_were_lost_are_made_anew(url: str) -> None:
    with closing(SqlStore(url)) as store:
        store.write([a_task()])
        with connected(url) as connection:
            for name in tables(url):
                connection.execute(sqlalchemy.text(f"DROP TABLE {name}"))
        with pytest.raises(StoreUnavailable):
            store.write([a_task()])
        store.write([a_task()])
        assert len(store.find(Query()).records) == 1


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_was_taken_away_is_noticed_and_made_anew(tmp_path: Path, how: str) -> None:
    file, other = tmp_path / "tasks.db", tmp_path / "other.db"
    record = a_task(Status.SUCCEEDED)
    process = ProcessReading(id="p", host="h", pid=1, started_at=NOW, seen_at=NOW)
    with (
        closing(SqlStore(f"sqlite:///{other}")) as reader,
        closing(SqlStore(f"sqlite:///{file}")) as store,
    ):
        reader.write([a_task()])
        for say in (partial(store.write, [record]), partial(store.beat, process)):
            store.write([a_task()])
            reader.close()
            file.unlink()
            if how == "replaced":
                for left in tmp_path.glob("tasks.db-*"):  # as SQLite asks of who replaces a file
                    left.unlink()
                shutil.copy(other, file)
            with pytest.raises(StoreUnavailable, match=r"tasks\.db: it was moved, deleted or"):
                say()
            store.write([record])
            assert store.get(record.id) is not None
            assert len(store.find(Query()).records) == (2 if how == "replaced" else 1)


def test_words_of_a_newer_version_are_left_out(url: str) -> None:
    process = ProcessReading(id="p", host="h", pid=1, started_at=NOW, seen_at=NOW)
    with closing(SqlStore(url)) as store:
        store.beat(process)
        with connected(url) as connection:
            newer = process.model_dump_json().replace('{"id"', '{"colour": "red", "id"', 1)
            change = sqlalchemy.text("UPDATE bgx_processes SET reading = :newer")
            connection.execute(change, {"newer": newer})
        assert store.processes() == (process,)


def test_each_end_keeps_its_number() -> None:
    """They are in databases: a change would turn old failures into something else."""
    ends = "succeeded failed timed_out cancelled expired rejected dropped"
    assert " ".join(histograms.ENDS) == ends
    assert set(histograms.ENDS) == {status for status in Status if status.final}


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-6, 0.001, 1.0, 59.99, 1e9])
def test_a_class_tells_a_duration_to_five_percent(seconds: float) -> None:
    told = histograms.middle_of(histograms.class_of(seconds))
    assert told == pytest.approx(seconds, rel=0.0501, abs=1e-6)


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, float("nan")])
def test_every_duration_has_a_class(seconds: float) -> None:
    assert 0 <= histograms.class_of(seconds) <= histograms.MOST_CLASS


# When it fails.


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path}/nowhere/tasks.db")
    with pytest.raises(StoreUnavailable, match="nowhere does not exist"):
        store.open()
    (tmp_path / "nowhere").mkdir()
    store.open()
    store.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks.db").write_text("This is no database. " * 100)
    store = SqlStore(f"sqlite:///{tmp_path}/tasks.db")
    with pytest.raises(StoreUnavailable, match=r"tasks\.db: file is not a database"):
        store.open()


def test_nobody_waits_for_ever_for_a_locked_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "STATEMENT_SECONDS", 0.1)
    with closing(SqlStore(f"sqlite:///{tmp_path}/tasks.db")) as store:
        store.open()
        with closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert store.find(Query()).records == ()  # readers do not wait
            with pytest.raises(StoreUnavailable, match="locked"):
                store.write([a_task()])
            other.execute("ROLLBACK")
        store.write([a_task()])


def test_a_fresh_file_is_waited_for_while_another_process_prepares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tasks.db"
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE theirs (x)")
        with monkeypatch.context() as patch, closing(SqlStore(f"sqlite:///{file}")) as impatient:
            patch.setattr(database, "STATEMENT_SECONDS", 0.05)
            with pytest.raises(StoreUnavailable, match="locked"):
                impatient.open()
        threading.Timer(0.1, other.execute, ["COMMIT"]).start()
        with closing(SqlStore(f"sqlite:///{file}")) as store:
            store.open()


def test_a_long_statement_and_a_long_wait_are_ended_by_postgresql() -> None:
    names = sqlalchemy.text(
        "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"
    )
    with schema(address()) as url, closing(SqlStore(url)) as store:
        connections = store._database.open()
        with connections.read() as connection:
            assert connection.execute(names).one() == ("5s", "4s")


def test_the_url_has_the_last_word_on_timeouts() -> None:
    with schema(address()) as url:
        url += "%20-cstatement_timeout%3D7s&connect_timeout=9"
        with closing(SqlStore(url)) as store, store._database.open().read() as connection:
            shown = connection.execute(sqlalchemy.text("SHOW statement_timeout"))
            assert shown.scalar_one() == "7s"
            raw: Any = connection.connection.dbapi_connection
            assert raw.info.get_parameters()["connect_timeout"] == "9"


def test_an_unreachable_server_is_said_without_the_password() -> None:
    store = SqlStore(f"postgresql://ada:{SECRET}@127.0.0.1:1/tasks")
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1") as failed:
        store.open()
    assert SECRET not in str(failed.value)


def test_a_reason_names_no_password_even_when_the_driver_does() -> None:
    url = url_of(f"postgresql://ada:{SECRET}@localhost/tasks")
    assert reason(SQLAlchemyError(f"no {SECRET}\nmore"), url) == "no ***"
    assert reason(SQLAlchemyError(""), url) == "SQLAlchemyError"


class TellingLock:
    """A lock that tells when somebody wants it."""

    def __init__(self, lock: AbstractContextManager[Any]) -> None:
        self._lock = lock
        self.wanted = threading.Event()

    def __enter__(self) -> None:
        self.wanted.set()
        self._lock.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)


def test_two_threads_prepare_a_database_once(tmp_path: Path) -> None:
    prepared: list[database.Connections] = []
    second = threading.Thread(target=lambda: shared.open())

    def prepare(connections: database.Connections) -> None:
        prepared.append(connections)
        lock = TellingLock(connections._lock)
        connections._lock = lock  # type: ignore[assignment]
        second.start()
        assert lock.wanted.wait(10)

    shared = database.Database(url_of(f"sqlite:///{tmp_path}/tasks.db"), prepare)
    shared.open()
    second.join()
    assert len(prepared) == 1


def test_a_forked_process_has_connections_of_its_own(url: str, tmp_path: Path) -> None:
    require(hasattr(os, "fork"), "this system cannot fork")
    script = f"""
import os, sys
from fastapi_bgx.stores.sql import SqlStore
from fastapi_bgx.records import Query
from tests.records import a_task
store = SqlStore({url!r})
store.write([a_task(id="parent")])
child = os.fork()
store.write([a_task(id=f"after {{'child' if child == 0 else 'parent'}}")])
if child == 0:
    store.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(sorted(record.id for record in store.find(Query()).records))
store.close()
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.strip() == "['after child', 'after parent', 'parent']", result.stderr


def test_a_switch_to_the_write_ahead_log_that_nobody_waited_for_is_tried_again() -> None:
    class Cursor:
        calls = 0

        def execute(self, statement: str) -> None:
            self.calls += 1
            if self.calls < 3:
                raise sqlite3.OperationalError("database is locked")

    cursor = Cursor()
    database._write_ahead(cursor)
    assert cursor.calls == 3
