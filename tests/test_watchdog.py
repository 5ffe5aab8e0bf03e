"""The watchdog: a task that blocks the event loop is named at that moment, and no other task is.

A task that is to block holds the loop until it was named: no time decides what these tests see.
"""

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
import structlog
from fastapi import BackgroundTasks as StockBackgroundTasks
from fastapi import FastAPI
from structlog.typing import EventDict

from fastapi_bgx import Bgx, Outcome, Settings, Task
from fastapi_bgx.backends import Backend, Observer
from fastapi_bgx.events import Event
from fastapi_bgx.watchdog import MOST_FRAMES, Lap, Sight, Watchdog
from tests.asgi import call, client_of, running
from tests.conftest import require
from tests.logs import Lines, logged, named, one
from tests.supervision import PATIENCE, serving, tasks_of, until

pytestmark = pytest.mark.anyio

AFTER = 0.02
SECRET = "4242 4242"


class Gate:
    """Holds whoever comes to it until the log tells of a task that blocks."""

    def __init__(self) -> None:
        self._told = threading.Event()

    def __call__(self, logger: Any, method: str, line: EventDict) -> EventDict:
        """See every line of the log."""
        if line["event"] == "task.blocked_loop" and not line["ended"]:
            self._told.set()
        return line

    def hold(self) -> None:
        """Block the thread until then."""
        assert self._told.wait(PATIENCE), "nobody was told"
        self._told.clear()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def lines(gate: Gate) -> Iterator[Lines]:
    with logged(gate) as lines:
        yield lines


@pytest.fixture
async def bgx(lines: Lines) -> AsyncIterator[Bgx]:
    async with serving(loop_block_after=AFTER) as bgx:
        yield bgx


def watchdogs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "bgx-watchdog"]


def told_of(lines: Lines) -> list[tuple[str, bool]]:
    """Who was named, and whether it was over."""
    return [(line["task"], line["ended"]) for line in named(lines, "task.blocked_loop")]


# Ways to block the loop. Each function holds it in `hold`, which it calls itself.


async def at_once(gate: Gate, card: str) -> None:
    gate.hold()


async def after_a_wait(gate: Gate, card: str) -> None:
    await anyio.sleep(0)
    await anyio.sleep(0.001)
    gate.hold()


async def deeper(gate: Gate, card: str) -> None:
    async def inside() -> None:
        await anyio.sleep(0.001)
        gate.hold()

    await inside()


async def in_a_child(gate: Gate, card: str) -> None:
    async def child() -> None:
        await anyio.sleep(0.001)
        gate.hold()

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0)
        group.start_soon(child)


def in_a_sync_function(gate: Gate, card: str) -> None:
    gate.hold()


def in_what_a_sync_function_returns(gate: Gate, card: str) -> Any:
    return after_a_wait(gate, card)


async def in_a_gathered_child(gate: Gate, card: str) -> None:
    async def child() -> None:
        await asyncio.sleep(0)
        gate.hold()

    await asyncio.gather(asyncio.sleep(0), child())


async def assert_named(bgx: Bgx, lines: Lines, gate: Gate, func: Any, **options: Any) -> None:
    tasks = await tasks_of(bgx)
    with structlog.contextvars.bound_contextvars(request="a7"):
        task = tasks.using(executor="async", **options).add_task(func, gate, SECRET)
    await tasks()
    await task.wait()
    await until(lambda: len(named(lines, "task.blocked_loop")) == 2)
    during, after = named(lines, "task.blocked_loop")
    assert during["task_id"] == after["task_id"] == task.id
    assert during["log_level"] == "warning"
    assert during["request"] == after["request"] == "a7"
    assert (during["ended"], after["ended"]) == (False, True)
    assert AFTER <= during["blocked_s"] <= after["blocked_s"]
    assert during["stack"] == after["stack"]
    functions = [row.split(" in ")[1] for row in during["stack"].splitlines() if ", in " in row]
    assert "hold" in functions
    assert functions[0] not in {"call_async", "resume", "drive", "awaiting", "call_function"}
    assert SECRET not in str(during)
    assert during["stack"].index("gate.hold()") < during["stack"].index("self._told.wait(")


