"""`@bgx.on_failure`: who is called, when, with what; and a hook that fails hurts nobody."""

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest
import trio
from fastapi import FastAPI, HTTPException

from fastapi_bgx import BackgroundTasks, Bgx, Limit, Outcome, Settings, Status, Task, Tasks
from fastapi_bgx.listeners import hooks
from fastapi_bgx.threads import Threads
from tests.asgi import call, running
from tests.logs import Lines, logged, named, one
from tests.supervision import until

pytestmark = pytest.mark.anyio

Told = list[tuple[Task[Any], Outcome[Any]]]


@pytest.fixture
def bgx() -> Bgx:
    return Bgx(Settings())


@pytest.fixture
def told(bgx: Bgx) -> Told:
    """What a hook of the `bgx` was given."""
    told: Told = []

    @bgx.on_failure
    async def tell(task: Task[Any], outcome: Outcome[Any]) -> None:
        told.append((task, outcome))

    return told


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as lines:
        yield lines


def made(bgx: Bgx, add: Callable[[BackgroundTasks], object]) -> FastAPI:
    """An application with one route, which calls `add`."""
    app = FastAPI()
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        add(tasks)

    return app


def add_failing(tasks: BackgroundTasks) -> None:
    tasks.add_task(fail)


boom = ValueError("boom")


async def fail() -> None:
    raise boom


async def quick() -> None: ...


def fail_there() -> None:
    raise ValueError("there")


# Who is called for what.


async def test_a_hook_is_given_the_task_and_its_outcome(bgx: Bgx, told: Told) -> None:
    await call(made(bgx, add_failing))
    ((task, outcome),) = told
    assert (task.name, task.status) == ("fail", Status.FAILED)
    assert outcome is task.outcome
    assert outcome.error is boom


async def test_a_hook_is_told_of_a_timeout(bgx: Bgx, told: Told) -> None:
    await call(made(bgx, lambda tasks: tasks.using(timeout=0.001).add_task(anyio.sleep, 10)))
    ((_, outcome),) = told
    assert outcome.status is Status.TIMED_OUT
    assert isinstance(outcome.error, TimeoutError)


async def test_a_hook_is_told_of_a_timeout_while_the_thread_still_runs(
    bgx: Bgx, told: Told
) -> None:
    gate = threading.Event()
    await call(made(bgx, lambda tasks: tasks.using(timeout=0.001).add_task(gate.wait, 10)))
    assert [outcome.status for _, outcome in told] == [Status.TIMED_OUT]
    gate.set()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # a worker takes a second to start
async def test_a_hook_is_told_of_what_failed_in_a_thread_and_in_a_process(
    bgx: Bgx, told: Told
) -> None:
    def add(tasks: BackgroundTasks) -> None:
        tasks.add_task(fail_there)
        tasks.using(executor="process").add_task(fail_there)

    await call(made(bgx, add))
    assert [(type(o.error), str(o.error)) for _, o in told] == [(ValueError, "there")] * 2


async def test_a_hook_is_not_told_of_success(bgx: Bgx, told: Told) -> None:
    await call(made(bgx, lambda tasks: tasks.add_task(quick)))
    assert told == []


async def test_a_hook_is_not_told_of_what_did_not_run(bgx: Bgx, told: Told, lines: Lines) -> None:
    def add(tasks: BackgroundTasks) -> None:
        view = tasks.using(detached=True, concurrent=True, limit=Limit("one", 1))
        view.add_task(anyio.sleep, 10)  # cancelled
        view.add_task(quick)  # cancelled before it started
        view.using(queue_timeout=0.001).add_task(quick)  # expired

    app = made(bgx, add)

    @app.get("/failed")
    async def failed(tasks: Tasks) -> None:
        tasks.add_task(quick)
        raise HTTPException(500)

    async with running(app):
        await call(app)
        await call(app, "/failed")
        while not named(lines, "task.expired"):
            await anyio.sleep(0.001)
        await bgx.drain(grace=0)
    assert len(named(lines, "task.cancelled")) == 2
    assert len(named(lines, "task.dropped")) == 1
    assert told == []


async def test_hooks_are_called_in_the_order_added(bgx: Bgx) -> None:
    called: list[int] = []
    bgx.on_failure(lambda task, outcome: called.append(1))

    @bgx.on_failure
    async def second(task: Task[Any], outcome: Outcome[Any]) -> None:
        called.append(2)

    bgx.on_failure(lambda task, outcome: called.append(3))
    await call(made(bgx, add_failing))
    assert called == [1, 2, 3]


async def test_a_hook_is_called_for_each_task(bgx: Bgx, told: Told) -> None:
    def add(tasks: BackgroundTasks) -> None:
        for view in (tasks.using(), tasks.using(concurrent=True), tasks.using(detached=True)):
            view.add_task(fail)
            view.add_task(quick)

    app = made(bgx, add)
    async with running(app):
        await call(app)
    assert len({task.id for task, _ in told}) == len(told) == 3


