"""Every error that fastapi-bgx raises: each carries its data and writes its own message."""

from collections.abc import Iterable

from starlette.exceptions import HTTPException


class BgxError(Exception):
    """The base of every error that fastapi-bgx raises itself."""


class Unavailable(BgxError, HTTPException):
    """A task was refused for now. Answered `503` with `Retry-After` when nobody catches it.

    It is Starlette's `HTTPException`, so the exception handlers of the application apply.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        seconds = max(1, round(retry_after))
        HTTPException.__init__(
            self, status_code=503, detail=message, headers={"Retry-After": str(seconds)}
        )
        self.retry_after = retry_after
        """Seconds after which a client may try again."""


class BacklogFull(Unavailable):
    """`add_task` was refused: `Settings.max_backlog` tasks wait already."""

    def __init__(self, limit: int, retry_after: float) -> None:
        super().__init__(
            f"{limit} background tasks are waiting already; try again in {retry_after:.0f} s",
            retry_after,
        )
        self.limit = limit
        """The value of `Settings.max_backlog`."""


class Draining(Unavailable):
    """`add_task` was refused: this process is shutting down and takes no new tasks."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(
            f"this process is shutting down and takes no new tasks; "
            f"try again in {retry_after:.0f} s",
            retry_after,
        )


class WrongCall(BgxError, TypeError):
    """`add_task` was given something that could not have been called later."""


class UnknownOption(BgxError, TypeError):
    """`using` or `task_options` was given an option that is not one."""


class UnknownLimit(BgxError, LookupError):
    """A task names a limit that `Settings.limits` does not have."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(
            f"limit {name!r} is not configured (known: {names}); "
            f"add it to Settings.limits, or pass Limit({name!r}, slots)"
        )
        self.name = name


class LimitConflict(BgxError, ValueError):
    """Two `Limit` objects have one name and do not agree."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"limit {name!r} was defined twice with different slots, rates or keys; "
            f"share one Limit object, or use two names"
        )
        self.name = name


class SettingsError(BgxError, ValueError):
    """The settings are wrong; every line names a field and its environment variable."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("fastapi-bgx settings:\n" + "\n".join(f"  {p}" for p in self.problems))


class StoreUnavailable(BgxError, RuntimeError):
    """The store of the records does not answer. Tasks go on without it."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the store of the task records does not answer: {why}")
        self.why = why
        """What went wrong."""


class NotRetryable(BgxError, ValueError):
    """`bgx.retry` was asked for a task that cannot be run again, or not now."""

    def __init__(self, task_id: str, why: str) -> None:
        super().__init__(f"task {task_id} cannot be run again: {why}")
        self.task_id = task_id
        """The id of the task."""
        self.why = why
        """What stands against it."""


class Unguarded(BgxError, ValueError):
    """A router that shows or changes tasks was asked for without a dependency that guards it."""

    def __init__(self, call: str) -> None:
        super().__init__(
            f"{call} needs a dependency that lets the right people in, as in "
            f"{call}(dependencies=[Depends(admin)]); public=True opens it to everybody"
        )
        self.call = call
        """What was called."""


class NoStatusRoute(BgxError, RuntimeError):
    """`bgx.status_url` found no status route in the application that serves the request."""

    def __init__(self) -> None:
        super().__init__(
            "the application has no status route: "
            'app.include_router(bgx.status_router(), prefix="/status")'
        )


class NoRequest(BgxError, RuntimeError):
    """`bgx.status_url` was called where no request is being served."""

    def __init__(self) -> None:
        super().__init__(
            "no request is being served here, so nobody knows where the status route is: "
            "make the URL in the route, or pass status_url(task, request)"
        )


class SecretNeeded(BgxError, ValueError):
    """Several processes have to know each other's signatures, and have no common secret."""

    def __init__(self) -> None:
        super().__init__(
            "several processes share the store of the records, so status URLs need a secret that "
            "all of them know: set BGX_SECRET (Settings.secret), as made by "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
        )


class NotInstalled(BgxError, RuntimeError):
    """`Tasks` was used in an application that has no `Bgx`."""

    def __init__(self) -> None:
        super().__init__(
            "Tasks found no Bgx that serves this request: call Bgx().install(app) once, "
            "or inject with Depends(bgx)"
        )


class AlreadyInstalled(BgxError, RuntimeError):
    """A second `Bgx` was installed on one application."""

    def __init__(self) -> None:
        super().__init__("another Bgx is installed on this application already; use that one")


class AppAlreadyStarted(BgxError, RuntimeError):
    """`install` was called after the application had served its first request."""

    def __init__(self) -> None:
        super().__init__(
            "install(app) came after the application had started; "
            "call it where the app is built, before the server runs"
        )


class Cancelled(BgxError):
    """Raised by `current_task().check_cancelled()`: the task is to stop."""

    def __init__(self, task: str) -> None:
        super().__init__(f"task {task} was asked to stop")
        self.task = task
        """The name of the task."""


class NoValue(BgxError, LookupError):
    """`outcome.value` was read, but the task did not succeed."""

    def __init__(self, status: str) -> None:
        super().__init__(f"the task has no value: it ended as {str(status)!r}; see outcome.error")
        self.status = status
