"""The log respects the application's structlog configuration, keeps secrets, and hurts nobody."""

import functools
import io
import json
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import anyio
import pytest
import structlog
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from fastapi_bgx import BackgroundTasks, Bgx, Outcome, Settings, Task, Tasks
from fastapi_bgx.events import TaskFailed, TaskStarted
from fastapi_bgx.listeners.lines import AppLog, DirectLogger
from fastapi_bgx.listeners.log import LogListener
from fastapi_bgx.settings import ALL_EVENTS, EventName
from tests.asgi import call, running
from tests.logs import Lines, logged, named, one

pytestmark = pytest.mark.anyio

STARTED = ["task.queued", "task.started"]
NORMAL = [*STARTED, "task.succeeded"]
INFO = structlog.make_filtering_bound_logger(logging.INFO)
ERROR = structlog.make_filtering_bound_logger(logging.ERROR)


@pytest.fixture(autouse=True)
def _fresh_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


async def quick() -> None: ...


async def fail() -> None:
    raise ConnectionError("the bank does not answer")


def made(add: Callable[[BackgroundTasks], object], settings: Settings | None = None) -> FastAPI:
    """An application with one route, which calls `add`."""
    app = FastAPI()
    Bgx(settings or Settings()).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        add(tasks)

    return app


def events(lines: Lines) -> list[str]:
    return [line["event"] for line in lines]


def quick_and_fail(tasks: BackgroundTasks) -> None:
    tasks.add_task(quick)
    tasks.add_task(fail)


# Arguments are secrets.

SECRET = "hunter2"


