"""What each contestant does not do of what this library does: said beside its figures."""

from tests.benchmarks import apps
from tests.benchmarks.contestants import (
    FILTERED,
    HAND_WRITTEN,
    NOBODY,
    ONE_EVENT,
    STOCK,
    TWO_EVENTS,
)
from tests.benchmarks.peers import AIOJOBS, TASKFLOW, TASKIQ

NOTHING_LOGGED = "nothing left out; `log_events` is empty"
INFO = "nothing left out; the default: `task.succeeded` is logged"

LACKS = {
    STOCK: "no timeout, limit, id or event; the first failure drops the tasks after it; "
    "sync tasks share the 40 threads of the sync endpoints",
    HAND_WRITTEN: "wrong calls fail after the response; no bound on what waits; a thread is waited "
    "for beyond its timeout; nothing tells of tasks that never ran; no drain",
    NOBODY: NOTHING_LOGGED,
    FILTERED: "nothing left out; structlog's level lets nothing of a success through",
    ONE_EVENT: INFO,
    TWO_EVENTS: "nothing left out; `task.started` and `task.succeeded` are logged",
    apps.QUIET_DEPENDS: NOTHING_LOGGED,
    apps.QUIET_INSTALL: NOTHING_LOGGED,
    apps.DEPENDS: f"{INFO}; without the middleware, lost tasks are noticed late",
    apps.INSTALL: INFO,
    apps.RECORDED: f"{INFO}; a record of each task is on disk soon after it ended",
    apps.DETACHED: f"{INFO}; the request does not wait for the task",
    apps.PENDING: INFO,
    apps.SUSPENDED: INFO,
    TASKFLOW: "no timeout; no bound on what waits, unless queues are configured; logs nothing "
    "without an observer; replaces FastAPI's class in the whole process; keeps every record",
    apps.TASKFLOW_SQLITE: "as above, but a record of each task that ended is on disk",
    AIOJOBS: "no id, timeout or event; the task does not wait for the response; no sync functions "
    "(here: `asyncio.to_thread`); a job that waited runs in the context of another",
    TASKIQ: "by its own documentation for development; its limit does not hold; no bound on what "
    "waits; the task does not wait for the response; keeps the last 100 results",
}
