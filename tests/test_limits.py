"""Limits hold at every moment, first come first served, and nobody waits for ever (promise 4)."""

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import anyio
import anyio.abc
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from structlog.testing import capture_logs

from fastapi_bgx import Bgx, Limit, LimitConflict, Settings, Task, UnknownLimit, task_options
from fastapi_bgx.limits import Admission, Limiter, release_slots, take_slots
from fastapi_bgx.named import KeyedLimiter, Limits
from fastapi_bgx.rates import parse_rate
from fastapi_bgx.reports import LimiterStats
from fastapi_bgx.timers import Timers
from tests.supervision import PATIENCE, Gauge, serving, tasks_of, until
from tests.test_timers import Loop

# Every limit, measured by a counter inside the tasks.


async def flood(bgx: Bgx, number: int, func: Callable[..., Any], **options: Any) -> None:
    """Add so many tasks in one request, all beside each other, and wait until all have ended."""
    tasks = await tasks_of(bgx)
    added = [tasks.using(concurrent=True, **options).add_task(func) for _ in range(number)]
    with anyio.fail_after(PATIENCE):
        await tasks()
        for task in added:
            assert (await task.wait()).status == "succeeded"


async def visit(gauge: Gauge) -> None:
    with gauge:
        for _ in range(3):
            await anyio.sleep(0)


def visit_in_thread(gauge: Gauge) -> None:
    with gauge:
        time.sleep(0.0005)


@pytest.mark.anyio
@pytest.mark.parametrize("detached", [False, True])
async def test_no_more_tasks_run_than_max_concurrency_allows(detached: bool) -> None:
    gauge = Gauge()
    async with serving(max_concurrency=7) as bgx:
        await flood(bgx, 300, lambda: visit(gauge), detached=detached)
    assert (gauge.most, gauge.total) == (7, 300)


@pytest.mark.anyio
async def test_no_more_sync_tasks_run_than_max_threads_allows() -> None:
    gauge = Gauge()
    async with serving(max_threads=5) as bgx:
        await flood(bgx, 300, lambda: visit_in_thread(gauge))
    assert (gauge.most, gauge.total) == (5, 300)


@pytest.mark.anyio
async def test_no_more_tasks_run_than_a_named_limit_allows() -> None:
    limited, free = Gauge(), Gauge()
    async with serving(limits={"smtp": 3}) as bgx, anyio.create_task_group() as group:
        group.start_soon(lambda: flood(bgx, 200, lambda: visit(limited), limit="smtp"))
        group.start_soon(lambda: flood(bgx, 200, lambda: visit(limited), limit="smtp"))
        group.start_soon(lambda: flood(bgx, 50, lambda: visit(free)))
    assert (limited.most, limited.total) == (3, 400)
    assert free.most > 3, "a limit is for the tasks that name it"


@pytest.mark.anyio
async def test_a_named_limit_holds_across_threads_and_the_event_loop() -> None:
    gauge = Gauge()
    async with serving(limits={"both": 4}) as bgx, anyio.create_task_group() as group:
        group.start_soon(lambda: flood(bgx, 150, lambda: visit_in_thread(gauge), limit="both"))
        group.start_soon(
            lambda: flood(bgx, 150, lambda: visit(gauge), limit="both", executor="async")
        )
    assert (gauge.most, gauge.total) == (4, 300)


@pytest.mark.anyio
async def test_the_tasks_of_many_requests_share_one_limit() -> None:
    """Inline tasks wait in the coroutine of their own request."""
    gauge = Gauge()

    async def request(bgx: Bgx) -> None:
        tasks = await tasks_of(bgx)
        for _ in range(3):
            tasks.add_task(visit, gauge)
        await tasks()

    async with serving(max_concurrency=4) as bgx, anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(request, bgx)
    assert (gauge.most, gauge.total) == (4, 300)


@pytest.mark.anyio
async def test_each_key_has_slots_of_its_own() -> None:
    gauges: dict[str, Gauge] = {"a": Gauge(), "b": Gauge(), "c": Gauge()}
    everybody = Gauge()
    limit = Limit("tenant", 2, key=lambda tenant_id, **_: tenant_id)

    async def work(tenant_id: str) -> None:
        with everybody:
            await visit(gauges[tenant_id])

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(concurrent=True, limit=limit)
        for _ in range(100):
            for tenant_id in gauges:
                view.add_task(work, tenant_id)
        await tasks()
        assert bgx.stats().limiters["tenant"].taken == 0
    assert [(gauge.most, gauge.total) for gauge in gauges.values()] == [(2, 100)] * 3
    assert everybody.most == 6, "one key does not hold another back"


