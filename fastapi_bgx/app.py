"""`Bgx`: wires everything together. The dependency, `install`, the lifespan, and what users ask.

No `from __future__ import annotations` here: FastAPI up to 0.118 cannot resolve the annotations of
a dependency that is an object, when they are strings.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import APIRouter, Depends, FastAPI
from fastapi import BackgroundTasks as StockBackgroundTasks
from fastapi.params import Depends as Dependency
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from fastapi_bgx.background import BackgroundTasks, upgrade
from fastapi_bgx.console import Console
from fastapi_bgx.errors import (
    AlreadyInstalled,
    AppAlreadyStarted,
    NoRequest,
    NotInstalled,
)
from fastapi_bgx.events import Listener
from fastapi_bgx.held import Held
from fastapi_bgx.injection import Shortcuts, inject_everywhere, uninjected_routes
from fastapi_bgx.listeners.hooks import Hook
from fastapi_bgx.listeners.recorder import Recorder
from fastapi_bgx.listeners.recorder.redaction import Hook as RedactionHook
from fastapi_bgx.middleware import SCOPE_KEY, BgxMiddleware, Visit
from fastapi_bgx.notices import notice
from fastapi_bgx.options import did_you_mean
from fastapi_bgx.outcome import Status
from fastapi_bgx.recording import Recording
from fastapi_bgx.reports import DrainReport, Stats
from fastapi_bgx.runners import Runners, serving
from fastapi_bgx.settings import Settings
from fastapi_bgx.signals import SignalWatch
from fastapi_bgx.task import Task


class Bgx:
    """Supervised background tasks for one application.

    `bgx.install(app)` supervises every route; `Depends(bgx)` injects into one. Without settings,
    they are read from `BGX_*` environment variables and `.env`.

    Raises:
        SettingsError: settings that are wrong.
        ImportError: `Settings.store` needs a package that is not installed.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings: Settings = Settings() if settings is None else settings
        self.runners: Runners = Runners(self.settings)
        self._held = Held(self.runners)
        if self.settings.retryable:
            self.runners.publisher.add(self._held)
        self._signals: SignalWatch | None = None
        self._checked: set[int] = set()
        self._recording = Recording(self.settings, self.runners, self._held)

    # Injection.

    async def __call__(
        self, background_tasks: StockBackgroundTasks, connection: HTTPConnection
    ) -> BackgroundTasks:
        """The dependency. An async function: FastAPI calls a sync one in a thread."""
        scope = connection.scope
        visit: Visit | None = scope.get(SCOPE_KEY)
        if visit is not None:
            return visit.supervise(background_tasks, self.runners.current())
        app = scope.get("app")
        if id(app) not in self._checked:
            self._check_injection(app)
        at_once = scope["type"] == "websocket"
        return upgrade(background_tasks, self.runners.current(), at_once=at_once)

    def install(self, app: Starlette) -> None:
        """Supervise the background tasks of every route of `app`, and start and drain with it.

        Routes that exist already and routes that come later; not an application that is mounted
        in it: install that one, too. A second call does nothing.

        Raises:
            AlreadyInstalled: another `Bgx` is installed on `app`.
            AppAlreadyStarted: `app` has served a request already.
        """
        for middleware in app.user_middleware:
            installed: object = middleware.cls
            if installed is BgxMiddleware:
                if middleware.kwargs["bgx"] is self:
                    return
                raise AlreadyInstalled
        if app.middleware_stack is not None:
            raise AppAlreadyStarted
        if isinstance(app, FastAPI):
            inject_everywhere(app, Depends(self))
            shortcuts = Shortcuts(app, self, _injects, self._supervise_elsewhere)
            app.add_middleware(BgxMiddleware, bgx=self, prepare=shortcuts.keep_up)
        else:
            app.add_middleware(BgxMiddleware, bgx=self)

    # Life.

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        """Start and drain, for those who compose their lifespan by hand instead of `install`."""
        self.start(app)
        grace = None
        try:
            await self.ready()
            yield
        except anyio.get_cancelled_exc_class():  # the server ends without a shutdown
            grace = 0.0
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await self.drain(grace)

    def start(self, app: Starlette | None = None) -> None:
        """Let detached tasks outlive their requests, until `drain`. Called by the lifespan.

        Functions of `app` that ask for our class, and get FastAPI's own, are told of in the log.
        """
        self._check_injection(app)
        if self.runners.start():
            self._stop_watching()
            self._signals = SignalWatch(self._notice_signal())
            self._signals.start()
            self._recording.start()

    async def ready(self) -> None:
        """Wait until the processes that share `Settings.store` know of this one.

        For a second at most, and not at all where there is no such store. Called by the lifespan.
        """
        await self._recording.be_heard_of()

    async def drain(self, grace: float | None = None) -> DrainReport:
        """Refuse new tasks, wait `grace` seconds for the live ones, cancel the rest, report.

        `grace` is `Settings.drain_timeout` by default. A running task may still add tasks. A
        second call gives the report of the first. Called by the lifespan.
        """
        drain = self.runners.drain()
        report = await drain.complete(self.settings.drain_timeout if grace is None else grace)
        self._stop_watching()
        await self._recording.leave()
        return report

    # Records.

    @property
    def recorder(self) -> Recorder:
        """What has the records of the tasks kept; the first time, it begins to do so.

        Tasks that live then are recorded, too, without what they did before.
        """
        return self._recording.recorder

    @property
    def records(self) -> Console:
        """The records of the tasks, those of other processes too when `Settings.store` is shared.

        To ask about them, to cancel tasks and to run them again. Recording begins when it is first
        used, in the memory of this process, unless `Settings.store` names a place: then it began
        with this `Bgx`.
        """
        return self._recording.console

    def router(
        self,
        *,
        dependencies: Sequence[Dependency] = (),
        public: bool = False,
        dashboard: bool = True,
        trusted_origins: Collection[str] = (),
    ) -> APIRouter:
        """The routes that show tasks, cancel them and run them again, for `app.include_router`.

        Recording begins. Several routers may be made, with other guards.

        Args:
            dependencies: What lets the right people in: every route stands behind them.
            public: Without dependencies, so that everybody may do everything.
            dashboard: With pages for people; without, there is the status API alone.
            trusted_origins: Whose pages, beside the router's own, may have browsers cancel tasks
                and run them again, as in `https://ops.example.org`.

        Raises:
            Unguarded: neither dependencies nor `public`.
            ValueError: a trusted origin that is not one.
            ImportError: the dashboard needs the extra `dashboard`.
        """
        from fastapi_bgx.dashboard import make_router  # most applications never need it

        return make_router(
            self.records,
            dependencies=dependencies,
            public=public,
            dashboard=dashboard,
            trusted_origins=trusted_origins,
            when_closing=self._when_closing,
        )

    def status_router(
        self, *, dependencies: Sequence[Dependency] = (), value: bool = False
    ) -> APIRouter:
        """One route, for the users of the application: how far a task is, by its `status_url`.

        The URL is the guard: nobody can make one, and it shows one task, without its function,
        arguments or error. Recording begins.

        Args:
            dependencies: What has to let a user in as well.
            value: Tell what the task returned, too.

        Raises:
            SecretNeeded: several processes share the store, and `Settings.secret` is `None`.
        """
        from fastapi_bgx.dashboard import make_status_router

        return make_status_router(
            self.records.get, self._recording.tokens(), dependencies=dependencies, value=value
        )

    def status_url(self, task: Task[Any] | str, request: HTTPConnection | None = None) -> str:
        """The path under which the status route tells of that task, or of the one with that id.

        Prefixes and `root_path` are in it. It needs to know where the application is: in a route
        that an installed `Bgx` serves it does, elsewhere pass the request.

        Raises:
            NoRequest: no request is being served here.
            NoStatusRoute: the application does not include `status_router()`.
            SecretNeeded: several processes share the store, and `Settings.secret` is `None`.
        """
        from fastapi_bgx.dashboard import status_path

        connection = request or _current_connection()
        task_id = task if isinstance(task, str) else task.id
        return status_path(connection, self._recording.tokens().token(task_id))

    def redact(self, hook: RedactionHook) -> RedactionHook:
        """Ask `hook(task, name, value)` what a record keeps in the place of a value; a decorator.

        It is asked for each argument by its name, for what the function returned (`"return"`), for
        each message of an error (`"error"`) and for each log line (`"log"`), in a thread of the
        records. What it gives back is kept, shortened; when it raises, nothing is.
        """
        return self._recording.redaction.add(hook)

    # Questions.

    def on_failure(self, hook: Hook) -> Hook:
        """Call `hook(task, outcome)` for every task that failed or timed out; a decorator.

        Sync hooks run in a thread, async ones on the event loop, after the task and before the end
        of an inline task's request, for at most 10 seconds each. What a hook raises is logged.
        """
        return self.runners.hooks.add(hook)

    def listen(self, listener: Listener) -> Listener:
        """Tell `listener` of every event from now on; see `fastapi_bgx.events`.

        It is called on whatever thread an event happens, the event loop's mostly, and has to be
        quick. What it raises is logged, and hurts no task.
        """
        self.runners.publisher.add(listener)
        return listener

    def stats(self) -> Stats:
        """What runs and waits now, and what has ended; from any thread."""
        runner = self.runners.here() or self.runners.latest()
        if runner is None:
            raise RuntimeError("stats() needs a running application: no event loop was seen yet")
        return runner.stats()

    async def resize(self, limit: str, slots: int) -> None:
        """Change the slots of a limit while the application serves.

        `limit` is a name of yours, or `concurrency`, `threads` or `processes`. With more slots,
        tasks that wait start at once. With fewer, what runs goes on, and slots that come free are
        not handed out until there are no more than `slots`. In this process alone, and until it
        ends: the settings are not changed.

        Raises:
            UnknownLimit: there is no such limit.
            ValueError: `slots` is less than 1, or the limit has a rate and no slots.
        """
        if slots < 1:
            raise ValueError(f"resize({limit!r}, {slots!r}): a limit needs at least 1 slot")
        self.runners.current().resize(limit, slots)

    def get(self, task_id: str) -> Task[Any] | None:
        """The task with that id: a live one, or one that `Settings.history` still has.

        `None` for every other id. From any thread; of this process alone.
        """
        return self.runners.get(task_id)

    def find(
        self,
        *,
        status: Status | str | Collection[Status | str] | None = None,
        name: str | None = None,
        since: datetime | None = None,
    ) -> list[Task[Any]]:
        """The live tasks, and those that `Settings.history` still has, the newest first.

        Those with that status (or one of them), that name, and added `since` that moment. From any
        thread; of this process alone.

        Raises:
            ValueError: a status that does not exist, or of which the settings keep no tasks; or a
                `since` without a time zone.
        """
        statuses = None if status is None else _statuses(status)
        self._check_kept(statuses or set())
        return self.runners.find(statuses, name, None if since is None else self._moment(since))

    def cancel(self, task_id: str) -> bool:
        """Ask the task with that id to stop, as `task.cancel()` does; from any thread.

        False when there is no such task, or it has ended already.
        """
        task = self.get(task_id)
        return task is not None and task.cancel()

    def retry(self, task_id: str) -> Task[Any]:
        """Run a task that has ended without success again: a new task of the same call.

        From any thread. The function, its arguments and the options of `using` are the same ones.
        It is detached, and not delayed; it sees neither the context variables of the first request
        nor those of who calls this. Its `retry_of` is `task_id`. What has ended once more can be
        run again once more, by either id.

        Of this process alone; `Settings.retryable` says how many calls are held. See
        `bgx.records.retry` for those of other processes.

        Raises:
            NotRetryable: its call is not held, or it has not ended, or runs again already.
            BacklogFull: `Settings.max_backlog` tasks wait already.
            Draining: the process is shutting down.
        """
        return self._held.retry(task_id)

    # Inside.

    def _check_kept(self, statuses: set[Status]) -> None:
        """Nobody should take what is not kept for what did not happen."""
        if Status.REJECTED in statuses:
            raise ValueError("no task is ever rejected: add_task raised, and gave none")
        if not self.settings.history and any(status.final for status in statuses):
            raise ValueError("Settings.history is 0: tasks that have ended are not kept")
        if Status.SUCCEEDED in statuses and self.settings.history_of != "all":
            raise ValueError('tasks that succeeded are kept with Settings.history_of="all"')

    def _moment(self, since: datetime) -> float:
        """A date and time by the clock of the tasks."""
        if since.tzinfo is None:
            raise ValueError(f"find(since=...) needs a datetime with a time zone, got {since!r}")
        clock = self.runners.clock
        return clock.now() - (clock.wall() - since).total_seconds()

    def _supervise_elsewhere(self, stock: StockBackgroundTasks) -> None:
        """For a route that was spared the dependency, and is served by another application."""
        visit = serving.get(None)
        runner = self.runners.here() or self.runners.latest()
        assert runner is not None, "routes are spared once there is a request, and its runner"
        if visit is None:
            upgrade(stock, runner, at_once=False)
        else:
            visit.supervise(stock, runner)

    def _notice_signal(self) -> Callable[[bool], None]:
        """What to call for a signal. The first begins the grace period, a second one ends it."""
        runner, drain = self.runners.current(), self.runners.drain()

        def noticed(again: bool) -> None:
            grace = 0.0 if again else self.settings.drain_timeout
            with suppress(RuntimeError):  # the loop has ended
                runner.backend.call_soon_threadsafe(lambda: drain.announce(grace))

        return noticed

    def _when_closing(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when the shutdown of this event loop's server begins; gives what undoes it."""
        return self.runners.drain().when_announced(callback)

    def _stop_watching(self) -> None:
        if self._signals is not None:
            self._signals.stop()
            self._signals = None

    def _check_injection(self, app: Any) -> None:
        """Once for each application: when it starts, or when it first asks this `Bgx` for tasks."""
        if not isinstance(app, Starlette) or id(app) in self._checked:
            return
        self._checked.add(id(app))
        found = uninjected_routes(app, _injects)
        if found:
            notice(
                "warning",
                "bgx.not_injected",
                functions=found,
                effect="these get FastAPI's own BackgroundTasks, unsupervised",
                remedy="bgx.install(app), or Annotated[BackgroundTasks, Depends(bgx)]",
            )


def _statuses(status: Status | str | Collection[Status | str]) -> set[Status]:
    wanted = [status] if isinstance(status, str) else status
    known = [str(each) for each in Status]
    for each in wanted:
        if each not in known:
            hint = did_you_mean(str(each), known)
            raise ValueError(f"find(status=...): {each!r} is no status; {hint}")
    return {Status(each) for each in wanted}


def _injects(call: Any) -> bool:
    """True for a dependency that gives the list of the request."""
    return isinstance(call, Bgx) or call is tasks_of_request


async def tasks_of_request(
    background_tasks: StockBackgroundTasks, connection: HTTPConnection
) -> BackgroundTasks:
    """The dependency behind `Tasks`; named so that `app.dependency_overrides` can replace it.

    Raises:
        NotInstalled: no `Bgx` is installed on the application that serves the request.
    """
    visit = connection.scope.get(SCOPE_KEY)
    if not isinstance(visit, Visit):
        raise NotInstalled
    return visit.supervise(background_tasks, visit.runner)


def _current_connection() -> HTTPConnection:
    """The request or WebSocket that is being served here.

    Raises:
        NoRequest: there is none.
    """
    visit = serving.get(None)
    if not isinstance(visit, Visit) or visit.scope is None:
        raise NoRequest
    return HTTPConnection(visit.scope)


if TYPE_CHECKING:
    Tasks = BackgroundTasks
else:
    Tasks = Annotated[Any, Depends(tasks_of_request)]
    """The supervised tasks of the request, for modules that cannot import the `Bgx`.

    At run time not an annotation with the class: FastAPI before 0.128.2 refuses that.
    """
