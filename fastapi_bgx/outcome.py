"""How a task stands and how it ended: words and frozen values only."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar, cast

from fastapi_bgx.errors import NoValue

T = TypeVar("T")


class Status(StrEnum):
    """Where a task is in its life. All but the first three are final."""

    QUEUED = "queued"
    """Accepted by `add_task`; its function was not called yet."""
    RUNNING = "running"
    """Its function runs."""
    RETRYING = "retrying"
    """An attempt failed; the task waits until the next one may begin."""
    SUCCEEDED = "succeeded"
    """Its function returned."""
    FAILED = "failed"
    """Its function raised; the exception is `outcome.error`."""
    TIMED_OUT = "timed_out"
    """Its function ran longer than its timeout. A thread may still run: see `Stats.overrunning`."""
    CANCELLED = "cancelled"
    """It was stopped from outside: by `task.cancel()`, the server's shutdown, or the request's own
    cancellation."""
    EXPIRED = "expired"
    """It waited longer than its `queue_timeout` or `expires` and was never started."""
    REJECTED = "rejected"
    """`add_task` refused it: the backlog was full, or the process was shutting down."""
    DROPPED = "dropped"
    """It was added, but its request failed, so that it was never started (as in stock FastAPI)."""

    @property
    def final(self) -> bool:
        """True when the status does not change any more."""
        return self not in (Status.QUEUED, Status.RUNNING, Status.RETRYING)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task said that it is."""

    fraction: float
    """From 0 to 1."""
    note: str = ""
    """What it does; empty when it did not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[T]):
    """How one task ended."""

    status: Status
    """The final status."""
    error: BaseException | None = None
    """The original exception with its traceback; a `TimeoutError` when the task timed out."""
    errors: tuple[BaseException, ...] = ()
    """The error of every attempt that failed, in their order; also when a later one succeeded."""
    attempts: int = 0
    """How often the function was called."""
    queued_s: float = 0.0
    """Seconds from `add_task` to the first call (or to the end, when there was none)."""
    duration_s: float = 0.0
    """Seconds from the first call to the end."""
    returned: T | None = None
    """What the function returned; `None` when it did not return."""

    @property
    def value(self) -> T:
        """What the function returned.

        Raises:
            NoValue: the task did not succeed; the cause is `error`.
        """
        if self.status is not Status.SUCCEEDED:
            raise NoValue(self.status) from self.error
        return cast(T, self.returned)  # None only where T includes None
