"""A flood: what is too much is refused, what was accepted runs exactly once, and limits hold."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import httpx
import pytest

from tests.server.conftest import Server, serving, uvicorn

THREADS = 3
BACKLOG = 20
REQUESTS = 400
CLIENTS = 25


def flood(server: Server, **query: bool) -> list[httpx.Response]:
    """Many requests at once, each of which adds one task."""

    # A client for each thread: one that many share now and then reads from a connection that
    # another has just closed.
    def posts(_: int) -> list[httpx.Response]:
        url, patience = server.client.base_url, server.client.timeout
        with httpx.Client(base_url=url, timeout=patience, trust_env=False, verify=False) as client:
            return [client.post("/add/counted", params=query) for _ in range(REQUESTS // CLIENTS)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [answer for answers in pool.map(posts, range(CLIENTS)) for answer in answers]


@pytest.fixture(params=[False, True], ids=["inline", "detached"], scope="module")
def flooded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, list[httpx.Response]]]:
    """A server after two floods: one while no task could end, and one while tasks ran."""
    directory = tmp_path_factory.mktemp("flood")
    settings = {"BGX_MAX_THREADS": str(THREADS), "BGX_MAX_BACKLOG": str(BACKLOG)}
    with serving(uvicorn("--no-access-log"), directory, **settings) as server:
        answers = flood(server, detached=request.param)
        server.release()
        answers += flood(server, detached=request.param)
        accepted = sum(answer.is_success for answer in answers)
        server.all_logs(accepted, "task.succeeded", task="counted")
        yield server, answers


Flooded = tuple[Server, list[httpx.Response]]


def test_what_is_too_much_is_answered_503_with_retry_after(flooded: Flooded) -> None:
    _, answers = flooded
    assert {answer.status_code for answer in answers} == {200, HTTPStatus.SERVICE_UNAVAILABLE}
    refused = [answer for answer in answers if not answer.is_success]
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)


def test_no_more_wait_than_the_backlog_holds(flooded: Flooded) -> None:
    _, answers = flooded
    accepted = sum(answer.is_success for answer in answers[:REQUESTS])
    assert BACKLOG <= accepted <= BACKLOG + THREADS


def test_every_accepted_task_ran_exactly_once(flooded: Flooded) -> None:
    server, answers = flooded
    accepted = [task_id for answer in answers if answer.is_success for task_id in answer.json()]
    ran = Counter(log["id"] for log in server.logged("counted.ends"))
    assert ran == Counter(accepted)


def test_no_more_tasks_run_at_once_than_there_are_threads(flooded: Flooded) -> None:
    server, _ = flooded
    assert server.client.get("/most").json() == THREADS


def test_every_refusal_is_logged(flooded: Flooded) -> None:
    server, answers = flooded
    rejected = server.logged("task.rejected", task="counted", reason="the backlog is full")
    assert len(rejected) == sum(not answer.is_success for answer in answers)
