"""What add_task takes and calls as stock does, and what it refuses in the route (promise 2)."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec

import anyio
import fastapi
import pytest
from fastapi import FastAPI

from fastapi_bgx import Bgx, Settings, Tasks, WrongCall
from tests.asgi import client_of
from tests.supervision import PATIENCE, tasks_of


async def value_of(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What the one task of a request returns."""
    tasks = await tasks_of(Bgx(Settings()))
    task: Any = tasks.add_task(func, *args, **kwargs)
    with anyio.fail_after(PATIENCE):
        await tasks()
    return task.outcome.value


# What is called.


def add(one: int, two: int = 10, *, three: int = 100) -> int:
    return one + two + three


async def add_later(one: int, two: int = 10, *, three: int = 100) -> int:
    await anyio.sleep(0)
    return one + two + three


class Adder:
    def __init__(self, one: int = 1) -> None:
        self.one = one

    def add(self, two: int) -> int:
        return self.one + two

    async def add_later(self, two: int) -> int:
        await anyio.sleep(0)
        return self.one + two

    @classmethod
    def by_class(cls, two: int) -> int:
        return cls().one + two

    @staticmethod
    async def by_nobody(two: int) -> int:
        return 1 + two

    def __call__(self, two: int) -> int:
        return self.one + two


class LaterAdder:
    async def __call__(self, two: int) -> int:
        await anyio.sleep(0)
        return 1 + two


def traced(func: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as many write it: sync, around whatever it gets."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapper


class Later:
    """Something that can be awaited and is no coroutine."""

    def __await__(self) -> Generator[Any, Any, int]:
        yield from anyio.sleep(0).__await__()
        return 3


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("called", "args"),
    [
        (add, (1, 2)),
        (add_later, (1, 2)),
        (functools.partial(add, 1, three=0), (2,)),
        (functools.partial(add_later, 1, three=0), (2,)),
        (functools.partial(functools.partial(add_later, three=0), 1), (2,)),
        (Adder().add, (2,)),
        (Adder().add_later, (2,)),
        (functools.partial(Adder().add_later, two=2), ()),
        (Adder.by_class, (2,)),
        (Adder.by_nobody, (2,)),
        (Adder(), (2,)),
        (LaterAdder(), (2,)),
        (functools.partial(LaterAdder(), 2), ()),
        (lambda two: add(1, two), (2,)),
        (lambda two: add_later(1, two), (2,)),
        (traced(add), (1, 2)),
        (traced(add_later), (1, 2)),
        (functools.lru_cache(add), (1, 2)),
        (Later, ()),
        (lambda: Later(), ()),
        (Mock(return_value=3), (1, 2)),
        (MagicMock(return_value=3), (1, 2)),
        (AsyncMock(return_value=3), (1, 2)),
        (create_autospec(add, return_value=3), (1, 2)),
        (create_autospec(add_later, return_value=3), (1, 2)),
        (max, (1, 3)),
        (int, ("3",)),
        ("a b c".split, ()),
    ],
)
async def test_everything_that_stock_calls_is_called_and_awaited(
    called: Any, args: tuple[Any, ...]
) -> None:
    assert await value_of(called, *args) in (3, 103, ["a", "b", "c"])


@pytest.mark.anyio
@pytest.mark.parametrize("called", [Later, lambda: Later(), lambda: add_later(1, 2, three=0)])
async def test_what_a_sync_function_on_the_loop_returns_is_awaited_too(called: Any) -> None:
    tasks = await tasks_of(Bgx(Settings()))
    task: Any = tasks.using(executor="async").add_task(called)
    await tasks()
    assert task.outcome.value == 3


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_future_is_awaited() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 3)
    assert await value_of(lambda: future) == 3


@pytest.mark.anyio
async def test_a_mock_is_called_once_with_the_arguments() -> None:
    for mock in Mock(), MagicMock(), AsyncMock():
        await value_of(mock, 1, two=2)
        mock.assert_called_once_with(1, two=2)


