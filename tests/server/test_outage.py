"""The database of two workers is killed and comes back, or is held by somebody: nobody waits."""

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

import pytest

from tests.postgres import cluster
from tests.server.conftest import Server
from tests.server.sharing import (
    Ends,
    add,
    ask,
    ends_logged,
    listed,
    look,
    processes,
    until_ended,
    workers,
)

ROOM = 600
"""How many records wait in each process while the database does not answer."""
STUCK = 1.0
"""Seconds that no request takes: far less than anybody waits for a database that is gone."""


class Outage:
    """One database that can be taken away."""

    def __init__(self, url: str, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self.url, self.begin, self.end = url, begin, end


@contextmanager
def killed_postgresql() -> Iterator[Outage]:
    with cluster() as running:
        yield Outage(running.url, running.kill, running.start)


@contextmanager
def held_sqlite(directory: Path) -> Iterator[Outage]:
    file = directory / "tasks.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        yield Outage(
            f"sqlite:///{file}",
            lambda: [other.execute("BEGIN EXCLUSIVE")].clear(),
            other.rollback,
        )


@pytest.fixture(params=["sqlite", "postgresql"])
def outage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outage]:
    opened = held_sqlite(tmp_path) if request.param == "sqlite" else killed_postgresql()
    with opened as outage:
        yield outage


def timed(server: Server, times: int, kind: str = "succeeds") -> tuple[list[float], list[str]]:
    """How long so many requests took, and the tasks they have added."""
    seconds, ids = [], []
    for _ in range(times):
        began = time.perf_counter()
        ids += add(server, kind)
        seconds.append(time.perf_counter() - began)
    return seconds, ids


def unavailable(server: Server) -> int:
    """How many workers have noticed."""
    return len(server.logged("bgx.store_unavailable"))


def test_while_the_database_is_gone_requests_and_tasks_go_on_and_what_is_lost_is_counted(
    outage: Outage, tmp_path: Path
) -> None:
    with workers(tmp_path, outage.url, ROOM=str(ROOM)) as server:
        before, ids = timed(server, 30)
        sent: Ends = dict.fromkeys(ids, "succeeded")
        outage.begin()
        try:
            # At once, and when everybody knows: no request waits.
            during, ids = timed(server, 15)
            sent |= dict.fromkeys(ids, "succeeded")
            server.until(lambda: unavailable(server) == 2, "somebody has not noticed")
            later, ids = timed(server, 15, "fails")
            sent |= dict.fromkeys(ids, "failed")
            assert max(during + later) < STUCK
            assert median(during + later) < 3 * median(before) + 0.02
            _the_api_says_so(server, outage, ids[-1])
            sent |= _more_than_there_is_room_for(server)
        finally:
            outage.end()
        server.all_logs(2, "bgx.store_back")
        until_ended(server)
        _only_what_had_no_room_is_lost(server, sent)
        # And it is used as before.
        (task_id,) = add(server, "recovers")
        server.until(lambda: look(server, task_id)["status"] == "succeeded", "it did not end")
        assert ends_logged(server) == Counter({**sent, task_id: "succeeded"}.items())


def _more_than_there_is_room_for(server: Server) -> Ends:
    """In each of the two; all have ended, and were let go or not."""
    sent: Ends = {}
    for process in _both(server):
        while sum(task_id.startswith(process) for task_id in sent) < 2 * ROOM:
            sent |= dict.fromkeys(add(server, "fails", ROOM // 4), "failed")
    server.until(lambda: sent.keys() <= {task for task, _ in ends_logged(server)}, "one goes on")
    for process in _both(server):
        ask(server, process, "/described").raise_for_status()
    return sent


def _both(server: Server) -> set[str]:
    """The ids of the workers, which no store has to tell."""
    found: set[str] = set()

    def are_found() -> bool:
        found.add(server.client.get("/up").headers["x-process"])
        return len(found) == 2

    server.until(are_found, "one is given no request")
    return found


def _the_api_says_so(server: Server, outage: Outage, task_id: str) -> None:
    own = ask(server, task_id.rpartition("-")[0], f"/bgx/tasks/{task_id}")
    assert (own.status_code, own.json()["status"]) == (200, "failed"), "its process remembers it"
    answers = [server.client.get(f"/bgx/{path}") for path in ("tasks", "stats", "failures")]
    if outage.url.startswith("sqlite"):  # who only reads does not wait for who writes
        assert {each.status_code for each in answers} == {200}
        return
    for answer in answers:
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["status"] == 503


def _only_what_had_no_room_is_lost(server: Server, sent: Ends) -> None:
    found: Ends = {}

    def all_are_there() -> bool:
        found.update({each["id"]: each["status"] for each in listed(server.client.get)})
        lost: int = sum(each["lost"] for each in processes(server).values())
        return len(found) + lost == len(sent)

    server.until(all_are_there, "some are neither there nor counted as lost")
    assert found.items() <= sent.items()
    for process, reading in processes(server).items():
        mine = [task_id for task_id in sent if task_id.startswith(f"{process}-")]
        kept = [task_id for task_id in mine if task_id in found]
        assert kept[-1] == mine[-1], "the newest are kept"
        assert reading["lost"] == len(mine) - len(kept) > 0
        assert len(kept) >= ROOM * 0.9
        assert server.log("bgx.store_back", lost=reading["lost"])
