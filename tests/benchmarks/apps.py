"""The contestants as applications: for requests in this process, and behind uvicorn (W4)."""

import asyncio
import atexit
import inspect
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import fastapi.dependencies.utils as fastapi_utils
from fastapi import BackgroundTasks as StockBackgroundTasks
from fastapi import Depends, FastAPI

from fastapi_bgx import Bgx, Settings
from tests.benchmarks.contestants import HAND_WRITTEN, STOCK
from tests.benchmarks.handwritten import TIMEOUT_S, log_json, supervision
from tests.benchmarks.measure import nothing
from tests.benchmarks.peers import AIOJOBS, TASKFLOW, TASKIQ

DEPENDS = "bgx, Depends"
INSTALL = "bgx, install"
QUIET_DEPENDS = "bgx, Depends, nobody listening"
QUIET_INSTALL = "bgx, install, nobody listening"
DETACHED = "bgx, detached"
PENDING = "bgx, detached, waits for a slot"
SUSPENDED = "bgx, detached, runs and is suspended"
TASKFLOW_SQLITE = "fastapi-taskflow, SQLite"
RECORDED = "bgx, install, records in SQLite"

BLOCKED_S = 0.2
PATCHED = "BackgroundTasks"  # what fastapi-taskflow replaces, for the whole process
UNPATCHED = vars(fastapi_utils)[PATCHED]
THREADS = 40
"""As many as stock has, for everybody."""

Func = Callable[[], Any]


@dataclass(slots=True)
class Work:
    """What the tasks of this process have done."""

    ran: int = 0
    accepted: int = 0
    """Requests for `held` that were answered."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)


work = Work()


async def light() -> None:
    """The task of W3, and of the requests per second of W4."""
    work.ran += 1


async def held() -> None:
    """A task that is pending for as long as W5 looks at it."""
    await work.gate.wait()
    work.ran += 1


def blocking() -> None:
    """The sync task of W4."""
    time.sleep(BLOCKED_S)
    work.ran += 1


def unpatch() -> None:
    """Give FastAPI its own class back."""
    setattr(fastapi_utils, PATCHED, UNPATCHED)


@dataclass(slots=True, kw_only=True)
class Served:
    """An application, and what it takes to measure it beside others in one process."""

    name: str
    app: FastAPI
    prepare: Callable[[], None] = nothing
    settle: Callable[[], Awaitable[None]] | None = None
    """Waits for tasks that the request did not wait for."""
    has_lifespan: bool = True
    """False for one that works without, and whose lifespan would reach for the whole process."""

    def ready(self) -> None:
        """Make this process the one that the contestant expects."""
        unpatch()
        self.prepare()


Builder = Callable[[str], Served]


# The routes: for who adds to a list, and for who hands over at once.


def add_to_list(app: FastAPI, annotation: Any, call: Callable[[Func], tuple[Any, ...]]) -> None:
    """Routes that add what `call` makes of a function to the list that `annotation` injects."""

    @app.get("/light")
    async def add_light(tasks: annotation) -> dict[str, bool]:
        tasks.add_task(*call(light))
        return {"accepted": True}

    @app.get("/held")
    async def add_held(tasks: annotation) -> dict[str, bool]:
        tasks.add_task(*call(held))
        work.accepted += 1
        return {"accepted": True}

    @app.get("/blocking")
    async def add_blocking(tasks: annotation) -> dict[str, bool]:
        tasks.add_task(*call(blocking))
        return {"accepted": True}


def hand_over(app: FastAPI, spawn: Callable[[Func], Awaitable[Any]]) -> None:
    """Routes that call `spawn` with a function."""

    @app.get("/light")
    async def add_light() -> dict[str, bool]:
        await spawn(light)
        return {"accepted": True}

    @app.get("/held")
    async def add_held() -> dict[str, bool]:
        await spawn(held)
        work.accepted += 1
        return {"accepted": True}

    @app.get("/blocking")
    async def add_blocking() -> dict[str, bool]:
        await spawn(blocking)
        return {"accepted": True}


# The contestants.


def stock(name: str) -> Served:
    """FastAPI as it is."""
    app = FastAPI()
    add_to_list(app, StockBackgroundTasks, lambda func: (func,))
    return Served(name=name, app=app)


def hand_written(name: str) -> Served:
    """The wrapper of `handwritten.py` around each function."""
    app = FastAPI()
    supervise = supervision(THREADS)
    add_to_list(app, StockBackgroundTasks, lambda func: (supervise, func))
    return Served(name=name, app=app, prepare=partial(log_json, logging.INFO))


def ours(name: str, *, install: bool = True, **settings: Any) -> Served:
    """This library, logging one event for each task unless told otherwise."""
    app = FastAPI()
    bgx = Bgx(Settings(timeout=TIMEOUT_S, max_threads=THREADS, **settings))
    if install:
        bgx.install(app)
    annotation = StockBackgroundTasks if install else Annotated[Any, Depends(bgx)]
    add_to_list(app, annotation, lambda func: (func,))
    return Served(name=name, app=app, prepare=partial(log_json, logging.INFO))


def recorded(name: str) -> Served:
    """The same, with records of every task."""
    return ours(name, store=f"sqlite:///{_new_folder() / 'records.db'}")


def _new_folder() -> Path:
    """A folder that is there as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="bgx-bench-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def taskflow(name: str, **persistence: Any) -> Served:
    """The quick start of its README: existing routes, by its patch of FastAPI."""
    from fastapi_taskflow import TaskAdmin, TaskManager

    app = FastAPI()
    manager: Any = TaskManager(max_sync_threads=THREADS, **persistence)
    TaskAdmin(app, manager, auto_install=True)
    for func in (light, held, blocking):
        manager.task()(func)
    add_to_list(app, StockBackgroundTasks, lambda func: (func,))
    patched = vars(fastapi_utils)[PATCHED]

    def prepare() -> None:
        setattr(fastapi_utils, PATCHED, patched)
        manager.store.clear()

    return Served(name=name, app=app, prepare=prepare, has_lifespan=bool(persistence))