# Waiting: in order, not for ever, and not in a circle.


@pytest.mark.anyio
async def test_tasks_start_in_the_order_in_which_they_were_added() -> None:
    started: list[int] = []

    async def work(number: int) -> None:
        started.append(number)
        await anyio.sleep(0)

    async with serving(max_concurrency=2) as bgx:
        tasks = await tasks_of(bgx)
        for number in range(300):
            tasks.using(concurrent=True).add_task(work, number)
        await tasks()
    assert started == list(range(300))


@pytest.mark.anyio
@pytest.mark.parametrize("number", [4, 100])
async def test_one_request_can_add_more_tasks_than_its_limit_has_slots(number: int) -> None:
    async with serving(max_concurrency=1) as bgx:
        await flood(bgx, number, lambda: visit(Gauge()), limit=Limit("three", 3))
        await flood(bgx, number, lambda: visit_in_thread(Gauge()), limit=Limit("three", 3))


@pytest.mark.anyio
async def test_a_task_that_adds_to_its_list_does_not_wait_for_its_own_slot() -> None:
    ran: list[int] = []
    async with serving(max_concurrency=1) as bgx:
        tasks = await tasks_of(bgx)

        async def work(left: int) -> None:
            ran.append(left)
            if left:
                tasks.add_task(work, left - 1)

        tasks.add_task(work, 5)
        with anyio.fail_after(PATIENCE):
            await tasks()
    assert ran == [5, 4, 3, 2, 1, 0]


@pytest.mark.anyio
async def test_tasks_that_need_two_limits_are_not_starved_by_those_that_need_one() -> None:
    """There is always a common task that waits; those for smtp still get their turns."""
    stop = anyio.Event()

    async def work() -> None:
        await anyio.sleep(0)

    async with serving(max_concurrency=2, limits={"smtp": 1}) as bgx:

        async def keep_busy() -> None:
            while not stop.is_set():
                await flood(bgx, 5, work)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(keep_busy)
            await until(lambda: bgx.stats().waiting > 2)
            await flood(bgx, 20, work, limit="smtp")
            assert bgx.stats().waiting > 0, "the others were there all the time"
            stop.set()


@pytest.mark.anyio
async def test_a_task_that_waits_for_a_rare_slot_holds_no_common_one() -> None:
    release, ran = anyio.Event(), anyio.Event()

    async def set_ran() -> None:
        ran.set()

    async with serving(max_concurrency=2, limits={"smtp": 1}, mode="detached") as bgx:
        tasks = await tasks_of(bgx)
        for _ in range(3):
            tasks.using(concurrent=True, limit="smtp").add_task(release.wait)
        tasks.using(concurrent=True).add_task(set_ran)
        await tasks()
        with anyio.fail_after(PATIENCE):
            await ran.wait()
        release.set()


# Giving up while waiting gives back what is held.


@asynccontextmanager
async def occupied(**settings: Any) -> AsyncIterator[tuple[Bgx, anyio.Event]]:
    """One task holds the only slot of `max_concurrency`, until the event is set."""
    release = anyio.Event()
    async with serving(max_concurrency=1, **settings) as bgx:
        tasks = await tasks_of(bgx)
        tasks.using(detached=True).add_task(release.wait)
        await tasks()
        await until(lambda: bgx.stats().running == 1)
        yield bgx, release
        release.set()
        await until(lambda: bgx.stats().running == 0)
        stats = bgx.stats()
        assert stats.waiting == 0
        assert all(limit.taken == limit.waiting == 0 for limit in stats.limiters.values())


async def never() -> None:
    raise AssertionError("this task must not start")


@pytest.mark.anyio
async def test_a_request_that_is_cancelled_while_its_task_waits_gives_back_what_it_holds() -> None:
    limit = Limit("tenant", 1, key=lambda **_: "a")
    with capture_logs() as log:
        async with occupied(limits={"smtp": 1}) as (bgx, _):
            for held in "smtp", limit:
                tasks = await tasks_of(bgx)
                waiting = tasks.using(limit=held).add_task(never)
                after = tasks.add_task(never)
                async with anyio.create_task_group() as group:
                    group.start_soon(tasks)
                    await until(lambda: bgx.stats().limiters["concurrency"].waiting)
                    group.cancel_scope.cancel()
                assert (waiting.status, after.status) == ("cancelled", "dropped")
                limits = bgx.stats().limiters
                assert limits["concurrency"].waiting == 0
                assert limits["smtp" if held == "smtp" else "tenant"].taken == 0
    assert [entry["task"] for entry in log if entry["event"] == "task.cancelled"] == ["never"] * 2


