"""Every event: when it is told, at which level, with which fields; and one end for each task."""

import inspect
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

import anyio
import pytest
from fastapi import FastAPI, HTTPException
from structlog.typing import EventDict

from fastapi_bgx import (
    BackgroundTasks,
    BacklogFull,
    Bgx,
    Draining,
    Limit,
    Settings,
    Status,
    TaskOptions,
    Tasks,
    events,
)
from fastapi_bgx.events import ALL_EVENTS, Event, Publisher, TaskEnded
from fastapi_bgx.listeners.log import fields_of
from fastapi_bgx.runners import Runners
from fastapi_bgx.settings import EventName
from tests.asgi import call, running
from tests.logs import FINAL, Lines, logged, named, one

pytestmark = pytest.mark.anyio

TASK = {"task", "task_id", "executor"}
END = TASK | {"attempt", "queued_s", "duration_s"}


def quick() -> None: ...


async def quick_async() -> None: ...


async def fail() -> None:
    raise ConnectionError("the bank does not answer")


async def hang() -> None:
    await anyio.sleep_forever()


def in_process(number: int) -> int:
    return number


async def served(add: Callable[[Any], None], settings: Settings | None = None) -> Lines:
    """What is logged when a route calls `add`, up to the end of the request."""
    app = FastAPI()
    Bgx(settings or Settings()).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        add(tasks)

    with logged() as lines, suppress(ConnectionError):
        await call(app)
    return lines


def check(line: EventDict, level: str, fields: set[str]) -> None:
    """An event has its level, and these fields and no others."""
    assert line["log_level"] == level
    assert set(line) - {"event", "log_level"} == fields


# What the code says of its events.


def test_every_name_belongs_to_one_event() -> None:
    assert sorted(event.name for event in ALL_EVENTS) == sorted(get_args(EventName))


def test_every_event_that_is_defined_is_one_of_all() -> None:
    defined = [each for each in vars(events).values() if inspect.isclass(each)]
    assert {each for each in defined if issubclass(each, Event) and hasattr(each, "name")} == set(
        ALL_EVENTS
    )


def test_the_events_that_end_a_task_are_the_final_ones() -> None:
    assert {event.name for event in ALL_EVENTS if issubclass(event, TaskEnded)} == FINAL


class Fickle:
    """A listener that hears nothing at first, and may change its mind."""

    def __init__(self, answers: list[bool]) -> None:
        self.answers = answers
        self.heard: list[Event] = []
        self.asked = 0

    def hears(self, event: type[Event]) -> bool:
        self.asked += 1
        return self.asked > len(ALL_EVENTS)

    def changed(self) -> bool:
        return self.answers.pop(0)

    def __call__(self, event: Event) -> None:
        self.heard.append(event)


def test_listeners_are_asked_again_when_one_of_them_has_changed() -> None:
    first, second = Fickle([False, True]), Fickle([False, True])
    publisher = Publisher([first, second])
    event = events.Started("inline")
    publisher.refresh()
    publisher.publish(event)
    assert (first.heard, second.heard) == ([], [])
    publisher.refresh()
    assert (first.answers, second.answers) == ([], [])  # the second was asked, too
    publisher.publish(event)
    assert (first.heard, second.heard) == ([event], [event])


class Counts:
    """A listener of an application: counts the events of one kind."""

    def __init__(self, kind: type[Event]) -> None:
        self.kind = kind
        self.heard: list[Event] = []

    def hears(self, event: type[Event]) -> bool:
        return event is self.kind

    def changed(self) -> bool:
        return False

    def __call__(self, event: Event) -> None:
        self.heard.append(event)


async def test_a_listener_of_the_application_hears_what_it_wants() -> None:
    app, bgx = FastAPI(), Bgx(Settings(log_events=set()))
    bgx.install(app)
    started = Counts(events.TaskStarted)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(quick)
        tasks.add_task(quick_async)

    await call(app)
    assert bgx.listen(started) is started
    await call(app)
    assert [type(event) for event in started.heard] == [events.TaskStarted] * 2


# The course of a task.


async def test_a_task_that_succeeds() -> None:
    lines = await served(lambda tasks: tasks.add_task(quick))
    assert [line["event"] for line in lines] == ["task.queued", "task.started", "task.succeeded"]
    queued, started, succeeded = lines
    check(queued, "debug", TASK)
    check(started, "debug", TASK | {"attempt", "queued_s"})
    check(succeeded, "info", END)
    assert len({line["task_id"] for line in lines}) == 1


