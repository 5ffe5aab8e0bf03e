"""Tasks that are tried again: when, where, and what they hold meanwhile, which is nothing."""

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from fastapi import BackgroundTasks as StockBackgroundTasks
from fastapi import FastAPI
from starlette.responses import Response

from fastapi_bgx import (
    BackgroundTasks,
    BacklogFull,
    Bgx,
    Outcome,
    Retry,
    Settings,
    Status,
    Task,
    TaskOptions,
    Tasks,
    current_task,
    task_options,
)
from fastapi_bgx.plan import Planner
from tests.asgi import client_of
from tests.clocks import standing
from tests.flaky import Again, flaky, flaky_async, slow_at_first
from tests.logs import FINAL, Lines, logged, named, one
from tests.supervision import PATIENCE, Gauge, serving, tasks_of, until

pytestmark = pytest.mark.anyio

SOON = Retry(attempts=3, wait_initial=0.01, wait_jitter=0)
MINUTES = Retry(attempts=3, wait_initial=60, wait_jitter=0, wait_max=600)
KINDS: dict[str, Callable[[str, int], Any]] = {
    "async": flaky_async,
    "thread": flaky,
    "process": flaky,
}
PLACES: dict[str, Any] = {"inline": {}, "concurrent": {"concurrent": True}}
PLACES["detached"] = {"detached": True}
KIND = pytest.mark.parametrize("kind", KINDS)
PLACE = pytest.mark.parametrize("place", PLACES)
KIND_AND_PLACE = pytest.mark.parametrize(
    ("kind", "place"),
    [(kind, place) for kind in ("async", "thread") for place in PLACES] + [("process", "detached")],
)
LONG = 60.0
"""Patience for worker processes, which take their time to start on a machine that is busy."""


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as captured:
        yield captured


class Fails:
    """An async function that fails a number of times, and counts its calls."""

    def __init__(self, times: int = 99) -> None:
        self.calls = 0
        self.times = times

    async def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise Again(f"call {self.calls}")
        return self.calls


async def run(bgx: Bgx, func: Callable[..., Any], *args: Any, **options: Any) -> Outcome[Any]:
    """How the only task of a request ends."""
    tasks = await tasks_of(bgx)
    task = tasks.using(**options).add_task(func, *args)
    with anyio.fail_after(LONG):
        await tasks()
        return await ended(task)


def retrying(*tasks: Task[Any]) -> Callable[[], bool]:
    return lambda: all(task.status is Status.RETRYING for task in tasks)


async def ended(task: Task[Any]) -> Outcome[Any]:
    """The outcome of a task that should end by itself now."""
    return await task.wait(LONG)


# Attempts.


@KIND_AND_PLACE
async def test_a_task_that_failed_is_tried_again_until_it_succeeds(
    kind: Any, place: str, tmp_path: Path
) -> None:
    async with serving() as bgx:
        options = {"executor": kind, "retry": SOON, **PLACES[place]}
        outcome = await run(bgx, KINDS[kind], str(tmp_path / "notes"), 2, **options)
    assert (outcome.status, outcome.value, outcome.attempts) == ("succeeded", 3, 3)
    assert outcome.error is None
    assert [str(error) for error in outcome.errors] == ["call 1", "call 2"]
    assert {type(error) for error in outcome.errors} == {Again}
    assert outcome.duration_s >= 0.03


@KIND_AND_PLACE
async def test_a_task_that_always_fails_has_failed_after_its_attempts(
    kind: Any, place: str, tmp_path: Path
) -> None:
    async with serving() as bgx:
        options = {"executor": kind, "retry": SOON, **PLACES[place]}
        outcome = await run(bgx, KINDS[kind], str(tmp_path / "notes"), 99, **options)
    assert (outcome.status, outcome.attempts) == ("failed", 3)
    assert outcome.error is outcome.errors[-1]
    assert [str(error) for error in outcome.errors] == ["call 1", "call 2", "call 3"]
    assert (tmp_path / "notes").stat().st_size == 3


