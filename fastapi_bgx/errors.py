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
            f"limit {name!r} was defined twice with different slots or keys; "
            f"share one Limit object, or use two names"
        )
        self.name = name


class SettingsError(BgxError, ValueError):
    """The settings are wrong; every line names a field and its environment variable."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("fastapi-bgx settings:\n" + "\n".join(f"  {p}" for p in self.problems))


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
