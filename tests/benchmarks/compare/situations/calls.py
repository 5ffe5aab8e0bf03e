"""The call of `add_task` itself: what works, what is refused, what a type checker says."""

import subprocess
import sys
from functools import partial

from fastapi import BackgroundTasks

from tests.benchmarks.compare.kit import OURS, STOCK, TASKFLOW, Kit
from tests.benchmarks.compare.lab import Lab
from tests.benchmarks.compare.situation import Facts, Failed, Situation

LISTS = {
    STOCK: ("from fastapi import BackgroundTasks",),
    TASKFLOW: ("from fastapi_taskflow import ManagedBackgroundTasks as BackgroundTasks",),
    OURS: ("from fastapi_bgx import BackgroundTasks",),
}
MISTAKES = (
    "def send(address: str) -> None: ...",
    "def add(tasks: BackgroundTasks) -> None:",
    "    tasks.add_task(send)",
    "    tasks.add_task(send, 1)",
    "    tasks.add_task(send, adress='a')",
    "",
)


class _OneCall(Situation):
    """One request that makes one call."""

    verdict = "answered {status}, ran {ran}"

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            status = server.post("/add").status_code
            ran = server.wait_for("ran", 1, 1.0)
            return {"status": status, "ran": ran, "noted": server.notes("ran")}

    def text(self, facts: Facts) -> str:
        return f"answered {facts['status']}, {'ran' if facts['ran'] else 'did not run'}"


class WrongCall(_OneCall):
    """A call without an argument that the function needs.

    Answered 500 means that the route was told, where the mistake is; 200 that the client was told
    that all is well.
    """

    def routes(self, kit: Kit) -> None:
        async def work(needed: int) -> None:
            kit.note("ran", needed)

        work = kit.task(work)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(work)  # type: ignore[call-arg]  # the mistake


class Partial(_OneCall):
    """A `functools.partial`."""

    def routes(self, kit: Kit) -> None:
        async def work(given: int) -> None:
            kit.note("ran", given)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(partial(work, 1))


class ReturnsAwaitable(_OneCall):
    """A lambda that calls an async function.

    `tasks.add_task(lambda: send(mail))`: the function returns a coroutine, which somebody has to
    await.
    """

    def routes(self, kit: Kit) -> None:
        async def work() -> None:
            kit.note("ran")

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(lambda: work())


class OwnKeywords(_OneCall):
    """`queue=`, `tags=`, `priority=` given to `add_task` for a function of these: what arrived."""

    def routes(self, kit: Kit) -> None:
        async def work(queue: str = "", tags: str = "", priority: int = 0) -> None:
            given = {"queue": queue, "tags": tags, "priority": priority}
            kit.note("ran", *(name for name, value in given.items() if value))

        work = kit.task(work)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> None:
            tasks.add_task(work, queue="a", tags="b", priority=3)

    def text(self, facts: Facts) -> str:
        return ", ".join(facts["noted"][0].split()) or "none" if facts["ran"] else "it did not run"


class Types(Situation):
    """Wrong calls that mypy finds, of 3.

    A missing argument, one of the wrong type, and a misspelt keyword, each in a call of
    `add_task` on the class that the library gives for annotations; `mypy --strict`.
    """

    verdict = "{found} of 3"

    def look(self, lab: Lab) -> Facts:
        file = lab.folder / "calls.py"
        file.write_text("\n".join(LISTS[lab.contestant] + MISTAKES))
        command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(lab.folder)]
        done = subprocess.run(
            [*command, "--config-file=", str(file)], capture_output=True, text=True, check=False
        )
        if done.stderr:
            raise Failed(done.stderr)
        lines = {4, 5, 6}
        errors = [line for line in done.stdout.splitlines() if ": error:" in line]
        return {"found": len(lines & {int(line.split(":")[1]) for line in errors})}


ALL: tuple[Situation, ...] = (
    WrongCall(),
    Partial(),
    ReturnsAwaitable(),
    OwnKeywords(),
    Types(),
)