async def test_the_values_of_the_fields() -> None:
    def add(tasks: Tasks) -> None:
        tasks.add_task(anyio.sleep, 0.02)
        tasks.add_task(quick)

    lines = await served(add)
    slow, fast = named(lines, "task.succeeded")
    assert (slow["task"], slow["executor"], slow["attempt"]) == ("sleep", "async", 1)
    assert (fast["task"], fast["executor"], fast["attempt"]) == ("quick", "thread", 1)
    assert 0.015 < slow["duration_s"] < 1
    assert 0 <= slow["queued_s"] < slow["duration_s"]
    assert fast["queued_s"] > slow["duration_s"]  # it had to wait for its turn
    assert fast["queued_s"] == named(lines, "task.started")[1]["queued_s"]
    assert slow["task_id"] != fast["task_id"]


async def test_the_order_of_the_fields() -> None:
    def add(tasks: Tasks) -> None:
        tasks.add_task(quick)
        tasks.using(limit=Limit("smtp", 1)).add_task(quick)

    lines = await served(add)
    first = ["task", "task_id", "executor"]
    last = ["attempt", "queued_s", "duration_s"]
    for line, limited in zip(named(lines, "task.succeeded"), ([], ["limit"]), strict=True):
        in_order = [name for name in line if name not in ("event", "log_level")]
        assert in_order == [*first, *limited, *last]


@pytest.mark.parametrize("limit", [None, Limit("smtp", 1)])
def test_seconds_are_rounded_to_the_microsecond(limit: Limit | None) -> None:
    task = Runners(Settings(log_events=set())).accept(quick, (), {}, TaskOptions(limit=limit))
    task.claimed = True
    chance = random.Random(7)
    for _ in range(1000):
        queued, ran = (chance.random() * 10.0 ** chance.randint(-7, 5) for _ in range(2))
        task.added_at, task.started_at = 0.0, queued
        task.end(Status.SUCCEEDED, queued + ran)
        fields = fields_of(events.TaskSucceeded(task))
        assert fields["queued_s"] == round(task.queued_s, 6)
        assert fields["duration_s"] == round(task.duration_s, 6)


def test_what_has_not_begun_took_no_time() -> None:
    task = Runners(Settings(log_events=set())).accept(quick, (), {}, None)
    task.claimed = True
    task.added_at = 1.0
    task.end(Status.DROPPED, 3.0)
    fields = fields_of(events.TaskDropped(task, "it was never called"))
    assert (fields["queued_s"], fields["duration_s"]) == (2.0, 0.0)


async def test_a_task_that_fails() -> None:
    line = one(await served(lambda tasks: tasks.add_task(fail)), "task.failed")
    check(line, "error", END | {"error", "exc_info"})
    assert line["error"] == "ConnectionError"
    error = line["exc_info"]
    assert str(error) == "the bank does not answer"
    names = []
    traceback = error.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names[-1] == "fail"


async def test_a_task_that_times_out() -> None:
    line = one(await served(lambda t: t.using(timeout=0.01).add_task(hang)), "task.timed_out")
    check(line, "error", END | {"error", "exc_info"})
    assert line["error"] == "TimeoutError"
    assert str(line["exc_info"]) == "hang ran longer than its timeout of 0.01 s"
    assert line["duration_s"] >= 0.01


async def test_a_thread_that_outlives_its_timeout() -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)
    gate = threading.Event()

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.using(timeout=0.01).add_task(gate.wait, 10)

    with logged() as lines:
        await call(app)
        check(one(lines, "task.timed_out"), "error", END | {"error", "exc_info"})
        gate.set()
        while not [line for line in named(lines, "task.overran") if line["ended"]]:
            await anyio.sleep(0.001)
    overran = named(lines, "task.overran")[-1]
    check(overran, "warning", TASK | {"overran_s", "ended"})
    assert 0 <= overran["overran_s"] < 5
    assert lines[-1] is overran


