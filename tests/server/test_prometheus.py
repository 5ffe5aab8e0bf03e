"""Prometheus scrapes an application of several processes: one answers for all of them."""

import os
import signal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import require
from tests.server.conftest import Serve, Server
from tests.server.test_workers import add_in_every_worker

# A busy machine may take long to import everything, and uvicorn replaces whoever is silent for 5 s.
TWO_WORKERS = ("--workers", "2", "--timeout-worker-healthcheck", "60")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Where the processes keep their numbers."""
    require(os.name == "posix", "processes are not asked for here")
    files = tmp_path / "metrics"
    files.mkdir()
    return files


def scrape(server: Server) -> Samples:
    """All samples; none when a file of numbers has no bytes yet, where prometheus_client raises."""
    answer = server.client.get("/metrics")
    if answer.is_server_error:  # its issue 1199; Prometheus asks again, and so do we
        return {}
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(server: Server, name: str, **labels: str) -> float | None:
    return scrape(server).get((name, frozenset(labels.items())))


def test_one_worker_answers_for_all_and_not_for_the_dead(serve: Serve, files: Path) -> None:
    server = serve(
        "--workers",
        "2",
        app="metered:app",
        PROMETHEUS_MULTIPROC_DIR=str(files),
        BGX_MAX_THREADS="3",
    )
    ids = add_in_every_worker(server, "held", detached=True)
    server.all_logs(len(ids), "held.starts")

    def running() -> float | None:
        return value(server, "bgx_tasks_running", executor="async")

    def slots() -> float | None:
        return value(server, "bgx_limiter_slots", limiter="threads")

    # Gauges are the sum of both.
    server.until(lambda: running() == len(ids), "the tasks are not counted")
    assert slots() == 6

    # A worker dies, and uvicorn starts another one.
    held = [log["pid"] for log in server.logged("held.starts")]
    victim = held[0]
    os.kill(victim, signal.SIGKILL)
    left = len(ids) - held.count(victim)
    server.until(lambda: running() == left, "the tasks of the dead are still counted")
    assert not list(files.glob(f"gauge_live*_{victim}.db"))
    server.until(lambda: slots() == 6, "the new worker is not counted")

    # Counters are the sum of all, whatever becomes of them.
    server.release()
    succeeded = {"task": "held", "status": "succeeded"}
    server.until(
        lambda: value(server, "bgx_tasks_total", **succeeded) == left, "the ends are not counted"
    )
    assert value(server, "bgx_task_duration_seconds_count", task="held") == left
    assert value(server, "bgx_task_wait_seconds_bucket", task="held", le="+Inf") == left
    server.until(lambda: running() == 0, "something still runs")
    assert "bgx_" not in server.client.get("/own-metrics").text  # nothing is told by halves
    before = scrape(server)
    workers = [pid for pid in set(held) if pid != victim]
    os.kill(workers[0], signal.SIGKILL)
    server.until(
        lambda: not list(files.glob(f"gauge_live*_{workers[0]}.db")), "its gauges are still there"
    )
    after = scrape(server)
    counted = {key: count for key, count in before.items() if key[0].startswith("bgx_task_")}
    assert counted.items() <= after.items()

    server.send(signal.SIGTERM)
    server.end()
    assert not server.logged("bgx.listener_failed")


def test_gauges_are_written_without_a_lifespan(serve: Serve, files: Path) -> None:
    server = serve(app="metered:without_lifespan", PROMETHEUS_MULTIPROC_DIR=str(files))
    server.add("brief")
    server.until(
        lambda: value(server, "bgx_limiter_slots", limiter="threads") == 20, "nothing is written"
    )
    server.send(signal.SIGTERM)
    server.end()


def test_gauges_are_there_before_the_first_task(serve: Serve, files: Path) -> None:
    server = serve(app="metered:app", PROMETHEUS_MULTIPROC_DIR=str(files))
    server.until(lambda: value(server, "bgx_tasks_waiting") == 0, "nothing is written")
    server.add("brief")
    succeeded = {"task": "brief", "status": "succeeded"}
    server.until(lambda: value(server, "bgx_tasks_total", **succeeded) == 1, "it is not counted")
    server.send(signal.SIGTERM)
    server.end()
