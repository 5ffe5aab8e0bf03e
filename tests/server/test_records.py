"""Two workers share a store of records: any of them answers for any task, and reaches it."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import Server
from tests.server.sharing import (
    ENDS,
    Ends,
    ask,
    at_once,
    database,
    ends_logged,
    listed,
    look,
    processes,
    until_ended,
    workers,
)

EACH = 40
"""How many tasks of each kind there are."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    directory: Path = tmp_path_factory.mktemp("records")
    with database(request.param, directory) as url, workers(directory, url) as server:
        yield server


@pytest.fixture(scope="module")
def sent(server: Server) -> Ends:
    """How several hundred tasks are to end that eight clients have caused at once."""
    sent = at_once(server, [kind for _ in range(EACH) for kind in ENDS])
    until_ended(server)
    return sent


def test_each_accepted_task_has_one_record_with_its_right_end_whichever_worker_answers(
    server: Server, sent: Ends
) -> None:
    assert len(sent) == EACH * len(ENDS)
    for process in processes(server):
        records = listed(lambda path: ask(server, process, path))  # noqa: B023 - called at once
        assert len(records) == len(sent)
        assert {record["id"]: record["status"] for record in records} == sent
        for record in [*records[:5], *records[-5:]]:
            full = ask(server, process, f"/bgx/tasks/{record['id']}").json()
            differs = {name for name in record if full[name] != record[name]}
            assert differs <= {"change"}, differs
        assert {record["process"] for record in records} == set(processes(server)), "both have some"


def test_statistics_and_failures_agree_with_what_was_sent(server: Server, sent: Ends) -> None:
    for process in processes(server):
        stats = ask(server, process, "/bgx/stats").json()
        assert stats["ended"] == Counter(sent.values())
        assert {each["name"]: each["ended"] for each in stats["names"]} == {
            **{kind: EACH for kind in ENDS if kind != "refused"},
            "succeeds": 2 * EACH,  # that is the task of a refused request, too
        }
        assert sum(each["lost"] for each in stats["processes"]) == 0
        failures = ask(server, process, "/bgx/failures").json()["failures"]
        assert {(*each["names"], each["count"]) for each in failures} == {
            ("fails", EACH),
            ("gives_up", EACH),
            ("times_out", EACH),
        }


def test_prometheus_and_the_log_agree_with_the_records(server: Server, sent: Ends) -> None:
    text = server.client.get("/metrics").text
    counted: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "bgx_tasks_total":
                counted[sample.labels["status"]] += int(sample.value)
    assert +counted == Counter(sent.values())
    assert ends_logged(server) == Counter(sent.items()), "one end of each"


def test_the_stream_of_one_worker_tells_of_the_tasks_of_both(server: Server) -> None:
    with server.client.stream("GET", "/bgx/events") as response:
        lines = response.iter_lines()
        while not next(lines).startswith("id: "):
            pass
        missing = {
            task_id
            for process in processes(server)
            for task_id in ask(server, process, "/add/succeeds", "POST").json()
        }
        assert {task_id.rpartition("-")[0] for task_id in missing} == set(processes(server))
        while missing:
            name, _, data = next(lines).partition(": ")
            if name == "data" and (record := json.loads(data))["status"] == "succeeded":
                missing.discard(record["id"])


def test_a_status_url_of_one_worker_is_good_for_the_other(server: Server) -> None:
    url = server.client.post("/status-url").raise_for_status().json()
    for process in processes(server):
        answer = ask(server, process, url)
        assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
        assert ask(server, process, url[:-1]).status_code == 404


def test_any_worker_cancels_any_task_that_runs_or_waits(server: Server) -> None:
    for owner, other in both_ways(server):
        running, *_, waiting = ask(server, owner, "/add/held?count=3", "POST").json()
        for task_id in (running, waiting):
            answer = ask(server, other, f"/bgx/tasks/{task_id}/cancel", "POST")
            assert answer.json()["done"], answer.text
            server.until(lambda: ended(server, task_id) == "cancelled", "it goes on")  # noqa: B023


def test_any_worker_has_any_task_run_again_and_only_once(server: Server) -> None:
    for owner, other in both_ways(server):
        for asked in (owner, other):
            task_id = ask(server, owner, f"/flaky?text=for-{asked}", "POST").json()
            server.until(lambda: ended(server, task_id) == "failed", "it did not fail")  # noqa: B023
            answer = ask(server, asked, f"/bgx/tasks/{task_id}/retry", "POST")
            assert answer.json()["done"], answer.text
            again = answer.json()["task_id"]
            server.until(lambda: ended(server, again) == "succeeded", "it did not run")  # noqa: B023
            assert look(server, again)["retry_of"] == task_id
            assert len(server.logged("flaky.starts", id=again)) == 1
            assert again.startswith(owner), "where its arguments are held"


def ended(server: Server, task_id: str) -> str:
    """How, as whoever answers says."""
    return str(look(server, task_id)["status"])


def both_ways(server: Server) -> list[tuple[str, str]]:
    one, other = processes(server)
    return [(one, other), (other, one)]
