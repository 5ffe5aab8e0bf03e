"""The application of the demo: a small shop with background tasks of every temper.

The library is in four places: `Settings`, `bgx.install(app)`, the routers of the dashboard at the
end, and options at some of the tasks, which are in `tasks.py`. Everything else is plain FastAPI.
It runs under any server: `uvicorn fastapi_bgx.demo.app:app`.
"""

import uuid
from typing import Annotated, Any

import fastapi
import structlog
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import PlainTextResponse
from starlette.background import BackgroundTask

from fastapi_bgx import Bgx, Settings, Stats, Tasks
from fastapi_bgx.demo import tasks as shop
from fastapi_bgx.demo.metrics import add_metrics

log: Any = structlog.get_logger("shop")

bgx: Bgx = Bgx(
    Settings(
        max_backlog=20,
        limits={"smtp": 2},
        rates={"sms": "2/second"},
        loop_block_after=0.1,
        drain_timeout=1,
        history_of="all",
    )
)


# The routes that FastAPI's own BackgroundTasks could serve, too: see `stock` at the end.


async def bind_request_id(x_request_id: Annotated[str | None, Header()] = None) -> None:
    """Have the id of the request in every log line, those of its tasks included."""
    structlog.contextvars.bind_contextvars(request_id=x_request_id or uuid.uuid4().hex[:8])


router: APIRouter = APIRouter(dependencies=[Depends(bind_request_id)])


@router.post("/orders")
async def order(background_tasks: fastapi.BackgroundTasks) -> dict[str, int]:
    background_tasks.add_task(shop.charge_card, 7)
    background_tasks.add_task(shop.send_receipt, 7)
    return {"order": 7}


@router.post("/thumbnails")
async def thumbnail(background_tasks: fastapi.BackgroundTasks) -> dict[str, str]:
    background_tasks.add_task(shop.make_thumbnail)
    return {"thumbnail": "soon"}


@router.post("/bank")
async def repair_or_break_the_bank(answers: bool) -> dict[str, bool]:
    shop.Bank.answers = answers
    return {"answers": answers}


@router.get("/hello")
def hello() -> dict[str, str]:
    """Innocent: a sync route that adds no task, and wants one of the 40 threads of the server."""
    return {"hello": "world"}


# The routes that use what the library adds. `Tasks` is its BackgroundTasks, injected.

supervised: APIRouter = APIRouter(dependencies=[Depends(bind_request_id)])


@supervised.post("/signup")
async def sign_up(email: str, tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(shop.send_welcome, email).id}


@supervised.post("/contacts")
async def contact(tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(shop.push_to_crm).id}


@supervised.post("/photos")
async def photo(tasks: Tasks, seconds: float = 1.5) -> dict[str, str]:
    return {"task": tasks.add_task(shop.resize_photo, seconds).id}


@supervised.post("/primes")
async def primes(below: int, tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(shop.count_primes, below).id}


@supervised.post("/newsletter")
async def newsletter(readers: int, tasks: Tasks, seconds: float = 0.2) -> dict[str, int]:
    for _ in range(readers):
        tasks.add_task(shop.send_newsletter, seconds)
    return {"mails": readers}


@supervised.post("/offers")
async def offer(tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(shop.send_flash_offer).id}


@supervised.post("/payments")
async def pay(tasks: Tasks) -> None:
    tasks.add_task(shop.send_receipt, 8)
    raise HTTPException(402, "the card was declined")


@supervised.get("/invoice")
async def invoice(tasks: Tasks) -> PlainTextResponse:
    tasks.add_task(shop.send_receipt, 9)
    return PlainTextResponse("invoice 9", background=BackgroundTask(log.ainfo, "invoice.archived"))


@supervised.post("/invoice")
async def print_invoice(tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(shop.print_invoice, 9, {"name": "Ada"}).id}


@supervised.post("/exports")
async def export(seconds: float, tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(shop.build_export, seconds).id}


@supervised.post("/campaigns")
async def campaign(tasks: Tasks) -> None:
    for number in ("1001", "1002", "1003", "1004"):
        tasks.add_task(shop.send_sms, number)
    tasks.using(priority=10).add_task(shop.send_sms, "the login code")


@supervised.post("/catalogues")
async def catalogue(pages: int, tasks: Tasks) -> dict[str, str]:
    task = tasks.add_task(shop.import_catalogue, pages)
    return {"task": task.id, "status": bgx.status_url(task)}


@supervised.post("/stocktakes")
async def stocktake(tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(shop.recount_stock).id}


@supervised.post("/shipments")
async def ship(tasks: Tasks, refusals: int = 2, busy: float = 0.2) -> dict[str, str]:
    return {"task": tasks.add_task(shop.notify_partner, 7, refusals, busy).id}


@supervised.post("/reminders")
async def remind(email: str, seconds: float, tasks: Tasks) -> dict[str, str]:
    reminders = tasks.using(delay=seconds, unique=f"reminder-{email}")
    return {"task": reminders.add_task(shop.send_reminder, email).id}


@supervised.get("/tasks/{task_id}")
async def status_of(task_id: str) -> dict[str, str]:
    task = bgx.get(task_id)
    if task is None:
        raise HTTPException(404, "there is no such task")
    progress = task.last_progress
    note = "" if progress is None else progress.note
    return {"name": task.name, "status": task.status, "note": note}


@supervised.delete("/tasks/{task_id}")
async def cancel(task_id: str) -> dict[str, bool]:
    return {"asked": bgx.cancel(task_id)}


@supervised.get("/stats")
async def stats() -> Stats:
    return bgx.stats()


# What shows the tasks: to the team, to a customer who has the URL of one task, and to Prometheus.


async def from_this_machine(request: Request) -> None:
    """What lets people see the dashboard, cancel tasks and run them again.

    Who sits here may do so. Your application asks for a login of its own, with a dependency like
    this one: see docs/how-to/dashboard.md.
    """
    if request.client is None or request.client.host not in ("127.0.0.1", "::1"):
        raise HTTPException(403, "the dashboard is for this machine alone")


app: FastAPI = FastAPI(title="A shop on fastapi-bgx")
app.include_router(router)
app.include_router(supervised)
app.include_router(bgx.router(dependencies=[Depends(from_this_machine)]), prefix="/bgx")
app.include_router(bgx.status_router(), prefix="/imports")
add_metrics(app, bgx)
bgx.install(app)

# For comparison: the same routes in an application without the library.
stock: FastAPI = FastAPI(title="The same shop on stock FastAPI")
stock.include_router(router)
app.mount("/stock", stock)
