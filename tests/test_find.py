"""`bgx.get` and `bgx.find`: the live tasks, wherever they stand, and a bounded history."""

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest
from fastapi import BackgroundTasks as StockBackgroundTasks
from fastapi import FastAPI
from starlette.background import BackgroundTask
from starlette.requests import Request

from fastapi_bgx import BackgroundTasks, Bgx, Retry, Settings, Status, Task, Tasks, current_task
from fastapi_bgx.events import Event, TaskFailed
from fastapi_bgx.history import MOST_BYTES, MOST_FAILED
from fastapi_bgx.runners import nearest_runners
from tests import work
from tests.asgi import client_of
from tests.logs import logged, one
from tests.supervision import PATIENCE, serving, tasks_of, until

pytestmark = pytest.mark.anyio

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


async def good() -> str:
    await anyio.sleep(0)
    return "ran"


async def bad(_: object = None) -> None:
    raise ValueError("no")


def names(tasks: list[Task[Any]]) -> list[str]:
    return [task.name for task in tasks]


async def run(bgx: Bgx, *functions: Callable[..., Any]) -> list[Task[Any]]:
    """Tasks of one request, after its end."""
    tasks = await tasks_of(bgx)
    added = [tasks.add_task(function) for function in functions]
    await tasks()
    return added


# Live tasks.


async def test_live_tasks_are_found_wherever_they_stand() -> None:
    async with serving(max_concurrency=1) as bgx:
        release, lists = anyio.Event(), [await tasks_of(bgx) for _ in range(5)]
        late = Retry(wait_from_error=lambda _: 60.0)
        retrying = lists[0].using(retry=late, detached=True, name="retrying").add_task(bad)
        await lists[0]()
        await until(lambda: retrying.status == "retrying")
        for tasks, name, options in (
            (lists[1], "running", {"detached": True}),
            (lists[2], "waiting", {"detached": True}),
            (lists[2], "behind", {"detached": True}),
            (lists[3], "delayed", {"detached": True, "delay": 60}),
        ):
            tasks.using(name=name, **options).add_task(release.wait)
            await tasks()
            await anyio.wait_all_tasks_blocked()
        lists[4].using(name="uncalled").add_task(good)
        everywhere = ["uncalled", "delayed", "behind", "waiting", "running", "retrying"]
        assert names(bgx.find()) == everywhere, "the newest first"
        assert names(await anyio.to_thread.run_sync(bgx.find)) == everywhere
        for task in bgx.find():
            assert bgx.get(task.id) is task
        assert names(bgx.find(status="running")) == ["running"]
        assert names(bgx.find(status=Status.RETRYING)) == ["retrying"]
        assert len(bgx.find(status=["queued", Status.RUNNING])) == 5
        assert names(bgx.find(name="behind")) == ["behind"]
        release.set()
        await lists[4]()
        await until(lambda: names(bgx.find()) == ["delayed", "retrying"])
    assert names(bgx.find(status="cancelled")) == ["delayed", "retrying"]


@pytest.mark.parametrize("executor", ["async", "thread", "process"])
async def test_a_running_task_finds_itself(executor: Any) -> None:
    found: list[Task[Any] | None] = []
    async with serving() as bgx:
        for detached in False, True:

            def look() -> None:
                task = current_task()
                assert task is not None
                found.append(bgx.get(task.id))

            async def look_and_wait() -> None:
                look()
                await anyio.sleep(0)
                look()

            tasks = await tasks_of(bgx)
            view = tasks.using(detached=detached, executor=executor)
            if executor == "process":
                task: Task[Any] = view.add_task(work.pid)
            else:
                task = view.add_task(look_and_wait if executor == "async" else look)
            await tasks()
            assert bgx.get(task.id) in (task, None)
            await task.wait()
            assert set(found) <= {task}
            assert bool(found) == (executor != "process")
            found.clear()


@pytest.mark.parametrize("detached", [False, True])
def test_from_the_routes_of_other_requests(detached: bool, anyio_backend: str) -> None:
    app, bgx = FastAPI(), Bgx(Settings())
    bgx.install(app)
    added, looked, given = threading.Event(), threading.Event(), list[str]()

    @app.get("/add")
    def add(tasks: Tasks) -> None:
        given.append(tasks.using(detached=detached).add_task(good).id)
        added.set()
        assert looked.wait(PATIENCE)  # the route has not returned

    @app.get("/sync/{task_id}")
    def in_thread(task_id: str) -> str | None:
        task = bgx.get(task_id)
        return None if task is None else f"{task.status} {names(bgx.find())}"

    @app.get("/async/{task_id}")
    async def on_loop(task_id: str) -> str | None:
        return in_thread(task_id)

    with client_of(app, anyio_backend) as client:
        request = threading.Thread(target=client.get, args=("/add",))
        request.start()
        assert added.wait(PATIENCE)
        for kind in "sync", "async":
            assert client.get(f"/{kind}/{given[0]}").json() == "queued ['good']"
        looked.set()
        request.join(PATIENCE)
        assert client.get(f"/sync/{given[0]}").json() is None, "it succeeded, and is not kept"


