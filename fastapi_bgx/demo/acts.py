"""The acts: the requests of the demo, what has to happen then, and why that is good."""

import time
from collections.abc import Iterator
from pathlib import Path

from fastapi_bgx.demo.server import ServerEnded
from fastapi_bgx.demo.stage import PATIENCE, Stage

FLOOD = 80
"""Requests that keep the 40 threads of a stock server busy for two seconds."""
MOST_REQUESTS = 1000
"""Requests after which a backlog of 20 that is not full is a failure."""


def success(stage: Stage) -> None:
    stage.title("A task succeeds")
    stage.request("POST", "/signup?email=ada@example.com")
    lines = stage.log("mail.sent", "task.succeeded send_welcome").values()
    ids = {line["request_id"] for line in lines}
    stage.check(ids == {"demo-1"}, "every line should have the request's id")
    stage.say(
        """The task ran after the response, as always. New: it has an id, its end is logged, and
        the request_id that the app had bound for its own log is in the task's lines, too."""
    )


def failure(stage: Stage) -> None:
    stage.title("A task raises")
    stage.request("POST", "/orders")
    stage.log("task.failed charge_card")
    stage.log("mail.sent", "task.succeeded send_receipt")
    stage.say("charge_card failed and was logged; the next task, send_receipt, ran all the same.")
    stage.request("POST", "/stock/orders")
    stage.check(
        "mail.sent" not in stage.log("Exception in ASGI application"),
        "stock FastAPI should not have sent the receipt",
    )
    stage.say(
        """Stock FastAPI, the very same route: the customer was told 200, the server logged an
        error without a task's name, and the receipt is never sent."""
    )


def hang(stage: Stage) -> None:
    stage.title("A task hangs")
    stage.request("POST", "/contacts")
    stage.log("task.timed_out push_to_crm")
    stage.say(
        """Its timeout of 0.5 s cancelled it, and the log shows the line where it hung. Stock
        FastAPI has no timeout: it would hang until the server is restarted."""
    )


def blocked_thread(stage: Stage) -> None:
    stage.title("A task blocks its thread")
    stage.request("POST", "/photos")
    stage.log("task.timed_out resize_photo")
    overrunning = stage.stats()["overrunning"]
    stage.check(overrunning == 1, "the thread that still runs should be counted")
    stage.write(f"bgx.stats().overrunning == {overrunning}")
    stage.log("task.overran resize_photo")
    stage.say(
        """Nobody can kill a thread. So the timeout is reported at once, the thread keeps its slot
        and is counted as overrunning, and its true end is reported, too."""
    )


def process(stage: Stage) -> None:
    stage.title("A task needs the CPU")
    stage.request("POST", "/primes?below=20000")
    stage.log("task.succeeded count_primes")
    stage.request("POST", "/primes?below=1000000000")
    stage.log("task.timed_out count_primes")
    stage.say(
        """executor="process" runs a function in a worker process. The second call was too much
        for its timeout: its process was killed, and the CPU is free again."""
    )


def limit(stage: Stage) -> None:
    stage.title("A task has a limit")
    before = stage.stats()["totals"]["succeeded"]
    stage.request("POST", "/newsletter?readers=6")
    looks = list(looks_at(stage, "smtp", until_succeeded=before + 6))
    busiest = max(looks, key=lambda look: (look["taken"], look["waiting"]))
    stage.write(f'bgx.stats().limiters["smtp"], when it was busiest: {busiest}')
    stage.check(busiest["taken"] == 2, "2 mails should have been sent at once, no less and no more")
    stage.log(*["task.succeeded send_newsletter"] * 6)
    stage.say(
        """The limit "smtp" has 2 slots, and there were 6 mails to send: never more than 2 ran
        together. The others waited, first come, first served."""
    )


def looks_at(stage: Stage, limiter: str, until_succeeded: int) -> Iterator[dict[str, int]]:
    """Look again and again at one limiter."""
    deadline = time.monotonic() + PATIENCE
    while (look := stage.stats())["totals"]["succeeded"] < until_succeeded:
        stage.check(time.monotonic() < deadline, "the limited tasks should have ended")
        yield look["limiters"][limiter]
        time.sleep(0.02)


