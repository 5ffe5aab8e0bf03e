"""Rates: in no window do more tasks start, whatever becomes of them, and nobody starves."""

import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, cast

import anyio
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastapi_bgx import (
    Bgx,
    Limit,
    LimitConflict,
    Retry,
    Settings,
    SettingsError,
    Task,
    TaskOptions,
    UnknownLimit,
)
from fastapi_bgx.backends import Backend
from fastapi_bgx.limits import (
    Admission,
    Limiter,
    RateGate,
    give_back_slots,
    note_start,
    release_slots,
    take_slots,
)
from fastapi_bgx.named import KeyedLimiter, Limits
from fastapi_bgx.plan import Planner
from fastapi_bgx.rates import parse_rate
from fastapi_bgx.reports import LimiterStats
from fastapi_bgx.timers import Timers
from tests.supervision import PATIENCE, Gauge, serving, tasks_of, until
from tests.test_timers import Loop

# As it is written.


@pytest.mark.parametrize(
    ("text", "starts", "seconds"),
    [
        ("1/second", 1, 1),
        ("100/minute", 100, 60),
        ("5000/hour", 5000, 3600),
        ("2/day", 2, 86400),
        ("10/5 minutes", 10, 300),
        ("10/1 hour", 10, 3600),
        ("3/2 seconds", 3, 2),
    ],
)
def test_a_rate_is_a_number_of_starts_in_a_time(text: str, starts: int, seconds: int) -> None:
    rate = parse_rate(text)
    assert (rate.starts, rate.seconds, rate.text) == (starts, seconds, text)


BAD = ["", "100", "100/", "/minute", "0/minute", "-1/minute", "1.5/second", "100/fortnight"]
BAD += [
    "100 per minute",
    "100/min",
    "100/0 minutes",
    "\u0661/minute",
    "100/minute\n",
    " 100/minute",
]


@pytest.mark.parametrize("rate", [*BAD, 100, True, b"100/minute"])
def test_a_rate_that_is_written_in_another_way_is_refused_and_shown_a_good_one(rate: Any) -> None:
    with pytest.raises(ValueError, match="write a rate as '100/minute'") as caught:
        Limit("sendgrid", rate=rate)
    assert "Limit('sendgrid')" in str(caught.value)
    assert repr(rate) in str(caught.value)


def test_a_limit_needs_slots_or_a_rate() -> None:
    with pytest.raises(ValueError, match=r"Limit\('sendgrid'\) needs slots, a rate, or both"):
        Limit("sendgrid")


def test_a_rate_of_the_settings_is_checked_with_the_others() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(rates={"sendgrid": "lots", "threads": "1/second"}, max_threads=0)
    message = str(caught.value)
    assert "rates.sendgrid (BGX_RATES__SENDGRID): write a rate as '100/minute'" in message
    assert "got 'lots'" in message
    assert "max_threads" in message
    with pytest.raises(SettingsError, match="set max_threads instead"):
        Settings(rates={"threads": "1/second"})


