"""Tasks that are called off by their ids."""

import time
from typing import Any

from fastapi import BackgroundTasks

from tests.benchmarks.compare.kit import LISTS, STOCK, Kit, Wants
from tests.benchmarks.compare.lab import Lab
from tests.benchmarks.compare.situation import Facts, Situation
from tests.benchmarks.compare.situations.limits import until_file

NO_IDS = {STOCK: "no ids"}


class _Cancel(Situation):
    """Tasks that are called off over HTTP."""

    lacks = NO_IDS
    wants = Wants(limits={"one": 1}, detached=True, dashboard=True)

    def routes(self, kit: Kit) -> None:
        async def hold() -> None:
            kit.note("held")
            await until_file(kit)
            kit.note("to_the_end")

        async def work() -> None:
            kit.note("ran")

        hold, work = kit.task(hold, limit="one"), kit.task(work, limit="one")

        @kit.app.post("/hold")
        async def add_hold(tasks: BackgroundTasks) -> str | None:
            added: Any = tasks.add_task(hold)  # type: ignore[func-returns-value]  # stock's is None
            return kit.id_of(added)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> str | None:
            added: Any = tasks.add_task(work)  # type: ignore[func-returns-value]
            return kit.id_of(added)


class CancelWaiting(_Cancel):
    """A waiting task is cancelled by its id, over HTTP: the answer, and did it run after all."""

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post("/hold")
            server.wait_for("held")
            path = f"{LISTS[lab.contestant]}/{server.post('/add').json()}/cancel"
            status = server.post(path).status_code
            (lab.folder / "release").touch()
            return {"status": status, "ran": server.wait_for("ran", 1, 1.5)}

    def text(self, facts: Facts) -> str:
        return f"{facts['status']}; {'it ran' if facts['ran'] else 'it did not run'}"


class CancelRunning(_Cancel):
    """A running async task is cancelled by its id, over HTTP: the answer; did it run to its end."""

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            path = f"{LISTS[lab.contestant]}/{server.post('/hold').json()}/cancel"
            server.wait_for("held")
            status = server.post(path).status_code
            time.sleep(0.3)
            (lab.folder / "release").touch()
            return {"status": status, "ran": server.wait_for("to_the_end", 1, 1.0)}

    def text(self, facts: Facts) -> str:
        return f"{facts['status']}; {'it did' if facts['ran'] else 'it did not'}"


ALL: tuple[Situation, ...] = (CancelWaiting(), CancelRunning())
