"""`GET /events`, message by message, on both event loops; tests/server has it on real sockets."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, FastAPI
from starlette.types import Message

from fastapi_bgx import Bgx
from fastapi_bgx.console import Console
from fastapi_bgx.dashboard.feed import Pace
from fastapi_bgx.dashboard.guard import HEADERS, guarded_route
from fastapi_bgx.dashboard.stream import WhenClosing, add_stream, never
from fastapi_bgx.errors import StoreUnavailable
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Changes
from fastapi_bgx.stores import MemoryStore
from tests.consoles import StandIn, record, store_with
from tests.supervision import PATIENCE, serving, until

pytestmark = pytest.mark.anyio

FAST = Pace(every_s=0.005, heartbeat_s=60)


class Counted(MemoryStore):
    """A store that counts who asks for changes, and can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int | None] = []
        self.away = False

    def changes(self, after: int | None, most: int) -> Changes:
        self.asked.append(after)
        if self.away:
            raise StoreUnavailable("connection refused")
        return super().changes(after, most)


def streaming(store: MemoryStore, pace: Pace = FAST, when_closing: WhenClosing = never) -> FastAPI:
    router = APIRouter(route_class=guarded_route())
    add_stream(router, Console(store, StandIn()), when_closing, pace)
    app = FastAPI()
    app.include_router(router)
    return app


class Client:
    """One client of the stream: what it was sent, and a way to leave."""

    def __init__(self, app: FastAPI, query: str, headers: dict[str, str]) -> None:
        self._app = app
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        self.ended = False
        self.left = anyio.Event()
        self.refuse_when_left = False
        self.stopped_reading: anyio.Event | None = None
        names = {name.lower().encode(): value.encode() for name, value in headers.items()}
        self._scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/events",
            "raw_path": b"/events",
            "query_string": query.encode(),
            "root_path": "",
            "headers": list(names.items()),
            "server": ("testserver", 80),
            "client": ("127.0.0.1", 1),
        }

    async def connect(self) -> None:
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if self.stopped_reading is not None:
                await self.stopped_reading.wait()
            if self.refuse_when_left and self.left.is_set():
                raise OSError("the client has left")
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                self.text += message["body"].decode()
                self.ended = not message.get("more_body")

        await self._app(self._scope, receive, send)

    @property
    def blocks(self) -> list[dict[str, str]]:
        """The messages: fields by name, a comment as the field without a name."""
        return [
            {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}
            for block in self.text.split("\n\n")
            if (lines := block.split("\n")) != [""]
        ]

    @property
    def ids(self) -> list[str]:
        return [block["id"] for block in self.blocks if "id" in block]

    @property
    def tasks(self) -> list[str]:
        """The ids of the tasks that it was told of."""
        told = (block for block in self.blocks if block.get("event") == "task")
        return [json.loads(block["data"])["id"] for block in told]

    @property
    def resets(self) -> list[str]:
        return [block["id"] for block in self.blocks if block.get("event") == "reset"]

    @property
    def comments(self) -> list[str]:
        return [block[""] for block in self.blocks if "" in block]


@asynccontextmanager
async def connected(
    app: FastAPI, query: str = "", *, count: int = 1, last_event_id: str | None = None
) -> AsyncIterator[list[Client]]:
    """Clients that know where changes stand, or have been told what they missed."""
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            headers = {} if last_event_id is None else {"last-event-id": last_event_id}
            clients = [Client(app, query, headers) for _ in range(count)]
            for client in clients:
                group.start_soon(client.connect)
            await until(lambda: all(client.ids or client.ended for client in clients))
            yield clients
            for client in clients:
                client.left.set()


# What it tells.


async def test_a_change_is_told_with_its_number_and_the_record() -> None:
    store = store_with(record(1))
    async with connected(streaming(store)) as [client]:
        store.write([record(2, Status.FAILED)])
        await until(lambda: client.tasks)
    told = client.blocks[-1]
    assert (told["event"], told["id"]) == ("task", "2")
    data = json.loads(told["data"])
    assert (data["id"], data["status"], data["change"]) == ("p-2", "failed", 2)
    assert "traceback" not in data


async def test_it_begins_with_where_changes_stand_and_when_to_come_back() -> None:
    async with connected(streaming(store_with(record(1), record(2)))) as [client]:
        pass
    assert client.blocks == [{"retry": "3000"}, {"id": "2"}]
    assert client.status == 200
    assert client.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert client.headers["x-accel-buffering"] == "no"
    assert client.headers["content-encoding"] == "identity", "no middleware is to collect it"
    assert HEADERS.keys() <= {name.title() for name in client.headers} | HEADERS.keys()
    assert client.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("how", ["header", "query", "both"])
