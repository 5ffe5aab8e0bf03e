"""FastAPI's `BackgroundTasks`, made fit for production.

`Bgx(Settings(...)).install(app)` supervises the background tasks of an application: each failure
is captured and logged, and there are timeouts, limits, threads of their own, and a bounded drain.
"""

from fastapi_bgx.app import Bgx, Tasks, tasks_of_request
from fastapi_bgx.background import BackgroundTasks, TasksView
from fastapi_bgx.console import Console
from fastapi_bgx.errors import (
    AlreadyInstalled,
    AppAlreadyStarted,
    BacklogFull,
    BgxError,
    Cancelled,
    Draining,
    LimitConflict,
    NoRequest,
    NoStatusRoute,
    NotInstalled,
    NotRetryable,
    NoValue,
    SecretNeeded,
    SettingsError,
    StoreUnavailable,
    Unavailable,
    Unguarded,
    UnknownLimit,
    UnknownOption,
    WrongCall,
)
from fastapi_bgx.options import CallOptions, Limit, Options, TaskOptions, task_options
from fastapi_bgx.outcome import Outcome, Progress, Status
from fastapi_bgx.reports import DrainReport, LimiterStats, Stats, TaskRef
from fastapi_bgx.retry import Retry
from fastapi_bgx.settings import Settings
from fastapi_bgx.task import CurrentTask, Task, current_task, keep_lines

__all__ = [
    "AlreadyInstalled",
    "AppAlreadyStarted",
    "BackgroundTasks",
    "BacklogFull",
    "Bgx",
    "BgxError",
    "CallOptions",
    "Cancelled",
    "Console",
    "CurrentTask",
    "DrainReport",
    "Draining",
    "Limit",
    "LimitConflict",
    "LimiterStats",
    "NoRequest",
    "NoStatusRoute",
    "NoValue",
    "NotInstalled",
    "NotRetryable",
    "Options",
    "Outcome",
    "Progress",
    "Retry",
    "SecretNeeded",
    "Settings",
    "SettingsError",
    "Stats",
    "Status",
    "StoreUnavailable",
    "Task",
    "TaskOptions",
    "TaskRef",
    "Tasks",
    "TasksView",
    "Unavailable",
    "Unguarded",
    "UnknownLimit",
    "UnknownOption",
    "WrongCall",
    "current_task",
    "keep_lines",
    "task_options",
    "tasks_of_request",
]
