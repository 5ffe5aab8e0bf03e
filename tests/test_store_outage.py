"""A database that is killed and comes back, and processes that write to one at once. All real."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fastapi_bgx.errors import StoreUnavailable
from fastapi_bgx.records import FullRecord, Query
from fastapi_bgx.stores.sql import SqlStore
from tests.postgres import Cluster, address, cluster, schema
from tests.records import a_task

PATIENCE = 20.0
"""Seconds after which what did not happen fails the test."""


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/tasks.db"
    else:
        with schema(address()) as url:
            yield url


def until(condition: Callable[[], object], what: str) -> None:
    patience = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < patience, what
        time.sleep(0.005)


class Writer:
    """A thread that writes one record after another, as the recorder does, and never stops."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kept: list[str] = []
        """What the store has taken."""
        self.refused: list[FullRecord] = []
        self.errors: list[BaseException] = []
        """What was raised that should not have been."""
        self.longest = 0.0
        """Seconds that one write took."""

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "a write hangs"

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            task = a_task()
            try:
                self._store.write([task])
                self.kept.append(task.id)
            except StoreUnavailable:
                self.refused.append(task)
                self._stop.wait(0.01)
            except BaseException as error:
                self.errors.append(error)
                return
            self.longest = max(self.longest, time.monotonic() - began)


def stored(store: SqlStore) -> set[str]:
    found: set[str] = set()
    query = Query(limit=200)
    while True:
        page = store.find(query)
        found |= {record.id for record in page.records}
        if page.next_cursor is None:
            return found
        query = Query(limit=200, cursor=page.next_cursor)


def test_a_killed_database_holds_nobody_up_and_is_used_again_when_it_is_back(
    server: Cluster,
) -> None:
    with schema(server.url) as url, closing(SqlStore(url)) as store:
        with Writer(store) as writer:
            until(lambda: len(writer.kept) > 20, "nothing was written")
            server.kill()
            until(lambda: len(writer.refused) > 2, "nobody noticed")
            with pytest.raises(StoreUnavailable):
                store.find(Query())
            with pytest.raises(StoreUnavailable):
                store.changes(None, 10)
            server.start()
            before = len(writer.kept)
            until(lambda: len(writer.kept) > before + 20, "it was not used again")
        assert writer.errors == []
        assert writer.longest < 10
        # What was taken is there, and what was refused can be written again.
        store.write(writer.refused)
        assert stored(store) >= {*writer.kept, *(task.id for task in writer.refused)}


def test_a_killed_database_of_many_connections_answers_all_of_them_again(server: Cluster) -> None:
    with schema(server.url) as url, closing(SqlStore(url)) as store:
        store.write([a_task()])
        for _ in range(2):
            together = threading.Barrier(4)

            def ask(together: threading.Barrier = together) -> None:
                together.wait(PATIENCE)
                store.find(Query())

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            server.kill()
            server.start()
        assert len(store.find(Query()).records) == 1


WRITE = """
import sys
from fastapi_bgx.outcome import Status
from fastapi_bgx.stores.sql import SqlStore
from tests.records import a_task

name, url, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = SqlStore(url)
print("ready", flush=True)
sys.stdin.readline()
for batch in range(batches):
    tasks = [a_task(Status.RUNNING, id=f"{name}-{batch}-{i}") for i in range(5)]
    store.write(tasks)
    store.write([task.model_copy(update={"note": "again"}) for task in tasks])
store.close()
"""


def test_a_third_process_sees_every_change_of_two_that_write_at_once(url: str) -> None:
    batches = 15
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, name, url, str(batches)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    with closing(SqlStore(url)) as store:
        last = store.changes(None, 1).last
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        newest: dict[str, str] = {}
        order: list[int] = []
        ended = False
        while not ended:
            ended = all(writer.poll() is not None for writer in writers)
            changes = store.changes(last, 10_000)
            assert not changes.missed
            newest |= {record.id: record.note for record in changes.records}
            order += [record.change for record in changes.records]
            last = changes.last
            time.sleep(0.002)
        said = [writer.communicate()[1] for writer in writers]
        assert [writer.returncode for writer in writers] == [0, 0], said
        assert order == sorted(set(order)), "a change came after a later one"
        names = {f"{n}-{b}-{i}" for n in "ab" for b in range(batches) for i in range(5)}
        assert newest == dict.fromkeys(names, "again")
        assert stored(store) == names