async def test_a_task_that_is_slow() -> None:
    async def until_slow() -> None:
        while not named(lines, "task.slow"):
            await anyio.sleep(0.001)

    app = FastAPI()
    Bgx(Settings()).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.using(slow_after=0.01).add_task(until_slow)

    with logged() as lines:
        await call(app)
    assert [line["event"] for line in lines][-2:] == ["task.slow", "task.succeeded"]
    check(one(lines, "task.slow"), "warning", TASK | {"running_s"})
    assert one(lines, "task.slow")["running_s"] >= 0.01


async def test_a_thread_that_is_slow() -> None:
    gate = threading.Event()
    app = FastAPI()
    Bgx(Settings(slow_after=0.01)).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(gate.wait, 10)

    with logged() as lines:
        async with anyio.create_task_group() as group:
            group.start_soon(call, app)
            while not named(lines, "task.slow"):
                await anyio.sleep(0.001)
            gate.set()
    assert one(lines, "task.slow")["executor"] == "thread"


async def test_a_task_is_slow_once() -> None:
    lines = await served(lambda tasks: tasks.using(slow_after=0.005).add_task(anyio.sleep, 0.03))
    assert len(named(lines, "task.slow")) == 1


async def test_a_task_that_blocks_the_loop_is_slow_once() -> None:
    async def block() -> None:
        await anyio.sleep(0)
        time.sleep(0.02)  # its timer is due, and cannot ring

    with logged() as lines:
        lines += await served(lambda tasks: tasks.using(slow_after=0.01).add_task(block))
        await anyio.sleep(0.02)  # now it could
    assert len(named(lines, "task.slow")) == 1


@pytest.mark.parametrize("settings", [Settings(), Settings(slow_after=None)])
async def test_a_task_is_slow_after_thirty_seconds_or_never(settings: Settings) -> None:
    lines = await served(lambda tasks: tasks.add_task(anyio.sleep, 0.02), settings)
    assert settings.slow_after in (30, None)
    assert not named(lines, "task.slow")


async def test_a_task_that_waits_too_long() -> None:
    app = FastAPI()
    bgx = Bgx(Settings(max_concurrency=1))
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        view = tasks.using(detached=True, concurrent=True)
        view.add_task(hang)
        view.using(queue_timeout=0.01).add_task(quick_async)

    with logged() as lines:
        async with running(app):
            await call(app)
            while not named(lines, "task.expired"):
                await anyio.sleep(0.001)
            await bgx.drain(grace=0)
    expired = one(lines, "task.expired")
    check(expired, "warning", END | {"reason"})
    assert expired["reason"] == "queue_timeout"
    assert (expired["task"], expired["attempt"], expired["duration_s"]) == ("quick_async", 0, 0)
    assert expired["queued_s"] >= 0.01
    assert "quick_async" not in [line["task"] for line in named(lines, "task.started")]


async def test_a_task_of_a_request_that_failed() -> None:
    def add(tasks: Tasks) -> None:
        tasks.add_task(quick)
        raise HTTPException(402)

    lines = await served(add)
    assert [line["event"] for line in lines] == ["task.queued", "task.dropped"]
    check(lines[1], "warning", END | {"reason"})
    assert lines[1]["reason"] == "the request failed: 402"
    assert lines[1]["attempt"] == 0


async def test_a_task_that_is_refused_because_the_backlog_is_full() -> None:
    def add(tasks: Tasks) -> None:
        tasks.add_task(quick)
        with pytest.raises(BacklogFull):
            tasks.using(name="one too many").add_task(quick)

    lines = await served(add, Settings(max_backlog=1))
    check(one(lines, "task.rejected"), "warning", {"task", "reason"})
    assert one(lines, "task.rejected")["task"] == "one too many"
    assert one(lines, "task.rejected")["reason"] == "the backlog is full"
    assert len(named(lines, "task.succeeded")) == 1


async def test_a_task_that_is_refused_because_the_process_shuts_down() -> None:
    app = FastAPI()
    bgx = Bgx(Settings())
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        with pytest.raises(Draining):
            tasks.add_task(quick)

    with logged() as lines:
        async with running(app):
            await bgx.drain()
            await call(app)
    assert one(lines, "task.rejected")["reason"] == "shutting down"