def flood(stage: Stage) -> None:
    stage.title("Sync tasks flood in")
    answers = [stage.send("POST", "/thumbnails")]
    while answers[-1].status_code == 200 and len(answers) < MOST_REQUESTS:
        answers.append(stage.send("POST", "/thumbnails"))
    *accepted, refused = answers
    stage.check(accepted, "a thumbnail should have been accepted")
    stage.show(*accepted)
    stage.show(refused)
    stage.check(refused.headers.get("Retry-After"), "a full backlog should answer Retry-After")
    ours = stage.timed("GET", "/hello")
    stage.show(*[stage.send("POST", "/stock/thumbnails") for _ in range(FLOOD)])
    stocks = stage.timed("GET", "/stock/hello")
    stage.check(ours < stocks, "the innocent route should be faster than on stock FastAPI")
    stage.log("task.rejected make_thumbnail", *["task.succeeded make_thumbnail"] * len(accepted))
    stage.say(
        """Tasks have threads of their own, so the innocent sync route /hello stayed as fast as
        ever. On stock FastAPI they take the threads of the routes, and it had to wait. And what
        waits is bounded: beyond max_backlog, 20 here, the client is told to try again later."""
    )


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
    ended = stage.log("partner.notified", "task.succeeded notify_partner")
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


def rates(stage: Stage) -> None:
    stage.title("A task has a rate, and an urgent one goes first")
    stage.request("POST", "/campaigns")
    stage.log("sms.sent", "sms.sent")
    urgent = stage.log("sms.sent")["sms.sent"]["to"]
    stage.check(urgent == "the login code", "the urgent message should have gone first")
    stage.log("sms.sent", "sms.sent", *["task.succeeded send_sms"] * 3)
    stage.say(
        """rates={"sms": "2/second"}: in no second are more than two messages sent. The login code
        was added last, with priority=10, and went before those that waited."""
    )


def progress(stage: Stage) -> None:
    stage.title("A task tells how far it is")
    task = stage.request("POST", "/catalogues?pages=100").json()["task"]
    deadline = time.monotonic() + PATIENCE
    while not stage.send("GET", f"/tasks/{task}").json()["note"]:
        stage.check(time.monotonic() < deadline, "the task should have told of its progress")
    stage.request("GET", f"/tasks/{task}")
    stage.log("task.succeeded import_catalogue")
    stage.say(
        """current_task().progress(0.4, "page 41 of 100") costs a fifth of a microsecond, so it may
        stand in a loop. The route read bgx.get(id).last_progress."""
    )


def blocking(stage: Stage) -> None:
    stage.title("A task blocks the event loop")
    stage.request("POST", "/stocktakes")
    lines = stage.log("task.blocked_loop recount_stock", "task.succeeded recount_stock")
    stack = lines["task.blocked_loop recount_stock"]["stack"]
    stage.check("time.sleep" in stack, "the line that blocks should be in the log")
    stage.log("task.blocked_loop recount_stock")
    stage.say(
        """An async task that calls something slow stops the whole server. With loop_block_after=0.1
        it is named, with the line where it is, while it still blocks."""
    )


ACTS = (
    success,
    failure,
    hang,
    blocked_thread,
    process,
    limit,
    flood,
    nothing_lost,
    detached,
    retries,
    control,
    rates,
    progress,
    blocking,
)


def introduce(stage: Stage) -> None:
    stage.say(
        """A small shop is served by a real uvicorn. A line with > is a request and its answer,
        lines with | are the server's log. Only tracebacks are shortened, to the frames of the
        shop, and lines that repeat themselves."""
    )
    stage.log("bgx.started")


def conclude(stage: Stage) -> None:
    stage.title("What bgx.stats() has counted")
    totals = stage.stats()["totals"]
    stage.write(", ".join(f"{status}: {count}" for status, count in totals.items() if count))
    stage.write(
        f"""
Your own app needs three lines:

    from fastapi_bgx import Bgx

    bgx = Bgx()
    bgx.install(app)

Where to look next:

    {Path(__file__).with_name("app.py")}
    docs/tutorial/first-steps.md
    docs/how-to/adopt.md"""
    )


def keep_serving(stage: Stage) -> None:
    url = stage.url
    stage.write(
        f"""
The server goes on. In another terminal:

    curl -X POST {url}/orders
    curl -X POST {url}/stock/orders
    curl -X POST "{url}/exports?seconds=2"
    curl {url}/stats

or all of it in a browser: {url}/docs

Ctrl-C shuts it down.
"""
    )
    raise ServerEnded(stage.follow())


def shutdown(stage: Stage) -> None:
    stage.title("The server shuts down while tasks run")
    stage.request("POST", "/exports?seconds=0.3")
    stage.request("POST", "/exports?seconds=3600")
    stage.interrupt()
    report = stage.log("bgx.drained")["bgx.drained"]
    stage.check(report["finished"], "the short export should have finished")
    stage.check(report["cancelled"], "the long export should have been cancelled")
    stage.check(stage.follow(PATIENCE) == 0, "the server should have ended with exit code 0")
    stage.say(
        """The drain waited for drain_timeout, 1 s in this app: one export finished, the other
        was cancelled, and the report names it. A stock server would have waited for the hour."""
    )
