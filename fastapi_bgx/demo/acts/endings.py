"""How tasks end: well, badly, too late, and in a process of their own."""

from fastapi_bgx.demo.stage import Stage


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
    stage.request("POST", "/primes?below=2000")
    stage.log("task.succeeded count_primes")
    stage.request("POST", "/primes?below=1000000000")
    stage.log("task.timed_out count_primes")
    stage.say(
        """executor="process" runs a function in a worker process. The second call was too much
        for its timeout: its process was killed, and the CPU is free again."""
    )
