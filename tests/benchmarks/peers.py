"""The peers, in batches of tasks: each configured and used as its own documentation says.

Their packages are in the dependency group `bench`. A peer whose package is not there is left out.
"""

import asyncio
import inspect
from importlib.util import find_spec
from typing import Any

from fastapi import BackgroundTasks as StockBackgroundTasks

from tests.benchmarks.contestants import Contestant, Func
from tests.benchmarks.handwritten import THREADS

TASKFLOW = "fastapi-taskflow"
AIOJOBS = "aiojobs"
TASKIQ = "taskiq, in memory"


class Taskflow(Contestant):
    """fastapi-taskflow, nothing persisted: the object that its dependency `get_tasks` makes."""

    name = TASKFLOW

    async def open(self) -> None:
        from fastapi_taskflow import TaskManager

        self._manager: Any = TaskManager(max_sync_threads=THREADS)

    async def close(self) -> None:
        await self._manager.shutdown()

    def prepare(self) -> None:
        self._manager.store.clear()  # it keeps every task; what is measured is not its collection

    async def run(self, func: Func, count: int, times: int) -> None:
        self._manager.task()(func)
        for _ in range(times):
            stock = StockBackgroundTasks()
            tasks = self._manager.get_tasks(stock)
            for _ in range(count):
                tasks.add_task(func)
            await stock()


class Aiojobs(Contestant):
    """A `Scheduler` as it comes: 100 at once, 10,000 that wait."""

    name = AIOJOBS

    async def open(self) -> None:
        from aiojobs import Scheduler

        self._scheduler: Any = Scheduler()

    async def close(self) -> None:
        await self._scheduler.close()

    async def run(self, func: Func, count: int, times: int) -> None:
        if inspect.iscoroutinefunction(func):
            await self._run_async(func, count, times)
        else:
            await self._run_sync(func, count, times)

    async def _run_async(self, func: Func, count: int, times: int) -> None:
        scheduler = self._scheduler
        for _ in range(times):
            for _ in range(count):
                await scheduler.spawn(func())
            while len(scheduler):  # cheaper than to wait for each job, and none of them waits long
                await asyncio.sleep(0)

    async def _run_sync(self, func: Func, count: int, times: int) -> None:
        for _ in range(times):
            jobs = [await self._scheduler.spawn(asyncio.to_thread(func)) for _ in range(count)]
            for job in jobs:
                await job.wait()


class Taskiq(Contestant):
    """`InMemoryBroker` as it comes, but for as many threads as the others have."""

    name = TASKIQ

    async def open(self) -> None:
        from taskiq import InMemoryBroker

        self._broker: Any = InMemoryBroker(sync_tasks_pool_size=THREADS)
        await self._broker.startup()

    async def close(self) -> None:
        await self._broker.shutdown()

    async def run(self, func: Func, count: int, times: int) -> None:
        task = self._broker.task(func)
        for _ in range(times):
            for _ in range(count):
                await task.kiq()
            await self._broker.wait_all()


PACKAGES: dict[str, type[Contestant]] = {
    "fastapi_taskflow": Taskflow,
    "aiojobs": Aiojobs,
    "taskiq": Taskiq,
}


def installed_peers() -> list[Contestant]:
    """A new one of each peer whose package is there."""
    return [peer() for package, peer in PACKAGES.items() if find_spec(package) is not None]