async def test_a_hook_may_be_added_late(bgx: Bgx) -> None:
    app = made(bgx, add_failing)
    called: list[str] = []
    async with running(app):
        await call(app)
        bgx.on_failure(lambda task, outcome: called.append(task.name))
        await call(app)
    assert called == ["fail"]


async def test_a_hook_belongs_to_its_bgx(bgx: Bgx, told: Told) -> None:
    await call(made(Bgx(Settings()), add_failing))
    assert told == []


def test_the_decorator_gives_the_function_back(bgx: Bgx) -> None:
    def hook(task: Task[Any], outcome: Outcome[Any]) -> None: ...

    assert bgx.on_failure(hook) is hook


async def test_a_hook_is_called_before_an_error_is_raised(told: Told) -> None:
    bgx = Bgx(Settings(on_error="raise"))
    called: list[BaseException | None] = []
    bgx.on_failure(lambda task, outcome: called.append(outcome.error))
    with pytest.raises(ValueError, match="boom"):
        await call(made(bgx, add_failing))
    assert called == [boom]


# When and where.


async def test_a_request_waits_for_the_hooks_of_its_tasks(bgx: Bgx) -> None:
    ended: list[str] = []

    @bgx.on_failure
    async def slow(task: Task[Any], outcome: Outcome[Any]) -> None:
        await anyio.sleep(0.01)
        ended.append("hook")

    def add(tasks: BackgroundTasks) -> None:
        tasks.add_task(fail)
        tasks.add_task(ended.append, "next task")

    await call(made(bgx, add))
    assert ended == ["hook", "next task"]


async def test_a_shutdown_waits_for_the_hooks(bgx: Bgx) -> None:
    ended: list[str] = []

    @bgx.on_failure
    async def slow(task: Task[Any], outcome: Outcome[Any]) -> None:
        await anyio.sleep(0.01)
        ended.append("hook")

    app = made(bgx, lambda tasks: tasks.using(detached=True).add_task(fail))
    async with running(app):
        await call(app)
    assert ended == ["hook"]


async def test_a_sync_hook_runs_in_a_thread_and_an_async_one_on_the_loop(bgx: Bgx) -> None:
    where: list[threading.Thread] = []

    @bgx.on_failure
    def sync_hook(task: Task[Any], outcome: Outcome[Any]) -> None:
        where.append(threading.current_thread())

    @bgx.on_failure
    async def async_hook(task: Task[Any], outcome: Outcome[Any]) -> None:
        where.append(threading.current_thread())

    await call(made(bgx, add_failing))
    assert where[0].name.startswith("bgx-thread-")
    assert where[1] is threading.current_thread()


async def test_a_sync_hook_does_not_block_the_loop(bgx: Bgx) -> None:
    gate = threading.Event()
    bgx.on_failure(lambda task, outcome: gate.wait(10))

    async with anyio.create_task_group() as group:
        group.start_soon(call, made(bgx, add_failing))
        await anyio.sleep(0.01)
        gate.set()  # only a loop that goes on gets here


class Hook:
    def __init__(self) -> None:
        self.called: list[str] = []

    async def __call__(self, task: Task[Any], outcome: Outcome[Any]) -> None:
        await anyio.sleep(0)
        self.called.append(task.name)


async def test_whatever_a_hook_returns_is_awaited_if_it_can_be(bgx: Bgx) -> None:
    hook = Hook()
    bgx.on_failure(hook)
    bgx.on_failure(lambda task, outcome: hook(task, outcome))
    bgx.on_failure(partial(Hook.__call__, hook))
    await call(made(bgx, add_failing))
    assert hook.called == ["fail"] * 3


# A hook that fails.


def exit_process(task: Task[Any], outcome: Outcome[Any]) -> None:
    sys.exit(3)


def raise_value(task: Task[Any], outcome: Outcome[Any]) -> None:
    raise ValueError("the hook itself")


async def raise_later(task: Task[Any], outcome: Outcome[Any]) -> None:
    await anyio.sleep(0)
    raise ValueError("the hook itself")


async def exit_later(task: Task[Any], outcome: Outcome[Any]) -> None:
    await anyio.sleep(0)
    sys.exit(3)


async def leak_a_cancellation(task: Task[Any], outcome: Outcome[Any]) -> None:
    raise asyncio.CancelledError


async def raise_group(task: Task[Any], outcome: Outcome[Any]) -> None:
    raise BaseExceptionGroup("both", [SystemExit(3), ValueError("x")])


def too_few_parameters(task: Task[Any]) -> None: ...


WRONG: list[Any] = [
    exit_process,
    raise_value,
    raise_later,
    exit_later,
    leak_a_cancellation,
    raise_group,
    too_few_parameters,
]


