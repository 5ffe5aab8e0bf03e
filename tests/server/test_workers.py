"""Several processes serve one application: each drains and reports, and no two ids are the same."""

from collections.abc import Iterator
from signal import SIGTERM

import pytest

from tests.server.conftest import Server, serving, uvicorn

WORKERS = 2


def add_in_every_worker(server: Server, task: str, **query: bool) -> list[str]:
    """Ids of tasks; at least one of them runs in each worker."""
    server.client.headers["connection"] = "close"  # so that each request finds any of them
    ids: list[str] = []

    def every_one_runs_it() -> bool:
        ids.extend(server.add(task, **query))
        return len({log["pid"] for log in server.logged(f"{task}.starts")}) == WORKERS

    server.until(every_one_runs_it, "one worker gets all requests")
    return ids


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, list[str]]]:
    """Two workers that were stopped as systemd does: a signal for each process of the group.

    uvicorn's parent then sends each worker a second one.
    """
    directory = tmp_path_factory.mktemp("workers")
    command = uvicorn("--workers", str(WORKERS))
    with serving(command, directory, BGX_DRAIN_TIMEOUT="30") as server:
        ids = add_in_every_worker(server, "held")
        ids += add_in_every_worker(server, "held", detached=True)
        server.all_logs(len(ids), "held.starts")
        ids += server.add("held_process", executor="process")
        server.until((directory / "held_process").exists, "there is no worker process")
        server.send_all(SIGTERM)
        server.line("Terminated child process", WORKERS)
        server.line("Waiting for background tasks", WORKERS)
        server.release()
        assert server.end() == 0
        yield server, ids


def test_the_ids_of_all_workers_are_unique(stopped: tuple[Server, list[str]]) -> None:
    _, ids = stopped
    assert len(ids) == len(set(ids))


def test_every_worker_drains_and_reports(stopped: tuple[Server, list[str]]) -> None:
    server, ids = stopped
    reports = server.logged("bgx.drained")
    assert len(reports) == WORKERS
    assert sum(report["finished"] for report in reports) == len(ids)


def test_two_signals_for_one_stop_do_not_end_the_grace_period(
    stopped: tuple[Server, list[str]],
) -> None:
    server, ids = stopped
    assert not server.logged("task.cancelled")
    assert len(server.logged("held.ends")) == len(ids) - 1  # the last one is in a worker process


def test_a_signal_for_the_group_does_not_end_what_runs_in_a_worker_process(
    stopped: tuple[Server, list[str]],
) -> None:
    server, _ = stopped
    assert server.logged("task.succeeded", task="held_process")
