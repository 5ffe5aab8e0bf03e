"""Whatever a task does, the server and its other tasks go on."""

import os
from collections.abc import Iterator
from signal import SIGKILL

import pytest

from tests.server.conftest import Server, serving, uvicorn


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a `BaseHTTPMiddleware` around the application."""
    directory = tmp_path_factory.mktemp("isolation")
    with serving(uvicorn(app="app:based"), directory) as server:
        yield server


@pytest.mark.parametrize("detached", [False, True])
def test_a_task_that_exits_does_not_end_the_server(server: Server, detached: bool) -> None:
    (task_id,) = server.add("exits", detached=detached)
    failed = server.log("task.failed", task_id=task_id)
    assert failed["error"] == "SystemExit"
    assert "the task wants to end everything" in failed["exception"]
    assert server.client.get("/up").json() == server.pid


def test_a_worker_process_that_is_killed_fails_its_task_alone(server: Server) -> None:
    (task_id,) = server.add("crunching", executor="process")
    worker = server.directory / "crunching"
    server.until(worker.exists, "there is no worker process")
    os.kill(int(worker.read_text()), SIGKILL)
    failed = server.log("task.failed", task_id=task_id)
    assert failed["error"] == "BrokenWorkerProcess"

    (next_id,) = server.add("double", executor="process")
    server.log("task.succeeded", task_id=next_id)
