"""What a function accepts, worked out once per function, and the check of a call against it."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi_bgx.errors import WrongCall


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a function before it is called."""

    name: str
    """A short name: `send_mail`, `Mailer.send`, `<lambda>`."""
    is_async: bool
    """True when calling it gives a coroutine."""
    signature: inspect.Signature | None
    """Its own signature (not one that it wraps); `None` when Python does not know."""
    least: int
    """The fewest positional arguments that are a complete call."""
    most: int
    """The most positional arguments that it takes."""


def shape_of(func: Any) -> Shape:
    """Look at `func` once.

    Raises:
        WrongCall: `func` is nothing that a background task can call.
    """
    refuse_uncallable(func)
    signature = _signature(func)
    least, most = _positional_range(signature)
    return Shape(
        name=_short_name(func),
        is_async=_any_level(func, inspect.iscoroutinefunction),
        signature=signature,
        least=least,
        most=most,
    )


def check_call(shape: Shape, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that the function would not accept.

    Raises:
        WrongCall: with the signature in the message.
    """
    if shape.signature is None or (not kwargs and shape.least <= len(args) <= shape.most):
        return
    try:
        shape.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise WrongCall(
            f"add_task({shape.name}, ...): {error}; the function is {shape.name}{shape.signature}"
        ) from None


def arguments_by_name(
    shape: Shape, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by parameter name, defaults included."""
    if shape.signature is None:
        return dict(kwargs)
    bound = shape.signature.bind(*args, **kwargs)
    bound.apply_defaults()
    named = dict(bound.arguments)
    for parameter in shape.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name))
    return named


def refuse_uncallable(func: Any) -> None:
    """Refuse what stock FastAPI accepts and then loses or fails on after the response.

    Raises:
        WrongCall: a coroutine object, a generator function, or nothing callable.
    """
    if inspect.iscoroutine(func):
        func.close()  # it will never be awaited: no warning about that on top of the error
        raise WrongCall(
            f"add_task() got a coroutine object; pass the function and its arguments instead: "
            f"add_task({func.__name__}, ...) without calling it"
        )
    if not callable(func):
        raise WrongCall(f"add_task() needs a function to call, got {func!r}")
    if _any_level(func, inspect.isgeneratorfunction) or _any_level(
        func, inspect.isasyncgenfunction
    ):
        raise WrongCall(
            f"add_task({_short_name(func)}) is a generator function: calling it would run "
            f"none of its code; use a function without `yield`"
        )


def _any_level(func: Any, test: Callable[[Any], bool]) -> bool:
    """Apply `test` to what a partial wraps, and to the `__call__` of a callable object."""
    while isinstance(func, partial):
        func = func.func
    return test(func) or (not inspect.isclass(func) and test(getattr(func, "__call__", None)))  # noqa: B004 - the method itself is wanted


def _signature(func: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of the callable itself: a wrapper may add arguments to what it wraps."""
    try:
        return inspect.signature(func, follow_wrapped=False)
    except (TypeError, ValueError):  # some builtins have none
        return None


def _positional_range(signature: inspect.Signature | None) -> tuple[int, int]:
    """How many positional arguments alone make a complete call; an empty range when none do."""
    if signature is None:
        return 0, sys.maxsize
    least = most = 0
    unbounded = False
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            least += parameter.default is parameter.empty
        elif parameter.kind is parameter.VAR_POSITIONAL:
            unbounded = True
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            return 1, 0  # positional arguments alone are never enough
    return least, sys.maxsize if unbounded else most


def _short_name(func: Any) -> str:
    while isinstance(func, partial):
        func = func.func
    qualified = getattr(func, "__qualname__", None) or type(func).__qualname__
    return str(qualified).rpartition("<locals>.")[2]