async def test_a_client_that_comes_back_is_told_what_it_missed(how: str) -> None:
    store = store_with(*(record(n) for n in range(1, 5)))
    query = {"header": "", "query": "after=2", "both": "after=1"}[how]
    known = None if how == "query" else "2"
    async with connected(streaming(store), query, last_event_id=known) as [client]:
        await until(lambda: client.tasks == ["p-3", "p-4"])
        store.write([record(5)])
        await until(lambda: client.tasks == ["p-3", "p-4", "p-5"])
    assert client.ids == ["3", "4", "5"]


@pytest.mark.parametrize("number", ["-1", "x", "²", "", "1.5"])
async def test_a_number_that_is_none_of_ours_is_nobodys(number: str) -> None:
    async with connected(streaming(store_with(record(1))), last_event_id=number) as [client]:
        assert client.blocks[-1] == {"id": "1"}


@pytest.mark.parametrize("number", ["9", "9" * 30])
async def test_a_number_of_another_store_means_that_the_list_is_loaded_anew(number: str) -> None:
    store = store_with(record(1))
    async with connected(streaming(store), last_event_id=number) as [client]:
        assert client.resets == ["1"]
        store.write([record(2)])
        await until(lambda: client.tasks == ["p-2"])


async def test_who_missed_more_than_is_told_loads_the_list_anew() -> None:
    store = store_with(record(1))
    app = streaming(store, Pace(every_s=0.005, most_records=3))
    async with connected(app) as [client]:
        store.write([record(n) for n in range(2, 10)])
        await until(lambda: client.resets)
        store.write([record(10)])
        await until(lambda: client.tasks == ["p-10"])
    assert client.resets == ["9"]
    async with connected(app, "after=1") as [late]:
        assert late.resets == ["10"]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("status=failed", ["p-2"]),
        ("status=failed&status=running", ["p-2", "p-3"]),
        ("name=other", ["p-4"]),
        ("name=other&status=failed", []),
    ],
)
async def test_a_client_is_told_what_it_asks_for(query: str, told: list[str]) -> None:
    store = store_with()
    async with connected(streaming(store), query) as [client]:
        store.write(
            [
                record(1),
                record(2, Status.FAILED),
                record(3, Status.RUNNING),
                record(4, name="other"),
                record(5),
            ]
        )
        await until(lambda: "5" in client.ids)  # so that it need not hear of the others again
    assert client.tasks == told
    assert client.blocks[-1] == {"id": "5"}


async def test_many_changes_of_a_task_are_one() -> None:
    store = store_with()
    async with connected(streaming(store, Pace(every_s=0.2))) as [client]:
        for _ in range(50):
            store.write([record(1, Status.RUNNING)])
        await until(lambda: client.tasks)
        store.write([record(1)])
        await until(lambda: client.ids[-1] == "51")
    assert len(client.tasks) <= 3


# Many clients.


async def test_the_store_is_asked_once_for_all_of_them() -> None:
    store = Counted()
    async with connected(streaming(store), count=50) as clients:
        store.write([record(1)])
        await until(lambda: all(client.tasks == ["p-1"] for client in clients))
        # None: where changes stand. Then the same question again and again.
    assert store.asked.count(None) == 1
    assert store.asked == sorted(store.asked, key=lambda after: after or 0)


async def test_when_one_that_asks_for_all_leaves_another_one_asks() -> None:
    store = Counted()
    async with connected(streaming(store, Pace(every_s=0.05)), count=3) as clients:
        for number, client in enumerate(clients[:2], start=1):
            client.left.set()
            await until(lambda client=client: client.ended)  # type: ignore[misc]
            store.write([record(number)])
            await until(lambda number=number: len(clients[2].tasks) == number)  # type: ignore[misc]


async def test_after_the_last_has_left_the_store_is_asked_no_more() -> None:
    store = Counted()
    app = streaming(store)
    async with connected(app, count=2):
        pass
    asked = len(store.asked)
    await anyio.sleep(0.05)
    assert len(store.asked) == asked
    store.write([record(n) for n in range(300)])
    async with connected(app) as [client]:  # it begins anew, and has missed nothing
        assert client.blocks[-1] == {"id": "300"}


