"""The application that the servers of these tests serve; `BGX_*` variables are its settings.

It says what happens, one JSON object a line, on the standard output, as the log events do.
"""

import asyncio
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import structlog
from fastapi import FastAPI
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_bgx import Bgx, Retry, Tasks, current_task, task_options
from fastapi_bgx.options import ExecutorName

structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ],
    # One write for each line: two workers share the pipe.
    logger_factory=structlog.WriteLoggerFactory(),
)
DIRECTORY = Path(os.environ["DIRECTORY"])
RELEASE = DIRECTORY / "release"


def say(event: str, **fields: Any) -> None:
    structlog.get_logger("app").info(event, pid=os.getpid(), **fields)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if "FAIL_AT_STARTUP" in os.environ:
        raise RuntimeError("the database is away")
    yield
    handler: Any = signal.getsignal(signal.SIGTERM)
    say("lifespan.ends", handler=getattr(handler, "__qualname__", str(handler)))


bgx = Bgx()
app = FastAPI(lifespan=lifespan)
bgx.install(app)


# Tasks. Each says when it starts, and those that can end say when they end.


async def held() -> None:
    say("held.starts")
    while not RELEASE.exists():
        await anyio.sleep(0.01)
    say("held.ends")


async def holds_loop() -> None:
    while not RELEASE.exists():
        time.sleep(0.01)


async def holds_loop_later() -> None:
    await anyio.sleep(0.01)
    await holds_loop()


def held_thread() -> None:
    say("held_thread.starts")
    while not RELEASE.exists():
        time.sleep(0.01)
    say("held_thread.ends")


async def endless() -> None:
    say("endless.starts")
    await anyio.sleep_forever()


async def stubborn() -> None:
    say("stubborn.starts")
    while True:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            say("stubborn.refuses")


def blocked() -> None:
    say("blocked.starts")
    threading.Event().wait()


def crunching() -> None:
    """For a worker process: a lock that is free when the process is gone, and the process id."""
    mine = DIRECTORY / "starting"
    with mine.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        mine.rename(DIRECTORY / "crunching")
        threading.Event().wait()


def held_process() -> None:
    (DIRECTORY / "held_process").touch()
    while not RELEASE.exists():
        time.sleep(0.01)


def brief() -> None:
    say("brief.ends", id=_id())


def double(number: int = 21) -> int:
    return 2 * number


async def exits() -> None:
    sys.exit("the task wants to end everything")


@task_options(retry=Retry(attempts=4, wait_initial=0.02, wait_max=0.2, wait_jitter=0.05))
async def flaky() -> None:
    """Fails at its first attempts, some for good: as the number in its id says."""
    await anyio.sleep(0.002)
    _fail_at_first()


@task_options(retry=Retry(attempts=4, wait_initial=0.02, wait_max=0.2, wait_jitter=0.05))
def flaky_thread() -> None:
    time.sleep(0.002)
    _fail_at_first()


@task_options(retry=Retry(wait_initial=60))
async def patient() -> None:
    raise ConnectionError


def _fail_at_first() -> None:
    task = current_task()
    assert task is not None
    if task.attempt <= int(task.id.rpartition("-")[2]) % 6:
        raise ConnectionError(f"attempt {task.attempt}")


limits: dict[str, int] = {"now": 0, "most": 0}
lock = threading.Lock()


def counted() -> None:
    with lock:
        limits["now"] += 1
        limits["most"] = max(limits.values())
    while not RELEASE.exists():
        time.sleep(0.01)
    say("counted.ends", id=_id())
    with lock:
        limits["now"] -= 1


def _id() -> str:
    task = current_task()
    assert task is not None
    return task.id


def _tasks(*functions: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {function.__name__: function for function in functions}


TASKS = _tasks(
    held,
    holds_loop,
    holds_loop_later,
    held_thread,
    endless,
    stubborn,
    blocked,
    crunching,
    held_process,
    brief,
    double,
    exits,
    counted,
    flaky,
    flaky_thread,
    patient,
)


# Routes.


@app.get("/up")
async def up() -> int:
    return os.getpid()


@app.get("/innocent")
def innocent() -> str:
    return "as ever"


@app.post("/add/{name}")
async def add(
    name: str,
    tasks: Tasks,
    detached: bool = False,
    executor: ExecutorName | None = None,
    count: int = 1,
) -> list[str]:
    view = tasks.using(detached=detached, executor=executor)
    return [view.add_task(TASKS[name]).id for _ in range(count)]


@app.post("/add-unique/{name}")
def add_unique(name: str, tasks: Tasks, key: str) -> str:
    """A sync route: in a thread, beside others."""
    return tasks.using(detached=True, unique=key).add_task(TASKS[name]).id


@app.get("/tasks")
def found(status: str | None = None) -> dict[str, str]:
    return {task.id: task.status for task in bgx.find(status=status)}


@app.delete("/tasks/{task_id}")
def cancel(task_id: str) -> bool:
    return bgx.cancel(task_id)


@app.post("/add-sync/{name}")
def add_sync(name: str, tasks: Tasks) -> str:
    return tasks.add_task(TASKS[name]).id


@app.post("/add-late/{name}")
async def add_late(name: str, tasks: Tasks) -> str:
    """A route that is under way when the server is told to stop."""
    say("add_late.starts")
    while not RELEASE.exists():
        await anyio.sleep(0.01)
    return tasks.add_task(TASKS[name]).id


@app.post("/add-chain")
async def add_chain(tasks: Tasks) -> None:
    """A task that adds another one when it is released."""

    async def first() -> None:
        await held()
        tasks.add_task(brief)

    tasks.add_task(first)


@app.get("/hangs")
async def hangs() -> None:
    say("hangs.starts")
    await anyio.sleep_forever()


@app.get("/most")
async def most() -> int:
    return limits["most"]


# The same application as others may serve it.


async def without_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        raise RuntimeError("what is a lifespan?")
    await app(scope, receive, send)


async def _pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


based: ASGIApp = BaseHTTPMiddleware(app, dispatch=_pass_on)