async def test_each_attempt_knows_its_number_and_has_the_whole_timeout() -> None:
    seen: list[tuple[int, float]] = []

    async def work() -> None:
        inside = current_task()
        assert inside is not None
        left = inside.remaining()
        assert left is not None
        seen.append((inside.attempt, left))
        raise Again

    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, timeout=5, detached=True).add_task(work)
        await tasks()
        for attempt in 1, 2:
            await until(lambda n=attempt: task.attempt == n and retrying(task)())  # type: ignore[misc]
            clock.advance(600)
        await ended(task)
    assert seen == [(1, 5), (2, 5), (3, 5)]


async def test_the_times_of_the_outcome_are_those_from_the_first_attempt_to_the_last() -> None:
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, detached=True).add_task(Fails(2))
        clock.advance(3)
        await tasks()
        for attempt in 1, 2:
            await until(lambda n=attempt: task.attempt == n and retrying(task)())  # type: ignore[misc]
            clock.advance(clock.waits[0])
        outcome = await ended(task)
    assert (outcome.queued_s, outcome.duration_s) == (3, 60 + 120)


# Which errors.


async def test_an_error_that_is_not_covered_ends_the_task_at_once() -> None:
    async with serving() as bgx:
        outcome = await run(bgx, Fails(), retry=Retry(on=KeyError))
    assert (outcome.status, outcome.attempts) == ("failed", 1)


async def test_a_function_decides_which_errors_are_tried_again() -> None:
    policy = Retry(attempts=9, wait_initial=0, wait_jitter=0, on=lambda e: str(e) != "call 3")
    async with serving() as bgx:
        outcome = await run(bgx, Fails(), retry=policy)
    assert (outcome.status, outcome.attempts) == ("failed", 3)


@PLACE
async def test_a_function_that_fails_to_decide_is_told_of_and_the_task_has_failed(
    place: str, lines: Lines
) -> None:
    def on(error: BaseException) -> bool:
        raise LookupError("undecided")

    async with serving() as bgx:
        outcome = await run(bgx, Fails(), retry=Retry(on=on), **PLACES[place])
    assert (outcome.status, outcome.attempts) == ("failed", 1)
    assert isinstance(outcome.error, Again)
    told = one(lines, "bgx.retry_undecided")
    assert (told["task"], str(told["exc_info"])) == ("Fails", "undecided")


async def test_the_end_of_the_interpreter_is_no_error_to_try_again() -> None:
    calls = []

    async def work() -> None:
        calls.append(1)
        raise SystemExit

    async with serving() as bgx:
        assert (await run(bgx, work, retry=SOON)).status == "failed"
    assert len(calls) == 1


@pytest.mark.parametrize("on_timeout", [True, False])
@KIND
async def test_a_timeout_is_tried_again_unless_told_otherwise(
    kind: Any, on_timeout: bool, tmp_path: Path
) -> None:
    async def slow_at_first_async(notes: str, seconds: float) -> str:
        first = not Path(notes).exists()
        Path(notes).touch()
        await anyio.sleep(seconds if first else 0)
        return "done"

    func = slow_at_first_async if kind == "async" else slow_at_first
    policy = Retry(wait_initial=0.01, wait_jitter=0, on_timeout=on_timeout, on=KeyError)
    async with serving() as bgx:
        options = {"executor": kind, "retry": policy, "timeout": 0.2}
        outcome = await run(bgx, func, str(tmp_path / "note"), 0.5, **options)
    assert outcome.status == ("succeeded" if on_timeout else "timed_out")
    assert outcome.attempts == (2 if on_timeout else 1)
    assert isinstance(outcome.errors[0], TimeoutError)
    assert len(outcome.errors) == 1


async def test_the_next_attempt_never_begins_before_the_thread_of_the_last_one_has_ended() -> None:
    gauge, release = Gauge(), threading.Event()

    def work() -> None:
        with gauge:
            if gauge.total == 1:
                release.wait(PATIENCE)

    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, timeout=5, detached=True).add_task(work)
        await tasks()
        await until(lambda: gauge.inside)
        clock.advance(5)
        await until(retrying(task))
        assert bgx.stats().overrunning == 1
        clock.advance(600)
        await anyio.sleep(0.01)
        assert (task.status, gauge.total) == ("retrying", 1)
        release.set()
        outcome = await ended(task)
    assert (outcome.status, outcome.attempts, gauge.most) == ("succeeded", 2, 1)


