"""One task fails, hangs or misbehaves: what becomes of the others, and who hears of it."""

import asyncio
import sys
import time

from fastapi import BackgroundTasks

from tests.benchmarks.compare.kit import TASKFLOW, Kit
from tests.benchmarks.compare.lab import Lab
from tests.benchmarks.compare.server import until
from tests.benchmarks.compare.situation import Facts, Situation

TIMEOUT_S = 0.5
PATIENCE_S = 3.0


class _Siblings(Situation):
    verdict = "{ran} of 3"

    @staticmethod
    async def trouble() -> None:
        """What the first task does."""
        raise ValueError("trouble")

    def routes(self, kit: Kit) -> None:
        async def good() -> None:
            kit.note("ran")

        trouble = kit.task(self.trouble)
        good = kit.task(good)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(trouble)
            for _ in range(3):
                tasks.add_task(good)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            server.post_soon("/add")
            return {"ran": server.wait_for("ran", 3, 1.5), "answers": server.answers()}


class Siblings(_Siblings):
    """Tasks that ran after one that failed, of 3.

    One request adds a task that raises and then three that are fine.
    """


class SystemExits(_Siblings):
    """A task calls `sys.exit()`: tasks that ran after it, of 3; is the server still there.

    The same, with an async task that ends in `SystemExit`.
    """

    @staticmethod
    async def trouble() -> None:
        sys.exit(1)

    def text(self, facts: Facts) -> str:
        return f"{facts['ran']} of 3; {'it answers' if facts['answers'] else 'it is gone'}"


class Cancelled(_Siblings):
    """Tasks that ran after one that leaked a `CancelledError`, of 3.

    The same, with an async task that raises `asyncio.CancelledError`, as a library might that
    cancels something of its own.
    """

    @staticmethod
    async def trouble() -> None:
        raise asyncio.CancelledError


class Traceback(Situation):
    """A task failed, and nothing is configured: what the server's log has of it.

    Looked for in everything that the process printed: the error's text, its traceback, the task's
    id. In brackets the same with what the library offers for it (fastapi-taskflow:
    `StdoutLogger(log_lifecycle=True)`).
    """

    def routes(self, kit: Kit) -> None:
        async def fails() -> None:
            raise ValueError("a unique text")

        fails = kit.task(fails)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> str | None:
            return kit.id_of(tasks.add_task(fails))  # type: ignore[func-returns-value]

    def look(self, lab: Lab) -> Facts:
        facts = self._seen(lab)
        if lab.contestant == TASKFLOW:
            facts["observed"] = self._seen(lab, observed=True)
        return facts

    def _seen(self, lab: Lab, **wants: bool) -> Facts:
        with lab.serve(**wants) as server:
            task_id = server.post("/add").json()
            until(lambda: "a unique text" in server.log, 1.5)
            server.stop()
            log = server.log
        return {
            "error": "a unique text" in log,
            "traceback": 'raise ValueError("a unique text")' in log,
            "id": task_id is not None and task_id[:8] in log,
        }

    def text(self, facts: Facts) -> str:
        words = _said(facts)
        return (
            f"{words} (with an observer: {_said(facts['observed'])})"
            if "observed" in facts
            else words
        )


def _said(facts: Facts) -> str:
    found = [name for name in ("error", "traceback", "id") if facts[name]]
    return ", ".join(found) or "nothing"


class _Hang(Situation):
    """A task that hangs, and one after it."""

    verdict = "{state}; the task after it {after}"

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            began = time.monotonic()
            server.post_soon("/add")
            over = until(lambda: self._over(server.log, server.count("stopped")), PATIENCE_S)
            seconds = time.monotonic() - began
            after = server.wait_for("after", 1, 0.5)
            return {"over_s": round(seconds, 1) if over else None, "after": after}

    def _over(self, log: str, stopped: int) -> bool:
        return stopped > 0 or "task.timed_out" in log

    def text(self, facts: Facts) -> str:
        over = facts["over_s"]
        state = f"still runs after {PATIENCE_S:.0f} s" if over is None else f"over after {over} s"
        return f"{state}; the task after it {'ran' if facts['after'] else 'did not run'}"


class HangsAsync(_Hang):
    """An async task that hangs, with a timeout of 0.5 s where there are timeouts.

    Seen: whether it was stopped (it notes its cancellation) within 3 s, and whether the task that
    was added after it ran.
    """

    def routes(self, kit: Kit) -> None:
        async def hangs() -> None:
            try:
                await asyncio.sleep(600)
            finally:
                kit.note("stopped")

        async def after() -> None:
            kit.note("after")

        hangs = kit.task(hangs, timeout=TIMEOUT_S)
        after = kit.task(after)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(hangs)
            tasks.add_task(after)


class HangsInThread(_Hang):
    """A sync task that hangs, with the same timeout.

    A thread cannot be stopped by anybody. Seen: whether the server's log reports it as over within
    3 s, and whether the task that was added after it ran.
    """

    def routes(self, kit: Kit) -> None:
        def hangs() -> None:
            time.sleep(600)

        async def after() -> None:
            kit.note("after")

        hangs = kit.task(hangs, timeout=TIMEOUT_S)
        after = kit.task(after)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(hangs)
            tasks.add_task(after)


ALL: tuple[Situation, ...] = (
    Siblings(),
    Cancelled(),
    SystemExits(),
    Traceback(),
    HangsAsync(),
    HangsInThread(),
)
