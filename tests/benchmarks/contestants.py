"""Who is measured in batches of tasks, without a request: stock, hand-written and this library.

Each adds tasks to whatever it has for that, and waits for their end. The peers are in `peers.py`.
"""

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import BackgroundTasks as StockBackgroundTasks

from fastapi_bgx import Bgx, Settings
from fastapi_bgx.background import upgrade
from tests.benchmarks.handwritten import THREADS, TIMEOUT_S, log_json, supervision

Func = Callable[[], Any]

STOCK = "stock"
HAND_WRITTEN = "hand-written"
NOBODY = "bgx, nobody listening"
FILTERED = "bgx, level filtered"
ONE_EVENT = "bgx, one event"
TWO_EVENTS = "bgx, two events"


class Contestant(ABC):
    """One row of a table."""

    name: str
    most_tasks: int = sys.maxsize
    """No more than these are run before it may settle."""

    async def open(self) -> None:  # noqa: B027 - most need nothing
        """Start whatever it needs, on the loop that it is measured on."""

    async def close(self) -> None:  # noqa: B027
        """Stop it."""

    def prepare(self) -> None:  # noqa: B027
        """Called before each measurement, outside of the time."""

    async def settle(self) -> None:  # noqa: B027
        """Called after each measurement: wait for what `run` left to other threads."""

    @abstractmethod
    async def run(self, func: Func, count: int, times: int) -> None:
        """Add `count` tasks and wait until they have ended; `times` times over."""


class Stock(Contestant):
    """FastAPI's own."""

    name = STOCK

    async def run(self, func: Func, count: int, times: int) -> None:
        for _ in range(times):
            tasks = StockBackgroundTasks()
            for _ in range(count):
                tasks.add_task(func)
            await tasks()


class HandWritten(Contestant):
    """Stock, with `handwritten.supervision` around each function."""

    name = HAND_WRITTEN

    async def open(self) -> None:
        self._supervise = supervision()

    async def run(self, func: Func, count: int, times: int) -> None:
        supervise = self._supervise
        for _ in range(times):
            tasks = StockBackgroundTasks()
            for _ in range(count):
                tasks.add_task(supervise, func)
            await tasks()


class Supervised(Contestant):
    """This library, with what hand-written has: a timeout, a limit, threads of its own.

    The instance is made as the dependency makes it, from the one that FastAPI made.
    """

    def __init__(self, name: str, level: int, **settings: Any) -> None:
        self.name = name
        self._level = level
        self._settings = Settings(timeout=TIMEOUT_S, max_threads=THREADS, **settings)

    async def open(self) -> None:
        self._bgx = Bgx(self._settings)

    def prepare(self) -> None:
        log_json(self._level)

    async def run(self, func: Func, count: int, times: int) -> None:
        runners = self._bgx.runners
        for _ in range(times):
            tasks = upgrade(StockBackgroundTasks(), runners.current(), at_once=False)
            for _ in range(count):
                tasks.add_task(func)
            await tasks()


def nobody() -> Supervised:
    """No event is logged."""
    return Supervised(NOBODY, logging.INFO, log_events=frozenset())


def filtered() -> Supervised:
    """The default events, and a level of structlog's that lets none of a success through."""
    return Supervised(FILTERED, logging.WARNING)


def one_event() -> Supervised:
    """The default: `task.succeeded` for each task."""
    return Supervised(ONE_EVENT, logging.INFO)


def two_events() -> Supervised:
    """What hand-written logs: `task.started`, too."""
    events = {"task.started", "task.succeeded"}
    return Supervised(TWO_EVENTS, logging.DEBUG, log_events=events)


@asynccontextmanager
async def opened(contestants: Iterable[Contestant]) -> AsyncIterator[list[Contestant]]:
    """Start all of them, see that each runs what it is given, and stop them in the end."""
    async with AsyncExitStack() as stack:
        ready = []
        for contestant in contestants:
            await contestant.open()
            stack.push_async_callback(contestant.close)
            await _prove(contestant)
            ready.append(contestant)
        yield ready


async def _prove(contestant: Contestant) -> None:
    """Nobody is timed who was not seen to run every task, of both kinds."""
    ran: list[str] = []

    async def on_loop() -> None:
        ran.append("on the loop")

    def in_thread() -> None:
        ran.append("in a thread")

    contestant.prepare()
    await contestant.run(on_loop, 3, 2)
    await contestant.run(in_thread, 3, 2)
    expected = ["on the loop"] * 6 + ["in a thread"] * 6
    if ran != expected:
        raise AssertionError(f"{contestant.name} ran {ran}")
