"""The tasks of the shop: ordinary functions of every temper, async or not.

What they need of the library are options at some of them, and `current_task()`.
"""

import random
import time
from typing import Any

import anyio
import structlog

from fastapi_bgx import Retry, current_task, task_options

log: Any = structlog.get_logger("shop")


async def send_welcome(email: str) -> None:
    await anyio.sleep(random.uniform(0.02, 0.2))
    log.info("mail.sent", kind="welcome", to=email)


async def send_receipt(order: int) -> None:
    log.info("mail.sent", kind="receipt", order=order)


class Bank:
    """What charges cards, at times."""

    answers = False


async def charge_card(order: int) -> None:
    if not Bank.answers:
        raise ConnectionError(f"the bank hung up on order {order}")
    log.info("card.charged", order=order)


async def print_invoice(order: int, customer: dict[str, str]) -> str:
    return f"invoice of order {order}, VAT id {customer['vat_id']}"


@task_options(timeout=0.5)
async def push_to_crm() -> None:
    await anyio.sleep_forever()  # the CRM does not answer


@task_options(timeout=0.5)
def resize_photo(seconds: float) -> None:
    time.sleep(seconds)  # a thread cannot be stopped from outside


@task_options(limit="smtp", concurrent=True)
async def send_newsletter(seconds: float) -> None:
    await anyio.sleep(seconds)


@task_options(limit="smtp", detached=True, expires=1)
async def send_flash_offer() -> None:
    log.info("mail.sent", kind="flash offer")


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
async def notify_partner(order: int, refusals: int, busy: float) -> None:
    task = current_task()
    assert task is not None
    task.log.info("partner.asked", order=order)
    if task.attempt <= refusals:
        raise PartnerBusy(retry_after=busy)


@task_options(detached=True)
async def send_reminder(email: str) -> None:
    log.info("mail.sent", kind="reminder", to=email)