@pytest.mark.parametrize("variable", ["BGX_RATES", "BGX_RATES__SENDGRID"])
def test_the_environment_sets_a_rate(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = '{"sendgrid": "7/hour"}' if variable == "BGX_RATES" else "7/hour"
    monkeypatch.setenv(variable, value)
    assert Settings().rates == {"sendgrid": "7/hour"}


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyrate_limiter", None)
    for wrong in (
        lambda: Limit("sendgrid", rate="1/second"),
        lambda: Settings(rates={"sendgrid": "1/second"}),
    ):
        with pytest.raises(ImportError, match=r"pip install 'fastapi-bgx\[rates\]'"):
            wrong()
    Limit("sendgrid", 1)


# The names.


def limits(slots: dict[str, int], **rates: str) -> Limits:
    return Limits(slots, rates, Timers(cast(Backend, None), Loop()))


def shown(limits: Limits, name: str) -> tuple[int | None, str | None]:
    stats = limits.stats()[name]
    return stats.slots, stats.rate


def test_a_name_can_have_slots_a_rate_or_both() -> None:
    known = limits({"a": 1, "c": 3}, b="2/second", c="4/hour")
    assert shown(known, "a") == (1, None)
    assert shown(known, "b") == (None, "2/second")
    assert shown(known, "c") == (3, "4/hour")


@pytest.mark.parametrize("key", [None, lambda **_: 0])
def test_the_rate_of_the_settings_wins(key: Callable[..., Any] | None) -> None:
    known = limits({"a": 7}, a="1/hour")
    known.named(Limit("a", 1, key, rate="9/second"))
    assert shown(known, "a") == (7, "1/hour")


def test_two_limits_of_one_name_have_to_agree_on_their_rate() -> None:
    known = limits({})
    known.named(Limit("a", rate="60/minute"))
    assert known.named(Limit("a", rate="60/1 minute")) is known.named("a")
    for other in Limit("a", rate="1/second"), Limit("a", 1, rate="60/minute"), Limit("a", 1):
        with pytest.raises(LimitConflict, match="different slots, rates or keys"):
            known.named(other)


async def plain() -> None: ...


@pytest.mark.parametrize("other", [Limit("a", rate="1/second"), Limit("a", key=hash, rate="1/day")])
def test_what_a_limit_adds_to_a_name_of_the_settings_is_for_all_who_use_it(other: Limit) -> None:
    timers = Timers(cast(Backend, None), Loop())
    planner = Planner(Settings(limits={"a": 2}), eager=False, timers=timers)
    by_name = planner.plan(plain, options := TaskOptions(limit="a"))
    assert not by_name.rated
    assert planner.plan(plain, TaskOptions(limit=other)).rated
    later = planner.plan(plain, options)
    assert later.rated
    assert (later.keyed is None) == (other.key is None)
    if later.keyed is None:
        assert later.limiters[0] is by_name.limiters[0], "who holds a slot still does"
    assert planner.limits.stats()["a"].slots == 2


# The gate: a limiter whose slots come back when the starts have left the window.


class Starting:
    """Tasks that wait for a gate, on a clock of their own."""

    def __init__(self, rate: str, slots: int | None = None) -> None:
        self.loop = Loop()
        self.timers = Timers(cast(Backend, None), self.loop)
        self.gate = RateGate("sendgrid", parse_rate(rate), self.timers)
        self.limiters: tuple[Limiter, ...] = (self.gate,)
        self.granted: list[Any] = []

    def arrive(self, name: Any, priority: int = 0) -> Admission:
        admission = Admission(self.limiters, lambda: self.granted.append(name), priority)
        admission.start()
        return admission

    def start(self) -> Any:
        """The first that was granted starts."""
        note_start(self.limiters, self.loop.time)
        return self.granted.pop(0)


def test_no_more_start_until_the_first_has_left_the_window() -> None:
    world = Starting("2/minute")
    for number in range(5):
        world.arrive(number)
        while world.granted:
            world.start()
        world.loop.advance(10)
    # 0 started at 0 s, 1 at 10 s; now it is 50 s.
    world.loop.advance(9.5)
    assert world.granted == []
    world.loop.advance(0.5)
    assert world.granted == [2]
    world.loop.advance(10)
    assert world.granted == [2, 3]
    world.loop.advance(1000)
    assert world.granted == [2, 3], "they are granted, but have not started"
    assert world.gate.stats().waiting == 1
    world.start()
    world.loop.advance(30)
    world.start()
    world.loop.advance(30)
    assert world.granted == [4]


def test_what_was_granted_and_is_given_back_goes_to_the_next() -> None:
    world = Starting("1/minute")
    world.arrive("first")
    world.arrive("second")
    give_back_slots(world.limiters)
    assert world.granted == ["first", "second"]
    give_back_slots(world.limiters)
    assert world.gate.idle


def test_the_end_of_a_task_gives_nothing_back() -> None:
    world = Starting("1/minute")
    assert take_slots(world.limiters)
    note_start(world.limiters, world.loop.time)
    release_slots(world.limiters)
    assert not take_slots(world.limiters)
    world.loop.advance(60)
    assert take_slots(world.limiters)


def test_a_place_that_was_given_up_is_passed_over() -> None:
    world = Starting("1/second")
    world.arrive(0)
    places = [world.arrive(number) for number in (1, 2)]
    world.start()
    places[0].abandon()
    world.loop.advance(1)
    assert world.granted == [2]


def test_the_urgent_start_first() -> None:
    world = Starting("1/second")
    for number in range(3):
        world.arrive(number, priority=number)
    for expected in 0, 2, 1:
        assert world.start() == expected
        world.loop.advance(1)


def test_an_idle_gate_has_no_timer() -> None:
    world = Starting("3/second")
    for number in range(3):
        world.arrive(number)
        world.start()
        world.loop.advance(0.1)
    world.loop.advance(10)
    assert world.gate.idle
    assert not world.loop.armed


@pytest.mark.parametrize("origin", [0.1, 7_654_321.123456789, 1.7e9 + 0.3])
def test_a_task_starts_as_soon_as_the_window_allows_whatever_the_clock_says(origin: float) -> None:
    world = Starting("1/second")
    world.loop.time = origin
    for number in range(200):
        world.arrive(number)
    starts = []
    for _ in range(200):
        starts.append(world.loop.time)
        world.start()
        world.loop.advance(1.000001)
    assert all(after - before <= 1.00001 for before, after in pairwise(starts))


class Rating(RuleBasedStateMachine):
    """Tasks come, start, end and give up, and time passes."""

    RATE, WINDOW = 3, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.world = Starting(f"{self.RATE}/10 seconds")
        self.waiting: list[int] = []
        self.admissions: dict[int, Admission] = {}
        self.starts: list[float] = []
        self.seen: list[int] = []

    @rule()
    def arrive(self) -> None:
        number = len(self.admissions)
        self.waiting.append(number)
        self.admissions[number] = self.world.arrive(number)

    @precondition(lambda self: self.world.granted)
    @rule()
    def start_and_end(self) -> None:
        self.starts.append(self.world.loop.time)
        self.world.start()
        release_slots(self.world.limiters)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.waiting))
        if number in self.world.granted:
            self.world.granted.remove(number)
            give_back_slots(self.world.limiters)
        else:
            self.admissions[number].abandon()
        self.waiting.remove(number)

    @rule(seconds=st.floats(0, 25))
    def wait(self, seconds: float) -> None:
        self.world.loop.advance(seconds)

    @invariant()
    def no_window_has_more_starts(self) -> None:
        for first, last in zip(self.starts, self.starts[self.RATE :], strict=False):
            assert last - first >= self.WINDOW - 1e-9  # the nanosecond that it counts in

    @invariant()
    def the_first_are_granted(self) -> None:
        self.waiting = [n for n in self.waiting if n in self.world.granted or self.waits(n)]
        assert self.waiting[: len(self.world.granted)] == self.world.granted

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        now = self.world.loop.time
        recent = sum(start > now - self.WINDOW + 1e-6 for start in self.starts)
        free = self.RATE - recent - len(self.world.granted)
        assert free <= 0 or not any(map(self.waits, self.waiting))

    def waits(self, number: int) -> bool:
        return self.admissions[number].waits


