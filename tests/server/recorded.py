"""An application whose processes share a store of records; `BGX_STORE` says which.

It says what happens, one JSON object a line, on the standard output, as the log events do. What
takes half a minute in an application takes seconds here, with `HASTE`; `ROOM` is how many records
may wait for a store that does not answer.
"""

import os
import time
from pathlib import Path
from typing import Any

import anyio
import structlog
from fastapi import FastAPI, HTTPException, Response
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_bgx import Bgx, Retry, Settings, Tasks, current_task, task_options
from fastapi_bgx.listeners.prometheus import instrument
from fastapi_bgx.listeners.recorder import buffer, watch, writer

structlog.configure(
    processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
    logger_factory=structlog.WriteLoggerFactory(),
)
DIRECTORY = Path(os.environ["DIRECTORY"])
RELEASE = DIRECTORY / "release"
if "HASTE" in os.environ:
    writer.BEAT_SECONDS, writer.BURY_SECONDS, watch.UNSEEN_SECONDS = 0.25, 0.5, 5.0
buffer.MOST_RECORDS = int(os.environ.get("ROOM", buffer.MOST_RECORDS))
bgx = Bgx(Settings(limits={"narrow": 2, "held": 2}))
app = FastAPI()
bgx.install(app)
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    instrument(bgx)
app.include_router(bgx.router(public=True, dashboard=False), prefix="/bgx")
app.include_router(bgx.status_router(), prefix="/status")
calls: list[str] = []


# Tasks: one for each way to end.


async def succeeds() -> str:
    return "done"


def succeeds_in_thread() -> str:
    time.sleep(0.001)
    return "done"


@task_options(limit="narrow")
async def waits() -> None:
    await anyio.sleep(0.001)


async def fails() -> None:
    raise ConnectionError("lost")


@task_options(timeout=0.02)
async def times_out() -> None:
    await anyio.sleep_forever()


@task_options(retry=Retry(attempts=3, wait_initial=0.01, wait_max=0.02))
async def recovers() -> None:
    task = current_task()
    assert task is not None
    if task.attempt < 3:
        raise ConnectionError(f"attempt {task.attempt}")


@task_options(retry=Retry(attempts=2, wait_initial=0.01, wait_max=0.02))
async def gives_up() -> None:
    raise TimeoutError("nobody answers")


async def endless() -> None:
    await anyio.sleep_forever()


@task_options(limit="held")
async def held() -> None:
    """Two of them run in each process, and the others wait."""
    while not RELEASE.exists():
        await anyio.sleep(0.01)


async def flaky(text: str) -> None:
    """Fails where it is called first."""
    task = current_task()
    assert task is not None
    structlog.get_logger().info("flaky.starts", pid=os.getpid(), id=task.id)
    calls.append(text)
    if calls.count(text) == 1:
        raise ConnectionError("lost")


KINDS = (
    succeeds,
    succeeds_in_thread,
    waits,
    fails,
    times_out,
    recovers,
    gives_up,
    endless,
    held,
)
TASKS: dict[str, Any] = {function.__name__: function for function in KINDS}


# Routes.


@app.get("/up")
async def up() -> int:
    return os.getpid()


@app.get("/processes")
async def processes() -> int:
    return len(await bgx.records.processes())


@app.post("/add/{name}")
async def add(name: str, tasks: Tasks, count: int = 1, detached: bool = True) -> list[str]:
    view = tasks.using(detached=detached, concurrent=True)
    return [view.add_task(TASKS[name]).id for _ in range(count)]


@app.post("/refuse")
async def refuse(tasks: Tasks) -> None:
    """Its answer is an error: its task is dropped."""
    raise HTTPException(500, tasks.add_task(succeeds).id)


@app.post("/status-url")
async def status_url(tasks: Tasks) -> str:
    return bgx.status_url(tasks.add_task(succeeds))


@app.post("/flaky")
async def add_flaky(text: str, tasks: Tasks) -> str:
    return tasks.using(detached=True).add_task(flaky, text).id


@app.get("/described")
def described() -> bool:
    """When the recorder has looked at all that has happened here, whatever the store does."""
    return bgx.recorder.flush(10)


@app.get("/metrics")
def metrics() -> Response:
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry))


class NamesProcess:
    """Each answer tells which process has given it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = b"x-process", bgx.recorder.process.encode()
                message["headers"] = [*message["headers"], name]
            await send(message)

        await self._app(scope, receive, told)


app.add_middleware(NamesProcess)
