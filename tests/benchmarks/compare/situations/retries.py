"""Tasks that are tried again, by themselves and by hand."""

import time
from dataclasses import dataclass
from typing import Any

from fastapi import BackgroundTasks

from tests.benchmarks.compare.kit import LISTS, STOCK, Kit, Wants
from tests.benchmarks.compare.lab import Lab
from tests.benchmarks.compare.server import until
from tests.benchmarks.compare.situation import Facts, Situation

NO_RETRIES = {STOCK: "no retries"}
NO_IDS = {STOCK: "no ids"}
PAUSE_S = 2.0
SPREAD_PAUSE_S = 0.5


@dataclass(frozen=True)
class User:
    """An argument that is an object of the application."""

    id: int


class HoldsSlot(Situation):
    """A limit of 1, a task that fails and waits 2 s for its next attempt: when the next task ran.

    Seconds after the first attempt.
    """

    wants = Wants(limits={"one": 1}, detached=True)
    lacks = NO_RETRIES
    verdict = "after {seconds:.2f} s"

    def routes(self, kit: Kit) -> None:
        async def fails() -> None:
            kit.note("failed", time.time())
            raise ValueError

        async def work() -> None:
            kit.note("ran", time.time())

        fails = kit.task(fails, retries=1, pause=PAUSE_S, limit="one")
        work = kit.task(work, limit="one")

        @kit.app.post("/fail")
        async def fail(tasks: BackgroundTasks) -> None:
            tasks.add_task(fails)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(work)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post("/fail")
            server.wait_for("failed")
            server.post("/add")
            server.wait_for("ran", 1, PAUSE_S + 3)
            return {"seconds": float(server.notes("ran")[0]) - float(server.notes("failed")[0])}


class Spread(Situation):
    """20 tasks fail at once, pause of 0.5 s: how far apart their second attempts are.

    Between the first and the last of them: what a service that was down sees when it comes back.
    """

    wants = Wants(detached=True, limits={"many": 100})
    lacks = NO_RETRIES
    verdict = "{ms:,.0f} ms"

    def routes(self, kit: Kit) -> None:
        tried: set[int] = set()

        async def fails(number: int) -> None:
            if number in tried:
                kit.note("second", time.time())
                return
            tried.add(number)
            raise ValueError

        fails = kit.task(fails, retries=1, pause=SPREAD_PAUSE_S, limit="many")

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            for number in range(20):
                tasks.add_task(fails, number)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post("/add")
            server.wait_for("second", 20, 10)
            times = [float(each) for each in server.notes("second")]
            return {"ms": (max(times) - min(times)) * 1e3, "attempts": len(times)}


class WhichErrors(Situation):
    """Three attempts for a `ConnectionError`, and a task that raises `ValueError`: its attempts."""

    wants = Wants(detached=True)
    lacks = NO_RETRIES
    verdict = "{attempts}"

    def routes(self, kit: Kit) -> None:
        async def fails() -> None:
            kit.note("attempt")
            raise ValueError

        fails = kit.task(fails, retries=2, pause=0.05, retry_on=ConnectionError)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(fails)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post("/add")
            return {"attempts": server.wait_for("attempt", 3, 1.5)}


class _ByHand(Situation):
    """A task that failed is run again over HTTP."""

    wants = Wants(store=True, dashboard=True)
    lacks = NO_IDS

    def routes(self, kit: Kit) -> None:
        async def fails(user: User) -> None:
            kit.note("given", type(user).__name__)
            raise ValueError

        fails = kit.task(fails)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> str | None:
            added: Any = tasks.add_task(fails, User(id=1))  # type: ignore[func-returns-value]
            return kit.id_of(added)


class RetryByHand(_ByHand):
    """A failed task with the argument `User(id=1)` is run again by hand: what it is given.

    Over HTTP, by its id.
    """

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            path = f"{LISTS[lab.contestant]}/{server.post('/add').json()}/retry"
            server.wait_for("given")
            until(lambda: server.post(path).is_success, 2)
            server.wait_for("given", 2, 2)
            return {"given": server.notes("given")[1:]}

    def text(self, facts: Facts) -> str:
        return f"a `{facts['given'][0]}`" if facts["given"] else "it did not run"


class RetryAfterRestart(_ByHand):
    """The same after an orderly restart: the answer, and what the function is given."""

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            path = f"{LISTS[lab.contestant]}/{server.post('/add').json()}/retry"
            server.wait_for("given")
            server.stop()
        with lab.serve() as server:
            status = server.post(path).status_code
            server.wait_for("given", 2, 1.5)
            return {"status": status, "given": server.notes("given")[1:]}

    def text(self, facts: Facts) -> str:
        given = f"a `{facts['given'][0]}`" if facts["given"] else "it did not run"
        return f"{facts['status']}; {given}"


ALL: tuple[Situation, ...] = (
    HoldsSlot(),
    Spread(),
    WhichErrors(),
    RetryByHand(),
    RetryAfterRestart(),
)
