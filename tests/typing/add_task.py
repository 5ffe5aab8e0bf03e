"""`add_task` checks the arguments of the call and keeps the type of what it returns."""

import asyncio
from functools import partial
from typing import assert_type

import fastapi

from fastapi_bgx import BackgroundTasks, Outcome, Task, TasksView


async def send(email: str, *, copies: int = 1) -> bytes:
    return email.encode() * copies


def write(line: str) -> int:
    return len(line)


def nothing() -> None: ...


def soon() -> asyncio.Future[int]:
    return asyncio.get_running_loop().create_future()


class Mailer:
    def send(self, email: str) -> bool:
        return bool(email)

    async def __call__(self, email: str) -> float:
        return 0.5


def right(tasks: BackgroundTasks, mailer: Mailer) -> None:
    assert_type(tasks.add_task(send, "a@b.c"), Task[bytes])
    assert_type(tasks.add_task(send, "a@b.c", copies=2), Task[bytes])
    assert_type(tasks.add_task(write, line="x"), Task[int])
    assert_type(tasks.add_task(nothing), Task[None])
    assert_type(tasks.add_task(mailer.send, "a@b.c"), Task[bool])
    assert_type(tasks.add_task(mailer, "a@b.c"), Task[float])
    assert_type(tasks.add_task(lambda: 1), Task[int])
    assert_type(tasks.add_task(lambda: send("a@b.c")), Task[bytes])
    assert_type(tasks.add_task(partial(send, copies=2), "a@b.c"), Task[bytes])
    assert_type(tasks.add_task(partial(write, "x")), Task[int])
    assert_type(tasks.add_task(soon), Task[int])
    assert_type(tasks.using(timeout=1), TasksView)
    assert_type(tasks.using(timeout=1).add_task(send, "a@b.c"), Task[bytes])
    assert_type(tasks.using(timeout=1).using(name="x").add_task(write, "x"), Task[int])


def wrong(tasks: BackgroundTasks) -> None:
    tasks.add_task(send)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    tasks.add_task(send, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    tasks.add_task(send, "a@b.c", copies="2")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    tasks.add_task(send, "a@b.c", timeout=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tasks.add_task(write, "x", "y")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    tasks.add_task(write, text="x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    tasks.add_task(send("a@b.c"))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    tasks.add_task(None)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    tasks.using(timeout=1).add_task(send, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    tasks.using(timeout=1).add_task(write)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def outcomes(tasks: BackgroundTasks) -> None:
    task = tasks.add_task(send, "a@b.c")
    assert_type(task.id, str)
    assert_type(task.outcome, Outcome[bytes] | None)
    assert_type(await task.wait(), Outcome[bytes])
    assert_type((await task.wait()).value, bytes)
    assert_type((await task.wait()).error, BaseException | None)
    assert_type((await tasks.add_task(write, "x").wait()).value, int)
    assert_type((await tasks.add_task(nothing).wait()).value, None)
    assert_type((await tasks.using(timeout=1).add_task(Mailer().send, "x").wait()).value, bool)
    assert_type((await tasks.add_task(lambda: 1.5).wait()).value, float)
    assert_type((await tasks.add_task(partial(write, "x")).wait()).value, int)
    len(task.outcome.value)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]


def in_place_of_stock(tasks: BackgroundTasks) -> fastapi.BackgroundTasks:
    return tasks
