"""Endpoints never pay for tasks: a sync route answers while every thread for tasks is taken."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.conftest import Server, serving, uvicorn

THREADS = 40  # as many as Starlette has for sync routes: tasks in those would leave none over


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Server]:
    """A server that was given twice as many sync tasks as there are threads for them."""
    with serving(uvicorn(), tmp_path, BGX_MAX_THREADS=str(THREADS)) as server:
        for _ in range(2 * THREADS):
            server.client.post("/add-sync/held_thread").raise_for_status()
        server.all_logs(THREADS, "held_thread.starts")
        yield server


def test_a_sync_route_answers_while_every_thread_for_tasks_is_taken(busy: Server) -> None:
    for _ in range(50):
        busy.client.get("/innocent").raise_for_status()
    assert not busy.logged("held_thread.ends")


def test_a_sync_route_answers_while_hundreds_of_sync_tasks_wait(busy: Server) -> None:
    busy.add("held_thread", count=200, detached=True)
    busy.add("held_thread", count=200)
    for _ in range(50):
        busy.client.get("/innocent").raise_for_status()
    assert not busy.logged("held_thread.ends")
    assert len(busy.logged("held_thread.starts")) == THREADS  # no more than there may be

    busy.release()
    busy.all_logs(2 * THREADS + 400, "task.succeeded")
