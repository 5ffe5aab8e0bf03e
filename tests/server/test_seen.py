"""Sentry and OpenTelemetry, as they are installed in an application that uvicorn serves."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.asgi import FASTAPI
from tests.server.conftest import Server, serving, uvicorn


@pytest.fixture(scope="module", params=["print", "stdlib"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("seen")
    with serving(uvicorn(app="seen:app"), directory, LOG=request.param) as server:
        yield server


def spans_of(server: Server, count: int, task: str) -> list[dict[str, Any]]:
    return server.all_logs(count, "span", name=f"task {task}")


@pytest.mark.parametrize("detached", [False, True])
def test_each_failure_is_one_event_with_its_request(server: Server, detached: bool) -> None:
    before = len(server.logged("sentry"))
    server.client.get(f"/fail/{detached}").raise_for_status()
    events = server.all_logs(before + 2, "sentry")[before:]
    assert sorted(event["error"] for event in events) == [["ConnectionError"], ["KeyError"]]
    for event in events:
        assert event["url"].endswith(f"/fail/{detached}")
        assert "/fail/" in event["route"]
        assert event["tags"]["task"] in ("fail", "fail_there")
    server.client.post(f"/mark/{before}").raise_for_status()
    server.log("mark", number=before)  # an event too many would have come before
    assert len(server.logged("sentry")) == before + 2


def test_what_a_retry_healed_is_two_spans_and_no_event(server: Server) -> None:
    before = server.logged("sentry")
    server.client.get("/heal").raise_for_status()
    first, second = spans_of(server, 2, "fail_once")
    assert [span["attributes"]["bgx.status"] for span in (first, second)] == [
        "retrying",
        "succeeded",
    ]
    assert first["trace"] == second["trace"]
    assert first["span"] in second["links"]
    assert server.logged("sentry") == before


@pytest.mark.skipif(FASTAPI < (0, 150), reason="FastAPI < 0.150 opens no spans")
def test_the_spans_of_tasks_are_in_the_trace_of_their_request(server: Server) -> None:
    server.client.get("/fail/true").raise_for_status()
    request = server.log("span", name="GET /fail/{detached}")
    traces = {span["trace"] for span in server.logged("span", name="GET /fail/{detached}")}
    assert request["trace"] in traces
    for task in ("fail", "fail_there"):
        assert {span["trace"] for span in spans_of(server, 1, task)} <= traces
        around = {span["span"] for span in server.logged("span", name="fastapi.background_task")}
        assert {span["parent"] for span in spans_of(server, 1, task)} <= around


def test_metrics_are_those_of_the_global_provider(server: Server) -> None:
    server.client.get("/fail/false").raise_for_status()
    spans_of(server, 1, "fail")
    found = server.client.get("/metrics").json()
    assert found["bgx.tasks.ended"] >= 2
    assert found["bgx.tasks.running"] == 3
