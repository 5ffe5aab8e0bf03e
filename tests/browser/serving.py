"""A real server, in a thread, that serves an application with the dashboard.

The store is in the hands of the test: what it writes there, open pages are told.
"""

import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.params import Depends
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_bgx.console import Console
from fastapi_bgx.dashboard import make_router
from fastapi_bgx.stores import MemoryStore
from tests.browser.scene import Scene

PREFIX = "/ops/tasks-of-the-shop"
"""Where the application has put the router: nothing may rely on being at the root."""
PATIENCE = 15.0
"""Seconds after which a condition that did not come true fails the test."""


def until(condition: Callable[[], object], otherwise: str) -> None:
    """Wait for a condition that something outside of the browser makes true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


class Watched:
    """Counts the bytes of the answers, by path, and keeps what the application raises."""

    def __init__(self, app: ASGIApp, sent: Counter[str], raised: list[str]) -> None:
        self._app, self._sent, self._raised = app, sent, raised

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and look at what comes back."""

        async def counting(message: Message) -> None:
            self._sent[scope["path"]] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counting if scope["type"] == "http" else send)
        except Exception:
            self._raised.append(traceback.format_exc())
            raise


class Served:
    """An application with the dashboard of a scene, on a port of its own."""

    def __init__(
        self,
        *,
        scene: Scene | None = None,
        dependencies: Sequence[Depends] = (),
        extend: Callable[[FastAPI], None] = lambda app: None,
    ) -> None:
        self.scene = scene or Scene(datetime.now(UTC))
        """What the dashboard shows from its next start on, and what it has had done."""
        self.sent: Counter[str] = Counter()
        """How many bytes of bodies were sent, by path."""
        self.raised: list[str] = []
        """The tracebacks of what the application raised: of answers with 500."""
        self.routes: list[Route] = []
        """Every route of the dashboard and the status API, without the prefix."""
        self._dependencies = dependencies
        self._extend = extend
        self._port = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def host(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """Where the dashboard begins, without a slash at its end."""
        return self.host + PREFIX

    def at(self, host: str) -> str:
        """Where the dashboard begins, by another name of this machine."""
        return self.url.replace("127.0.0.1", host)

    def pushed(self) -> int:
        """How many bytes went to pages, fragments and streams, but not to static files."""
        return sum(size for path, size in self.sent.items() if "/static/" not in path)

    def start(self) -> None:
        """Serve; after a `stop`, at the same address as before."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self._port))
        self._port = listening.getsockname()[1]
        app = Watched(self._app(), self.sent, self.raised)
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        server = self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        self._thread.start()
        until(self._answers, "the server does not answer")

    def stop(self) -> None:
        """End, and every connection with it."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server does not end"
        self._server = self._thread = None

    def _app(self) -> FastAPI:
        """The application as after a deploy: it knows nothing but what is in the store."""
        app = FastAPI(openapi_url=None)
        router = make_router(
            Console(self.scene.store, self.scene.control),
            dependencies=self._dependencies,
            public=not self._dependencies,
        )
        self.routes = [route for route in router.routes if isinstance(route, Route)]
        app.include_router(router, prefix=PREFIX)
        self._extend(app)
        return app

    def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(self.host + "/nothing", trust_env=False).status_code == 404
        return False


def empty_scene() -> Scene:
    """A scene in which no task was ever added."""
    scene = Scene(ended=0)
    scene.store = MemoryStore()
    return scene