async def test_a_task_that_is_cancelled() -> None:
    app = FastAPI()
    bgx = Bgx(Settings())
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.using(detached=True).add_task(hang)
        tasks.using(detached=True).add_task(quick_async)  # waits for the first

    with logged() as lines:
        async with running(app):
            await call(app)
            while not named(lines, "task.started"):
                await anyio.sleep(0)
            await bgx.drain(grace=0)
    ran, waited = sorted(named(lines, "task.cancelled"), key=lambda line: -line["attempt"])
    check(ran, "warning", END | {"reason", "error"})
    check(waited, "warning", END | {"reason"})
    assert {ran["reason"], waited["reason"]} == {"shutdown"}


async def test_the_limit_is_a_field_of_every_event() -> None:
    def add(tasks: Tasks) -> None:
        view = tasks.using(limit=Limit("smtp", 1))
        view.add_task(quick)
        view.add_task(fail)

    lines = await served(add)
    assert len(lines) == 6
    assert {line["limit"] for line in lines} == {"smtp"}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # a worker takes a second to start
async def test_the_executor_is_a_field() -> None:
    def add(tasks: Tasks) -> None:
        tasks.add_task(quick)
        tasks.add_task(quick_async)
        tasks.using(executor="async").add_task(quick)
        tasks.using(executor="process").add_task(in_process, 1)

    succeeded = named(await served(add), "task.succeeded")
    assert [line["executor"] for line in succeeded] == ["thread", "async", "async", "process"]


# The library itself.


async def test_start_and_end_of_the_application() -> None:
    app = FastAPI()
    Bgx(Settings(mode="detached")).install(app)
    with logged() as lines:
        async with running(app):
            pass
    assert [line["event"] for line in lines] == ["bgx.started", "bgx.drained"]
    check(lines[0], "info", {"mode"})
    check(lines[1], "info", {"finished", "cancelled", "in_thread", "stuck", "duration_s"})
    assert lines[0]["mode"] == "detached"
    assert (lines[1]["finished"], lines[1]["cancelled"]) == (0, [])


async def test_the_report_of_a_drain_names_the_tasks() -> None:
    app = FastAPI()
    bgx = Bgx(Settings(mode="detached"))
    bgx.install(app)
    gate = threading.Event()

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        view = tasks.using(concurrent=True)
        view.add_task(hang)
        view.add_task(gate.wait, 10)

    with logged() as lines:
        async with running(app):
            await call(app)
            while len(named(lines, "task.started")) < 2:
                await anyio.sleep(0)
            await bgx.drain(grace=0)
            gate.set()
    ids = {line["task"]: line["task_id"] for line in named(lines, "task.started")}
    drained = one(lines, "bgx.drained")
    assert f"hang {ids['hang']}" in drained["cancelled"]
    assert drained["in_thread"] == [f"Event.wait {ids['Event.wait']}"]


async def test_a_report_of_very_many_tasks_is_short() -> None:
    app = FastAPI()
    bgx = Bgx(Settings(mode="detached"))
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        for _ in range(50):
            tasks.add_task(hang)

    with logged() as lines:
        async with running(app):
            await call(app)
            await bgx.drain(grace=0)
    cancelled = one(lines, "bgx.drained")["cancelled"]
    assert len(cancelled) == 21
    assert cancelled[-1] == "and 30 more"


# One end for each task.


async def test_every_task_ends_once() -> None:
    app = FastAPI()
    bgx = Bgx(Settings(slow_after=0.001, max_threads=2))
    bgx.install(app)
    gate = threading.Event()

    def add(tasks: BackgroundTasks) -> None:
        for view in (tasks.using(), tasks.using(concurrent=True), tasks.using(detached=True)):
            view.add_task(quick)
            view.add_task(quick_async)
            view.add_task(fail)
            view.using(timeout=0.01).add_task(hang)
            view.using(timeout=0.01).add_task(gate.wait, 10)
            view.using(queue_timeout=0.001).add_task(quick)

    @app.get("/right")
    async def right(tasks: Tasks) -> None:
        add(tasks)

    @app.get("/wrong")
    async def wrong(tasks: Tasks) -> None:
        add(tasks)
        raise HTTPException(500)

    with logged() as lines:
        async with running(app):
            await call(app, "/right")
            await call(app, "/wrong")
            gate.set()
            await bgx.drain()
    tasks = [line["task_id"] for line in named(lines, "task.queued")]
    ends = [line["task_id"] for line in lines if line["event"] in FINAL]
    assert len(tasks) == 36
    assert sorted(ends) == sorted(tasks)
