"""Timeouts are honest: what is stopped, what goes on, and what is said about it (promise 3)."""

import asyncio
import inspect
import threading
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import anyio
import anyio.to_thread
import pytest

from fastapi_bgx import Bgx, Settings, Status, Task, current_task
from fastapi_bgx import attempt as attempt_module
from tests.logs import logged, named
from tests.supervision import PATIENCE, Gauge, serving, tasks_of, until

pytestmark = pytest.mark.anyio

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


async def good() -> str:
    await anyio.sleep(0)
    return "ran"


async def timed(function: Callable[[], Any], timeout: float = 0.02) -> Task[Any]:
    """A task that had this timeout, after its request; a sibling ran unhurt."""
    tasks = await tasks_of(Bgx(Settings()))
    task = tasks.using(timeout=timeout).add_task(function)
    siblings = [tasks.add_task(good), tasks.add_task(lambda: "ran")]
    with anyio.fail_after(PATIENCE):
        await tasks()
    assert [sibling.status for sibling in siblings] == ["succeeded"] * 2
    return task


# An async function is cancelled.


@pytest.mark.parametrize("detached", [False, True])
async def test_an_async_task_is_cancelled_and_tells_where_it_was(detached: bool) -> None:
    cleaned: list[str] = []

    async def outer() -> None:
        await inner()

    async def inner() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append("yes")

    with logged() as lines:
        async with serving() as bgx:
            tasks = await tasks_of(bgx)
            task = tasks.using(timeout=0.02, detached=detached).add_task(outer)
            after = tasks.using(detached=detached).add_task(good)
            await tasks()
            assert (await after.wait()).status == "succeeded"
    assert cleaned == ["yes"]
    outcome = task.outcome
    assert outcome is not None
    assert (outcome.status, outcome.returned) == ("timed_out", None)
    assert isinstance(outcome.error, TimeoutError)
    assert str(outcome.error) == "outer ran longer than its timeout of 0.02 s"
    assert outcome.duration_s >= 0.02
    assert outcome.error.__cause__ is not None
    frames = traceback.extract_tb(outcome.error.__cause__.__traceback__)
    assert [frame.name for frame in frames][:3] == ["outer", "inner", "sleep_forever"]
    [line] = named(lines, "task.timed_out")
    assert (line["exc_info"], line["error"]) == (outcome.error, "TimeoutError")
    assert (line["task_id"], line["log_level"]) == (task.id, "error")
    assert not named(lines, "task.overran")


async def test_a_task_that_ends_in_time_leaves_no_timer_behind() -> None:
    """Its sibling runs in the same coroutine, far beyond the timeout of the first."""
    bgx = Bgx(Settings())
    tasks = await tasks_of(bgx)
    first = tasks.using(timeout=0.1).add_task(good)
    second = tasks.add_task(anyio.sleep, 0.15)
    await tasks()
    assert (first.status, second.status) == ("succeeded", "succeeded")
    lanes = bgx.runners.current().timers._lanes.values()
    assert not any(lane.waiting for lane in lanes)


async def test_a_timeout_counts_from_the_start_not_from_add_task() -> None:
    tasks = await tasks_of(Bgx(Settings(timeout=0.12)))
    added = [tasks.add_task(anyio.sleep, 0.04) for _ in range(4)]
    await tasks()
    assert [task.status for task in added] == ["succeeded"] * 4


async def test_a_timeout_counts_from_the_start_not_from_the_end_of_a_slow_first_step() -> None:
    async def blocks_and_waits() -> float | None:
        inside = current_task()
        assert inside is not None
        before = inside.remaining()
        time.sleep(0.15)  # a mistake that people make
        left = inside.remaining()
        assert before is not None
        assert left is not None
        assert 0.15 < before <= 0.2
        assert left < 0.06
        await anyio.sleep_forever()
        return None

    task = await timed(blocks_and_waits, timeout=0.2)
    assert task.outcome is not None
    assert task.outcome.status == "timed_out"
    assert task.outcome.duration_s < 0.33


async def test_a_first_step_that_blocks_beyond_the_timeout_is_cancelled_where_it_waits() -> None:
    reached: list[str] = []

    async def blocks_and_waits() -> None:
        time.sleep(0.03)
        reached.append("wait")
        await anyio.sleep_forever()

    task = await timed(blocks_and_waits, timeout=0.01)
    assert (task.status, reached) == ("timed_out", ["wait"])