def taskflow_sqlite(name: str) -> Served:
    """The same, with the database of the quick start: a record is written as each task ends."""
    path = _new_folder() / "tasks.db"
    return taskflow(name, snapshot_db=str(path), snapshot_interval=30.0)


def aiojobs(name: str) -> Served:
    """A scheduler that lives as long as the application; sync functions in asyncio's own pool."""
    from aiojobs import Scheduler

    scheduler: Any = None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal scheduler
        async with Scheduler() as scheduler:
            yield

    async def spawn(func: Func) -> None:
        sync = not inspect.iscoroutinefunction(func)
        await scheduler.spawn(asyncio.to_thread(func) if sync else func())

    async def settle() -> None:
        while len(scheduler):
            await asyncio.sleep(0)

    app = FastAPI(lifespan=lifespan)
    hand_over(app, spawn)
    return Served(name=name, app=app, settle=settle)


def taskiq(name: str) -> Served:
    """A broker that lives as long as the application."""
    from taskiq import InMemoryBroker

    broker: Any = InMemoryBroker(sync_tasks_pool_size=THREADS)
    kicked = {func: broker.task(func) for func in (light, held, blocking)}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await broker.startup()
        yield
        await broker.shutdown()

    async def spawn(func: Func) -> None:
        await kicked[func].kiq()

    app = FastAPI(lifespan=lifespan)
    hand_over(app, spawn)
    return Served(name=name, app=app, settle=broker.wait_all)


CONTESTANTS: dict[str, Builder] = {
    STOCK: stock,
    HAND_WRITTEN: hand_written,
    DEPENDS: partial(ours, install=False),
    INSTALL: ours,
    QUIET_DEPENDS: partial(ours, install=False, log_events=frozenset()),
    QUIET_INSTALL: partial(ours, log_events=frozenset()),
    DETACHED: partial(ours, mode="detached"),
    PENDING: partial(ours, mode="detached", max_concurrency=1, max_backlog=None),
    SUSPENDED: partial(ours, mode="detached", max_concurrency=None, max_backlog=None),
    RECORDED: recorded,
    TASKFLOW: taskflow,
    TASKFLOW_SQLITE: taskflow_sqlite,
    AIOJOBS: aiojobs,
    TASKIQ: taskiq,
}
NEEDS = {
    TASKFLOW: "fastapi_taskflow",
    TASKFLOW_SQLITE: "fastapi_taskflow",
    AIOJOBS: "aiojobs",
    TASKIQ: "taskiq",
}


def build(name: str) -> Served:
    """The contestant of this name."""
    return CONTESTANTS[name](name)


def available(*names: str) -> list[str]:
    """Those of them whose package is installed."""
    return [name for name in names if name not in NEEDS or find_spec(NEEDS[name]) is not None]