@pytest.mark.anyio
async def test_what_only_looks_like_an_async_function_is_awaited_like_anything_else() -> None:
    """As compiled functions do, which give no coroutine of Python's own."""

    class Compiled:
        def __call__(self) -> Later:
            return Later()

    compiled = Compiled()
    compiled.__call__ = add_later  # type: ignore[method-assign,assignment]  # seen by `inspect` alone
    tasks: Any = await tasks_of(Bgx(Settings(check_calls=False)))
    task = tasks.add_task(compiled)
    await tasks()
    assert (task.is_async, task.outcome.value) == (True, 3)


RESERVED = {
    "self": 1,
    "func": 2,
    "args": 3,
    "kwargs": 4,
    "options": 5,
    "name": 6,
    "timeout": 7,
    "queue_timeout": 8,
    "limit": 9,
    "executor": 10,
    "detached": 11,
    "concurrent": 12,
    "priority": 13,
    "queue": 14,
    "tags": 15,
    "task": 16,
    "context": 17,
    "runner": 18,
    "key": 19,
}


@pytest.mark.anyio
@pytest.mark.parametrize("executor", ["async", "thread"])
async def test_every_keyword_reaches_the_function(executor: Any) -> None:
    def echo(**keywords: int) -> dict[str, int]:
        return keywords

    tasks = await tasks_of(Bgx(Settings()))
    added: list[Any] = [
        tasks.add_task(echo, **RESERVED),
        tasks.using(executor=executor, timeout=5).add_task(echo, **RESERVED),
    ]
    await tasks()
    assert [task.outcome.value for task in added] == [RESERVED, RESERVED]


@pytest.mark.anyio
async def test_the_function_itself_may_be_given_by_keyword_as_in_stock() -> None:
    tasks: Any = await tasks_of(Bgx(Settings()))
    added = [tasks.add_task(func=add, one=1), tasks.using(timeout=5).add_task(func=add, one=1)]
    await tasks()
    assert [task.outcome.value for task in added] == [111, 111]


# What is refused, before the response is sent.


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class Generating:
    def __call__(self) -> Iterator[int]:
        yield 1

    def method(self) -> Iterator[int]:
        yield 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("called", "message"),
    [
        (None, "needs a function to call, got None"),
        (3, "needs a function to call, got 3"),
        ("send", "needs a function to call, got 'send'"),
        (generator, r"add_task\(generator\) is a generator function"),
        (async_generator, r"add_task\(async_generator\) is a generator function"),
        (functools.partial(generator), r"add_task\(generator\) is a generator function"),
        (Generating(), r"add_task\(Generating\) is a generator function"),
        (functools.partial(Generating()), r"add_task\(Generating\) is a generator function"),
        (Generating().method, r"add_task\(Generating.method\) is a generator function"),
        (generator(), "needs a function to call, got <generator object"),
    ],
)
async def test_what_cannot_be_called_is_refused(called: Any, message: str) -> None:
    tasks = await tasks_of(Bgx(Settings()))
    with pytest.raises(WrongCall, match=message):
        tasks.add_task(called)
    with pytest.raises(TypeError, match=message):
        tasks.using(timeout=1).add_task(called)
    assert not tasks.tasks


@pytest.mark.anyio
async def test_a_class_is_called_whatever_its_objects_are() -> None:
    assert isinstance(await value_of(Generating), Generating)


@pytest.mark.anyio
async def test_no_function_at_all_is_refused() -> None:
    tasks: Any = await tasks_of(Bgx(Settings()))
    with pytest.raises(TypeError, match="needs a function to call"):
        tasks.add_task()


