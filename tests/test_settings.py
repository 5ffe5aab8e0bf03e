"""`Settings`: from Python, from `BGX_*` variables, from `.env`; and what is refused, in what words.

The environment of the tests is empty (tests/conftest.py) and their directory has no `.env`.
"""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from fastapi_bgx import Bgx, Limit, Retry, Settings, SettingsError, TaskOptions
from fastapi_bgx.options import normal_name
from fastapi_bgx.settings import ALL_EVENTS

# Every field: a value that is not its default, and the same as an environment variable spells it.
FIELDS: dict[str, tuple[Any, str]] = {
    "mode": ("detached", "detached"),
    "max_concurrency": (7, "7"),
    "max_threads": (7, "7"),
    "max_processes": (7, "7"),
    "limits": ({"smtp": 3, "crm": 1}, '{"smtp": 3, "crm": 1}'),
    "rates": ({"smtp": "9/minute"}, '{"smtp": "9/minute"}'),
    "max_backlog": (7, "7"),
    "timeout": (2.5, "2.5"),
    "queue_timeout": (2.5, "2.5"),
    "slow_after": (2.5, "2.5"),
    "loop_block_after": (0.5, "0.5"),
    "retry": (Retry(attempts=5), '{"attempts": 5}'),
    "history": (7, "7"),
    "history_of": ("all", "all"),
    "retryable": (7, "7"),
    "drain_timeout": (0.0, "0"),
    "on_error": ("raise", "raise"),
    "on_failed_response": ("run", "run"),
    "check_calls": (False, "false"),
    "log_arguments": (True, "true"),
    "log_events": ({"task.failed", "bgx.drained"}, '["task.failed", "bgx.drained"]'),
    "store": ("memory", "memory"),
    "store_most": (7, "7"),
    "store_max_age": (2.5, "2.5"),
    "store_arguments": (True, "true"),
    "secret": (SecretStr("signs the URLs of tasks"), "signs the URLs of tasks"),
    "tasks": ({"send": TaskOptions(timeout=5)}, '{"send": {"timeout": 5}}'),
}
each_field = pytest.mark.parametrize("field", FIELDS)


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(**values: Any) -> str:
    """What `Settings` says about values that it refuses."""
    with pytest.raises(SettingsError) as caught:
        Settings(**values)
    return str(caught.value)


def write_env(*lines: str) -> None:
    Path(".env").write_text("\n".join(lines))


# Where values come from.


def test_every_field_is_in_the_table_of_this_test() -> None:
    assert set(FIELDS) == set(Settings.model_fields)


@each_field
def test_a_field_is_set_in_python(field: str) -> None:
    value, _ = FIELDS[field]
    assert getattr(Settings(), field) != value
    assert getattr(Settings(**{field: value}), field) == value


