"""What the tests of the core share: a `Bgx` on the event loop of the test, and a gauge."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any

import anyio
from fastapi import BackgroundTasks as StockBackgroundTasks
from starlette.requests import Request

from fastapi_bgx import BackgroundTasks, Bgx, Settings

PATIENCE = 10.0
"""Seconds after which a test gives up waiting for something that should happen at once."""


async def tasks_of(bgx: Bgx) -> BackgroundTasks:
    """The tasks of one more request, as FastAPI injects them. Awaiting a call of them ends it."""
    return await bgx(StockBackgroundTasks(), Request({"type": "http"}))


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Bgx]:
    """A `Bgx` whose lifespan is active, so that tasks may outlive their request."""
    bgx = Bgx(Settings(**settings))
    bgx.start()
    try:
        yield bgx
    finally:
        with anyio.CancelScope(shield=True):
            await bgx.drain(grace=0)


def holding(**settings: Any) -> AbstractAsyncContextManager[Bgx]:
    """The same, and calls of tasks that did not succeed are held."""
    return serving(retryable=100, **settings)


async def until(condition: Callable[[], object]) -> None:
    """Let others run until `condition` holds. For what no event tells, such as a count."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.001)


class Gauge:
    """Counts who is inside now, and the most that ever were; in any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = 0
        self.most = 0
        self.total = 0

    def __enter__(self) -> "Gauge":
        with self._lock:
            self.inside += 1
            self.total += 1
            self.most = max(self.most, self.inside)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self.inside -= 1