@pytest.mark.parametrize("options", [{}, {"detached": True}], ids=["inline", "detached"])
@pytest.mark.parametrize(
    "blocks",
    [
        at_once,
        after_a_wait,
        deeper,
        in_a_child,
        in_a_sync_function,
        in_what_a_sync_function_returns,
    ],
)
async def test_a_task_that_blocks_the_loop_is_named_while_it_does_so(
    bgx: Bgx, lines: Lines, gate: Gate, blocks: Callable[..., Any], options: Any
) -> None:
    await assert_named(bgx, lines, gate, blocks, **options)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_child_of_asyncio_is_its_tasks(bgx: Bgx, lines: Lines, gate: Gate) -> None:
    await assert_named(bgx, lines, gate, in_a_gathered_child)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
@pytest.mark.parametrize("blocks", [at_once, after_a_wait, in_a_child, in_a_gathered_child])
async def test_uvloop(bgx: Bgx, lines: Lines, gate: Gate, blocks: Callable[..., Any]) -> None:
    await assert_named(bgx, lines, gate, blocks)


async def test_a_failure_hook_that_blocks_is_its_tasks(bgx: Bgx, lines: Lines, gate: Gate) -> None:
    @bgx.on_failure
    async def hook(task: Task[Any], outcome: Outcome[Any]) -> None:
        gate.hold()

    async def fail() -> None:
        raise LookupError

    tasks = await tasks_of(bgx)
    task = tasks.add_task(fail)
    await tasks()
    await until(lambda: len(told_of(lines)) == 2)
    assert [line["task_id"] for line in named(lines, "task.blocked_loop")] == [task.id] * 2
    assert "in hook" in named(lines, "task.blocked_loop")[0]["stack"].splitlines()[0]


async def test_a_task_that_blocks_twice_is_named_twice(bgx: Bgx, lines: Lines, gate: Gate) -> None:
    async def twice() -> None:
        gate.hold()
        await until(lambda: len(told_of(lines)) == 2)
        gate.hold()

    tasks = await tasks_of(bgx)
    tasks.add_task(twice)
    await tasks()
    await until(lambda: len(told_of(lines)) == 4)
    assert told_of(lines) == [("twice", False), ("twice", True)] * 2


async def test_the_line_is_logged_in_the_context_of_the_task(
    bgx: Bgx, lines: Lines, gate: Gate
) -> None:
    structlog.contextvars.bind_contextvars(request_id="r-1")
    tasks = await tasks_of(bgx)
    tasks.add_task(at_once, gate, SECRET)
    structlog.contextvars.clear_contextvars()
    await tasks()
    assert named(lines, "task.blocked_loop")[0]["request_id"] == "r-1"


# What is called through C is named as well.


async def test_a_task_that_is_no_python_function_has_no_stack(bgx: Bgx, lines: Lines) -> None:
    tasks = await tasks_of(bgx)
    tasks.using(executor="async").add_task(time.sleep, 10 * AFTER)
    await tasks()
    await until(lambda: len(told_of(lines)) == 2)
    assert told_of(lines) == [("sleep", False), ("sleep", True)]
    assert named(lines, "task.blocked_loop")[0]["stack"] == ""


async def test_code_that_keeps_the_interpreter_is_told_of_afterwards(
    bgx: Bgx, lines: Lines
) -> None:
    require(sys.platform == "linux", "no clock tells how long another thread has worked")

    async def count() -> None:
        sum(range(10_000_000))

    # Other threads may wait for the interpreter, too, and the task may end before it is seen.
    with anyio.fail_after(PATIENCE):
        while len(told_of(lines)) < 2:
            tasks = await tasks_of(bgx)
            tasks.add_task(count)
            await tasks()
    assert told_of(lines)[:2] == [("count", False), ("count", True)]
    assert "sum(range" in named(lines, "task.blocked_loop")[0]["stack"]


# Nobody else is blamed.


