"""Two worker processes under load: tasks are cancelled by id, found, and unique in each process."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.server.conftest import Server, serving, uvicorn

WORKERS = 2
CLIENTS = 12
TASKS = 60
TRIES = 200
"""Requests after which surely every worker was asked."""


def with_clients(server: Server, act: Callable[[httpx.Client, int], object]) -> list[object]:
    """What `act` gives for each number, from many clients at once, who meet any worker."""

    def one(number: int) -> object:
        with httpx.Client(
            base_url=server.client.base_url,
            timeout=server.client.timeout,
            headers={"connection": "close"},
            trust_env=False,
            verify=False,
        ) as client:
            return act(client, number)

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(one, range(TASKS)))


def add_and_cancel(client: httpx.Client, number: int) -> str:
    """Every third one is left alone."""
    response = client.post("/add/endless", params={"detached": True}).raise_for_status()
    (task_id,) = response.json()
    if number % 3:
        for _ in range(TRIES):  # until it meets the worker that has the task
            if client.delete(f"/tasks/{task_id}").raise_for_status().json():
                return f"cancelled {task_id}"
        return f"not found {task_id}"
    return f"left {task_id}"


def add_unique(client: httpx.Client, number: int) -> str:
    params = {"key": f"key-{number % 4}"}
    answer = client.post("/add-unique/held", params=params).raise_for_status()
    return f"{params['key']} {answer.json()}"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, list[str]]]:
    """A server after many clients have added, cancelled and looked at once."""
    command = uvicorn("--workers", str(WORKERS), "--no-access-log")
    with serving(command, tmp_path_factory.mktemp("cancel"), BGX_DRAIN_TIMEOUT="0") as server:
        server.client.headers["connection"] = "close"
        yield server, [str(each) for each in with_clients(server, add_and_cancel)]


Loaded = tuple[Server, list[str]]


def ids(results: list[str], what: str) -> set[str]:
    return {line.rpartition(" ")[2] for line in results if line.startswith(what)}


def test_each_is_cancelled_by_the_worker_that_has_it(loaded: Loaded) -> None:
    server, results = loaded
    cancelled = ids(results, "cancelled")
    assert len(cancelled) == TASKS * 2 // 3, results
    lines = server.all_logs(len(cancelled), "task.cancelled", reason="cancel() was called")
    assert Counter(line["task_id"] for line in lines) == Counter(cancelled), "each of them once"


def test_every_worker_finds_its_own_tasks(loaded: Loaded) -> None:
    server, results = loaded
    running: dict[str, str] = {}
    cancelled: dict[str, str] = {}

    def seen() -> bool:
        running.update(server.client.get("/tasks", params={"status": "running"}).json())
        cancelled.update(server.client.get("/tasks", params={"status": "cancelled"}).json())
        return len(running) >= TASKS // 3 and len(cancelled) >= TASKS * 2 // 3

    server.until(seen, "not all of them are found")
    assert set(running) == ids(results, "left")
    assert set(cancelled) == ids(results, "cancelled")


def test_a_unique_task_is_there_once_in_each_worker(loaded: Loaded) -> None:
    server, _ = loaded
    added = {str(each) for each in with_clients(server, add_unique)}
    by_key = Counter(line.partition(" ")[0] for line in added)
    assert set(by_key) == {f"key-{number}" for number in range(4)}
    assert max(by_key.values()) <= WORKERS
    server.release()
    server.all_logs(len(added), "held.ends")
    assert len(server.logged("held.starts")) == len(added)
