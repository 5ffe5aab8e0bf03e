"""The ASGI middleware: starts and drains with the lifespan, and finds tasks that nobody called."""

from collections.abc import Awaitable, Callable
from sys import exception
from typing import Any, Protocol

import anyio
from fastapi import BackgroundTasks as StockBackgroundTasks
from fastapi.exceptions import ValidationException
from starlette.exceptions import HTTPException, WebSocketException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from fastapi_bgx.background import BackgroundTasks, upgrade
from fastapi_bgx.reports import DrainReport
from fastapi_bgx.runner import Runner
from fastapi_bgx.runners import Runners, serving
from fastapi_bgx.task import Task

SCOPE_KEY = "fastapi_bgx"
FIRST_ERROR_STATUS = 400
ANSWERS = frozenset(
    {
        "http.response.start",
        "websocket.accept",
        "websocket.close",
        "websocket.http.response.start",
    }
)
ANSWERED_BY_FRAMEWORK = (HTTPException, ValidationException, WebSocketException)


class Supervised(Protocol):
    """What the middleware needs from the `Bgx` that it belongs to."""

    runners: Runners

    def start(self, app: Any) -> None:
        """The application has started."""
        ...

    async def ready(self) -> None:
        """Wait a moment for what has to be there before the first request."""
        ...

    async def drain(self, grace: float | None = None) -> DrainReport:
        """The application is about to shut down."""
        ...


OVER: list[BackgroundTasks] = []
"""The lists of a request that is over: for all of them the same, and always empty."""


class Visit:
    """One request or WebSocket connection, seen from outside."""

    __slots__ = (
        "_before",
        "_error",
        "_kind",
        "_send",
        "_status",
        "bgx",
        "lists",
        "runner",
        "scope",
    )

    def __init__(self, bgx: Any, scope: Scope, send: Send) -> None:
        self.bgx: Any = bgx
        self.runner: Runner = bgx.runners.current()  # a sync route cannot find it in its thread
        self.lists: list[BackgroundTasks] = []
        self.scope: Scope | None = scope
        """The connection; `None` when it is over."""
        self._kind: str = scope["type"]
        self._send: Send = send
        self._before: BaseException | None = exception()
        self._error = ""
        self._status: int | None = None

    @property
    def runners(self) -> Runners:
        """Those of the `Bgx` that serves it."""
        runners: Runners = self.bgx.runners
        return runners

    def supervise(self, stock: StockBackgroundTasks, runner: Runner) -> BackgroundTasks:
        """Make ours of the list that FastAPI made for the request, and see to its end."""
        tasks = upgrade(stock, runner, at_once=self._kind == "websocket")
        if self.lists is not OVER:  # else something asks that outlives the request
            self.lists.append(tasks)
        return tasks

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on to the server, and note how the request is answered."""
        if message["type"] in ANSWERS:
            self._status = message.get("status", 0)
            error = exception()
            if error is not None and error is not self._before:
                self._note_error(error)
        return self._send(message)

    def _note_error(self, error: BaseException) -> None:
        """The response begins, or the WebSocket opens or closes, while `error` is being handled.

        So an exception handler answers: the route has failed, whatever the status. (A WebSocket is
        also closed by routes themselves.)
        """
        if self._kind == "http" or isinstance(error, ANSWERED_BY_FRAMEWORK):
            self._error = type(error).__name__

    def failure(self) -> str:
        """Why the tasks may not run, though nothing was raised; empty when they may."""
        if self._status is None:
            return "the request failed: no response"
        if self._status >= FIRST_ERROR_STATUS:
            return f"the request failed: {self._status}"
        if self._error:
            return f"the request failed: {self._error}"
        return ""

    def settled(self) -> bool:
        """True when every task was called: how nearly all requests end."""
        for tasks in self.lists:
            for task in tasks.tasks:
                if type(task) is not Task or not task.claimed:
                    return False
        return True

    def leave(self) -> None:
        """Let go of the request: contexts of tasks that outlive it keep the visit itself."""
        self._send, self._before, self.lists, self.scope = refuse, None, OVER, None


async def refuse(message: Message) -> None:
    """What sends for a request that is over."""
    raise RuntimeError(f"{message['type']} was sent after the request had ended")


def nothing() -> None:
    """What there is to prepare where no dependency was injected."""


class BgxMiddleware:
    """Pure ASGI: no task and no copy of a context stands between the server and the application."""

    def __init__(
        self, app: ASGIApp, bgx: Supervised, prepare: Callable[[], object] = nothing
    ) -> None:
        self.app = app
        self.bgx = bgx
        self._prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        if scope["type"] == "lifespan":
            return await self._serve_lifespan(scope, receive, send)
        self._prepare()
        visit = Visit(self.bgx, scope, send)
        outer = scope.get(SCOPE_KEY)  # a mounted application shares the scope with the one around
        scope[SCOPE_KEY] = visit
        token = serving.set(visit)
        try:
            await self.app(scope, receive, visit.send)
        except WebSocketDisconnect:  # the client left: how most WebSockets end, and no failure
            await self._settle(visit, "")
            raise
        except Exception as error:
            await self._settle(visit, f"the request failed: {type(error).__name__}")
            raise
        except BaseException:
            for tasks in visit.lists:
                tasks.drop("the request was cancelled")
            raise
        else:
            if visit.lists and not visit.settled():
                await self._settle(visit, visit.failure())
        finally:
            visit.leave()
            serving.reset(token)
            scope[SCOPE_KEY] = outer

    async def _settle(self, visit: Visit, failure: str) -> None:
        """Run the tasks that nobody called, or say why not."""
        drop = failure and self.bgx.runners.settings.on_failed_response == "drop"
        for tasks in visit.lists:
            if drop:
                tasks.drop(failure)
            elif tasks.left():
                await tasks()

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def drain_first() -> Message:
            try:
                message = await receive()
            except anyio.get_cancelled_exc_class():  # no shutdown: a second Ctrl-C, for example
                with anyio.CancelScope(shield=True):
                    await self.bgx.drain(0.0)
                raise
            if message["type"] == "lifespan.shutdown":
                await self.bgx.drain()  # before the application closes what its tasks use
            return message

        async def start_last(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self.bgx.start(scope.get("app"))
                await self.bgx.ready()
            await send(message)

        await self.app(scope, drain_first, start_last)
