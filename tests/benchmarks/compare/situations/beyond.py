"""What fastapi-taskflow has: most of it is not here yet."""

from typing import Any

from fastapi import BackgroundTasks

from tests.benchmarks.compare.kit import DATABASE, OURS, SECRET, STOCK, TASKFLOW, Kit, Wants
from tests.benchmarks.compare.lab import Lab
from tests.benchmarks.compare.server import until
from tests.benchmarks.compare.situation import Facts, Situation

NO_SCHEDULE = {STOCK: "not there", OURS: "not there"}
NO_KEYS = {STOCK: "no keys"}
NO_STORE = {STOCK: "no store"}
NOWHERE = {STOCK: "nowhere"}
EVERY_S = 0.2


class Every(Situation):
    """A function that is called every 0.2 s by itself: calls within 3 s.

    `@task_manager.schedule(every=0.2)`; cron expressions are there, too, with an extra.
    """

    lacks = NO_SCHEDULE
    verdict = "{calls}"

    def routes(self, kit: Kit) -> None:
        async def work() -> None:
            kit.note("ran")

        kit.every(EVERY_S, work)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            return {"calls": server.wait_for("ran", 1_000, 3)}


class KeyAfterSuccess(Situation):
    """The same key twice, the second time after the first task has succeeded: how often it ran.

    `idempotency_key=`, and `using(unique=)`, which holds while the first task is unfinished.
    """

    lacks = NO_KEYS

    def routes(self, kit: Kit) -> None:
        async def work() -> None:
            kit.note("ran")

        work = kit.task(work)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            kit.once(tasks, "order-42", work)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post("/add")
            server.wait_for("ran")
            server.post("/add")
            return {"ran": server.wait_for("ran", 2, 0.7)}

    def text(self, facts: Facts) -> str:
        return {1: "once", 2: "twice"}[facts["ran"]]


class Secret(Situation):
    """A secret argument, in the files of the store: is it readable there.

    In brackets with `encrypt_args_key=`. fastapi-bgx stores no arguments unless told to.
    """

    wants = Wants(store=True, dashboard=True)
    lacks = NO_STORE

    def routes(self, kit: Kit) -> None:
        async def work(password: str) -> None:
            kit.note("ran")

        work = kit.task(work)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(work, SECRET)

    def look(self, lab: Lab) -> Facts:
        facts = {"plain": self._found(lab)}
        if lab.contestant == TASKFLOW:
            for path in lab.folder.glob(f"{DATABASE}*"):
                path.unlink()
            facts["encrypted"] = self._found(lab, encrypted=True)
        return facts

    def _found(self, lab: Lab, **wants: Any) -> bool:
        with lab.serve(**wants) as server:
            server.post("/add")
            server.wait_for("ran")
            until(lambda: b"work" in lab.stored(), 3)
            server.stop()
            if b"work" not in lab.stored():
                raise LookupError("there is no record of the task in the store")
            return SECRET.encode() in lab.stored()

    def text(self, facts: Facts) -> str:
        words = {True: "readable", False: "not there"}
        plain = words[facts["plain"]]
        if "encrypted" not in facts:
            return plain
        return f"{plain} (with `encrypt_args_key`: {words[facts['encrypted']]})"


class Stores(Situation):
    """Where records can be kept.

    The classes that the package exports, and the databases that its documentation names.
    """

    lacks = NOWHERE
    verdict = "{names}"

    def look(self, lab: Lab) -> Facts:
        if lab.contestant == OURS:
            from fastapi_bgx import stores

            found = ["memory", *(["SQLite", "PostgreSQL"] if _has_sql(stores) else [])]
            return {"names": ", ".join(found)}
        from fastapi_taskflow import backends

        names = [each.removesuffix("Backend") for each in dir(backends) if each.endswith("Backend")]
        found = [each for each in names if each not in ("", "Snapshot")]
        return {"names": ", ".join(["memory", *found])}


def _has_sql(stores: Any) -> bool:
    from importlib.util import find_spec

    return find_spec(f"{stores.__name__}.sql") is not None


ALL: tuple[Situation, ...] = (Every(), KeyAfterSuccess(), Secret(), Stores())