Rating.TestCase.settings = hypothesis_settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
TestRating = Rating.TestCase


# Keys.


def test_each_key_has_a_rate_of_its_own_and_is_forgotten_when_its_starts_are() -> None:
    loop = Loop()
    keyed = KeyedLimiter(
        Limit("tenant", 1, key=hash), 1, parse_rate("1/minute"), Timers(cast(Backend, None), loop)
    )
    for key in "a", "b":
        assert take_slots(keyed.of(key))
        assert not take_slots(keyed.of(key))
        note_start(keyed.of(key), loop.time)
        release_slots(keyed.of(key))
    assert keyed.stats() == LimiterStats(slots=1, taken=0, waiting=0, rate="1/minute", spent=2)
    loop.advance(59)
    assert set(keyed._by_key) == {"a", "b"}
    assert take_slots(keyed.of("c"))
    loop.advance(1)
    assert set(keyed._by_key) == {"c"}
    give_back_slots(keyed.of("c"))
    assert not keyed._by_key


def test_a_key_whose_task_outlives_the_window_is_kept_while_it_holds_its_slot() -> None:
    loop = Loop()
    keyed = KeyedLimiter(
        Limit("tenant", 1, key=hash), 1, parse_rate("1/second"), Timers(cast(Backend, None), loop)
    )
    limiters = keyed.of("a")
    assert take_slots(limiters)
    note_start(limiters, loop.time)
    loop.advance(100)
    assert keyed.of("a") is limiters
    release_slots(limiters)
    assert not keyed._by_key


