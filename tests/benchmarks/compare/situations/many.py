"""Many tasks and many records: what a dashboard weighs then, and what stays in memory."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from urllib.parse import urlsplit

import httpx
from fastapi import BackgroundTasks

from tests.benchmarks.compare.kit import DASHBOARDS, OURS, STOCK, STREAMS, TASKFLOW, Kit, Wants
from tests.benchmarks.compare.lab import Lab
from tests.benchmarks.compare.server import Server, until
from tests.benchmarks.compare.situation import Facts, Situation

NO_DASHBOARD = {STOCK: "no dashboard"}
PUSHED_TASKS = 5_000
MANY_RECORDS = 100_000
IN_ONE_REQUEST = 500
ENDED_S = 600.0
PAGES = {TASKFLOW: DASHBOARDS[TASKFLOW], OURS: "/bgx/ui/tasks"}
"""The page that shows the newest tasks."""
LIVE = {OURS: "/bgx/ui/tasks?fragment=live"}
"""What an open page fetches besides its stream."""


class Many(Situation):
    """A route that runs many tasks at once."""

    lacks = NO_DASHBOARD

    def routes(self, kit: Kit) -> None:
        ended = 0

        async def work() -> None:
            nonlocal ended
            ended += 1

        work = kit.task(work)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks, count: int = IN_ONE_REQUEST) -> None:
            for _ in range(count):
                tasks.add_task(work)

        @kit.app.get("/ended")
        async def how_many() -> int:
            return ended


def run_tasks(server: Server, count: int, at_once: int = 1) -> None:
    """Run so many tasks, and return when they have ended."""
    wanted = server.get("/ended").json() + count
    with ThreadPoolExecutor(at_once) as pool:
        for _ in range(0, count, IN_ONE_REQUEST):
            pool.submit(server.post, "/add")
    if not until(lambda: server.get("/ended").json() >= wanted, ENDED_S):
        raise TimeoutError("the tasks do not end")


class Pushed(Many):
    """Bytes that the server sends to one open dashboard while 5,000 tasks end.

    Ten requests at once, with 500 tasks each. The dashboard's event stream, read as fast as it
    comes, until 2 s after the last of them. For fastapi-bgx with the part of its list that the page
    fetches when the stream tells of changes: once a second, as often as a page does at most.
    """

    wants = Wants(dashboard=True)

    def look(self, lab: Lab) -> Facts:
        part = LIVE.get(lab.contestant)
        with lab.serve() as server, _listening(server, STREAMS[lab.contestant]) as pushed:
            with _fetching(server, part) as fetched:
                time.sleep(1)
                run_tasks(server, PUSHED_TASKS, at_once=10)
                time.sleep(2)
            return {"pushed": pushed[0], "fetched": fetched[0]}

    def text(self, facts: Facts) -> str:
        size: int = facts["pushed"] + facts["fetched"]
        return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


@contextmanager
def _fetching(server: Server, path: str | None) -> Iterator[list[int]]:
    """Fetch a part of a page every second for as long as this lasts, and count its bytes."""
    seen = [0]
    over = Event()

    def fetch() -> None:
        while path is not None and not over.wait(1):
            seen[0] += len(server.get(path).raise_for_status().content)

    fetcher = Thread(target=fetch)
    fetcher.start()
    try:
        yield seen
    finally:
        over.set()
        fetcher.join()


@contextmanager
def _listening(server: Server, path: str) -> Iterator[list[int]]:
    """Read a stream for as long as this lasts, and count its bytes."""
    seen = [0]
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        request = f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAccept: text/event-stream\r\n"
        connection.sendall(f"{request}\r\n".encode())

        def read() -> None:
            while received := connection.recv(1 << 16):
                seen[0] += len(received)

        reader = Thread(target=read, daemon=True)
        reader.start()
        yield seen
        connection.shutdown(socket.SHUT_RDWR)
        reader.join(5)


class FirstPage(Many):
    """A dashboard with 100,000 records: until its newest tasks are there, and bytes for that.

    Best of three. fastapi-taskflow: the page, and the first event of its stream, which has the
    rows; records in memory, which is faster than its SQLite. fastapi-bgx: the page with the rows;
    records in SQLite.
    """

    wants = Wants(dashboard=True)
    verdict = "{ms:,.0f} ms, {kb:,.0f} kB"

    def look(self, lab: Lab) -> Facts:
        with lab.serve(store=lab.contestant == OURS) as server:
            run_tasks(server, MANY_RECORDS)
            time.sleep(3)
            found = [_first_page(server, lab.contestant) for _ in range(3)]
        seconds, size = min(found)
        return {"ms": seconds * 1e3, "kb": size / 1e3}


def _first_page(server: Server, contestant: str) -> tuple[float, int]:
    with server.connect(timeout=60) as client:
        client.get("/up")
        began = time.perf_counter()
        answer = client.get(PAGES[contestant]).raise_for_status()
        size = len(answer.content)
        if contestant == TASKFLOW:
            size += _first_event(client, STREAMS[contestant])
        return time.perf_counter() - began, size


def _first_event(client: httpx.Client, path: str) -> int:
    """The bytes of a stream until its first event is complete."""
    size = 0
    last = b""
    with client.stream("GET", path) as answer:
        for part in answer.iter_raw():
            size += len(part)
            last = (last + part)[-2:]
            if last == b"\n\n":
                break
    return size


ALL: tuple[Situation, ...] = (Pushed(), FirstPage())