@pytest.mark.anyio
async def test_a_coroutine_object_is_refused_and_closed() -> None:
    tasks: Any = await tasks_of(Bgx(Settings()))
    coroutine = add_later(1)
    with pytest.raises(WrongCall, match=r"add_task\(add_later, ...\) without calling it"):
        tasks.add_task(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


SIGNATURE = r"add\(one: int, two: int = 10, \*, three: int = 100\) -> int"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        ((), {}, "missing a required argument: 'one'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"four": 4}, "got an unexpected keyword argument 'four'"),
        ((1,), {"one": 1}, "multiple values for argument 'one'"),
    ],
)
async def test_wrong_arguments_are_refused_with_the_signature(
    args: tuple[int, ...], kwargs: dict[str, int], problem: str
) -> None:
    tasks: Any = await tasks_of(Bgx(Settings()))
    with pytest.raises(WrongCall, match=rf"{problem}; the function is {SIGNATURE}"):
        tasks.add_task(add, *args, **kwargs)
    assert not tasks.tasks


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("called", "args", "problem"),
    [
        (Adder().add, (), "missing a required argument: 'two'"),
        (Adder.add, (1,), "missing a required argument: 'two'"),
        (Adder(), (), "missing a required argument: 'two'"),
        (functools.partial(add, 1, 2), (3,), "too many positional arguments"),
        (functools.partial(Adder().add_later, 1), (2,), "too many positional arguments"),
        (lambda: None, (1,), "too many positional arguments"),
        (create_autospec(add), (), "missing a required argument: 'one'"),
    ],
)
async def test_wrong_arguments_of_other_callables_are_refused(
    called: Any, args: tuple[Any, ...], problem: str
) -> None:
    tasks = await tasks_of(Bgx(Settings()))
    with pytest.raises(TypeError, match=problem):
        tasks.add_task(called, *args)


@pytest.mark.anyio
async def test_a_required_keyword_is_required_also_with_positional_arguments_alone() -> None:
    def needs(*numbers: int, loud: bool) -> None:
        pass

    tasks: Any = await tasks_of(Bgx(Settings()))
    with pytest.raises(WrongCall, match=r"missing a required (keyword-only )?argument: 'loud'"):
        tasks.add_task(needs, 1)


@pytest.mark.anyio
async def test_arguments_are_those_of_the_wrapper_not_of_what_it_wraps() -> None:
    """`functools.wraps` shows the signature of the inner function; the outer one is called."""

    def with_connection(func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def wrapper(number: int) -> Any:
            return func("connection", number)

        return wrapper

    @with_connection
    def save(connection: str, number: int) -> tuple[str, int]:
        return connection, number

    assert await value_of(save, 3) == ("connection", 3)


@pytest.mark.anyio
async def test_a_wrong_call_is_refused_however_often_the_function_was_added_before() -> None:
    tasks: Any = await tasks_of(Bgx(Settings()))
    for _ in range(3):
        tasks.add_task(add, 1)
        with pytest.raises(WrongCall):
            tasks.add_task(add)
    await tasks()
    assert [task.status for task in tasks.tasks] == ["succeeded"] * 3


@pytest.mark.anyio
async def test_without_check_calls_a_wrong_call_fails_when_it_is_made() -> None:
    tasks: Any = await tasks_of(Bgx(Settings(check_calls=False)))
    task = tasks.add_task(add)
    await tasks()
    assert isinstance(task.outcome.error, TypeError)
    with pytest.raises(WrongCall):  # never called by anybody, whatever is checked
        tasks.add_task(generator)


def test_a_wrong_call_is_answered_500_instead_of_lost(anyio_backend: str) -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)

    @app.get("/sync")
    def sync(tasks: Tasks) -> None:
        tasks.add_task(add)  # type: ignore[call-overload]

    @app.get("/async")
    async def on_loop(tasks: Tasks) -> None:
        tasks.add_task(add)  # type: ignore[call-overload]

    @app.get("/stock")
    def stock(background_tasks: fastapi.BackgroundTasks) -> None:
        background_tasks.add_task(None)  # type: ignore[arg-type]

    client = client_of(app, anyio_backend, raise_server_exceptions=False)
    for path in "/sync", "/async", "/stock":
        assert client.get(path).status_code == 500