async def test_a_pause_goes_on_after_the_thread_has_ended() -> None:
    """The thread's end alone does not begin the next attempt."""
    started, release, calls = threading.Event(), threading.Event(), list[int]()

    def work() -> None:
        calls.append(1)
        started.set()
        release.wait(PATIENCE)

    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, timeout=5, detached=True).add_task(work)
        await tasks()
        await until(started.is_set)
        clock.advance(5)
        await until(retrying(task))
        release.set()
        await until(lambda: not bgx.stats().overrunning)
        assert len(calls) == 1
        clock.advance(60)
        assert (await ended(task)).attempts == 2


async def test_a_task_cancelled_while_its_thread_lingers_is_freed_when_that_ends() -> None:
    started, release = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        release.wait(PATIENCE)

    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, timeout=5, detached=True).add_task(work)
        await tasks()
        await until(started.is_set)
        clock.advance(5)
        await until(retrying(task))
        assert task.cancel()
        assert (await ended(task)).status == "cancelled"
        release.set()
        await until(lambda: task.context is None)


# How long.


async def test_the_pauses_grow(lines: Lines) -> None:
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, detached=True).add_task(Fails())
        await tasks()
        await until(retrying(task))
        assert clock.waits == [60]
        clock.advance(59.9)
        await anyio.sleep(0.001)
        assert (task.status, task.attempt) == ("retrying", 1)
        clock.advance(0.1)
        await until(lambda: task.attempt == 2 and retrying(task)())
        assert clock.waits == [120]
        clock.advance(120)
        await ended(task)
    assert [line["delay_s"] for line in named(lines, "task.retrying")] == [60, 120]


async def test_an_error_that_asks_for_a_pause_gets_it(lines: Lines) -> None:
    class TooMany(Exception):
        retry_after = 33

    async def work() -> None:
        raise TooMany

    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, detached=True).add_task(work)
        await tasks()
        await until(retrying(task))
        assert clock.waits == [33]
    assert one(lines, "task.retrying")["delay_s"] == 33


async def test_no_attempt_begins_after_the_total_timeout() -> None:
    policy = MINUTES.model_copy(update={"total_timeout": 100.0})
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=policy, detached=True).add_task(Fails())
        await tasks()
        await until(retrying(task))
        clock.advance(60)
        outcome = await ended(task)  # 120 s more would be too long
    assert (outcome.status, outcome.attempts, len(outcome.errors)) == ("failed", 2, 2)


@pytest.mark.parametrize("timed_out", [False, True])
async def test_a_wait_for_a_slot_counts_for_the_total_timeout(timed_out: bool) -> None:
    """The task ends as its last attempt did, and the hooks are told."""
    told: list[Outcome[Any]] = []
    release = anyio.Event()
    policy = MINUTES.model_copy(update={"total_timeout": 100.0})
    async with standing(limits={"door": 1}) as (bgx, clock):
        bgx.on_failure(lambda task, outcome: told.append(outcome))
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, concurrent=True, limit="door")
        work = anyio.sleep_forever if timed_out else Fails()
        task = view.using(retry=policy, timeout=5).add_task(work)
        view.add_task(release.wait)
        await tasks()
        await until(lambda: task.status == "running" or retrying(task)())
        if timed_out:
            clock.advance(5)
        await until(retrying(task))
        await until(lambda: bgx.stats().running == 1)
        clock.advance(100)
        assert bgx.stats().limiters["door"].waiting == 1
        release.set()
        with anyio.fail_after(PATIENCE):
            outcome = await ended(task)
        await until(lambda: told)
        assert bgx.stats().waiting == 0
    assert outcome.status == ("timed_out" if timed_out else "failed")
    assert outcome.attempts == 1
    assert outcome.errors == (outcome.error,)
    assert told == [outcome]