async def test_what_is_no_task_is_not_named_and_tasks_that_wait_are_not_either(
    bgx: Bgx, lines: Lines, gate: Gate
) -> None:
    may_end = anyio.Event()
    tasks = await tasks_of(bgx)
    for _ in range(20):
        tasks.using(detached=True, concurrent=True).add_task(may_end.wait)
    await tasks()
    await anyio.sleep(0.001)
    time.sleep(10 * AFTER)  # as an endpoint does that blocks
    await anyio.sleep(0.001)
    more = await tasks_of(bgx)
    more.add_task(at_once, gate, SECRET)
    await more()
    may_end.set()
    await until(lambda: len(told_of(lines)) == 2)
    assert told_of(lines) == [("at_once", False), ("at_once", True)]


async def test_the_tasks_of_another_bgx_are_not_named(bgx: Bgx, lines: Lines, gate: Gate) -> None:
    other = Bgx(Settings())
    other.start()
    tasks = await tasks_of(other)
    tasks.using(executor="async").add_task(time.sleep, 10 * AFTER)
    await tasks()
    await assert_named(bgx, lines, gate, at_once)
    await other.drain()


async def test_short_blocks_do_not_add_up(lines: Lines) -> None:
    """Four tasks of one request, with nothing else between them."""
    async with serving(loop_block_after=0.4) as bgx:
        tasks = await tasks_of(bgx)
        for _ in range(4):
            tasks.using(executor="async").add_task(time.sleep, 0.2)
        await tasks()
    assert told_of(lines) == []


@pytest.mark.parametrize(
    ("lap", "late", "seen", "held"),
    [
        (Lap(meant=0.1, elapsed=0.101, worked=0.0), False, 0.101, 0.0),
        (Lap(meant=0.1, elapsed=0.15, worked=0.15), False, 0.15, 0.0),
        # The process was stopped, the machine slept, or another thread kept the interpreter.
        (Lap(meant=0.1, elapsed=60.0, worked=0.01), True, 0.1, 0.0),
        (Lap(meant=0.1, elapsed=60.0, worked=0.1), True, 0.1, 0.0),
        # The loop's own thread did, for a second or for most of it.
        (Lap(meant=0.1, elapsed=1.1, worked=1.1), True, 1.1, 1.0),
        (Lap(meant=0.1, elapsed=1.1, worked=0.6), True, 0.6, 0.5),
        # The two clocks need not agree to the last digit.
        (Lap(meant=0.1, elapsed=1.1, worked=1.2), True, 1.1, 1.1),
    ],
)
def test_a_watchdog_that_wakes_late_counts_only_what_the_loop_worked(
    lap: Lap, late: bool, seen: float, held: float
) -> None:
    assert bool(lap.late) is late
    assert lap.seen == pytest.approx(seen)
    assert lap.held == pytest.approx(held)


def test_the_stack_is_not_endless() -> None:
    task: Any = None
    places = [("file.py", line, f"f{line}") for line in range(1000)]
    stack = Sight(task, places).stack()
    assert stack.count("file.py") == MOST_FRAMES
    assert stack.splitlines()[-1] == '  File "file.py", line 0, in f0'


# It leaves nothing behind.


async def test_it_keeps_nothing_of_a_task_alive(bgx: Bgx, lines: Lines, gate: Gate) -> None:
    class Card:
        """Something that can be waited for."""

    async def pay(card: Card) -> None:
        gate.hold()

    async def add() -> weakref.ref[Card]:
        card = Card()
        tasks = await tasks_of(bgx)
        tasks.add_task(pay, card)
        await tasks()
        return weakref.ref(card)

    gc.collect()
    gc.disable()
    try:
        card = await add()
        await until(lambda: len(told_of(lines)) == 2)
        await until(lambda: card() is None)
        assert not gc.isenabled()  # as the application wants it
    finally:
        gc.enable()


async def test_a_thread_lives_from_the_start_of_the_lifespan_to_the_end_of_the_drain() -> None:
    app, bgx = FastAPI(), Bgx(Settings(loop_block_after=AFTER))
    bgx.install(app)

    @app.get("/")
    async def route() -> int:
        return len(watchdogs())

    for _ in range(2):
        assert not watchdogs()
        async with running(app):
            bgx.start()  # a second time
            assert len(watchdogs()) == 1
            assert (await call(app))[1]["body"] == b"1"
        assert not watchdogs()


