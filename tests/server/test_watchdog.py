"""Tasks that block the event loop of a real server are named while they do, and no others."""

import time
from signal import SIGCONT, SIGSTOP, SIGTERM

from tests.server.conftest import Serve, Server

REQUESTS = 5


def add_in_requests(server: Server, task: str) -> None:
    """Have each of some requests leave a task behind that runs on."""
    for _ in range(REQUESTS):
        server.add(task, detached=True)
    server.all_logs(REQUESTS, f"{task}.starts")


def test_two_tasks_that_block_are_named_and_those_of_other_requests_are_not(
    serve: Serve, loop: str
) -> None:
    server = serve(loop=loop, BGX_LOOP_BLOCK_AFTER="0.1", BGX_DRAIN_TIMEOUT="0")
    add_in_requests(server, "endless")
    for count, name in enumerate(("holds_loop", "holds_loop_later"), start=1):
        ids = server.add(name)
        during = server.log("task.blocked_loop", task=name, ended=False)
        assert f"in {name}\n" in during["stack"]
        assert "in holds_loop\n" in during["stack"]
        assert during["task_id"] == ids[0]
        assert not server.logged("task.blocked_loop", task=name, ended=True)
        server.release()
        after = server.log("task.blocked_loop", task=name, ended=True)
        assert after["blocked_s"] >= during["blocked_s"] >= 0.1
        assert len(server.logged("task.blocked_loop")) == 2 * count
        (server.directory / "release").unlink()
    server.send(SIGTERM)
    server.release()
    server.report()


def test_a_server_that_was_stopped_for_a_while_blames_nobody(serve: Serve, loop: str) -> None:
    server = serve(loop=loop, BGX_LOOP_BLOCK_AFTER="0.1")
    add_in_requests(server, "endless")
    add_in_requests(server, "held")  # these wake a hundred times in a second
    for _ in range(5):
        server.send(SIGSTOP)
        time.sleep(0.3)
        server.send(SIGCONT)
        server.client.get("/up").raise_for_status()
    server.release()
    server.all_logs(REQUESTS, "task.succeeded")
    assert not server.logged("task.blocked_loop")
