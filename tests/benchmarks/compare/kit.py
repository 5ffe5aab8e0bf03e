"""What the application of a situation is built with: one way to say it, for each contestant.

Routes are the same for all: they ask for FastAPI's own `BackgroundTasks`, as existing code does.
Only the options of tasks and of the application differ, and each contestant gets what its own
documentation recommends for what the situation wants. What it has no option for is left out.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from fastapi import BackgroundTasks, FastAPI

F = TypeVar("F", bound=Callable[..., Any])

STOCK = "stock FastAPI"
TASKFLOW = "fastapi-taskflow"
OURS = "fastapi-bgx"
CONTESTANTS = (STOCK, TASKFLOW, OURS)
PACKAGES = {STOCK: "fastapi", TASKFLOW: "fastapi_taskflow", OURS: "fastapi_bgx"}

THREADS = 20
"""For sync tasks: the default of fastapi-bgx, and given to fastapi-taskflow."""
SITUATION = "COMPARE_SITUATION"
CONTESTANT = "COMPARE_CONTESTANT"
WANTS = "COMPARE_WANTS"
FOLDER = "COMPARE_FOLDER"
"""In the environment of a server's process."""
NOTES = "notes"
DATABASE = "tasks.db"
USER, PASSWORD = "admin", "secret"
SECRET = "a-secret-of-one-user"
LISTS = {TASKFLOW: "/tasks", OURS: "/bgx/tasks"}
"""Where the status API of a contestant lists its tasks."""
DASHBOARDS = {TASKFLOW: "/tasks/dashboard", OURS: "/bgx/"}
STREAMS = {TASKFLOW: "/tasks/dashboard/stream", OURS: "/bgx/events"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What a situation needs of an application."""

    limits: dict[str, int] = field(default_factory=dict)
    """Tasks of that name that may run at once."""
    most_waiting: int | None = None
    store: bool = False
    """Records in SQLite; for who can, what is unfinished is run again after a restart."""
    dashboard: bool = False
    guarded: bool = False
    """The dashboard asks who it is."""
    own_threads: bool = True
    """Sync tasks have threads of their own, where that can be chosen."""
    own_lifespan: bool = False
    detached: bool = False
    """Requests do not wait for their tasks, where that can be chosen."""
    by_dependency: bool = False
    """For `Depends`, without touching routes that do not ask."""
    grace_s: float = 2.0
    """How long a shutdown may wait for tasks, where that can be said."""
    observed: bool = False
    """Failures shall be seen in the log, where that has to be asked for."""
    encrypted: bool = False

    def plain(self) -> dict[str, Any]:
        """For the environment of the server's process."""
        return asdict(self)


class Kit:
    """The application of one situation, by one contestant. Subclasses: one for each."""

    def __init__(self, wants: Wants, folder: Path) -> None:
        self.wants = wants
        self.folder = folder
        self.dependency: Any = BackgroundTasks
        """The annotation of a parameter that shall be injected by `Depends`."""
        self.app = self.make_app()

    def make_app(self) -> FastAPI:
        """A new application, with the contestant on it."""
        raise NotImplementedError

    def task(
        self,
        func: F,
        *,
        timeout: float | None = None,
        retries: int = 0,
        pause: float = 0.0,
        retry_on: type[Exception] = Exception,
        limit: str | None = None,
        again: bool = False,
    ) -> F:
        """Give a function its options, where there are such.

        `again`: it may run a second time when a shutdown interrupted it.
        """
        return func

    def id_of(self, added: Any) -> str | None:
        """The id of what `add_task` gave, if it has one."""
        return None

    def once(self, tasks: Any, key: str, func: F, *arguments: Any) -> Any:
        """Add a task that shall not be there twice."""
        return tasks.add_task(func, *arguments)

    def mount_unguarded(self) -> None:
        """Mount the dashboard as somebody does who says nothing about who may see it."""

    def every(self, seconds: float, func: F) -> None:
        """Call a function again and again."""
        raise NotImplementedError

    async def resize(self, limit: str, slots: int) -> str:
        """Change a limit; what came of it."""
        return "not there"

    def note(self, *words: Any) -> None:
        """Write a line that the situation reads; from any thread and process."""
        line = " ".join(map(str, words)) + "\n"
        file = os.open(self.folder / NOTES, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    @property
    def _lifespan(self) -> Any:
        return self._noted_lifespan if self.wants.own_lifespan else None

    def _noted_lifespan(self, _: FastAPI) -> Any:
        return _Noted(self)


class _Noted:
    """A lifespan of the application's own."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    async def __aenter__(self) -> None:
        self._kit.note("lifespan")

    async def __aexit__(self, *_: object) -> None:
        return None


def available() -> list[str]:
    """The contestants whose package is installed."""
    return [name for name in CONTESTANTS if find_spec(PACKAGES[name]) is not None]