# What a pause holds: nothing.


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_pause_holds_no_slot(kind: Any, tmp_path: Path) -> None:
    room = {"max_concurrency": 1, "max_threads": 1, "max_processes": 1, "limits": {"door": 1}}
    async with standing(**room) as (bgx, clock):
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, limit="door", executor=kind)
        task = view.using(retry=MINUTES).add_task(KINDS[kind], str(tmp_path / "one"), 1)
        await tasks()
        await until(retrying(task))
        assert bgx.stats().running == 0
        view = (later := await tasks_of(bgx)).using(detached=True, limit="door", executor=kind)
        other = view.add_task(KINDS[kind], str(tmp_path / "two"), 0)
        await later()
        assert (await ended(other)).status == "succeeded"
        assert task.status == "retrying"
        clock.advance(60)
        assert (await ended(task)).value == 2


async def test_a_pause_holds_no_sibling_of_an_inline_task() -> None:
    async with standing() as (bgx, clock), anyio.create_task_group() as group:
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES).add_task(Fails(1))
        sibling = tasks.add_task(anyio.sleep, 0)
        group.start_soon(tasks)
        await ended(sibling)
        assert task.status == "retrying"
        clock.advance(60)
        assert (await ended(task)).status == "succeeded"


async def test_a_pause_holds_no_detached_task_that_follows() -> None:
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True)
        task = view.using(retry=MINUTES).add_task(Fails(1))
        followers = [view.add_task(anyio.sleep, 0) for _ in range(2)]
        await tasks()
        for follower in followers:
            assert (await ended(follower)).status == "succeeded"
        assert task.status == "retrying"
        clock.advance(60)
        assert (await ended(task)).status == "succeeded"


async def test_a_detached_task_that_is_added_during_a_pause_starts() -> None:
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        tasks._at_once = True  # as in a WebSocket
        view = tasks.using(detached=True)
        task = view.using(retry=MINUTES).add_task(Fails(1))
        await until(retrying(task))
        late = view.add_task(anyio.sleep, 0)
        with anyio.fail_after(PATIENCE):
            assert (await ended(late)).status == "succeeded"
        assert task.status == "retrying"
        clock.advance(60)
        await ended(task)


async def test_pauses_count_as_waiting_for_the_backlog() -> None:
    async with standing(max_backlog=1) as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, detached=True).add_task(Fails(1))
        await tasks()
        await until(retrying(task))
        assert bgx.stats().waiting == 1
        with pytest.raises(BacklogFull):
            tasks.add_task(anyio.sleep, 0)
        clock.advance(60)
        await ended(task)
        assert bgx.stats().waiting == 0
        tasks.add_task(anyio.sleep, 0)
        await tasks()


async def test_a_task_in_a_pause_is_found() -> None:
    async with standing() as (bgx, _):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, detached=True).add_task(Fails())
        await tasks()
        await until(retrying(task))
        assert bgx.find(status=Status.RETRYING) == [task]
        assert not task.done
        assert task.outcome is None


# A request waits for its own.


def application(bgx: Bgx, add: Callable[[Any], object]) -> FastAPI:
    app = FastAPI()
    bgx.install(app)

    @app.post("/")
    async def route(tasks: Tasks) -> None:
        add(tasks)

    @app.post("/stock")
    async def stock(background_tasks: StockBackgroundTasks) -> None:
        add(background_tasks)

    @app.post("/own")
    async def own() -> Response:
        added = BackgroundTasks()
        add(added)
        return Response(background=added)

    @app.post("/past")
    async def past(tasks: Tasks) -> None:
        """A list into which a task gets past `add_task`."""
        by_hand = StockBackgroundTasks()
        add(by_hand)
        tasks.tasks.extend(by_hand.tasks)

    return app


@pytest.mark.parametrize("path", ["/", "/stock", "/own", "/past"])
@pytest.mark.parametrize("lifespan", [False, True])
async def test_a_request_ends_after_the_last_attempt_of_its_inline_tasks(
    path: str, lifespan: bool, anyio_backend: str, lines: Lines
) -> None:
    """Also where each request of a test client has its own event loop."""
    func = Fails(2)
    app = application(Bgx(Settings(retry=SOON)), lambda tasks: tasks.add_task(func))

    def post() -> None:
        client = client_of(app, anyio_backend)
        if not lifespan:
            assert client.post(path).status_code == 200
            return
        with client:
            assert client.post(path).status_code == 200
            assert func.calls == 3

    await anyio.to_thread.run_sync(post)
    assert func.calls == 3
    assert [line["holds_request"] for line in named(lines, "task.retrying")] == [True, True]
    assert one(lines, "task.succeeded")["attempt"] == 3


