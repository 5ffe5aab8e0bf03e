"""The dashboard over many records: how long the server takes for each page, and how large it is.

    python -m tests.benchmarks.pages --records 100000 --store memory --store sqlite

A store is the memory of a process (`memory`), or any address that `SqlStore` takes; `sqlite` is a
file of its own, that is deleted afterwards. Times are those of the whole application without a
network: routing, the store's answer, the template.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import httpx
from fastapi import FastAPI

from fastapi_bgx.console import Console
from fastapi_bgx.dashboard import make_router
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import FullRecord
from fastapi_bgx.stores import MemoryStore, Store
from tests.browser.scene import Scene

SPAN = timedelta(days=7)
"""The time in which the records were added."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One page."""

    page: str
    times_ms: tuple[float, ...]
    size: int
    """Bytes of its body, not compressed."""

    @property
    def p95_ms(self) -> float:
        """What 95 % of the requests did not exceed."""
        return quantiles(self.times_ms, n=20)[-1]


def many(scene: Scene, records: int) -> Iterator[FullRecord]:
    """So many records, like those of the scene, over a week."""
    step = SPAN / records
    ended = cycle([record for record in scene.records if record.final])
    for number, record in zip(range(records), ended, strict=False):
        shift = scene.now - step * number - record.added_at
        times = {
            name: value + shift
            for name in ("added_at", "started_at", "ended_at")
            if (value := getattr(record, name)) is not None
        }
        yield record.model_copy(update={"id": f"many-{number}", **times})


def fill(store: Store, scene: Scene, records: int) -> None:
    """Write what is alive in the scene, and many that have ended."""
    store.open()
    store.write([record for record in scene.records if not record.final])
    for process in scene.store.processes():
        store.beat(process)
    for batch in _batches(list(many(scene, records)), 1_000):
        store.write(batch)


def _batches(records: list[FullRecord], size: int) -> Iterator[list[FullRecord]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]


def pages_of(scene: Scene) -> dict[str, str]:
    """What is asked for: every page, and the API's share of them."""
    failed = scene.first(Status.FAILED)
    return {
        "overview": "/",
        "overview, 7 days": "/?within=7d",
        "tasks": "/ui/tasks",
        "tasks, failed": "/ui/tasks?status=failed",
        "tasks, searched": "/ui/tasks?text=refused",
        "tasks, found nowhere": "/ui/tasks?text=nowhere",
        "failures": "/ui/failures",
        "now": "/ui/now",
        "GET /tasks": "/tasks",
        "GET /stats": "/stats",
        f"GET /failures ({failed.error_type})": "/failures",
    }


async def measure(store: Store, scene: Scene, rounds: int) -> list[Reading]:
    """Every page, one after the other."""
    app = FastAPI()
    app.include_router(make_router(Console(store, scene.control), public=True))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        return [
            await _measure_page(client, page, path, rounds)
            for page, path in pages_of(scene).items()
        ]


async def _measure_page(client: httpx.AsyncClient, page: str, path: str, rounds: int) -> Reading:
    (await client.get(path)).raise_for_status()
    times: list[float] = []
    size = 0
    for _ in range(rounds):
        start = time.perf_counter()
        answer = await client.get(path)
        times.append((time.perf_counter() - start) * 1e3)
        size = len(answer.content)
    return Reading(page, tuple(times), size)


@contextmanager
def opened(name: str) -> Iterator[Store]:
    """The store of that name, empty."""
    if name == "memory":
        yield MemoryStore()
        return
    from fastapi_bgx.stores.sql import SqlStore

    with TemporaryDirectory() as folder:
        address = f"sqlite:///{Path(folder) / 'records.db'}" if name == "sqlite" else name
        store = SqlStore(address)
        yield store
        store.close()


def main() -> None:
    """Run what the command line asks for, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pages", description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--store", action="append", help="may be repeated (default: memory)")
    arguments = parser.parse_args()
    scene = Scene(datetime.now(UTC))
    for name in arguments.store or ["memory"]:
        with opened(name) as store:
            fill(store, scene, arguments.records)
            print(f"\n{name}, {arguments.records:,} records: median and p95 in ms, kB")
            for each in asyncio.run(measure(store, scene, arguments.rounds)):
                print(
                    f"  {each.page:40} {median(each.times_ms):8.1f} {each.p95_ms:8.1f}"
                    f" {each.size / 1e3:8.1f}"
                )


if __name__ == "__main__":
    main()
