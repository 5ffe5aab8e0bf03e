"""Records: what is kept of tasks, and what can be asked about them. Frozen values only.

The stores keep them, the status API answers with them, the dashboard shows them. A new field of a
record is added here, filled in `listeners/recorder.py`, and kept by each store.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from fastapi_bgx.outcome import Status

MOST_TEXT = 2_000
"""Characters of a value, an argument, a message or a log line that are kept."""
MOST_TRACEBACK = 20_000
"""Characters of a traceback that are kept: its beginning and its end."""
MOST_STEPS = 200
"""Steps of one task that are kept: the first half and the newest."""
MOST_PAGE = 200
"""Records that one page may ask for."""
MOST_SEARCH = 200
"""Characters of a text that may be searched for."""


class Frozen(BaseModel):
    """The base of everything here."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True
    )


StepKind = Literal[
    "started", "failed", "delayed", "retrying", "log", "slow", "blocked_loop", "overran"
]


class Step(Frozen):
    """One thing that happened to a task between its beginning and its end."""

    at: datetime
    """When."""
    kind: StepKind
    """What: `started` and `failed` are of an attempt; `log` is a line that the task logged."""
    attempt: int = 0
    """In which attempt, from 1; 0 before the first."""
    level: str = "info"
    """How bad it is: `debug`, `info`, `warning`, `error` or `critical`."""
    text: str = ""
    """The line, or a sentence about it; never more than `MOST_TEXT` characters."""
    seconds: float | None = None
    """The length of what it tells of: a delay, a blocked loop, a run."""


class Record(Frozen):
    """One task, as a list shows it. Times are of the process that ran the task."""

    id: str
    """The id of the task."""
    name: str
    """Its name."""
    status: Status
    """Where it is in its life, or how it ended."""
    function: str
    """Module and name of the function; empty for a call that was refused."""
    executor: str
    """Where it runs: `async`, `thread` or `process`; empty for a call that was refused."""
    process: str
    """The id of the process that it was added in."""
    detached: bool = False
    """True when its request does not wait for it."""
    limit: str | None = None
    """The name of its limit."""
    priority: int = 0
    """Among those that wait, the highest goes first."""
    attempt: int = 0
    """The number of the current or last attempt; 0 before the first."""
    attempts: int = 1
    """How many its options allow."""
    added_at: datetime
    """When `add_task` was called."""
    due_at: datetime | None = None
    """Before when it does not start, or not again; for one that is delayed or waits to retry."""
    started_at: datetime | None = None
    """When its first attempt began."""
    ended_at: datetime | None = None
    """When it ended."""
    queued_s: float | None = None
    """Seconds from `add_task` to its first attempt, or to its end; `None` while it waits."""
    duration_s: float | None = None
    """Seconds from its first attempt to its end; `None` before, and for one that never began."""
    timeout_s: float | None = None
    """Seconds that an attempt may take."""
    progress: float | None = None
    """How far it said that it is, from 0 to 1."""
    note: str = ""
    """What it said that it does."""
    error_type: str | None = None
    """The class of the error that ended it, or of the last attempt while it is retrying."""
    error_message: str = ""
    """What the error says."""
    error_place: str = ""
    """File, line and function in which it was raised: `app/mail.py:31 in send`."""
    fingerprint: str | None = None
    """The same for errors of one class from one place: what failures are grouped by."""
    reason: str = ""
    """Why it was cancelled or dropped, or has expired."""
    overrunning: bool = False
    """True while its function still runs though it is over: a thread cannot be stopped."""
    retry_of: str | None = None
    """The id of the ended task that somebody had run again as this one."""
    retryable: bool = False
    """True when it has ended and its arguments are still held, so that it can be run again."""
    change: int = 0
    """Where its last change stands among all changes of the store; later ones are greater."""

    @property
    def final(self) -> bool:
        """True when it has ended."""
        return self.status.final


class FullRecord(Record):
    """One task, with everything that is kept of it."""

    arguments: Mapping[str, str] | None = None
    """Its arguments by name, as texts; `None` unless `Settings.store_arguments`."""
    value: str | None = None
    """What the function returned, as JSON where it can be, or else its `repr`; shortened."""
    traceback: str = ""
    """The traceback of `error_type`."""
    steps: tuple[Step, ...] = ()
    """What happened in between, oldest first."""
    steps_left_out: int = 0
    """How many steps in the middle were not kept."""

    def brief(self) -> Record:
        """The part of it that a list shows."""
        return Record.model_construct(**{name: getattr(self, name) for name in Record.model_fields})


class Query(Frozen):
    """Which records somebody wants: those that meet every condition given."""

    status: frozenset[Status] = frozenset()
    """One of these; all when empty."""
    name: Annotated[str, Field(max_length=MOST_SEARCH)] | None = None
    """Exactly this name."""
    text: Annotated[str, Field(max_length=MOST_SEARCH)] | None = None
    """This text, in whatever case, somewhere in its name, id, function, error or reason."""
    since: AwareDatetime | None = None
    """Added at this moment or later."""
    until: AwareDatetime | None = None
    """Added before this moment."""
    ended_since: AwareDatetime | None = None
    """Ended at this moment or later."""
    ended_until: AwareDatetime | None = None
    """Ended before this moment."""
    fingerprint: Annotated[str, Field(max_length=MOST_SEARCH)] | None = None
    """Ended by this error."""
    overrunning: bool | None = None
    """Whether its function still runs though it is over."""
    limit: Annotated[int, Field(ge=1, le=MOST_PAGE)] = 50
    """At most so many."""
    cursor: Annotated[str, Field(max_length=MOST_SEARCH)] | None = None
    """`next_cursor` of the page before."""


