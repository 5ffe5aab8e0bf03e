"""Tasks that start later (`delay`, `run_at`), or not at all when it is too late (`expires`)."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI

from fastapi_bgx import BacklogFull, Bgx, Outcome, Settings, Task, Tasks, task_options
from tests.asgi import client_of
from tests.clocks import StandingClock, standing
from tests.flaky import flaky, flaky_async
from tests.logs import Lines, logged, named, one
from tests.supervision import PATIENCE, serving, tasks_of, until

pytestmark = pytest.mark.anyio

PLACES: dict[str, Any] = {"inline": {}, "concurrent": {"concurrent": True}}
PLACES["detached"] = {"detached": True}
PLACE = pytest.mark.parametrize("place", PLACES)


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as captured:
        yield captured


async def nothing() -> None:
    """A task that ends at once."""


async def ended(task: Task[Any]) -> Outcome[Any]:
    """The outcome of a task that should end by itself now."""
    return await task.wait(PATIENCE)


# Later.


@PLACE
async def test_a_delayed_task_starts_when_its_delay_is_over(place: str, lines: Lines) -> None:
    async with standing() as (bgx, clock), anyio.create_task_group() as group:
        tasks = await tasks_of(bgx)
        task = tasks.using(delay=60, **PLACES[place]).add_task(nothing)
        group.start_soon(tasks)
        await until(lambda: clock.waits)
        clock.advance(59.9)
        await anyio.sleep(0.001)
        assert task.status == "queued"
        clock.advance(0.1)
        outcome = await ended(task)
    assert (outcome.status, outcome.queued_s) == ("succeeded", 60)
    delayed = one(lines, "task.delayed")
    assert (delayed["delay_s"], delayed["holds_request"]) == (60, place != "detached")


@pytest.mark.parametrize("kind", ["async", "thread", "process"])
async def test_every_kind_of_task_can_be_delayed(kind: Any, tmp_path: Path) -> None:
    func = flaky_async if kind == "async" else flaky
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(delay=0.05, executor=kind)
        task = view.add_task(func, str(tmp_path / "notes"), 0)
        await tasks()
        assert task.outcome is not None
        assert task.outcome.value == 1
        assert task.queued_s >= 0.05


async def test_the_delay_counts_from_add_task() -> None:
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True)
        task = view.using(delay=60).add_task(nothing)
        at_once = view.using(delay=10).add_task(nothing)
        clock.advance(20)
        await tasks()
        assert (await ended(at_once)).queued_s == 20
        assert clock.waits == [40]
        clock.advance(40)
        assert (await ended(task)).queued_s == 60


async def test_no_delay_is_no_event(lines: Lines) -> None:
    async with standing() as (bgx, _):
        tasks = await tasks_of(bgx)
        tasks.using(delay=0).add_task(nothing)
        await tasks()
    assert not named(lines, "task.delayed")


async def test_siblings_do_not_wait_for_a_delayed_task() -> None:
    async with standing() as (bgx, clock), anyio.create_task_group() as group:
        tasks = await tasks_of(bgx)
        late = [tasks.using(delay=60, **options).add_task(nothing) for options in PLACES.values()]
        soon = [tasks.using(**options).add_task(nothing) for options in PLACES.values()]
        group.start_soon(tasks)
        for task in soon:
            await ended(task)
        assert {task.status for task in late} == {"queued"}
        clock.advance(60)
        for task in late:
            await ended(task)


async def test_a_delayed_task_holds_no_slot_and_counts_for_the_backlog() -> None:
    async with standing(max_concurrency=1, max_backlog=2) as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(delay=60, detached=True).add_task(nothing)
        await tasks()
        await until(lambda: clock.waits)
        assert (bgx.stats().running, bgx.stats().waiting) == (0, 1)
        other = await tasks_of(bgx)
        assert (added := other.add_task(nothing)).status == "queued"
        with pytest.raises(BacklogFull):
            other.add_task(nothing)
        await other()
        assert added.status == "succeeded"
        clock.advance(60)
        await ended(task)
        assert bgx.stats().waiting == 0


@pytest.mark.parametrize("lifespan", [False, True])
async def test_a_request_ends_after_its_delayed_inline_tasks(
    lifespan: bool, anyio_backend: str
) -> None:
    app, ran, bgx = FastAPI(), list[int](), Bgx(Settings())
    bgx.install(app)

    @app.post("/")
    async def route(tasks: Tasks) -> None:
        tasks.using(delay=0.02).add_task(ran.append, 1)

    def post() -> None:
        client = client_of(app, anyio_backend)
        if lifespan:
            with client:
                client.post("/")
                assert ran == [1]
        else:
            client.post("/")

    await anyio.to_thread.run_sync(post)
    assert ran == [1]


async def test_a_cancelled_request_cancels_its_delayed_task() -> None:
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(delay=60).add_task(nothing)
        async with anyio.create_task_group() as request:
            request.start_soon(tasks)
            await until(lambda: clock.waits)
            request.cancel_scope.cancel()
        assert (await ended(task)).status == "cancelled"
        assert (task.attempt, clock.waits) == (0, [])


async def test_a_delayed_task_can_be_cancelled() -> None:
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(delay=60, detached=True).add_task(nothing)
        await tasks()
        await until(lambda: clock.waits)
        assert task.cancel()
        outcome = await ended(task)
        assert clock.waits == []
    assert (outcome.status, outcome.attempts, outcome.error) == ("cancelled", 0, None)


async def test_a_delay_can_be_an_option_of_the_function_or_of_the_settings() -> None:
    @task_options(delay=60)
    async def decorated() -> None: ...

    async with standing(tasks={"nothing": {"delay": 30}}) as (bgx, clock):
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True)
        added = [view.add_task(each) for each in (decorated, nothing)]
        await tasks()
        await until(lambda: len(clock.waits) == 2)
        assert clock.waits == [30, 60]
        clock.advance(60)
        for task in added:
            await ended(task)


# At a moment.


ZONES = [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))]


@pytest.mark.parametrize("zone", ZONES, ids=str)
async def test_a_task_starts_at_its_moment_in_whatever_time_zone(zone: timezone) -> None:
    async with standing() as (bgx, clock):
        moment = (clock.wall() + timedelta(hours=2)).astimezone(zone)
        tasks = await tasks_of(bgx)
        task = tasks.using(run_at=moment, detached=True).add_task(nothing)
        await tasks()
        await until(lambda: clock.waits)
        assert clock.waits == [7200]
        clock.advance(7200)
        assert (await ended(task)).queued_s == 7200


async def test_a_moment_in_the_past_is_now(lines: Lines) -> None:
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(run_at=clock.wall() - timedelta(days=1)).add_task(nothing)
        await tasks()
        assert task.status == "succeeded"
    assert not named(lines, "task.delayed")


async def test_each_call_has_its_own_moment() -> None:
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        for hours in 1, 2, 3:
            moment = clock.wall() + timedelta(hours=hours)
            tasks.using(run_at=moment, detached=True).add_task(nothing)
        await tasks()
        await until(lambda: len(clock.waits) == 3)
        assert clock.waits == [3600, 7200, 10800]


async def test_a_moment_wins_over_a_delay_of_the_function() -> None:
    @task_options(delay=60)
    async def decorated() -> None: ...

    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        moment = clock.wall() + timedelta(seconds=5)
        tasks.using(run_at=moment, detached=True).add_task(decorated)
        await tasks()
        await until(lambda: clock.waits)
        assert clock.waits == [5]


async def test_a_moment_is_for_one_call() -> None:
    with pytest.raises(TypeError, match=r"run_at, which is for a single call: using\(run_at=\)"):
        task_options(run_at=datetime.now(UTC))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"run_at": datetime(2030, 1, 1)}, "with a time zone"),
        ({"run_at": "2030-01-01T00:00:00Z"}, "with a time zone"),
        ({"run_at": datetime.now(UTC), "delay": 5}, "run_at and delay"),
        ({"delay": -1}, "delay"),
        ({"delay": True}, "delay"),
        ({"delay": float("inf")}, "delay"),
        ({"expires": 0}, "expires"),
        ({"delay": 60, "expires": 60}, "could never start"),
    ],
)
async def test_a_wrong_value_is_refused_in_the_route(wrong: Any, message: str) -> None:
    tasks = await tasks_of(Bgx(Settings()))
    with pytest.raises(ValueError, match=message):
        tasks.using(**wrong)


# Too late.


async def test_a_task_that_waited_too_long_in_its_list_is_not_started(lines: Lines) -> None:
    release, calls = anyio.Event(), list[int]()
    async with standing() as (bgx, clock), anyio.create_task_group() as group:
        tasks = await tasks_of(bgx)
        first = tasks.add_task(release.wait)
        task = tasks.using(expires=60).add_task(calls.append, 1)
        after = tasks.add_task(nothing)
        group.start_soon(tasks)
        await until(lambda: first.status == "running")
        clock.advance(60)
        release.set()
        outcome = await ended(task)
        assert (await ended(after)).status == "succeeded"
        assert bgx.stats().waiting == bgx.stats().running == 0
    assert (outcome.status, outcome.attempts, calls) == ("expired", 0, [])
    assert one(lines, "task.expired")["reason"] == "expires"


async def test_a_task_that_starts_in_time_may_run_for_longer() -> None:
    release = anyio.Event()
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(expires=60, detached=True).add_task(release.wait)
        clock.advance(59)
        await tasks()
        await until(lambda: task.status == "running")
        clock.advance(100)
        release.set()
        assert (await ended(task)).status == "succeeded"


@pytest.mark.parametrize(
    ("options", "reason", "seconds"),
    [
        ({"expires": 60}, "expires", 60),
        ({"expires": 60, "queue_timeout": 10}, "queue_timeout", 10),
        ({"expires": 60, "queue_timeout": 100}, "expires", 60),
        ({"expires": 60, "queue_timeout": 40, "delay": 30}, "expires", 60),
        ({"expires": 90, "queue_timeout": 40, "delay": 30}, "queue_timeout", 70),
    ],
)
@PLACE
async def test_a_task_that_waits_for_a_slot_expires_at_the_first_of_its_bounds(
    options: Any, reason: str, seconds: float, place: str, lines: Lines
) -> None:
    release = anyio.Event()
    async with standing(limits={"door": 1}) as (bgx, clock), anyio.create_task_group() as group:
        holding = await tasks_of(bgx)
        holds = holding.using(detached=True, limit="door").add_task(release.wait)
        await holding()
        await until(lambda: holds.status == "running")
        tasks = await tasks_of(bgx)
        task = tasks.using(limit="door", **PLACES[place], **options).add_task(nothing)
        group.start_soon(tasks)
        await until(lambda: clock.waits)
        clock.advance(seconds - 0.1)
        await anyio.sleep(0.001)
        assert task.status == "queued"
        clock.advance(0.2)
        outcome = await ended(task)
        assert outcome.queued_s == pytest.approx(seconds)
        release.set()
    assert (outcome.status, outcome.attempts) == ("expired", 0)
    assert one(lines, "task.expired")["reason"] == reason


async def test_a_timer_of_an_admitted_task_is_not_kept() -> None:
    """A thousand tasks a second that may wait an hour must not leave their timers behind."""
    release = anyio.Event()
    async with standing(limits={"door": 1}) as (bgx, clock):
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, concurrent=True, limit="door", expires=3600)
        view.add_task(release.wait)
        waiting = []
        for _ in range(10):
            waiting.append(view.add_task(nothing))
            clock.advance(0.1)
        await tasks()
        await until(lambda: bgx.stats().limiters["door"].waiting == 10)
        release.set()
        for task in waiting:
            assert (await ended(task)).status == "succeeded"
        assert clock.waits == []


async def test_a_task_that_is_not_due_before_it_expires_is_not_kept_for_longer() -> None:
    """As one call has it, or when the options come from different places."""

    @task_options(expires=60)
    async def decorated() -> None: ...

    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True)
        moment = clock.wall() + timedelta(hours=1)
        added = [
            view.using(delay=100).add_task(decorated),
            view.using(run_at=moment, expires=60).add_task(nothing),
        ]
        await tasks()
        await until(lambda: len(clock.waits) == 2)
        clock.advance(60)
        for task in added:
            outcome = await ended(task)
            assert (outcome.status, outcome.queued_s) == ("expired", 60)


async def test_a_task_that_is_tried_again_does_not_expire() -> None:
    calls: list[int] = []

    async def work() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError

    settings = {"retry": {"wait_initial": 50, "wait_jitter": 0}}
    async with standing(**settings) as (bgx, clock):
        tasks = await tasks_of(bgx)
        task = tasks.using(expires=20, detached=True).add_task(work)
        await tasks()
        await until(lambda: task.status == "retrying")
        clock.advance(50)
        assert (await ended(task)).status == "succeeded"


# Shutdown.


@PLACE
async def test_a_delay_that_outlasts_the_grace_period_ends_at_once(
    place: str, lines: Lines
) -> None:
    async with standing() as (bgx, clock), anyio.create_task_group() as group:
        tasks = await tasks_of(bgx)
        task = tasks.using(delay=60, **PLACES[place]).add_task(nothing)
        group.start_soon(tasks)
        await until(lambda: clock.waits)
        report = await bgx.drain(59)
        assert (report.cancelled, report.duration_s) == ((task.ref,), 0)
    assert one(lines, "task.cancelled")["reason"] == "shutdown"


async def test_a_delay_that_fits_into_the_grace_period_is_waited_for() -> None:
    async with standing() as (bgx, clock), anyio.create_task_group() as group:
        tasks = await tasks_of(bgx)
        task = tasks.using(delay=60, detached=True).add_task(nothing)
        await tasks()
        await until(lambda: clock.waits)
        group.start_soon(bgx.drain, 61)
        await until(lambda: bgx.runners.current().refusing)
        clock.advance(60)
        assert (await bgx.drain()).finished == (task.ref,)


@PLACE
async def test_a_request_under_way_adds_no_delay_to_the_shutdown(place: str, lines: Lines) -> None:
    """It may still add tasks after the signal; one that is due too late ends where it begins."""
    async with standing() as (bgx, clock):
        tasks = await tasks_of(bgx)
        bgx.runners.drain().announce(30)
        task = tasks.using(delay=60, **PLACES[place]).add_task(nothing)
        with anyio.fail_after(PATIENCE):
            await tasks()
        assert (await ended(task)).status == "cancelled"
        assert clock.waits == [30]
    assert one(lines, "task.cancelled")["reason"] == "shutdown"


def test_a_task_that_was_added_outside_of_every_loop_is_delayed() -> None:
    """From then on: its list was made by hand, by a script for example."""
    from fastapi_bgx import BackgroundTasks

    tasks = BackgroundTasks()
    task = tasks.using(delay=0.05).add_task(nothing)
    asyncio.run(tasks())
    assert task.status == "succeeded"
    assert task.queued_s >= 0.05


def test_the_clock_of_these_tests_is_in_step_with_its_date() -> None:
    clock = StandingClock()
    before = clock.wall()
    clock.advance(90)
    assert clock.wall() - before == timedelta(seconds=90)
