"""Records, in each store that is here: a `Bgx` that records, and nobody else who listens."""

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from psycopg import sql

from fastapi_bgx.records import Query
from tests.benchmarks.contestants import Supervised

MEMORY = "records in memory"
SQLITE = "records in SQLite"
POSTGRESQL = "records in PostgreSQL"
PLACES = {
    MEMORY: "the memory of the process",
    SQLITE: "a file, in transactions of up to 500 records, written by a thread",
    POSTGRESQL: "a database of this machine, in transactions of up to 500 records",
}
SERVER = "host=127.0.0.1 port=5432 user=postgres dbname=postgres connect_timeout=2"
MOST_RECORDS = 2_500
"""Fewer than may wait for the thread that writes, so that none is lost; and soon written."""
FLUSH_SECONDS = 60.0


class Recording(Supervised):
    """Records each task."""

    most_tasks = MOST_RECORDS

    def __init__(self, name: str) -> None:
        super().__init__(name, logging.INFO, log_events=frozenset())

    async def open(self) -> None:
        self._place = ExitStack()
        url = self._place.enter_context(_place_of(self.name))
        self._settings = self._settings.model_copy(update={"store": url})
        await super().open()

    async def settle(self) -> None:
        """Wait until everything is in the store; nothing may be lost."""
        recorder = self._bgx.recorder
        kept = await asyncio.to_thread(recorder.flush, FLUSH_SECONDS)
        if not kept or recorder.lost:
            raise AssertionError(f"{self.name}: {recorder.lost} were lost; in time: {kept}")

    def kept(self, limit: int) -> int:
        """How many records there are; no more than `limit` are counted."""
        return len(self._bgx.recorder.store.find(Query(limit=limit)).records)

    async def close(self) -> None:
        await asyncio.to_thread(self._bgx.recorder.leave)
        await asyncio.to_thread(self._bgx.recorder.store.close)
        self._place.close()


def recordings() -> list[Recording]:
    """Those that can be measured here."""
    return [Recording(name) for name in PLACES if name != POSTGRESQL or _server_answers()]


@contextmanager
def _place_of(name: str) -> Iterator[str]:
    """The URL of a new and empty store, which is removed in the end."""
    if name == MEMORY:
        yield "memory"
    elif name == SQLITE:
        with TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'tasks.db'}"
    else:
        database = f"bgx_bench_{os.getpid()}"
        quoted = sql.Identifier(database)
        with psycopg.connect(SERVER, autocommit=True) as server:
            server.execute(sql.SQL("CREATE DATABASE {}").format(quoted))
            try:
                yield f"postgresql+psycopg://postgres@127.0.0.1:5432/{database}"
            finally:
                server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))


@cache
def _server_answers() -> bool:
    try:
        psycopg.connect(SERVER).close()
    except psycopg.OperationalError:
        return False
    return True
