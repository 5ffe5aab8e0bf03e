"""What tests of processes that share a store need: databases, workers, load and answers."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.postgres import address, schema
from tests.server.conftest import PATIENCE, START_PATIENCE, Server, serving, uvicorn

# A busy machine may take long to import everything, and uvicorn replaces whoever is silent for 5 s.
TWO_WORKERS = ("--workers", "2", "--timeout-worker-healthcheck", "60")
SECRET = "a secret that both workers know"
ENDS = {
    "succeeds": "succeeded",
    "succeeds_in_thread": "succeeded",
    "waits": "succeeded",
    "fails": "failed",
    "times_out": "timed_out",
    "recovers": "succeeded",
    "gives_up": "failed",
    "endless": "cancelled",
    "refused": "dropped",
}
"""What a client may ask for, and how that ends."""
FINAL = {"succeeded", "failed", "timed_out", "cancelled", "expired", "dropped"}
Ends = dict[str, str]
"""How each task is to end, by its id."""


@contextmanager
def database(kind: str, directory: Path) -> Iterator[str]:
    """The URL of an empty one."""
    if kind == "sqlite":
        yield f"sqlite:///{directory}/tasks.db"
    else:
        with schema(address()) as url:
            yield url


@contextmanager
def workers(directory: Path, url: str, *, others: int = 0, **settings: str) -> Iterator[Server]:
    """Two workers with this database, beside others; each request finds any of the two."""
    metrics = directory / "metrics"
    metrics.mkdir(exist_ok=True)
    settings = {"PROMETHEUS_MULTIPROC_DIR": str(metrics), "BGX_SECRET": SECRET, **settings}
    command = uvicorn(*TWO_WORKERS, app="recorded:app")
    with serving(command, directory, BGX_STORE=url, **settings) as server:
        server.client.headers["connection"] = "close"
        server.until(
            lambda: len(processes(server)) == 2 + others, "one is not heard of", START_PATIENCE
        )
        yield server


def processes(server: Server) -> dict[str, dict[str, Any]]:
    """What the store knows of the processes, by their ids; nothing when it does not answer."""
    answer = server.client.get("/bgx/stats")
    return {each["id"]: each for each in answer.json()["processes"]} if answer.is_success else {}


def ask(server: Server, process: str, path: str, method: str = "GET") -> httpx.Response:
    """The answer of that process: a connection stays with the process that has accepted it."""
    with ExitStack() as connections:
        found: list[httpx.Client] = []

        def connected() -> bool:
            client = httpx.Client(
                base_url=server.client.base_url, timeout=PATIENCE, trust_env=False
            )
            found.append(connections.enter_context(client))
            return client.get("/up").headers["x-process"] == process

        server.until(connected, f"{process} accepts no connection")
        answer = found[-1].request(method, path)
        assert answer.headers["x-process"] == process
        return answer


def look(server: Server, task_id: str) -> dict[str, Any]:
    """The record of a task, of whichever process."""
    found: dict[str, Any] = server.client.get(f"/bgx/tasks/{task_id}").raise_for_status().json()
    return found


def add(server: Server, name: str, count: int = 1) -> list[str]:
    """The ids of new tasks, all of the same process."""
    answer = server.client.post(f"/add/{name}", params={"count": count}).raise_for_status()
    ids: list[str] = answer.json()
    return ids


def cause(server: Server, kind: str) -> Ends:
    """Have one task added; it is to be found at once."""
    if kind == "refused":
        task_id = server.client.post("/refuse").json()["detail"]
    else:
        (task_id,) = add(server, kind)
    at_once = server.client.get(f"/bgx/tasks/{task_id}")
    assert at_once.status_code == 200, f"{at_once.text} after {at_once.elapsed}"
    if kind == "endless":
        assert server.client.post(f"/bgx/tasks/{task_id}/cancel").status_code == 200
    return {task_id: ENDS[kind]}


def at_once(server: Server, kinds: Iterable[str], do: Callable[..., Ends] = cause) -> Ends:
    """Eight clients ask for all of these."""
    with ThreadPoolExecutor(8) as clients:
        return {
            k: v
            for each in clients.map(lambda kind: do(server, kind), kinds)
            for k, v in each.items()
        }


def listed(get: Callable[[str], httpx.Response]) -> list[dict[str, Any]]:
    """Every record that a list shows, page after page."""
    records: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = get(f"/bgx/tasks?limit=200{cursor}").raise_for_status().json()
        records += page["records"]
        if page["next_cursor"] is None:
            return records
        cursor = f"&cursor={page['next_cursor']}"


def until_ended(server: Server) -> None:
    """Wait until no task is left that goes on."""

    def ended() -> bool:
        answer = server.client.get("/bgx/stats")
        return answer.is_success and not answer.json()["unfinished"]

    server.until(ended, "a task goes on")


def ends_logged(server: Server) -> Counter[tuple[str, str]]:
    """How often the log tells that a task has ended, and how."""
    told = [(str(log["event"]), log) for log in list(server.logs)]
    ends = [(log["task_id"], event[5:]) for event, log in told if event[5:] in FINAL]
    return Counter(ends)
