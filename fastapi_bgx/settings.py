"""The one settings object: from Python, from `BGX_*` environment variables, or from `.env`.

A new setting is one field here. Its docstring is its documentation; nothing else lists defaults.
"""

import difflib
import json
import os
from collections.abc import Set
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from fastapi_bgx.errors import SettingsError
from fastapi_bgx.options import (
    Problem,
    Seconds,
    TaskOptions,
    normal_name,
    problems_of,
    refuse_bool,
    refuse_stray_bool,
)
from fastapi_bgx.rates import check_rate
from fastapi_bgx.retry import Retry

T = TypeVar("T")
EventName = Literal[
    "task.queued",
    "task.joined",
    "task.delayed",
    "task.started",
    "task.progressed",
    "task.retrying",
    "task.succeeded",
    "task.failed",
    "task.timed_out",
    "task.overran",
    "task.cancelled",
    "task.expired",
    "task.dropped",
    "task.rejected",
    "task.slow",
    "task.blocked_loop",
    "task.logged",
    "bgx.started",
    "bgx.drained",
]
ALL_EVENTS: frozenset[EventName] = frozenset(EventName.__args__)  # type: ignore[attr-defined]  # of a Literal

PREFIX = "BGX_"
RESERVED_LIMITS = frozenset({"concurrency", "threads", "processes"})
NESTED = "__"
NONE = "none"
SHORTEST_SECRET = 16
Slots = Annotated[int, Field(ge=1)]
if TYPE_CHECKING:
    EventNames = Set[EventName]  # a set is as good as a frozen one: it is copied
else:
    EventNames = frozenset[EventName]


