"""The life of a task beyond its request."""

import time

from fastapi_bgx.demo.stage import PATIENCE, Stage


def nothing_lost(stage: Stage) -> None:
    stage.title("Nothing vanishes in silence")
    stage.request("POST", "/payments", expect=402)
    stage.log("task.dropped send_receipt")
    stage.say("The route failed, so its task is not run, as in stock; but the log says so.")
    stage.request("GET", "/invoice")
    stage.log("invoice.archived", "task.succeeded send_receipt")
    stage.say(
        """The route returned a Response with a background task of its own. Stock FastAPI then
        forgets the tasks that were added, without a word. Here they run."""
    )


def detached(stage: Stage) -> None:
    stage.title("A task is detached")
    task = stage.request("POST", "/exports?seconds=0.3").json()["task"]
    ended = stage.log("task.succeeded build_export")["task.succeeded build_export"]
    stage.check(ended["task_id"] == task, "the response should name the task")
    stage.say(
        """The request ended at once, with its connection and its dependencies; the task, whose id
        the client knows, lived on. A shutdown waits for such tasks, as you will see."""
    )


def retries(stage: Stage) -> None:
    stage.title("A task is tried again")
    task = stage.request("POST", "/shipments").json()["task"]
    stage.log("task.retrying notify_partner")
    status = stage.request("GET", f"/tasks/{task}").json()["status"]
    stage.check(status in ("retrying", "running", "succeeded"), "bgx.get should know the task")
    ended = stage.log("task.succeeded notify_partner")
    attempts = ended["task.succeeded notify_partner"]["attempt"]
    stage.check(attempts == 3, "the third attempt should have succeeded")
    stage.say(
        """The partner was busy twice, and said for how long. Between the attempts the task held no
        slot and no thread. One line of options: retry=Retry(attempts=4, on=(PartnerBusy,), ...)."""
    )


def control(stage: Stage) -> None:
    stage.title("A task waits for its time, and is cancelled")
    path = "/reminders?email=ada@example.com&seconds=3600"
    task = stage.request("POST", path).json()["task"]
    stage.log("task.delayed send_reminder")
    again = stage.request("POST", path).json()["task"]
    stage.check(again == task, "there should be one reminder for one address")
    stage.log("task.joined send_reminder")
    stage.request("DELETE", f"/tasks/{task}")
    stage.log("task.cancelled send_reminder")
    status = stage.request("GET", f"/tasks/{task}").json()["status"]
    stage.check(status == "cancelled", "the reminder should be cancelled")
    stage.request("GET", "/tasks/of-another-server", expect=404)
    stage.request("POST", "/reminders?email=ada@example.com&seconds=0.2")
    stage.log("task.delayed send_reminder", "mail.sent", "task.succeeded send_reminder")
    stage.say(
        """using(delay=3600, unique=...) sends it in an hour, and once only: whoever asks again is
        given the same task. bgx.cancel(id) ended it, and bgx.get(id) knows what became of it. The
        address was free again: the last reminder was sent."""
    )


def progress(stage: Stage) -> None:
    stage.title("A task tells how far it is")
    answer = stage.request("POST", "/catalogues?pages=100").json()
    deadline = time.monotonic() + PATIENCE
    while not stage.send("GET", f"/tasks/{answer['task']}").json()["note"]:
        stage.check(time.monotonic() < deadline, "the task should have told of its progress")
    status = stage.request("GET", answer["status"]).json()
    stage.check("page" in status["note"], "the status URL should tell of the progress")
    stage.log("task.succeeded import_catalogue")
    done = stage.request("GET", answer["status"]).json()["done"]
    stage.check(done, "the status URL should tell of the end")
    stage.say(
        """current_task().progress(0.4, "page 41 of 100") costs a fifth of a microsecond, so it may
        stand in a loop. The second URL is for the customer who waits: bgx.status_url(task) made
        it, it is signed, and it shows this one task."""
    )