@pytest.mark.parametrize("hook", WRONG, ids=lambda hook: hook.__name__)
@pytest.mark.parametrize("options", [{}, {"detached": True}, {"concurrent": True}])
async def test_a_hook_that_fails_is_logged_and_hurts_nobody(
    hook: Any, options: Any, lines: Lines
) -> None:
    bgx = Bgx(Settings())
    bgx.on_failure(hook)
    told: Told = []
    bgx.on_failure(lambda task, outcome: told.append((task, outcome)))

    def add(tasks: BackgroundTasks) -> None:
        tasks.using(**options).add_task(fail)
        tasks.using(**options).add_task(quick)

    app = made(bgx, add)
    async with running(app):
        for _ in range(2):
            messages = await call(app)
            assert messages[0]["status"] == 200
    assert len(named(lines, "task.succeeded")) == 2
    assert len(told) == 2
    failed = named(lines, "bgx.hook_failed")
    assert len(failed) == 2
    assert {line["task_id"] for line in failed} == {task.id for task, _ in told}
    assert failed[0]["log_level"] == "error"
    assert failed[0]["hook"] == hook.__name__
    assert failed[0]["task"] == "fail"
    assert isinstance(failed[0]["exc_info"], BaseException)


async def test_a_hook_without_a_name_is_logged_without_what_it_holds(
    bgx: Bgx, lines: Lines
) -> None:
    wrong: Any = raise_value
    bgx.on_failure(partial(wrong, address="secret"))
    await call(made(bgx, add_failing))
    assert one(lines, "bgx.hook_failed")["hook"] == "partial"
    assert "secret" not in str(lines)


async def hang(task: Task[Any], outcome: Outcome[Any]) -> None:
    await anyio.sleep_forever()


@pytest.mark.parametrize("kind", ["sync", "async", "awaitable"])
async def test_a_hook_that_hangs_is_left_behind(
    bgx: Bgx, lines: Lines, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "HOOK_SECONDS", 0.01)
    gate = threading.Event()
    hanging: dict[str, Any] = {
        "sync": lambda task, outcome: gate.wait(10),
        "async": hang,
        "awaitable": lambda task, outcome: hang(task, outcome),
    }
    bgx.on_failure(hanging[kind])
    called: list[str] = []
    bgx.on_failure(lambda task, outcome: called.append(task.name))
    with anyio.fail_after(5):
        messages = await call(made(bgx, add_failing))
    gate.set()
    assert messages[0]["status"] == 200
    assert isinstance(one(lines, "bgx.hook_failed")["exc_info"], TimeoutError)
    assert called == ["fail"]


async def test_what_a_hook_returns_too_late_is_not_awaited(
    bgx: Bgx, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "HOOK_SECONDS", 0.01)
    gate, returned = threading.Event(), list[Any]()

    def hook(task: Task[Any], outcome: Outcome[Any]) -> object:
        gate.wait(10)
        returned.append(hang(task, outcome))
        return returned[0]

    bgx.on_failure(hook)
    await call(made(bgx, add_failing))
    gate.set()
    await until(lambda: returned and inspect.getcoroutinestate(returned[0]) == "CORO_CLOSED")


async def test_a_request_that_is_cancelled_does_not_wait_for_hooks(bgx: Bgx, lines: Lines) -> None:
    begun = anyio.Event()
    ended: list[BaseException] = []

    @bgx.on_failure
    async def hook(task: Task[Any], outcome: Outcome[Any]) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            ended.append(error)
            raise

    @bgx.on_failure
    async def next_hook(task: Task[Any], outcome: Outcome[Any]) -> None:
        raise AssertionError("nothing more may begin")

    app = made(bgx, add_failing)
    async with anyio.create_task_group() as group:
        group.start_soon(call, app)
        await begun.wait()
        group.cancel_scope.cancel()
    assert [type(error) for error in ended] == [anyio.get_cancelled_exc_class()]
    assert not named(lines, "bgx.hook_failed")
    assert bgx.stats().running == 0


async def test_control_c_in_a_hook_is_not_swallowed(lines: Lines) -> None:
    class Failed:
        name, id = "task", "1"

    def press(task: Task[Any], outcome: Outcome[Any]) -> None:
        raise KeyboardInterrupt

    failure_hooks = hooks.FailureHooks(Threads())
    failure_hooks.add(press)
    task: Any = Failed()
    with pytest.raises(KeyboardInterrupt):
        await failure_hooks.run(task, Outcome(status=Status.FAILED))
    assert lines == []


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_cancellation_of_trio_s_own_stays_inside_of_the_hook(
    bgx: Bgx, told: Told, lines: Lines
) -> None:
    @bgx.on_failure
    async def hook(task: Task[Any], outcome: Outcome[Any]) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.sleep_forever()

    await call(made(bgx, add_failing))
    assert len(told) == 1
    assert not named(lines, "bgx.hook_failed")
