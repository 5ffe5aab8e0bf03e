"""The application of the demo: a small shop with background tasks of every temper.

The library is in three places: `Settings`, `bgx.install(app)`, and options at some of the tasks.
Everything else is plain FastAPI. It runs under any server: `uvicorn fastapi_bgx.demo.app:app`.
"""

import time
import uuid
from typing import Annotated, Any

import anyio
import fastapi
import structlog
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException
from fastapi.responses import PlainTextResponse
from starlette.background import BackgroundTask

from fastapi_bgx import Bgx, Retry, Settings, Stats, Tasks, current_task, task_options

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


# The tasks: ordinary functions, async or not.


async def send_welcome(email: str) -> None:
    log.info("mail.sent", kind="welcome", to=email)


async def send_receipt(order: int) -> None:
    log.info("mail.sent", kind="receipt", order=order)


async def charge_card(order: int) -> None:
    raise ConnectionError(f"the bank hung up on order {order}")


@task_options(timeout=0.5)
async def push_to_crm() -> None:
    await anyio.sleep_forever()  # the CRM does not answer


@task_options(timeout=0.5)
def resize_photo() -> None:
    time.sleep(1.5)  # a thread cannot be stopped from outside


@task_options(limit="smtp", concurrent=True)
async def send_newsletter() -> None:
    await anyio.sleep(0.2)


def make_thumbnail() -> None:
    time.sleep(1)


@task_options(executor="process", timeout=0.5)
def count_primes(below: int) -> int:
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, below))


@task_options(detached=True)
async def build_export(seconds: float) -> None:
    await anyio.sleep(seconds)


@task_options(limit="sms", concurrent=True)
async def send_sms(number: str) -> None:
    log.info("sms.sent", to=number)


@task_options(detached=True)
async def import_catalogue(pages: int) -> None:
    task = current_task()
    assert task is not None
    for page in range(pages):
        await anyio.sleep(0.01)
        task.progress(page / pages, f"page {page + 1} of {pages}")


async def recount_stock() -> None:
    time.sleep(0.4)  # noqa: ASYNC251 - what it shows: this blocks the event loop


class PartnerBusy(Exception):
    """What the partner answers when it is asked too often."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("503 Service Unavailable")
        self.retry_after = retry_after


@task_options(detached=True, retry=Retry(attempts=4, on=(PartnerBusy,), wait_initial=0.2))
async def notify_partner(order: int) -> None:
    task = current_task()
    assert task is not None
    if task.attempt < 3:
        raise PartnerBusy(retry_after=0.2)
    log.info("partner.notified", order=order)


@task_options(detached=True)
async def send_reminder(email: str) -> None:
    log.info("mail.sent", kind="reminder", to=email)


# The routes that FastAPI's own BackgroundTasks could serve, too: see `stock` at the end.


async def bind_request_id(x_request_id: Annotated[str | None, Header()] = None) -> None:
    """Have the id of the request in every log line, those of its tasks included."""
    structlog.contextvars.bind_contextvars(request_id=x_request_id or uuid.uuid4().hex[:8])


router: APIRouter = APIRouter(dependencies=[Depends(bind_request_id)])


@router.post("/orders")
async def order(background_tasks: fastapi.BackgroundTasks) -> dict[str, int]:
    background_tasks.add_task(charge_card, 7)
    background_tasks.add_task(send_receipt, 7)
    return {"order": 7}


@router.post("/thumbnails")
async def thumbnail(background_tasks: fastapi.BackgroundTasks) -> dict[str, str]:
    background_tasks.add_task(make_thumbnail)
    return {"thumbnail": "soon"}


@router.get("/hello")
def hello() -> dict[str, str]:
    """Innocent: a sync route that adds no task, and wants one of the 40 threads of the server."""
    return {"hello": "world"}


# The routes that use what the library adds. `Tasks` is its BackgroundTasks, injected.

supervised: APIRouter = APIRouter(dependencies=[Depends(bind_request_id)])


@supervised.post("/signup")
async def sign_up(email: str, tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(send_welcome, email).id}


@supervised.post("/contacts")
async def contact(tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(push_to_crm).id}


@supervised.post("/photos")
async def photo(tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(resize_photo).id}


@supervised.post("/primes")
async def primes(below: int, tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(count_primes, below).id}


@supervised.post("/newsletter")
async def newsletter(readers: int, tasks: Tasks) -> dict[str, int]:
    for _ in range(readers):
        tasks.add_task(send_newsletter)
    return {"mails": readers}


@supervised.post("/payments")
async def pay(tasks: Tasks) -> None:
    tasks.add_task(send_receipt, 8)
    raise HTTPException(402, "the card was declined")


@supervised.get("/invoice")
async def invoice(tasks: Tasks) -> PlainTextResponse:
    tasks.add_task(send_receipt, 9)
    return PlainTextResponse("invoice 9", background=BackgroundTask(log.ainfo, "invoice.archived"))


@supervised.post("/exports")
async def export(seconds: float, tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(build_export, seconds).id}


@supervised.post("/campaigns")
async def campaign(tasks: Tasks) -> None:
    for number in ("1001", "1002", "1003", "1004"):
        tasks.add_task(send_sms, number)
    tasks.using(priority=10).add_task(send_sms, "the login code")


@supervised.post("/catalogues")
async def catalogue(pages: int, tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(import_catalogue, pages).id}


@supervised.post("/stocktakes")
async def stocktake(tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(recount_stock).id}


@supervised.post("/shipments")
async def ship(tasks: Tasks) -> dict[str, str]:
    return {"task": tasks.add_task(notify_partner, 7).id}


@supervised.post("/reminders")
async def remind(email: str, seconds: float, tasks: Tasks) -> dict[str, str]:
    reminders = tasks.using(delay=seconds, unique=f"reminder-{email}")
    return {"task": reminders.add_task(send_reminder, email).id}


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


app: FastAPI = FastAPI(title="A shop on fastapi-bgx")
app.include_router(router)
app.include_router(supervised)
bgx.install(app)

# For comparison: the same routes in an application without the library.
stock: FastAPI = FastAPI(title="The same shop on stock FastAPI")
stock.include_router(router)
app.mount("/stock", stock)
