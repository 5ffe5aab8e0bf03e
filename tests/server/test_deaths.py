"""Workers that are killed, replaced and stopped: their records stay, and say what happened."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from fastapi_bgx.records import Query, Record
from fastapi_bgx.stores.sql import SqlStore
from tests.server.conftest import Server
from tests.server.sharing import (
    ENDS,
    Ends,
    add,
    ask,
    cause,
    database,
    ends_logged,
    look,
    processes,
    workers,
)

REASON = "its process ended without a shutdown"
LASTING = [kind for kind in ENDS if kind not in ("endless", "refused")]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with database(request.param, tmp_path) as url:
        yield url


def stored(url: str) -> dict[str, Record]:
    """Every record, as whoever comes later finds it."""
    found: dict[str, Record] = {}
    with closing(SqlStore(url)) as store:
        page = store.find(Query(limit=200))
        while True:
            found |= {record.id: record for record in page.records}
            if page.next_cursor is None:
                return found
            page = store.find(Query(limit=200, cursor=page.next_cursor))


def running(url: str) -> set[str]:
    """The processes that the store has heard of, and that have not left."""
    with closing(SqlStore(url)) as store:
        return {process.id for process in store.processes()}


def test_what_a_killed_worker_left_open_is_ended_and_nobody_else_is_touched(
    url: str, tmp_path: Path
) -> None:
    with workers(tmp_path, url, HASTE="1") as server:
        victim, other = processes(server)
        left = ask(server, victim, "/add/held?count=4", "POST").json()  # two of them wait
        others = ask(server, other, "/add/held?count=4", "POST").json()
        (done,) = ask(server, victim, "/add/fails", "POST").json()
        statuses = ["running", "running", "queued", "queued"]
        for ids in (left, others):
            server.until(lambda: [look(server, each)["status"] for each in ids] == statuses, "?")  # noqa: B023
        server.until(lambda: look(server, done)["status"] == "failed", "it did not fail")
        ask(server, victim, "/described")  # what has not been written dies with it
        os.kill(processes(server)[victim]["pid"], signal.SIGKILL)

        def replaced() -> bool:
            now = processes(server)
            return len(now) == 2 and victim not in now and other in now

        server.until(replaced, "the dead are not told from the living", 40)
        records = stored(url)
        ends = ["cancelled", "cancelled", "dropped", "dropped"]
        assert [records[each].status for each in left] == ends
        assert {records[each].reason for each in left} == {REASON}
        assert (records[done].status, records[done].reason) == ("failed", "")
        assert [records[each].status for each in others] == statuses
        for process in processes(server):
            answer = ask(server, process, f"/bgx/tasks/{left[0]}/cancel", "POST")
            assert answer.status_code == 409
            answer = ask(server, process, f"/bgx/tasks/{done}/retry", "POST")
            assert answer.status_code == 409
            assert "has ended" in answer.json()["detail"]
        server.release()
        server.until(
            lambda: {look(server, each)["status"] for each in others} == {"succeeded"}, "?"
        )


class Clients:
    """They ask for one task after another, until nobody answers."""

    def __init__(self, server: Server, count: int = 4) -> None:
        self.sent: Ends = {}
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for kind in LASTING:
                try:
                    (task_id,) = add(self._server, kind)
                except httpx.HTTPError:  # it drains, or is gone
                    return
                self.sent[task_id] = ENDS[kind]


def test_a_restart_under_load_loses_nothing_and_leaves_the_records_of_others_alone(
    url: str, tmp_path: Path
) -> None:
    with workers(tmp_path, url, HASTE="1") as old:
        old_processes = set(processes(old))
        first = {k: v for kind in ENDS for k, v in cause(old, kind).items()}
        held = add(old, "held", 3)
        new_directory = tmp_path / "new"
        new_directory.mkdir()
        with workers(new_directory, url, others=2, HASTE="1") as new:
            both = set(processes(new))
            assert old_processes < both, "whoever comes forgets nobody"
            assert look(new, held[0])["status"] == "running"
            with Clients(old) as clients:
                old.until(lambda: len(clients.sent) > 100, "nobody is served")
                old.send(signal.SIGTERM)
                later = {k: v for kind in LASTING for k, v in cause(new, kind).items()}
                old.release()
                assert old.end() == 0
            assert running(url) == both - old_processes, "they have left"
            new.send(signal.SIGTERM)
            assert new.end() == 0
            ends = ends_logged(old) + ends_logged(new)
    sent = {**first, **dict.fromkeys(held, "succeeded"), **clients.sent, **later}
    assert running(url) == set()
    assert {each.id: each.status for each in stored(url).values()} == sent
    assert ends == Counter(sent.items())
