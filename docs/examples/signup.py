"""The app of the tutorial: tasks that succeed, fail, hang and block, all of them supervised.

Run it in this directory with `uvicorn signup:app`.
"""

import time

import anyio
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request

from fastapi_bgx import Bgx, Settings, Tasks, current_task, task_options

app = FastAPI()
bgx = Bgx(Settings(timeout=10))
bgx.install(app)


async def send_welcome(email: str) -> str:
    await anyio.sleep(0.05)
    return f"welcome, {email}"


async def push_crm(email: str) -> None:
    raise ConnectionError(f"the CRM did not take {email}")


@task_options(timeout=0.5)
async def warm_cache() -> None:
    await anyio.sleep(3600)


@task_options(timeout=0.5)
def make_avatar() -> None:
    time.sleep(1)


def make_thumbnails(count: int) -> int:
    task = current_task()
    made = 0
    while made < count and not (task and task.timed_out):
        time.sleep(0.01)
        made += 1
    return made


@app.post("/signup")
async def signup(email: str, background_tasks: BackgroundTasks) -> dict[str, str]:
    background_tasks.add_task(push_crm, email)
    background_tasks.add_task(send_welcome, email)
    return {"signed_up": email}


@app.post("/cache")
async def cache(tasks: Tasks) -> None:
    tasks.add_task(warm_cache)


@app.post("/avatar")
async def avatar(tasks: Tasks) -> None:
    tasks.add_task(make_avatar)


@app.post("/thumbnails")
async def thumbnails(count: int, tasks: Tasks) -> dict[str, str]:
    task = tasks.using(timeout=0.2, detached=True).add_task(make_thumbnails, count)
    return {"task": task.id}


async def from_here(request: Request) -> None:
    if request.client is None or request.client.host != "127.0.0.1":
        raise HTTPException(403)


app.include_router(bgx.router(dependencies=[Depends(from_here)]), prefix="/bgx")
