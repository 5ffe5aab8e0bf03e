"""The other side of an application: a test client on either event loop, and a bare ASGI server.

The bare server shows what a test client hides: each message, and when it was sent.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import anyio
import fastapi
from fastapi.testclient import TestClient
from starlette.types import ASGIApp, Message

FASTAPI = tuple(int(part) for part in fastapi.__version__.split(".")[:3])

Notice = Callable[[Message], Awaitable[None] | None]


def client_of(app: ASGIApp, backend: str, **options: Any) -> TestClient:
    """A test client whose requests run on `backend`."""
    return TestClient(app, backend=cast(Any, backend), **options)


async def call(
    app: ASGIApp,
    path: str = "/",
    *,
    sent: Notice | None = None,
    receive: Callable[[], Awaitable[Message]] | None = None,
    spec_version: str = "2.3",
) -> list[Message]:
    """Send one GET request as a server does, and give the messages of the answer.

    `sent` sees each message at the moment when the application sends it. The client stays, unless
    `receive` says otherwise.
    """
    messages: list[Message] = []
    asked = False

    async def stay() -> Message:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        messages.append(message)
        if sent is not None:
            noticed = sent(message)
            if noticed is not None:
                await noticed

    scope = _scope("http", path) | {"method": "GET"}
    scope["asgi"]["spec_version"] = spec_version
    await app(scope, receive or stay, send)
    return messages


async def connect(app: ASGIApp, path: str = "/", *texts: str) -> list[Message]:
    """Open a WebSocket, send `texts`, leave, and give the messages of the application.

    It goes on to the application's own end, where the test client cancels what still runs.
    """
    messages: list[Message] = []
    waiting = [{"type": "websocket.connect"}]
    waiting += [{"type": "websocket.receive", "text": text} for text in texts]

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        return {"type": "websocket.disconnect", "code": 1000, "reason": ""}

    async def send(message: Message) -> None:
        messages.append(message)

    await app(_scope("websocket", path) | {"subprotocols": []}, receive, send)
    return messages


def _scope(kind: str, path: str) -> dict[str, Any]:
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http" if kind == "http" else "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"testserver")],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
    }


def last_body(message: Message) -> bool:
    """True for the message that ends a response."""
    return message["type"] == "http.response.body" and not message.get("more_body", False)


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[None]:
    """Start `app` as a server does, and shut it down at the end, on the event loop of the test."""
    to_app, inbox = anyio.create_memory_object_stream[Message](2)
    outbox, from_app = anyio.create_memory_object_stream[Message](2)
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    with to_app, inbox, outbox, from_app:
        async with anyio.create_task_group() as group:
            group.start_soon(partial(cast(Any, app), scope, inbox.receive, outbox.send))
            await to_app.send({"type": "lifespan.startup"})
            assert (await from_app.receive())["type"] == "lifespan.startup.complete"
            yield
            await to_app.send({"type": "lifespan.shutdown"})
            assert (await from_app.receive())["type"] == "lifespan.shutdown.complete"
