"""The status API: what it answers, and what it says when it cannot."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fastapi_bgx.dashboard.api import MOST_BUCKETS
from fastapi_bgx.errors import BacklogFull, StoreUnavailable
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import MOST_PAGE, Answer
from fastapi_bgx.stores import MemoryStore
from tests.asgi import client_of
from tests.consoles import BEGAN, StandIn, api, every_status, record, store_with

PROBLEM = "application/problem+json"
SPAN = {
    "since": BEGAN.isoformat(),
    "until": (BEGAN + timedelta(hours=1)).isoformat(),
}


class Away(MemoryStore):
    """A store whose database does not answer."""

    def get(self, *_: Any) -> Any:
        raise StoreUnavailable("connection refused")

    find = summary = failures = changes = get  # type: ignore[assignment]


def names(answer: Any) -> list[str]:
    return [each["name"] for each in answer.json()["records"]]


def test_the_list_has_the_last_added_first(anyio_backend: str) -> None:
    client = client_of(api(store_with(record(1, name="a"), record(2, name="b"))), anyio_backend)
    answer = client.get("/bgx/tasks")
    assert answer.status_code == 200
    assert names(answer) == ["b", "a"]
    assert "traceback" not in answer.json()["records"][0]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"status": ["failed"]}, ["f"]),
        ({"status": ["failed", "running"]}, ["r", "f"]),
        ({"name": "s"}, ["s"]),
        ({"text": "MAIL server"}, ["f"]),
        ({"since": (BEGAN + timedelta(seconds=2)).isoformat()}, ["r", "f"]),
        ({"until": (BEGAN + timedelta(seconds=2)).isoformat()}, ["s"]),
        ({"since": "1969-01-01T00:00:00Z", "until": "9999-12-31T23:59:59-12:00"}, ["r", "f", "s"]),
        ({"ended_since": (BEGAN + timedelta(seconds=4)).isoformat()}, ["f"]),
        ({"ended_until": (BEGAN + timedelta(seconds=4)).isoformat()}, ["s"]),
        ({"fingerprint": "abc"}, ["f"]),
        ({"overrunning": "true"}, ["f"]),
        ({"overrunning": "false", "limit": "1"}, ["r"]),
    ],
)
def test_the_list_is_filtered_by_every_condition(asked: dict[str, Any], found: list[str]) -> None:
    store = store_with(
        record(1, name="s"),
        record(2, Status.FAILED, name="f", overrunning=True),
        record(3, Status.RUNNING, name="r"),
    )
    assert names(client_of(api(store), "asyncio").get("/bgx/tasks", params=asked)) == found


def test_a_cursor_leads_through_all_pages() -> None:
    client = client_of(api(store_with(*(record(n, name=str(n)) for n in range(5)))), "asyncio")
    found: list[str] = []
    asked: dict[str, Any] | None = {"limit": 2}
    while asked is not None:
        answer = client.get("/bgx/tasks", params=asked)
        found += names(answer)
        cursor = answer.json()["next_cursor"]
        asked = cursor and {"limit": 2, "cursor": cursor}
    assert found == ["4", "3", "2", "1", "0"]


def test_one_task_is_shown_with_everything_that_is_kept() -> None:
    client = client_of(api(store_with(record(1, Status.FAILED))), "asyncio")
    answer = client.get("/bgx/tasks/p-1").json()
    assert answer["traceback"] == "Traceback: ..."
    assert answer["steps"][0]["kind"] == "started"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/tasks/p-9"), ("POST", "/tasks/p-9/cancel"), ("POST", "/tasks/p-9/retry")],
)
def test_an_unknown_id_is_a_problem(method: str, path: str) -> None:
    answer = client_of(api(), "asyncio").request(method, f"/bgx{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json() == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "no task has the id 'p-9', or it is kept no longer",
    }


@pytest.mark.parametrize("action", ["cancel", "retry"])
def test_what_was_done_is_answered(action: str, anyio_backend: str) -> None:
    control = StandIn(p_1=Answer(done=True, task_id="p-2"))
    answer = client_of(api(control=control), anyio_backend).post(f"/bgx/tasks/p-1/{action}")
    assert answer.status_code == 200
    assert answer.json()["task_id"] == "p-2"
    assert control.asked == [(action, "p-1")]


def test_what_could_not_be_done_is_a_conflict_that_says_why() -> None:
    control = StandIn(p_1=Answer(done=False, detail="it has ended already: succeeded"))
    answer = client_of(api(control=control), "asyncio").post("/bgx/tasks/p-1/cancel")
    assert (answer.status_code, answer.headers["content-type"]) == (409, PROBLEM)
    assert answer.json()["detail"] == "it has ended already: succeeded"


@pytest.mark.parametrize(
    "refusal",
    [
        BacklogFull(5, retry_after=2.0),
        Answer(done=False, detail="5 background tasks are waiting already", retry_after_s=2.0),
    ],
)
def test_a_full_backlog_says_when_to_try_again(refusal: Answer | Exception) -> None:
    client = client_of(api(control=StandIn(p_1=refusal)), "asyncio")
    answer = client.post("/bgx/tasks/p-1/retry")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.headers["content-type"] == PROBLEM
    assert "waiting already" in answer.json()["detail"]


def test_looking_changes_nothing() -> None:
    answer = client_of(api(control=StandIn()), "asyncio").get("/bgx/tasks/p-1/cancel")
    assert answer.status_code == 405


def test_stats_sum_up_a_span_and_list_the_processes() -> None:
    store = store_with(*every_status())
    answer = client_of(api(store), "asyncio").get("/bgx/stats", params=SPAN | {"buckets": 4})
    stats = answer.json()
    assert stats["ended"]["failed"] == 1
    assert stats["unfinished"]["running"] == 1
    assert [len(stats["buckets"]), stats["bucket_s"]] == [4, 900]
    assert [process["id"] for process in stats["processes"]] == ["p-"]


def test_stats_are_of_the_last_day_unless_told() -> None:
    stats = client_of(api(), "asyncio").get("/bgx/stats").json()
    since, until = (datetime.fromisoformat(stats[key]) for key in ("since", "until"))
    assert until - since == timedelta(days=1)
    assert abs(datetime.now(UTC) - until) < timedelta(minutes=1)
    assert len(stats["buckets"]) == 60


def test_failures_are_grouped_by_error_and_place() -> None:
    store = store_with(record(1, Status.FAILED), record(2, Status.TIMED_OUT), record(3))
    answer = client_of(api(store), "asyncio").get("/bgx/failures", params=SPAN).json()
    assert [(each["fingerprint"], each["count"]) for each in answer["failures"]] == [("abc", 2)]
    assert datetime.fromisoformat(answer["since"]) == BEGAN


@pytest.mark.parametrize(
    ("path", "asked", "name"),
    [
        ("/tasks", {"status": "finished"}, "status"),
        ("/tasks", {"since": "yesterday"}, "since"),
        ("/tasks", {"since": "2026-03-01T12:00:00"}, "since"),
        ("/tasks", {"limit": MOST_PAGE + 1}, "limit"),
        ("/tasks", {"text": "x" * 201}, "text"),
        ("/tasks", {"text": "\0"}, "text"),
        ("/tasks", {"cursor": "nonsense"}, "cursor"),
        ("/tasks/%00", {}, "task_id"),
        ("/stats", {"buckets": MOST_BUCKETS + 1}, "buckets"),
        ("/stats", {"hours": "0"}, "hours"),
        ("/stats", {"hours": "nan"}, "hours"),
        ("/stats", {"since": SPAN["until"], "until": SPAN["since"]}, "since"),
        ("/failures", {"limit": 0}, "limit"),
        ("/events", {"after": -1}, "after"),
    ],
)
def test_a_wrong_request_is_a_problem_that_names_the_parameter(
    path: str, asked: dict[str, Any], name: str
) -> None:
    answer = client_of(api(), "asyncio").get(f"/bgx{path}", params=asked)
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    problem = answer.json()
    assert [flaw["name"].partition(".")[0] for flaw in problem["errors"]] == [name]
    assert name in problem["detail"]


def test_a_store_that_is_away_is_a_problem_for_now(anyio_backend: str) -> None:
    client = client_of(api(Away()), anyio_backend)
    for path in ("/tasks", "/tasks/p-1", "/stats", "/failures"):
        answer = client.get(f"/bgx{path}")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.headers["content-type"] == PROBLEM
        assert "connection refused" in answer.json()["detail"]


def test_every_route_and_field_is_described_in_the_document() -> None:
    app = api(store_with(record(1)))
    document = client_of(app, "asyncio").get("/openapi.json").json()
    operations = {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
    }
    assert set(operations) == {
        "bgx_list_tasks",
        "bgx_get_task",
        "bgx_cancel_task",
        "bgx_retry_task",
        "bgx_get_stats",
        "bgx_list_failures",
        "bgx_stream_events",
    }
    for operation in operations.values():
        assert operation["tags"] == ["background tasks"]
        assert operation["description"]
        assert all(parameter.get("description") for parameter in operation["parameters"])
        problems = {status for status in operation["responses"] if status != "200"}
        assert {"422", "503"} <= problems
        for status in problems:
            assert list(operation["responses"][status]["content"]) == [PROBLEM]
    for name, schema in document["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            assert described.get("description"), f"{name}.{field}"


def test_the_errors_of_the_application_stay_as_they_are() -> None:
    app = api()

    @app.get("/own/{number}")
    async def own(number: int) -> int:
        return number

    answer = client_of(app, "asyncio").get("/own/x")
    assert answer.headers["content-type"] == "application/json"
    assert isinstance(answer.json()["detail"], list)