class Secretive:
    """An argument whose repr tells."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return f"<Secretive {self.secret}>"


def everything_that_happens(tasks: BackgroundTasks) -> None:
    """Tasks of every kind and ending, with secret arguments."""

    async def ok(*args: Any, **kwargs: Any) -> None:
        await anyio.sleep(0.002)

    async def bad(*args: Any, **kwargs: Any) -> None:
        raise ValueError("bad")

    async def hang(*args: Any, **kwargs: Any) -> None:
        await anyio.sleep_forever()

    def sync(*args: Any, **kwargs: Any) -> None:
        raise ValueError("bad")

    secrets: Any = (SECRET, Secretive(SECRET), {"password": SECRET})
    for view in (tasks.using(), tasks.using(detached=True), tasks.using(concurrent=True)):
        for function in (ok, bad, sync):
            view.add_task(function, *secrets, password=SECRET, other=Secretive(SECRET))
        view.using(timeout=0.005).add_task(hang, *secrets, password=SECRET)
        view.using(executor="process", timeout=30).add_task(len, f"{SECRET}")
    with suppress(TypeError):
        tasks.using(executor="process").add_task(print, lambda: SECRET)
    wrong: Any = {"password": SECRET}
    with suppress(TypeError):
        tasks.add_task(len, SECRET, **wrong)


@pytest.fixture
def output(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[[], str]:
    """Everything that was written, by whichever way."""
    caplog.set_level(0)

    def read() -> str:
        captured = capfd.readouterr()
        records = [str(vars(record)) for record in caplog.records]
        return "\n".join([captured.out, captured.err, caplog.text, *records])

    return read


async def test_arguments_are_not_logged(output: Callable[[], str]) -> None:
    app = made(everything_that_happens, Settings(slow_after=0.001))
    async with running(app):
        await call(app)
    written = output()
    for event in ("task.queued", "task.succeeded", "task.failed", "task.timed_out", "task.slow"):
        assert event in written
    assert SECRET not in written


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # a worker takes a second to start
async def test_arguments_are_not_logged_through_the_standard_library(
    output: Callable[[], str],
) -> None:
    through_the_standard_library()
    app = made(everything_that_happens, Settings(slow_after=0.001))
    async with running(app):
        await call(app)
    written = output()
    assert "task.failed" in written
    assert SECRET not in written


async def test_arguments_are_not_in_the_representation_of_a_task() -> None:
    found: list[Task[Any]] = []
    await call(made(lambda tasks: found.append(tasks.add_task(print, SECRET, end=SECRET))))
    assert SECRET not in repr(found[0])
    assert SECRET not in str(found[0])


async def test_arguments_are_logged_when_told() -> None:
    def add(tasks: BackgroundTasks) -> None:
        tasks.add_task(sorted, ["b", "a"], reverse=True)

    with logged() as lines:
        await call(made(add, Settings(log_arguments=True)))
    assert events(lines) == NORMAL
    assert {line["arguments"] for line in lines} == {"['b', 'a'], reverse=True"}


async def test_no_arguments_are_logged_as_none() -> None:
    with logged() as lines:
        await call(made(lambda tasks: tasks.add_task(quick), Settings(log_arguments=True)))
    assert {line["arguments"] for line in lines} == {""}


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


async def test_an_argument_that_cannot_be_shown_loses_no_event() -> None:
    async def take(value: Any) -> None: ...

    with logged() as lines:
        await call(made(lambda t: t.add_task(take, Broken()), Settings(log_arguments=True)))
    assert events(lines) == NORMAL
    assert {line["arguments"] for line in lines} == {"<Broken, without a repr>"}


# Which events.


@pytest.mark.parametrize("event", [*NORMAL, "task.failed"])
async def test_one_event_is_logged_alone(event: EventName) -> None:
    app = made(quick_and_fail, Settings(log_events={event}))
    with logged() as lines:
        async with running(app):
            await call(app)
    assert set(events(lines)) == {event}


async def test_all_but_one() -> None:
    app = made(quick_and_fail, Settings(log_events=ALL_EVENTS - {"task.failed"}))
    with logged() as lines:
        await call(app)
    assert events(lines) == [
        *STARTED[:1],
        "task.queued",
        "task.started",
        "task.succeeded",
        "task.started",
    ]


async def test_no_event_at_all(output: Callable[[], str]) -> None:
    app = made(quick_and_fail, Settings(log_events=set(), slow_after=0.001))
    async with running(app):
        await call(app)
    assert "task." not in output()
    assert "bgx." not in output()


async def test_a_task_that_nobody_logs_is_captured_all_the_same() -> None:
    found: list[Task[Any]] = []
    await call(made(lambda t: found.append(t.add_task(fail)), Settings(log_events=set())))
    outcome = found[0].outcome
    assert outcome is not None
    assert isinstance(outcome.error, ConnectionError)


# Levels.


async def test_a_level_that_is_filtered_is_not_logged() -> None:
    with logged(wrapper_class=INFO) as lines:
        await call(made(quick_and_fail))
    assert events(lines) == ["task.succeeded", "task.failed"]
    with logged(wrapper_class=ERROR) as lines:
        await call(made(quick_and_fail))
    assert events(lines) == ["task.failed"]


def test_an_event_that_is_filtered_need_not_even_be_made() -> None:
    through_the_standard_library()
    logger = logging.getLogger("fastapi_bgx")
    listener = LogListener(Settings())
    logger.setLevel(logging.INFO)
    heard = [event.name for event in (TaskStarted, TaskFailed) if listener.hears(event)]
    logger.setLevel(logging.NOTSET)
    assert heard == ["task.failed"]
    structlog.configure(wrapper_class=INFO)
    assert not listener.hears(TaskStarted)
    assert listener.hears(TaskFailed)


# Configurations.


def through_the_standard_library() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.filter_by_level,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


async def test_the_default_configuration_prints(capsys: pytest.CaptureFixture[str]) -> None:
    await call(made(quick_and_fail))
    out = capsys.readouterr().out
    for event in [*NORMAL, "task.failed"]:
        assert event in out
    assert "ConnectionError: the bank does not answer" in out
    assert "Traceback (most recent call last)" in out


async def test_a_print_logger(capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer(key_order=["event", "task"])],
        logger_factory=structlog.PrintLoggerFactory(file),
    )
    await call(made(quick_and_fail))
    lines = file.getvalue().splitlines()
    assert sorted(line.split()[0] for line in lines)[-1] == "event='task.succeeded'"
    assert lines[0].startswith("event='task.queued' task='quick' ")
    assert capsys.readouterr().out == ""


async def test_json() -> None:
    file = io.StringIO()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=INFO,
        logger_factory=structlog.WriteLoggerFactory(file),
    )
    app = made(quick_and_fail)
    async with running(app):
        await call(app)
    started, succeeded, failed, drained = map(json.loads, file.getvalue().splitlines())
    assert started["event"] == "bgx.started"
    assert (succeeded["level"], succeeded["task"]) == ("info", "quick")
    assert (failed["level"], failed["error"]) == ("error", "ConnectionError")
    assert failed["exception"].startswith("Traceback (most recent call last)")
    assert failed["exception"].endswith("ConnectionError: the bank does not answer")
    assert drained["finished"] == 0


async def test_bytes_and_orjson() -> None:
    import orjson

    file = io.BytesIO()
    structlog.configure(
        processors=[
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        logger_factory=structlog.BytesLoggerFactory(file),
    )
    app = made(quick_and_fail)
    async with running(app):
        await call(app)
    found = [orjson.loads(line)["event"] for line in file.getvalue().splitlines()]
    assert found[0] == "bgx.started"
    assert found[-1] == "bgx.drained"


async def test_the_standard_library(caplog: pytest.LogCaptureFixture) -> None:
    through_the_standard_library()
    caplog.set_level(logging.INFO)
    await call(made(quick_and_fail))
    records = [record for record in caplog.records if record.name == "fastapi_bgx"]
    assert [record.getMessage() for record in records] == ["task.succeeded", "task.failed"]
    succeeded, failed = records
    assert (succeeded.levelno, failed.levelno) == (logging.INFO, logging.ERROR)
    assert vars(failed)["task"] == "fail"
    assert vars(failed)["attempt"] == 1
    assert failed.exc_info is not None
    assert failed.exc_info[0] is ConnectionError
    assert failed.exc_info[2] is not None


async def test_the_standard_library_with_a_formatter_of_structlog() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ]
        )
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    logger = logging.getLogger("fastapi_bgx")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        await call(made(quick_and_fail))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    succeeded, failed = map(json.loads, stream.getvalue().splitlines())
    assert (succeeded["event"], succeeded["logger"]) == ("task.succeeded", "fastapi_bgx")
    assert failed["exception"].endswith("ConnectionError: the bank does not answer")


async def test_the_level_of_the_standard_library_can_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    through_the_standard_library()
    app = made(quick_and_fail)
    logger = logging.getLogger("fastapi_bgx")

    async def told(level: int) -> list[str]:
        caplog.clear()
        caplog.set_level(level, logger.name)
        await call(app)
        return [record.getMessage() for record in caplog.records]

    assert await told(logging.ERROR) == ["task.failed"]
    assert len(await told(logging.DEBUG)) == 6
    assert await told(logging.INFO) == ["task.succeeded", "task.failed"]
    assert await told(logging.CRITICAL) == []


async def test_the_generic_logger_around_one_of_the_standard_library() -> None:
    """It answers every question: one about levels would go through the processors as an event."""
    generic = {
        "wrapper_class": structlog.BoundLogger,
        "logger_factory": structlog.stdlib.LoggerFactory(),
    }
    with logged(**generic) as lines:
        await call(made(quick_and_fail))
    assert sorted(events(lines)) == sorted([*STARTED, *NORMAL, "task.failed"])


async def test_fields_that_the_application_adds() -> None:
    def add_version(logger: Any, method: str, event: Any) -> Any:
        event["version"] = 7
        return event

    with logged(add_version) as lines:
        await call(made(quick_and_fail))
    assert {line["version"] for line in lines} == {7}


async def test_an_event_that_a_processor_drops() -> None:
    def drop(logger: Any, method: str, event: Any) -> Any:
        if event["event"] == "task.started":
            raise structlog.DropEvent
        return event

    with logged(drop) as lines:
        await call(made(lambda tasks: tasks.add_task(quick)))
    assert events(lines) == ["task.queued", "task.succeeded"]


# Written without the methods of the logger, where they are structlog's own: the same lines.


def short(logger: Any, method: str, event: Any) -> Any:
    """Leave out what differs between two runs."""
    for field in ("task_id", "queued_s", "duration_s", "exc_info"):
        event.pop(field, None)
    return event


def only_failures(logger: Any, method: str, event: Any) -> Any:
    if method != "error":
        raise structlog.DropEvent
    return event


class Full(structlog.testing.CapturingLogger):
    """A logger that may drop what it is given, too."""

    def info(self, event: str) -> None:
        raise structlog.DropEvent


def explode(logger: Any, method: str, event: Any) -> Any:
    raise RuntimeError("the log is full")


def to_args_and_kwargs(logger: Any, method: str, event: Any) -> Any:
    return (event.pop("event"),), {"extra": event}


def to_bytes(logger: Any, method: str, event: Any) -> Any:
    return repr(event).encode()


def to_a_bytearray(logger: Any, method: str, event: Any) -> Any:
    return bytearray(repr(event), "utf-8")


def to_nothing(logger: Any, method: str, event: Any) -> Any:
    return None


def to_another_mapping(logger: Any, method: str, event: Any) -> Any:
    return MappingProxyType(event)


RESULTS: dict[str, list[Any]] = {
    "text": [structlog.processors.KeyValueRenderer()],
    "bytes": [to_bytes],
    "a bytearray": [to_a_bytearray],
    "arguments": [to_args_and_kwargs],
    "a dict": [structlog.processors.add_log_level],
    "nothing, for some": [only_failures, structlog.processors.KeyValueRenderer()],
    "nothing that can be written": [to_nothing],
    "another kind of mapping": [to_another_mapping],
    "an error": [explode],
}
ALL_LEVELS = [0, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL]


async def received(logger: structlog.testing.CapturingLogger, **configuration: Any) -> list[Any]:
    """What the innermost logger is given, in the lines about two tasks and a lifespan."""
    structlog.configure(logger_factory=lambda *args: logger, **configuration)
    app = made(quick_and_fail, Settings(log_arguments=True))
    async with running(app):
        await call(app)
    return logger.calls


@pytest.mark.parametrize("least", ALL_LEVELS)
@pytest.mark.parametrize("result", RESULTS.values(), ids=list(RESULTS))
@pytest.mark.parametrize("inner", [structlog.testing.CapturingLogger, Full])
async def test_lines_are_those_that_the_methods_of_the_logger_write(
    result: list[Any],
    least: int,
    inner: type[structlog.testing.CapturingLogger],
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrapper = structlog.make_filtering_bound_logger(least)
    processors = [structlog.contextvars.merge_contextvars, short, *result]
    direct = await received(inner(), processors=processors, wrapper_class=wrapper)
    failures = [record.getMessage() for record in caplog.records]
    caplog.clear()
    subclass = type("Subclass", (wrapper,), {})  # nobody knows what its methods do
    usual = await received(inner(), processors=processors, wrapper_class=subclass)
    assert direct == usual
    assert [record.getMessage() for record in caplog.records] == failures


class HalfALogger(structlog.BoundLoggerBase):
    """A wrapper class without any of the usual methods."""


def writes_directly(**configuration: Any) -> bool:
    structlog.configure(**configuration)
    return isinstance(getattr(AppLog().writer(), "__self__", None), DirectLogger)


@pytest.mark.parametrize("least", ALL_LEVELS)
def test_the_loggers_of_structlog_are_written_to_directly(least: int) -> None:
    assert writes_directly()
    assert writes_directly(wrapper_class=structlog.make_filtering_bound_logger(least))


@pytest.mark.parametrize(
    "configuration",
    [
        {"wrapper_class": structlog.stdlib.BoundLogger},
        {"wrapper_class": structlog.BoundLogger},
        {"wrapper_class": type("Subclass", (INFO,), {})},
        {"wrapper_class": HalfALogger},
        {"context_class": OrderedDict},
    ],
)
def test_other_loggers_are_not(configuration: dict[str, Any]) -> None:
    assert not writes_directly(**configuration)


async def test_a_logger_class_of_the_application_is_used() -> None:
    class Numbered(INFO):  # type: ignore[misc, valid-type]
        def info(self, event: str, *args: Any, **fields: Any) -> Any:
            return super().info(event, *args, number=7, **fields)

    with logged(wrapper_class=Numbered) as lines:
        await call(made(quick_and_fail))
    assert one(lines, "task.succeeded")["number"] == 7


@pytest.mark.parametrize("name", ["_process_event", "_proxy_to_logger"])
async def test_an_agent_that_patches_structlog_sees_every_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = getattr(structlog.BoundLoggerBase, name)

    @functools.wraps(original)
    def patched(self: Any, method: str, event: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(event)
        return original(self, method, event, *args, **kwargs)

    monkeypatch.setattr(structlog.BoundLoggerBase, name, patched)
    with logged() as lines:
        await call(made(quick_and_fail))
    assert seen == events(lines)
    assert len(seen) == 6


async def test_a_patched_method_of_a_level_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def see(logger: Any, event: str, **fields: Any) -> None:
        seen.append(event)

    monkeypatch.setattr(INFO, "info", functools.partialmethod(see))
    with logged(wrapper_class=INFO) as lines:
        await call(made(quick_and_fail))
    assert seen == ["task.succeeded"]
    assert events(lines) == ["task.failed"]


async def test_a_level_that_is_filtered_from_now_on() -> None:
    gate = anyio.Event()

    async def wait() -> None:
        await gate.wait()

    def add(tasks: BackgroundTasks) -> None:
        tasks.using(detached=True).add_task(wait)
        tasks.using(detached=True).add_task(fail)

    app = made(add)
    async with running(app):
        with logged(wrapper_class=INFO):
            await call(app)
        with logged(wrapper_class=ERROR) as after:
            gate.set()
            while not after:
                await anyio.sleep(0)
    assert events(after) == ["task.failed"]


async def test_a_processor_leaves_nothing_in_the_context_of_a_task() -> None:
    mark = ContextVar("mark", default="nothing")
    found: list[str] = []

    async def look() -> None:
        found.append(mark.get())

    def leave(logger: Any, method: str, event: Any) -> Any:
        mark.set(event["event"])
        return event

    with logged(leave) as lines:
        await call(made(lambda tasks: tasks.add_task(look)))
    assert events(lines) == NORMAL
    assert found == ["nothing"]


# Configured later, or anew.


async def test_configured_after_the_application_was_made() -> None:
    app = made(quick_and_fail)
    with logged(wrapper_class=ERROR) as lines:
        await call(app)
    assert events(lines) == ["task.failed"]


async def test_configured_anew_between_two_requests() -> None:
    app = made(lambda tasks: tasks.add_task(quick))
    async with running(app):
        with logged(wrapper_class=ERROR) as first:
            await call(app)
        with logged(wrapper_class=INFO) as second:
            await call(app)
        with logged() as third:
            await call(app)
    assert events(first) == []
    assert events(second) == ["task.succeeded"]
    assert events(third) == NORMAL


async def test_configured_anew_while_a_task_runs() -> None:
    gate = anyio.Event()

    async def wait() -> None:
        await gate.wait()

    app = made(lambda tasks: tasks.using(detached=True).add_task(wait))
    async with running(app):
        with logged() as before:
            await call(app)
            while "task.started" not in events(before):
                await anyio.sleep(0)
        with logged() as after:
            gate.set()
            while not after:
                await anyio.sleep(0)
    assert events(before) == STARTED
    assert events(after)[0] == "task.succeeded"


async def test_configured_in_a_lifespan_that_asks_for_more() -> None:
    structlog.configure(wrapper_class=ERROR)
    app = made(quick_and_fail)
    with logged(wrapper_class=INFO) as lines:
        async with running(app):
            pass
    assert events(lines) == ["bgx.started", "bgx.drained"]


async def test_configured_anew_for_a_list_that_was_made_by_hand() -> None:
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(quick)
        await PlainTextResponse("x", background=tasks)(scope, receive, send)

    with logged(wrapper_class=ERROR) as first:
        await call(endpoint)
    with logged() as second:
        await call(endpoint)
    assert events(first) == []
    assert events(second) == NORMAL


async def test_captured_by_structlog_s_own_helper() -> None:
    app = made(quick_and_fail)
    with capture_logs() as first:
        await call(app)
    with capture_logs() as second:
        await call(app)
    assert events(first) == events(second)
    assert one(second, "task.failed")["log_level"] == "error"


async def test_captured_by_structlog_s_own_helper_with_cached_loggers() -> None:
    structlog.configure(cache_logger_on_first_use=True)
    app = made(quick_and_fail)
    with capture_logs() as first:
        await call(app)
    with capture_logs() as second:
        await call(app)
    assert events(first) == events(second)
    assert named(second, "task.failed")


# Whatever the log does, it hurts nobody.


def no_arguments() -> structlog.PrintLogger:
    """A logger factory as an application writes it that never names its loggers."""
    return structlog.PrintLogger(sys.stdout)


def no_logger(*args: Any) -> Any:
    raise OSError("no log today")


closed = io.StringIO()
closed.close()
BROKEN: dict[str, dict[str, Any]] = {
    "a processor raises": {"processors": [explode]},
    "nothing renders": {"processors": []},
    "the file is closed": {"logger_factory": structlog.WriteLoggerFactory(closed)},
    "the factory raises": {"logger_factory": no_logger},
    "the wrapper class has no methods": {"wrapper_class": HalfALogger},
}
each_broken = pytest.mark.parametrize("broken", BROKEN.values(), ids=list(BROKEN))


@each_broken
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_log_that_breaks_hurts_nobody(
    broken: dict[str, Any], when: str, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []
    told: list[BaseException | None] = []
    app = FastAPI()
    if when == "before":
        structlog.configure(**broken)
    bgx = Bgx(Settings(slow_after=0.001))
    bgx.install(app)

    @bgx.on_failure
    async def tell(task: Task[Any], outcome: Outcome[Any]) -> None:
        told.append(outcome.error)
        raise ValueError("the hook fails, too")

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(ran.append, 1)
        tasks.add_task(fail)
        tasks.add_task(anyio.sleep, 0.005)
        tasks.using(detached=True).add_task(ran.append, 2)
        tasks.using(timeout=0.001).add_task(anyio.sleep, 10)
        tasks.add_task(ran.append, 3)

    if when == "after":
        structlog.configure(**broken)
    messages = await call(app)  # without a lifespan: told, too
    assert messages[0]["status"] == 200
    async with running(app):
        messages = await call(app)
        assert messages[0]["status"] == 200
    assert sorted(ran) == [1, 1, 2, 2, 3, 3]
    assert [type(error) for error in told] == [ConnectionError, TimeoutError] * 2
    assert caplog.records or broken in (
        BROKEN["nothing renders"],
        BROKEN["the factory takes no name"],
    )


async def test_a_logger_factory_that_takes_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.configure(logger_factory=no_arguments)
    await call(made(quick_and_fail))
    out = capsys.readouterr().out
    for event in [*NORMAL, "task.failed"]:
        assert event in out


async def test_what_the_log_raised_is_told_to_the_standard_library(
    caplog: pytest.LogCaptureFixture,
) -> None:
    structlog.configure(processors=[explode])
    await call(made(lambda tasks: tasks.add_task(fail), Settings(log_events={"task.failed"})))
    (record,) = [record for record in caplog.records if record.name == "fastapi_bgx"]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the log is full"


async def test_a_log_that_blocks_a_thread_for_a_while_loses_nothing() -> None:
    gate = threading.Event()
    gate.set()

    def wait(logger: Any, method: str, event: Any) -> Any:
        gate.wait()
        return event

    with logged(wait) as lines:
        await call(made(quick_and_fail))
    assert len(lines) == 6