@each_field
def test_a_field_is_set_by_its_variable(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, written = FIELDS[field]
    monkeypatch.setenv(f"BGX_{field.upper()}", written)
    assert getattr(Settings(), field) == value


@each_field
def test_a_field_is_set_in_a_file(field: str) -> None:
    value, written = FIELDS[field]
    write_env(f"BGX_{field.upper()}='{written}'")
    assert getattr(Settings(), field) == value


@each_field
def test_every_field_has_a_description(field: str) -> None:
    assert Settings.model_fields[field].description


def test_the_case_of_a_variable_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("bgx_Timeout", "3")
    assert Settings().timeout == 3


def test_python_wins_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_env("BGX_TIMEOUT=1", "BGX_MAX_THREADS=1", "BGX_MAX_PROCESSES=1")
    monkeypatch.setenv("BGX_TIMEOUT", "2")
    monkeypatch.setenv("BGX_MAX_THREADS", "2")
    settings = Settings(timeout=3)
    assert (settings.timeout, settings.max_threads, settings.max_processes) == (3, 2, 1)


def test_a_bgx_without_settings_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_TIMEOUT", "3")
    assert Bgx().settings.timeout == 3


def test_other_variables_of_the_file_are_left_alone() -> None:
    untouched = Settings()
    write_env("TIMEOUT=soon", "MAX_THREADS=-1", "DATABASE_URL=x", "MY_BGX_TIMEOUT=x", "EMPTY=")
    assert Settings() == untouched


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = Settings()
    monkeypatch.setenv("TIMEOUT", "soon")
    monkeypatch.setenv("MY_BGX_TIMEOUT", "3")
    assert Settings() == untouched


# Nested names.


def test_a_limit_is_set_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_LIMITS__SMTP", "3")
    assert Settings(limits={"crm": 2}).limits == {"smtp": 3, "crm": 2}


def test_an_option_of_a_task_is_set_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_TASKS__SEND_WELCOME__TIMEOUT", "10")
    assert Settings().tasks == {"send_welcome": TaskOptions(timeout=10)}


def test_an_option_of_a_task_is_set_in_the_file() -> None:
    write_env("BGX_TASKS__SEND_WELCOME__TIMEOUT=10")
    assert Settings().tasks == {"send_welcome": TaskOptions(timeout=10)}


@pytest.mark.parametrize("name", ["send", "Mailer.send", "send-mail", "<lambda>"])
def test_a_task_is_found_in_the_settings_however_it_is_spelt(name: str) -> None:
    assert list(Settings(tasks={name: TaskOptions(timeout=1)}).tasks) == [normal_name(name)]


def test_a_method_is_spelt_with_an_underscore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_TASKS__MAILER_SEND__TIMEOUT", "10")
    assert Settings().tasks == Settings(tasks={"Mailer.send": TaskOptions(timeout=10)}).tasks


def test_a_variable_changes_one_option_and_keeps_those_of_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BGX_TASKS__MAILER_SEND__TIMEOUT", "10")
    settings = Settings(tasks={"Mailer.send": TaskOptions(slow_after=2)})
    assert settings.tasks["mailer_send"].given() == {"timeout": 10, "slow_after": 2}


def test_options_of_a_task_may_be_a_dictionary() -> None:
    tasks: Any = {"send": {"timeout": 5}}
    assert Settings(tasks=tasks).tasks == {"send": TaskOptions(timeout=5)}


def test_only_the_options_that_were_named_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_TASKS__SEND__TIMEOUT", "none")
    assert Settings().tasks["send"].given() == {"timeout": None}


def test_a_limit_that_is_a_number_stays_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_TASKS__SEND__LIMIT", "5")
    monkeypatch.setenv("BGX_LIMITS__5", "2")
    assert Settings().tasks["send"].limit == "5"


def test_a_limit_of_a_task_may_be_an_object() -> None:
    limit = Limit("tenant", 2)
    assert Settings(tasks={"send": TaskOptions(limit=limit)}).tasks["send"].limit is limit


# None, and nothing.


@pytest.mark.parametrize(
    "field", ["max_concurrency", "max_backlog", "timeout", "queue_timeout", "slow_after"]
)
def test_none_is_no_bound(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    none: dict[str, Any] = {field: None}
    assert getattr(Settings(**none), field) is None
    monkeypatch.setenv(f"BGX_{field.upper()}", "none")
    assert getattr(Settings(), field) is None


@pytest.mark.parametrize("written", ["None", "null", ""])
def test_another_spelling_of_none_is_refused_with_the_right_one(
    written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BGX_SLOW_AFTER", written)
    assert (
        f"slow_after (BGX_SLOW_AFTER): Input should be a valid number, unable to parse string \
as a number, got {written!r}; None is written 'none'"
        in refusal()
    )


def test_all_events_are_logged_unless_told() -> None:
    assert Settings().log_events == ALL_EVENTS


def test_no_event_is_logged_when_the_set_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(log_events=set()).log_events == frozenset()
    monkeypatch.setenv("BGX_LOG_EVENTS", "[]")
    assert Settings().log_events == frozenset()


# What is refused.


def test_settings_are_frozen() -> None:
    settings: Any = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.timeout = 3


def test_a_set_of_events_that_changes_later_changes_nothing() -> None:
    events: set[Any] = {"task.failed"}
    settings = Settings(log_events=events)
    events.clear()
    assert settings.log_events == {"task.failed"}


def test_an_unknown_argument_is_refused_with_a_suggestion() -> None:
    assert (
        "max_thread (BGX_MAX_THREAD): there is no such setting; "
        "did you mean max_threads (BGX_MAX_THREADS)?"
    ) in refusal(max_thread=3)


def test_an_unknown_variable_is_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_TIMOUT", "3")
    assert (
        "BGX_TIMOUT: there is no such setting; did you mean timeout (BGX_TIMEOUT)?"
    ) in refusal()


def test_an_unknown_variable_of_the_file_is_refused_with_a_suggestion() -> None:
    write_env("DATABASE_URL=x", "bgx_timout=3")
    assert (
        "BGX_TIMOUT: there is no such setting; did you mean timeout (BGX_TIMEOUT)?"
    ) in refusal()


def test_a_variable_like_no_other_is_refused_with_all_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BGX_FOO", "3")
    assert f"BGX_FOO: there is no such setting; known: {', '.join(FIELDS)}" in refusal()


@pytest.mark.parametrize("variable", ["BGX_TIMEOUT__X", "BGX__TIMEOUT"])
def test_a_name_inside_of_a_plain_setting_is_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "3")
    assert f"{variable}: there is no such setting; did you mean timeout" in refusal()


@pytest.mark.parametrize(
    ("variable", "right"),
    [
        ("BGX_TASKS_SEND_TIMEOUT", "BGX_TASKS__NAME"),
        ("BGX_LIMITS_SMTP", "BGX_LIMITS__NAME"),
    ],
)
def test_a_forgotten_underscore_is_refused_with_the_right_form(
    variable: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "3")
    message = refusal()
    assert f"{variable}: there is no such setting; a name inside of " in message
    assert f"follows '__', as in {right}" in message


def test_an_unknown_option_of_a_task_is_refused_with_a_suggestion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BGX_TASKS__SEND__TIMOUT", "3")
    assert (
        "tasks.send.timout (BGX_TASKS__SEND__TIMOUT): there is no such option; "
        "did you mean 'timeout'?"
    ) in refusal()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mode", "async", "Input should be 'inline' or 'detached', got 'async'"),
        ("max_concurrency", 0, "Input should be greater than or equal to 1, got 0"),
        ("max_threads", -1, "Input should be greater than or equal to 1, got -1"),
        ("max_threads", None, "Input should be a valid integer, got None"),
        ("max_threads", 1.5, "Input should be a valid integer, got a number with a fractional"),
        ("max_threads", True, "Input should be a number, got True"),
        ("max_processes", 0, "Input should be greater than or equal to 1, got 0"),
        ("max_backlog", -5, "Input should be greater than or equal to 1, got -5"),
        ("timeout", -1, "Input should be greater than 0, got -1"),
        ("timeout", 0, "Input should be greater than 0, got 0"),
        ("timeout", True, "Input should be a number, got True"),
        ("timeout", float("inf"), "Input should be a finite number, got inf"),
        ("timeout", "soon", "Input should be a valid number, unable to parse string as a number"),
        ("queue_timeout", -1, "Input should be greater than 0, got -1"),
        ("slow_after", -1, "Input should be greater than 0, got -1"),
        ("drain_timeout", -1, "Input should be greater than or equal to 0, got -1"),
        ("drain_timeout", False, "Input should be a number, got False"),
        ("on_error", "ignore", "Input should be 'capture' or 'raise', got 'ignore'"),
        ("on_failed_response", "keep", "Input should be 'drop' or 'run', got 'keep'"),
        ("check_calls", "maybe", "Input should be a valid boolean"),
        ("log_arguments", 2, "Input should be a valid boolean"),
        ("log_events", {"task.fail"}, "Input should be 'task.queued', 'task.joined'"),
        ("log_events", "task.failed", "Input should be a valid frozenset, got 'task.failed'"),
        ("limits", "smtp", "Input should be a valid dictionary, got 'smtp'"),
        ("limits", {"threads": 3}, "'threads' is not a name of yours; set max_threads instead"),
        ("tasks", ["send"], "Input should be a valid dictionary, got ['send']"),
    ],
)
def test_a_wrong_value_is_refused_by_field_and_variable(
    field: str, value: Any, message: str
) -> None:
    assert f"  {field} (BGX_{field.upper()}): {message}" in refusal(**{field: value})


