"""A failure of a background task is a failure of the test that caused it."""

from functools import partial
from typing import Any

import anyio
import pytest
from fastapi import FastAPI

from fastapi_bgx import Bgx, Settings, Tasks
from fastapi_bgx.testing import Failures, capturing_tasks, watching_failures
from tests.asgi import client_of
from tests.supervision import serving, tasks_of


async def broken(text: str = "mine") -> None:
    raise ValueError(text)


def app_with(*funcs: Any, **settings: Any) -> FastAPI:
    app, bgx = FastAPI(), Bgx(Settings(**settings))
    bgx.install(app)

    @app.post("/")
    async def add(tasks: Tasks) -> None:
        for func in funcs:
            tasks.add_task(func)

    return app


def cause(app: FastAPI, backend: str) -> None:
    """A test that has one request, and does not look at what comes of it."""
    with watching_failures():
        client_of(app, backend).post("/")


def test_an_inline_failure_is_raised(anyio_backend: str) -> None:
    with pytest.raises(ValueError, match="mine"):
        cause(app_with(broken), anyio_backend)


def test_a_detached_failure_is_raised(anyio_backend: str) -> None:
    def cause() -> None:
        with watching_failures(), client_of(app, anyio_backend) as client:
            client.post("/")

    app = app_with(broken, mode="detached")
    with pytest.raises(ValueError, match="mine"):
        cause()


def test_a_timeout_is_a_failure(anyio_backend: str) -> None:
    with pytest.raises(TimeoutError):
        cause(app_with(anyio.sleep_forever, timeout=0.01), anyio_backend)


def test_several_are_raised_together(anyio_backend: str) -> None:
    app = app_with(broken, partial(broken, "yours"))
    with pytest.raises(ExceptionGroup, match="2 background tasks failed") as caught:
        cause(app, anyio_backend)
    assert [str(error) for error in caught.value.exceptions] == ["mine", "yours"]


def test_what_is_expected_is_not_raised(anyio_backend: str) -> None:
    with watching_failures() as failures:
        client_of(app_with(broken), anyio_backend).post("/")
        assert [task.status for task in failures] == ["failed"]
        [error] = failures.expect()
        assert str(error) == "mine"
        assert len(failures) == 0


def test_success_is_none(anyio_backend: str) -> None:
    with watching_failures() as failures:
        client_of(app_with(lambda: None), anyio_backend).post("/")
    assert len(failures) == 0


def test_the_error_of_the_block_itself_comes_first(anyio_backend: str) -> None:
    def fail_otherwise() -> None:
        with watching_failures():
            client_of(app_with(broken), anyio_backend).post("/")
            raise LookupError

    with pytest.raises(LookupError):
        fail_otherwise()


def test_what_the_client_raised_already_is_not_raised_again(anyio_backend: str) -> None:
    with watching_failures() as failures, pytest.raises(ValueError, match="mine"):
        client_of(app_with(broken, on_error="raise"), anyio_backend).post("/")
    assert isinstance(failures, Failures)


def test_what_captured_tasks_raised_is_not_raised_again(anyio_backend: str) -> None:
    with watching_failures(), capturing_tasks() as captured:
        client_of(app_with(broken), anyio_backend).post("/")
        with pytest.raises(ValueError, match="mine"):
            captured.run(backend=anyio_backend)


@pytest.mark.anyio
async def test_a_detached_failure_is_seen_where_errors_are_raised_too() -> None:
    async def cause() -> None:
        async with serving(on_error="raise") as bgx:
            tasks = await tasks_of(bgx)
            task = tasks.using(detached=True).add_task(broken)
            await tasks()
            await task.wait()

    with watching_failures() as failures:
        await cause()
        assert [str(error) for error in failures.expect()] == ["mine"]