def test_there_is_none_without_a_lifespan(anyio_backend: str) -> None:
    app, seen = FastAPI(), list[int]()
    Bgx(Settings(loop_block_after=AFTER)).install(app)

    @app.get("/")
    async def route(tasks: StockBackgroundTasks) -> None:
        tasks.add_task(lambda: seen.append(len(watchdogs())))

    client = client_of(app, anyio_backend)
    client.get("/")
    client.get("/")
    assert seen == [0, 0]


async def test_there_is_none_unless_it_is_asked_for() -> None:
    async with serving():
        assert not watchdogs()


def test_it_ends_with_a_loop_that_nobody_drained(anyio_backend: str) -> None:
    async def main() -> None:
        Bgx(Settings(loop_block_after=AFTER)).start()

    with logged():
        anyio.run(main, backend=anyio_backend)
        for thread in watchdogs():
            thread.join(PATIENCE)
            assert not thread.is_alive()


async def test_a_task_may_drain_and_is_not_blamed_for_it(lines: Lines) -> None:
    async with serving(loop_block_after=AFTER) as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.add_task(bgx.drain)
        await tasks()
        assert not watchdogs()
    assert task.error is None
    assert told_of(lines) == []
    assert gc.isenabled()


async def test_a_drain_tells_the_end_of_a_block_first(lines: Lines, gate: Gate) -> None:
    async with serving(loop_block_after=AFTER) as bgx:
        tasks = await tasks_of(bgx)

        async def block_and_drain() -> None:
            gate.hold()
            await bgx.drain(grace=0)

        tasks.add_task(block_and_drain)
        await tasks()
    events = [line["event"] for line in lines]
    assert told_of(lines) == [("block_and_drain", False), ("block_and_drain", True)]
    assert events.index("bgx.drained") > max(
        at for at, event in enumerate(events) if event == "task.blocked_loop"
    )


# What may go wrong.


class Blind:
    """An observer."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def running(self) -> tuple[None, None]:
        if self.error is not None:
            raise self.error
        return None, None

    def end(self) -> None: ...


class DeadLoop:
    """The backend of a loop that ends before it answers."""

    def __init__(self, blind: Blind) -> None:
        self._blind = blind
        self._asked = False

    def call_soon_threadsafe(self, callback: Callable[[], Any]) -> None:
        if self._asked:
            raise RuntimeError("the loop has ended")
        self._asked = True

    def observer(self) -> Observer:
        return self._blind

    def ended(self) -> bool:
        return True


class Place:
    def __init__(self, blind: Blind) -> None:
        dead: Any = DeadLoop(blind)
        self.backend: Backend = dead

    def publish(self, event: Event) -> None: ...


def test_it_ends_when_the_loop_does_before_it_answers() -> None:
    watchdog = Watchdog(Place(Blind()), AFTER)
    watchdog.start()
    for thread in watchdogs():
        thread.join(PATIENCE)
    assert not watchdogs()
    watchdog.stop()


def test_an_error_of_its_own_is_logged_and_ends_it_alone() -> None:
    with logged() as lines:
        watchdog = Watchdog(Place(Blind(LookupError("lost"))), AFTER)
        watchdog.start()
        for thread in watchdogs():
            thread.join(PATIENCE)
        watchdog.stop()
    assert one(lines, "bgx.watchdog_failed")["log_level"] == "error"


async def test_it_does_not_look_where_looking_may_crash(
    monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    async with serving(loop_block_after=AFTER):
        assert not watchdogs()
    assert "GIL" in one(lines, "bgx.no_watchdog")["reason"]


async def test_an_application_starts_without_it_when_there_are_no_more_threads(
    monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        bgx = Bgx(Settings(loop_block_after=AFTER))
        bgx.start()
    await bgx.drain()
    assert one(lines, "bgx.no_watchdog")["reason"] == "can't start new thread"