@pytest.mark.parametrize(
    ("variable", "field", "value", "message"),
    [
        ("BGX_LIMITS__SMTP", "limits.smtp", "0", "Input should be greater than or equal to 1"),
        ("BGX_LIMITS__SMTP", "limits.smtp", "many", "Input should be a valid integer"),
        ("BGX_TASKS__SEND__TIMEOUT", "tasks.send.timeout", "-1", "Input should be greater than 0"),
        ("BGX_TASKS__SEND__EXECUTOR", "tasks.send.executor", "fork", "Input should be 'async'"),
        ("BGX_TASKS__SEND", "tasks.send", "5", "Input should be a valid dictionary"),
        ("BGX_TASKS", "tasks", "send", "Input should be a valid dictionary"),
        ("BGX_LIMITS", "limits", '{"smtp": 3', "Input should be a valid dictionary"),
        ("BGX_LOG_EVENTS", "log_events", "task.failed", "Input should be a valid frozenset"),
    ],
)
def test_a_wrong_value_in_a_variable_is_refused_by_field_and_variable(
    variable: str, field: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    told = refusal()
    assert f"  {field} ({variable}): {message}" in told
    assert f"got {value!r}" in told


@pytest.mark.parametrize("variable", ["BGX_LIMITS", "BGX_TASKS", "BGX_TASKS__X", "BGX_LOG_EVENTS"])
def test_a_variable_that_has_to_be_json_says_so(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "smtp=3")
    assert "got 'smtp=3'; a variable holds it as JSON" in refusal()


def test_a_limit_is_a_number() -> None:
    assert "limits.smtp (BGX_LIMITS__SMTP): Input should be a number, got True" in refusal(
        limits={"smtp": True}
    )


def test_the_variable_of_a_method_in_a_message_can_be_set() -> None:
    tasks: Any = {"Mailer.send": {"timeout": -1}}
    assert "(BGX_TASKS__MAILER_SEND__TIMEOUT)" in refusal(tasks=tasks)


def test_a_name_of_a_task_cannot_be_set() -> None:
    assert "send: a task is renamed where it is added" in refusal(
        tasks={"send": TaskOptions(name="x")}
    )


def test_one_task_under_two_names_is_refused() -> None:
    tasks = {"Mailer.send": TaskOptions(timeout=1), "mailer_send": TaskOptions(timeout=2)}
    assert "tasks (BGX_TASKS): a task is named twice" in refusal(tasks=tasks)


def test_a_limit_that_does_not_exist_is_refused() -> None:
    assert (
        "tasks.send.limit (BGX_TASKS__SEND__LIMIT): 'smpt' is not in limits (BGX_LIMITS)"
    ) in refusal(limits={"smtp": 1}, tasks={"send": TaskOptions(limit="smpt")})


def test_raising_contradicts_detached() -> None:
    message = refusal(on_error="raise", mode="detached")
    assert "on_error='raise' (BGX_ON_ERROR) contradicts mode='detached' (BGX_MODE)" in message


def test_all_problems_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_TIMOUT", "3")
    write_env("BGX_MAX_THREAD=1")
    wrong: dict[str, Any] = {"timeout": -1, "modes": "inline"}
    with pytest.raises(SettingsError) as caught:
        Settings(**wrong)
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "modes",
        "BGX_MAX_THREAD:",
        "BGX_TIMOUT:",
        "timeout",
    ]


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(on_error="raise", mode="detached", tasks={"send": TaskOptions(limit="x")})
    assert len(str(caught.value).splitlines()) == 3
