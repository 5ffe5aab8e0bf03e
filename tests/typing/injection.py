"""The ways to get the tasks of a request, and what `Bgx` gives, have the types they promise."""

from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, assert_type

import fastapi
from fastapi import Depends, FastAPI

from fastapi_bgx import (
    BackgroundTasks,
    Bgx,
    BgxError,
    Cancelled,
    CurrentTask,
    DrainReport,
    Outcome,
    Progress,
    Settings,
    Stats,
    Task,
    Tasks,
    current_task,
)

bgx = Bgx(Settings(max_threads=20, timeout=30))
app = FastAPI(lifespan=bgx.lifespan)
bgx.install(app)


def write(line: str) -> int:
    return len(line)


@app.post("/depends")
async def depends(tasks: Annotated[BackgroundTasks, Depends(bgx)]) -> None:
    assert_type(tasks.add_task(write, "x"), Task[int])


@app.post("/alias")
async def alias(tasks: Tasks) -> None:
    assert_type(tasks.add_task(write, "x"), Task[int])
    assert_type(tasks.using(timeout=1).add_task(write, "x"), Task[int])
    tasks.add_task(write, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    tasks.using(timout=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@app.post("/stock")
def stock(background_tasks: fastapi.BackgroundTasks) -> None:
    background_tasks.add_task(write, "x")


@bgx.on_failure
def note(task: Task[object], outcome: Outcome[object]) -> None: ...


@bgx.on_failure
async def tell(task: Task[object], outcome: Outcome[object]) -> None: ...


@bgx.on_failure
def count(task: Task[object], outcome: Outcome[object]) -> int:
    return write(f"{task.name} {outcome.status}")


@bgx.on_failure  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportUntypedFunctionDecorator]
def too_few(task: Task[object]) -> None: ...


@bgx.on_failure  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportUntypedFunctionDecorator]
async def backwards(outcome: Outcome[object], task: Task[object]) -> None: ...


def a_decorated_hook_keeps_its_type(task: Task[object], outcome: Outcome[object]) -> None:
    assert_type(count(task, outcome), int)


async def questions() -> None:
    assert_type(bgx.stats(), Stats)
    assert_type(await bgx.drain(grace=1), DrainReport)
    assert_type(bgx.settings, Settings)
    assert_type(current_task(), CurrentTask | None)
    lifespan: AbstractAsyncContextManager[None] = bgx.lifespan(app)
    async with lifespan:
        pass


def inside(task: CurrentTask) -> None:
    assert_type(task.remaining(), float | None)
    assert_type(task.timed_out, bool)
    assert_type(task.id, str)
    assert_type(task.progress(0.5), None)
    task.progress(1, "done")
    task.progress(0.5, note=None)
    task.check_cancelled()
    assert_type(task.log, Any)
    task.log.info("resized", size=3)


def outside(task: Task[int]) -> None:
    inside(task)
    progress = task.last_progress
    assert_type(progress, Progress | None)
    if progress is not None:
        assert_type(progress.fraction, float)
        assert_type(progress.note, str)
        progress.note = "mine"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def asked_to_stop(error: Cancelled) -> None:
    as_any_other: BgxError = error
    assert_type(error.task, str)
    assert as_any_other


def wrong(task: CurrentTask) -> None:
    task.progress("half")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    task.progress(0.5, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    task.progress()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    task.progress = 0.5  # type: ignore[method-assign, assignment]  # pyright: ignore[reportAttributeAccessIssue]
    current_task().remaining()  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    Bgx(max_threads=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bgx.install("app")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
