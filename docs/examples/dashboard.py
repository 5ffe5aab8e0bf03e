"""A shop whose tasks are recorded, and seen on a dashboard behind a login.

Run it in this directory with `ADMIN_PASSWORD=secret uvicorn dashboard:app`, and open
http://localhost:8000/bgx/ as any user with that password.
"""

import os
import secrets
from typing import Annotated

import anyio
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from fastapi_bgx import Bgx, Retry, Settings, Tasks, current_task, task_options

app = FastAPI()
bgx = Bgx(Settings(timeout=60))  # BGX_STORE=sqlite:///tasks.db keeps the records over a restart
bgx.install(app)


async def admin(login: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> None:
    password = os.environ["ADMIN_PASSWORD"]
    if not secrets.compare_digest(login.password.encode(), password.encode()):
        raise HTTPException(401, headers={"WWW-Authenticate": "Basic"})


app.include_router(bgx.router(dependencies=[Depends(admin)]), prefix="/bgx")
app.include_router(bgx.status_router(), prefix="/exports/status")


@task_options(retry=Retry(attempts=3, on=(ConnectionError,), wait_initial=0.1, wait_jitter=0))
async def charge(order: int) -> None:
    raise ConnectionError(f"the bank does not answer about order {order}")


@task_options(detached=True)
async def export(pages: int) -> str:
    task = current_task()
    assert task
    for page in range(pages):
        await anyio.sleep(0.01)
        task.progress((page + 1) / pages, f"page {page + 1} of {pages}")
    task.log.info("export.written", pages=pages)
    return "/files/export.csv"


@app.post("/orders")
async def order(tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(charge, 7).id}


@app.post("/exports", status_code=202)
async def start_export(pages: int, tasks: Tasks) -> dict[str, str]:
    return {"status": bgx.status_url(tasks.add_task(export, pages))}
