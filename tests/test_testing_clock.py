"""The clock that tests own: what it rings and when, and when it goes on by itself."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import anyio
import pytest
from fastapi import FastAPI

from fastapi_bgx import Bgx, DrainReport, Settings, Task, Tasks
from fastapi_bgx.testing import Clock, owning_clock
from fastapi_bgx.timers import SystemClock
from tests.asgi import client_of, running
from tests.supervision import PATIENCE, serving, tasks_of, until

both_loops = pytest.mark.anyio
LONG = 3600.0
every_loop = pytest.mark.parametrize(
    "anyio_backend",
    ["asyncio", "trio", pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")],
)


@pytest.fixture
def clock() -> Iterator[Clock]:
    with owning_clock() as owned:
        yield owned


async def stuck() -> None:
    await anyio.sleep_forever()


async def quick() -> None:
    """A task that ends at its first step."""


def occupy(bgx: Bgx, limit: str) -> None:
    """Take the slot of a limit: what wants it waits, and nothing but time ends that."""
    limiter: Any = bgx.runners.current()._planner.limits.named(limit)
    limiter.limiters[0].taken += 1


async def detach(bgx: Bgx, func: Any, **options: Any) -> Task[Any]:
    """A detached task of a request that has ended."""
    tasks = await tasks_of(bgx)
    task: Task[Any] = tasks.using(detached=True, **options).add_task(func)
    await tasks()
    return task


# Advancing, in an async test.


@both_loops
@every_loop
async def test_a_timeout_strikes_when_its_time_has_come_and_not_before(clock: Clock) -> None:
    started = time.monotonic()
    async with serving() as bgx:
        task = await detach(bgx, stuck, timeout=LONG)
        await clock.advance_async(LONG - 1)
        assert task.status == "running"
        assert task.remaining() == pytest.approx(1)
        await clock.advance_async(1)
        assert task.status == "timed_out"
        assert task.outcome is not None
        assert task.outcome.duration_s == pytest.approx(LONG)
    assert time.monotonic() - started < PATIENCE


@both_loops
async def test_what_happens_on_the_way_happens_at_its_own_time(clock: Clock) -> None:
    rang: list[tuple[str, float]] = []
    async with serving() as bgx:
        timers, began = bgx.runners.current().timers, clock.now()

        def ring(name: str) -> None:
            rang.append((name, round(clock.now() - began, 6)))

        def first() -> None:
            ring("first")
            timers.start(20.0, lambda: ring("set by the first"))

        timers.start(40.0, lambda: ring("last"))
        timers.start(10.0, first)
        timers.start(41.0, lambda: ring("never"))
        await clock.advance_async(40)
        assert rang == [("first", 10.0), ("set by the first", 30.0), ("last", 40.0)]
        assert clock.now() == pytest.approx(began + 40)


@both_loops
@every_loop
async def test_time_does_not_pass_while_there_is_something_to_do(clock: Clock) -> None:
    rang: list[float] = []
    async with serving() as bgx, anyio.create_task_group() as group:
        timers, began, woken = bgx.runners.current().timers, clock.now(), anyio.Event()

        async def go_on() -> None:
            await woken.wait()
            until = time.monotonic() + 0.05
            while time.monotonic() < until:
                await anyio.sleep(0)
            timers.start(20.0, lambda: rang.append(clock.now() - began))

        group.start_soon(go_on)
        timers.start(10.0, woken.set)
        await clock.advance_async(40)
    assert rang == [pytest.approx(30)]


@both_loops
async def test_a_cancelled_timer_does_not_ring(clock: Clock) -> None:
    rang: list[str] = []
    async with serving() as bgx:
        backend = bgx.runners.current().backend
        clock.call_later(backend, 1.0, lambda: rang.append("cancelled")).cancel()
        clock.call_later(backend, 1.0, lambda: rang.append("kept"))
        await clock.advance_async(1)
    assert rang == ["kept"]


@both_loops
async def test_a_thread_that_runs_too_long_is_left(clock: Clock) -> None:
    release = threading.Event()
    async with serving() as bgx:
        task = await detach(bgx, release.wait, timeout=LONG)
        await clock.advance_async(LONG)
        assert task.status == "timed_out"
        assert bgx.stats().overrunning == 1
        release.set()
        await until(lambda: bgx.stats().overrunning == 0)


@both_loops
async def test_what_runs_has_a_moment_to_end_before_time_goes_on(clock: Clock) -> None:
    async def brief() -> None:
        await anyio.sleep(0.02)

    async with serving() as bgx:
        task = await detach(bgx, brief, timeout=LONG)
        await clock.advance_async(2 * LONG)
        assert task.status == "succeeded"


@both_loops
async def test_only_one_may_advance_it_and_only_forwards(clock: Clock) -> None:
    with pytest.raises(ValueError, match="does not go back, got -1"):
        await clock.advance_async(-1)
    refused: list[str] = []

    async def advance() -> None:
        try:
            await clock.advance_async(5)
        except RuntimeError as error:
            refused.append(str(error))

    async with serving(), anyio.create_task_group() as group:
        group.start_soon(advance)
        group.start_soon(advance)
    assert refused == ["the clock is being advanced already"]


@both_loops
async def test_who_advances_may_be_cancelled(clock: Clock) -> None:
    async with serving():
        with anyio.move_on_after(0):
            await clock.advance_async(5)
        before = clock.now()
        await clock.advance_async(5)
        assert clock.now() == pytest.approx(before + 5)


@both_loops
async def test_an_async_test_has_a_method_of_its_own(clock: Clock) -> None:
    with pytest.raises(RuntimeError, match=r"await clock\.advance_async"):
        clock.advance(1)


@both_loops
async def test_without_a_runner_time_just_passes(clock: Clock) -> None:
    before, wall = clock.now(), clock.wall()
    await clock.advance_async(60)
    assert clock.now() == before + 60
    assert clock.wall() == wall + timedelta(seconds=60)
    assert wall.tzinfo is not None


# Advancing, in a sync test.


def test_a_sync_test_advances_the_loop_of_its_client(clock: Clock, anyio_backend: str) -> None:
    app, bgx, added = FastAPI(), Bgx(Settings(timeout=LONG)), list[Task[Any]]()
    bgx.install(app)

    @app.post("/")
    async def add(tasks: Tasks) -> None:
        added.append(tasks.using(detached=True).add_task(stuck))

    with client_of(app, anyio_backend) as client:
        client.post("/")
        clock.advance(LONG - 1)
        assert added[0].status == "running"
        clock.advance(1)
        assert added[0].status == "timed_out"


def test_a_loop_that_has_ended_has_no_part_in_it(clock: Clock, anyio_backend: str) -> None:
    app, bgx = FastAPI(), Bgx(Settings(timeout=LONG))
    bgx.install(app)

    @app.post("/")
    async def add(tasks: Tasks) -> None:
        bgx.runners.current().timers.start(LONG, pytest.fail)

    client_of(app, anyio_backend).post("/")
    before = clock.now()
    clock.advance(2 * LONG)
    assert clock.now() == before + 2 * LONG


@contextmanager
def blocked_loop(backend: str) -> Iterator[threading.Event]:
    """A loop in another thread that goes on, and ends, once the event is set."""
    blocked, leave = threading.Event(), threading.Event()

    async def serve() -> None:
        async with serving():
            blocked.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=anyio.run, args=(serve,), kwargs={"backend": backend})
    thread.start()
    try:
        assert blocked.wait(PATIENCE)
        yield leave
    finally:
        leave.set()
        thread.join(PATIENCE)


def test_a_loop_that_is_blocked_is_told_of(clock: Clock, anyio_backend: str) -> None:
    clock.hang_after = 0.1
    with (
        blocked_loop(anyio_backend),
        pytest.raises(RuntimeError, match=r"did not go on for 0\.1 s: something blocks it"),
    ):
        clock.advance(1)


def test_a_loop_may_end_while_time_passes(clock: Clock, anyio_backend: str) -> None:
    before = clock.now()
    with blocked_loop(anyio_backend) as leave:
        threading.Timer(0.1, leave.set).start()
        clock.advance(LONG)
    assert clock.now() == pytest.approx(before + LONG)


# Going on by itself.


def test_an_inline_task_that_waits_holds_up_nobody(clock: Clock, anyio_backend: str) -> None:
    app, bgx, added = FastAPI(), Bgx(Settings(limits={"smtp": 1})), list[Task[Any]]()
    bgx.install(app)

    @app.post("/")
    async def add(tasks: Tasks) -> None:
        occupy(bgx, "smtp")
        added.append(tasks.using(limit="smtp", queue_timeout=LONG).add_task(quick))
        added.append(tasks.add_task(quick))

    started = time.monotonic()
    client_of(app, anyio_backend).post("/")
    assert [task.status for task in added] == ["expired", "succeeded"]
    assert added[0].queued_s == pytest.approx(LONG)
    assert time.monotonic() - started < PATIENCE


@both_loops
@every_loop
async def test_a_detached_task_that_waits_is_the_tests_to_advance(clock: Clock) -> None:
    async with serving(limits={"smtp": 1}) as bgx:
        occupy(bgx, "smtp")
        task = await detach(bgx, quick, limit="smtp", queue_timeout=LONG)
        await anyio.sleep(0.02)
        assert task.status == "queued"
        await clock.advance_async(LONG)
        assert task.status == "expired"


@both_loops
async def test_time_stands_still_while_a_function_runs(clock: Clock) -> None:
    async with serving(limits={"smtp": 1}) as bgx, anyio.create_task_group() as group:
        occupy(bgx, "smtp")
        running_task = await detach(bgx, stuck)
        tasks = await tasks_of(bgx)
        task = tasks.using(limit="smtp", queue_timeout=LONG).add_task(quick)
        group.start_soon(tasks)
        await anyio.sleep(0.02)
        assert task.status == "queued"
        running_task.runner.cancel(running_task, "over")
        await task.wait()
        assert task.status == "expired"


@both_loops
async def test_with_patience_it_goes_on_to_what_stops_a_function(clock: Clock) -> None:
    clock.patience = 0.01
    tasks = await tasks_of(Bgx())
    task = tasks.using(timeout=LONG).add_task(stuck)
    with anyio.fail_after(PATIENCE):
        await tasks()
    assert task.status == "timed_out"


@both_loops
async def test_time_flows_while_the_test_lets_it(clock: Clock) -> None:
    async with serving(limits={"smtp": 1}) as bgx:
        occupy(bgx, "smtp")
        task = await detach(bgx, quick, limit="smtp", queue_timeout=LONG)
        with clock.flowing(), anyio.fail_after(PATIENCE):
            await task.wait()
    assert task.status == "expired"


# A test never hangs in silence.


async def hang() -> None:
    """A test that waits for timeouts which only an advance would bring."""
    with owning_clock() as clock:
        clock.hang_after = 0.02
        tasks = await tasks_of(Bgx())
        timed = tasks.using(timeout=LONG).add_task(stuck)  # slow after 30 s: no reason to go on
        again = tasks.using(timeout=2 * LONG).add_task(stuck)
        with anyio.fail_after(PATIENCE):
            await tasks()
        assert (timed.status, again.status) == ("timed_out", "timed_out")


@both_loops
async def test_a_test_that_hangs_goes_on_and_fails() -> None:
    message = (
        r"nothing happened for 0\.02 s, while a timer was due in 3600 s by the clock of the test: "
        r"call clock\.advance"
    )
    with pytest.raises(AssertionError, match=message):
        await hang()


def test_a_hang_is_told_once(clock: Clock) -> None:
    clock.hung = "it hung"
    with pytest.raises(AssertionError, match="it hung"):
        clock.check()
    clock.check()


@both_loops
async def test_a_timer_that_nobody_needs_any_more_is_no_hang(clock: Clock) -> None:
    clock.hang_after = 0.02
    async with serving() as bgx:
        bgx.runners.current().timers.start(LONG, pytest.fail).cancel()
        await anyio.sleep(0.05)
    assert not clock.hung


# Drains.


@both_loops
@every_loop
async def test_a_drain_gives_up_in_no_time(clock: Clock) -> None:
    app, bgx = FastAPI(), Bgx(Settings(drain_timeout=LONG))
    bgx.install(app)
    reports: list[DrainReport] = []
    async with running(app), anyio.create_task_group() as group:
        task = await detach(bgx, stuck)

        async def drain() -> None:
            reports.append(await bgx.drain())

        group.start_soon(drain)
        await clock.advance_async(LONG)
        await until(lambda: reports)
    assert reports[0].cancelled == (task.ref,)
    assert reports[0].duration_s == pytest.approx(LONG)


def test_a_drain_need_not_be_advanced_where_nothing_runs(clock: Clock, anyio_backend: str) -> None:
    app, bgx = FastAPI(), Bgx(Settings(drain_timeout=LONG, limits={"smtp": 1}))
    bgx.install(app)
    added: list[Task[Any]] = []

    @app.post("/")
    async def add(tasks: Tasks) -> None:
        occupy(bgx, "smtp")
        added.append(tasks.using(detached=True, limit="smtp").add_task(quick))

    with client_of(app, anyio_backend) as client:
        client.post("/")
    assert added[0].status == "cancelled"


# Whose clock it is, and for how long.


@both_loops
async def test_every_bgx_lives_by_it_and_only_inside_of_the_block() -> None:
    before = Bgx()
    runner = before.runners.current()
    with owning_clock() as clock:
        inside = Bgx()
        assert before.runners.clock is inside.runners.clock is clock
        assert runner.clock is clock.now
        assert inside.runners.current().clock is clock.now
    assert isinstance(before.runners.clock, SystemClock)
    assert isinstance(inside.runners.clock, SystemClock)
    assert runner.clock is time.monotonic
    assert isinstance(Bgx().runners.clock, SystemClock)


@both_loops
async def test_what_still_waits_at_the_end_goes_on_by_the_real_clock() -> None:
    async with serving() as bgx:
        rang = anyio.Event()
        with owning_clock() as clock:
            lane = bgx.runners.current().timers
            lane.start(0.02, rang.set)
            later = clock.call_later(bgx.runners.current().backend, LONG, pytest.fail)
            later.cancel()
        told = clock.now()
        with anyio.fail_after(PATIENCE):
            await rang.wait()
        assert clock.now() > told
        again = anyio.Event()
        lane.start(0.001, again.set)
        with anyio.fail_after(PATIENCE):
            await again.wait()
