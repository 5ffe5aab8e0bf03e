"""Bounds: how much runs and waits at once, how that is changed."""

import asyncio
import http.client
import time
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import quantiles
from urllib.parse import urlsplit

from fastapi import BackgroundTasks

from tests.benchmarks.compare.kit import STOCK, Kit, Wants
from tests.benchmarks.compare.lab import Lab
from tests.benchmarks.compare.server import Server
from tests.benchmarks.compare.situation import Facts, Situation

FLOOD = 400
FLOOD_EVERY_S = 0.0025
SLEEP_S = 0.2
PROBE_EVERY_S = 0.02
NO_LIMITS = {STOCK: "no limits"}
NO_BOUND = {STOCK: "no bound: 8 times 200"}
NO_IDS = {STOCK: "no ids"}
NO_KEYS = {STOCK: "no keys"}


class Innocent(Situation):
    """A sync endpoint that does nothing, while 400 sync tasks of 0.2 s run: median, p99.

    400 requests with a task each arrive within a second, which is twice what 40 threads can do;
    meanwhile the endpoint is asked every 20 ms.
    """

    wants = Wants(detached=True)
    verdict = "{median:,.1f} ms, {p99:,.1f} ms"

    def routes(self, kit: Kit) -> None:
        def work() -> None:
            time.sleep(SLEEP_S)
            kit.note("ran")

        work = kit.task(work)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(work)

        @kit.app.get("/innocent")
        def innocent() -> bool:
            return True

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server, ThreadPoolExecutor(101) as pool:
            _probe(server.url)
            flood = pool.submit(server.post_many, "/add", FLOOD, 200, FLOOD_EVERY_S)
            probes: list[Future[float]] = []
            while server.count("ran") < FLOOD and len(probes) < 500:
                probes.append(pool.submit(_probe, server.url))
                time.sleep(PROBE_EVERY_S)
            flood.result()
            taken = [probe.result() * 1e3 for probe in probes]
            ran = server.count("ran")
        percentiles = quantiles(taken, n=100, method="inclusive")
        return {"median": percentiles[49], "p99": percentiles[98], "ran": ran}


def _probe(url: str) -> float:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    began = time.perf_counter()
    connection.request("GET", "/innocent")
    connection.getresponse().read()
    seconds = time.perf_counter() - began
    connection.close()
    return seconds


class _Gauged(Situation):
    """Tasks on a limit of two that note how many run."""

    lacks = NO_LIMITS
    seconds = 0.1

    def routes(self, kit: Kit) -> None:
        running = 0

        async def work(number: int) -> None:
            nonlocal running
            running += 1
            kit.note("running", running)
            await asyncio.sleep(self.seconds)
            running -= 1
            kit.note("ended", number)

        work = kit.task(work, limit="two")

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks, n: int) -> None:
            tasks.add_task(work, n)

        @kit.app.post("/resize")
        async def resize(slots: int) -> str:
            return await kit.resize("two", slots)


class MostAtOnce(_Gauged):
    """A limit of 2, 20 requests with a task each: most that ran at once, and how many ran."""

    wants = Wants(limits={"two": 2}, detached=True)
    verdict = "{most} at once; {ended} of 20"

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post_many("/add", 20)
            ended = server.wait_for("ended", 20)
            return {"ended": ended, "most": max(map(int, server.notes("running")))}


class _Resized(_Gauged):
    """A limit is changed while it is busy."""

    verdict = "{ended} of 40, {most} at once"
    to = 0
    seconds = 0.3

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post_many("/add", 40)
            server.wait_for("running", 2)
            server.post("/resize", slots=self.to)
            before = server.count("running")
            ended = server.wait_for("ended", 40, 12)
            return {
                "ended": ended,
                "most": max(map(int, server.notes("running")[before:]), default=0),
            }


class Raised(_Resized):
    """A busy limit is raised from 2 to 4, 38 tasks wait: tasks that ran within 12 s, most at once.

    Tasks of 0.3 s. By `bgx.resize`, and by `update_queue_config`, which fastapi-taskflow's
    `PATCH` route calls. Most at once: after the change.
    """

    wants = Wants(limits={"two": 2}, detached=True)
    to = 4


class Lowered(_Resized):
    """A busy limit is lowered from 4 to 3, 36 tasks wait: tasks that ran within 12 s, most at once.

    As above. The four that run go on, so 4 may be seen.
    """

    wants = Wants(limits={"two": 4}, detached=True)
    to = 3


class Full(Situation):
    """At most 2 tasks may wait, one runs: what 8 requests with a task each are answered.

    The routes do not handle the error. fastapi-taskflow: `max_size=2, max_concurrent_tasks=1`.
    """

    wants = Wants(most_waiting=2, detached=True)
    lacks = NO_BOUND

    def routes(self, kit: Kit) -> None:
        async def work() -> None:
            await asyncio.sleep(600)

        work = kit.task(work)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(work)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            answers = [server.post("/add") for _ in range(8)]
        statuses = [answer.status_code for answer in answers]
        after = [answer.headers.get("Retry-After") for answer in answers if answer.is_error]
        counts = {str(status): statuses.count(status) for status in sorted(set(statuses))}
        return {"statuses": counts, "retry_after": any(after)}

    def text(self, facts: Facts) -> str:
        words = ", ".join(f"{times} times {code}" for code, times in facts["statuses"].items())
        return words + (" with `Retry-After`" if facts["retry_after"] else "")


class KeyWhenFull(Situation):
    """The same key again, after the first try was refused because the queue was full: did it run.

    Two tasks fill the queue, and a request with the key is refused. When the queue is empty, the
    client tries again with the same key.
    """

    wants = Wants(most_waiting=1, detached=True)
    lacks = NO_KEYS

    def routes(self, kit: Kit) -> None:
        async def hold() -> None:
            kit.note("held")
            await until_file(kit)

        async def work() -> None:
            kit.note("ran")

        hold, work = kit.task(hold), kit.task(work)

        @kit.app.post("/hold")
        async def add_hold(tasks: BackgroundTasks) -> None:
            tasks.add_task(hold)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            kit.once(tasks, "order-42", work)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            _fill(server)
            first = server.post("/add").status_code
            (lab.folder / "release").touch()
            time.sleep(0.5)
            second = server.post("/add").status_code
            return {"first": first, "second": second, "ran": server.wait_for("ran", 1, 1.5)}

    def text(self, facts: Facts) -> str:
        ran = "ran" if facts["ran"] else "did not run"
        return f"answered {facts['first']}, then {facts['second']}; {ran}"


def _fill(server: Server) -> None:
    """Until a request is refused."""
    for _ in range(8):
        if server.post("/hold").is_error:
            return


async def until_file(kit: Kit) -> None:
    """Wait until the situation releases the tasks."""
    while not (kit.folder / "release").exists():
        await asyncio.sleep(0.02)


ALL: tuple[Situation, ...] = (
    Innocent(),
    MostAtOnce(),
    Raised(),
    Lowered(),
    Full(),
    KeyWhenFull(),
)
