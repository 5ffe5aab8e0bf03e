"""Where tasks are added: kinds of routes, of answers and of applications."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import httpx
from fastapi import BackgroundTasks, FastAPI, HTTPException, WebSocket
from fastapi.responses import JSONResponse, Response
from starlette.background import BackgroundTask

from tests.benchmarks.compare.kit import STOCK, Kit, Wants
from tests.benchmarks.compare.lab import Lab
from tests.benchmarks.compare.server import until
from tests.benchmarks.compare.situation import Facts, Situation

visitor: ContextVar[str] = ContextVar("visitor", default="nobody")
NO_LIMITS = {STOCK: "no limits"}
STALL_S = 1.0
SERVER_THREADS = 40


class _Counted(Situation):
    """Tasks that one request adds, and how many of them ran."""

    added = 1
    verdict = "{ran} of {added}"

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            self.ask(server.url)
            return {"ran": server.wait_for("ran", self.added, 1.0), "added": self.added}

    def ask(self, url: str) -> None:
        """The request."""
        httpx.post(f"{url}/add", timeout=5, trust_env=False)


class OwnBackground(_Counted):
    """A route adds a task and returns a `Response` with its own background: tasks that ran."""

    added = 2

    def routes(self, kit: Kit) -> None:
        async def work() -> None:
            kit.note("ran")

        work = kit.task(work)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> Response:
            tasks.add_task(work)
            return JSONResponse({}, background=BackgroundTask(work))


class WebSocketRoute(_Counted):
    """A task that is added in a WebSocket route: did it run."""

    def routes(self, kit: Kit) -> None:
        async def work() -> None:
            kit.note("ran")

        work = kit.task(work)

        @kit.app.websocket("/add")
        async def add(socket: WebSocket, tasks: BackgroundTasks) -> None:
            await socket.accept()
            tasks.add_task(work)
            await socket.send_text("added")
            await socket.close()

    def ask(self, url: str) -> None:
        from websockets.sync.client import connect

        with connect(url.replace("http", "ws") + "/add", proxy=None) as socket:
            socket.recv(timeout=5)


class FailedRequest(Situation):
    """A request adds a task and is answered 402: did the task run, then and after a restart.

    The route raises `HTTPException(402)` after `add_task`. The restart is an orderly one
    (SIGTERM), with a store where there is one.
    """

    wants = Wants(store=True)
    verdict = "{before} times; after the restart {after} times"

    def routes(self, kit: Kit) -> None:
        def charge() -> None:
            kit.note("ran")

        charge = kit.task(charge)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(charge)
            raise HTTPException(402)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post("/add")
            before = server.wait_for("ran", 1, 0.5)
            server.stop()
        with lab.serve() as server:
            return {"before": before, "after": server.wait_for("ran", before + 1, 1.5) - before}

    def text(self, facts: Facts) -> str:
        then = "ran" if facts["before"] else "did not run"
        return f"{then}; {'ran' if facts['after'] else 'did not run'} after the restart"


class OwnLifespan(Situation):
    """`FastAPI(lifespan=…)`, a limit of 2, six requests with a task each: most that ran at once.

    The application has a lifespan of its own, and nothing in it for the library.
    """

    wants = Wants(own_lifespan=True, limits={"two": 2}, detached=True)
    lacks = NO_LIMITS
    verdict = "{most}"

    def routes(self, kit: Kit) -> None:
        running = 0

        async def work() -> None:
            nonlocal running
            running += 1
            kit.note("running", running)
            await asyncio.sleep(0.3)
            running -= 1

        work = kit.task(work, limit="two")

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(work)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post_many("/add", 6)
            server.wait_for("running", 6)
            return {"most": max(map(int, server.notes("running")))}


class Context(Situation):
    """A contextvar that was set in the route, as its task sees it.

    What a correlation id or structlog's bound values rely on.
    """

    verdict = "async: {from_async}; sync: {from_sync}"

    def routes(self, kit: Kit) -> None:
        async def work(route: str) -> None:
            kit.note(route, visitor.get())

        work = kit.task(work)

        @kit.app.post("/async")
        async def add_async(tasks: BackgroundTasks) -> None:
            visitor.set("ann")
            tasks.add_task(work, "async")

        @kit.app.post("/sync")
        def add_sync(tasks: BackgroundTasks) -> None:
            visitor.set("ann")
            tasks.add_task(work, "sync")

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post("/async")
            server.post("/sync")
            until(lambda: server.count("async") and server.count("sync"), 2)
            seen = {route: "ann" in server.notes(route) for route in ("async", "sync")}
        words = {True: "seen", False: "not seen"}
        return {f"from_{route}": words[found] for route, found in seen.items()}


class OtherApp(Situation):
    """What another application of the process, left alone, is given for `BackgroundTasks`."""

    verdict = "`{given}`"

    def routes(self, kit: Kit) -> None:
        other = FastAPI()

        @other.get("/given")
        async def given(tasks: BackgroundTasks) -> str:
            return type(tasks).__name__

        kit.app.mount("/other", other)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            return {"given": server.get("/other/given").json()}


class BusyThreads(Situation):
    """An async route with a task, by `Depends`, while 40 sync endpoints run for 1 s: it took.

    fastapi-taskflow: `Depends(task_manager.get_tasks)`, the third pattern of its README; the patch
    of FastAPI has no such cost. fastapi-bgx: `Depends(bgx)`. Stock: no dependency.
    """

    wants = Wants(by_dependency=True)
    verdict = "{ms:,.0f} ms"

    def routes(self, kit: Kit) -> None:
        async def work() -> None:
            kit.note("ran")

        work = kit.task(work)

        @kit.app.post("/stall")
        def stall() -> None:
            kit.note("stalled")
            time.sleep(STALL_S)

        @kit.app.post("/add")
        async def add(tasks: kit.dependency) -> None:  # type: ignore[name-defined]
            tasks.add_task(work)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server, ThreadPoolExecutor(1) as pool:
            server.post("/add")
            stalls = pool.submit(server.post_many, "/stall", SERVER_THREADS, SERVER_THREADS)
            server.wait_for("stalled", SERVER_THREADS)
            began = time.perf_counter()
            server.post("/add").raise_for_status()
            seconds = time.perf_counter() - began
            stalls.result()
            return {"ms": seconds * 1e3}


ALL: tuple[Situation, ...] = (
    OwnBackground(),
    WebSocketRoute(),
    FailedRequest(),
    OwnLifespan(),
    Context(),
    OtherApp(),
    BusyThreads(),
)