@pytest.mark.anyio
@pytest.mark.parametrize("detached", [False, True])
async def test_a_task_that_waits_too_long_expires(detached: bool) -> None:
    ran: list[str] = []

    async def after() -> None:
        ran.append("after")

    with capture_logs() as log:
        async with occupied(limits={"smtp": 1}) as (bgx, release):
            tasks = await tasks_of(bgx)
            view = tasks.using(detached=detached, queue_timeout=0.01, limit="smtp")
            expired = view.add_task(never)
            sibling = tasks.using(detached=detached).add_task(after)
            async with anyio.create_task_group() as group:
                group.start_soon(tasks)
                outcome = await expired.wait()
                assert bgx.stats().limiters["smtp"].taken == 0
                release.set()
                await sibling.wait()
            assert outcome.status == "expired"
            assert (outcome.attempts, outcome.duration_s) == (0, 0)
            assert outcome.queued_s >= 0.01
            assert bgx.stats().totals[outcome.status] == 1
    assert ran == ["after"], "its siblings are not hurt"
    [event] = [entry for entry in log if entry["event"] == "task.expired"]
    assert (event["task"], event["task_id"], event["limit"]) == ("never", expired.id, "smtp")
    assert event["log_level"] == "warning"


@pytest.mark.anyio
async def test_a_task_that_got_its_slot_in_time_does_not_expire() -> None:
    async with occupied() as (bgx, release):
        tasks = await tasks_of(bgx)
        task = tasks.using(detached=True, queue_timeout=0.05).add_task(anyio.sleep, 0.1)
        await tasks()
        release.set()
        assert (await task.wait()).status == "succeeded"


@pytest.mark.anyio
async def test_hundreds_that_expire_in_one_moment_leave_the_queue_in_order() -> None:
    started: list[int] = []

    async def work(number: int) -> None:
        started.append(number)

    async with occupied() as (bgx, release):
        tasks = await tasks_of(bgx)
        expiring, staying = list[Task[None]](), list[Task[None]]()
        for number in range(300):
            view = tasks.using(detached=True, concurrent=True)
            if number % 2:
                staying.append(view.add_task(work, number))
            else:
                expiring.append(view.using(queue_timeout=0.01).add_task(work, number))
        await tasks()
        for task in expiring:
            assert (await task.wait()).status == "expired"
        release.set()
        for task in staying:
            assert (await task.wait()).status == "succeeded"
    assert started == list(range(1, 300, 2))


@pytest.mark.anyio
async def test_a_task_that_holds_its_slots_and_has_no_worker_yet_can_be_cancelled() -> None:
    async with serving(limits={"smtp": 1}, mode="detached") as bgx:
        tasks = await tasks_of(bgx)
        ready = tasks.using(limit="smtp").add_task(never)
        await tasks()
        assert bgx.stats().limiters["smtp"].taken == 1
        ready.runner.cancel(ready, "somebody's wish")
        assert ready.status == "cancelled"
        assert bgx.stats().limiters["smtp"].taken == 0
        await anyio.sleep(0)
        assert bgx.stats().totals[ready.status] == 1


# Keys and names.


@pytest.mark.anyio
async def test_the_key_function_gets_the_arguments_by_name_however_they_were_passed() -> None:
    seen: list[dict[str, Any]] = []

    def key(**arguments: Any) -> Hashable:
        seen.append(arguments)
        return 0

    @task_options(limit=Limit("tenant", 1, key=key))
    async def work(tenant_id: int, /, size: int, *rest: int, urgent: bool = False, **more: int):  # type: ignore[no-untyped-def]
        pass

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        tasks.add_task(work, 1, 2, 3, 4, urgent=True, extra=5)
        tasks.add_task(work, 1, size=2)
        await tasks()
    assert seen == [
        {"tenant_id": 1, "size": 2, "rest": (3, 4), "urgent": True, "extra": 5},
        {"tenant_id": 1, "size": 2, "rest": (), "urgent": False},
    ]


@pytest.mark.anyio
async def test_a_method_is_limited_by_its_arguments_without_self() -> None:
    seen: list[dict[str, Any]] = []

    class Mailer:
        async def send(self, to: str) -> None:
            pass

    def key(**arguments: Any) -> Hashable:
        seen.append(arguments)
        return 0

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        tasks.using(limit=Limit("to", 1, key=key)).add_task(Mailer().send, "ada")
        await tasks()
    assert seen == [{"to": "ada"}]


