"""An application that reports to Sentry, as docs/how-to/sentry.md says; run by test_sentry.py.

In a process of its own, because `sentry_sdk.init` changes FastAPI, logging and threads for good.
Nothing leaves the process: the events are printed as JSON.
"""

import json
import sys
from typing import Any

import anyio
import sentry_sdk
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.logging import ignore_logger
from sentry_sdk.transport import Transport

from fastapi_bgx import Bgx, Outcome, Settings, Task, Tasks
from tests.test_sentry import RECIPES, SECRET

events: list[Any] = []


class Memory(Transport):
    """A transport that keeps what it should send."""

    def capture_envelope(self, envelope: Envelope) -> None:
        events.extend(item.payload.json for item in envelope.items if item.type == "event")


def through_the_standard_library(*last: Any) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.filter_by_level,
            *last,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def with_a_hook(bgx: Bgx) -> None:
    @bgx.on_failure
    def report(task: Task[Any], outcome: Outcome[Any]) -> None:
        with sentry_sdk.new_scope() as scope:
            scope.set_tag("task", task.name)
            sentry_sdk.capture_exception(outcome.error)


async def fail_async(card: str) -> None:
    await anyio.sleep(0)
    raise ConnectionError("the bank does not answer")


def fail_sync(card: str) -> None:
    raise KeyError("card")


async def hang(card: str) -> None:
    await anyio.sleep(10)


async def succeed(card: str) -> None: ...


def run_tasks(bgx: Bgx) -> None:
    """Send one request whose tasks fail in every way."""
    app = FastAPI()
    bgx.install(app)

    @app.get("/signup")
    def signup(tasks: Tasks) -> None:
        tasks.add_task(succeed, SECRET)
        tasks.add_task(fail_async, SECRET)
        tasks.add_task(fail_sync, SECRET)
        tasks.using(timeout=0.01).add_task(hang, SECRET)
        tasks.using(detached=True, name="detached").add_task(fail_async, SECRET)

    with TestClient(app) as client:
        assert client.get("/signup").status_code == 200


def prepare(recipe: str) -> Bgx:
    """Do what a recipe of the page says."""
    bgx = Bgx(Settings())
    structlog.reset_defaults()
    if recipe.startswith("log"):
        through_the_standard_library(structlog.stdlib.render_to_log_kwargs)
    if recipe.startswith("hook"):
        with_a_hook(bgx)
    if recipe == "hook beside a log":
        through_the_standard_library(
            structlog.processors.format_exc_info, structlog.processors.JSONRenderer()
        )
        ignore_logger("fastapi_bgx")  # the last recipe: this cannot be taken back
    return bgx


def main() -> None:
    """Print the events of each recipe."""
    found = {}
    for recipe in RECIPES:
        bgx = prepare(recipe)
        sentry_sdk.init(
            dsn="https://key@127.0.0.1/1",
            transport=Memory,
            include_local_variables="without local variables" not in recipe,
        )
        events.clear()
        run_tasks(bgx)
        found[recipe] = events.copy()
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