async def test_a_task_in_a_list_that_was_made_by_hand() -> None:
    tasks = BackgroundTasks()
    task = tasks.add_task(good)
    runners = nearest_runners()
    assert runners.get(task.id) is task
    await tasks()
    assert runners.get(task.id) is None


async def test_what_stock_put_into_the_list_is_found_once_it_is_a_task() -> None:
    bgx = Bgx(Settings())
    tasks = await tasks_of(bgx)
    tasks.tasks.append(BackgroundTask(good))
    assert bgx.find() == []
    task = tasks.add_task(good)
    assert bgx.find() == [task]
    await tasks()


# The history.


async def test_what_did_not_succeed_is_kept() -> None:
    bgx = Bgx(Settings())
    failed, succeeded = await run(bgx, bad, good)
    tasks = await tasks_of(bgx)
    cancelled, dropped = tasks.add_task(good), tasks.add_task(good)
    assert cancelled.cancel()
    tasks.drop("enough")
    assert bgx.find() == [dropped, cancelled, failed]
    assert bgx.get(succeeded.id) is None
    assert bgx.get(failed.id) is failed
    assert bgx.find(status=["failed", "dropped"]) == [dropped, failed]
    assert bgx.find(name="bad") == [failed]
    with pytest.raises(ValueError, match='history_of="all"'):
        bgx.find(status="succeeded")


async def test_all_of_them_are_kept_if_the_settings_say_so() -> None:
    bgx = Bgx(Settings(history_of="all", history=3))
    added = await run(bgx, good, bad, good, lambda: "thread", good)
    assert bgx.find() == added[:1:-1]
    assert bgx.find(status="succeeded") == added[:1:-1]
    assert bgx.get(added[1].id) is None


async def test_none_is_kept_if_the_settings_say_so() -> None:
    bgx = Bgx(Settings(history=0, history_of="all"))
    (failed, succeeded) = await run(bgx, bad, good)
    assert bgx.find() == []
    assert bgx.get(failed.id) is bgx.get(succeeded.id) is None
    with pytest.raises(ValueError, match="history is 0"):
        bgx.find(status=["running", "failed"])
    assert bgx.find(status="running") == []
    assert failed.args == (), "nothing else is different"


async def test_who_is_told_of_the_end_finds_the_task() -> None:
    found: list[list[Task[Any]]] = []
    bgx = Bgx(Settings())

    class Looks:
        def hears(self, event: type[Event]) -> bool:
            return event is TaskFailed

        def changed(self) -> bool:
            return False

        def __call__(self, event: Event) -> None:
            found.append(bgx.find(status="failed"))

    bgx.listen(Looks())
    (failed,) = await run(bgx, bad)
    assert found == [[failed]]


def test_the_history_outlives_the_event_loops(anyio_backend: str) -> None:
    """A test client without `with` has a new one for each request."""
    app, bgx = FastAPI(), Bgx(Settings())
    bgx.install(app)

    @app.get("/")
    async def add(tasks: Tasks) -> str:
        return tasks.add_task(bad).id

    @app.get("/{task_id}")
    async def look(task_id: str) -> str | None:
        task = bgx.get(task_id)
        return None if task is None else task.status

    client = client_of(app, anyio_backend)
    ids = [client.get("/").json() for _ in range(3)]
    assert [client.get(f"/{each}").json() for each in ids] == ["failed"] * 3
    assert [task.id for task in bgx.find()] == ids[::-1]


async def test_live_tasks_of_several_loops_are_found(anyio_backend: str) -> None:
    bgx, found = Bgx(Settings()), list[str]()
    tasks = await tasks_of(bgx)
    here = tasks.add_task(good)

    def elsewhere() -> None:
        async def look() -> None:
            others = await tasks_of(bgx)
            others.using(name="there").add_task(good)
            found.extend(names(bgx.find()))
            await others()

        anyio.run(look, backend=anyio_backend)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    assert found == ["there", "good"]
    assert bgx.find() == [here]
    await tasks()


# What is kept of a task.


class Big:
    """Something whose life can be watched."""


