"""Requests to an application in this process: no server and no client, only the ASGI call."""

from typing import Any

from starlette.types import ASGIApp, Message

SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"localhost")],
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 80),
}
REQUEST: Message = {"type": "http.request", "body": b"", "more_body": False}


class Refused(Exception):
    """A request was not answered with 200."""

    def __init__(self, path: str, status: int) -> None:
        super().__init__(f"{path} was answered with {status}")
        self.status = status


async def get(app: ASGIApp, path: str) -> None:
    """Send one request, and wait until the application is done with it.

    Raises:
        Refused: the answer was not 200.
    """
    status = 0

    async def receive() -> Message:
        return REQUEST

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    await app(SCOPE | {"path": path, "raw_path": path.encode()}, receive, send)
    if status != 200:
        raise Refused(path, status)