# Of tasks, on a clock of the test.


@asynccontextmanager
async def timed(**settings: Any) -> AsyncIterator[tuple[Bgx, Loop]]:
    """A `Bgx` whose clock stands still until it is told."""
    bgx, loop = Bgx(Settings(**settings)), Loop()
    bgx.runners.clock = loop
    bgx.start()
    try:
        yield bgx, loop
    finally:
        for task in list(bgx.runners.current().live):
            bgx.runners.current().cancel(task, "the test is over")
        with anyio.CancelScope(shield=True):
            await bgx.drain(grace=0)


async def settled() -> None:
    """Let what was granted run."""
    for _ in range(10):
        await anyio.sleep(0)


class Journal:
    """When tasks started."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.starts: list[tuple[Any, float]] = []

    async def work(self, name: Any = None) -> None:
        self.starts.append((name, self.loop.time - 100))


@pytest.mark.anyio
@pytest.mark.parametrize("detached", [False, True])
async def test_tasks_start_at_the_rate_of_their_limit(detached: bool) -> None:
    async with timed() as (bgx, loop):
        journal, limit = Journal(loop), Limit("sendgrid", rate="2/minute")
        tasks = await tasks_of(bgx)
        for number in range(5):
            tasks.using(limit=limit, detached=detached).add_task(journal.work, number)
        free = tasks.using(concurrent=True).add_task(journal.work, "free")
        async with anyio.create_task_group() as group:
            group.start_soon(tasks)
            await until(lambda: len(journal.starts) >= 2)
            if detached:
                await until(lambda: free.done)
            for seconds in 59, 1, 60:
                await settled()
                loop.advance(seconds)
            await until(lambda: sum(name != "free" for name, _ in journal.starts) == 5)
        await free.wait()
    assert [start for start in journal.starts if start[0] != "free"] == [
        (0, 0),
        (1, 0),
        (2, 60),
        (3, 60),
        (4, 120),
    ]


@pytest.mark.anyio
async def test_four_tasks_of_one_request_on_a_limit_of_three_with_a_rate() -> None:
    async with timed() as (bgx, loop):
        for number, limit in enumerate((Limit("a", 3, rate="3/second"), Limit("b", rate="3/hour"))):
            journal, tasks = Journal(loop), await tasks_of(bgx)
            added = [
                tasks.using(limit=limit, concurrent=bool(number)).add_task(journal.work)
                for _ in range(4)
            ]
            async with anyio.create_task_group() as group:
                group.start_soon(tasks)
                await until(lambda: len(journal.starts) == 3)  # noqa: B023
                await settled()
                assert not added[3].done
                loop.advance(3600)
            assert [task.status for task in added] == ["succeeded"] * 4


@pytest.mark.anyio
async def test_a_task_that_waits_for_the_rate_can_be_cancelled_and_expires() -> None:
    async with timed() as (bgx, loop):
        journal, tasks = Journal(loop), await tasks_of(bgx)
        view = tasks.using(limit=Limit("a", rate="1/minute"), detached=True, concurrent=True)
        view.add_task(journal.work, "first")
        cancelled = view.add_task(journal.work, "cancelled")
        expired = view.using(queue_timeout=30).add_task(journal.work, "expired")
        view.add_task(journal.work, "last")
        await tasks()
        await until(lambda: journal.starts)
        cancelled.runner.cancel(cancelled, "somebody's wish")
        loop.advance(30)
        assert (cancelled.status, expired.status) == ("cancelled", "expired")
        loop.advance(30)
        await until(lambda: len(journal.starts) == 2)
        assert journal.starts == [("first", 0), ("last", 60)]
        assert bgx.stats().limiters["a"] == LimiterStats(
            slots=None, taken=0, waiting=0, rate="1/minute", spent=1
        )


@pytest.mark.anyio
async def test_a_task_that_does_not_start_spends_nothing_of_the_rate() -> None:
    """Whether it waited for another limiter, or had its slots and no worker yet."""
    async with timed(max_concurrency=1, mode="detached") as (bgx, loop):
        journal, tasks = Journal(loop), await tasks_of(bgx)
        release = anyio.Event()
        view = tasks.using(concurrent=True)
        holder = view.add_task(release.wait)
        await tasks()
        await until(lambda: holder.status == "running")
        tasks = await tasks_of(bgx)
        view = tasks.using(concurrent=True, limit=Limit("a", 1, rate="1/hour"))
        waits = view.add_task(journal.work, "waits")
        await tasks()
        assert bgx.stats().limiters["a"].spent == 1
        waits.runner.cancel(waits, "somebody's wish")
        assert bgx.stats().limiters["a"].spent == 0
        release.set()
        await holder.wait()
        tasks = await tasks_of(bgx)
        ready = tasks.using(limit="a").add_task(journal.work, "ready")
        await tasks()
        ready.runner.cancel(ready, "somebody's wish")
        assert ready.status == "cancelled"
        assert bgx.stats().limiters["a"].spent == 0
        tasks = await tasks_of(bgx)
        tasks.using(limit="a").add_task(journal.work, "starts")
        await tasks()
        await until(lambda: journal.starts)
    assert journal.starts == [("starts", 0)]


@pytest.mark.anyio
async def test_a_task_that_fails_has_started_all_the_same() -> None:
    async def fail() -> None:
        raise LookupError

    async with timed() as (bgx, _):
        tasks = await tasks_of(bgx)
        for failing in fail, lambda: 1 // 0:
            tasks.using(limit=Limit("a", rate="9/day")).add_task(failing)
        await tasks()
        assert bgx.stats().limiters["a"].spent == 2


@pytest.mark.anyio
async def test_each_attempt_is_a_start_and_a_task_that_expired_is_none() -> None:
    async with timed(mode="detached") as (bgx, loop):
        journal, tasks = Journal(loop), await tasks_of(bgx)

        async def fail() -> None:
            await journal.work("fails")
            raise LookupError

        view = tasks.using(concurrent=True, limit=Limit("a", rate="1/minute"))
        policy = Retry(attempts=3, wait_initial=1, wait_jitter=0)
        task = view.using(retry=policy).add_task(fail)
        expired = view.using(expires=50).add_task(journal.work, "expired")
        view.add_task(journal.work, "last")
        await tasks()
        for _ in range(8):
            await settled()
            loop.advance(30)
        await task.wait()
        assert (await expired.wait()).status == "expired"
    assert journal.starts == [("fails", 0), ("last", 60), ("fails", 120), ("fails", 180)]


@pytest.mark.anyio
async def test_a_task_that_had_its_slots_and_expired_before_its_start_spends_nothing() -> None:
    async with timed(mode="detached") as (bgx, loop):
        tasks = await tasks_of(bgx)
        task = tasks.using(limit=Limit("a", rate="1/day"), expires=50).add_task(plain)
        await tasks()
        assert bgx.stats().limiters["a"].spent == 1
        loop.advance(60)
        assert (await task.wait()).status == "expired"
        assert bgx.stats().limiters["a"].spent == 0


@pytest.mark.anyio
async def test_of_slots_and_a_rate_both_hold_and_the_urgent_overtake_those_without_a_slot() -> None:
    async with timed() as (bgx, loop):
        journal, release, gauge = Journal(loop), anyio.Event(), Gauge()

        async def work(name: str) -> None:
            with gauge:
                await journal.work(name)
                await release.wait()

        tasks = await tasks_of(bgx)
        view = tasks.using(limit=Limit("a", 2, rate="3/minute"), detached=True, concurrent=True)
        for name in "abcdef":
            view.add_task(work, name)
        await tasks()
        await until(lambda: len(journal.starts) == 2)
        stats = bgx.stats().limiters["a"]
        assert stats == LimiterStats(slots=2, taken=2, waiting=4, rate="3/minute", spent=2)
        tasks = await tasks_of(bgx)
        urgent = tasks.using(limit="a", detached=True, priority=9).add_task(work, "urgent")
        await tasks()
        release.set()
        await urgent.wait()
        await settled()
        stats = bgx.stats().limiters["a"]
        assert stats == LimiterStats(slots=2, taken=0, waiting=4, rate="3/minute", spent=3)
        loop.advance(60)
        await until(lambda: len(journal.starts) == 6)
        loop.advance(60)
        await until(lambda: gauge.total == 7)
    assert [name for name, _ in journal.starts] == ["a", "b", "urgent", "c", "d", "e", "f"]
    assert gauge.most == 2


@pytest.mark.anyio
async def test_a_name_that_has_only_a_rate_in_the_settings_is_a_limit() -> None:
    async with timed(rates={"crm": "1/day"}, tasks={"push": {"limit": "crm"}}) as (bgx, _):
        tasks = await tasks_of(bgx)

        def push() -> None: ...

        task = tasks.add_task(push)
        await tasks()
        assert bgx.stats().limiters["crm"].spent == 1
        assert task.plan.only is None
        with pytest.raises(UnknownLimit, match=r"known: crm"):
            tasks.using(limit="cmr").add_task(push)


@pytest.mark.anyio
async def test_a_task_that_was_added_outside_of_the_event_loop_is_rated_when_it_starts() -> None:
    async with timed(rates={"crm": "1/day"}) as (bgx, _):
        added: list[Task[Any]] = []
        thread = threading.Thread(
            target=lambda: added.append(bgx.runners.accept(plain, (), {}, TaskOptions(limit="crm")))
        )
        thread.start()
        thread.join()
        await added[0]()
        assert added[0].status == "succeeded"
        assert bgx.stats().limiters["crm"].spent == 1


@pytest.mark.anyio
async def test_a_drain_ends_those_who_wait_for_a_rate() -> None:
    async with serving(drain_timeout=0) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(limit=Limit("a", rate="1/day"), detached=True)
        added = [view.add_task(plain) for _ in range(3)]
        await tasks()
        await added[0].wait()
        with anyio.fail_after(PATIENCE):
            report = await bgx.drain()
    assert [task.status for task in added] == ["succeeded", "cancelled", "cancelled"]
    assert len(report.cancelled) == 2


# In real time.


@pytest.mark.anyio
async def test_in_no_second_more_tasks_start_than_the_rate_says() -> None:
    starts: list[float] = []

    async def on_loop() -> None:
        await anyio.sleep(0)

    def in_thread() -> None: ...

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(concurrent=True, limit=Limit("a", 20, rate="20/second"))
        added = [view.add_task(on_loop if n % 2 else in_thread) for n in range(50)]
        began = time.monotonic()
        with anyio.fail_after(PATIENCE):
            await tasks()
            for task in added:
                await task.wait()
        took = time.monotonic() - began
        starts = sorted(task.started_at or 0 for task in added)
    assert all(last - first >= 1 for first, last in zip(starts, starts[20:], strict=False))
    assert took >= 2