def _check_secret(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < SHORTEST_SECRET:
        raise ValueError(f"a secret needs at least {SHORTEST_SECRET} characters")
    return secret


class Settings(BaseSettings):
    """How the background tasks of an application run.

    Every field can be set by an environment variable: `BGX_` and its name in capitals, with `__`
    before each nested name (`BGX_TASKS__SEND_WELCOME__TIMEOUT=10`), also in a file `.env`. `none`
    there is `None`; lists and dictionaries are written as JSON. What the code gives wins over the
    environment, and the environment over the file. Times are in seconds.

    Raises:
        SettingsError: an unknown name, a value out of range, or a contradiction. The message
            names each field and its environment variable.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=NESTED,
        env_parse_none_str=NONE,
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",  # unknown names are refused below, where the message can help
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=False,
    )

    mode: Literal["inline", "detached"] = "inline"
    """`inline`: a request ends after its tasks, as in stock FastAPI. `detached`: before them."""
    max_concurrency: Slots | None = 1000
    """Tasks that may run at once, of every kind; `None`: no limit."""
    max_threads: Slots = 20
    """Sync tasks that may run at once, in threads that serve nothing else."""
    max_processes: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Tasks of `executor="process"` that may run at once. Default: one per CPU."""
    limits: dict[str, Annotated[Slots, BeforeValidator(refuse_bool)]] = Field(default_factory=dict)
    """Named limits: name to slots, used by `limit="name"`."""
    rates: dict[str, Annotated[str, AfterValidator(check_rate)]] = Field(default_factory=dict)
    """Rates of named limits, as in `100/minute`: so many tasks start within any such interval."""
    max_backlog: Slots | None = 100_000
    """Tasks that may wait to start; one more is refused with `BacklogFull`. `None`: no bound."""
    timeout: Seconds | None = None
    """Seconds that a task may run, unless it says otherwise; `None`: no timeout, as in stock."""
    queue_timeout: Seconds | None = None
    """Seconds that a task may wait for a slot before it expires; `None`: for ever."""
    slow_after: Seconds | None = 30.0
    """Seconds after which a running task is reported as slow; `None`: never."""
    loop_block_after: Seconds | None = None
    """Seconds after which a task that blocks the event loop is reported; `None`: not watched."""
    retry: Retry | None = None
    """Whether and how failed tasks are tried again, unless they say otherwise; `None`: not."""
    history: Annotated[int, Field(ge=0)] = 1000
    """Ended tasks that `bgx.get` and `bgx.find` still know, the newest; of those with errors 100.
    Their arguments are let go, and a value of more than 10 kB, unless somebody else keeps it.
    0: none."""
    history_of: Literal["unsuccessful", "all"] = "unsuccessful"
    """Which ended tasks: those that did not succeed, or `all`, which costs 0.4 µs for each task."""
    retryable: Annotated[int, Field(ge=0)] | None = None
    """Ended tasks that can be run again by hand, the newest that did not succeed: their arguments
    are held, unless these are larger than 10 kB. 0: none. `None`: 100, once there are records."""
    drain_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 20.0
    """Seconds that a shutdown waits for live tasks before it cancels them."""
    on_error: Literal["capture", "raise"] = "capture"
    """`capture`: a failed task hurts nobody else. `raise`: stop and raise, as in stock FastAPI."""
    on_failed_response: Literal["drop", "run"] = "drop"
    """The tasks of a request that failed: dropped with an event (as in stock), or run."""
    check_calls: bool = True
    """Refuse a wrong call at `add_task`, in the route, where the mistake is."""
    log_arguments: bool = False
    """Log the arguments of tasks. They may hold secrets: off."""
    log_events: EventNames = ALL_EVENTS
    """The events that are logged; an empty set: none."""
    store: Annotated[str, Field(min_length=1)] | None = Field(default=None, repr=False)
    """Where records of tasks are kept: `memory`, or the URL of a database for SQLAlchemy, as in
    `sqlite:///tasks.db`. `None`: in memory, once something asks for them."""
    store_most: Slots | None = None
    """Records of ended tasks that are kept, the newest. `None`: 10,000 in memory, 100,000 in a
    database."""
    store_max_age: Seconds = 7 * 24 * 3600.0
    """Seconds after the end of a task for which its record is kept."""
    store_arguments: bool = False
    """Keep the arguments of tasks in their records. They may hold secrets: off."""
    secret: Annotated[SecretStr, AfterValidator(_check_secret)] | None = None
    """Signs the URLs of `bgx.status_url`. `None`: a random one for each process. Processes that
    share a store of records need the same one."""
    tasks: dict[str, TaskOptions] = Field(default_factory=dict)
    """Options by task name; they win over `@task_options`, so that operations need no deploy."""

    if not TYPE_CHECKING:  # pragma: no branch - a checker sees one argument for each field

        def __init__(self, **values: Any) -> None:
            """Read and check everything once, and report all that is wrong together."""
            problems = [
                _unknown(f"{name} ({_variable(name)})", name)
                for name in values
                if name not in FIELDS
            ]
            problems += [
                _unknown(variable, variable.removeprefix(PREFIX).lower())
                for variable in _our_variables(type(self))
                if not _is_setting(variable)
            ]
            try:
                super().__init__(**_mergeable(values))
            except ValidationError as error:
                problems += [_describe(problem) for problem in problems_of(error)]
            if problems:
                raise SettingsError(problems)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - ours are made here
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The code, the environment and `.env`: the first that names a setting wins."""
        return init_settings, _Environment(settings_cls), _EnvFile(settings_cls)

    _no_stray_bool = field_validator("*", mode="before")(classmethod(refuse_stray_bool))

    @field_validator("limits", "rates")
    @classmethod
    def _no_reserved_names(cls, limits: dict[str, T]) -> dict[str, T]:
        for name in sorted(RESERVED_LIMITS & limits.keys()):
            raise ValueError(f"{name!r} is not a name of yours; set max_{name} instead")
        return limits

    @field_validator("tasks")
    @classmethod
    def _one_name_each(cls, tasks: dict[str, TaskOptions]) -> dict[str, TaskOptions]:
        for name, options in tasks.items():
            if options.name is not None:
                raise ValueError(f"{name}: a task is renamed where it is added, not in settings")
        normal = _by_normal_name(tasks)
        if len(normal) < len(tasks):
            raise ValueError("a task is named twice; dots, dashes and capitals make no difference")
        return normal

    @model_validator(mode="after")
    def _no_contradictions(self) -> "Settings":
        problems = [
            f"tasks.{name}.limit ({_variable('tasks', name, 'limit')}): {options.limit!r} "
            f"is not in limits (BGX_LIMITS)"
            for name, options in self.tasks.items()
            if isinstance(options.limit, str)
            and normal_name(options.limit)
            not in {normal_name(each) for each in (*self.limits, *self.rates)}
        ]
        if self.on_error == "raise" and self.mode == "detached":
            problems.append(
                "on_error='raise' (BGX_ON_ERROR) contradicts mode='detached' (BGX_MODE): "
                "a detached task has no request to raise in"
            )
        if problems:
            raise ValueError("\n  ".join(problems))
        return self


FIELDS = tuple(Settings.model_fields)
NESTING = ("limits", "rates", "retry", "tasks")


class _AsWritten:
    """Leaves what is not JSON to the field that gets it: the field can say what it needs."""

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:  # noqa: ARG002 - the signature is pydantic's
        """The list or dictionary that a variable holds, or the text as it is."""
        try:
            decoded = json.loads(value)
        except ValueError:
            return value
        return decoded if type(decoded) in (list, dict) else value


class _Environment(_AsWritten, EnvSettingsSource):
    """The environment variables."""


class _EnvFile(_AsWritten, DotEnvSettingsSource):
    """The file `.env`, which may hold the variables of others."""

    def __call__(self) -> dict[str, Any]:
        """The settings, and nothing else."""
        return EnvSettingsSource.__call__(self)


def _our_variables(settings: type[BaseSettings]) -> list[str]:
    """The variables of the environment and of `.env` that are meant for this library."""
    names = {name.upper() for name in (*os.environ, *_EnvFile(settings).env_vars)}
    return sorted(name for name in names if name.startswith(PREFIX))


def _is_setting(variable: str) -> bool:
    name, nested, _ = variable.removeprefix(PREFIX).lower().partition(NESTED)
    return name in (NESTING if nested else FIELDS)


def _mergeable(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, in the form to which the environment can add single options of a task."""
    if not isinstance(values.get("tasks"), dict):
        return values
    tasks: dict[Any, Any] = values["tasks"]
    given = {n: o.given() if isinstance(o, TaskOptions) else o for n, o in tasks.items()}
    normal = _by_normal_name(given)
    return values | {"tasks": normal if len(normal) == len(given) else given}


def _by_normal_name(tasks: dict[Any, T]) -> dict[Any, T]:
    return {normal_name(n) if isinstance(n, str) else n: o for n, o in tasks.items()}


def _unknown(shown: str, name: str) -> str:
    name = name.replace(NESTED, "_").strip("_")
    field, _, inner = name.partition("_")
    close = difflib.get_close_matches(name, FIELDS, n=1)
    if inner and field in NESTING:
        hint = f"a name inside of {field} follows {NESTED!r}, as in {_variable(field, 'name')}"
    elif close:
        hint = f"did you mean {close[0]} ({_variable(*close)})?"
    else:
        hint = f"known: {', '.join(FIELDS)}"
    return f"{shown}: there is no such setting; {hint}"


def _describe(problem: Problem) -> str:
    if not problem.path:
        return problem.message
    message = f"{'.'.join(problem.path)} ({_variable(*problem.path)}): {problem.message}"
    if isinstance(problem.given, str) and problem.kind.endswith(
        ("set_type", "dict_type", "model_type")
    ):
        return f"{message}; a variable holds it as JSON"
    if problem.given in ("", "None", "null"):
        return f"{message}; None is written {NONE!r}"
    return message


def _variable(*path: str) -> str:
    return PREFIX + NESTED.join(normal_name(part) for part in path).upper()