@pytest.mark.anyio
@pytest.mark.parametrize("check_calls", [True, False])
async def test_a_key_that_cannot_be_worked_out_is_an_error_in_the_route(check_calls: bool) -> None:
    async with serving(check_calls=check_calls) as bgx:
        tasks = await tasks_of(bgx)
        with pytest.raises(TypeError, match="unhashable"):
            tasks.using(limit=Limit("list", 1, key=lambda **_: [])).add_task(never)  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            tasks.using(limit=Limit("raises", 1, key=lambda **_: 1 // 0)).add_task(never)
        assert bgx.stats().waiting == 0
        assert not tasks.tasks


@pytest.mark.anyio
async def test_a_lambda_that_each_request_makes_anew_is_one_limit() -> None:
    gauge = Gauge()

    async def work(tenant_id: str) -> None:
        await visit(gauge)

    async with serving(mode="detached") as bgx:
        for _ in range(20):
            tasks = await tasks_of(bgx)
            limit = Limit("tenant", 2, key=lambda tenant_id: tenant_id)
            tasks.using(limit=limit).add_task(work, "a")
            await tasks()
        await until(lambda: gauge.total == 20)
    assert gauge.most == 2


@pytest.mark.anyio
async def test_a_lambda_that_uses_what_differs_between_requests_is_refused() -> None:
    """Its first form would serve every later request, with the values of the first."""
    async with serving() as bgx:
        tasks = await tasks_of(bgx)

        def route(tenant_id: str) -> None:
            tasks.using(limit=Limit("tenant", 2, key=lambda **_: tenant_id)).add_task(
                anyio.sleep, 0
            )

        route("a")
        route("a")
        with pytest.raises(LimitConflict, match="'tenant' was defined twice"):
            route("b")
        await tasks()


def test_a_limit_that_is_not_configured_is_named_with_those_that_are() -> None:
    limits = Limits({"smtp": 1, "crm": 2})
    with pytest.raises(
        UnknownLimit, match=r"'smpt' is not configured \(known: crm, smtp\)"
    ) as caught:
        limits.named("smpt")
    assert caught.value.name == "smpt"


def test_two_limits_of_one_name_have_to_agree() -> None:
    limits = Limits({})
    assert limits.named(Limit("a", 1)) is limits.named(Limit("a", 1))
    for other in Limit("a", 2), Limit("a", 1, key=lambda **_: 0):
        with pytest.raises(LimitConflict) as caught:
            limits.named(other)
        assert caught.value.name == "a"


def test_a_limit_that_was_given_as_an_object_can_be_named_later() -> None:
    limits = Limits({})
    assert limits.named(Limit("a", 1)) is limits.named("a")


@pytest.mark.parametrize("key", [None, lambda **_: 0])
def test_settings_win_over_the_slots_in_the_code(key: Callable[..., Hashable] | None) -> None:
    assert Limits({"a": 7}).named(Limit("a", 1, key)).slots == 7


def test_threads_that_use_a_new_limit_at_once_share_it() -> None:
    class SlowName(str):
        """A name whose every look-up gives other threads their chance."""

        __slots__ = ()

        def __hash__(self) -> int:
            time.sleep(0.001)
            return super().__hash__()

    for key in None, (lambda **_: 0):
        limits = Limits({})
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda _: limits.named(Limit(SlowName("new"), 1, key)), range(8))  # noqa: B023
        assert len({id(limiter) for limiter in found}) == 1


def test_statistics_can_be_read_while_keys_come_and_go() -> None:
    keyed, stop = KeyedLimiter(Limit("tenant", 1, key=lambda **_: 0), 1), threading.Event()
    for number in range(5000):  # so many that it takes a while to add them up
        take_slots(keyed.of(number))

    def come_and_go() -> None:
        while not stop.is_set():
            limiters = keyed.of("comes and goes")
            take_slots(limiters)
            release_slots(limiters)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(100):
            assert 5000 <= keyed.stats().taken <= 5001
    finally:
        stop.set()
        thread.join()


def test_a_key_that_nobody_uses_is_forgotten() -> None:
    keyed = KeyedLimiter(Limit("tenant", 1, key=lambda **_: 0), 1)
    for number in range(1000):
        first, second = keyed.of(number), keyed.of(number)
        assert first == second
        assert take_slots(first)
        assert not take_slots(second)
        waiting = Admission(second, lambda: None)
        waiting.start()
        waiting.abandon()
        release_slots(first)
    assert not keyed._by_key


def test_those_that_gave_up_leave_nothing_in_the_queue() -> None:
    """A slot that is never given back must not collect all that ever waited for it."""
    limiters = (Limiter("stuck", 1),)
    assert take_slots(limiters)
    stays = Admission(limiters, lambda: None)
    stays.start()
    for _ in range(10_000):
        expires = Admission(limiters, lambda: None)
        expires.start()
        expires.abandon()
    assert limiters[0].waiting == 1
    assert len(limiters[0]._queue) < 100


# Any history of arrivals, ends and giving up, against a model that is too simple to be wrong.


class Model:
    """Each limiter is a number of slots, a list of who holds one and a list of who waits."""

    def __init__(self, slots: dict[str, int]) -> None:
        self.slots = slots
        self.holders: dict[str, list[int]] = {name: [] for name in slots}
        self.queues: dict[str, list[int]] = {name: [] for name in slots}
        self.needs: dict[int, tuple[str, ...]] = {}
        self.ready: list[int] = []

    def go_on(self, who: int) -> None:
        for name in self.needs[who]:
            if who in self.holders[name]:
                continue
            if self.queues[name] or len(self.holders[name]) >= self.slots[name]:
                self.queues[name].append(who)
                return
            self.holders[name].append(who)
        self.ready.append(who)

    def go_away(self, who: int) -> None:
        for name in self.needs[who]:
            if who in self.queues[name]:
                self.queues[name].remove(who)
            if who in self.holders[name]:
                self.holders[name].remove(who)
                if self.queues[name]:
                    first = self.queues[name].pop(0)
                    self.holders[name].append(first)
                    self.go_on(first)


class Limiting(RuleBasedStateMachine):
    """Tasks come, run, end and give up, in any order."""

    NAMED = st.sampled_from([(), ("smtp",), ("tenant a",), ("tenant b",)])
    POOL = st.sampled_from([(), ("threads",)])
    arrived = Bundle("arrived")

    def __init__(self) -> None:
        super().__init__()
        slots = {"smtp": 1, "tenant a": 2, "tenant b": 2, "threads": 2, "concurrency": 3}
        self.model = Model(slots)
        self.keyed = KeyedLimiter(Limit("tenant", 2, key=lambda **_: 0), 2)
        self.plain = {name: Limiter(name, slots[name]) for name in slots if "tenant" not in name}
        self.ready: list[int] = []
        self.admissions: dict[int, Admission | None] = {}
        self.limiters: dict[int, tuple[Limiter, ...]] = {}

    def limiter(self, name: str) -> Limiter:
        return self.keyed.of(name)[0] if name.startswith("tenant") else self.plain[name]

    @rule(target=arrived, named=NAMED, pool=POOL)
    def arrive(self, named: tuple[str, ...], pool: tuple[str, ...]) -> int:
        who = len(self.limiters)
        needs = (*named, *pool, "concurrency")
        limiters = tuple(self.limiter(name) for name in needs)
        self.limiters[who], self.admissions[who] = limiters, None
        if take_slots(limiters):
            self.ready.append(who)
        else:
            self.admissions[who] = Admission(limiters, lambda: self.ready.append(who))
            self.admissions[who].start()  # type: ignore[union-attr]
        self.model.needs[who] = needs
        self.model.go_on(who)
        return who

    @rule(who=consumes(arrived))
    def end_or_give_up(self, who: int) -> None:
        admission = self.admissions.pop(who)
        if admission is None or who in self.ready:
            release_slots(self.limiters[who])
        else:
            admission.abandon()
        self.model.go_away(who)

    @invariant()
    def all_agree(self) -> None:
        assert self.ready == self.model.ready
        for name, limiter in self.plain.items():
            self.compare(name, limiter)
        for name in "tenant a", "tenant b":
            in_use = bool(self.model.holders[name] or self.model.queues[name])
            assert in_use == (name in self.keyed._by_key), "idle keys are forgotten"
            if in_use:
                self.compare(name, self.keyed.of(name)[0])

    def compare(self, name: str, limiter: Limiter) -> None:
        assert limiter.taken == len(self.model.holders[name]) <= self.model.slots[name]
        assert limiter.waiting == len(self.model.queues[name])
        assert not limiter.waiting or limiter.taken == limiter.slots, "nobody waits in vain"


Limiting.TestCase.settings = hypothesis_settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
TestLimiting = Limiting.TestCase


def test_the_slots_of_all_limiters_are_taken_together_or_not_at_all() -> None:
    full, free = Limiter("full", 1), Limiter("free", 1)
    assert take_slots((full,))
    assert not take_slots((free, full))
    assert (free.taken, full.taken) == (0, 1)


def test_nobody_overtakes_those_that_wait() -> None:
    limiter, ready = Limiter("one", 1), deque[str]()
    assert take_slots((limiter,))
    Admission((limiter,), lambda: ready.append("first")).start()
    assert not take_slots((limiter,))
    Admission((limiter,), lambda: ready.append("second")).start()
    release_slots((limiter,))
    assert not take_slots((limiter,)), "the slot went to the first, and one more waits"
    assert list(ready) == ["first"]


def test_the_slots_of_a_limit_can_change_while_it_is_busy() -> None:
    """More: those who wait get them. Fewer: nobody is stopped, and nobody starts too early."""
    for name, key in ("a", None), ("b", lambda **_: 0):
        limits = Limits({})
        named = limits.named(Limit(name, 2, key))
        limiters = named.of("k") if isinstance(named, KeyedLimiter) else named.limiters
        ready: list[int] = []
        for number in range(8):
            Admission(limiters, partial(ready.append, number)).start()
        limits.resize(name, 4)
        assert ready == [0, 1, 2, 3]
        limits.resize(name, 1)
        for _ in range(3):
            release_slots(limiters)
        assert ready == [0, 1, 2, 3]
        assert limits.stats()[name] == LimiterStats(slots=1, taken=1, waiting=4)
        release_slots(limiters)
        limits.resize(name, 100)
        assert ready == list(range(8))
        assert limits.named(Limit(name, 2, key)).slots == 100, "as if the settings said so"


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["smtp", "concurrency"])
async def test_an_application_changes_a_limit_while_it_is_busy(name: str) -> None:
    gate, running = anyio.Event(), 0

    async def work() -> None:
        nonlocal running
        running += 1
        await gate.wait()

    async with serving(limits={"smtp": 1}, max_concurrency=1) as bgx:
        if name == "smtp":
            await bgx.resize("concurrency", 100)
        tasks = await tasks_of(bgx)
        limit = name if name == "smtp" else None
        view = tasks.using(detached=True, concurrent=True, limit=limit)
        added = [view.add_task(work) for _ in range(5)]
        await tasks()
        await anyio.wait_all_tasks_blocked()
        assert running == 1
        await bgx.resize(name, 3)
        await anyio.wait_all_tasks_blocked()
        assert running == 3
        await bgx.resize(name, 1)
        assert bgx.stats().limiters[name] == LimiterStats(slots=1, taken=3, waiting=2)
        gate.set()
        for task in added:
            await task.wait()
        assert bgx.stats().limiters[name].taken == 0


