"""The event loop is never blocked: no sleep, no file, no socket and no process from its thread."""

import sys
import threading
from typing import Any

import anyio
import pytest
from fastapi import BackgroundTasks as Stock
from starlette.applications import Starlette
from structlog.testing import capture_logs

from fastapi_bgx import Bgx, Settings
from fastapi_bgx.background import upgrade

pytestmark = pytest.mark.anyio

BLOCKING = {"time.sleep", "open", "socket.connect", "socket.bind", "subprocess.Popen", "os.system"}
watched: list[int] = []
seen: list[str] = []


def audit(event: str, _arguments: Any) -> None:
    if watched and event in BLOCKING and threading.get_ident() in watched:
        seen.append(event)


sys.addaudithook(audit)  # for good: Python cannot take it back; without `watched` it does nothing


async def every_kind_of_task(bgx: Bgx) -> None:
    tasks = upgrade(Stock(), bgx.runners.current(), at_once=False)
    tasks.add_task(anyio.sleep, 0)
    tasks.add_task(len, ())
    tasks.using(timeout=0.01).add_task(anyio.sleep_forever)
    for _ in range(4):
        tasks.using(limit="two", concurrent=True).add_task(len, ())
    tasks.using(detached=True).add_task(anyio.sleep, 0.001)
    await tasks()


async def test_nothing_blocks_the_loop() -> None:
    bgx = Bgx(Settings(limits={"two": 2}))
    with capture_logs():
        async with bgx.lifespan(Starlette()):
            await every_kind_of_task(bgx)  # imports, and starts threads
            watched.append(threading.get_ident())
            try:
                await every_kind_of_task(bgx)
                await bgx.drain()
            finally:
                watched.clear()
    assert not seen


async def test_the_test_would_notice() -> None:
    watched.append(threading.get_ident())
    try:
        with open(__file__) as file:  # noqa: PTH123 - the very thing
            file.read(1)
    finally:
        watched.clear()
    assert seen == ["open"]
    seen.clear()
