"""The server is stopped, killed and started again."""

import asyncio
import signal
import time
from typing import Any, ClassVar

from fastapi import BackgroundTasks

from tests.benchmarks.compare.kit import LISTS, STOCK, TASKFLOW, Kit, Wants
from tests.benchmarks.compare.lab import Lab
from tests.benchmarks.compare.server import running
from tests.benchmarks.compare.situation import Facts, Situation

NO_STORE = {STOCK: "no store"}
BOUND_S = 10.0


class _Hanging(Situation):
    """SIGTERM while a task hangs."""

    wants = Wants(limits={"some": 10}, grace_s=2.0)
    variants: ClassVar[dict[str, dict[str, Any]]] = {"without queues": {"limits": {}}}
    """Other configurations of fastapi-taskflow."""

    def look(self, lab: Lab) -> Facts:
        facts = self._stopped(lab)
        if lab.contestant == TASKFLOW:
            facts["variants"] = {
                name: self._stopped(lab, **wants)["seconds"]
                for name, wants in self.variants.items()
            }
        return facts

    def _stopped(self, lab: Lab, **wants: Any) -> Facts:
        lab.forget()
        with lab.serve(**wants) as server:
            server.post_soon("/add")
            server.wait_for("hangs")
            seconds = server.stop(BOUND_S)
            return {"seconds": seconds, "named": "hang_for_ever" in server.log}

    def text(self, facts: Facts) -> str:
        words = f"{_after(facts['seconds'])}, log {'names it' if facts['named'] else 'is silent'}"
        others = (f"{name}: {_after(each)}" for name, each in facts.get("variants", {}).items())
        beside = "; ".join(others)
        return f"{words} ({beside})" if beside else words


def _after(seconds: float | None) -> str:
    return f"not within {BOUND_S:.0f} s" if seconds is None else f"after {seconds:.1f} s"


class StopWhileAsyncHangs(_Hanging):
    """SIGTERM while an async task hangs: when the server ended, and does its log name the task.

    Nothing configured but fastapi-bgx's `drain_timeout=2` (20 by default). fastapi-taskflow has a
    named queue and `max_sync_threads=20`, and is asked again without. uvicorn's own
    `--timeout-graceful-shutdown` is not set.
    """

    def routes(self, kit: Kit) -> None:
        async def hang_for_ever() -> None:
            kit.note("hangs")
            await asyncio.sleep(600)

        hang_for_ever = kit.task(hang_for_ever, limit="some" if kit.wants.limits else None)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(hang_for_ever)


class StopWhileThreadHangs(_Hanging):
    """The same with a sync task."""

    variants: ClassVar[dict[str, dict[str, Any]]] = {
        **_Hanging.variants,
        "without `max_sync_threads`": {"own_threads": False},
    }

    def routes(self, kit: Kit) -> None:
        def hang_for_ever() -> None:
            kit.note("hangs")
            time.sleep(600)

        hang_for_ever = kit.task(hang_for_ever, limit="some" if kit.wants.limits else None)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(hang_for_ever)


class Kill(Situation):
    """`kill -9` with 100 tasks accepted and under way, then a restart: tasks that ran to their end.

    With a store, and whatever makes tasks run again after an interruption.
    """

    wants = Wants(store=True, detached=True)
    verdict = "{ended} of 100"

    def routes(self, kit: Kit) -> None:
        async def work(number: int) -> None:
            kit.note("began", number)
            await asyncio.sleep(3)
            kit.note("ended", number)

        work = kit.task(work, again=True)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks, n: int) -> None:
            tasks.add_task(work, n)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post_many("/add", 100, 50)
            accepted = server.wait_for("began", 100)
            server.send(signal.SIGKILL)
        with lab.serve() as server:
            return {"accepted": accepted, "ended": server.wait_for("ended", 100, 4.5)}


class Restart(Situation):
    """Limit 2, 40 tasks of 0.4 s, SIGTERM, restart: tasks that ran before and after, most at once.

    An orderly restart with a store, `requeue_pending=True` for fastapi-taskflow, and a grace of
    2 s. Stock has no limits, so all 40 run at once, and uvicorn waits for them.
    """

    wants = Wants(store=True, detached=True, limits={"two": 2})

    def routes(self, kit: Kit) -> None:
        running = 0

        async def work(number: int) -> None:
            nonlocal running
            running += 1
            kit.note("running", running)
            await asyncio.sleep(0.4)
            running -= 1
            kit.note("ended", number)

        work = kit.task(work, limit="two", again=True)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks, n: int) -> None:
            tasks.add_task(work, n)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post_many("/add", 40)
            server.wait_for("running", 2)
            server.stop()
            before = server.count("ended")
            reported = "bgx.drained" in server.log
        lab.forget()
        with lab.serve() as server:
            after = server.wait_for("ended", 40 - before, 20 if before < 40 and not reported else 1)
            most = max(map(int, server.notes("running")), default=0)
        return {"before": before, "after": after, "most": most, "reported": reported}

    def text(self, facts: Facts) -> str:
        words = f"{facts['before']} before, {facts['after']} after"
        if facts["after"]:
            words += f", {facts['most']} at once"
        return words + (", the others named in one report" if facts["reported"] else "")


class Rolling(Situation):
    """Two servers on one store, 10 waiting tasks each, both restarted: how many ran; ids known.

    As in a rolling deploy: both get a SIGTERM, one after the other, then both start again. The
    ids are those of all 20, asked of the status API.
    """

    wants = Wants(store=True, detached=True, dashboard=True, limits={"one": 1}, grace_s=0.2)
    lacks = NO_STORE
    verdict = "{ran} of 20; {known} of 20"

    def routes(self, kit: Kit) -> None:
        async def hold() -> None:
            kit.note("held")
            await asyncio.sleep(600)

        async def work() -> None:
            kit.note("ran")

        hold, work = kit.task(hold, limit="one"), kit.task(work, limit="one")

        @kit.app.post("/hold")
        async def add_hold(tasks: BackgroundTasks) -> None:
            tasks.add_task(hold)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> str | None:
            added: Any = tasks.add_task(work)  # type: ignore[func-returns-value]
            return kit.id_of(added)

    def look(self, lab: Lab) -> Facts:
        ids: list[str] = []
        with lab.serve() as first, lab.serve() as second:
            for number, server in enumerate((first, second), 1):
                server.post("/hold")
                server.wait_for("held", number)
                ids += [server.post("/add").json() for _ in range(10)]
            first.stop()
            second.stop()
        with running(lab.start()) as first, running(lab.start()):
            ran = first.wait_for("ran", 20, 2)
            answers = [first.get(f"{LISTS[lab.contestant]}/{each}") for each in ids]
        return {"ran": ran, "known": sum(answer.is_success for answer in answers)}


ALL: tuple[Situation, ...] = (
    StopWhileAsyncHangs(),
    StopWhileThreadHangs(),
    Kill(),
    Restart(),
    Rolling(),
)
