"""Retries on a real server with two workers, under load and when it is told to stop."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from signal import SIGTERM
from typing import Any

from tests.logs import FINAL
from tests.server.conftest import PATIENCE, Serve, Server

WORKERS = "2"
REQUESTS = 30
EACH = 10


def flood(server: Server) -> list[str]:
    """Add flaky tasks from many clients at once; the ids."""
    kinds: list[dict[str, Any]] = [
        {"task": task, "detached": detached}
        for task in ("flaky", "flaky_thread")
        for detached in (False, True)
    ]
    with ThreadPoolExecutor(8) as clients:
        added = clients.map(lambda n: server.add(count=EACH, **kinds[n % 4]), range(REQUESTS))
        return [task_id for ids in added for task_id in ids]


def ends(server: Server) -> dict[str, str]:
    """The final event of each task, of which there is one."""
    found = [(log["task_id"], log["event"]) for log in server.logs if log["event"] in FINAL]
    assert not [task_id for task_id, count in Counter(i for i, _ in found).items() if count > 1]
    return dict(found)


def test_under_load_every_flaky_task_is_tried_as_often_as_it_needs(serve: Serve) -> None:
    server = serve("--workers", WORKERS, BGX_MAX_CONCURRENCY="20", BGX_MAX_THREADS="4")
    ids = flood(server)
    server.until(lambda: len(ends(server)) == len(ids), "some tasks have no end")
    for task_id, event in ends(server).items():
        fails = int(task_id.rpartition("-")[2]) % 6
        assert event == ("task.succeeded" if fails < 4 else "task.failed")
        told = server.logged("task.retrying", task_id=task_id)
        assert sorted(log["attempt"] for log in told) == list(range(1, min(fails, 3) + 1))


def test_a_stop_in_the_middle_of_it_loses_no_task(serve: Serve) -> None:
    """Each has one end, and the reports of the workers add up."""
    server = serve("--workers", WORKERS, BGX_DRAIN_TIMEOUT="0.1", BGX_MAX_CONCURRENCY="4")
    patient = [server.add("patient", detached=True)[0] for _ in range(8)]
    server.all_logs(8, "task.retrying", task="patient")
    ids = flood(server)
    server.send_all(SIGTERM)
    assert server.end() == 0
    found = ends(server)
    queued = {log["task_id"] for log in server.logged("task.queued")}
    assert found.keys() == queued >= set(ids + patient)
    assert [found[task_id] for task_id in patient] == ["task.cancelled"] * 8
    reports = server.logged("bgx.drained")
    assert len(reports) == int(WORKERS)
    named = {ref.split()[1] for report in reports for ref in report["cancelled"]}
    assert named >= set(patient[:1])


def test_a_pause_that_outlasts_the_grace_period_does_not_delay_the_stop(serve: Serve) -> None:
    server = serve(BGX_DRAIN_TIMEOUT="30")
    server.add("patient")  # inline: its request waits for the next attempt
    server.add("patient", detached=True)
    server.all_logs(2, "task.retrying")
    server.send(SIGTERM)
    server.end()
    report = server.report()
    assert [ref.split()[0] for ref in report["cancelled"]] == ["patient"] * 2
    assert report["duration_s"] < PATIENCE
    for log in server.logged("task.cancelled"):
        assert (log["reason"], log["error"]) == ("shutdown", "ConnectionError")
