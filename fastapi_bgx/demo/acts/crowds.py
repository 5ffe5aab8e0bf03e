"""Many tasks at once, and one that stands in the way of all others."""

import time
from collections.abc import Iterator

from fastapi_bgx.demo.stage import PATIENCE, Stage

FLOOD = 80
"""Requests that keep the 40 threads of a stock server busy for two seconds."""
MOST_REQUESTS = 1000
"""Requests after which a backlog of 20 that is not full is a failure."""


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