async def test_an_error_while_cleaning_up_is_the_cause_of_the_timeout() -> None:
    async def fails_to_clean_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("half cleaned")

    task = await timed(fails_to_clean_up)
    assert task.status == "timed_out"
    assert task.error is not None
    assert isinstance(task.error.__cause__, ValueError)


async def test_a_timeout_that_the_function_raises_itself_is_a_failure() -> None:
    async def gives_up() -> None:
        with anyio.fail_after(0.01):
            await anyio.sleep_forever()

    task = await timed(gives_up, timeout=PATIENCE)
    assert task.status == "failed"
    assert isinstance(task.error, TimeoutError)


# One that does not want to end.


async def swallows() -> str:
    try:
        await anyio.sleep_forever()
    except BaseException:
        return "no thanks"
    raise AssertionError


async def test_a_task_that_swallows_its_cancellation_is_reported() -> None:
    with logged() as lines:
        task = await timed(swallows)
    assert task.outcome is not None
    assert (task.outcome.status, task.outcome.returned) == ("timed_out", None)
    assert isinstance(task.outcome.error, TimeoutError)
    assert task.outcome.error.__cause__ is None
    [overran] = named(lines, "task.overran")
    assert (overran["task_id"], overran["ended"]) == (task.id, True)
    assert len(named(lines, "task.timed_out")) == 1


async def test_a_task_that_goes_on_after_its_cancellation_keeps_its_slot_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt_module, "UNWIND_SECONDS", 0.02)
    release, entered = anyio.Event(), anyio.Event()

    async def goes_on() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                entered.set()
                await release.wait()

    with logged() as lines:
        async with serving(limits={"one": 1}) as bgx:
            tasks = await tasks_of(bgx)
            task = tasks.using(timeout=0.01, limit="one", detached=True).add_task(goes_on)
            await tasks()
            with anyio.fail_after(PATIENCE):
                await entered.wait()
                await until(lambda: bgx.stats().overrunning == 1)
            assert (task.status, bgx.stats().limiters["one"].taken) == ("running", 1)
            assert current_task() is None
            assert (task.timed_out, task.remaining()) == (True, 0.0)
            release.set()
            assert (await task.wait()).status == "timed_out"
            assert (bgx.stats().overrunning, bgx.stats().limiters["one"].taken) == (0, 0)
    events = named(lines, "task.overran")
    assert [line["ended"] for line in events] == [False, True]
    assert events[0]["overran_s"] < events[1]["overran_s"]


async def test_a_task_can_see_its_timeout_while_it_cleans_up() -> None:
    seen: list[tuple[Any, ...]] = []

    async def looks() -> None:
        inside = current_task()
        assert inside is not None
        left = inside.remaining()
        assert left is not None
        assert 0 < left <= 0.02
        try:
            await anyio.sleep_forever()
        finally:
            seen.append((inside.timed_out, inside.remaining(), inside.cancelled))

    await timed(looks)
    assert seen == [(True, 0.0, False)]


# Timeouts beside the timeouts, scopes and groups of the function itself.


@asyncio_only
async def test_a_timeout_of_asyncio_inside_that_is_shorter_stays_inside() -> None:
    async def times_out_inside() -> str:
        for _ in range(3):
            try:
                async with asyncio.timeout(0.002):
                    await asyncio.sleep(PATIENCE)
            except TimeoutError:
                pass
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(PATIENCE), 0.002)
        return "went on"

    task = await timed(times_out_inside, timeout=PATIENCE)
    assert task.outcome is not None
    assert task.outcome.value == "went on"


@asyncio_only
@pytest.mark.parametrize("inner", [0.02, PATIENCE])
async def test_a_timeout_of_asyncio_inside_does_not_stop_ours(inner: float) -> None:
    """Also when both ring at once: ours is not mistaken for the inner one, nor swallowed."""

    async def times_out_inside() -> None:
        while True:
            try:
                async with asyncio.timeout(inner):
                    await asyncio.sleep(PATIENCE)
            except TimeoutError:
                continue

    task = await timed(times_out_inside, timeout=0.02)
    assert task.status == "timed_out"


async def test_a_scope_of_anyio_inside_that_is_shorter_stays_inside() -> None:
    async def times_out_inside() -> str:
        for _ in range(3):
            with anyio.move_on_after(0.002):
                await anyio.sleep_forever()
        return "went on"

    task = await timed(times_out_inside, timeout=PATIENCE)
    assert task.outcome is not None
    assert task.outcome.value == "went on"


