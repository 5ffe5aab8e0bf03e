"""An app as many are: stock annotations, a router, a sub-dependency, a WebSocket, a mounted app.

It was written for FastAPI's own background tasks. All that was added is the import of `Bgx` and the
three lines at the end.
Run it in this directory with `uvicorn existing:app`.
"""

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket

from fastapi_bgx import Bgx

audit: list[str] = []


async def write_audit(what: str) -> None:
    audit.append(what)


def remember_visit(background_tasks: BackgroundTasks) -> None:
    background_tasks.add_task(write_audit, "a visit")


app = FastAPI(dependencies=[Depends(remember_visit)])
router = APIRouter(prefix="/orders")
reports = FastAPI()


@router.post("")
def order(background_tasks: BackgroundTasks) -> str:
    background_tasks.add_task(write_audit, "an order")
    return "thank you"


@router.post("/unpaid")
def unpaid(background_tasks: BackgroundTasks) -> None:
    background_tasks.add_task(write_audit, "an order that nobody paid")
    raise HTTPException(402)


@app.websocket("/chat")
async def chat(websocket: WebSocket, background_tasks: BackgroundTasks) -> None:
    await websocket.accept()
    background_tasks.add_task(write_audit, "a chat")
    await websocket.close()


class Page:
    def __init__(self, background_tasks: BackgroundTasks, size: int = 10) -> None:
        self.size = size
        background_tasks.add_task(write_audit, f"a page of {size}")


@reports.get("/")
async def report(page: Annotated[Page, Depends()]) -> str:
    return f"{page.size} lines"


app.include_router(router)
app.mount("/reports", reports)

bgx = Bgx()
bgx.install(app)
bgx.install(reports)
