"""Options: the frozen values that say how a task runs, and the decorator that attaches them.

A new option is added here (to `Options` and to `TaskOptions`) and read in `plan.py`.
"""

import difflib
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    TypedDict,
    TypeVar,
    Unpack,
    get_args,
)

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fastapi_bgx.errors import UnknownOption
from fastapi_bgx.rates import parse_rate
from fastapi_bgx.retry import Retry

F = TypeVar("F", bound=Callable[..., Any])
ATTRIBUTE = "__bgx_options__"

ExecutorName = Literal["async", "thread", "process"]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `slots` tasks at once, among all tasks that use a limit of this name.

    With `key`, that many for each value of the key. The key function gets the arguments of the
    task by name, however the caller passed them: `Limit("tenant", 2, key=lambda tenant_id, **_:
    tenant_id)`.

    `rate`, beside the slots or instead of them: at most so many tasks start within any interval of
    that length, as in `"100/minute"` or `"10/5 minutes"`. It needs the extra `rates`.

    Values for `name` in `Settings.limits` and `Settings.rates` win over these.

    Raises:
        ValueError: neither slots nor a rate, or one that could never let a task run.
        ImportError: there is a rate, and the extra `rates` is not installed.
    """

    name: str
    slots: int | None = None
    key: Callable[..., Hashable] | None = None
    rate: str | None = None

    def __post_init__(self) -> None:
        """Refuse what could never let a task run."""
        if not self.name:
            raise ValueError("a Limit needs a name")
        if self.slots is None and self.rate is None:
            raise ValueError(f"Limit({self.name!r}) needs slots, a rate, or both")
        if self.slots is not None and (type(self.slots) is not int or self.slots < 1):
            # Not isinstance: True is an int, too.
            raise ValueError(f"Limit({self.name!r}) needs at least 1 slot, got {self.slots!r}")
        if self.rate is not None:
            try:
                parse_rate(self.rate)
            except ValueError as error:
                raise ValueError(f"Limit({self.name!r}): {error}, got {self.rate!r}") from None


def refuse_bool(value: Any) -> Any:
    """For numbers. Python would take True for 1; who writes it means something else."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