@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(
            0.02,
            marks=pytest.mark.skipif(
                tuple(map(int, version("anyio").split(".")[:2])) < (4, 16),
                reason="an older anyio keeps a cancellation that comes with its scope's own",
            ),
        ),
        PATIENCE,
    ],
)
async def test_a_scope_of_anyio_inside_does_not_stop_ours(inner: float) -> None:
    async def times_out_inside() -> None:
        while True:
            with anyio.move_on_after(inner):
                await anyio.sleep_forever()

    task = await timed(times_out_inside, timeout=0.02)
    assert task.status == "timed_out"


@asyncio_only
async def test_a_task_group_of_asyncio_is_cancelled_with_its_children() -> None:
    cancelled = Gauge()

    async def child() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            with cancelled:
                raise

    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(child())

    task = await timed(parent)
    assert (task.status, cancelled.total) == ("timed_out", 3)
    assert task.error is not None
    assert isinstance(task.error.__cause__, asyncio.CancelledError)


async def test_a_task_group_of_anyio_is_cancelled_with_its_children() -> None:
    cancelled = Gauge()

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with cancelled:
                pass

    async def parent() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(child)

    task = await timed(parent)
    assert (task.status, cancelled.total) == ("timed_out", 3)


@asyncio_only
async def test_what_asyncio_shields_goes_on_without_the_task() -> None:
    release = asyncio.Event()
    inner = asyncio.ensure_future(release.wait())

    async def shields() -> None:
        await asyncio.shield(inner)

    task = await timed(shields)
    assert (task.status, inner.done()) == ("timed_out", False)
    release.set()
    assert await inner


async def test_a_thread_that_the_function_awaits_does_not_hide_the_timeout(
    anyio_backend_name: str,
) -> None:
    """trio waits for the thread; asyncio leaves it, whatever anyio shields."""
    blocking = Blocking()

    async def awaits_a_thread() -> None:
        await anyio.to_thread.run_sync(blocking)

    threading.Timer(0.05, blocking.release.set).start()
    task = await timed(awaits_a_thread, timeout=0.01)
    assert task.status == "timed_out"
    assert blocking.release.is_set() == (anyio_backend_name == "trio")
    blocking.release.set()


# Races: the timeout, the end and the cancellation of the request, all in one moment.


async def test_a_timeout_in_the_moment_of_the_end_hurts_no_sibling() -> None:
    tasks = await tasks_of(Bgx(Settings()))
    racing = []
    for number in range(60):
        timeout = 0.002 + number % 3 * 0.0001
        racing.append(tasks.using(timeout=timeout).add_task(anyio.sleep, 0.002))
        tasks.add_task(good)
    await tasks()
    others = [task for task in tasks.tasks if isinstance(task, Task) and task not in racing]
    assert {task.status for task in others} == {Status.SUCCEEDED}
    assert {task.status for task in racing} <= {Status.SUCCEEDED, Status.TIMED_OUT}


@asyncio_only
async def test_a_timeout_right_after_the_wake_up_is_a_timeout_and_no_more() -> None:
    """The function is woken, and before it runs its timer rings."""
    loop, woken = asyncio.get_running_loop(), asyncio.Event()

    async def waits() -> str:
        await woken.wait()
        return "woken"

    def wake_and_block() -> None:
        woken.set()
        time.sleep(0.03)  # the timer is due when the loop looks again

    loop.call_later(0.005, wake_and_block)
    task = await timed(waits, timeout=0.02)
    assert task.status in (Status.SUCCEEDED, Status.TIMED_OUT)


async def test_a_request_that_is_cancelled_after_a_timeout_rang_is_cancelled() -> None:
    """The task is stopped once, for both reasons; the request does not go on."""
    tasks, entered, went_on = await tasks_of(Bgx(Settings())), anyio.Event(), list[str]()

    async def slow_to_end() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            entered.set()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)

    async def request() -> None:
        await tasks()
        went_on.append("yes")

    task, after = tasks.using(timeout=0.01).add_task(slow_to_end), tasks.add_task(good)
    async with anyio.create_task_group() as group:
        group.start_soon(request)
        with anyio.fail_after(PATIENCE):
            await entered.wait()
        group.cancel_scope.cancel()
    assert (task.status, went_on) == ("timed_out", [])
    assert after.status in (Status.CANCELLED, Status.DROPPED)


