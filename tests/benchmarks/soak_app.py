"""The application that the soak visits: its routes, and tasks that do all that one can do."""

import asyncio
import math
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, HTTPException

from fastapi_bgx import BackgroundTasks, Bgx, Limit, Tasks
from tests.benchmarks.ledger import Gauge, Ledger

TENANTS = 10

ledger = Ledger()
everything = Gauge("max_concurrency", 60)
in_threads = Gauge("max_threads", 8)
smtp = Gauge("the limit smtp", 3)
narrow = Gauge("the limit narrow", 1)
tenants = [Gauge(f"the key {tenant}", 2) for tenant in range(TENANTS)]
BY_TENANT = Limit("tenant", 2, key=lambda tenant, **_: tenant)


# The tasks: everything that one can do.


async def quick(number: int) -> None:
    with ledger.call(number, everything):
        pass


async def napping(number: int) -> None:
    with ledger.call(number, everything):
        await asyncio.sleep(random.uniform(0, 0.005))


async def failing(number: int) -> None:
    with ledger.call(number, everything):
        await asyncio.sleep(0)
        raise ValueError(number)


async def leaking(number: int) -> None:
    with ledger.call(number, everything):
        raise asyncio.CancelledError


async def hanging(number: int) -> None:
    with ledger.call(number, everything):
        await asyncio.sleep(3600)


async def stubborn(number: int) -> None:
    with ledger.call(number, everything):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.02)


async def mailing(number: int) -> None:
    with ledger.call(number, everything, smtp):
        await asyncio.sleep(random.uniform(0, 0.003))


async def squeezing(number: int) -> None:
    with ledger.call(number, everything, narrow):
        await asyncio.sleep(random.uniform(0, 0.004))


async def of_tenant(number: int, tenant: int) -> None:
    with ledger.call(number, everything, tenants[tenant]):
        await asyncio.sleep(random.uniform(0, 0.003))


async def adding(number: int, tasks: BackgroundTasks) -> None:
    with ledger.call(number, everything):
        ledger.add(tasks, quick)
        ledger.add(tasks.using(detached=True), napping)


def blocking(number: int) -> None:
    with ledger.call(number, everything, in_threads):
        time.sleep(random.uniform(0, 0.003))


def blocking_of_tenant(number: int, tenant: int) -> None:
    with ledger.call(number, everything, in_threads, tenants[tenant]):
        time.sleep(random.uniform(0, 0.003))


def exiting(number: int) -> None:
    with ledger.call(number, everything, in_threads):
        sys.exit(number)


def overrunning(number: int) -> None:
    with ledger.call(number, everything, in_threads):
        time.sleep(0.08)


def add_any(tasks: BackgroundTasks) -> None:
    """One task of any kind, with any of the options that say how it is handed over."""
    manner: dict[str, Any] = random.choice(
        [{}, {}, {"detached": True}, {"concurrent": True}, {"detached": True, "concurrent": True}]
    )
    tenant = random.randrange(TENANTS)
    kinds: list[tuple[int, Callable[[], None]]] = [
        (20, lambda: ledger.add(tasks.using(**manner), quick)),
        (20, lambda: ledger.add(tasks.using(**manner), napping)),
        (15, lambda: ledger.add(tasks.using(**manner), blocking)),
        (8, lambda: ledger.add(tasks.using(limit="smtp", **manner), mailing)),
        (8, lambda: ledger.add(tasks.using(limit=BY_TENANT, **manner), of_tenant, tenant)),
        (4, lambda: ledger.add(tasks.using(limit=BY_TENANT, **manner), blocking_of_tenant, tenant)),
        (4, lambda: ledger.add(tasks.using(**manner), failing)),
        (2, lambda: ledger.add(tasks.using(**manner), leaking)),
        (2, lambda: ledger.add(tasks.using(**manner), exiting)),
        (2, lambda: ledger.add(tasks.using(timeout=0.03, **manner), hanging)),
        (2, lambda: ledger.add(tasks.using(timeout=0.03, **manner), stubborn)),
        (2, lambda: ledger.add(tasks.using(timeout=0.03, **manner), overrunning)),
        (4, lambda: ledger.add(tasks.using(**manner), adding, tasks)),
        (
            6,
            lambda: ledger.add(
                tasks.using(limit="narrow", queue_timeout=0.01, **manner), squeezing
            ),
        ),
    ]
    random.choices([add for _, add in kinds], [weight for weight, _ in kinds])[0]()


# The routes, and how often each is visited.


PATHS = {
    "/mixed": 800,
    "/sync": 100,
    "/failing": 40,
    "/forgotten": 10,
    "/flood": 3,
    "/process": 1,
}


def make_app(bgx: Bgx) -> FastAPI:
    """Every route, and every task supervised."""
    app = FastAPI()
    bgx.install(app)
    _add_usual(app)
    _add_rare(app)
    return app


def _add_usual(app: FastAPI) -> None:
    @app.get("/mixed")
    async def mixed(tasks: Tasks) -> None:
        for _ in range(random.randint(1, 6)):
            add_any(tasks)

    @app.get("/sync")
    def sync(tasks: Tasks) -> None:
        for _ in range(random.randint(1, 3)):
            add_any(tasks)

    @app.get("/failing")
    async def fails(tasks: Tasks) -> None:
        add_any(tasks)
        raise HTTPException(409)


def _add_rare(app: FastAPI) -> None:
    @app.get("/forgotten")
    async def forgotten() -> None:
        add_any(BackgroundTasks())

    @app.get("/flood")
    async def flood(tasks: Tasks) -> None:
        for _ in range(400):
            ledger.add(tasks.using(detached=True, concurrent=True), napping)

    @app.get("/process")
    async def process(tasks: Tasks) -> None:
        ledger.add(tasks.using(executor="process"), math.sqrt, 2.0, counts_calls=False)