async def test_a_request_does_not_wait_for_a_detached_task_that_is_tried_again(
    lines: Lines,
) -> None:
    async with standing() as (bgx, _):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, detached=True).add_task(Fails())
        with anyio.fail_after(PATIENCE):
            await tasks()
        await until(retrying(task))
    assert one(lines, "task.retrying")["holds_request"] is False


async def test_a_cancelled_request_ends_the_pause(lines: Lines) -> None:
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES).add_task(Fails())
        async with anyio.create_task_group() as request:
            request.start_soon(tasks)
            await until(retrying(task))
            request.cancel_scope.cancel()
        with anyio.fail_after(PATIENCE):
            outcome = await ended(task)
        assert clock.waits == []
    assert (outcome.status, outcome.attempts) == ("cancelled", 1)
    assert outcome.errors == (outcome.error,)
    assert one(lines, "task.cancelled")["reason"] == "the request around it was cancelled"


async def test_an_attempt_that_is_cancelled_with_its_request_is_the_last() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        retry = Retry(on=BaseException, wait_initial=0, wait_jitter=0)
        task = tasks.using(retry=retry).add_task(anyio.sleep_forever)
        async with anyio.create_task_group() as request:
            request.start_soon(tasks)
            await until(lambda: task.status == "running")
            request.cancel_scope.cancel()
    assert (task.status, task.attempt) == ("cancelled", 1)


async def test_a_later_attempt_may_add_tasks_to_its_request() -> None:
    added: list[Task[Any]] = []
    func = Fails(1)

    async def work() -> None:
        await func()
        added.append(tasks.add_task(anyio.sleep, 0))

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        tasks.using(retry=SOON).add_task(work)
        with anyio.fail_after(PATIENCE):
            await tasks()
        assert [task.status for task in added] == ["succeeded"]


# With `on_error="raise"`.


async def test_only_the_error_of_the_last_attempt_is_raised() -> None:
    async with serving(on_error="raise") as bgx:
        assert (await run(bgx, Fails(2), retry=SOON)).status == "succeeded"
        tasks = await tasks_of(bgx)
        tasks.using(retry=SOON).add_task(Fails())
        sibling = tasks.add_task(anyio.sleep, 0)
        with pytest.raises(Again, match="call 3"):
            await tasks()
        assert sibling.status == "succeeded"


# Cancelling.


@pytest.mark.parametrize("where", ["in the pause", "in the queue", "before its worker"])
async def test_a_task_that_is_cancelled_between_two_attempts_keeps_its_error(where: str) -> None:
    func, release = Fails(), anyio.Event()
    async with standing(limits={"door": 1}) as (bgx, clock):
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, concurrent=True, limit="door")
        task = view.using(retry=MINUTES).add_task(func)
        await tasks()
        await until(retrying(task))
        if where == "in the queue":
            other = await tasks_of(bgx)
            holds = other.using(detached=True, limit="door").add_task(release.wait)
            await other()
            await until(lambda: holds.status == "running")
        if where != "in the pause":
            clock.advance(60)
        assert task.cancel()
        outcome = await ended(task)
        clock.advance(1000)
        release.set()
        assert bgx.stats().waiting == 0
    assert (outcome.status, outcome.attempts, func.calls) == ("cancelled", 1, 1)
    assert isinstance(outcome.error, Again)
    assert outcome.errors == (outcome.error,)


async def test_a_running_attempt_that_is_cancelled_is_the_last() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(retry=SOON, detached=True)
        task = view.add_task(anyio.sleep_forever)
        await tasks()
        await until(lambda: task.status == "running")
        task.cancel()
        assert (await ended(task)).status == "cancelled"
        assert task.attempt == 1


async def test_a_thread_that_was_asked_to_stop_and_fails_is_not_tried_again() -> None:
    def work() -> None:
        inside = current_task()
        assert inside is not None
        while not inside.cancelled:
            time.sleep(0.001)
        raise Again

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=SOON, detached=True).add_task(work)
        await tasks()
        await until(lambda: task.status == "running")
        task.cancel()
        with anyio.fail_after(PATIENCE):
            outcome = await ended(task)
    assert (outcome.status, outcome.attempts) == ("failed", 1)