def refuse_stray_bool(model: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """For every field of a model, at once."""
    annotation = model.model_fields[info.field_name or ""].annotation
    return value if bool in (annotation, *get_args(annotation)) else refuse_bool(value)


def _refuse_other_limits(value: Any) -> Any:
    if value is None or isinstance(value, str | Limit):
        return value
    raise ValueError("Input should be the name of a limit, or a Limit")


def _refuse_other_keys(value: Any) -> Any:
    if value is None or callable(value) or (isinstance(value, str) and value):
        return value
    raise ValueError("Input should be a text that is not empty, or a function that gives the key")


class Options(TypedDict, total=False):
    """What `using` and `task_options` accept. An option left out is unchanged."""

    name: str
    """The name of the task in logs, settings and statistics. Default: the function's name."""
    timeout: float | None
    """Seconds that the function may run; `None`: no timeout."""
    queue_timeout: float | None
    """Seconds that the task may wait for a slot before it expires; `None`: for ever."""
    slow_after: float | None
    """Seconds after which a running task is reported as slow; `None`: never."""
    limit: str | Limit | None
    """The name of a limit in `Settings.limits` or `Settings.rates`, or a `Limit`."""
    executor: ExecutorName | None
    """Where the function runs; `None`: async functions on the loop, others in a thread."""
    detached: bool
    """True: handed to the runner, so that the request ends without it."""
    concurrent: bool
    """True: runs beside the other tasks of its request instead of after them."""
    retry: Retry | None
    """Whether and how failed attempts are followed by others; `None`: not."""
    delay: float | None
    """Seconds after `add_task` before which the task does not start."""
    expires: float | None
    """Seconds after `add_task` from which on the task does not start any more."""
    priority: int
    """Among the tasks that wait for one limiter, the highest goes first. Default: 0."""
    unique: str | Callable[..., Hashable] | None
    """While a task of this name and key is unfinished, `add_task` gives that one and adds none.
    A function makes the key of the arguments, which it gets by name."""


class Particulars(NamedTuple):
    """The options that belong to one call. They are in no plan: plans are made once and kept."""

    run_at: datetime | None = None
    unique: str | None = None


def key_of_call(**_: object) -> Hashable:
    """In place of a `unique` that is among the particulars."""
    raise AssertionError("the key is with the call")  # pragma: no cover - it stands in, uncalled


class CallOptions(Options, total=False):
    """What only `using` accepts: options for which there is a new value at each call."""

    run_at: datetime | None
    """The moment before which the task does not start, with its time zone; instead of `delay`."""


class TaskOptions(BaseModel):
    """The options of a task, as configured for its name: see `Options` for each field."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True
    )

    name: Annotated[str, Field(min_length=1)] | None = None
    timeout: Seconds | None = None
    queue_timeout: Seconds | None = None
    slow_after: Seconds | None = None
    limit: Annotated[str | Limit | None, PlainValidator(_refuse_other_limits)] = None
    executor: ExecutorName | None = None
    detached: bool | None = None
    concurrent: bool | None = None
    retry: Retry | None = None
    delay: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    expires: Seconds | None = None
    priority: int | None = None
    unique: Annotated[str | Callable[..., Hashable] | None, PlainValidator(_refuse_other_keys)] = (
        None
    )

    _no_stray_bool = field_validator("*", mode="before")(classmethod(refuse_stray_bool))

    @model_validator(mode="after")
    def _can_start(self) -> "TaskOptions":
        if self.delay is not None and self.expires is not None and self.delay >= self.expires:
            raise ValueError(
                f"a delay of {self.delay:g} s with expires={self.expires:g}: it could never start"
            )
        return self

    def given(self) -> dict[str, Any]:
        """The options that were named, with their values."""
        return {field: getattr(self, field) for field in self.model_fields_set}


def parse_options(where: str, options: Options) -> TaskOptions:
    """Check the options given to `where`, a function of the public API.

    Raises:
        UnknownOption: an option that does not exist; the message suggests one.
        ValueError: a value that is out of range or of the wrong type.
    """
    for name in options:
        if name == "run_at":
            raise UnknownOption(f"{where}() got run_at, which is for a single call: using(run_at=)")
        if name not in TaskOptions.model_fields:
            hint = did_you_mean(name, TaskOptions.model_fields)
            raise UnknownOption(f"{where}() got an unknown option {name!r}; {hint}")
    try:
        return TaskOptions(**options)
    except ValidationError as error:
        problems = [": ".join(filter(None, _path_and_message(p))) for p in problems_of(error)]
        raise ValueError(f"{where}(): {'; '.join(problems)}") from None


def _path_and_message(problem: "Problem") -> tuple[str, str]:
    return ".".join(problem.path), problem.message


def particulars_of(options: dict[str, Any]) -> Particulars | None:
    """Take the options of one call out of `options`; what has to be in the plan stays there.

    Raises:
        ValueError: a `run_at` that is no moment, or contradicts another option.
    """
    run_at, unique = options.pop("run_at", None), options.get("unique")
    if run_at is not None:
        if not isinstance(run_at, datetime) or run_at.tzinfo is None:
            raise ValueError(f"using(): run_at should be a datetime with a time zone: {run_at!r}")
        if options.get("delay") is not None:
            raise ValueError("using(): run_at and delay contradict each other; give one of them")
        options["delay"] = 0.0
    if isinstance(unique, str) and unique:
        options["unique"] = key_of_call
    else:
        unique = None
    return None if run_at is None and unique is None else Particulars(run_at, unique)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that does not exist."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


class Problem(NamedTuple):
    """One thing that pydantic refused."""

    path: tuple[str, ...]
    """The names that lead to the value; empty when several values contradict each other."""
    message: str
    kind: str
    """pydantic's own word for it."""
    given: Any


SECRETS = frozenset({"secret"})
"""Settings whose values no message repeats."""


def problems_of(error: ValidationError) -> Iterator[Problem]:
    """What pydantic refused, in the words of this library."""
    for each in error.errors(include_url=False):
        path = tuple(part for part in each["loc"] if isinstance(part, str) and part != "[key]")
        if each["type"] == "extra_forbidden":
            message = f"there is no such option; {did_you_mean(path[-1], TaskOptions.model_fields)}"
        else:
            message = each["msg"].removeprefix("Value error, ")
            message += f", got {each['input']!r}" if path and path[0] not in SECRETS else ""
        yield Problem(path, message, each["type"], each["input"])


def normal_name(name: str) -> str:
    """A task's name as an environment variable can spell it: `Mailer.send` is MAILER_SEND."""
    return re.sub(r"\W", "_", name).lower()


def task_options(**options: Unpack[Options]) -> Callable[[F], F]:
    """Attach options to a function. The very same function is returned, with metadata only.

    `Settings.tasks` and `using` override what is given here.

    Raises:
        UnknownOption: an option that does not exist.
        ValueError: a value that is out of range.
    """
    parsed = parse_options("task_options", options)

    def attach(func: F) -> F:
        setattr(func, ATTRIBUTE, parsed)
        return func

    return attach