async def test_one_that_does_not_read_holds_nobody_up_and_catches_up() -> None:
    store = store_with()
    async with connected(streaming(store), count=2) as [slow, quick]:
        slow.stopped_reading = anyio.Event()
        for number in range(1, 20):
            store.write([record(number)])
            await until(lambda number=number: len(quick.tasks) == number)  # type: ignore[misc]
        slow.stopped_reading.set()
        await until(lambda: slow.ids[-1] == "19")
        assert len(slow.tasks) == len(set(slow.tasks)) == 19


async def test_there_are_only_so_many() -> None:
    app = streaming(store_with(), Pace(every_s=0.005, most_streams=2))
    async with connected(app, count=2):
        refused = Client(app, "", {})
        await refused.connect()
        assert (refused.status, refused.headers["retry-after"]) == (503, "3")
        assert "too many streams" in refused.text
    async with connected(app, count=2):
        pass


# Time.


async def test_a_quiet_stream_is_kept_open_by_a_comment() -> None:
    async with connected(streaming(store_with(), Pace(every_s=0.005, heartbeat_s=0.02))) as [c]:
        await until(lambda: c.comments.count("still here") >= 2)


async def test_a_store_that_is_away_does_not_end_the_stream() -> None:
    store = Counted()
    async with connected(streaming(store)) as [client]:
        store.away = True
        await until(lambda: "the store does not answer" in client.comments)
        store.away = False
        store.write([record(1)])
        await until(lambda: client.tasks == ["p-1"])


@pytest.mark.parametrize("query", ["", "after=1"])
async def test_a_stream_may_begin_while_the_store_is_away(query: str) -> None:
    store = Counted()
    store.write([record(1), record(2)])
    store.away = True
    client = Client(streaming(store), query, {})
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(client.connect)
            await until(lambda: client.comments)
            assert client.ids == []
            store.away = False
            await until(lambda: client.ids == ["2"])
            client.left.set()
    assert client.tasks == (["p-2"] if query else [])


async def test_a_store_that_goes_away_between_two_questions_is_asked_again() -> None:
    store = Counted()
    store.write([record(1), record(2)])

    def once(after: int | None, most: int) -> Changes:
        if after == 1 and not failed:
            failed.append(after)
            raise StoreUnavailable("connection refused")
        return MemoryStore.changes(store, after, most)

    failed: list[int] = []
    store.changes = once  # type: ignore[method-assign]
    async with connected(streaming(store), "after=1") as [client]:
        assert client.tasks == ["p-2"]
    assert failed == [1]


async def test_a_stream_ends_after_its_time_so_that_the_client_is_let_in_anew() -> None:
    async with connected(streaming(store_with(), Pace(every_s=0.005, life_s=0.05))) as [client]:
        await until(lambda: client.ended)


@pytest.mark.parametrize("refuses", [True, False])
async def test_it_ends_when_the_client_leaves(refuses: bool) -> None:
    app = streaming(store_with(), Pace(every_s=60, heartbeat_s=60))
    async with connected(app) as [client]:
        client.refuse_when_left = refuses
    assert client.ended is not refuses  # `connected` has waited for its end


async def test_it_ends_when_the_server_does_not_take_what_is_sent() -> None:
    store = store_with()
    client = Client(streaming(store), "", {})

    async def never_told() -> Message:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def refuse(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client has left")

    with anyio.fail_after(PATIENCE):
        await client._app(client._scope, never_told, refuse)


# The shutdown.


async def test_open_streams_end_when_the_shutdown_begins() -> None:
    async with serving() as bgx:
        app = streaming(store_with(), Pace(every_s=60, heartbeat_s=60), bgx._when_closing)
        async with connected(app, count=3) as clients:
            bgx.runners.drain().announce(30)
            await until(lambda: all(client.ended for client in clients))


async def test_a_stream_that_comes_after_the_shutdown_has_begun_ends_at_once() -> None:
    async with serving() as bgx:
        app = streaming(store_with(), Pace(every_s=60), bgx._when_closing)
        bgx.runners.drain().announce(30)
        async with connected(app) as [client]:
            assert client.ended


async def test_after_a_restart_there_are_streams_again() -> None:
    bgx = Bgx()
    app = streaming(store_with(), FAST, bgx._when_closing)
    for _ in range(2):
        bgx.start()
        async with connected(app) as [client]:
            assert not client.ended
            await bgx.drain(0)
            await until(lambda: client.ended)


async def test_a_stream_that_has_ended_is_told_of_no_shutdown() -> None:
    async with serving() as bgx:
        async with connected(streaming(store_with(), FAST, bgx._when_closing)):
            pass
        assert not bgx.runners.drain()._told
