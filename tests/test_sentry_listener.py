"""`fastapi_bgx[sentry]`: one event for each final failure, whatever logs beside it."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import sentry_sdk
import structlog
from fastapi import FastAPI
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport

from fastapi_bgx import Bgx, Limit, Outcome, Retry, Settings, Task, Tasks
from fastapi_bgx.listeners.sentry import instrument
from tests import work
from tests.asgi import call
from tests.logs import logged, named
from tests.supervision import serving, tasks_of, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("_structlog_as_it_was")]
SECRET = "4242-4242"
AT_ONCE: dict[str, Any] = {"wait_initial": 0, "wait_jitter": 0}

Events = list[dict[str, Any]]


class Memory(Transport):
    """A transport that keeps what it should send."""

    def __init__(self, sent: Events) -> None:
        super().__init__()
        self._sent = sent

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            if item.type == "event":
                payload: Any = item.payload.json
                self._sent.append(payload)


@pytest.fixture
def sent() -> Iterator[Events]:
    """What Sentry would be sent. Warnings are events, too: the most that its log makes of ours."""
    found: Events = []
    client = sentry_sdk.Client(
        dsn="https://key@127.0.0.1/1",
        transport=Memory(found),
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[LoggingIntegration(event_level=logging.WARNING), DedupeIntegration()],
    )
    before = sentry_sdk.Scope.get_global_scope().client
    sentry_sdk.Scope.get_global_scope().set_client(client)
    with sentry_sdk.isolation_scope():
        yield found
    sentry_sdk.Scope.get_global_scope().set_client(before)
    client.close()


@pytest.fixture
def _structlog_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def reporting(**settings: Any) -> Bgx:
    bgx = Bgx(Settings(**settings))
    instrument(bgx)
    return bgx


async def fail(card: str = SECRET) -> None:
    raise ConnectionError("the bank does not answer")


def fail_there(card: str = SECRET) -> None:
    raise KeyError("card")


def one(sent: Events) -> dict[str, Any]:
    assert len(sent) == 1, [event.get("logentry") or event["exception"] for event in sent]
    return sent[0]


def error_of(event: dict[str, Any]) -> dict[str, Any]:
    """What was raised; the last of a chain is the one that the task ended with."""
    found: dict[str, Any] = event["exception"]["values"][-1]
    return found


def crumbs_of(task: Task[Any], event: dict[str, Any]) -> list[dict[str, Any]]:
    """What was noted of one task: others of the process may have left notes in the same scope."""
    crumbs: list[dict[str, Any]] = event["breadcrumbs"]["values"]
    ours = [crumb for crumb in crumbs if crumb["category"] == "task"]
    return [crumb for crumb in ours if crumb["data"]["task_id"] == task.id]


# One event.


async def test_a_failure_is_one_event_with_its_exception_and_its_tags(sent: Events) -> None:
    tasks = await tasks_of(reporting())
    task = tasks.using(name="charge", limit=Limit("bank", 1)).add_task(fail)
    await tasks()
    event = one(sent)
    error = error_of(event)
    assert (error["type"], error["value"]) == ("ConnectionError", "the bank does not answer")
    assert [frame["function"] for frame in error["stacktrace"]["frames"]] == ["fail"]
    assert error["mechanism"] == {"type": "fastapi_bgx", "handled": False}
    assert event["level"] == "error"
    assert event["tags"] == {
        "task": "charge",
        "task_id": task.id,
        "attempt": 1,
        "executor": "async",
        "status": "failed",
        "limit": "bank",
    }
    assert event["contexts"]["task"] == {
        "queued_s": task.queued_s,
        "duration_s": task.duration_s,
        "earlier_errors": [],
    }


async def test_threads_processes_and_timeouts_are_reported_too(sent: Events) -> None:
    tasks = await tasks_of(reporting())
    tasks.add_task(fail_there)
    tasks.using(executor="process").add_task(work.fail)
    tasks.using(timeout=0.001).add_task(anyio.sleep, 10)
    await tasks()
    kinds = [(error_of(event)["type"], event["tags"]["status"]) for event in sent]
    assert kinds == [
        ("KeyError", "failed"),
        ("LookupError", "failed"),
        ("TimeoutError", "timed_out"),
    ]
    assert "in fail" in sent[1]["exception"]["values"][0]["value"]  # of the worker


async def test_an_event_has_the_scope_of_the_request_also_after_its_end(sent: Events) -> None:
    async with serving() as bgx:
        instrument(bgx)
        with sentry_sdk.isolation_scope() as request:
            request.set_tag("tenant", "a")
            request.set_transaction_name("/signup")
            tasks = await tasks_of(bgx)
            task = tasks.using(detached=True).add_task(fail)
            await tasks()
        await task.wait()
    event = one(sent)
    assert event["tags"]["tenant"] == "a"
    assert event["transaction"] == "/signup"


async def test_the_tags_of_a_task_stay_with_it(sent: Events) -> None:
    tasks = await tasks_of(reporting())
    tasks.add_task(fail)
    await tasks()
    sentry_sdk.capture_message("something else")
    assert "task" not in sent[1].get("tags", {})


async def test_the_hint_has_the_task(sent: Events) -> None:
    seen: list[Any] = []
    client = sentry_sdk.get_client()

    def before_send(event: Any, hint: Any) -> None:
        seen.append(hint["fastapi_bgx_task"])

    client.options["before_send"] = before_send
    tasks = await tasks_of(reporting())
    task = tasks.add_task(fail)
    await tasks()
    assert seen == [task]
    assert sent == []


@pytest.mark.parametrize("name", ["succeed", "cancel", "expire"])
async def test_what_is_no_failure_is_no_event(sent: Events, name: str) -> None:
    with logged():
        tasks = await tasks_of(reporting())
        if name == "succeed":
            tasks.add_task(anyio.sleep, 0)
        elif name == "cancel":
            tasks.add_task(fail).cancel()
        else:
            tasks.using(expires=1e-9).add_task(fail)
        await tasks()
    assert sent == []


async def test_without_a_client_nothing_happens() -> None:
    with logged() as lines:
        tasks = await tasks_of(reporting())
        task = tasks.add_task(fail)
        await tasks()
    assert named(lines, "bgx.listener_failed") == []
    assert vars(task.error) == {}


# Retries.


async def test_what_a_retry_healed_is_no_event_and_leaves_breadcrumbs(sent: Events) -> None:
    attempts = 0

    async def fail_once() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ConnectionError("the bank does not answer")

    to_the_standard_library(structlog.stdlib.render_to_log_kwargs)
    tasks = await tasks_of(reporting())
    task = tasks.using(name="charge", retry=Retry(**AT_ONCE)).add_task(fail_once)
    await tasks()
    assert sent == []
    sentry_sdk.capture_message("something else")
    (crumb,) = crumbs_of(task, one(sent))
    assert crumb["level"] == "warning"
    assert crumb["message"] == "charge, attempt 1: ConnectionError"
    assert crumb["data"] == {
        "task_id": task.id,
        "error": "the bank does not answer",
        "retry_in_s": 0.0,
    }


async def test_only_the_last_of_several_failures_is_an_event(sent: Events) -> None:
    to_the_standard_library(structlog.stdlib.render_to_log_kwargs)
    tasks = await tasks_of(reporting())
    task = tasks.using(retry=Retry(attempts=3, **AT_ONCE)).add_task(fail)
    await tasks()
    event = one(sent)
    assert event["tags"]["attempt"] == 3
    assert event["contexts"]["task"]["earlier_errors"] == ["ConnectionError"] * 2
    assert len(crumbs_of(task, event)) == 2


# Issues.


async def test_failures_are_grouped_by_task_class_of_error_and_place(sent: Events) -> None:
    tasks = await tasks_of(reporting())
    tasks.using(name="charge").add_task(fail)
    tasks.using(name="charge", timeout=0.001).add_task(anyio.sleep, 10)
    tasks.using(name="charge", executor="process").add_task(work.fail)
    await tasks()
    assert [event["fingerprint"] for event in sent] == [
        ["{{ default }}", "charge", "ConnectionError"],
        ["charge", "TimeoutError"],
        ["charge", "LookupError"],
    ]


# No second event.


def to_the_standard_library(*last: Any, **configuration: Any) -> None:
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *last],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=configuration.get("factory") or structlog.stdlib.LoggerFactory(),
    )


def to_the_logger_of_the_application() -> None:
    to_the_standard_library(
        structlog.stdlib.render_to_log_kwargs,
        factory=lambda *_: logging.getLogger("app"),
    )


def through_a_processor_that_reports() -> None:
    """What the package structlog-sentry does: a processor captures by itself."""

    def capture(_: Any, level: str, line: Any) -> Any:
        if level in ("warning", "error"):
            sentry_sdk.capture_event({"message": line["event"], "level": "error"})
        return line

    structlog.configure(
        processors=[capture, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(),
    )


LOGS: dict[str, Callable[[], None]] = {
    "the default of structlog": structlog.reset_defaults,
    "JSON, printed": lambda: structlog.configure(
        processors=[
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(),
    ),
    "the standard library": lambda: to_the_standard_library(structlog.stdlib.render_to_log_kwargs),
    "the standard library, rendered": lambda: to_the_standard_library(
        structlog.processors.format_exc_info, structlog.processors.JSONRenderer()
    ),
    "the standard library, to be rendered": lambda: to_the_standard_library(
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter
    ),
    "a logger of the application": to_the_logger_of_the_application,
    "a processor that reports": through_a_processor_that_reports,
}


@pytest.mark.parametrize("log", LOGS)
async def test_the_log_adds_no_event_however_it_is_configured(sent: Events, log: str) -> None:
    LOGS[log]()
    tasks = await tasks_of(reporting())
    tasks.add_task(fail)
    tasks.using(timeout=0.001).add_task(anyio.sleep, 10)
    tasks.using(retry=Retry(attempts=2, **AT_ONCE)).add_task(fail_there)
    await tasks()
    assert [error_of(event)["type"] for event in sent] == [
        "ConnectionError",
        "TimeoutError",
        "KeyError",
    ]
    assert all(event["tags"]["task"] for event in sent)


async def test_without_us_the_log_reports_even_what_is_tried_again(sent: Events) -> None:
    """Why `instrument` has to keep it quiet."""
    to_the_standard_library(structlog.stdlib.render_to_log_kwargs)
    tasks = await tasks_of(Bgx(Settings()))
    tasks.using(retry=Retry(attempts=2, **AT_ONCE)).add_task(fail)
    await tasks()
    assert [event["logentry"]["message"] for event in sent] == ["task.retrying", "task.failed"]


async def test_other_lines_are_events_as_before(sent: Events) -> None:
    to_the_standard_library(structlog.stdlib.render_to_log_kwargs)

    async def log_and_fail() -> None:
        logging.getLogger("app").error("out of money")
        raise ValueError

    bgx = reporting()
    tasks = await tasks_of(bgx)
    tasks.using(slow_after=0.001).add_task(anyio.sleep, 0.02)
    tasks.add_task(log_and_fail)

    @bgx.on_failure
    def hook(task: Task[Any], outcome: Outcome[Any]) -> None:
        raise RuntimeError("the hook failed")

    await tasks()
    told = [event.get("logentry", {}).get("message") for event in sent]
    assert told == ["task.slow", "out of money", None, "bgx.hook_failed"]


async def test_a_log_that_fails_hurts_no_event_that_follows(sent: Events) -> None:
    def refuse(*_: Any) -> Any:
        raise ValueError("no line today")

    structlog.configure(processors=[refuse], logger_factory=structlog.PrintLoggerFactory())
    tasks = await tasks_of(reporting())
    tasks.add_task(fail)
    await tasks()
    kinds = [error_of(event)["type"] for event in sent if "exception" in event]
    assert kinds.count("ConnectionError") == 1
    sent.clear()
    sentry_sdk.capture_message("something else")
    assert one(sent)["message"] == "something else"


async def test_a_log_is_quiet_in_its_own_thread_alone(sent: Events) -> None:
    def capture_elsewhere(_: Any, __: str, line: Any) -> Any:
        if line["event"] == "task.failed":
            other = threading.Thread(target=sentry_sdk.capture_message, args=("elsewhere",))
            other.start()
            other.join()
        return line

    with logged(capture_elsewhere):
        tasks = await tasks_of(reporting())
        tasks.add_task(fail)
        await tasks()
    assert [event.get("message") for event in sent] == ["elsewhere", None]


@pytest.mark.parametrize("beside", ["using()", "using(concurrent=True)"])
async def test_an_error_that_is_raised_to_the_server_is_one_event(
    sent: Events, beside: str
) -> None:
    app, bgx = FastAPI(), reporting(on_error="raise")
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.using(concurrent="concurrent" in beside).add_task(fail)

    try:
        await call(app)
    except ConnectionError as error:
        sentry_sdk.capture_exception(error)  # what Sentry's own middleware does
    assert one(sent)["tags"]["task"] == "fail"


async def test_a_hook_that_reports_adds_no_event(sent: Events) -> None:
    bgx = reporting()

    @bgx.on_failure
    def report(task: Task[Any], outcome: Outcome[Any]) -> None:
        sentry_sdk.capture_exception(outcome.error)

    tasks = await tasks_of(bgx)
    tasks.add_task(fail)
    await tasks()
    assert one(sent)["tags"]["task"] == "fail"


async def test_one_error_that_fails_two_tasks_is_two_events(sent: Events) -> None:
    error = ValueError("the same")

    async def raise_it() -> None:
        raise error

    tasks = await tasks_of(reporting())
    for name in ("one", "two"):
        tasks.using(name=name).add_task(raise_it)
    await tasks()
    assert [event["tags"]["task"] for event in sent] == ["one", "two"]


# `instrument`.


async def test_a_second_call_does_nothing(sent: Events) -> None:
    bgx = reporting()
    instrument(bgx)
    tasks = await tasks_of(bgx)
    tasks.add_task(fail)
    await tasks()
    one(sent)


async def test_it_may_come_while_the_application_serves(sent: Events) -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        tasks.add_task(fail)
        await tasks()
        instrument(bgx)
        tasks = await tasks_of(bgx)
        tasks.add_task(fail)
        await tasks()
        await until(lambda: sent)
    one(sent)


async def test_the_log_says_its_own_name_when_it_fails(sent: Events) -> None:
    bgx = reporting()
    (log, *_) = bgx.runners.publisher._listeners
    assert repr(log) == "log"


def test_without_the_package_the_error_names_the_extra() -> None:
    script = """
import sys
sys.modules["sentry_sdk"] = None
import fastapi_bgx
import fastapi_bgx.listeners.sentry
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "pip install 'fastapi-bgx[sentry]'" in result.stderr.splitlines()[-1]


def test_arguments_are_local_variables_and_sent_unless_told(sent: Events) -> None:
    async def run() -> None:
        tasks = await tasks_of(reporting())
        tasks.add_task(fail)
        await tasks()

    anyio.run(run)
    assert SECRET in json.dumps(sent)
    sent.clear()
    sentry_sdk.get_client().options["include_local_variables"] = False
    anyio.run(run)
    assert SECRET not in json.dumps(one(sent))
