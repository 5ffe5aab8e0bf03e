"""What frames the acts: the first words, the last ones, and the end of the server."""

import webbrowser
from pathlib import Path

from fastapi_bgx.demo.customers import Customers
from fastapi_bgx.demo.server import ServerEnded
from fastapi_bgx.demo.stage import PATIENCE, Stage


def introduce(stage: Stage) -> None:
    stage.say(
        """A small shop is served by a real uvicorn. A line with > is a request and its answer,
        lines with | are the server's log. Only tracebacks are shortened, to the frames of the
        shop, and lines that repeat themselves."""
    )
    stage.log("bgx.started")
    stage.write(f"Open this first, and watch: {stage.dashboard}")


def open_dashboard(stage: Stage) -> None:
    stage.send_unseen("GET", "/hello")  # a server that has answered can be opened
    webbrowser.open(stage.dashboard)


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

    {Path(__file__).parents[1] / "app.py"}
    docs/tutorial/first-steps.md
    docs/how-to/adopt.md
    docs/how-to/dashboard.md"""
    )


def keep_serving(stage: Stage) -> None:
    url = stage.url
    stage.write(
        f"""
The server goes on, and customers come and go. What they set off is on the dashboard:

    {stage.dashboard}

Of the log you see here what you do yourself. In another terminal:

    curl -X POST {url}/orders
    curl "{url}/bgx/tasks?status=failed&limit=1"
    curl -X POST {url}/stock/orders
    curl -X POST "{url}/exports?seconds=2"
    curl {url}/stats

or all of it in a browser: {url}/docs

Ctrl-C shuts it down.
"""
    )
    raise ServerEnded(stage.follow(meanwhile=Customers(stage).come_in_time))


def shutdown(stage: Stage) -> None:
    stage.title("The server shuts down while tasks run")
    stage.request("POST", "/exports?seconds=0.3")
    stage.request("POST", "/exports?seconds=3600")
    stage.interrupt()
    report = stage.log("bgx.drained")["bgx.drained"]
    stage.check(report["finished"], "the short export should have finished")
    long = [name for name in report["cancelled"] if name.startswith("build_export")]
    stage.check(long, "the long export should have been cancelled")
    stage.check(stage.follow(PATIENCE) == 0, "the server should have ended with exit code 0")
    stage.say(
        """The drain waited for drain_timeout, 1 s in this app: one export finished, the other
        was cancelled, and the report names it, with whatever else was not done. A stock server
        would have waited for the hour."""
    )