@asyncio_only
@pytest.mark.parametrize("log_events", [{"task.succeeded"}, set[str]()])
async def test_arguments_are_let_go(log_events: set[Any]) -> None:
    bgx = Bgx(Settings(history_of="all", log_events=frozenset(log_events)))
    watched: list[weakref.ref[Big]] = []

    def argument() -> Big:
        big = Big()
        watched.append(weakref.ref(big))
        return big

    async def takes(*_: object, **__: object) -> None:
        await anyio.sleep(0)

    async def takes_at_once(*_: object, **__: object) -> None: ...

    tasks = await tasks_of(bgx)
    tasks.add_task(takes, argument(), by_name=argument())
    tasks.add_task(takes_at_once, argument(), by_name=argument())
    tasks.add_task(lambda *_: None, argument())
    tasks.add_task(takes, argument()).cancel()
    processed = tasks.using(executor="process").add_task(work.take, b"x" * 100_000)
    await tasks()
    assert processed.status == "succeeded"
    assert processed.payload == b""
    assert len(bgx.find()) == 5
    gc.collect()
    assert [each() for each in watched] == [None] * 6


async def test_the_arguments_are_there_as_long_as_somebody_may_ask() -> None:
    """The log tells them with the end, hooks look at them, and a thread may still run."""
    seen: list[Any] = []
    release = threading.Event()

    def late(value: str) -> None:
        release.wait(PATIENCE)

    with logged() as lines:
        bgx = Bgx(Settings(history_of="all", log_arguments=True))
        bgx.on_failure(lambda task, _: seen.append(task.args))
        tasks = await tasks_of(bgx)
        tasks.add_task(bad, "one")
        tasks.add_task(lambda value: value, "two")
        overran = tasks.using(timeout=0.01).add_task(late, "three")
        await tasks()
    assert seen == [("one",), ("three",)]
    assert "two" in str(one(lines, "task.succeeded")["arguments"])
    assert overran.args == ("three",)
    release.set()
    await until(lambda: not bgx.stats().overrunning)
    assert not overran.args


SMALL: list[Any] = [None, 1, "text", b"bytes", [1, 2], {"a": [1]}, (), {1}, Big()]
LARGE: list[Any] = [
    "x" * MOST_BYTES,
    ["x" * 2000] + ["y" * 2000] * 9 + [str(n) * 2000 for n in range(9)],
    {"rows": [{"id": str(number)} for number in range(1000)]},
    tuple(str(number) for number in range(1000)),
]


class OwnSize:
    def __sizeof__(self) -> int:
        raise ValueError


@asyncio_only
@pytest.mark.parametrize("value", [*SMALL, *LARGE, OwnSize()], ids=lambda v: type(v).__name__)
async def test_a_large_value_is_kept_only_as_long_as_somebody_else_keeps_the_task(
    value: Any,
) -> None:
    bgx = Bgx(Settings(history_of="all"))

    async def gives() -> Any:
        return value

    (task,) = await run(bgx, gives)
    task_id = task.id
    assert bgx.get(task_id) is task
    del task
    gc.collect()
    large = value in LARGE or isinstance(value, OwnSize)
    assert (bgx.get(task_id) is None) == large


@asyncio_only
async def test_a_value_that_leads_to_itself_is_looked_at_once() -> None:
    loop: list[Any] = []
    loop.append(loop)
    bgx = Bgx(Settings(history_of="all"))

    async def gives() -> Any:
        return loop

    task_id = (await run(bgx, gives))[0].id
    assert bgx.get(task_id) is not None


@asyncio_only
async def test_failed_tasks_are_kept_alive_up_to_a_number() -> None:
    bgx = Bgx(Settings(log_events=frozenset()))
    held = await run(bgx, bad)
    for _ in range(MOST_FAILED + 50):
        await run(bgx, bad)
    gc.collect()
    assert len(bgx.find(status="failed")) == MOST_FAILED + 1
    assert bgx.get(held[0].id) is held[0], "somebody holds it"


