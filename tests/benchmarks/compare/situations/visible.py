"""Records, status and dashboard: what they say, and who may see them."""

import json
from typing import Any

from fastapi import BackgroundTasks

from tests.benchmarks.compare.kit import (
    DASHBOARDS,
    LISTS,
    STOCK,
    STREAMS,
    Kit,
    Wants,
)
from tests.benchmarks.compare.lab import Lab
from tests.benchmarks.compare.server import Server, until
from tests.benchmarks.compare.situation import Facts, Situation

NO_STATUS = {STOCK: "no ids"}
NO_DASHBOARD = {STOCK: "no dashboard"}
ASKED = 50


class _Simple(Situation):
    """A route that adds a task, which gives 42."""

    lacks = NO_STATUS

    def routes(self, kit: Kit) -> None:
        async def work() -> int:
            kit.note("ran")
            return 42

        work = kit.task(work)

        @kit.app.post("/add")
        async def add(tasks: BackgroundTasks) -> str | None:
            added: Any = tasks.add_task(work)  # type: ignore[func-returns-value]  # stock's is None
            return kit.id_of(added)


class StatusAtOnce(_Simple):
    """Two workers, the status of a task asked as soon as its request is answered: times 404.

    50 times, on a new connection each, with records in one SQLite file.
    """

    wants = Wants(store=True, dashboard=True)
    verdict = "{unknown} of {asked}"

    def look(self, lab: Lab) -> Facts:
        with lab.serve("--workers", "2") as server:
            until(lambda: _add_and_ask(server, lab.contestant) is not None, 5)
            answers = [_add_and_ask(server, lab.contestant) for _ in range(ASKED)]
        return {"unknown": answers.count(404), "asked": ASKED, "known": answers.count(200)}


def _add_and_ask(server: Server, contestant: str) -> int | None:
    return server.get(f"{LISTS[contestant]}/{server.post('/add').json()}").status_code


class Result(_Simple):
    """What a task returned, in the answer of its status."""

    wants = Wants(dashboard=True)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            path = f"{LISTS[lab.contestant]}/{server.post('/add').json()}"
            server.wait_for("ran")
            found = until(lambda: "42" in _values(server.get(path).json()), 1)
            return {"found": found}

    def text(self, facts: Facts) -> str:
        return "there" if facts["found"] else "not there"


def _values(record: dict[str, Any]) -> str:
    """What the record says of the value; not the digits of its id and its times."""
    wanted = ("value", "result", "return_value", "output")
    return json.dumps([record.get(name) for name in wanted])


class Open(Situation):
    """A dashboard that is mounted without a word about who may see it: what a stranger gets.

    fastapi-taskflow: `TaskAdmin(app, manager)`. fastapi-bgx: `bgx.router()`.
    """

    lacks = NO_DASHBOARD

    def routes(self, kit: Kit) -> None:
        try:
            kit.mount_unguarded()
        except Exception as error:
            if isinstance(error, AttributeError):
                raise
            kit.note("refused", type(error).__name__)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            status = server.get(DASHBOARDS[lab.contestant]).status_code
            return {"status": status, "refused": server.notes("refused")}

    def text(self, facts: Facts) -> str:
        refused = facts["refused"]
        return f"the server's start fails: `{refused[0]}`" if refused else str(facts["status"])


class NoCookie(_Simple):
    """A dashboard with a login: page, list, stream, as a stranger gets them.

    fastapi-taskflow: `auth=("admin", "secret")`. fastapi-bgx: a dependency that answers 401.
    """

    wants = Wants(dashboard=True, guarded=True)
    lacks = NO_DASHBOARD

    def look(self, lab: Lab) -> Facts:
        paths = {
            "page": DASHBOARDS[lab.contestant],
            "list": LISTS[lab.contestant],
            "stream": STREAMS[lab.contestant],
        }
        with lab.serve() as server:
            return {name: _status(server, path) for name, path in paths.items()}

    def text(self, facts: Facts) -> str:
        return ", ".join(f"{name} {status}" for name, status in facts.items())


def _status(server: Server, path: str) -> int:
    with server.connect() as client, client.stream("GET", path) as answer:
        return answer.status_code


ALL: tuple[Situation, ...] = (
    StatusAtOnce(),
    Result(),
    Open(),
    NoCookie(),
)
