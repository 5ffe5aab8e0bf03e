"""The name of a task: what logs, settings and statistics call it."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI

from fastapi_bgx import Bgx, Settings, TaskOptions, Tasks, current_task, task_options
from fastapi_bgx.options import normal_name
from tests.asgi import call

pytestmark = pytest.mark.anyio


def plain() -> None: ...


async def plain_async() -> None: ...


@task_options(name="renamed")
def with_a_name() -> None: ...


def logs(func: Callable[[], None]) -> Callable[[], None]:
    @functools.wraps(func)
    def wrapper() -> None:
        func()

    return wrapper


class Mailer:
    def send(self) -> None: ...

    @classmethod
    def of_the_class(cls) -> None: ...

    @staticmethod
    def static() -> None: ...

    class Inner:
        def send(self) -> None: ...


class Callback:
    def __call__(self) -> None: ...


def nested() -> Callable[[], None]:
    def inside() -> None: ...

    return inside


def nested_lambda() -> Callable[[], None]:
    return lambda: None


class Slotted:
    """A callable without a name of its own, and without a `__dict__`."""

    __slots__ = ()

    def __call__(self) -> None: ...


async def name_of(func: Callable[[], Any], **options: Any) -> str:
    """The name of a task of `func`, and of what `current_task` shows inside of it."""
    app = FastAPI()
    Bgx(Settings()).install(app)
    names: list[str] = []

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        names.append(tasks.using(**options).add_task(func).name)

    await call(app)
    return names[0]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (plain, "plain"),
        (plain_async, "plain_async"),
        (logs(plain), "plain"),
        (Mailer().send, "Mailer.send"),
        (Mailer.of_the_class, "Mailer.of_the_class"),
        (Mailer.static, "Mailer.static"),
        (Mailer.Inner().send, "Mailer.Inner.send"),
        (Callback(), "Callback"),
        (Slotted(), "Slotted"),
        (nested(), "inside"),
        (lambda: None, "<lambda>"),
        (nested_lambda(), "<lambda>"),
        (functools.partial(plain), "plain"),
        (functools.partial(functools.partial(Mailer().send)), "Mailer.send"),
        (print, "print"),
        ([].copy, "list.copy"),
        (dict, "dict"),
        (with_a_name, "renamed"),
    ],
)
async def test_a_task_has_the_name_of_its_function(function: Callable[[], Any], name: str) -> None:
    assert await name_of(function) == name


async def test_the_name_of_the_call_wins() -> None:
    assert await name_of(with_a_name, name="of the call") == "of the call"


async def test_the_name_is_seen_inside_of_the_task() -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)
    names: list[str] = []

    def look() -> None:
        task = current_task()
        assert task is not None
        names.append(task.name)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(look)
        tasks.using(name="crm").add_task(look)

    await call(app)
    assert names == ["look", "crm"]


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("send_mail", "send_mail"),
        ("Mailer.send", "mailer_send"),
        ("Mailer.Inner.send", "mailer_inner_send"),
        ("send-mail now", "send_mail_now"),
        ("<lambda>", "_lambda_"),
        ("Straße.öffnen", "straße_öffnen"),
    ],
)
def test_a_name_as_a_variable_can_spell_it(name: str, normal: str) -> None:
    assert normal_name(name) == normal


@pytest.mark.parametrize("spelt", ["Mailer.send", "mailer_send", "MAILER_SEND", "Mailer-send"])
async def test_options_by_name_are_found_however_the_name_is_spelt(spelt: str) -> None:
    app = FastAPI()
    Bgx(Settings(tasks={spelt: TaskOptions(timeout=7)})).install(app)
    timeouts: list[float | None] = []

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        timeouts.append(tasks.add_task(Mailer().send).plan.timeout)

    await call(app)
    assert timeouts == [7]
