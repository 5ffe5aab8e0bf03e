"""Stock FastAPI and fastapi-taskflow, configured as their own documentation recommends."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI

from tests.benchmarks.compare.kit import (
    DATABASE,
    OURS,
    PASSWORD,
    STOCK,
    TASKFLOW,
    THREADS,
    USER,
    F,
    Kit,
    Wants,
)


class StockKit(Kit):
    """FastAPI as it is."""

    def make_app(self) -> FastAPI:
        return FastAPI(lifespan=self._lifespan)


class TaskflowKit(Kit):
    """The quick start of fastapi-taskflow's README: `TaskAdmin(..., auto_install=True)`.

    With a thread pool of its own, named queues where there are limits, and, where a store is
    wanted, its SQLite file and `requeue_pending=True`.
    """

    def make_app(self) -> FastAPI:
        from fastapi_taskflow import TaskAdmin, TaskManager

        wants = self.wants
        app = FastAPI(lifespan=self._lifespan)
        self.manager: Any = TaskManager(**self._options())
        self.dependency = Annotated[Any, Depends(self.manager.get_tasks)]
        auth = (USER, PASSWORD) if wants.guarded else None
        TaskAdmin(app, self.manager, auto_install=not wants.by_dependency, auth=auth)
        return app

    def _options(self) -> dict[str, Any]:
        from fastapi_taskflow import QueueConfig, StdoutLogger

        wants = self.wants
        options: dict[str, Any] = {"max_sync_threads": THREADS if wants.own_threads else None}
        if wants.limits:
            options["queues"] = {
                name: QueueConfig(concurrency=slots) for name, slots in wants.limits.items()
            }
        if wants.most_waiting is not None:
            options["max_size"] = wants.most_waiting
            options["max_concurrent_tasks"] = 1
        if wants.store:
            options |= {"snapshot_db": str(self.folder / DATABASE), "requeue_pending": True}
        if wants.observed:
            options["loggers"] = [StdoutLogger(log_lifecycle=True)]
        if wants.encrypted:
            from cryptography.fernet import Fernet

            options["encrypt_args_key"] = Fernet.generate_key()
        return options

    def task(self, func: F, **options: Any) -> F:
        decorated: F = self.manager.task(
            retries=options.get("retries", 0),
            delay=options.get("pause", 0.0),
            queue=options.get("limit"),
            requeue_on_interrupt=options.get("again", False),
        )(func)
        return decorated

    def id_of(self, added: Any) -> str | None:
        return str(added)

    def once(self, tasks: Any, key: str, func: F, *arguments: Any) -> Any:
        return tasks.add_task(func, *arguments, idempotency_key=key)

    def every(self, seconds: float, func: F) -> None:
        self.manager.schedule(every=seconds)(func)

    async def resize(self, limit: str, slots: int) -> str:
        self.manager.update_queue_config(limit, slots, None)
        return "changed"


def make_kit(contestant: str, wants: Wants, folder: Path) -> Kit:
    """The application of a contestant, without routes. No process imports another's package."""
    if contestant == OURS:
        from tests.benchmarks.compare.our_kit import OurKit

        return OurKit(wants, folder)
    return {STOCK: StockKit, TASKFLOW: TaskflowKit}[contestant](wants, folder)
