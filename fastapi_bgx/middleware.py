"""The ASGI middleware: starts and drains with the lifespan, and finds tasks that nobody called."""

import sys
from typing import Any, Protocol

import anyio
from fastapi.exceptions import ValidationException
from starlette.exceptions import HTTPException, WebSocketException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from fastapi_bgx.background import BackgroundTasks
from fastapi_bgx.reports import DrainReport
from fastapi_bgx.runners import Runners, serving

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

    async def drain(self, grace: float | None = None) -> DrainReport:
        """The application is about to shut down."""
        ...


class Visit:
    """One request or WebSocket connection, seen from outside."""

    __slots__ = ("_before", "_error", "_status", "bgx", "http", "lists")

    def __init__(self, bgx: Any, *, http: bool) -> None:
        self.bgx: Any = bgx
        self.http: bool = http
        self.lists: list[BackgroundTasks] = []
        self._before = sys.exception()
        self._error = ""
        self._status: int | None = None

    def note_answer(self, message: Message) -> None:
        """The response begins, or the WebSocket opens or closes.

        When that happens while an exception is being handled, an exception handler answers: the
        route has failed, whatever the status. (A WebSocket is also closed by routes themselves.)
        """
        self._status = message.get("status", 0)
        error = sys.exception()
        if error is not self._before and (self.http or isinstance(error, ANSWERED_BY_FRAMEWORK)):
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


class BgxMiddleware:
    """Pure ASGI: no task and no copy of a context stands between the server and the application."""

    def __init__(self, app: ASGIApp, bgx: Supervised) -> None:
        self.app = app
        self.bgx = bgx

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._serve_lifespan(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = Visit(self.bgx, http=scope["type"] == "http")
        outer = scope.get(SCOPE_KEY)  # a mounted application shares the scope with the one around
        scope[SCOPE_KEY] = visit
        token = serving.set(self.bgx.runners)

        def watch(message: Message) -> Any:
            if message["type"] in ANSWERS:
                visit.note_answer(message)
            return send(message)

        try:
            await self.app(scope, receive, watch)
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
            await self._settle(visit, visit.failure())
        finally:
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
            await send(message)

        await self.app(scope, drain_first, start_last)
