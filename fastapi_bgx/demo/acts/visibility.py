"""What is seen of tasks: their records, the same task run again, metrics, and the dashboard."""

import re
import time

from fastapi_bgx.demo.customers import Customers
from fastapi_bgx.demo.stage import PATIENCE, Stage
from fastapi_bgx.outcome import Status


def records(stage: Stage) -> None:
    stage.title("What failed, and why?")
    task = stage.look(
        "/bgx/tasks?status=failed&name=charge_card", "error_type", "error_message", "error_place"
    )
    full = stage.look(f"/bgx/tasks/{task['id']}", "added_at", "queued_s", "duration_s")
    stage.check("charge_card" in full["traceback"], "the record should have the traceback")
    failures = stage.send("GET", "/bgx/failures?hours=1")
    groups = [
        f"\n  {each['count']} x {each['error_type']} at {each['error_place']}"
        for each in failures.json()["failures"]
    ]
    stage.show(failures, text="".join(groups))
    stage.say(
        """The failures of the first acts can be looked up, with their tracebacks, their log lines
        and each of their attempts. app.include_router(bgx.router(dependencies=[...])) is all that
        it takes; Settings(store="sqlite:///tasks.db") keeps them, for all processes together."""
    )


def by_hand(stage: Stage) -> None:
    stage.title("What failed is run again, by hand")
    failed = stage.look("/bgx/tasks?name=charge_card", "id", "status", "retryable")
    stage.request("POST", "/bank?answers=true")
    again = stage.request("POST", f"/bgx/tasks/{failed['id']}/retry").json()["task_id"]
    stage.log("card.charged", "task.succeeded charge_card", by_request=False)
    record = stage.look(f"/bgx/tasks/{again}", "status", "retry_of")
    stage.check(record["retry_of"] == failed["id"], "the record should say what it is a retry of")
    stage.request("POST", f"/bgx/tasks/{again}/retry", expect=409)
    stage.send("POST", "/bank?answers=false")
    stage.say(
        """The bank is back, and the order is paid: the same function, with the same arguments. The
        dashboard has a button for it, and one for all failures of a kind."""
    )


def metrics(stage: Stage) -> None:
    stage.title("Prometheus asks")
    answer = stage.send("GET", "/metrics")
    if answer.status_code == 404:
        stage.show(answer, text="(prometheus-client is not installed)")
    else:
        counts = re.findall(r"^bgx_tasks_total.* [1-9].*$", answer.text, re.MULTILINE)
        stage.check(counts, "the metrics should count tasks")
        stage.show(answer, text="\n".join(["", *counts[:3], "..."]))
    stage.say("fastapi_bgx.listeners.prometheus counts and times; docs/how-to/prometheus.md.")


def dashboard(stage: Stage) -> None:
    stage.title("The dashboard, with tasks in every state")
    Customers(stage).come_all_at_once()
    deadline = time.monotonic() + PATIENCE
    while missing := set(Status) - states_on(page := stage.send("GET", "/bgx/").text):
        stage.check(time.monotonic() < deadline, f"the overview should list tasks: {missing}")
        time.sleep(0.05)
    stage.write(f"> GET /bgx/: {', '.join(sorted(states_on(page)))}")
    assets = set(re.findall(r'(?:href|src)="\./(static/[^"]+)"', page))
    answers = [stage.send("GET", f"/bgx/{asset}").status_code for asset in assets]
    stage.check(set(answers) == {200}, f"all of {assets} should be there")
    stage.say(
        f"""Customers have come. Open {stage.dashboard} and see what they set off: what is
        queued behind the limit, what runs and how far it is, what waits to be tried again, what
        failed and where, and the threads that overran."""
    )


def states_on(page: str) -> set[Status]:
    """The statuses of which the overview has tasks."""
    return {Status(found) for found in re.findall(r'class="badge s-(\w+)" href', page)}
