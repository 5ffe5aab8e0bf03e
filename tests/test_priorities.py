"""Who waits for one limiter: the highest priority first, and nobody starves."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fastapi_bgx import task_options
from fastapi_bgx.limits import Admission, Limiter, release_slots, take_slots
from fastapi_bgx.queues import FAIR_SHARE, Ranked
from tests.supervision import PATIENCE, serving, tasks_of, until

# Of tasks.


@pytest.mark.anyio
@pytest.mark.parametrize("detached", [False, True])
async def test_of_the_tasks_that_wait_the_highest_priority_starts_first(detached: bool) -> None:
    started: list[str] = []
    release = anyio.Event()

    async def work(name: str) -> None:
        started.append(name)
        await release.wait()

    async with serving(limits={"smtp": 1}) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(concurrent=True, detached=detached, limit="smtp")
        added = [view.add_task(work, "first")]
        for name, priority in ("low", -1), ("a", 0), ("b", 0), ("high", 5), ("higher", 10):
            added.append(view.using(priority=priority).add_task(work, name))
        async with anyio.create_task_group() as group:
            group.start_soon(tasks)
            await until(lambda: bgx.stats().limiters["smtp"].waiting == 5)
            release.set()
        for task in added:
            await task.wait()
    assert started == ["first", "higher", "high", "a", "b", "low"]


@pytest.mark.anyio
async def test_tasks_of_other_requests_are_overtaken_too() -> None:
    started: list[str] = []

    async def work(name: str) -> None:
        started.append(name)
        await anyio.sleep(0)

    async def request(name: str, priority: int) -> None:
        tasks = await tasks_of(bgx)
        tasks.using(priority=priority).add_task(work, name)
        await tasks()

    async with serving(max_concurrency=1) as bgx:
        tasks = await tasks_of(bgx)
        release = anyio.Event()
        holder = tasks.using(detached=True).add_task(release.wait)
        await tasks()
        await until(lambda: holder.status == "running")
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(request, f"low {number}", 0)
            await until(lambda: bgx.stats().waiting == 3)
            group.start_soon(request, "urgent", 1)
            await until(lambda: bgx.stats().waiting == 4)
            release.set()
    assert started[0] == "urgent"
    assert len(started) == 4


@pytest.mark.anyio
async def test_a_priority_comes_from_the_decorator_and_operations_can_change_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @task_options(priority=3)
    async def report() -> None: ...

    async def mail() -> None: ...

    monkeypatch.setenv("BGX_TASKS__MAIL__PRIORITY", "-2")
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        added = [tasks.add_task(report), tasks.add_task(mail), tasks.add_task(anyio.sleep, 0)]
        added.append(tasks.using(priority=0).add_task(report))
        await tasks()
    assert [task.plan.priority for task in added] == [3, -2, 0, 0]


@pytest.mark.anyio
async def test_a_low_task_starts_though_there_is_always_a_high_one() -> None:
    stop = anyio.Event()

    async def work() -> None:
        await anyio.sleep(0)

    async def keep_busy() -> None:
        while not stop.is_set():
            tasks = await tasks_of(bgx)
            for _ in range(10):
                tasks.using(concurrent=True, limit="smtp", priority=100).add_task(work)
            await tasks()

    async with serving(limits={"smtp": 1}) as bgx, anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(keep_busy)
        await until(lambda: bgx.stats().limiters["smtp"].waiting > 10)
        tasks = await tasks_of(bgx)
        low = tasks.using(detached=True, limit="smtp", priority=-100).add_task(work)
        await tasks()
        with anyio.fail_after(PATIENCE):
            assert (await low.wait()).status == "succeeded"
        assert bgx.stats().limiters["smtp"].waiting, "the others were there all the time"
        stop.set()


# Of places.


def wait(limiter: Limiter, granted: list[Any], name: Any, priority: int = 0) -> Admission:
    place = Admission((limiter,), lambda: granted.append(name), priority)
    place.start()
    return place


def busy(slots: int = 1) -> Limiter:
    limiter = Limiter("busy", slots)
    for _ in range(slots):
        assert take_slots((limiter,))
    return limiter


def handed_out(limiter: Limiter, number: int) -> None:
    for _ in range(number):
        release_slots((limiter,))


def test_of_every_so_many_slots_one_goes_to_who_has_waited_longest() -> None:
    limiter, granted = busy(), list[Any]()
    for number in range(3):
        wait(limiter, granted, f"low {number}")
    for number in range(100):
        wait(limiter, granted, number, priority=1)
    handed_out(limiter, 103)
    turns = [position for position, name in enumerate(granted, 1) if str(name).startswith("low")]
    assert turns == [FAIR_SHARE, 2 * FAIR_SHARE, 3 * FAIR_SHARE]
    assert [name for name in granted if type(name) is int] == list(range(100))


def test_nobody_who_waited_longest_is_owed_a_slot() -> None:
    """The count of those who were overtaken begins anew when the oldest had its turn."""
    limiter, granted = busy(), list[Any]()
    for _ in range(5):
        for number in range(FAIR_SHARE):
            wait(limiter, granted, ("high", number), priority=1)
        wait(limiter, granted, "low")
    handed_out(limiter, FAIR_SHARE)
    assert granted == [("high", number) for number in range(FAIR_SHARE)]


def queue_of(limiter: Limiter) -> type:
    return type(limiter._queue)


def test_without_priorities_a_queue_is_a_deque() -> None:
    limiter, granted = busy(), list[Any]()
    wait(limiter, granted, 1)
    wait(limiter, granted, 2)
    assert queue_of(limiter) is deque
    wait(limiter, granted, 3, priority=1)
    assert queue_of(limiter) is Ranked
    handed_out(limiter, 3)
    wait(limiter, granted, 4)
    assert queue_of(limiter) is deque, "and it is one again"
    handed_out(limiter, 1)
    assert granted == [3, 1, 2, 4]


def test_who_got_its_turn_early_is_not_called_again_while_it_waits_elsewhere() -> None:
    first, second, granted = busy(), busy(), list[Any]()
    wait(first, granted, "low")
    both = Admission((first, second), lambda: granted.append("both"), 1)
    both.start()
    handed_out(first, 1)
    assert both.waits, "for the second limiter now, and still in the other order of the first"
    wait(first, granted, "later")
    handed_out(first, 2)
    assert granted == ["low", "later"]
    handed_out(second, 1)
    assert granted == ["low", "later", "both"]


def test_those_who_gave_up_and_those_who_were_granted_leave_nothing_behind() -> None:
    limiter, granted = busy(), list[Any]()
    wait(limiter, granted, "stays", priority=-1)
    for number in range(10_000):
        wait(limiter, granted, number, priority=number % 3).abandon()
        assert len(limiter._queue) < 100
    for number in range(10_000):
        wait(limiter, granted, number, priority=1)
        handed_out(limiter, 1)
        if number % FAIR_SHARE == 0:
            wait(limiter, granted, "low", priority=-1)
    assert len(limiter._queue) <= 2 * limiter.waiting + 70


def test_a_hundred_thousand_places_with_priorities_of_their_own_are_cheap() -> None:
    limiter, granted = busy(), list[Any]()
    wait(limiter, granted, "plain")
    started = time.perf_counter()
    places = [wait(limiter, granted, number, priority=number) for number in range(100_000)]
    for place in places[::2]:
        place.abandon()
    handed_out(limiter, 50_001)
    assert len(granted) == 50_001
    assert time.perf_counter() - started < 10  # 0.9 s here


class Model:
    """A list of those who wait, each with its priority, and who is next."""

    def __init__(self) -> None:
        self.queue: list[tuple[int, int]] = []  # priority and number
        self.overtaken = 0

    def next(self) -> int:
        oldest = self.queue[0]
        first = max(self.queue, key=lambda each: (each[0], -each[1]))
        if first != oldest and self.overtaken < FAIR_SHARE - 1:
            self.overtaken += 1
        else:
            first, self.overtaken = oldest, 0
        self.queue.remove(first)
        return first[1]


class Queueing(RuleBasedStateMachine):
    """Places come, give up and are granted, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.limiter = busy()
        self.model = Model()
        self.granted: list[Any] = []
        self.expected: list[Any] = []
        self.places: dict[int, Admission] = {}

    @rule(priorities=st.lists(st.sampled_from([0, 0, 1, -1, 7]), min_size=1, max_size=30))
    def arrive(self, priorities: list[int]) -> None:
        for priority in priorities:
            number = len(self.places)
            if not self.limiter.waiting and not priority:
                self.model.overtaken = 0  # a plain queue again
            self.places[number] = wait(self.limiter, self.granted, number, priority)
            self.model.queue.append((priority, number))

    @rule(choices=st.lists(st.integers(0, 10_000), max_size=20))
    def give_up(self, choices: list[int]) -> None:
        for choice in choices:
            if self.model.queue:
                _, number = self.model.queue.pop(choice % len(self.model.queue))
                self.places[number].abandon()

    @rule(times=st.integers(1, 20))
    def release(self, times: int) -> None:
        for _ in range(min(times, len(self.model.queue))):
            release_slots((self.limiter,))
            self.expected.append(self.model.next())

    @invariant()
    def all_agree(self) -> None:
        assert self.granted == self.expected
        assert self.limiter.waiting == len(self.model.queue)
        assert set(self.waiting()) == {number for _, number in self.model.queue}

    def waiting(self) -> Iterator[int]:
        return (number for number, place in self.places.items() if place.waits)


Queueing.TestCase.settings = hypothesis_settings(
    max_examples=100, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
TestQueueing = Queueing.TestCase