# Shutdown.


@PLACE
async def test_a_pause_that_would_outlast_the_grace_period_ends_at_once(
    place: str, lines: Lines
) -> None:
    async with standing() as (bgx, _), anyio.create_task_group() as group:
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, **PLACES[place]).add_task(Fails())
        group.start_soon(tasks)
        await until(retrying(task))
        with anyio.fail_after(PATIENCE):
            report = await bgx.drain(59)
        outcome = await ended(task)
        assert report.cancelled == (task.ref,)
        assert report.duration_s == 0
        assert bgx.stats().waiting == 0
    assert (outcome.status, outcome.attempts) == ("cancelled", 1)
    assert isinstance(outcome.error, Again)
    told = one(lines, "task.cancelled")
    assert (told["reason"], told["error"]) == ("shutdown", "Again")


@PLACE
async def test_a_pause_that_fits_into_the_grace_period_is_waited_for(place: str) -> None:
    async with standing() as (bgx, clock), anyio.create_task_group() as group:
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, **PLACES[place]).add_task(Fails(1))
        group.start_soon(tasks)
        await until(retrying(task))
        group.start_soon(bgx.drain, 61)
        await until(lambda: bgx.runners.current().refusing)
        clock.advance(60)
        assert (await ended(task)).status == "succeeded"
        assert (await bgx.drain()).finished == (task.ref,)


async def test_a_grace_period_that_is_shortened_ends_the_pause() -> None:
    """As the second signal does."""
    async with standing() as (bgx, _), anyio.create_task_group() as group:
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, detached=True).add_task(Fails())
        await tasks()
        await until(retrying(task))
        group.start_soon(bgx.drain, 100)
        await until(lambda: bgx.runners.current().refusing)
        assert task.status == "retrying"
        await bgx.drain(0)
        assert task.status == "cancelled"


async def test_an_attempt_that_fails_while_draining_is_the_last_if_the_pause_is_too_long() -> None:
    release, func = anyio.Event(), Fails()

    async def work() -> None:
        await release.wait()
        await func()

    async with standing() as (bgx, _), anyio.create_task_group() as group:
        tasks = await tasks_of(bgx)
        task = tasks.using(retry=MINUTES, detached=True).add_task(work)
        await tasks()
        await until(lambda: task.status == "running")
        group.start_soon(bgx.drain, 30)
        await until(lambda: bgx.runners.current().refusing)
        release.set()
        assert (await ended(task)).status == "failed"
        assert (await bgx.drain()).finished == (task.ref,)


async def test_a_task_whose_thread_lingers_is_not_tried_again_after_the_drain() -> None:
    started, release = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        release.wait(PATIENCE)

    async with standing() as (bgx, clock), anyio.create_task_group() as group:
        tasks = await tasks_of(bgx)
        policy = MINUTES.model_copy(update={"wait_initial": 0.0})
        task = tasks.using(retry=policy, timeout=5, detached=True).add_task(work)
        await tasks()
        await until(started.is_set)
        clock.advance(5)
        await until(retrying(task))
        group.start_soon(bgx.drain, 10)
        await until(lambda: bgx.runners.current().refusing)
        assert task.status == "retrying"
        clock.advance(12)
        report = await bgx.drain()
        assert report.cancelled == report.in_thread == (task.ref,)
        assert (await ended(task)).attempts == 1
        release.set()
        await until(lambda: not bgx.stats().overrunning)


# Telling.


async def test_the_failure_hooks_are_called_after_the_last_attempt_alone() -> None:
    told: list[Outcome[Any]] = []
    async with serving() as bgx:
        bgx.on_failure(lambda task, outcome: told.append(outcome))
        assert (await run(bgx, Fails(2), retry=SOON)).status == "succeeded"
        assert told == []
        outcome = await run(bgx, Fails(), retry=SOON)
        await until(lambda: told)
        assert told == [outcome]


