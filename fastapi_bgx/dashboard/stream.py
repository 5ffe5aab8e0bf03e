"""`GET /events`: what changes, as server-sent events. What each client is told is in `feed.py`."""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Response
from fastapi import Query as Parameter
from starlette.types import Receive, Scope, Send

from fastapi_bgx.backends import current_token
from fastapi_bgx.console import Console
from fastapi_bgx.dashboard.api import Name, Statuses, add_get
from fastapi_bgx.dashboard.feed import Feed, Pace, Teller, Wanted
from fastapi_bgx.dashboard.problems import ProblemRaised

MEDIA_TYPE = "text/event-stream"
AWAY = b": the store does not answer\n\n"
HEARTBEAT = b": still here\n\n"
MOST_CHANGE = 2**63 - 1

WhenClosing = Callable[[Callable[[], None]], Callable[[], None]]
"""Has something called when the shutdown begins, on this event loop; gives what undoes that."""

Push = Callable[[bytes], Awaitable[None]]


def never(_: Callable[[], None]) -> Callable[[], None]:
    """No shutdown is announced."""
    return lambda: None


class Streams:
    """The streams of one router, whatever event loop they are on."""

    def __init__(self, console: Console, when_closing: WhenClosing, pace: Pace) -> None:
        self.pace = pace
        self.when_closing = when_closing
        self._console = console
        self._feeds: dict[object, Feed] = {}

    @property
    def full(self) -> bool:
        """True when there is no room for another one."""
        open_now = sum(feed.streams for feed in list(self._feeds.values()))
        return open_now >= self.pace.most_streams

    @contextmanager
    def listening(self) -> Generator[Feed]:
        """The feed of this event loop, for one more stream; forgotten after the last."""
        token = current_token()
        feed = self._feeds.setdefault(token, Feed(self._console, self.pace))
        feed.streams += 1
        try:
            yield feed
        finally:
            self._leave(token, feed)

    def _leave(self, token: object, feed: Feed) -> None:
        feed.streams -= 1
        if not feed.streams:
            del self._feeds[token]

    async def tell(self, feed: Feed, wanted: Wanted, push: Push) -> None:
        """Push what one client is told; without an end."""
        await push(f"retry: {self.pace.retry_s * 1000:.0f}\n\n".encode())
        teller, tick, told_at = Teller(wanted), 0, anyio.current_time()
        while True:
            await feed.wait(tick)
            tick = feed.tick
            message = await _next(feed, teller)
            now = anyio.current_time()
            if not message and now - told_at >= self.pace.heartbeat_s:
                message = HEARTBEAT
            if message:
                told_at = now
                await push(message)


async def _next(feed: Feed, teller: Teller) -> bytes:
    batch = feed.batch
    if batch is None:
        return AWAY
    behind = teller.behind(batch)
    changes = batch.changes if behind is None else await feed.since(behind)
    return AWAY if changes is None else teller.tell(changes)


class EventStream(Response):
    """Sends until the client leaves, the server shuts down or the stream is too old."""

    media_type = MEDIA_TYPE

    def __init__(self, streams: Streams, wanted: Wanted) -> None:
        # Neither a proxy nor the GZip middleware of Starlette < 0.46 is to collect what is sent.
        super().__init__(headers={"X-Accel-Buffering": "no", "Content-Encoding": "identity"})
        del self.headers["content-length"]
        self._streams = streams
        self._wanted = wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI has it
        """Send, and end the response as it should be."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with anyio.move_on_after(self._streams.pace.life_s) as life:
            forget = self._streams.when_closing(life.cancel)
            try:
                await self._send_until_gone(receive, send)
            finally:
                forget()
        with suppress(OSError):  # the client has left
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_until_gone(self, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def listen() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(listen)
            with suppress(OSError):  # how newer servers say that the client has left
                await self._send_messages(send)
            group.cancel_scope.cancel()

    async def _send_messages(self, send: Send) -> None:
        async def push(message: bytes) -> None:
            await send({"type": "http.response.body", "body": message, "more_body": True})

        with self._streams.listening() as feed:
            await self._streams.tell(feed, self._wanted, push)


def add_stream(
    router: APIRouter, console: Console, when_closing: WhenClosing, pace: Pace | None = None
) -> None:
    """Add the stream."""
    streams = Streams(console, when_closing, pace or Pace())

    async def events(
        status: Statuses = [],  # noqa: B006 - as in `api.query`
        name: Name = None,
        after: Annotated[
            int | None,
            Parameter(ge=0, le=MOST_CHANGE, description="Tell what has changed after this one."),
        ] = None,
        last_event_id: Annotated[
            str | None,
            Header(description="The same, as an `EventSource` sends it when it connects again."),
        ] = None,
    ) -> EventStream:
        """Tell what changes, from now on, as server-sent events.

        `task`: a task has changed; its data is the record, its id the number of the change.
        `reset`: more has changed than is told; load the list anew. Without a status or name that
        is asked for, all tasks; nobody hears that one has ceased to fit.
        """
        if streams.full:
            raise ProblemRaised(503, "too many streams are open", retry_after=streams.pace.retry_s)
        known = _change(last_event_id)
        return EventStream(
            streams,
            Wanted(after=after if known is None else known, status=frozenset(status), name=name),
        )

    add_get(
        router,
        "/events",
        events,
        "bgx_stream_events",
        "What changes",
        422,
        response_class=EventStream,
        response_model=None,
        status_code=200,
    )


def _change(text: str | None) -> int | None:
    """The number that a client gives back; `None` for what is none of ours."""
    if text is None or not (text.isascii() and text.isdigit()):
        return None
    return min(int(text[:20]), MOST_CHANGE)