class Page(Frozen):
    """Some records, the last added first."""

    records: tuple[Record, ...]
    """The records."""
    next_cursor: str | None = None
    """What leads to the next page; `None` when this is the last."""


class Changes(Frozen):
    """Records that have changed since somebody looked, in the order of their changes."""

    records: tuple[Record, ...] = ()
    """As they are now: many changes of one record are one."""
    last: int = 0
    """The change up to which this tells: what to ask from next."""
    missed: bool = False
    """True when there were more than anybody should be sent: look at the list anew."""


class Bucket(Frozen):
    """What ended in one span of time."""

    at: datetime
    """Its beginning."""
    ended: int = 0
    """How many tasks ended in it."""
    failed: int = 0
    """How many of them failed or timed out."""
    p50_s: float | None = None
    """Half of the runs took no longer, in seconds; `None` when there were none."""
    p95_s: float | None = None
    """95 % of the runs took no longer."""
    p99_s: float | None = None
    """99 % of the runs took no longer."""


class NameSummary(Frozen):
    """The tasks of one name that ended in a span of time."""

    name: str
    """The name."""
    ended: int
    """How many ended."""
    failed: int
    """How many of them failed or timed out."""
    p50_s: float | None = None
    """Half of the runs took no longer, in seconds."""
    p95_s: float | None = None
    """95 % of the runs took no longer."""
    p99_s: float | None = None
    """99 % of the runs took no longer."""


class Summary(Frozen):
    """What ended in a span of time, and what has not ended yet.

    Percentiles are exact, or, from a database, at most 5 % more or less.
    """

    since: datetime
    """The beginning of the span."""
    until: datetime
    """Its end."""
    bucket_s: float
    """The length of a bucket, in seconds."""
    buckets: tuple[Bucket, ...]
    """The span in pieces, without gaps, oldest first."""
    ended: Mapping[Status, int]
    """How many tasks ended in it, by status."""
    unfinished: Mapping[Status, int]
    """How many have not ended now, by status; whenever they were added."""
    queued_p95_s: float | None = None
    """95 % of those that started and ended in it had waited no longer, in seconds."""
    p50_s: float | None = None
    """Half of the runs took no longer, in seconds."""
    p95_s: float | None = None
    """95 % of the runs took no longer."""
    p99_s: float | None = None
    """99 % of the runs took no longer."""
    names: tuple[NameSummary, ...] = ()
    """By name, those with most failures first, then those with most tasks; at most 100."""


class Failure(Frozen):
    """The failed and timed out tasks that were ended by one kind of error at one place."""

    fingerprint: str
    """What `Query.fingerprint` finds them by."""
    error_type: str
    """The class of the error."""
    error_place: str
    """Where it was raised."""
    error_message: str
    """What the newest one says."""
    names: tuple[str, ...]
    """The names of the tasks; at most 10."""
    count: int
    """How many tasks."""
    first_at: datetime
    """When the first of them ended, in the span that was asked for."""
    last_at: datetime
    """When the newest of them ended."""
    last_id: str
    """The id of the newest."""


class LimiterReading(Frozen):
    """One limiter of one process at one moment; see `LimiterStats`."""

    slots: int | None
    """How many tasks may hold it at once (per key); `None` for no limit."""
    taken: int
    """How many slots are taken."""
    waiting: int
    """How many tasks wait for one."""
    rate: str | None = None
    """How many tasks may start in a time."""
    spent: int = 0
    """How many of these have started."""


class ProcessReading(Frozen):
    """One process that runs tasks, and what it does; see `Stats`."""

    id: str
    """Its id: the beginning of the ids of its tasks."""
    host: str
    """The name of its machine."""
    pid: int
    """Its number there."""
    started_at: datetime
    """Since when it keeps records."""
    seen_at: datetime
    """When it was last heard of."""
    running: int = 0
    """Tasks that hold their slots now."""
    waiting: int = 0
    """Tasks that wait to start."""
    overrunning: int = 0
    """Functions that still run though their task is over."""
    lost: int = 0
    """Records that could not be kept since its start."""
    limiters: Mapping[str, LimiterReading] = Field(default_factory=dict)
    """Its limiters by name."""


class Command(Frozen):
    """What another process is asked to do with one of its tasks."""

    id: str
    """Its own id."""
    process: str
    """The id of the process that is asked."""
    task_id: str
    """The id of the task."""
    action: Literal["cancel", "retry"]
    """What to do."""


class Answer(Frozen):
    """What became of a cancel or a retry that somebody asked for."""

    done: bool
    """True when the task was asked to stop, or runs again."""
    detail: str = ""
    """Why not."""
    task_id: str | None = None
    """The id of the new task, when it runs again."""
    retry_after_s: float | None = None
    """Seconds after which one may ask again, when there is no room just now; else `None`."""