@asyncio_only
async def test_a_timeout_and_a_cancelled_request_in_one_moment() -> None:
    tasks = await tasks_of(Bgx(Settings()))
    task, after = tasks.using(timeout=0.01).add_task(anyio.sleep_forever), tasks.add_task(good)
    request = asyncio.create_task(tasks())
    await asyncio.sleep(0)
    time.sleep(0.02)  # the timer is due
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert task.status in (Status.CANCELLED, Status.TIMED_OUT)
    assert after.status == "dropped"
    host = asyncio.current_task()
    assert host is not None
    assert host.cancelling() == 0


# A thread cannot be stopped: its task is over at once, its slot is not free.


class Blocking:
    """A sync function that runs until it is told to end."""

    def __init__(self, result: Any = "late") -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        self.result = result

    def __call__(self) -> Any:
        self.entered.set()
        self.release.wait(PATIENCE)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("result", ["late", ValueError("late"), SystemExit()], ids=repr)
async def test_a_thread_that_outlives_its_timeout_is_reported_at_once_and_when_it_ends(
    result: object, detached: bool
) -> None:
    blocking = Blocking(result)
    with logged() as lines:
        async with serving(max_threads=1, limits={"one": 1}) as bgx:
            tasks = await tasks_of(bgx)
            view = tasks.using(detached=detached)
            task = view.using(timeout=0.02, limit="one").add_task(blocking)
            sibling = view.add_task(good)
            waiting = tasks.using(detached=True, concurrent=True).add_task(lambda: "ran")
            with anyio.fail_after(PATIENCE):
                await tasks()
                assert (await task.wait()).status == "timed_out"
                await sibling.wait()
            assert (sibling.status, waiting.status) == ("succeeded", "queued"), "no slot is free"
            stats = bgx.stats()
            assert (stats.overrunning, stats.running, stats.executors["thread"]) == (1, 1, 1)
            assert stats.limiters["one"].taken == 1
            assert not named(lines, "task.overran")
            blocking.release.set()
            with anyio.fail_after(PATIENCE):
                assert (await waiting.wait()).status == "succeeded"
            stats = bgx.stats()
            assert (stats.overrunning, stats.limiters["one"].taken) == (0, 0)
    assert task.outcome is not None
    assert (task.outcome.status, task.outcome.returned) == ("timed_out", None)
    [event] = named(lines, "task.overran")
    assert (event["task_id"], event["ended"], event["executor"]) == (task.id, True, "thread")
    assert event["overran_s"] > 0


async def test_the_timeout_of_a_thread_tells_where_it_is() -> None:
    blocking = Blocking()

    def outer() -> None:
        inner()

    def inner() -> None:
        blocking()

    task = await timed(outer, timeout=0.1)
    blocking.release.set()
    assert task.error is not None
    where = str(task.error.__cause__)
    assert "the thread still runs; it is here:" in where
    assert where.index("in outer") < where.index("in inner") < where.index("self.release.wait")
    assert "fastapi_bgx" not in where


async def test_a_thread_that_has_not_begun_in_time_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as bgx:
        waiting, ran = list[Callable[[], None]](), list[str]()
        monkeypatch.setattr(bgx.runners.threads, "submit", lambda *parts: waiting.extend(parts))
        tasks = await tasks_of(bgx)
        task = tasks.using(timeout=0.01).add_task(ran.append, "late")
        await tasks()
        assert (task.status, ran) == ("timed_out", [])
        assert task.error is not None
        assert str(task.error.__cause__) == "its thread has not begun to run"
        for part in waiting:
            part()
        await until(lambda: bgx.stats().overrunning == 0)
        assert ran == ["late"]


async def test_a_thread_can_see_its_timeout_and_stop_by_itself() -> None:
    seen: list[float | None] = []

    def stops_by_itself() -> None:
        inside = current_task()
        assert inside is not None
        while not inside.timed_out:
            seen.append(inside.remaining())
            time.sleep(0.001)
        seen.append(inside.remaining())

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(timeout=0.3).add_task(stops_by_itself)
        await tasks()
        await until(lambda: bgx.stats().overrunning == 0)
        assert bgx.stats().executors["thread"] == 0
    assert task.status in (Status.TIMED_OUT, Status.SUCCEEDED)
    numbers = [left for left in seen if left is not None]
    assert len(numbers) == len(seen) > 2
    assert numbers == sorted(numbers, reverse=True)
    assert 0.3 >= numbers[0] > numbers[-1] == 0.0