@PLACE
async def test_the_log_tells_each_attempt_and_one_end(place: str, lines: Lines) -> None:
    async with serving() as bgx:
        outcome = await run(bgx, Fails(), retry=SOON, **PLACES[place])
    events = [line["event"] for line in lines if line["event"].startswith("task.")]
    again = ["task.started", "task.retrying"]
    assert events == ["task.queued", *again, *again, "task.started", "task.failed"]
    assert [line["attempt"] for line in named(lines, "task.started")] == [1, 2, 3]
    first, second = named(lines, "task.retrying")
    assert first == {
        "event": "task.retrying",
        "log_level": "warning",
        "task": "Fails",
        "task_id": first["task_id"],
        "executor": "async",
        "attempt": 1,
        "error": "Again",
        "delay_s": 0.01,
        "holds_request": place != "detached",
        "exc_info": outcome.errors[0],
    }
    assert (second["attempt"], second["delay_s"]) == (2, 0.02)
    failed = one(lines, "task.failed")
    assert (failed["attempt"], failed["exc_info"]) == (3, outcome.error)
    assert failed["duration_s"] >= 0.03


async def test_a_healed_task_is_told_to_have_succeeded_with_no_error(lines: Lines) -> None:
    async with serving() as bgx:
        await run(bgx, Fails(1), retry=SOON)
        totals = bgx.stats().totals
    succeeded = one(lines, "task.succeeded")
    assert succeeded["attempt"] == 2
    assert "error" not in succeeded
    assert (totals[Status.SUCCEEDED], totals[Status.FAILED]) == (1, 0)


async def test_every_task_of_many_has_one_end(lines: Lines) -> None:
    async with serving(max_concurrency=7, limits={"door": 2}) as bgx:
        tasks = await tasks_of(bgx)
        retry = Retry(attempts=4, wait_initial=0.001, wait_jitter=0.005)
        added = []
        for number in range(90):
            options: dict[str, Any] = [*PLACES.values()][number % 3]
            view = tasks.using(retry=retry, limit="door" if number % 5 else None, **options)
            added.append(view.add_task(Fails(number % 6)))
        with anyio.fail_after(LONG):
            await tasks()
            for task in added:
                await ended(task)
        stats = bgx.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert all(limiter.taken == 0 for limiter in stats.limiters.values())
    ends = [line["task_id"] for line in lines if line["event"] in FINAL]
    assert sorted(ends) == sorted(task.id for task in added)
    for number, task in enumerate(added):
        assert task.status == ("succeeded" if number % 6 < 4 else "failed")
        assert task.attempt == min(number % 6 + 1, 4)


# Context.


color: ContextVar[str] = ContextVar("color", default="white")


@pytest.mark.parametrize("executor", ["async", "thread"])
async def test_an_attempt_does_not_see_what_an_earlier_one_has_set(executor: Any) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def look() -> None:
        seen.append((color.get(), structlog.contextvars.get_contextvars()))
        color.set("changed")
        structlog.contextvars.bind_contextvars(attempt=len(seen))
        raise Again

    async def look_async() -> None:
        look()

    color.set("red")
    with structlog.contextvars.bound_contextvars(request="17"):
        async with serving() as bgx:
            await run(bgx, look_async if executor == "async" else look, retry=SOON)
    assert seen == [("red", {"request": "17"})] * 3


async def test_the_lines_of_every_attempt_have_the_context_of_the_request(lines: Lines) -> None:
    async with serving() as bgx:
        with structlog.contextvars.bound_contextvars(request="17"):
            tasks = await tasks_of(bgx)
            task = tasks.using(retry=SOON, detached=True).add_task(Fails(2))
        await tasks()
        await ended(task)
    of_task = [line for line in lines if line["event"].startswith("task.")]
    assert [line.get("request") for line in of_task] == ["17"] * len(of_task)


# Settings.


async def plain() -> None: ...


@task_options(retry=Retry(attempts=2, on=KeyError, wait_max=7))
async def decorated() -> None: ...


def policy_of(func: Any, using: TaskOptions | None = None, **settings: Any) -> Retry | None:
    return Planner(Settings(**settings), eager=True).plan(func, using).retry


def test_nothing_is_tried_again_unless_asked() -> None:
    plan = Planner(Settings(), eager=True).plan(plain, None)
    assert plan.retry is None
    assert not plan.special
    assert not plan.marks_start