# Questions that cannot be answered.


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("faild", "'faild' is no status; did you mean 'failed'"),
        (["failed", "runing"], "'runing' is no status; did you mean 'running'"),
        ([3], "3 is no status; known: queued"),
        ("rejected", "add_task raised"),
    ],
)
def test_a_status_that_no_task_can_have_is_an_error(status: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bgx(Settings(history_of="all")).find(status=status)


def test_a_moment_without_a_time_zone_is_an_error() -> None:
    with pytest.raises(ValueError, match="time zone"):
        Bgx(Settings()).find(since=datetime(2026, 1, 1))


async def test_since_is_when_it_was_added() -> None:
    bgx = Bgx(Settings())
    start = datetime.now(UTC)
    first = (await run(bgx, bad))[0]
    await anyio.sleep(0.002)
    middle = datetime.now(timezone(timedelta(hours=5)))
    await anyio.sleep(0.002)
    second = (await run(bgx, bad))[0]
    assert bgx.find(since=start) == [second, first]
    assert bgx.find(since=middle) == [second]
    assert bgx.find(since=datetime.now(UTC) + timedelta(seconds=1)) == []
    assert bgx.find(since=datetime.min.replace(tzinfo=UTC)) == [second, first]


async def test_every_other_id_is_none() -> None:
    bgx, other = Bgx(Settings()), Bgx(Settings())
    (task,) = await run(bgx, bad)
    prefix, _, number = task.id.rpartition("-")
    assert other.get(task.id) is None
    for garbage in (
        "",
        "-",
        number,
        prefix,
        f"{prefix}-",
        f"{prefix}-0{number}",
        f"{prefix}-{number}-{number}",
        f"{prefix}--{number}",
        f"{prefix}- {number}",
        f"{prefix}-٣",
        f"{prefix}-²",
        f"{prefix}-" + "9" * 5000,
        f"{prefix}-999999",
        task.id + "\n",
        task.id.upper() + "x",
        "😀-1",
    ):
        assert bgx.get(garbage) is None, garbage
        assert not bgx.cancel(garbage)
    assert bgx.get(task.id) is task


# From threads, while tasks run.


class Hammer(threading.Thread):
    """Asks for the newest tasks, again and again."""

    def __init__(self, bgx: Bgx, newest: list[tuple[Task[Any], bool]]) -> None:
        super().__init__()
        self.bgx, self.newest = bgx, newest
        self.times, self.over = 0, False
        self.problems: list[str] = []

    def run(self) -> None:
        try:
            while not self.over:
                self.look()
                self.times += 1
        except Exception as error:
            self.problems.append(repr(error))
            self.times = sys.maxsize

    def look(self) -> None:
        for task, kept in self.newest[-3:]:
            if self.bgx.get(task.id) is not task and (kept or not task.done):
                self.problems.append(f"{task} was not found")
        self.bgx.find(status=["failed", "running"], name="bad", since=datetime.now(UTC))


@pytest.mark.parametrize("history_of", ["unsuccessful", "all"])
async def test_whoever_looks_from_a_thread_misses_nothing(history_of: Any) -> None:
    """A task that lives or is kept is found at any moment, wherever it goes meanwhile."""
    again = Retry(attempts=2, wait_from_error=lambda _: 0.0)
    async with serving(history_of=history_of, log_events=frozenset(), max_concurrency=3) as bgx:
        newest: list[tuple[Task[Any], bool]] = []
        hammers = [Hammer(bgx, newest) for _ in range(2)]
        for hammer in hammers:
            hammer.start()
        while min(hammer.times for hammer in hammers) < 50:
            tasks = await tasks_of(bgx)
            for detached in False, True:
                view = tasks.using(detached=detached)
                newest.append((view.add_task(bad), True))
                newest.append((view.add_task(good), history_of == "all"))
                newest.append((view.using(retry=again).add_task(bad), True))
            await tasks()
            del newest[:-10]
            await anyio.sleep(0)
        for hammer in hammers:
            hammer.over = True
            await anyio.to_thread.run_sync(hammer.join)
            assert not hammer.problems, hammer.problems[:3]


# What it costs to be found.


def lists_of(bgx: Bgx) -> int:
    return len(bgx.runners.current().entrance.lists)


@asyncio_only
async def test_a_list_that_is_gone_leaves_nothing() -> None:
    bgx = Bgx(Settings(log_events=frozenset()))
    for _ in range(10):
        tasks = await tasks_of(bgx)
        tasks.add_task(good)
        await tasks()
        assert lists_of(bgx) == 1
        del tasks
        assert lists_of(bgx) == 0


@asyncio_only
async def test_nor_does_one_in_a_cycle_that_is_freed_late() -> None:
    bgx = Bgx(Settings(log_events=frozenset()))
    gc.disable()
    try:
        for _ in range(100):
            tasks = cast(Any, await tasks_of(bgx))
            tasks.itself = tasks
            tasks.add_task(good)
            await tasks()
            del tasks
        assert lists_of(bgx) == 100
        young = await tasks_of(bgx)
        task = young.add_task(good)
        gc.collect()  # others are freed now: not the entry of a list that lives
        assert lists_of(bgx) == 1
        assert bgx.find() == [task]
        young.drop("enough")
    finally:
        gc.enable()


@asyncio_only
async def test_nor_does_one_that_was_made_by_hand() -> None:
    entrance = nearest_runners().current().entrance
    for _ in range(10):
        tasks = BackgroundTasks()
        tasks.add_task(good)
        tasks.add_task(good)
        await tasks()
        assert len(entrance.lists) == 1
        del tasks
        assert not entrance.lists


@asyncio_only
async def test_a_list_that_several_runners_served_leaves_nothing_with_any() -> None:
    bgx, other = Bgx(Settings()), Bgx(Settings())
    stock = StockBackgroundTasks()
    for each in bgx, other, bgx:
        await each(stock, Request({"type": "http"}))
    assert (lists_of(bgx), lists_of(other)) == (1, 0)
    del stock
    assert (lists_of(bgx), lists_of(other)) == (0, 0)