async def test_a_thread_sees_that_the_process_shuts_down() -> None:
    entered, seen = threading.Event(), list[bool]()

    def looks() -> None:
        inside = current_task()
        assert inside is not None
        seen.append(inside.cancelled)
        entered.set()
        deadline = time.monotonic() + PATIENCE
        while not inside.cancelled and time.monotonic() < deadline:
            time.sleep(0.001)
        seen.append(inside.cancelled)

    bgx = Bgx(Settings())
    bgx.start()
    tasks = await tasks_of(bgx)
    task = tasks.using(detached=True).add_task(looks)
    await tasks()
    await until(entered.is_set)
    await bgx.drain(grace=0)
    await until(lambda: len(seen) == 2)
    assert (task.status, seen) == ("cancelled", [False, True])


async def test_a_coroutine_from_a_thread_has_what_is_left_of_the_timeout() -> None:
    async def later() -> None:
        await anyio.sleep_forever()

    def takes_its_time() -> Any:
        time.sleep(0.15)
        return later()

    task = await timed(takes_its_time, timeout=0.2)
    assert task.outcome is not None
    assert task.outcome.status == "timed_out"
    assert 0.2 <= task.outcome.duration_s < 0.33
    assert task.outcome.error is not None
    assert task.outcome.error.__cause__ is not None
    frames = traceback.extract_tb(task.outcome.error.__cause__.__traceback__)
    assert "later" in [frame.name for frame in frames]


async def test_a_coroutine_that_comes_too_late_from_a_thread_is_closed() -> None:
    """Nobody will await it; Python would warn of that."""
    coroutine = good()
    blocking = Blocking(coroutine)
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        tasks.using(timeout=0.01).add_task(blocking)
        await tasks()
        blocking.release.set()
        await until(lambda: bgx.stats().overrunning == 0)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


async def test_a_timeout_in_the_moment_of_the_end_of_a_thread_loses_no_slot() -> None:
    async with serving(max_threads=3) as bgx:

        async def request(number: int) -> None:
            tasks = await tasks_of(bgx)
            seconds = 0.002 + number % 5 * 0.0002
            for _ in range(5):
                tasks.using(timeout=0.0024).add_task(time.sleep, seconds)
            await tasks()

        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(request, number)
        await until(lambda: bgx.stats().overrunning == 0)
        stats = bgx.stats()
        assert (stats.running, stats.executors["thread"]) == (0, 0)
        assert stats.totals[Status.SUCCEEDED] + stats.totals[Status.TIMED_OUT] == 50


@asyncio_only
@pytest.mark.parametrize("result", ["done", ValueError("done"), "coroutine"], ids=repr)
async def test_a_request_that_is_cancelled_in_the_moment_of_the_end_of_a_thread(
    result: Any,
) -> None:
    """The thread has ended, the request does not know it yet."""
    coroutine = good()
    blocking = Blocking(coroutine if result == "coroutine" else result)
    async with serving(max_threads=1) as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.add_task(blocking)
        request = asyncio.create_task(tasks())
        await until(blocking.entered.is_set)
        blocking.release.set()
        runner = bgx.runners.current()
        while not runner.mailbox._letters:  # the loop stands still meanwhile
            time.sleep(0.001)
        await asyncio.sleep(0)  # the letter is opened
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        stats = bgx.stats()
        assert (stats.overrunning, stats.executors["thread"]) == (0, 0)
    expected = {"done": "succeeded", "coroutine": "cancelled"}
    assert task.status == expected.get(str(result) if isinstance(result, str) else "", "failed")
    if result == "coroutine":
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    coroutine.close()


# Slow, and not timed out.


async def test_a_timeout_switched_off_is_none() -> None:
    tasks, seen = await tasks_of(Bgx(Settings(timeout=0.01))), list[float | None]()

    async def looks() -> None:
        inside = current_task()
        assert inside is not None
        seen.append(inside.remaining())
        await anyio.sleep(0.03)
        seen.append(inside.remaining())

    task = tasks.using(timeout=None).add_task(looks)
    await tasks()
    assert (task.status, seen) == ("succeeded", [None, None])