def test_the_settings_try_every_task_again() -> None:
    assert policy_of(plain, retry=Retry(attempts=5)) == Retry(attempts=5)
    assert policy_of(decorated, retry=Retry(attempts=5)) == Retry(
        attempts=2, on=KeyError, wait_max=7
    )


def test_none_switches_it_off() -> None:
    off = TaskOptions(retry=None)
    assert policy_of(decorated, off) is None
    assert policy_of(plain, off, retry=Retry()) is None
    assert policy_of(decorated, tasks={"decorated": {"retry": None}}) is None


def test_variables_set_the_policy_of_all_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_RETRY__ATTEMPTS", "7")
    monkeypatch.setenv("BGX_RETRY__WAIT_MAX", "9.5")
    monkeypatch.setenv("BGX_RETRY__ON_TIMEOUT", "false")
    assert policy_of(plain) == Retry(attempts=7, wait_max=9.5, on_timeout=False)


def test_a_variable_for_a_task_changes_that_field_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No variable can say which errors are tried again: the code does."""
    monkeypatch.setenv("BGX_TASKS__DECORATED__RETRY__ATTEMPTS", "9")
    assert policy_of(decorated) == Retry(attempts=9, on=KeyError, wait_max=7)
    monkeypatch.setenv("BGX_TASKS__PLAIN__RETRY__ATTEMPTS", "9")
    assert policy_of(plain) == Retry(attempts=9)
    assert policy_of(plain, retry=Retry(on=OSError)) == Retry(attempts=9, on=OSError)


def test_a_variable_switches_it_off_for_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_TASKS__DECORATED__RETRY", "none")
    assert policy_of(decorated) is None


def test_the_policy_of_a_call_replaces_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_TASKS__DECORATED__RETRY__ATTEMPTS", "9")
    using = TaskOptions(retry=Retry(wait_max=3))
    assert policy_of(decorated, using) == Retry(wait_max=3)


@pytest.mark.parametrize(
    ("variable", "value", "field"),
    [
        ("BGX_RETRY__ATTEMPTS", "0", "retry.attempts"),
        ("BGX_RETRY__WAIT_MAX", "long", "retry.wait_max"),
        ("BGX_RETRY__ON", "ValueError", "retry.on"),
        ("BGX_TASKS__SEND__RETRY__ATTEMPTS", "many", "tasks.send.retry.attempts"),
        ("BGX_TASKS__SEND__RETRY__ATTEMTPS", "3", "tasks.send.retry.attemtps"),
    ],
)
def test_a_wrong_value_in_the_environment_is_named(
    variable: str, value: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=field) as refused:
        Settings()
    assert variable in str(refused.value)


# Memory.


class Big:
    """Something that can be seen to be freed."""


async def holds(big: Big, func: Fails) -> None:
    await func()


async def freed(reference: weakref.ref[Big]) -> None:
    if sys.version_info >= (
        3,
        12,
    ):  # a failed coroutine leads to its callers there: see test_running
        await until(lambda: gc.collect() >= 0 and reference() is None)
    await until(lambda: reference() is None)


# What is collected may be of another test: pipes of worker processes, for example.
FREES = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@FREES
@pytest.mark.parametrize("detached", [False, True])
async def test_a_healed_task_is_freed_at_once(detached: bool) -> None:
    """With all that hangs from the tracebacks of its errors."""
    async with serving() as bgx:

        async def request() -> weakref.ref[Big]:
            big, tasks = Big(), await tasks_of(bgx)
            task = tasks.using(retry=SOON, detached=detached).add_task(holds, big, Fails(2))
            await tasks()
            await ended(task)
            return weakref.ref(big)

        gc.disable()
        try:
            await freed(await request())
        finally:
            gc.enable()


@FREES
async def test_a_cancelled_pause_frees_its_task_at_once() -> None:
    async with standing(history=0) as (bgx, _):

        async def request() -> weakref.ref[Big]:
            big, tasks = Big(), await tasks_of(bgx)
            task = tasks.using(retry=MINUTES, detached=True).add_task(holds, big, Fails())
            await tasks()
            await until(retrying(task))
            task.cancel()
            return weakref.ref(big)

        gc.disable()
        try:
            await freed(await request())
        finally:
            gc.enable()
