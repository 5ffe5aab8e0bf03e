"""Comparing a call that a test expects with the calls that were added, and telling the difference.

Arguments are compared by parameter name, whichever way they were passed. Pure.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from fastapi_bgx.calls import Shape, arguments_by_name, shape_of
from fastapi_bgx.errors import WrongCall
from fastapi_bgx.options import TaskOptions, normal_name
from fastapi_bgx.task import Task

MISSING = object()
LONGEST = 80


class Wanted(NamedTuple):
    """The calls that a test looks for: a function, some of its arguments, some options."""

    func: Any
    shape: Shape
    arguments: dict[str, Any]
    options: TaskOptions

    def differences(self, task: Task[Any]) -> list[str] | None:
        """What is different in `task`; empty when it matches, `None` for another function."""
        call, args, kwargs = _flat(task.func, task.args, task.kwargs)
        if call != self.func:
            return None
        try:
            actual = arguments_by_name(self.shape, args, kwargs) | _unnamed(self.shape, args)
        except TypeError:
            actual = {}  # a wrong call: see `told`
        found = {name: actual.get(name, MISSING) for name in self.arguments}
        given = self.options.given()
        ran = {name: option_of(task, name, value) for name, value in given.items()}
        return [*_unequal(self.arguments, found), *_unequal(given, ran)]

    def __str__(self) -> str:
        """As a call, with the options first."""
        given = self.options.given()
        using = f"using({_spelt(given)})." if given else ""
        return f"{using}{self.shape.name}({_spelt(self.arguments)})"


def wanted(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: TaskOptions
) -> Wanted:
    """What a test asks for; the arguments may be some of the call's only.

    Raises:
        WrongCall: arguments that the function does not have.
    """
    call, args, named = _flat(func, args, kwargs)
    shape = shape_of(call)
    try:
        return Wanted(call, shape, _named(shape, args, named), options)
    except TypeError as error:
        raise WrongCall(f"{shape.name}{shape.signature}: {error}") from None


def told(task: Task[Any]) -> str:
    """A task as the call that it is, its arguments by name."""
    call, args, kwargs = _flat(task.func, task.args, task.kwargs)
    shape = shape_of(call)
    try:
        arguments = _named(shape, args, kwargs)
    except TypeError:  # with Settings.check_calls off, the call may be a wrong one
        arguments = _numbered(args) | kwargs
    name = shape.name if task.name == shape.name else f"{task.name}: {shape.name}"
    return f"{name}({_spelt(arguments)})"


def option_of(task: Task[Any], name: str, expected: Any) -> Any:
    """The value of an option with which `task` is to run, wherever it was set."""
    if name == "unique" and not callable(expected):
        return None if task.unique is None else task.unique[1]
    return getattr(task.plan, name)


def _named(shape: Shape, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are given, by parameter name; numbered where nobody knows the names."""
    if shape.signature is None:
        return _numbered(args) | kwargs
    arguments = dict(shape.signature.bind_partial(*args, **kwargs).arguments)
    for parameter in shape.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments


def _flat(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A call of a partial as the call that it makes."""
    named = dict(kwargs)
    while isinstance(func, partial):
        func, args, named = func.func, (*func.args, *args), {**func.keywords, **named}
    return func, args, named


def _unnamed(shape: Shape, args: tuple[Any, ...]) -> dict[str, Any]:
    return _numbered(args) if shape.signature is None else {}


def _numbered(args: tuple[Any, ...]) -> dict[str, Any]:
    return {f"#{number}": value for number, value in enumerate(args)}


def _unequal(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    return [
        f"{name} is {_short(actual[name])}, not {_short(value)}"
        for name, value in expected.items()
        if not _equal(name, value, actual[name])
    ]


def _equal(name: str, expected: Any, actual: Any) -> bool:
    if expected is actual:
        return True
    if name == "limit":
        expected, actual = _limit_name(expected), _limit_name(actual)
    try:
        return bool(expected == actual)
    except Exception:  # of an array, for example: nobody can say
        return False


def _limit_name(limit: Any) -> Any:
    name = getattr(limit, "name", limit)
    return normal_name(name) if isinstance(name, str) else limit


def _spelt(arguments: dict[str, Any]) -> str:
    return ", ".join(
        _short(value) if name.startswith("#") else f"{name}={_short(value)}"
        for name, value in arguments.items()
    )


def _short(value: Any) -> str:
    if value is MISSING:
        return "not given"
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}: its repr raises {type(error).__name__}>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
