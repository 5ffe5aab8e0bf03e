"""The plan of a function: worked out once, forgotten with the function, and where it runs."""

import functools
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from fastapi_bgx import Limit, Settings, TaskOptions, WrongCall, task_options
from fastapi_bgx import plan as plan_module
from fastapi_bgx.plan import Planner


@pytest.fixture(params=[True, False], ids=["asyncio", "trio"])
def planner(request: pytest.FixtureRequest) -> Planner:
    return Planner(Settings(), eager=request.param)


async def on_loop() -> None: ...


def in_thread() -> None: ...


class Mailer:
    async def send(self) -> None: ...

    def store(self) -> None: ...

    def __call__(self) -> None: ...


class Sender:
    async def __call__(self) -> None: ...


# Where a function runs.


@pytest.mark.parametrize(
    ("func", "executor"),
    [
        (on_loop, "async"),
        (functools.partial(on_loop), "async"),
        (Mailer().send, "async"),
        (Sender(), "async"),
        (functools.partial(Sender()), "async"),
        (in_thread, "thread"),
        (functools.partial(in_thread), "thread"),
        (Mailer().store, "thread"),
        (Mailer(), "thread"),
        (Mailer, "thread"),
        (lambda: on_loop(), "thread"),
        (Mock(), "thread"),
    ],
)
def test_async_functions_run_on_the_loop_and_others_in_a_thread(
    planner: Planner, func: Any, executor: str
) -> None:
    assert planner.plan(func, None).executor == executor


@pytest.mark.parametrize("executor", ["thread", "process"])
@pytest.mark.parametrize("func", [on_loop, Mailer().send, functools.partial(on_loop)])
def test_an_async_function_runs_nowhere_else(planner: Planner, func: Any, executor: Any) -> None:
    with pytest.raises(WrongCall, match=f"runs on the event loop, not in a {executor}"):
        planner.plan(func, TaskOptions(executor=executor))


@pytest.mark.parametrize("executor", ["async", "thread", "process"])
def test_a_sync_function_runs_where_it_is_told(planner: Planner, executor: Any) -> None:
    assert planner.plan(in_thread, TaskOptions(executor=executor)).executor == executor


# The name of a task.


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (on_loop, "on_loop"),
        (Mailer().send, "Mailer.send"),
        (Mailer, "Mailer"),
        (Mailer(), "Mailer"),
        (functools.partial(functools.partial(Mailer().send)), "Mailer.send"),
        (lambda: None, "<lambda>"),
        (max, "max"),
        (Mock(), "Mock"),
        (AsyncMock(), "AsyncMock"),
    ],
)
def test_a_task_is_named_after_its_function(planner: Planner, func: Any, name: str) -> None:
    assert planner.plan(func, None).name == name


def test_a_function_inside_of_another_is_named_without_it(planner: Planner) -> None:
    def inner() -> None: ...

    class Local:
        def method(self) -> None: ...

    assert planner.plan(inner, None).name == "inner"
    assert planner.plan(Local().method, None).name == "Local.method"


@pytest.mark.parametrize("mock", [Mock, AsyncMock])
def test_an_object_that_has_every_attribute_has_no_options(planner: Planner, mock: Any) -> None:
    assert planner.plan(mock(), None).timeout is None


# Worked out once.


def test_the_plan_of_a_function_is_made_once(planner: Planner) -> None:
    options = TaskOptions(timeout=5)
    for func in on_loop, in_thread, Mailer.store:
        assert planner.plan(func, None) is planner.plan(func, None)
        assert planner.plan(func, options) is planner.plan(func, options)
        assert planner.plan(func, options) is not planner.plan(func, None)
        assert planner.plan(func, options).timeout == 5


def test_a_method_has_one_plan_for_all_objects_and_another_than_its_function(
    planner: Planner,
) -> None:
    bound = planner.plan(Mailer().send, None)
    assert planner.plan(Mailer().send, None) is bound
    function = planner.plan(Mailer.send, None)
    assert (function.shape.least, bound.shape.least) == (1, 0)
    assert planner.plan(Mailer().send, None) is bound


def test_the_method_of_a_subclass_has_its_own_options(planner: Planner) -> None:
    class Careful(Mailer):
        @task_options(timeout=7)
        async def send(self) -> None: ...

    assert planner.plan(Mailer().send, None).timeout is None
    assert planner.plan(Careful().send, None).timeout == 7


def make(number: int) -> Callable[..., Any]:
    """A new function each time, of one kind or the other."""
    if number % 2:
        return lambda: number

    async def later(needed: int) -> int:
        return needed

    return later


def test_a_new_function_at_the_address_of_an_old_one_has_its_own_plan(planner: Planner) -> None:
    """Each function dies at once, and the next is made where it was."""
    for number in range(500):
        func = make(number)
        plan = planner.plan(func, None)
        assert plan.shape.is_async == (not number % 2)
        assert plan.shape.least == (not number % 2)
        del func


@pytest.mark.parametrize("options", [None, TaskOptions(timeout=5)])
def test_a_plan_keeps_no_function_alive(planner: Planner, options: TaskOptions | None) -> None:
    gc.disable()
    try:
        for number in range(2):
            func = make(number)
            planner.plan(func, options)
            reference = weakref.ref(func)
            del func
            assert reference() is None
    finally:
        gc.enable()
    assert not planner._plans
    assert not planner._plain


def test_options_made_anew_for_each_call_do_not_fill_the_memory(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "MOST_PLANS", 50)
    for number in range(1, 500):
        assert planner.plan(on_loop, TaskOptions(timeout=number)).timeout == number
    assert len(planner._plans) <= 50


def test_many_threads_make_the_plan_of_a_function_at_once(planner: Planner) -> None:
    start = threading.Barrier(8)
    options = TaskOptions(limit=Limit("smtp", 2))

    def work(_: int) -> set[int]:
        start.wait()
        return {id(planner.plan(func, options).limiters[0]) for func in functions}

    for _ in range(20):
        functions = [make(number) for number in range(20)]
        with ThreadPoolExecutor(8) as pool:
            assert len(set().union(*pool.map(work, range(8)))) == 1