@pytest.mark.anyio
async def test_a_limit_that_cannot_be_changed_is_named() -> None:
    bgx = Bgx(Settings(limits={"smtp": 1}))
    with pytest.raises(UnknownLimit, match="smpt"):
        await bgx.resize("smpt", 2)
    with pytest.raises(ValueError, match="at least 1 slot"):
        await bgx.resize("smtp", 0)


def test_only_slots_can_be_changed() -> None:
    limits = Limits({}, {"rated": "1/second"})
    with pytest.raises(ValueError, match="'rated' has a rate and no slots"):
        limits.resize("rated", 2)
    with pytest.raises(UnknownLimit):
        limits.resize("none", 2)


def test_a_rate_stays_when_slots_change() -> None:
    keyed = KeyedLimiter(
        Limit("tenant", 1, key=hash), 1, parse_rate("1/second"), Timers(cast(Any, None), Loop())
    )
    slots, gate = keyed.of("a")
    keyed.resize(5)
    assert (slots.slots, gate.slots) == (5, 1)


def test_a_limiter_without_slots_counts_and_never_refuses() -> None:
    limiter = Limiter("open", None)
    assert all(take_slots((limiter,)) for _ in range(1000))
    assert (limiter.stats().slots, limiter.stats().taken) == (None, 1000)


def test_a_variable_sets_the_slots_of_a_limit_however_its_name_is_spelt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BGX_LIMITS__MAIL_OUT", "3")
    limits = Limits(Settings().limits)
    limits.named(Limit("Mail-Out", 8, key=lambda **_: None))
    assert limits.stats()["Mail-Out"].slots == 3
    assert limits.named("mail-out") is limits.named("MAIL_OUT")
